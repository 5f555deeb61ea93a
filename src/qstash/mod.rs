//! QStash, as this program sees it: what a publish looks like, what an answer means, and
//! how deliveries are signed. It publishes what it is given and reports what happened; it
//! knows nothing of the buffer.

mod account;
mod answer;
mod base_url;
mod client;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod message;
pub mod signature;
pub(crate) mod tls;
mod token;

use std::path::PathBuf;

pub use self::account::{Account, AccountError, Endpoint, LogEntry, Quota, Seen, Topic};
pub use self::answer::{BatchOutcome, Outcome};
pub use self::base_url::{BaseUrl, BaseUrlError};
pub use self::client::{Client, ClientError};
pub use self::message::Message;
pub use self::tls::{ExtraRoots, RootsError};
use crate::destination::DeliveryOptions;
use crate::secret::Secret;

/// How QStash is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where.
    pub base: BaseUrl,
    /// Which API.
    pub api: Api,
    /// As whom.
    pub token: TokenSource,
    /// Whom its certificate may be signed by, besides those whom browsers trust.
    pub roots: ExtraRoots,
    /// Delivery options of all routes.
    pub options: DeliveryOptions,
}

/// QStash's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Api {
    /// `/v2/publish/…`, with batches and queues.
    #[default]
    V2,
    /// `/v1/publish/{topic}`, as old tutorials have it; deprecated by Upstash in 2023.
    V1,
}

/// Where the token comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A value that stays.
    Value(Secret),
    /// A file that may change while the sidecar runs.
    File(PathBuf),
}

/// Both sides of [`Client::publish_batch`] without the network, for the benches.
#[doc(hidden)]
pub mod parts {
    use reqwest::StatusCode;
    use reqwest::header::HeaderMap;

    use super::answer::Answer;
    use super::{BatchOutcome, Message};
    use crate::clock::Timestamp;
    use crate::destination::DeliveryOptions;

    pub fn batch_body(messages: &[Message<'_>]) -> Vec<u8> {
        super::client::batch_body(messages, &DeliveryOptions::default()).unwrap_or_default()
    }

    pub fn read_batch(body: &[u8], count: usize) -> BatchOutcome {
        let answer = Answer {
            status: StatusCode::OK,
            headers: &HeaderMap::new(),
            body,
            now: Timestamp::default(),
        };
        answer.to_batch(count)
    }
}
