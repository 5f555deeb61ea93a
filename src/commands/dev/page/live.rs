//! What an open page is told: everything once, then what changes, as server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Either;
use hyper::body::{Body, Frame};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tracing::warn;

use super::ways::Ways;
use super::{Page, PageAnswer};
use crate::buffer::Seq;
use crate::http::plain;

/// Pages that are open at a time.
pub(super) const MAX_STREAMS: usize = 32;

/// Events that an open page may be behind; then it is told everything anew.
pub(super) const MAX_BEHIND: usize = 1_024;

/// How often the numbers are looked at while a page is open.
const TICK: Duration = Duration::from_millis(250);

/// How often a page hears something, so that it notices when it does not.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Waiting events that are shown one by one.
const SHOWN_PENDING: usize = 20;

impl Page {
    /// What happens, to an open page.
    pub(super) fn live(self: &Arc<Self>) -> PageAnswer {
        let Ok(permit) = Arc::clone(&self.streams).try_acquire_owned() else {
            let full = plain(StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n");
            return full.map(Either::Left);
        };
        let (sender, receiver) = mpsc::channel(64);
        let stream = Stream {
            receiver,
            _permit: permit,
        };
        let page = Arc::clone(self);
        self.tasks.spawn(async move {
            let shutdown = page.shutdown.clone();
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = page.feed(sender) => {}
            }
        });
        let mut answer = Response::new(Either::Right(stream));
        let kind = HeaderValue::from_static("text/event-stream");
        answer.headers_mut().insert(CONTENT_TYPE, kind);
        answer
    }

    /// Tells a page everything, then what changes, until it goes or is too far behind: then it
    /// comes again by itself.
    async fn feed(&self, page: mpsc::Sender<Bytes>) {
        let (mut told, ways) = {
            let ways = self.ways();
            (self.told.subscribe(), ways.summaries())
        };
        let state = event("state", &self.state().await);
        for first in [state, event("ways", &ways)] {
            if page.send(first).await.is_err() {
                return;
            }
        }
        loop {
            let next = match tokio::time::timeout(HEARTBEAT, told.recv()).await {
                Ok(Ok(next)) => next,
                Ok(Err(RecvError::Lagged(_) | RecvError::Closed)) => return,
                Err(_elapsed) => Bytes::from_static(b": still here\n\n"),
            };
            if page.send(next).await.is_err() {
                return;
            }
        }
    }

    /// Follows what the server and the catcher tell.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut life = self.parts.server.subscribe();
        let mut arrivals = self.parts.catcher.subscribe();
        loop {
            let step = tokio::select! {
                () = self.shutdown.cancelled() => return,
                step = life.recv() => step,
                arrival = arrivals.recv() => {
                    // Its message was told of before it was sent.
                    while let Ok(step) = life.try_recv() {
                        self.tell(|ways| ways.step(&step));
                    }
                    match arrival {
                        Ok(received) => self.tell(|ways| ways.arrival(&received)),
                        Err(RecvError::Lagged(missed)) => missed_some(missed),
                        Err(RecvError::Closed) => return,
                    }
                    continue;
                }
            };
            match step {
                Ok(step) => self.tell(|ways| ways.step(&step)),
                Err(RecvError::Lagged(missed)) => missed_some(missed),
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Changes what is known of the ways, and tells it. Under one lock, so that a page that
    /// opens meanwhile is told each change once.
    fn tell(&self, change: impl FnOnce(&mut Ways) -> Option<Value>) {
        let mut ways = self.ways();
        if let Some(way) = change(&mut ways) {
            self.told.send(event("way", &way)).ok(); // no page has to be open
        }
    }

    /// Looks at the numbers while a page is open, and tells when they change.
    pub(super) async fn look(self: Arc<Self>) {
        let mut last = Value::Null;
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(TICK) => {}
            }
            if self.told.receiver_count() == 0 {
                continue;
            }
            let state = self.state().await;
            if state != last {
                self.told.send(event("state", &state)).ok(); // it may just have gone
                last = state;
            }
        }
    }

    pub(super) async fn tell_state(&self) {
        let state = self.state().await;
        self.told.send(event("state", &state)).ok(); // no page has to be open
    }

    async fn state(&self) -> Value {
        let parts = &self.parts;
        let (tally, counts) = (parts.buffer.tally(), parts.server.counts());
        let pending = parts.buffer.pending(Seq::START, Vec::new(), SHOWN_PENDING);
        // While the buffer cannot be read, its numbers still say how many there are.
        let pending = pending.await.unwrap_or_default();
        let pending = pending.iter().map(|event| {
            let facts = &event.facts;
            let about = facts.uid.as_deref().or(facts.model.as_deref());
            json!({
                "id": event.id.to_string(),
                "kind": facts.kind,
                "about": about,
                "at": event.received_at.as_millis(),
                "attempts": event.attempts,
            })
        });
        let switches = self.switches().clone();
        json!({
            "webhook": format!("http://{}/webhook", parts.webhook),
            "server": parts.server.url(),
            "catcher": parts.catcher.url("/"),
            "switches": switches,
            "timeScale": parts.server.time_scale(),
            "accepted": tally.accepted,
            "pending": tally.pending,
            "dead": tally.dead,
            "waiting": pending.collect::<Vec<_>>(),
            "qstash": {
                "accepted": counts.accepted,
                "repeated": counts.deduplicated,
                "delivered": counts.delivered,
                "failed": counts.failed,
            },
        })
    }
}

fn missed_some(missed: u64) {
    warn!(missed, "Too much happened at once, the page shows not all");
}

/// The body of `/live`: it ends with its sender.
pub(super) struct Stream {
    receiver: mpsc::Receiver<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.receiver.poll_recv(context);
        next.map(|next| next.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// One server-sent event. JSON has no line ends of its own.
fn event(name: &str, value: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {value}\n\n"))
}
