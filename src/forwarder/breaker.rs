//! The circuit breaker: whether anything may be published now. Pure; time is an argument.
//!
//! Closed: all flows. Open: nothing is sent until an instant. Half-open: one trial is out,
//! and its outcome decides. What is open stays open for ever, if need be: events are kept.

use std::time::{Duration, Instant};

use super::backoff;

/// The shortest time that QStash is given to answer.
const LEAST_PATIENCE: Duration = Duration::from_secs(4);

/// The longest.
const MOST_PATIENCE: Duration = Duration::from_secs(30);

/// Why nothing flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// QStash is not reached, or answers nonsense.
    Unreachable,
    /// The token is refused.
    Unauthorized,
    /// QStash said "too many" and maybe until when.
    Limited,
}

/// What may be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permit {
    /// Publish whatever there is.
    Flow,
    /// Publish one event, then call [`Breaker::trial_started`].
    Trial,
    /// Nothing before this instant.
    Wait(Instant),
    /// Nothing until the trial is back.
    WaitForTrial,
}

/// What a failure or success changed; each is logged once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Opened,
    CauseChanged,
    Closed,
}

#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// How long the last answer took: a slow QStash is given more time than a fast one.
    last_answer: Duration,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    Open {
        cause: Cause,
        since: Instant,
        until: Instant,
        tried: u32,
    },
    HalfOpen {
        cause: Cause,
        since: Instant,
        tried: u32,
    },
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self {
            state: State::Closed,
            last_answer: Duration::ZERO,
        }
    }

    pub(super) fn permit(&self, now: Instant) -> Permit {
        match self.state {
            State::Closed => Permit::Flow,
            State::Open { until, .. } if until <= now => Permit::Trial,
            State::Open { until, .. } => Permit::Wait(until),
            State::HalfOpen { .. } => Permit::WaitForTrial,
        }
    }

    /// Why nothing flows; `None` while it does.
    pub(super) fn cause(&self) -> Option<Cause> {
        match self.state {
            State::Closed => None,
            State::Open { cause, .. } | State::HalfOpen { cause, .. } => Some(cause),
        }
    }

    /// How long QStash may take to answer now. At first not long, so that a hanging server is
    /// noticed; the longer nothing gets through, the more, in case it is only slow.
    pub(super) fn patience(&self, now: Instant) -> Duration {
        let waited = match self.state {
            State::Closed => Duration::ZERO,
            State::Open { since, .. } | State::HalfOpen { since, .. } => {
                now.saturating_duration_since(since) / 8
            }
        };
        waited
            .max(self.last_answer * 2)
            .clamp(LEAST_PATIENCE, MOST_PATIENCE)
    }

    // open → half-open
    pub(super) fn trial_started(&mut self) {
        if let State::Open {
            cause,
            since,
            tried,
            ..
        } = self.state
        {
            self.state = State::HalfOpen {
                cause,
                since,
                tried,
            };
        }
    }

    /// The trial could not be made (its event was gone): the next may be.
    pub(super) fn trial_void(&mut self, now: Instant) {
        if let State::HalfOpen {
            cause,
            since,
            tried,
        } = self.state
        {
            self.state = State::Open {
                cause,
                since,
                until: now,
                tried,
            };
        }
    }

    /// There is a reason to try now, such as a new token.
    pub(super) fn try_now(&mut self, now: Instant) {
        if let State::Open {
            until,
            cause: Cause::Unauthorized | Cause::Unreachable,
            ..
        } = &mut self.state
        {
            *until = now;
        }
    }

    // closed → open; half-open → open
    pub(super) fn failed(
        &mut self,
        cause: Cause,
        wait: Option<Duration>,
        jitter: f64,
        now: Instant,
    ) -> Change {
        let (before, since, tried) = match self.state {
            State::Closed => (None, now, 0),
            State::HalfOpen {
                cause,
                since,
                tried,
            } => (Some(cause), since, tried.saturating_add(1)),
            // One that was sent before it opened: it tells nothing new, unless it was told when.
            State::Open {
                cause: before,
                since,
                until,
                tried,
            } => {
                if let Some(later) = wait.map(|wait| now + wait).filter(|later| *later > until) {
                    self.state = State::Open {
                        cause,
                        since,
                        until: later,
                        tried,
                    };
                    return if before == cause {
                        Change::None
                    } else {
                        Change::CauseChanged
                    };
                }
                return Change::None;
            }
        };
        let until = now + wait.unwrap_or_else(|| backoff::wait(tried, jitter));
        self.state = State::Open {
            cause,
            since,
            until,
            tried,
        };
        match before {
            None => Change::Opened,
            Some(before) if before != cause => Change::CauseChanged,
            Some(_) => Change::None,
        }
    }

    // half-open → closed; open → closed
    pub(super) fn succeeded(&mut self, took: Duration) -> Change {
        match self.state {
            // One that was sent before: it does not tell that the token is right again, or
            // that the limit is over.
            State::Open {
                cause: Cause::Unauthorized | Cause::Limited,
                ..
            } => Change::None,
            State::Closed => {
                self.last_answer = took;
                Change::None
            }
            State::Open { .. } | State::HalfOpen { .. } => {
                self.state = State::Closed;
                self.last_answer = took;
                Change::Closed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_trial_at_a_time_decides() {
        let start = Instant::now();
        let mut breaker = Breaker::new();
        assert_eq!(breaker.permit(start), Permit::Flow);
        assert_eq!(
            breaker.failed(Cause::Unreachable, None, 1.0, start),
            Change::Opened
        );
        let Permit::Wait(until) = breaker.permit(start) else {
            panic!()
        };
        assert_eq!(breaker.permit(until), Permit::Trial);
        breaker.trial_started();
        assert_eq!(breaker.permit(until + 100 * SECOND), Permit::WaitForTrial);
        assert_eq!(
            breaker.failed(Cause::Unreachable, None, 1.0, until),
            Change::None
        );
        let Permit::Wait(later) = breaker.permit(until) else {
            panic!()
        };
        assert!(later - until > until - start, "the waits grow");
        breaker.trial_started();
        assert_eq!(breaker.succeeded(SECOND), Change::Closed);
        assert_eq!(breaker.permit(later), Permit::Flow);
    }

    #[test]
    fn requests_sent_before_it_opened_change_no_wait() {
        let start = Instant::now();
        let mut breaker = Breaker::new();
        breaker.failed(Cause::Unreachable, None, 1.0, start);
        let before = breaker.permit(start);
        for _ in 0..7 {
            assert_eq!(
                breaker.failed(Cause::Unreachable, None, 1.0, start),
                Change::None
            );
        }
        assert_eq!(breaker.permit(start), before);
    }

    #[test]
    fn a_limit_is_waited_for_whatever_else_happens() {
        let start = Instant::now();
        let mut breaker = Breaker::new();
        breaker.failed(Cause::Limited, Some(3600 * SECOND), 0.0, start);
        assert_eq!(breaker.succeeded(SECOND), Change::None);
        breaker.failed(Cause::Unreachable, None, 0.0, start + SECOND);
        breaker.try_now(start + SECOND);
        assert_eq!(
            breaker.permit(start + 3599 * SECOND),
            Permit::Wait(start + 3600 * SECOND)
        );
        assert_eq!(breaker.permit(start + 3600 * SECOND), Permit::Trial);
    }

    #[test]
    fn a_new_token_is_tried_at_once() {
        let start = Instant::now();
        let mut breaker = Breaker::new();
        breaker.failed(Cause::Unauthorized, Some(60 * SECOND), 1.0, start);
        breaker.try_now(start);
        assert_eq!(breaker.permit(start), Permit::Trial);
    }

    #[test]
    fn patience_grows_with_the_outage_and_with_slow_answers() {
        let start = Instant::now();
        let mut breaker = Breaker::new();
        assert_eq!(breaker.patience(start), LEAST_PATIENCE);
        breaker.failed(Cause::Unreachable, None, 0.0, start);
        assert_eq!(breaker.patience(start + SECOND), LEAST_PATIENCE);
        assert_eq!(breaker.patience(start + 80 * SECOND), 10 * SECOND);
        assert_eq!(breaker.patience(start + 6000 * SECOND), MOST_PATIENCE);
        breaker.trial_started();
        breaker.succeeded(8 * SECOND);
        assert_eq!(breaker.patience(start), 16 * SECOND);
    }
}
