//! Times and durations as people write them and read them.

use std::time::Duration;

use crate::clock::{self, Timestamp};

/// `15m` (ago), or an instant.
pub(crate) fn since(text: &str) -> Result<Timestamp, String> {
    match humantime::parse_duration(text.trim()) {
        Ok(ago) => Ok(clock::now().minus(ago)),
        Err(_) => Timestamp::parse(text).ok_or_else(|| {
            format!("{text:?} is no time: write 15m, 2h, 2026-11-25 or 2026-11-25T10:00:00Z (UTC)")
        }),
    }
}

/// Short, for people: `350 ms`, `12 s`, `3 min`, `5 h`, `2 d`.
pub(crate) fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => match duration.as_millis() {
            millis @ 0..1_000 => format!("{millis} ms"),
            millis => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        },
        10..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_one_number() {
        for (millis, text) in [
            (0, "0 ms"),
            (350, "350 ms"),
            (1_250, "1.2 s"),
            (12_900, "12 s"),
            (119_000, "119 s"),
            (180_000, "3 min"),
            (7_200_000, "2 h"),
            (172_800_000, "2 d"),
        ] {
            assert_eq!(short(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn ago_or_an_instant() {
        assert!(since("15m").unwrap() < clock::now());
        assert_eq!(
            since("2025-11-23").unwrap().to_string(),
            "2025-11-23T00:00:00.000Z"
        );
        assert!(since("soon").unwrap_err().contains("write 15m"));
    }
}
