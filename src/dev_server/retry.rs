//! What follows an attempt to deliver: delivered, another try after a wait, or failed.
//!
//! See <https://upstash.com/docs/qstash/features/retry>.

use std::sync::Arc;
use std::time::Duration;

use hyper::HeaderMap;

use super::durations;
use super::message::Response;
use super::options::Options;
use crate::clock::Timestamp;

/// The longest wait; what a receiver asks for beyond it is not heeded.
const MAX_WAIT: Duration = Duration::from_secs(86_400);

/// The status by which a receiver may say that no retry will help.
const NON_RETRYABLE: u16 = 489;

/// The headers by which a receiver says when to come back, the first that can be read wins.
const HINTS: [&str; 4] = [
    "retry-after",
    "x-ratelimit-reset",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
];

/// How one attempt ended.
#[derive(Debug, Clone)]
pub(super) enum Attempt {
    /// The receiver answered.
    Answered(Arc<Response>),
    /// There was no answer.
    Broken { error: String },
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Delivered,
    Retry { after: Duration },
    Failed,
}

/// Decides what follows an attempt that was preceded by `retried` others.
pub(super) fn next(options: &Options, retried: u32, attempt: &Attempt, now: Timestamp) -> Next {
    let hint = match attempt {
        Attempt::Answered(response) => match response.status {
            200..300 => return Next::Delivered,
            NON_RETRYABLE if is_non_retryable(&response.headers) => return Next::Failed,
            _ => hint(&response.headers, now),
        },
        Attempt::Broken { .. } => None,
    };
    if retried >= options.retries {
        return Next::Failed;
    }
    let expression = options.retry_delay.as_ref();
    let after = hint
        .or_else(|| expression.and_then(|expression| expression.delay(retried)))
        .unwrap_or_else(|| backoff(retried));
    Next::Retry { after }
}

fn is_non_retryable(headers: &HeaderMap) -> bool {
    headers
        .get("upstash-nonretryable-error")
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

/// The n-th retry waits e^(2.5 n) seconds, at most a day.
fn backoff(retried: u32) -> Duration {
    let seconds = (2.5 * (f64::from(retried) + 1.0)).exp();
    Duration::try_from_secs_f64(seconds)
        .unwrap_or(MAX_WAIT)
        .min(MAX_WAIT)
}

/// The wait that the receiver asks for.
fn hint(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    HINTS
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok())
        .filter_map(|text| wait(text.trim(), now))
        .find(|wait| *wait <= MAX_WAIT)
}

/// Seconds, a date, or a duration.
fn wait(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    if let Some(wait) = durations::parse_answer(text) {
        return Some(wait);
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let since_1970 = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Timestamp::default().plus(since_1970).since(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev_server::expression::Expression;

    const NOW: Timestamp = Timestamp::from_millis(1_763_900_000_000);

    fn answered(status: u16, headers: &[(&'static str, &'static str)]) -> Attempt {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        Attempt::Answered(Arc::new(Response {
            status,
            headers,
            body: bytes::Bytes::new(),
        }))
    }

    fn after(seconds: u64) -> Next {
        Next::Retry {
            after: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn only_a_2xx_is_delivered() {
        let options = Options::default();
        for (status, delivered) in [
            (200, true),
            (204, true),
            (299, true),
            (302, false),
            (404, false),
        ] {
            let next = next(&options, 0, &answered(status, &[]), NOW);
            assert_eq!(next == Next::Delivered, delivered, "{status}");
        }
    }

    #[test]
    fn waits_grow_until_the_retries_are_used_up() {
        let options = Options {
            retries: 6,
            ..Options::default()
        };
        let broken = Attempt::Broken {
            error: "connection refused".into(),
        };
        for (retried, seconds) in [
            (0, 12),
            (1, 148),
            (2, 1_808),
            (3, 22_026),
            (4, 86_400),
            (5, 86_400),
        ] {
            match next(&options, retried, &broken, NOW) {
                Next::Retry { after } => assert_eq!(after.as_secs(), seconds, "{retried}"),
                other => panic!("{retried}: {other:?}"),
            }
        }
        assert_eq!(next(&options, 6, &broken, NOW), Next::Failed);
    }

    #[test]
    fn the_receiver_may_say_when() {
        let options = Options::default();
        for (value, seconds) in [
            ("0", 0),
            ("30", 30),
            ("6m5s", 365),
            ("Sun, 23 Nov 2025 12:14:20 GMT", 60),
            ("Sun, 23 Nov 2025 12:00:00 GMT", 0),
        ] {
            let attempt = answered(429, &[("retry-after", value)]);
            assert_eq!(next(&options, 0, &attempt, NOW), after(seconds), "{value}");
        }
        for value in ["86401", "soon", "-1", "NaN"] {
            let attempt = answered(429, &[("retry-after", value)]);
            assert_eq!(
                next(&options, 0, &attempt, NOW),
                Next::Retry { after: backoff(0) },
                "{value}"
            );
        }
        let other = answered(503, &[("x-ratelimit-reset", "7")]);
        assert_eq!(next(&options, 0, &other, NOW), after(7));
    }

    #[test]
    fn an_expression_replaces_the_backoff_but_not_the_receivers_word() {
        let options = Options {
            retry_delay: Some(Expression::parse("1000 * (1 + retried)").unwrap()),
            ..Options::default()
        };
        assert_eq!(next(&options, 1, &answered(500, &[]), NOW), after(2));
        let told = answered(500, &[("retry-after", "9")]);
        assert_eq!(next(&options, 1, &told, NOW), after(9));
    }

    #[test]
    fn a_receiver_can_refuse_retries() {
        let options = Options::default();
        let header = [("upstash-nonretryable-error", "true")];
        assert_eq!(
            next(&options, 0, &answered(489, &header), NOW),
            Next::Failed
        );
        assert_ne!(next(&options, 0, &answered(489, &[]), NOW), Next::Failed);
        assert_ne!(
            next(&options, 0, &answered(500, &header), NOW),
            Next::Failed
        );
    }
}
