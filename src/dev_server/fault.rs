//! What the server can be told to do wrong, while it runs.
//!
//! Faults concern publish, enqueue and batch requests; [`Fault::Refuse`] concerns the port.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hyper::{HeaderMap, StatusCode};
use tokio::sync::watch;

use crate::clock::Timestamp;

/// A way in which QStash, or what stands before it, can fail.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Fault {
    /// It works.
    #[default]
    None,
    /// The port is closed and all connections with it; it opens again when the fault is
    /// lifted. The kernel gives the port to nobody else meanwhile.
    Refuse,
    /// The request is read and never answered, not even after the fault was lifted.
    Hang,
    /// The connection is closed without an answer; nothing was accepted.
    Reset,
    /// The messages are accepted, then the connection is closed without an answer.
    AcceptThenReset,
    /// Another answer, such as a proxy's 502 in HTML; nothing was accepted.
    Status {
        /// The status.
        code: StatusCode,
        /// The body.
        body: Bytes,
        /// Its `Content-Type`.
        content_type: String,
        /// More headers, such as `Retry-After`.
        headers: HeaderMap,
    },
    /// 200 with bytes that are no JSON; nothing was accepted.
    Garbled,
    /// 200 with bytes that are no JSON; the messages were accepted.
    GarbledAccepted,
    /// 429: the day's quota is used up until `reset`.
    DailyQuota {
        /// When there is quota again.
        reset: Timestamp,
    },
    /// 429: too many requests at a time, until `reset`.
    BurstLimit {
        /// When requests are taken again.
        reset: Timestamp,
    },
    /// 401, whatever the token.
    Unauthorized,
}

impl Fault {
    /// An answer with this status and `{"error": …}`.
    pub fn status(code: StatusCode, error: &str) -> Self {
        Self::Status {
            code,
            body: Bytes::from(serde_json::json!({ "error": error }).to_string()),
            content_type: "application/json".to_owned(),
            headers: HeaderMap::new(),
        }
    }

    /// An answer as a proxy gives it when there is nothing behind it.
    pub fn html(code: StatusCode) -> Self {
        Self::Status {
            code,
            body: Bytes::from(format!("<html><h1>{code}</h1></html>")),
            content_type: "text/html".to_owned(),
            headers: HeaderMap::new(),
        }
    }
}

/// Messages that are refused for what they contain: 400 with `{"error": …}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Bodies with this text in them are refused.
    pub containing: String,
    /// What becomes of a batch with such a body in it.
    pub in_batch: InBatch,
}

/// What one bad item does to its batch. QStash does the one or the other, depending on
/// what is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InBatch {
    /// The item alone is refused: `{"error": …}` in its place.
    ItemAlone,
    /// The whole batch is refused with 400.
    WholeBatch,
}

/// The switch of the faults. Clones switch the same server.
#[derive(Clone)]
pub struct Faults(Arc<Inner>);

struct Inner {
    active: Mutex<Active>,
    /// Whether the port should be closed, for the listening task.
    refuse: watch::Sender<bool>,
    /// Whether it is open; the sender is the listening task's.
    open: watch::Receiver<bool>,
}

#[derive(Default)]
struct Active {
    fault: Fault,
    /// How many requests it still concerns; `None` for all.
    requests_left: Option<u64>,
    rejection: Option<Rejection>,
}

impl Faults {
    /// The switch, and what the listening task follows.
    pub(super) fn new(open: watch::Receiver<bool>) -> Self {
        Self(Arc::new(Inner {
            active: Mutex::default(),
            refuse: watch::Sender::new(false),
            open,
        }))
    }

    /// Every request from now on fails like this, until it is lifted by [`Fault::None`].
    /// Returns once it is in force: the port closed, or open again.
    pub async fn set(&self, fault: Fault) {
        self.switch(fault, None).await;
    }

    /// As [`set`](Self::set), for the next `requests` publish, enqueue or batch requests.
    /// A closed port sees no requests, so [`Fault::Refuse`] stays until it is lifted.
    pub async fn set_for(&self, requests: u64, fault: Fault) {
        self.switch(fault, Some(requests)).await;
    }

    async fn switch(&self, fault: Fault, requests_left: Option<u64>) {
        let refuse = fault == Fault::Refuse;
        {
            let mut active = self.active();
            active.fault = fault;
            active.requests_left = requests_left;
            self.0.refuse.send_replace(refuse);
        }
        // Whoever switches again meanwhile changes what is waited for.
        let mut wanted = self.0.refuse.subscribe();
        let mut open = self.0.open.clone();
        while *open.borrow_and_update() == *wanted.borrow_and_update() {
            tokio::select! {
                changed = open.changed() => if changed.is_err() {
                    return; // the server ended: its port is closed for good
                },
                _ = wanted.changed() => {}
            }
        }
    }

    /// Refuses messages by their body, or stops to.
    pub fn reject(&self, rejection: Option<Rejection>) {
        self.active().rejection = rejection;
    }

    /// What is in force.
    pub fn current(&self) -> Fault {
        self.active().fault.clone()
    }

    /// The fault that the request at hand suffers.
    pub(super) fn take(&self) -> Fault {
        let mut active = self.active();
        let fault = active.fault.clone();
        match &mut active.requests_left {
            None => {}
            Some(0) => return Fault::None,
            Some(left) => {
                *left -= 1;
                if *left == 0 {
                    active.fault = Fault::None;
                    active.requests_left = None;
                }
            }
        }
        fault
    }

    pub(super) fn rejection(&self) -> Option<Rejection> {
        self.active().rejection.clone()
    }

    pub(super) fn watch_refuse(&self) -> watch::Receiver<bool> {
        self.0.refuse.subscribe()
    }

    fn active(&self) -> MutexGuard<'_, Active> {
        // No code that holds the lock can panic half-way through a change.
        self.0.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
