//! What is counted, for Prometheus. Labels come from closed sets only: never an id, a URL or
//! a name from outside.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::buffer::Tally;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one run.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Events published straight away, since they could not be made durable.
    pub direct: Counter,
    /// Events that a route drops.
    pub dropped: Counter,
    /// Requests refused: the secret.
    pub refused_unauthorized: Counter,
    /// Requests refused: over the body limit.
    pub refused_too_large: Counter,
    /// Requests refused: not JSON by their Content-Type.
    pub refused_content_type: Counter,
    /// Requests refused: the body did not arrive whole or in time.
    pub refused_incomplete: Counter,
    /// Requests refused: neither durable nor published. Each is a lost event.
    pub refused_unavailable: Counter,
    /// Events that QStash has.
    pub delivered: Counter,
    /// Those of them that QStash knew already.
    pub duplicates: Counter,
    /// Dead letters by their reason.
    pub dead_no_route: Counter,
    /// QStash refused the message.
    pub dead_rejected: Counter,
    /// Larger than the plan allows.
    pub dead_too_large: Counter,
    /// Older than `--max-age`.
    pub dead_expired: Counter,
    /// Broke the connection again and again while others passed.
    pub dead_poison: Counter,
    /// Not a JSON object.
    pub dead_invalid: Counter,
    /// Publish requests that succeeded, wholly or in part.
    pub publishes_ok: Counter,
    /// Publish requests that failed.
    pub publishes_failed: Counter,
}

/// What is measured when the metrics are asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauges {
    /// Events made durable since the start, in whatever state.
    pub accepted: u64,
    /// Events by state.
    pub tally: Tally,
    /// Age of the oldest pending event in seconds; 0 with none.
    pub oldest_age_seconds: f64,
    /// Whether events can be made durable.
    pub writable: bool,
    /// Whether QStash takes events.
    pub flowing: bool,
}

impl Metrics {
    /// The text that Prometheus reads.
    pub fn render(&self, gauges: &Gauges) -> String {
        let mut text = Text(String::with_capacity(4096));
        text.head("accepted_events_total", "Events made durable", "counter");
        text.line("accepted_events_total", "", gauges.accepted);
        text.counter(
            "direct_events_total",
            "Events published before the answer, since they could not be made durable",
            &[("", &self.direct)],
        );
        text.counter(
            "dropped_events_total",
            "Events that a route drops",
            &[("", &self.dropped)],
        );
        text.counter(
            "refused_requests_total",
            "Webhook requests refused",
            &[
                ("reason=\"unauthorized\"", &self.refused_unauthorized),
                ("reason=\"too_large\"", &self.refused_too_large),
                ("reason=\"content_type\"", &self.refused_content_type),
                ("reason=\"incomplete\"", &self.refused_incomplete),
                ("reason=\"unavailable\"", &self.refused_unavailable),
            ],
        );
        text.counter(
            "delivered_events_total",
            "Events that QStash has",
            &[("", &self.delivered)],
        );
        text.counter(
            "duplicate_events_total",
            "Delivered events that QStash had already",
            &[("", &self.duplicates)],
        );
        text.counter(
            "dead_events_total",
            "Events that became dead letters",
            &[
                ("reason=\"no_route\"", &self.dead_no_route),
                ("reason=\"rejected\"", &self.dead_rejected),
                ("reason=\"too_large\"", &self.dead_too_large),
                ("reason=\"expired\"", &self.dead_expired),
                ("reason=\"poison\"", &self.dead_poison),
                ("reason=\"invalid\"", &self.dead_invalid),
            ],
        );
        text.counter(
            "publish_requests_total",
            "Requests to QStash",
            &[
                ("outcome=\"ok\"", &self.publishes_ok),
                ("outcome=\"failed\"", &self.publishes_failed),
            ],
        );
        let Tally {
            pending,
            delivered,
            dead,
        } = gauges.tally;
        text.gauge(
            "buffer_events",
            "Events in the buffer",
            &[
                ("state=\"pending\"", pending as f64),
                ("state=\"delivered\"", delivered as f64),
                ("state=\"dead\"", dead as f64),
            ],
        );
        text.gauge(
            "buffer_oldest_age_seconds",
            "Age of the oldest pending event",
            &[("", gauges.oldest_age_seconds)],
        );
        text.gauge(
            "buffer_writable",
            "1 while events can be made durable",
            &[("", f64::from(u8::from(gauges.writable)))],
        );
        text.gauge(
            "qstash_flowing",
            "1 while QStash takes events",
            &[("", f64::from(u8::from(gauges.flowing)))],
        );
        text.0
    }
}

struct Text(String);

impl Text {
    fn counter(&mut self, name: &str, help: &str, values: &[(&str, &Counter)]) {
        self.head(name, help, "counter");
        for (labels, counter) in values {
            self.line(name, labels, counter.get());
        }
    }

    fn gauge(&mut self, name: &str, help: &str, values: &[(&str, f64)]) {
        self.head(name, help, "gauge");
        for (labels, value) in values {
            self.line(name, labels, value);
        }
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.0,
            "# HELP strapi_qstash_{name} {help}\n# TYPE strapi_qstash_{name} {kind}"
        );
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.0, "strapi_qstash_{name} {value}"),
            labels => writeln!(self.0, "strapi_qstash_{name}{{{labels}}} {value}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_comment_or_a_value() {
        let metrics = Metrics::default();
        metrics.direct.add();
        let text = metrics.render(&Gauges {
            oldest_age_seconds: 1.5,
            ..Gauges::default()
        });
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(
                name.starts_with("strapi_qstash_") && value.parse::<f64>().is_ok(),
                "{line}"
            );
        }
        assert!(text.contains("strapi_qstash_direct_events_total 1\n"));
        assert!(text.contains("strapi_qstash_buffer_oldest_age_seconds 1.5\n"));
    }
}
