//! How long to wait after a failure: exponential with full jitter. Pure; the randomness is
//! an argument.

use std::time::Duration;

/// The longest first wait.
const BASE: Duration = Duration::from_millis(200);

/// Growth from one wait to the next. With full jitter the longest next wait is about a third
/// of what has passed since the first failure, so an outage of a few seconds is noticed to
/// be over within seconds, and one of an hour within [`LONGEST`].
const FACTOR: f64 = 1.2;

/// No wait is longer.
const LONGEST: Duration = Duration::from_secs(60);

/// The wait before try number `tried` (from 0), for a `jitter` of 0 to 1.
pub(super) fn wait(tried: u32, jitter: f64) -> Duration {
    // Beyond this power the bound is reached long since, and the float stays finite.
    let growth = FACTOR.powi(i32::try_from(tried.min(100)).unwrap_or(100));
    BASE.mul_f64(growth)
        .min(LONGEST)
        .mul_f64(jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_never_beyond() {
        let mut before = Duration::ZERO;
        for tried in 0..=50 {
            let longest = wait(tried, 1.0);
            assert!(longest >= before && longest <= LONGEST);
            before = longest;
        }
        assert_eq!(before, LONGEST);
        assert_eq!(wait(u32::MAX, 1.0), LONGEST);
    }

    #[test]
    fn jitter_spreads_over_the_whole_wait() {
        assert_eq!(wait(5, 0.0), Duration::ZERO);
        assert!(wait(5, 0.5) < wait(5, 1.0));
        assert_eq!(wait(5, f64::NAN.max(2.0)), wait(5, 1.0));
    }

    #[test]
    fn a_short_outage_is_noticed_to_be_over_soon() {
        // The longest next wait is bounded by a share of the time that has passed.
        let mut passed = Duration::ZERO;
        for tried in 0..30 {
            assert!(
                wait(tried, 1.0) <= passed.mul_f64(0.45) + BASE,
                "try {tried} after {passed:?}"
            );
            passed += wait(tried, 0.5);
        }
    }
}
