//! Delivery options: what QStash is told beside the destination, as flags, in a route's query
//! and as headers of a publish.

use super::{check_url, decode, encode, for_log, is_url};

/// How QStash delivers: what is not set is QStash's default.
/// <https://upstash.com/docs/qstash/api-reference/messages/publish-a-message>
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeliveryOptions {
    /// Retries after the first try (QStash: 3).
    pub retries: Option<u32>,
    /// Milliseconds before a retry, as an expression over `retried`.
    pub retry_delay: Option<String>,
    /// Before the first try, such as `10s`.
    pub delay: Option<String>,
    /// How long the endpoint may take, such as `30s`.
    pub timeout: Option<String>,
    /// Told the endpoint's answer.
    pub callback: Option<String>,
    /// Told when all retries have failed.
    pub failure_callback: Option<String>,
    /// The method of the delivery (QStash: POST).
    pub method: Option<String>,
    /// Labels to find messages by.
    pub labels: Vec<String>,
    /// Key and value, such as `parallelism=5,rate=10,period=1m`.
    pub flow_control: Option<(String, String)>,
    /// Fields that QStash's logs do not show, such as `body`.
    pub redact: Option<String>,
    /// More headers for the receiver.
    pub forward_headers: Vec<(String, String)>,
}

/// Why a delivery option is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No such option.
    #[error("there is no delivery option {name:?}; there are {}", DeliveryOptions::NAMES.join(", "))]
    Unknown {
        /// What was typed.
        name: String,
    },
    /// Its value is wrong.
    #[error("{name}: {value:?} is not right: {expected}")]
    Value {
        /// The option.
        name: &'static str,
        /// What was typed.
        value: String,
        /// What to write.
        expected: &'static str,
    },
    /// Two options that QStash does not take together.
    #[error("a queue has no delay: take the delay off, or the queue")]
    DelayInQueue,
}

/// A header's name for the receiver that must not be set by hand.
const OWN_FORWARDED: [&str; 3] = ["authorization", "webhook-id", "content-length"];

impl DeliveryOptions {
    /// The names of the options, as flags and in `DEST?name=value`.
    pub const NAMES: [&'static str; 11] = [
        "retries",
        "retry-delay",
        "delay",
        "timeout",
        "callback",
        "failure-callback",
        "method",
        "label",
        "flow-control",
        "forward-header",
        "redact",
    ];

    /// Sets one option by its name.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        let value = value.trim();
        let name = *Self::NAMES
            .iter()
            .find(|known| **known == name)
            .ok_or_else(|| OptionError::Unknown {
                name: name.to_owned(),
            })?;
        let wrong = |expected| OptionError::Value {
            name,
            value: value.to_owned(),
            expected,
        };
        let text = |ok: bool, expected| {
            if ok {
                Ok(Some(value.to_owned()))
            } else {
                Err(wrong(expected))
            }
        };
        match name {
            "retries" => {
                let retries = value.parse();
                self.retries = Some(retries.map_err(|_not_a_number| wrong("write a whole number such as 3"))?);
            }
            "retry-delay" => {
                let expected = "write milliseconds as an expression over `retried`, such as 'pow(2, retried) * 1000'";
                self.retry_delay = text(is_expression(value), expected)?;
            }
            "delay" => self.delay = text(is_duration(value), "write a duration such as 10s, 5m or 1h30m")?,
            "timeout" => self.timeout = text(is_duration(value), "write a duration such as 30s or 5m")?,
            "callback" => self.callback = text(is_callback(value), "write a URL that QStash can reach, https://…")?,
            "failure-callback" => {
                self.failure_callback = text(is_callback(value), "write a URL that QStash can reach, https://…")?;
            }
            "method" => {
                let method = value.to_ascii_uppercase();
                if !["GET", "POST", "PUT", "PATCH", "DELETE"].contains(&method.as_str()) {
                    return Err(wrong("write GET, POST, PUT, PATCH or DELETE"));
                }
                self.method = Some(method);
            }
            "label" => {
                for label in value.split(',').map(str::trim).filter(|label| !label.is_empty()) {
                    if !is_header_value(label) {
                        return Err(wrong("write plain ASCII, several with commas between"));
                    }
                    self.labels.push(label.to_owned());
                }
            }
            "flow-control" => {
                self.flow_control = Some(
                    flow_control(value).ok_or_else(|| wrong("write KEY:VALUE such as site:parallelism=5,rate=10,period=1m"))?,
                );
            }
            "redact" => {
                self.redact = text(
                    !value.is_empty() && is_header_value(value),
                    "write body, header, header[Name], or several with commas between",
                )?;
            }
            _ => self.forward_headers.push(forward_header(value).ok_or_else(|| {
                wrong("write 'Name: value'; Authorization, Content-Length and Webhook-Id are not for this flag")
            })?),
        }
        Ok(())
    }

    /// These, and the defaults where these say nothing. Headers for the receiver are merged
    /// by name.
    #[must_use]
    pub fn over(&self, defaults: &Self) -> Self {
        let either = |ours: &Option<String>, theirs: &Option<String>| {
            ours.clone().or_else(|| theirs.clone())
        };
        let mut forward_headers = self.forward_headers.clone();
        for (name, value) in &defaults.forward_headers {
            if !self
                .forward_headers
                .iter()
                .any(|(ours, _)| ours.eq_ignore_ascii_case(name))
            {
                forward_headers.push((name.clone(), value.clone()));
            }
        }
        Self {
            retries: self.retries.or(defaults.retries),
            retry_delay: either(&self.retry_delay, &defaults.retry_delay),
            delay: either(&self.delay, &defaults.delay),
            timeout: either(&self.timeout, &defaults.timeout),
            callback: either(&self.callback, &defaults.callback),
            failure_callback: either(&self.failure_callback, &defaults.failure_callback),
            method: either(&self.method, &defaults.method),
            labels: if self.labels.is_empty() {
                defaults.labels.clone()
            } else {
                self.labels.clone()
            },
            flow_control: self
                .flow_control
                .clone()
                .or_else(|| defaults.flow_control.clone()),
            redact: either(&self.redact, &defaults.redact),
            forward_headers,
        }
    }

    /// The headers of a publish that carry them.
    pub fn headers(&self) -> Vec<(String, String)> {
        let mut headers: Vec<(String, String)> = Vec::new();
        let mut add = |name: &str, value: Option<String>| {
            headers.extend(value.map(|value| (name.to_owned(), value)))
        };
        add(
            "Upstash-Retries",
            self.retries.map(|retries| retries.to_string()),
        );
        add("Upstash-Retry-Delay", self.retry_delay.clone());
        add("Upstash-Delay", self.delay.clone());
        add("Upstash-Timeout", self.timeout.clone());
        add("Upstash-Callback", self.callback.clone());
        add("Upstash-Failure-Callback", self.failure_callback.clone());
        add("Upstash-Method", self.method.clone());
        add(
            "Upstash-Label",
            (!self.labels.is_empty()).then(|| self.labels.join(",")),
        );
        add(
            "Upstash-Flow-Control-Key",
            self.flow_control.as_ref().map(|(key, _)| key.clone()),
        );
        add(
            "Upstash-Flow-Control-Value",
            self.flow_control.as_ref().map(|(_, value)| value.clone()),
        );
        add("Upstash-Redact-Fields", self.redact.clone());
        for (name, value) in &self.forward_headers {
            headers.push((format!("Upstash-Forward-{name}"), value.clone()));
        }
        headers
    }

    /// `retries=5&delay=10s`: what [`Self::parse`] reads.
    pub fn to_text(&self) -> String {
        let pairs = self.pairs().into_iter();
        let pairs = pairs.map(|(name, value)| format!("{name}={}", encode(&value)));
        pairs.collect::<Vec<_>>().join("&")
    }

    /// Each that is set, without what may be secret: a header's value, a URL's parameters.
    pub(crate) fn for_log(&self) -> Vec<(&'static str, String)> {
        let mut pairs = self.pairs();
        for (name, value) in &mut pairs {
            match *name {
                "callback" | "failure-callback" => *value = for_log(value).into_owned(),
                "forward-header" => value.truncate(value.find(':').unwrap_or(0)),
                _ => {}
            }
        }
        pairs
    }

    fn pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = Vec::new();
        if let Some(retries) = self.retries {
            pairs.push(("retries", retries.to_string()));
        }
        for (name, value) in [
            ("retry-delay", &self.retry_delay),
            ("delay", &self.delay),
            ("timeout", &self.timeout),
            ("callback", &self.callback),
            ("failure-callback", &self.failure_callback),
            ("method", &self.method),
            ("redact", &self.redact),
        ] {
            pairs.extend(value.clone().map(|value| (name, value)));
        }
        if !self.labels.is_empty() {
            pairs.push(("label", self.labels.join(",")));
        }
        if let Some((key, value)) = &self.flow_control {
            pairs.push(("flow-control", format!("{key}:{value}")));
        }
        for (name, value) in &self.forward_headers {
            pairs.push(("forward-header", format!("{name}: {value}")));
        }
        pairs
    }

    /// Reads `retries=5&delay=10s`.
    pub fn parse(text: &str) -> Result<Self, OptionError> {
        let mut options = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            options.set(&decode(name), &decode(value))?;
        }
        Ok(options)
    }
}

/// QStash's own form of a duration: numbers with `s`, `m`, `h` or `d`, largest first or not.
fn is_duration(text: &str) -> bool {
    let mut digits = 0;
    for c in text.chars() {
        match c {
            '0'..='9' => digits += 1,
            's' | 'm' | 'h' | 'd' if digits > 0 => digits = 0,
            _ => return false,
        }
    }
    !text.is_empty() && digits == 0
}

fn is_expression(text: &str) -> bool {
    let mut open = 0_i32;
    for c in text.chars() {
        match c {
            '(' => open += 1,
            ')' => open -= 1,
            c if c.is_ascii_alphanumeric() || " +-*/.,_".contains(c) => {}
            _ => return false,
        }
        if open < 0 {
            return false;
        }
    }
    !text.is_empty() && open == 0
}

fn is_callback(text: &str) -> bool {
    is_url(text) && check_url(text).is_ok()
}

fn is_header_value(text: &str) -> bool {
    text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

fn flow_control(text: &str) -> Option<(String, String)> {
    let (key, value) = text.rsplit_once(':')?;
    let known = |part: &str| {
        let (name, number) = part.split_once('=').unwrap_or(("", ""));
        let (name, number) = (name.trim(), number.trim());
        match name {
            "parallelism" | "rate" => number.parse::<u32>().is_ok(),
            "period" => number.parse::<u32>().is_ok() || is_duration(number),
            _ => false,
        }
    };
    (!key.is_empty() && is_header_value(key) && value.split(',').all(known))
        .then(|| (key.to_owned(), value.to_owned()))
}

fn forward_header(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once(':')?;
    let (name, value) = (name.trim(), value.trim());
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let ours = OWN_FORWARDED
        .iter()
        .any(|own| own.eq_ignore_ascii_case(name));
    (!name.is_empty() && name.bytes().all(is_token) && is_header_value(value) && !ours)
        .then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> DeliveryOptions {
        let mut options = DeliveryOptions::default();
        for (name, value) in [
            ("retries", "5"),
            ("retry-delay", "pow(2, retried) * 1000 + 5"),
            ("delay", "1h30m"),
            ("timeout", "30s"),
            ("callback", "https://example.com/cb?a=b&c=d"),
            ("failure-callback", "https://example.com/failed"),
            ("method", "put"),
            ("label", "a, b"),
            ("label", "c"),
            ("flow-control", "site:a:parallelism=5,rate=10,period=1m"),
            ("forward-header", "X-Site: one: two & more"),
            ("redact", "body,header[X-Key]"),
        ] {
            options.set(name, value).unwrap();
        }
        options
    }

    #[test]
    fn options_round_trip_as_text_and_become_headers() {
        let options = options();
        assert_eq!(DeliveryOptions::parse(&options.to_text()).unwrap(), options);
        let headers = options.headers();
        for (name, value) in [
            ("Upstash-Retries", "5"),
            ("Upstash-Method", "PUT"),
            ("Upstash-Label", "a,b,c"),
            ("Upstash-Flow-Control-Key", "site:a"),
            (
                "Upstash-Flow-Control-Value",
                "parallelism=5,rate=10,period=1m",
            ),
            ("Upstash-Forward-X-Site", "one: two & more"),
            ("Upstash-Redact-Fields", "body,header[X-Key]"),
        ] {
            assert!(
                headers.contains(&(name.to_owned(), value.to_owned())),
                "{name}: {headers:?}"
            );
        }
        assert_eq!(headers.len(), 12);
        assert!(DeliveryOptions::default().headers().is_empty());
        assert_eq!(
            DeliveryOptions::parse("").unwrap(),
            DeliveryOptions::default()
        );
    }

    #[test]
    fn a_route_wins_over_the_flags() {
        let route = DeliveryOptions::parse("retries=1&forward-header=x-site%3A%20route").unwrap();
        let both = route.over(&options());
        assert_eq!(both.retries, Some(1));
        assert_eq!(both.delay.as_deref(), Some("1h30m"));
        assert_eq!(
            both.forward_headers,
            [("x-site".to_owned(), "route".to_owned())]
        );
    }

    #[test]
    fn wrong_options_say_what_to_write() {
        for (name, value) in [
            ("retries", "many"),
            ("retries", "-1"),
            ("retry-delay", "pow(2"),
            ("retry-delay", "1; 2"),
            ("delay", "10"),
            ("delay", "s"),
            ("delay", ""),
            ("timeout", "5x"),
            ("callback", "example.com"),
            ("method", "HEAD"),
            ("flow-control", "parallelism=5"),
            ("flow-control", "k:burst=5"),
            ("forward-header", "no colon"),
            ("forward-header", "Authorization: Bearer x"),
            ("redact", ""),
            ("label", "ü"),
        ] {
            let error = DeliveryOptions::default()
                .set(name, value)
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with(name) && error.contains("write"),
                "{name}={value}: {error}"
            );
        }
        let unknown = DeliveryOptions::default()
            .set("retrys", "1")
            .unwrap_err()
            .to_string();
        assert!(unknown.contains("retry-delay"), "{unknown}");
    }
}
