//! `Upstash-Redact-Fields`: what logs, messages and dead letters hide from whoever reads them
//! through the API. What is delivered stays whole.
//!
//! See <https://upstash.com/docs/qstash/features/redact-fields>.

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use ring::digest;

/// What is hidden.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redaction {
    /// Whether the body is.
    pub body: bool,
    /// Which headers are.
    pub headers: RedactedHeaders,
}

/// Which headers are hidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedactedHeaders {
    /// These.
    Named(Vec<HeaderName>),
    /// All.
    All,
}

impl Default for RedactedHeaders {
    fn default() -> Self {
        Self::Named(Vec::new())
    }
}

impl Redaction {
    /// Reads `body,header[Authorization]`. The documentation says `headers` for all of them,
    /// the SDKs send `header`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut redaction = Self::default();
        for field in text.split(',').map(str::trim) {
            let lower = field.to_ascii_lowercase();
            match lower.as_str() {
                "body" => redaction.body = true,
                "header" | "headers" => redaction.headers = RedactedHeaders::All,
                lower => {
                    let name = lower
                        .strip_prefix("headers[")
                        .or_else(|| lower.strip_prefix("header["))?;
                    let name = name.strip_suffix(']')?.trim().parse().ok()?;
                    if let RedactedHeaders::Named(names) = &mut redaction.headers {
                        names.push(name);
                    }
                }
            }
        }
        Some(redaction)
    }

    fn hides(&self, name: &HeaderName) -> bool {
        match &self.headers {
            RedactedHeaders::All => true,
            RedactedHeaders::Named(names) => names.contains(name),
        }
    }
}

/// A body as the API shows it.
pub(super) fn body(body: &Bytes, redaction: Option<&Redaction>) -> Bytes {
    match redaction {
        Some(redaction) if redaction.body => Bytes::from(hidden(body)),
        _ => body.clone(),
    }
}

/// Headers as the API shows them.
pub(super) fn headers(headers: &HeaderMap, redaction: Option<&Redaction>) -> HeaderMap {
    let mut shown = headers.clone();
    if let Some(redaction) = redaction {
        for (name, value) in &mut shown {
            if redaction.hides(name)
                && let Ok(hidden) = HeaderValue::try_from(hidden(value.as_bytes()))
            {
                *value = hidden;
            }
        }
    }
    shown
}

fn hidden(value: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, value);
    let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("REDACTED:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_named_as_the_documentation_and_the_sdks_do() {
        let named = |names: &[&str]| {
            let names = names.iter().map(|name| name.parse().unwrap());
            RedactedHeaders::Named(names.collect())
        };
        for (text, body, headers) in [
            ("body", true, named(&[])),
            ("Body, headers", true, RedactedHeaders::All),
            ("header", false, RedactedHeaders::All),
            (
                "header[Authorization],header[X-B]",
                false,
                named(&["authorization", "x-b"]),
            ),
        ] {
            assert_eq!(Redaction::parse(text), Some(Redaction { body, headers }));
        }
        for text in ["", "url", "header[", "header[a b]", "body,,"] {
            assert_eq!(Redaction::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_hidden_can_be_recognised_and_not_read() {
        let redaction = Redaction::parse("body,header[x]").unwrap();
        // echo -n secret | sha256sum
        let hidden = "REDACTED:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        let secret = Bytes::from_static(b"secret");
        assert_eq!(body(&secret, Some(&redaction)), hidden);
        assert_eq!(body(&secret, None), secret);
        let mut map = HeaderMap::new();
        map.insert("x", HeaderValue::from_static("secret"));
        map.insert("y", HeaderValue::from_static("open"));
        let shown = headers(&map, Some(&redaction));
        assert_eq!(
            (&shown["x"], &shown["y"]),
            (&HeaderValue::from_str(hidden).unwrap(), &map["y"])
        );
    }
}
