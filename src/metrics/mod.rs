//! What is counted, for Prometheus. Labels come from closed sets only: never an id, a URL or
//! a name from outside.

mod histogram;
mod minutes;

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::histogram::{BUCKETS, Counted, Histogram};
pub use self::minutes::{MINUTES, Minutes};
use crate::buffer::{Tally, Usage};

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
    /// Events made durable, by the minute.
    pub accepted_minutes: Minutes,
    /// Events that QStash has, by the minute.
    pub delivered_minutes: Minutes,
    /// From a webhook's last byte to its commit.
    pub ack_seconds: Histogram,
    /// From a publish request to QStash's answer, or to giving up on it.
    pub publish_seconds: Histogram,
}

/// What is measured when the metrics are asked for.
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    /// Where every event is that ever came, as of one commit.
    pub tally: Tally,
    /// Age of the oldest pending event in seconds; 0 with none.
    pub oldest_age_seconds: f64,
    /// Whether events can be made durable.
    pub writable: bool,
    /// How much of the disk the buffer takes, where that could be told.
    pub usage: Option<Usage>,
    /// Why QStash takes no events, as one of [`STOPPED_CAUSES`]; `None` while it does.
    pub stopped: Option<&'static str>,
    /// Destinations that do not exist, whose events wait.
    pub held_destinations: usize,
}

/// Why nothing flows to QStash.
pub const STOPPED_CAUSES: [&str; 3] = ["unreachable", "unauthorized", "limited"];

impl Metrics {
    /// The text that Prometheus reads.
    pub fn render(&self, gauges: &Gauges) -> String {
        let mut text = Text(String::with_capacity(4096));
        let Tally {
            pending,
            delivered,
            dead,
            forgotten,
            discarded,
            accepted,
            lost,
        } = gauges.tally;
        text.head(
            "accepted_events_total",
            "Events made durable since the buffer was made",
            "counter",
        );
        text.line("accepted_events_total", "", accepted);
        text.gauge(
            "events",
            "Where every accepted event is now; the sum is accepted_events_total at every moment",
            &[
                ("state=\"pending\"", pending as f64),
                ("state=\"delivered\"", (delivered + forgotten) as f64),
                ("state=\"dead\"", dead as f64),
                ("state=\"discarded\"", discarded as f64),
                ("state=\"lost\"", lost as f64),
            ],
        );
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
        let bit = |is: bool| f64::from(u8::from(is));
        if let Some(usage) = &gauges.usage {
            text.gauge(
                "buffer_used_bytes",
                "Bytes that events take in the buffer file",
                &[("", usage.used_bytes as f64)],
            );
            text.gauge(
                "buffer_limit_bytes",
                "Bytes that they may take",
                &[("", usage.limit_bytes as f64)],
            );
            if let Some(free) = usage.free_bytes {
                text.gauge(
                    "disk_free_bytes",
                    "Bytes free on the disk of the buffer",
                    &[("", free as f64)],
                );
            }
        }
        text.gauge(
            "qstash_flowing",
            "1 while QStash takes events",
            &[("", bit(gauges.stopped.is_none()))],
        );
        let causes = STOPPED_CAUSES.map(|cause| {
            (
                format!("cause=\"{cause}\""),
                bit(gauges.stopped == Some(cause)),
            )
        });
        let causes: Vec<(&str, f64)> = causes
            .iter()
            .map(|(labels, value)| (labels.as_str(), *value))
            .collect();
        text.gauge(
            "qstash_stopped",
            "1 for the cause for which nothing is published but single trials",
            &causes,
        );
        text.gauge(
            "held_destinations",
            "Destinations that do not exist at QStash, whose events wait",
            &[("", gauges.held_destinations as f64)],
        );
        text.histogram(
            "ack_seconds",
            "From a webhook's last byte to its commit",
            &self.ack_seconds,
        );
        text.histogram(
            "publish_seconds",
            "From a request to QStash to its answer, or to giving up on it",
            &self.publish_seconds,
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

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let counted = histogram.counted();
        let bucket = format!("{name}_bucket");
        for (end, count) in counted.buckets {
            self.line(&bucket, &format!("le=\"{end}\""), count);
        }
        self.line(&bucket, "le=\"+Inf\"", counted.count);
        self.line(&format!("{name}_sum"), "", counted.sum);
        self.line(&format!("{name}_count"), "", counted.count);
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
