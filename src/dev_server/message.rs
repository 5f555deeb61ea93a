//! What the server tells about messages: what was accepted, and what became of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::HeaderMap;

pub use super::options::{Callback, FlowControl, Options};
pub use super::redact::{RedactedHeaders, Redaction};
pub use super::target::Destination;
use crate::clock::Timestamp;

/// One accepted message: a publish to a URL group is a message for each endpoint.
#[derive(Debug, Clone)]
pub struct Message {
    /// `msg_…`. A duplicate has the id of the message that it repeats.
    pub id: String,
    /// Where the publisher wanted it to go.
    pub destination: Destination,
    /// The endpoint's name in its URL group, where it has one.
    pub endpoint_name: Option<String>,
    /// The queue that it goes through.
    pub queue: Option<String>,
    /// Where it is delivered.
    pub url: String,
    /// The message that this one tells the fate of, where it is a callback.
    pub callback_of: Option<String>,
    /// The headers that the publisher meant for the receiver.
    pub headers: HeaderMap,
    /// How it is to be delivered.
    pub options: Options,
    /// The body, byte for byte.
    pub body: Bytes,
    /// Whether it repeats a message of the last ten minutes, and so is not delivered.
    pub deduplicated: bool,
    /// When it was accepted.
    pub created_at: Timestamp,
}

/// One publish, enqueue or batch request that arrived with a readable body.
#[derive(Debug, Clone)]
pub struct Seen {
    /// When, to measure by.
    pub instant: Instant,
    /// When, to show.
    pub at: Timestamp,
    /// The path, without the query (the token may be in it).
    pub path: String,
    /// How many messages it asked for; 1 where a batch could not be read.
    pub messages: usize,
    /// The size of its body.
    pub bytes: usize,
    /// Whether a fault or a rejection spoiled it: its answer is not what QStash thinks.
    pub faulted: bool,
    /// The status of the answer; `None` where there was none.
    pub status: Option<u16>,
}

/// How many messages came to what, since the server started. Callbacks are messages too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Accepted, duplicates not counted.
    pub accepted: u64,
    /// Accepted as a duplicate of an earlier one, and so not delivered.
    pub deduplicated: u64,
    /// Delivered to their receiver.
    pub delivered: u64,
    /// Given up after the last retry.
    pub failed: u64,
    /// Cancelled before they were delivered.
    pub cancelled: u64,
}

/// What a receiver answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, cut at the size of the largest message.
    pub body: Bytes,
}

/// Something happened to a message.
#[derive(Debug, Clone)]
pub struct Life {
    /// When.
    pub at: Timestamp,
    /// The message.
    pub message: Arc<Message>,
    /// What happened.
    pub progress: Progress,
}

/// A step in the life of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It was accepted, and will be delivered unless it is a duplicate.
    Created,
    /// A delivery begins.
    Active {
        /// How many were tried before.
        retried: u32,
    },
    /// The receiver has it.
    Delivered {
        /// The receiver's status.
        status: u16,
        /// How many deliveries were tried before.
        retried: u32,
    },
    /// A delivery did not succeed; another follows.
    Retry {
        /// The receiver's status; `None` where it gave no answer.
        status: Option<u16>,
        /// What went wrong.
        error: String,
        /// How many deliveries were tried before.
        retried: u32,
        /// The wait, already shortened by the time scale.
        after: Duration,
        /// The whole answer, where there was one.
        response: Option<Arc<Response>>,
    },
    /// A delivery did not succeed and none follows.
    Failed {
        /// The receiver's status; `None` where it gave no answer.
        status: Option<u16>,
        /// What went wrong.
        error: String,
        /// How many deliveries were tried before.
        retried: u32,
        /// The whole answer, where there was one.
        response: Option<Arc<Response>>,
    },
    /// It is to be cancelled, which happens when it is its turn.
    CancelRequested,
    /// It was cancelled: it is not delivered any more.
    Cancelled,
}

impl Message {
    /// What it takes in memory, about.
    pub(super) fn weight(&self) -> usize {
        let headers = self.headers.iter();
        let headers: usize = headers.map(|(n, v)| n.as_str().len() + v.len()).sum();
        self.body.len() + self.url.len() + headers
    }
}

impl Progress {
    /// What it takes in memory beyond its own size, about.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Retry {
                error, response, ..
            }
            | Self::Failed {
                error, response, ..
            } => {
                let response = response.as_deref();
                error.len() + response.map_or(0, Response::weight)
            }
            _ => 0,
        }
    }

    /// Whether nothing follows.
    pub(super) fn is_end(&self) -> bool {
        matches!(
            self,
            Self::Delivered { .. } | Self::Failed { .. } | Self::Cancelled
        )
    }
}

impl Response {
    /// What it takes in memory, about.
    pub(super) fn weight(&self) -> usize {
        let headers = self.headers.iter();
        let headers: usize = headers.map(|(n, v)| n.as_str().len() + v.len()).sum();
        self.body.len() + headers
    }
}
