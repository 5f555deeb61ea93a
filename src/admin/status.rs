//! How it is: one sentence with its colour, and all that the page shows, as JSON.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::Admin;
use crate::forwarder::{Cause, Flow};
use crate::http::{self, Answer};
use crate::metrics::Gauges;
use crate::when;

/// How long an event may wait, while QStash takes events, until that is worth a word.
const LONG_WAIT: Duration = Duration::from_secs(300);

/// Whether somebody has to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// No.
    Good,
    /// Not now: it passes by itself, or it is no hurry.
    Busy,
    /// Yes.
    Bad,
}

impl Level {
    /// As the shared style names it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Busy => "busy",
            Self::Bad => "bad",
        }
    }
}

/// Whether everything flows: the worst that is so, in a sentence.
fn verdict(gauges: &Gauges, flow: &Flow, draining: bool) -> (Level, String) {
    let pending = gauges.tally.pending;
    let wait = match pending {
        0 => "no event waits yet".to_owned(),
        1 => "1 event waits safely on disk".to_owned(),
        pending => format!("{pending} events wait safely on disk"),
    };
    if !gauges.writable {
        let text =
            "Events cannot be made durable: each is published before it is answered, or refused.";
        return (Level::Bad, text.to_owned());
    }
    if let Some((Cause::Unauthorized, _)) = flow.stopped {
        return (
            Level::Bad,
            format!("QStash refuses the token: {wait} until it is replaced."),
        );
    }
    if let [destination, others @ ..] = flow.held.as_slice() {
        let others = match others.len() {
            0 => String::new(),
            count => format!(" (and {count} more)"),
        };
        return (
            Level::Bad,
            format!(
                "{destination}{others} does not exist at QStash: its events wait until it is created."
            ),
        );
    }
    match &flow.stopped {
        Some((Cause::Unreachable, _)) => {
            let text =
                format!("QStash cannot be reached: {wait}, and flow by themselves once it can.");
            return (Level::Busy, text);
        }
        Some((Cause::Limited, _)) => {
            let text =
                format!("QStash takes no more for now: {wait}, and flow by themselves later.");
            return (Level::Busy, text);
        }
        Some((Cause::Unauthorized, _)) | None => {}
    }
    if draining {
        return (Level::Busy, "It is stopping.".to_owned());
    }
    let age = Duration::from_secs_f64(gauges.oldest_age_seconds.max(0.0));
    if pending > 0 && age > LONG_WAIT {
        let text = format!(
            "QStash takes events, but the oldest has waited for {}.",
            when::short(age)
        );
        return (Level::Busy, text);
    }
    match gauges.tally.dead {
        0 => (Level::Good, "Everything flows.".to_owned()),
        1 => (
            Level::Busy,
            "Events flow, and 1 dead letter waits for a decision.".to_owned(),
        ),
        dead => (
            Level::Busy,
            format!("Events flow, and {dead} dead letters wait for a decision."),
        ),
    }
}

impl Admin {
    /// One sentence for a person.
    pub(super) fn status_text(&self) -> String {
        let tally = self.buffer.tally();
        let flow = self.flow.borrow();
        let mut text = match &flow.stopped {
            None => "QStash takes events.".to_owned(),
            Some((Cause::Unreachable, reason)) => {
                format!("QStash is unreachable, events are kept: {reason}")
            }
            Some((Cause::Unauthorized, reason)) => {
                format!("QStash refuses the token, events are kept: {reason}")
            }
            Some((Cause::Limited, reason)) => {
                format!("QStash takes no more for now, events are kept: {reason}")
            }
        };
        for destination in &flow.held {
            text.push_str(&format!(
                "\n{destination} does not exist at QStash, its events are kept."
            ));
        }
        text.push_str(&format!(
            "\n{} pending, {} delivered and kept as history, {} dead letters\n",
            tally.pending, tally.delivered, tally.dead
        ));
        text
    }

    pub(super) async fn status_json(&self) -> Answer {
        let gauges = self.gauges().await;
        let flow = self.flow.borrow().clone();
        let draining = self.draining.load(Ordering::Relaxed);
        let (level, sentence) = verdict(&gauges, &flow, draining);
        let settings = self.effective.iter();
        let settings: Map<String, Value> = settings
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        let quota = self.client.quota();
        let quota =
            quota.map(|quota| json!({ "limit": quota.limit, "remaining": quota.remaining }));
        let status = json!({
            "level": level.as_str(),
            "sentence": sentence,
            "writable": gauges.writable,
            "qstash": { "flowing": gauges.stopped.is_none(), "cause": gauges.stopped, "reason": flow.stopped.map(|(_, reason)| reason), "since": flow.since.to_string(), "quota": quota },
            "held": flow.held,
            "events": {
                "pending": gauges.tally.pending,
                "delivered": gauges.tally.delivered,
                "dead": gauges.tally.dead,
            },
            "accepted": gauges.tally.accepted,
            "discarded": gauges.tally.discarded,
            "lost": gauges.tally.lost,
            "buffer": gauges.usage.map(|usage| json!({
                "used_bytes": usage.used_bytes,
                "limit_bytes": usage.limit_bytes,
                "disk_free_bytes": usage.free_bytes,
            })),
            "oldest_age_seconds": gauges.oldest_age_seconds,
            // The last sixty minutes, since the start: the one that is not over comes last.
            "per_minute": {
                "accepted": self.metrics.accepted_minutes.counts(),
                "delivered": self.metrics.delivered_minutes.counts(),
            },
            "settings": settings,
            "version": env!("CARGO_PKG_VERSION"),
        });
        http::json(StatusCode::OK, &status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Tally;

    #[test]
    fn one_sentence_says_the_worst_of_what_is_so() {
        let stopped = |cause| Some((cause, "words".to_owned()));
        let cases = [
            (
                true,
                None,
                &[][..],
                (0, 0),
                0.0,
                Level::Good,
                "Everything flows.",
            ),
            (
                true,
                None,
                &[],
                (9, 0),
                2.0,
                Level::Good,
                "Everything flows.",
            ),
            (
                true,
                None,
                &[],
                (9, 0),
                301.0,
                Level::Busy,
                "the oldest has waited for 5 min",
            ),
            (
                true,
                None,
                &[],
                (0, 1),
                0.0,
                Level::Busy,
                "1 dead letter waits",
            ),
            (
                true,
                None,
                &[],
                (0, 7),
                0.0,
                Level::Busy,
                "7 dead letters wait",
            ),
            (
                true,
                stopped(Cause::Limited),
                &[],
                (1, 7),
                0.0,
                Level::Busy,
                "1 event waits safely",
            ),
            (
                true,
                stopped(Cause::Unreachable),
                &[],
                (2, 0),
                0.0,
                Level::Busy,
                "2 events wait safely",
            ),
            (
                true,
                stopped(Cause::Unreachable),
                &["news"],
                (2, 0),
                0.0,
                Level::Bad,
                "news does not exist",
            ),
            (
                true,
                None,
                &["a", "b", "c"],
                (2, 0),
                0.0,
                Level::Bad,
                "a (and 2 more) does not exist",
            ),
            (
                true,
                stopped(Cause::Unauthorized),
                &["a"],
                (2, 0),
                0.0,
                Level::Bad,
                "refuses the token",
            ),
            (
                false,
                stopped(Cause::Unauthorized),
                &["a"],
                (2, 0),
                0.0,
                Level::Bad,
                "cannot be made durable",
            ),
        ];
        for (writable, stopped, held, (pending, dead), age, level, words) in cases {
            let gauges = Gauges {
                writable,
                oldest_age_seconds: age,
                tally: Tally {
                    pending,
                    dead,
                    ..Tally::default()
                },
                ..Gauges::default()
            };
            let flow = Flow {
                stopped,
                held: held.iter().map(|name| (*name).to_owned()).collect(),
                ..Flow::default()
            };
            let (told, sentence) = verdict(&gauges, &flow, false);
            assert!(told == level && sentence.contains(words), "{sentence}");
        }
    }
}
