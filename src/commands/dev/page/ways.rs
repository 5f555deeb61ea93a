//! What became of each message, gathered from what the development server and the catcher tell:
//! the page shows it. No I/O; bounded, the oldest messages go first.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::dev_server::{Destination, Life, Message, Progress, Received};
use crate::event::Facts;

/// Messages that are shown.
const MAX_WAYS: usize = 200;

/// Steps of one message; beyond it those after the first are left out.
const MAX_STEPS: usize = 60;

/// What the bodies of all deliveries may weigh that are shown.
const MAX_BYTES: usize = 64 << 20;

/// How much of a body is shown.
const MAX_SHOWN: usize = 256 << 10;

/// The latest messages, oldest first.
#[derive(Default)]
pub(super) struct Ways {
    ways: VecDeque<Way>,
    bytes: usize,
    /// Deliveries of nobody's, so far: they need a name too.
    strangers: u64,
}

/// One message, or a request to the catcher that was no delivery.
struct Way {
    id: String,
    /// The sidecar's name for the event.
    event_id: Option<String>,
    kind: String,
    /// The content type, or the media.
    about: String,
    to: String,
    at: Timestamp,
    state: &'static str,
    attempts: u32,
    /// When the next attempt begins, while one is waited for.
    next_at: Option<Timestamp>,
    is_callback: bool,
    is_verified: Option<bool>,
    steps: VecDeque<Value>,
    arrival: Option<Arc<Received>>,
}

impl Ways {
    /// Takes in a step; what there is to show of the message now.
    pub(super) fn step(&mut self, life: &Life) -> Option<Value> {
        let message = &life.message;
        if life.progress == Progress::Created && !message.deduplicated {
            self.add(Way::of_message(message));
        }
        // A repeat of a message that is no longer shown is not shown either.
        let way = self
            .ways
            .iter_mut()
            .rev()
            .find(|way| way.id == message.id)?;
        way.step(life);
        Some(way.summary())
    }

    /// Takes in what arrived at the catcher.
    pub(super) fn arrival(&mut self, received: &Arc<Received>) -> Option<Value> {
        let id = received.header("upstash-message-id").map(str::to_owned);
        let at = id.and_then(|id| self.ways.iter().rposition(|way| way.id == id));
        let at = match at {
            Some(at) => at,
            None => {
                self.strangers += 1;
                self.add(Way::of_stranger(received, self.strangers));
                self.ways.len().checked_sub(1)?
            }
        };
        let way = self.ways.get_mut(at)?;
        let earlier = way.arrival.replace(Arc::clone(received));
        way.is_verified = Some(received.verified);
        let summary = way.summary();
        self.bytes += received.body.len();
        self.bytes -= earlier.map_or(0, |earlier| earlier.body.len());
        self.forget_bodies();
        Some(summary)
    }

    /// What there is to show of all, oldest first.
    pub(super) fn summaries(&self) -> Value {
        self.ways.iter().map(Way::summary).collect()
    }

    /// Everything about one.
    pub(super) fn details(&self, id: &str) -> Option<Value> {
        let way = self.ways.iter().find(|way| way.id == id)?;
        Some(way.details())
    }

    fn add(&mut self, way: Way) {
        self.ways.push_back(way);
        if self.ways.len() > MAX_WAYS
            && let Some(gone) = self.ways.pop_front()
        {
            self.bytes -= gone.arrival.map_or(0, |arrival| arrival.body.len());
        }
    }

    fn forget_bodies(&mut self) {
        let newest = self.ways.len().saturating_sub(1);
        for way in self.ways.iter_mut().take(newest) {
            if self.bytes <= MAX_BYTES {
                return;
            }
            let gone = way.arrival.take();
            self.bytes -= gone.map_or(0, |arrival| arrival.body.len());
        }
    }
}

impl Way {
    fn of_message(message: &Message) -> Self {
        let text = |name: &str| {
            let value = message.headers.get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let facts = Facts::read(&message.body).unwrap_or_default();
        let is_callback = message.callback_of.is_some();
        Self {
            id: message.id.clone(),
            event_id: text("webhook-id"),
            kind: if is_callback {
                "callback".to_owned()
            } else {
                text("x-strapi-event").unwrap_or_else(|| "message".to_owned())
            },
            about: facts.uid.or(facts.model).unwrap_or_default(),
            to: match (&message.destination, &message.queue) {
                (Destination::Group(name), _) => format!("{name} → {}", message.url),
                (Destination::Url(url), Some(queue)) => format!("queue {queue} → {url}"),
                (Destination::Url(url), None) => url.clone(),
            },
            at: message.created_at,
            state: "accepted",
            attempts: 0,
            next_at: message.options.not_before,
            is_callback,
            is_verified: None,
            steps: VecDeque::new(),
            arrival: None,
        }
    }

    fn of_stranger(received: &Received, number: u64) -> Self {
        Self {
            id: format!("request-{number}"),
            event_id: None,
            kind: received
                .header("x-strapi-event")
                .unwrap_or("request")
                .to_owned(),
            about: received.path.clone(),
            to: received.path.clone(),
            at: received.at,
            // One that is QStash's is of a message that is no longer shown.
            state: if received.verified {
                "arrived"
            } else {
                "stranger"
            },
            attempts: 0,
            next_at: None,
            is_callback: false,
            is_verified: None,
            steps: VecDeque::new(),
            arrival: None,
        }
    }

    fn step(&mut self, life: &Life) {
        let step = |what: &str, text: String| json!({ "at": life.at.as_millis(), "what": what, "text": text });
        let step = match &life.progress {
            Progress::Created if life.message.deduplicated => step(
                "repeat",
                "published again with the same deduplication id: QStash drops it".to_owned(),
            ),
            Progress::Created => step("accepted", format!("QStash accepted it as {}", self.id)),
            Progress::Active { retried } => {
                (self.state, self.attempts, self.next_at) = ("active", retried + 1, None);
                step("attempt", format!("attempt {}", retried + 1))
            }
            Progress::Delivered { status, .. } => {
                self.state = "delivered";
                step(
                    "delivered",
                    format!("delivered: the receiver answered {status}"),
                )
            }
            Progress::Retry { error, after, .. } => {
                self.state = "retry";
                self.next_at = Some(life.at.plus(*after));
                let wait = humantime::format_duration(rounded(*after));
                step(
                    "failed",
                    format!("failed ({error}), next attempt in {wait}"),
                )
            }
            Progress::Failed { error, .. } => {
                self.state = "failed";
                step(
                    "failed",
                    format!("failed for good ({error}): it is in QStash's dead letter queue now"),
                )
            }
            Progress::CancelRequested => step("cancel", "to be cancelled".to_owned()),
            Progress::Cancelled => {
                (self.state, self.next_at) = ("cancelled", None);
                step("cancel", "cancelled".to_owned())
            }
        };
        self.steps.push_back(step);
        if self.steps.len() > MAX_STEPS {
            self.steps.remove(1);
        }
    }

    fn summary(&self) -> Value {
        json!({
            "id": self.id,
            "kind": self.kind,
            "about": self.about,
            "to": self.to,
            "at": self.at.as_millis(),
            "state": self.state,
            "attempts": self.attempts,
            "nextAt": self.next_at.map(Timestamp::as_millis),
            "isCallback": self.is_callback,
            "isVerified": self.is_verified,
        })
    }

    fn details(&self) -> Value {
        json!({
            "id": self.id,
            "eventId": self.event_id,
            "to": self.to,
            "steps": self.steps,
            "arrival": self.arrival.as_deref().map(describe),
        })
    }
}

/// A duration that people read: not to the nanosecond.
fn rounded(wait: std::time::Duration) -> std::time::Duration {
    let millis = wait.as_millis();
    let unit = if millis > 10_000 { 1_000 } else { 1 };
    let millis = u64::try_from(millis / unit * unit).unwrap_or(u64::MAX);
    std::time::Duration::from_millis(millis)
}

/// A request as it arrived.
fn describe(received: &Received) -> Value {
    let headers = received.headers.iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes());
        json!([name.as_str(), value])
    });
    let shown = received.body.get(..MAX_SHOWN).unwrap_or(&received.body);
    let verdict = match (received.verified, &received.signature_error) {
        (true, _) => "verified: QStash signed this body for this URL".to_owned(),
        (false, Some(error)) => format!("wrong: {error}"),
        (false, None) => "missing: this did not come from QStash".to_owned(),
    };
    json!({
        "at": received.at.as_millis(),
        "line": format!("{} {}", received.method, received.path),
        "headers": headers.collect::<Vec<_>>(),
        "body": String::from_utf8_lossy(shown),
        "hidden": received.body.len() - shown.len(),
        "size": received.body.len(),
        "isVerified": received.verified,
        "verdict": verdict,
        "answered": received.answered.as_u16(),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::{HeaderMap, Method, StatusCode};

    use super::*;
    use crate::dev_server::Options;

    fn message(id: &str) -> Arc<Message> {
        let mut headers = HeaderMap::new();
        headers.insert("x-strapi-event", "entry.publish".parse().unwrap());
        headers.insert("webhook-id", "event".parse().unwrap());
        Arc::new(Message {
            id: id.to_owned(),
            destination: Destination::Group("g".into()),
            endpoint_name: None,
            queue: None,
            url: "http://a/".into(),
            callback_of: None,
            headers,
            options: Options::default(),
            body: Bytes::from_static(br#"{"uid":"api::article.article"}"#),
            deduplicated: false,
            created_at: Timestamp::from_millis(1),
        })
    }

    fn step(ways: &mut Ways, message: &Arc<Message>, progress: Progress) -> Option<Value> {
        ways.step(&Life {
            at: Timestamp::from_millis(2),
            message: Arc::clone(message),
            progress,
        })
    }

    fn received(id: Option<&str>, body: usize) -> Arc<Received> {
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert("upstash-message-id", id.parse().unwrap());
        }
        Arc::new(Received {
            at: Timestamp::from_millis(3),
            method: Method::POST,
            path: "/hook".into(),
            headers,
            body: Bytes::from(vec![b'x'; body]),
            verified: id.is_some(),
            signature_error: None,
            answered: StatusCode::OK,
        })
    }

    #[test]
    fn a_message_is_followed_to_its_end() {
        let mut ways = Ways::default();
        let message = message("msg_1");
        let created = step(&mut ways, &message, Progress::Created).unwrap();
        assert_eq!(created["about"], "api::article.article");
        step(&mut ways, &message, Progress::Active { retried: 0 });
        let failed = Progress::Retry {
            status: Some(503),
            error: "503".into(),
            retried: 0,
            after: std::time::Duration::from_secs(12),
            response: None,
        };
        let waiting = step(&mut ways, &message, failed).unwrap();
        assert_eq!(
            (&waiting["state"], &waiting["nextAt"]),
            (&json!("retry"), &json!(12_002))
        );
        step(&mut ways, &message, Progress::Active { retried: 1 });
        ways.arrival(&received(Some("msg_1"), 1)).unwrap();
        let delivered = Progress::Delivered {
            status: 200,
            retried: 1,
        };
        let delivered = step(&mut ways, &message, delivered).unwrap();
        assert_eq!(
            (&delivered["state"], &delivered["attempts"]),
            (&json!("delivered"), &json!(2))
        );
        assert_eq!(
            (&delivered["isVerified"], &delivered["nextAt"]),
            (&json!(true), &Value::Null)
        );
        let details = ways.details("msg_1").unwrap();
        assert_eq!(details["eventId"], "event");
        assert_eq!(details["steps"].as_array().unwrap().len(), 5);
        assert_eq!(
            details["steps"][2]["text"],
            "failed (503), next attempt in 12s"
        );
        assert_eq!(details["arrival"]["line"], "POST /hook");
        assert!(ways.details("msg_2").is_none());
    }

    #[test]
    fn a_repeat_is_a_step_of_the_first() {
        let mut ways = Ways::default();
        let first = message("msg_1");
        step(&mut ways, &first, Progress::Created);
        let repeat = Arc::new(Message {
            deduplicated: true,
            ..Message::clone(&first)
        });
        step(&mut ways, &repeat, Progress::Created).unwrap();
        assert_eq!(ways.summaries().as_array().unwrap().len(), 1);
        assert_eq!(ways.details("msg_1").unwrap()["steps"][1]["what"], "repeat");
    }

    #[test]
    fn who_has_no_message_is_a_stranger() {
        let mut ways = Ways::default();
        let stranger = ways.arrival(&received(None, 1)).unwrap();
        assert_eq!(
            (&stranger["id"], &stranger["state"]),
            (&json!("request-1"), &json!("stranger"))
        );
        let forgotten = ways.arrival(&received(Some("msg_gone"), 1)).unwrap();
        assert_eq!(forgotten["state"], "arrived");
    }

    #[test]
    fn the_oldest_messages_and_bodies_are_forgotten() {
        let mut ways = Ways::default();
        let message_of = |n: usize| message(&format!("msg_{n}"));
        for n in 0..MAX_WAYS + 5 {
            step(&mut ways, &message_of(n), Progress::Created);
        }
        assert_eq!(ways.summaries().as_array().unwrap().len(), MAX_WAYS);
        assert!(ways.details("msg_4").is_none());
        for n in [10, 11, 12] {
            ways.arrival(&received(Some(&format!("msg_{n}")), MAX_BYTES / 2));
        }
        let has_body = |n: usize| !ways.details(&format!("msg_{n}")).unwrap()["arrival"].is_null();
        assert_eq!([10, 11, 12].map(has_body), [false, true, true]);
        assert_eq!(ways.bytes, MAX_BYTES);
        let message = message_of(20);
        for _ in 0..MAX_STEPS * 2 {
            step(&mut ways, &message, Progress::Active { retried: 0 });
        }
        let steps = ways.details("msg_20").unwrap()["steps"].clone();
        assert_eq!(steps.as_array().unwrap().len(), MAX_STEPS);
        assert_eq!(steps[0]["what"], "accepted");
    }
}
