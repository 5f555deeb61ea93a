//! The wall clock: the one place that reads it, and the one type that carries it.
//!
//! Waiting is never done by the wall clock (it jumps); it only stamps what is stored and
//! compares stamps across restarts.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970 (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp(i64);

/// The time it is.
pub fn now() -> Timestamp {
    // A clock before 1970 is a broken clock: zero keeps the sidecar running.
    let since = precisely().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The time it is, where a millisecond is long.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the wall clock"
)]
pub(crate) fn precisely() -> SystemTime {
    SystemTime::now()
}

impl Timestamp {
    /// From milliseconds since 1970.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// From a date as HTTP headers carry it.
    pub fn parse_http_date(text: &str) -> Option<Self> {
        let since = httpdate::parse_http_date(text)
            .ok()?
            .duration_since(UNIX_EPOCH)
            .ok()?;
        i64::try_from(since.as_millis()).ok().map(Self)
    }

    /// From what a person writes: `2026-11-25T10:00:00Z`, `2026-11-25 10:00:00`, `2026-11-25`,
    /// all in UTC.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let whole = match text.len() {
            10 => format!("{text}T00:00:00Z"),
            16 => format!("{text}:00"),
            _ => text.to_owned(),
        };
        let since = humantime::parse_rfc3339_weak(&whole)
            .ok()?
            .duration_since(UNIX_EPOCH)
            .ok()?;
        i64::try_from(since.as_millis()).ok().map(Self)
    }

    /// Milliseconds since 1970.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// How long ago `earlier` was; zero when the clock went back meanwhile.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This instant moved into the future.
    #[must_use]
    pub fn plus(self, wait: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// This instant moved into the past.
    #[must_use]
    pub fn minus(self, wait: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)),
        )
    }
}

impl Timestamp {
    /// `20251123T121320Z`: to the second, for the names of files.
    pub fn to_file_name(self) -> String {
        let text = self.to_string();
        let (seconds, _) = text.split_once('.').unwrap_or((&text, ""));
        format!("{}Z", seconds.replace(['-', ':'], ""))
    }
}

/// RFC 3339 with milliseconds, in UTC.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0).unwrap_or(0);
        // Beyond the year 9999 RFC 3339 has no form.
        let time = UNIX_EPOCH + Duration::from_millis(millis.min(253_402_300_799_999));
        humantime::format_rfc3339_millis(time).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_back_gives_no_negative_age() {
        let later = Timestamp::from_millis(5_000);
        assert_eq!(
            later.since(Timestamp::from_millis(2_000)),
            Duration::from_secs(3)
        );
        assert_eq!(Timestamp::from_millis(2_000).since(later), Duration::ZERO);
    }

    #[test]
    fn a_time_may_be_written_as_shown_or_shorter() {
        let shown = Timestamp::from_millis(1_763_900_000_000);
        for text in [
            "2025-11-23T12:13:20.000Z",
            "2025-11-23T12:13:20Z",
            "2025-11-23 12:13:20",
        ] {
            assert_eq!(Timestamp::parse(text), Some(shown), "{text}");
        }
        assert_eq!(
            Timestamp::parse("2025-11-23 12:13"),
            Some(Timestamp::from_millis(1_763_899_980_000))
        );
        assert_eq!(
            Timestamp::parse("2025-11-23"),
            Some(Timestamp::from_millis(1_763_856_000_000))
        );
        for text in ["", "yesterday", "2025-13-01", "12:13"] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }

    #[test]
    fn any_instant_can_be_shown() {
        assert_eq!(
            Timestamp::from_millis(1_763_900_000_123).to_string(),
            "2025-11-23T12:13:20.123Z"
        );
        assert_eq!(
            Timestamp::from_millis(1_763_900_000_123).to_file_name(),
            "20251123T121320Z"
        );
        assert_eq!(
            Timestamp::from_millis(-1).to_string(),
            "1970-01-01T00:00:00.000Z"
        );
        assert!(
            Timestamp::from_millis(i64::MAX)
                .to_string()
                .starts_with("9999")
        );
    }
}
