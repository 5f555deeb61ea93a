//! Turns: while events come in, publishing waits for its own.
//!
//! What is not durable yet is in Strapi's memory only, so answers come first. Published one by
//! one, new events would take the processor from the next ones' answers several times over; a
//! batch of those of a few milliseconds costs little more than one of them, and with QStash many
//! times as far away nobody sees that they waited. An event that comes alone goes at once, and
//! a backlog with nothing coming in goes as fast as it can.

use std::time::{Duration, Instant};

use super::window::MAX_BATCH;

/// Between two turns while events come in. With a full batch in each, 6,600 events a second.
const REST: Duration = Duration::from_millis(15);

/// More than this a second is a burst: it is over the sooner the less it is disturbed. Strapi's
/// five connections bring less.
const BURST: f64 = 10_000.0;

/// Between two turns in a burst.
const LONG_REST: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Option<Turn>,
    next: Option<Instant>,
}

#[derive(Debug)]
struct Turn {
    at: Instant,
    /// How many events had ever come.
    accepted: i64,
}

impl Pace {
    /// Until when nothing is to be started.
    pub(super) fn rest(&self, now: Instant) -> Option<Instant> {
        self.next.filter(|next| *next > now)
    }

    /// Begins a turn, with `accepted` events having ever come. Returns how many may be published
    /// in it while more come in; `None`: none came since the last, and there is no limit.
    pub(super) fn turn(&mut self, accepted: i64, now: Instant) -> Option<usize> {
        let last = self.last.replace(Turn { at: now, accepted });
        let rest = last.map_or(Some(REST), |last| {
            let (came, took) = (accepted - last.accepted, now - last.at);
            match came {
                0 => None,
                _ if came as f64 > BURST * took.as_secs_f64() => Some(LONG_REST),
                _ => Some(REST),
            }
        });
        self.next = rest.map(|rest| now + rest);
        rest.map(|_| MAX_BATCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_comes_alone_goes_at_once_and_others_share_the_next_turn() {
        let mut pace = Pace::default();
        let start = Instant::now();
        assert_eq!(pace.rest(start), None);
        assert_eq!(pace.turn(1, start), Some(MAX_BATCH));
        let soon = start + REST / 2;
        assert_eq!(pace.rest(soon), Some(start + REST));
        let next = start + REST;
        assert_eq!(pace.rest(next), None);
        assert_eq!(pace.turn(40, next), Some(MAX_BATCH), "39 came meanwhile");
        assert_eq!(pace.rest(next), Some(next + REST));
    }

    #[test]
    fn a_burst_is_let_in_first() {
        let mut pace = Pace::default();
        let start = Instant::now();
        pace.turn(1, start);
        let next = start + REST;
        pace.turn(201, next);
        assert_eq!(pace.rest(next), Some(next + LONG_REST), "200 in 15 ms");
        let later = next + LONG_REST;
        pace.turn(601, later);
        assert_eq!(pace.rest(later), Some(later + REST), "400 in 50 ms");
    }

    #[test]
    fn without_new_events_a_backlog_has_no_turns() {
        let mut pace = Pace::default();
        let start = Instant::now();
        pace.turn(1_000, start);
        let quiet = start + REST;
        assert_eq!(pace.turn(1_000, quiet), None);
        assert_eq!(pace.rest(quiet), None);
    }
}
