//! Publishing before the answer: Strapi's Trigger button, which tests the whole way, and
//! events that could not be made durable.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

use super::Inbound;
use crate::buffer::{AppendError, Fate, NewEvent};
use crate::destination::{Destination, for_log};
use crate::event::Event;
use crate::http::{Answer, plain};
use crate::qstash::{Message, Outcome};
use crate::router::Routing;

/// Strapi waits 10 s for an answer, so QStash has a little less.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(8);

/// Strapi's panel shows the text of a failed test in one box.
const LONGEST_TEXT: usize = 200;

impl Inbound {
    /// Strapi's Trigger button: the answer tells the truth of the whole way, in words that an
    /// editor understands.
    pub(super) async fn trigger(&self, event: Event, routing: Routing) -> Answer {
        let destination = match routing {
            Routing::To(destination) => destination,
            Routing::Drop => {
                self.metrics.dropped.add();
                let text = "A route drops trigger-test events, so nothing was sent to QStash.";
                return plain(StatusCode::NOT_FOUND, text);
            }
            Routing::NoRoute => {
                let kept = self.bury_unrouted(event).await;
                if !kept.status().is_success() {
                    return kept;
                }
                let text = "No route takes trigger-test events: start the sidecar with --topic NAME, or with a --route for trigger-test.";
                return plain(StatusCode::NOT_FOUND, text);
            }
        };
        let outcome = self.publish_now(&event, &destination).await;
        let (status, text) = judge(&outcome, &destination);
        let fate = match outcome {
            Outcome::Accepted { message_ids, .. } => Fate::Delivered { message_ids },
            Outcome::Rejected { reason } => {
                self.metrics.dead_rejected.add();
                Fate::Dead {
                    reason,
                    attempts: 1,
                }
            }
            Outcome::TooLarge { reason } => {
                self.metrics.dead_too_large.add();
                Fate::Dead {
                    reason,
                    attempts: 1,
                }
            }
            Outcome::UnknownDestination { reason }
            | Outcome::Unauthorized { reason, .. }
            | Outcome::Limited { reason, .. }
            | Outcome::Unreachable { reason, .. } => Fate::Pending {
                failed: Some(reason),
            },
        };
        let (id, address) = (event.id, Some((&destination).into()));
        let new = NewEvent {
            event: Arc::new(event),
            address,
            fate,
        };
        if let Err(error) = self.buffer.append(new).await {
            // The answer tells what became of the test; there is no one else to tell.
            warn!(event.id = %id, error = &error as &dyn std::error::Error, "Test event could not be kept");
        }
        plain(status, text)
    }

    /// The way of an event that could not be made durable.
    pub(super) async fn publish_instead(
        &self,
        event: &Event,
        destination: &Destination,
        why: &AppendError,
    ) -> Answer {
        debug!(event.id = %event.id, error = why as &dyn std::error::Error, "Not durable, publishing before the answer");
        let outcome = self.publish_now(event, destination).await;
        if let Outcome::Accepted { .. } = outcome {
            self.metrics.direct.add();
            return plain(StatusCode::OK, "");
        }
        let (_, text) = judge(&outcome, destination);
        self.metrics.refused_unavailable.add();
        error!(
            event.id = %event.id,
            event.kind = event.facts.kind,
            error = why as &dyn std::error::Error,
            reason = text,
            "Event is lost: neither durable nor published"
        );
        plain(
            StatusCode::SERVICE_UNAVAILABLE,
            clip(format!("Not durable ({why}), and not published. {text}")),
        )
    }

    async fn publish_now(&self, event: &Event, destination: &Destination) -> Outcome {
        let message = Message {
            id: event.id,
            replays: 0,
            destination,
            payload: &event.payload,
        };
        let started = Instant::now();
        let published = timeout(
            PUBLISH_TIMEOUT,
            self.client.publish(message, PUBLISH_TIMEOUT),
        )
        .await;
        let outcome = published.unwrap_or_else(|_elapsed| Outcome::Unreachable {
            wait: None,
            broke: true,
            reason: "no answer in time".to_owned(),
        });
        let took = started.elapsed();
        self.metrics.publish_seconds.observe(took);
        self.spans.published(
            event.id,
            &event.facts,
            &destination.to_string(),
            &event.payload.headers,
            &outcome,
            took,
        );
        if let Outcome::Accepted { message_ids, .. } = &outcome {
            self.metrics.delivered.add();
            self.metrics.delivered_minutes.add();
            info!(
                event.id = %event.id,
                event.kind = event.facts.kind,
                event.model = event.facts.model,
                destination = %for_log(&destination.to_string()),
                attempt = 1,
                message_id = message_ids.join(","),
                "Delivered",
            );
        }
        outcome
    }
}

/// The answer to a test, for an editor.
fn judge(outcome: &Outcome, destination: &Destination) -> (StatusCode, String) {
    let (status, text) = match outcome {
        Outcome::Accepted { message_ids, .. } => (
            StatusCode::OK,
            format!(
                "QStash accepted the event for {destination}: {}",
                message_ids.join(", ")
            ),
        ),
        Outcome::Rejected { reason } => (
            StatusCode::BAD_REQUEST,
            format!("QStash refuses the event. {reason}"),
        ),
        Outcome::TooLarge { reason } => (
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("The event is too large for the QStash plan. {reason}"),
        ),
        Outcome::UnknownDestination { reason } => (
            StatusCode::NOT_FOUND,
            format!(
                "QStash does not know {destination}: create the URL group, then the event goes out. {reason}"
            ),
        ),
        Outcome::Unauthorized { status, reason } => (
            StatusCode::from_u16(*status).unwrap_or(StatusCode::UNAUTHORIZED),
            format!(
                "QStash refuses the sidecar's token; the event waits for a right one. {reason}"
            ),
        ),
        Outcome::Limited {
            daily: true,
            reason,
            ..
        } => (
            StatusCode::TOO_MANY_REQUESTS,
            format!(
                "QStash's quota for today is used up; the event goes out when it is renewed. {reason}"
            ),
        ),
        Outcome::Limited { reason, .. } => (
            StatusCode::TOO_MANY_REQUESTS,
            format!("QStash takes no more for now; the event goes out later. {reason}"),
        ),
        Outcome::Unreachable { reason, .. } => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "QStash cannot be reached; the event is kept and goes out when it is back. {reason}"
            ),
        ),
    };
    (status, clip(text))
}

fn clip(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(LONGEST_TEXT - 1) {
        text.truncate(end);
        text.push('…');
    }
    text
}
