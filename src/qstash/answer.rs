//! What QStash's answer means: pure, from status, headers and bytes to an [`Outcome`].
//!
//! The rule behind each line: an event leaves the buffer only when QStash has said in its
//! own words (JSON) that it has it. A proxy's page, a cut answer or a redirect says nothing,
//! and repeating is harmless, since the deduplication id makes QStash drop repeats.
//! Statuses and texts: <https://upstash.com/docs/qstash/api-reference/> and what clients
//! report of it.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderMap, LOCATION, RETRY_AFTER};
use serde_json::Value;

use crate::clock::Timestamp;

/// QStash's words are kept to this many characters; an error page can have megabytes.
const LONGEST_WORDS: usize = 300;

/// The daily quota is reset at midnight (UTC): a reset later than this is a garbled one.
const LONGEST_DAILY_WAIT: Duration = Duration::from_secs(25 * 3600);

/// A burst limit has a window of a second; a hint beyond this is a garbled one.
const LONGEST_BURST_WAIT: Duration = Duration::from_secs(3600);

/// Resets are given in whole seconds, so one that is now may still be a second away.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// What became of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// QStash has it.
    Accepted {
        /// Its message ids, one for each endpoint; none where a group has no endpoints.
        message_ids: Vec<String>,
        /// QStash knew the deduplication id: it had the message already.
        duplicate: bool,
    },
    /// This message is wrong, or over a limit of the plan. Repeating it changes nothing.
    Rejected {
        /// QStash's words.
        reason: String,
    },
    /// This message is larger than the plan allows.
    TooLarge {
        /// QStash's words.
        reason: String,
    },
    /// The URL group does not exist: the operator's mistake, not the message's.
    UnknownDestination {
        /// QStash's words.
        reason: String,
    },
    /// The token is wrong, revoked, read-only or of the other region: so for all messages.
    Unauthorized {
        /// QStash's status: 401, 403, or 404 for the other region.
        status: u16,
        /// QStash's words, and what to do.
        reason: String,
    },
    /// Too many messages: so for all of them.
    Limited {
        /// How long to send nothing; `None` where QStash does not tell.
        wait: Option<Duration>,
        /// The quota of the day, not a burst.
        daily: bool,
        /// What was exceeded.
        reason: String,
    },
    /// QStash was not reached, or what answered was not QStash.
    Unreachable {
        /// How long to wait, where it was told.
        wait: Option<Duration>,
        /// The connection stood, and then broke or went silent: the message may be why.
        broke: bool,
        /// What happened.
        reason: String,
    },
}

impl Outcome {
    /// Whether the outcome is about the message and not about QStash as a whole. A batch
    /// that was refused so is split, to find which message it is.
    pub fn is_about_the_message(&self) -> bool {
        matches!(
            self,
            Self::Accepted { .. }
                | Self::Rejected { .. }
                | Self::TooLarge { .. }
                | Self::UnknownDestination { .. }
        )
    }

    pub(super) fn unreachable(reason: impl Into<String>) -> Self {
        Self::Unreachable {
            wait: None,
            broke: false,
            reason: reason.into(),
        }
    }
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchOutcome {
    /// An outcome for each message, in order.
    Each(Vec<Outcome>),
    /// One outcome for the batch: none of its messages was taken, or it is not known which.
    Whole(Outcome),
}

/// An answer as it came: nothing of it is read yet.
pub(super) struct Answer<'a> {
    pub(super) status: StatusCode,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
    pub(super) now: Timestamp,
}

impl Answer<'_> {
    /// The answer to a single publish.
    pub(super) fn to_message(&self) -> Outcome {
        if !self.status.is_success() {
            return self.to_refusal();
        }
        match serde_json::from_slice::<Value>(self.body) {
            Ok(answer @ (Value::Object(_) | Value::Array(_))) => read_message(&answer),
            _ => self.not_qstash(),
        }
    }

    /// The answer to a batch of `count` messages: an array with one element for each.
    pub(super) fn to_batch(&self, count: usize) -> BatchOutcome {
        if !self.status.is_success() {
            return BatchOutcome::Whole(self.to_refusal());
        }
        match serde_json::from_slice::<Value>(self.body) {
            Ok(Value::Array(answers)) if answers.len() == count => {
                BatchOutcome::Each(answers.iter().map(read_message).collect())
            }
            // The batch went through somehow, but it cannot be told for which messages.
            Ok(Value::Array(answers)) => BatchOutcome::Whole(Outcome::unreachable(format!(
                "QStash answered {} messages of a batch of {count}",
                answers.len()
            ))),
            _ => BatchOutcome::Whole(self.not_qstash()),
        }
    }

    fn to_refusal(&self) -> Outcome {
        let words = words(self.body);
        let reason = format!("QStash answered {}: {words}", self.status.as_u16());
        match self.status.as_u16() {
            300..=399 => Outcome::unreachable(format!(
                "{} redirects to {}, which is not followed: the token would go there",
                self.status.as_u16(),
                self.headers
                    .get(LOCATION)
                    .and_then(|to| to.to_str().ok())
                    .map_or_else(|| "nowhere".to_owned(), clip),
            )),
            // 407 is a proxy's, 408 and 425 ask for another try.
            407 | 408 | 425 => Outcome::Unreachable {
                wait: self.retry_after(),
                broke: false,
                reason,
            },
            401 | 403 => Outcome::Unauthorized {
                status: self.status.as_u16(),
                reason,
            },
            404 if is_other_region(&words) => Outcome::Unauthorized {
                status: 404,
                reason: format!(
                    "{reason}. The token belongs to the other region: try QSTASH_URL=https://qstash-us-east-1.upstash.io \
                     or https://qstash-eu-central-1.upstash.io"
                ),
            },
            404 => Outcome::UnknownDestination { reason },
            413 => Outcome::TooLarge { reason },
            429 => self.to_limit(reason),
            400..=499 => read_refusal(&words, reason),
            500..=599 if words.starts_with("quota ") => read_refusal(&words, reason),
            _ => Outcome::Unreachable {
                wait: self.retry_after(),
                broke: false,
                reason,
            },
        }
    }

    fn to_limit(&self, reason: String) -> Outcome {
        let daily = self.headers.contains_key("ratelimit-limit")
            || self.headers.contains_key("ratelimit-reset");
        let reset = if daily {
            self.reset("ratelimit-reset")
        } else {
            self.reset("burst-ratelimit-reset")
        };
        let longest = if daily {
            LONGEST_DAILY_WAIT
        } else {
            LONGEST_BURST_WAIT
        };
        let wait = reset
            .or_else(|| self.retry_after())
            .map(|wait| wait.clamp(SHORTEST_WAIT, longest));
        Outcome::Limited {
            wait,
            daily,
            reason,
        }
    }

    /// How far a reset (unix seconds) lies ahead, by the clock of the server that gave it:
    /// ours may be wrong.
    fn reset(&self, header: &str) -> Option<Duration> {
        /// Below it the number is a number of seconds to wait, as in the IETF's draft.
        const EARLIEST_UNIX_TIME: i64 = 1_000_000_000;
        /// Above it the number is in milliseconds.
        const LATEST_UNIX_TIME: i64 = 100_000_000_000;
        let reset: i64 = self
            .headers
            .get(header)?
            .to_str()
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let millis = match reset {
            ..EARLIEST_UNIX_TIME => reset.checked_mul(1000)?,
            EARLIEST_UNIX_TIME..=LATEST_UNIX_TIME => {
                reset.checked_mul(1000)? - self.server_now().as_millis()
            }
            _ => reset - self.server_now().as_millis(),
        };
        Some(Duration::from_millis(u64::try_from(millis).unwrap_or(0)))
    }

    fn retry_after(&self) -> Option<Duration> {
        let value = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        let wait = match value.parse::<u64>() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => Timestamp::parse_http_date(value)?.since(self.server_now()),
        };
        Some(wait.clamp(SHORTEST_WAIT, LONGEST_BURST_WAIT))
    }

    fn server_now(&self) -> Timestamp {
        let date = self.headers.get(DATE).and_then(|date| date.to_str().ok());
        date.and_then(Timestamp::parse_http_date)
            .unwrap_or(self.now)
    }

    fn not_qstash(&self) -> Outcome {
        Outcome::unreachable(format!(
            "the answer {} is not QStash's, it is no JSON: {}",
            self.status.as_u16(),
            words(self.body)
        ))
    }
}

/// One element of a batch's answer, or the answer to a single publish: an object for a URL,
/// an array of objects for a group, or (in the OpenAPI description) `{"messages": […]}`.
fn read_message(answer: &Value) -> Outcome {
    let group = match answer {
        Value::Object(object) => object.get("messages").and_then(Value::as_array),
        other => other.as_array(),
    };
    let messages: Vec<&Value> =
        group.map_or_else(|| vec![answer], |messages| messages.iter().collect());
    let (mut accepted, mut refused) = (Vec::new(), None);
    for message in messages {
        match Element::of(message) {
            Some(Element::Accepted(message)) => accepted.push(message),
            Some(Element::Refused(words)) => refused = refused.or(Some(words)),
            None => {
                let text = clip(&message.to_string());
                return Outcome::unreachable(format!("the answer is not QStash's: {text}"));
            }
        }
    }
    // With some endpoints refused and others not, a repeat would reach the others twice.
    if let (true, Some(words)) = (accepted.is_empty(), refused) {
        let reason = format!("QStash refused it in a batch: {words}");
        return read_refusal(&words, reason);
    }
    Outcome::Accepted {
        duplicate: accepted.iter().any(|message| message.duplicate),
        message_ids: accepted.into_iter().map(|message| message.id).collect(),
    }
}

/// What an answer says of one message.
enum Element {
    Accepted(Taken),
    Refused(String),
}

/// A message that QStash has.
struct Taken {
    id: String,
    duplicate: bool,
}

impl Element {
    /// `None`: nothing that QStash says. An object without a message id is any health check's.
    fn of(value: &Value) -> Option<Self> {
        let object = value.as_object()?;
        match object.get("error") {
            None | Some(Value::Null) => Some(Self::Accepted(Taken {
                id: object.get("messageId")?.as_str()?.to_owned(),
                duplicate: object.get("deduplicated").and_then(Value::as_bool) == Some(true),
            })),
            Some(error) => error.as_str().map(|words| Self::Refused(clip(words))),
        }
    }
}

/// A refusal by its words: the same ones come with several statuses, and without one inside
/// a batch.
fn read_refusal(words: &str, reason: String) -> Outcome {
    let lower = words.to_lowercase();
    let names_a_group =
        lower.contains("topic") || lower.contains("url group") || lower.contains("urlgroup");
    let names_a_size = lower.contains("maxmessagesize")
        || lower.contains("message size")
        || lower.contains("too large")
        || lower.contains("too big");
    if names_a_group && lower.contains("not found") {
        Outcome::UnknownDestination { reason }
    } else if names_a_size {
        Outcome::TooLarge { reason }
    } else {
        Outcome::Rejected { reason }
    }
}

fn is_other_region(words: &str) -> bool {
    words.to_lowercase().contains("user not found")
}

/// What an answer says: its `error`, or the beginning of its text on one line.
fn words(body: &[u8]) -> String {
    if let Ok(Value::Object(object)) = serde_json::from_slice(body)
        && let Some(error) = object.get("error").and_then(Value::as_str)
    {
        return clip(error);
    }
    let text = String::from_utf8_lossy(body.get(..4 * LONGEST_WORDS).unwrap_or(body));
    match text.trim() {
        "" => "(empty)".to_owned(),
        text => clip(text),
    }
}

/// On one line, without control characters, and not longer than a log line should be.
fn clip(text: &str) -> String {
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect();
    let line = words.join(" ");
    match line.char_indices().nth(LONGEST_WORDS) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    /// 2025-11-23T12:13:20Z.
    const NOW: Timestamp = Timestamp::from_millis(1_763_900_000_000);

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )
        };
        pairs.iter().map(pair).collect()
    }

    fn message(status: u16, body: &str, pairs: &[(&'static str, &str)]) -> Outcome {
        let headers = headers(pairs);
        let status = StatusCode::from_u16(status).unwrap();
        Answer {
            status,
            headers: &headers,
            body: body.as_bytes(),
            now: NOW,
        }
        .to_message()
    }

    fn batch(status: u16, body: &str, count: usize) -> BatchOutcome {
        let status = StatusCode::from_u16(status).unwrap();
        Answer {
            status,
            headers: &HeaderMap::new(),
            body: body.as_bytes(),
            now: NOW,
        }
        .to_batch(count)
    }

    fn accepted(ids: &[&str], duplicate: bool) -> Outcome {
        Outcome::Accepted {
            message_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            duplicate,
        }
    }

    #[test]
    fn every_shape_in_which_qstash_accepts_is_understood() {
        for (status, body, expected) in [
            (200, r#"{"messageId":"msg_1"}"#, accepted(&["msg_1"], false)),
            (
                201,
                r#"{"messageId":"msg_1","url":"https://x"}"#,
                accepted(&["msg_1"], false),
            ),
            (
                202,
                r#"{"messageId":"msg_1","deduplicated":true}"#,
                accepted(&["msg_1"], true),
            ),
            (
                200,
                r#"[{"messageId":"a"},{"messageId":"b"}]"#,
                accepted(&["a", "b"], false),
            ),
            (
                200,
                r#"{"messages":[{"messageId":"a"},{"messageId":"b"}]}"#,
                accepted(&["a", "b"], false),
            ),
            (200, "[]", accepted(&[], false)),
            (
                200,
                r#"[{"messageId":"a"},{"error":"one endpoint is gone"}]"#,
                accepted(&["a"], false),
            ),
        ] {
            assert_eq!(message(status, body, &[]), expected, "{status} {body}");
        }
    }

    #[test]
    fn what_is_not_qstash_speaking_is_no_success() {
        for body in [
            "",
            "<html>login</html>",
            r#"{"messageId":"ms"#,
            "null",
            "\"ok\"",
            "17",
        ] {
            let outcome = message(200, body, &[]);
            assert!(
                matches!(outcome, Outcome::Unreachable { .. }),
                "{body}: {outcome:?}"
            );
            let outcome = batch(200, body, 2);
            assert!(
                matches!(outcome, BatchOutcome::Whole(Outcome::Unreachable { .. })),
                "{body}: {outcome:?}"
            );
        }
    }

    #[test]
    fn only_what_has_a_message_id_is_accepted() {
        for body in [
            "{}",
            r#"{"status":"ok"}"#,
            r#"{"messageId":7}"#,
            r#"[{"messageId":"a"},{"messageId":null}]"#,
            r#"{"messages":[{"url":"https://x"}]}"#,
        ] {
            assert_eq!(kind(&message(200, body, &[])), "unreachable", "{body}");
            let BatchOutcome::Each(outcomes) =
                batch(200, &format!(r#"[{body},{{"messageId":"a"}}]"#), 2)
            else {
                panic!("{body}")
            };
            assert_eq!(kind(&outcomes[0]), "unreachable", "{body}");
            assert_eq!(outcomes[1], accepted(&["a"], false));
        }
    }

    /// The kind of an outcome, without its words.
    fn kind(outcome: &Outcome) -> &'static str {
        match outcome {
            Outcome::Accepted { .. } => "accepted",
            Outcome::Rejected { .. } => "rejected",
            Outcome::TooLarge { .. } => "too large",
            Outcome::UnknownDestination { .. } => "unknown destination",
            Outcome::Unauthorized { .. } => "unauthorized",
            Outcome::Limited { .. } => "limited",
            Outcome::Unreachable { .. } => "unreachable",
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        for (status, body, expected) in [
            (
                400,
                r#"{"error":"DeduplicationId cannot contain ':'"}"#,
                "rejected",
            ),
            (
                400,
                r#"{"error":"quota maxMessageSize exceeded, current limit: 1048576"}"#,
                "too large",
            ),
            (
                400,
                r#"{"error":"topic news not found"}"#,
                "unknown destination",
            ),
            (
                401,
                r#"{"error":"unable to authenticate: invalid token"}"#,
                "unauthorized",
            ),
            (402, "pay first", "rejected"),
            (403, "read only", "unauthorized"),
            (
                404,
                r#"{"error":"topic news not found"}"#,
                "unknown destination",
            ),
            (404, "<html>no such page</html>", "unknown destination"),
            (
                404,
                r#"{"error":"user not found in this region"}"#,
                "unauthorized",
            ),
            (407, "", "unreachable"),
            (408, "", "unreachable"),
            (412, r#"{"error":"quota maxQueues exceeded"}"#, "rejected"),
            (413, "", "too large"),
            (425, "", "unreachable"),
            (429, "", "limited"),
            (500, "", "unreachable"),
            (
                500,
                r#"{"error":"quota maxMessageSize exceeded"}"#,
                "too large",
            ),
            (
                500,
                r#"{"error":"quota maxDelay exceeded, current limit: 604800"}"#,
                "rejected",
            ),
            (502, "<html>bad gateway</html>", "unreachable"),
            (301, "", "unreachable"),
            (307, "", "unreachable"),
        ] {
            assert_eq!(
                kind(&message(status, body, &[])),
                expected,
                "{status} {body}"
            );
            // A batch that is refused whole is refused for the same reason.
            let BatchOutcome::Whole(outcome) = batch(status, body, 3) else {
                panic!("{status} {body}")
            };
            assert_eq!(kind(&outcome), expected, "{status} {body}");
        }
    }

    #[test]
    fn every_status_has_an_outcome_and_only_2xx_delivers() {
        for status in 200..=599 {
            let outcome = kind(&message(status, r#"{"messageId":"a"}"#, &[]));
            assert_eq!(outcome == "accepted", status < 300, "{status}: {outcome}");
        }
    }

    #[test]
    fn a_batch_is_read_message_by_message() {
        let body = r#"[{"messageId":"a"},[{"messageId":"b"},{"messageId":"c"}],{"error":"bad url"},
                       {"error":"topic x not found"},[{"messageId":"d","deduplicated":true}]]"#;
        let BatchOutcome::Each(outcomes) = batch(200, body, 5) else {
            panic!()
        };
        assert_eq!(outcomes[0], accepted(&["a"], false));
        assert_eq!(outcomes[1], accepted(&["b", "c"], false));
        assert!(matches!(&outcomes[2], Outcome::Rejected { reason } if reason.contains("bad url")));
        assert!(matches!(outcomes[3], Outcome::UnknownDestination { .. }));
        assert_eq!(outcomes[4], accepted(&["d"], true));
    }

    #[test]
    fn a_batch_answered_in_another_length_is_repeated_not_guessed() {
        for body in [
            "[]",
            r#"[{"messageId":"a"}]"#,
            r#"[{"messageId":"a"},{"messageId":"b"},{"messageId":"c"}]"#,
        ] {
            let outcome = batch(200, body, 2);
            assert!(
                matches!(outcome, BatchOutcome::Whole(Outcome::Unreachable { .. })),
                "{body}: {outcome:?}"
            );
        }
    }

    fn limit(pairs: &[(&'static str, &str)]) -> (Option<u64>, bool) {
        match message(429, "", pairs) {
            Outcome::Limited { wait, daily, .. } => (wait.map(|wait| wait.as_secs()), daily),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_limit_is_waited_for_as_long_as_it_says() {
        let daily = |reset: &'static str| {
            [
                ("ratelimit-limit", "1000"),
                ("ratelimit-remaining", "0"),
                ("ratelimit-reset", reset),
            ]
        };
        assert_eq!(limit(&daily("1763903600")), (Some(3600), true));
        assert_eq!(limit(&daily("60")), (Some(60), true));
        assert_eq!(limit(&daily("1763903600000")), (Some(3600), true));
        assert_eq!(limit(&daily("1763800000")), (Some(1), true));
        assert_eq!(limit(&daily("9999999999")), (Some(25 * 3600), true));
        assert_eq!(limit(&daily("soon")), (None, true));
        assert_eq!(
            limit(&[("burst-ratelimit-reset", "1763900002")]),
            (Some(2), false)
        );
        assert_eq!(limit(&[("retry-after", "7")]), (Some(7), false));
        assert_eq!(
            limit(&[("retry-after", "Sun, 23 Nov 2025 12:13:50 GMT")]),
            (Some(30), false)
        );
        assert_eq!(limit(&[]), (None, false));
    }

    #[test]
    fn a_reset_is_read_by_the_clock_of_the_server_that_gave_it() {
        // Its clock is ten minutes ahead of ours.
        let pairs = [
            ("ratelimit-reset", "1763900660"),
            ("date", "Sun, 23 Nov 2025 12:23:20 GMT"),
        ];
        assert_eq!(limit(&pairs), (Some(60), true));
    }

    #[test]
    fn words_stay_on_one_short_line() {
        let page = format!("<html>\n\t{}\x1b[31m", "word ".repeat(100_000));
        let Outcome::Unreachable { reason, .. } = message(502, &page, &[]) else {
            panic!()
        };
        assert!(reason.chars().count() < 400, "{}", reason.len());
        assert!(!reason.contains(['\n', '\t', '\x1b']), "{reason}");
        let location = format!("https://x/\t{}", "word".repeat(10_000));
        let Outcome::Unreachable { reason, .. } = message(307, "", &[("location", &location)])
        else {
            panic!()
        };
        assert!(reason.chars().count() < 400, "{}", reason.len());
        assert!(!reason.contains('\t'), "{reason}");
    }
}
