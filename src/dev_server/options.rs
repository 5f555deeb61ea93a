//! What a publisher may ask for by header, read and checked.

use std::str::FromStr;
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, HeaderName};
use hyper::{HeaderMap, Method};

use super::durations;
use super::expression::Expression;
use super::redact::Redaction;
use super::target::check_url;
use crate::clock::Timestamp;

/// Retries of a message that does not say how many.
const DEFAULT_RETRIES: u32 = 3;

const FORWARD: &str = "upstash-forward-";

/// Headers that are about the publisher's own request, its connection or its token: they
/// are not passed on, not even when all headers are.
const WITHHELD: [&str; 13] = [
    "authorization",
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// How a message is to be delivered.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The method of the delivery.
    pub method: Method,
    /// How many tries follow the first.
    pub retries: u32,
    /// The wait before each of them, instead of the usual backoff.
    pub retry_delay: Option<Expression>,
    /// Not delivered before this.
    pub not_before: Option<Timestamp>,
    /// How long the receiver may take to answer.
    pub timeout: Option<Duration>,
    /// Names to find the message by.
    pub labels: Vec<String>,
    /// `Upstash-Deduplication-Id`.
    pub deduplication_id: Option<String>,
    /// Whether the content serves as the deduplication id.
    pub content_based_deduplication: bool,
    /// Limits shared by the messages with one key.
    pub flow_control: Option<FlowControl>,
    /// What logs are to hide.
    pub redact: Option<Redaction>,
    /// Told how each delivery ended.
    pub callback: Option<Box<Callback>>,
    /// Told when the message was given up.
    pub failure_callback: Option<Box<Callback>>,
}

/// Where and how to tell what became of a message: by another message.
#[derive(Debug, Clone, PartialEq)]
pub struct Callback {
    /// Where.
    pub url: String,
    /// How that message is delivered.
    pub options: Options,
    /// Headers for its receiver.
    pub headers: HeaderMap,
}

/// `Upstash-Flow-Control-Key` and `-Value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowControl {
    /// Messages with the same key share the limits.
    pub key: String,
    /// Deliveries at a time.
    pub parallelism: Option<u32>,
    /// Deliveries in a period.
    pub rate: Option<u32>,
    /// The period.
    pub period: Duration,
}

/// Why options were not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum OptionError {
    #[error("invalid value {value:?} of {header}: expected {expected}")]
    Value {
        header: &'static str,
        value: String,
        expected: String,
    },
    #[error("DeduplicationId cannot contain ':'")]
    DeduplicationId,
    #[error("{header} is not part of this development server")]
    Unsupported { header: &'static str },
}

impl Default for Options {
    fn default() -> Self {
        Self {
            method: Method::POST,
            retries: DEFAULT_RETRIES,
            retry_delay: None,
            not_before: None,
            timeout: None,
            labels: Vec::new(),
            deduplication_id: None,
            content_based_deduplication: false,
            flow_control: None,
            redact: None,
            callback: None,
            failure_callback: None,
        }
    }
}

impl Options {
    /// Reads the options of a publish that arrived at `now`. Unknown `Upstash-` headers are
    /// tolerated (SDKs send telemetry); those that would change what happens are refused.
    pub(super) fn read(headers: &HeaderMap, now: Timestamp) -> Result<Self, OptionError> {
        let header = "Upstash-Cron";
        if text(headers, header).is_some() {
            return Err(OptionError::Unsupported { header });
        }
        let mut options = Self::read_own(headers, now)?;
        options.callback = Callback::read(headers, "Upstash-Callback", now)?;
        options.failure_callback = Callback::read(headers, "Upstash-Failure-Callback", now)?;
        Ok(options)
    }

    /// These options under those of a retry from the dead letter queue: what its headers name
    /// wins. A new message is not a duplicate of the one that failed, nor as late.
    pub(super) fn overridden(
        mut self,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<Self, OptionError> {
        let given = Self::read(headers, now)?;
        self.not_before = given.not_before;
        self.deduplication_id = given.deduplication_id;
        self.content_based_deduplication = given.content_based_deduplication;
        let has = |name| text(headers, name).is_some();
        if has("Upstash-Method") {
            self.method = given.method;
        }
        if has("Upstash-Retries") {
            self.retries = given.retries;
        }
        if !given.labels.is_empty() {
            self.labels = given.labels;
        }
        self.retry_delay = given.retry_delay.or(self.retry_delay);
        self.timeout = given.timeout.or(self.timeout);
        self.flow_control = given.flow_control.or(self.flow_control);
        self.redact = given.redact.or(self.redact);
        self.callback = given.callback.or(self.callback);
        self.failure_callback = given.failure_callback.or(self.failure_callback);
        Ok(self)
    }

    /// Reads all but the callbacks: they have options too, but no callbacks of their own.
    fn read_own(headers: &HeaderMap, now: Timestamp) -> Result<Self, OptionError> {
        let mut options = Self {
            redact: value(headers, "Upstash-Redact-Fields", FIELDS, Redaction::parse)?,
            ..Self::default()
        };
        if let Some(method) = value(headers, "Upstash-Method", METHODS, method)? {
            options.method = method;
        }
        if let Some(retries) = value(headers, "Upstash-Retries", "a whole number", number)? {
            options.retries = retries;
        }
        if let Some(source) = text(headers, "Upstash-Retry-Delay") {
            let expression = Expression::parse(source).map_err(|error| OptionError::Value {
                header: "Upstash-Retry-Delay",
                value: source.to_owned(),
                expected: format!("an expression over `retried`: {error}"),
            })?;
            options.retry_delay = Some(expression);
        }
        let delay = value(headers, "Upstash-Delay", DURATION, durations::parse_option)?;
        let not_before = value(
            headers,
            "Upstash-Not-Before",
            "seconds since 1970",
            |text| {
                let seconds = i64::try_from(number::<u64>(text)?).ok()?;
                Some(Timestamp::from_millis(seconds.checked_mul(1_000)?))
            },
        )?;
        options.not_before = not_before.or(delay.map(|delay| now.plus(delay)));
        options.timeout = value(
            headers,
            "Upstash-Timeout",
            DURATION,
            durations::parse_option,
        )?;
        if let Some(labels) = text(headers, "Upstash-Label") {
            let labels = labels.split(',').map(str::trim).filter(|l| !l.is_empty());
            options.labels = labels.map(str::to_owned).collect();
        }
        if let Some(id) = text(headers, "Upstash-Deduplication-Id") {
            if id.contains(':') {
                return Err(OptionError::DeduplicationId);
            }
            options.deduplication_id = Some(id.to_owned());
        }
        let by_content = "Upstash-Content-Based-Deduplication";
        options.content_based_deduplication =
            value(headers, by_content, TRUE_OR_FALSE, boolean)?.unwrap_or(false);
        options.flow_control = flow_control(headers)?;
        Ok(options)
    }
}

impl Callback {
    /// Reads `Upstash-Callback` or `Upstash-Failure-Callback`, and what begins like it:
    /// `Upstash-Callback-Retries` is the callback's `Upstash-Retries`.
    fn read(
        headers: &HeaderMap,
        header: &'static str,
        now: Timestamp,
    ) -> Result<Option<Box<Self>>, OptionError> {
        let url = value(headers, header, "an http:// or https:// URL", |url| {
            check_url(url).ok().map(|()| url.to_owned())
        })?;
        let Some(url) = url else {
            return Ok(None);
        };
        let prefix = format!("{}-", header.to_ascii_lowercase());
        let mut own = HeaderMap::new();
        for (name, value) in headers {
            let option = name.as_str().strip_prefix(&prefix);
            let name = option.and_then(|option| format!("upstash-{option}").parse().ok());
            if let Some(name) = name {
                own.append::<HeaderName>(name, value.clone());
            }
        }
        Ok(Some(Box::new(Self {
            url,
            options: Options::read_own(&own, now)?,
            headers: receiver_headers(&own)?,
        })))
    }
}

const METHODS: &str = "GET, POST, PUT, PATCH or DELETE";
const DURATION: &str = "a duration such as 10s or 1h30m";
const TRUE_OR_FALSE: &str = "true or false";
const FIELDS: &str = "body, header, header[Name], or some of them";

/// The longest period of a flow-control rate: a week.
/// See <https://upstash.com/docs/qstash/features/flowcontrol>.
const MAX_PERIOD: Duration = Duration::from_secs(7 * 86_400);

fn flow_control(headers: &HeaderMap) -> Result<Option<FlowControl>, OptionError> {
    let Some(key) = text(headers, "Upstash-Flow-Control-Key") else {
        return Ok(None);
    };
    let value = "Upstash-Flow-Control-Value";
    let expected = "parallelism=N, or rate=N with period=1m, or both, all above 0";
    let limits = self::value(headers, value, expected, limits)?;
    let (parallelism, rate, period) = limits.ok_or_else(|| OptionError::Value {
        header: value,
        value: String::new(),
        expected: expected.to_owned(),
    })?;
    Ok(Some(FlowControl {
        key: key.to_owned(),
        parallelism,
        rate,
        period,
    }))
}

fn limits(text: &str) -> Option<(Option<u32>, Option<u32>, Duration)> {
    let above_zero = |text| number(text).filter(|number| *number > 0);
    let (mut parallelism, mut rate, mut period) = (None, None, Duration::from_secs(1));
    for part in text.split(',') {
        let (name, value) = part.split_once('=')?;
        let value = value.trim();
        match name.trim() {
            "parallelism" => parallelism = Some(above_zero(value)?),
            "rate" => rate = Some(above_zero(value)?),
            "period" => {
                let seconds = number(value).map(Duration::from_secs);
                period = seconds.or_else(|| durations::parse_option(value))?;
            }
            _ => return None,
        }
    }
    let is_limit = parallelism.or(rate).is_some();
    (is_limit && is_period(period)).then_some((parallelism, rate, period))
}

/// Whether the period of a rate is one: a second to a week.
pub(super) fn is_period(period: Duration) -> bool {
    (Duration::from_secs(1)..=MAX_PERIOD).contains(&period)
}

/// The headers that the receiver gets: `Content-Type`, those named `Upstash-Forward-…`, and
/// with `Upstash-Header-Forward: true` all the others. Values may be any bytes.
pub(super) fn receiver_headers(headers: &HeaderMap) -> Result<HeaderMap, OptionError> {
    let forward_all = value(headers, "Upstash-Header-Forward", TRUE_OR_FALSE, boolean)?;
    let forward_all = forward_all.unwrap_or(false);
    let mut plain = HeaderMap::new();
    let mut named = HeaderMap::new();
    for (name, value) in headers {
        if let Some(inner) = name.as_str().strip_prefix(FORWARD) {
            // A connection's own headers are the delivery's to set.
            let kept = inner == "authorization" || !WITHHELD.contains(&inner);
            if let (true, Ok(inner)) = (kept, HeaderName::from_str(inner)) {
                named.append(inner, value.clone());
            }
        } else if name == CONTENT_TYPE || (forward_all && is_ordinary(name)) {
            plain.append(name.clone(), value.clone());
        }
    }
    for name in named.keys() {
        plain.remove(name);
    }
    for (name, value) in &named {
        plain.append(name.clone(), value.clone());
    }
    Ok(plain)
}

fn is_ordinary(name: &HeaderName) -> bool {
    let name = name.as_str();
    !name.starts_with("upstash-") && !WITHHELD.contains(&name)
}

/// The text of a header; `None` when it is absent, empty or not UTF-8.
fn text<'a>(headers: &'a HeaderMap, header: &'static str) -> Option<&'a str> {
    let text = std::str::from_utf8(headers.get(header)?.as_bytes()).ok()?;
    let text = text.trim();
    (!text.is_empty()).then_some(text)
}

fn value<T>(
    headers: &HeaderMap,
    header: &'static str,
    expected: &str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, OptionError> {
    let Some(text) = text(headers, header) else {
        return Ok(None);
    };
    read(text).map(Some).ok_or_else(|| OptionError::Value {
        header,
        value: text.to_owned(),
        expected: expected.to_owned(),
    })
}

fn method(text: &str) -> Option<Method> {
    [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
    ]
    .into_iter()
    .find(|method| text.eq_ignore_ascii_case(method.as_str()))
}

/// Digits only: `parse` alone would also take a sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

fn boolean(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        return Some(true);
    }
    text.eq_ignore_ascii_case("false").then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    const NOW: Timestamp = Timestamp::from_millis(1_763_900_000_000);

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_str(name).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        map
    }

    fn read(header: &str, value: &str) -> Result<Options, OptionError> {
        Options::read(&map(&[(header, value)]), NOW)
    }

    #[test]
    fn every_option_is_read() {
        let options = Options::read(
            &map(&[
                ("Upstash-Method", "put"),
                ("Upstash-Retries", "0"),
                ("Upstash-Retry-Delay", "1000 * retried"),
                ("Upstash-Delay", "1m"),
                ("Upstash-Timeout", "30s"),
                ("Upstash-Label", "a, b,,c"),
                ("Upstash-Deduplication-Id", "x-1_2"),
                ("Upstash-Content-Based-Deduplication", "True"),
                ("Upstash-Flow-Control-Key", "k"),
                (
                    "Upstash-Flow-Control-Value",
                    "parallelism=5, rate=10,period=1m",
                ),
                ("Upstash-Telemetry-Sdk", "upstash-qstash-js"),
            ]),
            NOW,
        )
        .unwrap();
        assert_eq!(options.method, Method::PUT);
        assert_eq!(options.retries, 0);
        assert_eq!(options.retry_delay.unwrap().source(), "1000 * retried");
        assert_eq!(options.not_before, Some(NOW.plus(Duration::from_secs(60))));
        assert_eq!(options.timeout, Some(Duration::from_secs(30)));
        assert_eq!(options.labels, ["a", "b", "c"]);
        assert_eq!(options.deduplication_id.as_deref(), Some("x-1_2"));
        assert!(options.content_based_deduplication);
        let flow_control = options.flow_control.unwrap();
        assert_eq!(
            (flow_control.parallelism, flow_control.rate),
            (Some(5), Some(10))
        );
        assert_eq!(flow_control.period, Duration::from_secs(60));
    }

    #[test]
    fn not_before_wins_over_delay() {
        let headers = map(&[
            ("Upstash-Delay", "1m"),
            ("Upstash-Not-Before", "1763900001"),
        ]);
        let options = Options::read(&headers, NOW).unwrap();
        let expected = Timestamp::from_millis(1_763_900_001_000);
        assert_eq!(options.not_before, Some(expected));
    }

    #[test]
    fn a_bad_value_is_told_with_its_header() {
        for (header, value) in [
            ("Upstash-Method", "TRACE"),
            ("Upstash-Retries", "-1"),
            ("Upstash-Retries", "+1"),
            ("Upstash-Retries", "99999999999"),
            ("Upstash-Retry-Delay", "1000 *"),
            ("Upstash-Delay", "10"),
            ("Upstash-Delay", "1y"),
            ("Upstash-Not-Before", "tomorrow"),
            ("Upstash-Timeout", "fast"),
            ("Upstash-Content-Based-Deduplication", "yes"),
            ("Upstash-Failure-Callback", "a/b"),
            ("Upstash-Redact-Fields", "everything"),
        ] {
            let error = read(header, value).unwrap_err().to_string();
            assert!(error.contains(header) && error.contains(value), "{error}");
        }
        let colon = read("Upstash-Deduplication-Id", "a:b").unwrap_err();
        assert_eq!(colon.to_string(), "DeduplicationId cannot contain ':'");
        assert!(matches!(
            read("Upstash-Cron", "* * * * *"),
            Err(OptionError::Unsupported { .. })
        ));
    }

    #[test]
    fn flow_control_needs_a_limit_and_a_period_of_a_second_to_a_week() {
        for (value, taken) in [
            ("parallelism=1", true),
            ("rate=1", true),
            ("rate=2, period=30", true),
            ("rate=2,period=7d", true),
            ("", false),
            ("period=1m", false),
            ("rate=0", false),
            ("parallelism=0", false),
            ("rate=1,period=0s", false),
            ("rate=1,period=8d", false),
            ("rate", false),
            ("speed=1", false),
        ] {
            let headers = map(&[
                ("Upstash-Flow-Control-Key", "k"),
                ("Upstash-Flow-Control-Value", value),
            ]);
            assert_eq!(Options::read(&headers, NOW).is_ok(), taken, "{value}");
        }
    }

    #[test]
    fn a_retry_of_a_dead_letter_changes_what_it_names() {
        let first = Options::read(
            &map(&[
                ("Upstash-Retries", "5"),
                ("Upstash-Method", "PUT"),
                ("Upstash-Delay", "1h"),
                ("Upstash-Label", "a"),
                ("Upstash-Deduplication-Id", "x"),
            ]),
            NOW,
        )
        .unwrap();
        let headers = map(&[("Upstash-Retries", "0"), ("Upstash-Timeout", "3s")]);
        let expected = Options {
            method: Method::PUT,
            retries: 0,
            timeout: Some(Duration::from_secs(3)),
            labels: vec!["a".into()],
            ..Options::default()
        };
        assert_eq!(first.clone().overridden(&headers, NOW), Ok(expected));
        assert!(
            first
                .overridden(&map(&[("Upstash-Delay", "x")]), NOW)
                .is_err()
        );
    }

    #[test]
    fn callbacks_have_options_of_their_own() {
        let headers = map(&[
            ("Upstash-Retries", "1"),
            ("Upstash-Callback", "https://example.com/done"),
            ("Upstash-Callback-Retries", "2"),
            ("Upstash-Callback-Forward-X", "y"),
            ("Upstash-Callback-Callback", "https://example.com/no"),
            ("Upstash-Failure-Callback", "https://example.com/failed"),
        ]);
        let options = Options::read(&headers, NOW).unwrap();
        let callback = options.callback.unwrap();
        assert_eq!(callback.url, "https://example.com/done");
        assert_eq!(callback.options.retries, 2);
        assert_eq!(callback.options.callback, None);
        assert_eq!(callback.headers, map(&[("x", "y")]));
        let failure_callback = options.failure_callback.unwrap();
        assert_eq!(failure_callback.options, Options::default());
        assert!(read("Upstash-Callback", "example.com").is_err());
    }

    #[test]
    fn the_receiver_gets_what_was_meant_for_it() {
        let headers = map(&[
            ("Content-Type", "application/json"),
            ("X-Own", "1"),
            ("Upstash-Forward-X-Strapi-Event", "entry.publish"),
            ("Upstash-Forward-Authorization", "Bearer receiver"),
            ("Upstash-Forward-Content-Length", "3"),
            ("Authorization", "Bearer token"),
            ("Upstash-Label", "a"),
        ]);
        let expected = map(&[
            ("content-type", "application/json"),
            ("x-strapi-event", "entry.publish"),
            ("authorization", "Bearer receiver"),
        ]);
        assert_eq!(receiver_headers(&headers).unwrap(), expected);
    }

    #[test]
    fn all_headers_are_forwarded_but_those_of_the_request_itself() {
        let headers = map(&[
            ("Upstash-Header-Forward", "true"),
            ("X-Own", "1"),
            ("X-Own", "2"),
            ("X-Both", "plain"),
            ("Upstash-Forward-X-Both", "named"),
            ("Authorization", "Bearer token"),
            ("Host", "localhost"),
            ("Upstash-Retries", "1"),
        ]);
        let expected = map(&[("x-own", "1"), ("x-own", "2"), ("x-both", "named")]);
        assert_eq!(receiver_headers(&headers).unwrap(), expected);
        let unclear = map(&[("Upstash-Header-Forward", "1")]);
        assert!(receiver_headers(&unclear).is_err());
    }

    #[test]
    fn header_values_stay_the_bytes_they_were() {
        let mut headers = HeaderMap::new();
        let latin = HeaderValue::from_bytes(b"caf\xe9").unwrap();
        headers.insert("upstash-forward-x-name", latin.clone());
        let forwarded = receiver_headers(&headers).unwrap();
        assert_eq!(forwarded.get("x-name"), Some(&latin));
    }
}
