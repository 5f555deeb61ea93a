//! The reading of answers, for the fuzz targets: built with `cfg(fuzzing)` only.

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::answer::{Answer, BatchOutcome, Outcome};
use crate::clock::Timestamp;

/// An answer that came at one fixed instant, 2025-11-23T12:13:20Z.
#[derive(Debug)]
pub struct Given<'a> {
    status: StatusCode,
    headers: HeaderMap,
    body: &'a [u8],
}

impl<'a> Given<'a> {
    /// Leaves out headers that no HTTP client would hand over; `None` where the status is none.
    pub fn new(status: u16, headers: &[(&str, &str)], body: &'a [u8]) -> Option<Self> {
        let header = |(name, value): &(&str, &str)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_str(value).ok()?))
        };
        Some(Self {
            status: StatusCode::from_u16(status).ok()?,
            headers: headers.iter().filter_map(header).collect(),
            body,
        })
    }

    /// As the answer to a single publish.
    pub fn to_message(&self) -> Outcome {
        self.answer().to_message()
    }

    /// As the answer to a batch of `count` messages.
    pub fn to_batch(&self, count: usize) -> BatchOutcome {
        self.answer().to_batch(count)
    }

    fn answer(&self) -> Answer<'_> {
        Answer {
            status: self.status,
            headers: &self.headers,
            body: self.body,
            now: Timestamp::from_millis(1_763_900_000_000),
        }
    }
}
