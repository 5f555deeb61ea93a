//! Values as people type them, and what is wrong with them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytesize::ByteSize;

use crate::cli::ServeArgs;
use crate::secret::Secret;

/// All that is wrong with the flags.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mistakes(pub(super) Vec<String>);

impl Mistakes {
    pub(crate) fn add(&mut self, flag: &str, text: impl fmt::Display) {
        self.0.push(format!("{flag}: {text}"));
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The checked value, or a mistake more.
    pub(crate) fn check<T>(
        &mut self,
        flag: &str,
        checked: Result<T, impl fmt::Display>,
    ) -> Option<T> {
        checked.map_err(|error| self.add(flag, error)).ok()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

/// A value that was given: an empty one, as in `QSTASH_TOKEN=`, counts as none.
pub(crate) fn given(value: &Option<String>) -> Option<&str> {
    value
        .as_deref()
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

pub(crate) fn optional<T>(
    value: &Option<String>,
    flag: &str,
    parse: impl Fn(&str) -> Result<T, String>,
    mistakes: &mut Mistakes,
) -> Option<T> {
    given(value).and_then(|text| mistakes.check(flag, parse(text)))
}

/// Two flags of which one is to be set. Where both are, the one that was typed wins over the
/// one from the environment; both from the same place are a mistake, and both are given.
pub(super) fn either<'a>(
    args: &ServeArgs,
    (flag, value): (&str, &'a Option<String>),
    (other_flag, other): (&str, &'a Option<String>),
    mistakes: &mut Mistakes,
) -> (Option<&'a str>, Option<&'a str>) {
    let both = (given(value), given(other));
    match (
        both.0.is_some() && both.1.is_some(),
        args.is_typed(flag),
        args.is_typed(other_flag),
    ) {
        (true, true, false) => (both.0, None),
        (true, false, true) => (None, both.1),
        (true, _, _) => {
            mistakes.add(
                flag,
                format_args!("there is a {other_flag} too: leave one of them out"),
            );
            both
        }
        (false, _, _) => both,
    }
}

pub(super) fn secret(
    args: &ServeArgs,
    value: (&str, &Option<String>),
    file: (&str, &Option<String>),
    mistakes: &mut Mistakes,
) -> Option<Secret> {
    match either(args, value, file, mistakes) {
        (Some(_), Some(_)) => None,
        (Some(value), None) => Secret::trimmed(value),
        (None, Some(path)) => read_secret(file.0, path, mistakes),
        (None, None) => None,
    }
}

pub(crate) fn read_secret(flag: &str, path: &str, mistakes: &mut Mistakes) -> Option<Secret> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"));
    let text = mistakes.check(flag, text)?;
    let secret = Secret::trimmed(&text);
    if secret.is_none() {
        mistakes.add(
            flag,
            format_args!("{path} is empty: write the secret into it"),
        );
    }
    secret
}

/// `HOST:PORT`, `:PORT` (this machine only) or `localhost:PORT`.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    let local = |port: &str| {
        port.parse()
            .ok()
            .map(|port: u16| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
    };
    let parsed = match text
        .strip_prefix("localhost:")
        .or_else(|| text.strip_prefix(':'))
    {
        Some(port) => local(port),
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| format!("{text:?} is no address: write IP:PORT such as 127.0.0.1:8787"))
}

/// A number with a unit; 0 needs none.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if text.chars().all(|c| c.is_ascii_digit()) && text != "0" {
        return Err(format!(
            "{text:?} has no unit: write {text}s for seconds, or {text}m, {text}h, {text}d"
        ));
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("{text:?} is no duration ({error}): write a number with a unit such as 250ms, 10s or 24h"))
}

/// A number with a unit.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    if text.chars().all(|c| c.is_ascii_digit()) && text != "0" {
        return Err(format!(
            "{text:?} has no unit: write {text}B for bytes, or {text}KiB, {text}MiB"
        ));
    }
    let size = text.parse::<ByteSize>().map(|size| size.as_u64());
    size.map_err(|_why| {
        format!("{text:?} is no size: write a number with a unit such as 32MiB or 1GB")
    })
}
