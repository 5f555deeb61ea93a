//! The two ways in which durations are written to QStash.

use std::time::Duration;

/// A duration of a publish option: `10s`, `1h30m`, `1d10h30m`. Whole numbers with the
/// units s, m, h and d.
pub(super) fn parse_option(text: &str) -> Option<Duration> {
    let units = [("s", 1.0), ("m", 60.0), ("h", 3_600.0), ("d", 86_400.0)];
    let is_digit = |c: char| c.is_ascii_digit();
    parse(text, &units, is_digit)
}

/// A duration in a receiver's answer (`Retry-After: 6m5s`), as Go writes them: decimals
/// with the units ns, us, ms, s, m and h.
pub(super) fn parse_answer(text: &str) -> Option<Duration> {
    let units = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("\u{b5}s", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3_600.0),
    ];
    let is_digit = |c: char| c.is_ascii_digit() || c == '.';
    parse(text, &units, is_digit)
}

fn parse(text: &str, units: &[(&str, f64)], is_digit: fn(char) -> bool) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c| !is_digit(c))?);
        let (unit, after) = after.split_at(after.find(is_digit).unwrap_or(after.len()));
        let (_, seconds) = units.iter().find(|(name, _)| *name == unit)?;
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sums_of_whole_numbers_with_units() {
        for (text, seconds) in [
            ("10s", Some(10)),
            ("1h30m", Some(5_400)),
            ("1d10h30m", Some(124_200)),
            ("2d", Some(172_800)),
            ("0s", Some(0)),
            ("10", None),
            ("", None),
            ("s", None),
            ("1.5h", None),
            ("10ms", None),
            ("1h 30m", None),
            ("-5s", None),
            ("99999999999999999999999s", None),
        ] {
            assert_eq!(
                parse_option(text),
                seconds.map(Duration::from_secs),
                "{text}"
            );
        }
    }

    #[test]
    fn answers_are_written_as_go_writes_them() {
        for (text, millis) in [
            ("6m5s", Some(365_000)),
            ("250ms", Some(250)),
            ("1.5s", Some(1_500)),
            ("1h", Some(3_600_000)),
            ("2d", None),
            ("1.2.3s", None),
            (".", None),
        ] {
            assert_eq!(
                parse_answer(text),
                millis.map(Duration::from_millis),
                "{text}"
            );
        }
    }
}
