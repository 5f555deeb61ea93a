//! How many in each of the last sixty minutes, for the plot that a person looks at. Prometheus
//! has its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// So many minutes are known.
pub const MINUTES: usize = 60;

/// Each slot holds the number of its minute above, and the count of that minute below.
const COUNT_BITS: u32 = 40;

/// Counts by the minute, without a lock, since the start.
#[derive(Debug)]
pub struct Minutes {
    started: Instant,
    slots: [AtomicU64; MINUTES],
}

impl Default for Minutes {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            slots: [const { AtomicU64::new(0) }; MINUTES],
        }
    }
}

impl Minutes {
    /// One more, now.
    pub fn add(&self) {
        self.add_at(self.started.elapsed());
    }

    /// The last sixty minutes, the one that is not over last.
    pub fn counts(&self) -> Vec<u64> {
        self.counts_at(self.started.elapsed())
    }

    fn add_at(&self, elapsed: Duration) {
        let minute = minute(elapsed);
        let Some(slot) = self.slot(minute) else {
            return;
        };
        let counted = |held: u64| match held >> COUNT_BITS == minute {
            true => Some(held + 1),
            false => Some((minute << COUNT_BITS) + 1),
        };
        slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted)
            .ok(); // it always gives something
    }

    fn counts_at(&self, elapsed: Duration) -> Vec<u64> {
        let now = minute(elapsed);
        let minutes = (0..MINUTES as u64).rev().map(|ago| now.checked_sub(ago));
        minutes
            .map(|minute| {
                let held = minute.and_then(|minute| Some((minute, self.slot(minute)?)));
                held.map_or(0, |(minute, slot)| {
                    let held = slot.load(Ordering::Relaxed);
                    match held >> COUNT_BITS == minute {
                        true => held & ((1 << COUNT_BITS) - 1),
                        false => 0,
                    }
                })
            })
            .collect()
    }

    fn slot(&self, minute: u64) -> Option<&AtomicU64> {
        let at = usize::try_from(minute).ok()? % MINUTES;
        self.slots.get(at)
    }
}

fn minute(elapsed: Duration) -> u64 {
    elapsed.as_secs() / 60
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_minute_has_its_count_and_an_old_one_makes_room() {
        let minutes = Minutes::default();
        let at = |minute: u64| Duration::from_secs(minute * 60 + 7);
        for (minute, count) in [(0, 3), (1, 1), (59, 2)] {
            (0..count).for_each(|_| minutes.add_at(at(minute)));
        }
        let counts = minutes.counts_at(at(59));
        assert_eq!(
            (counts.len(), counts[0], counts[1], counts[59]),
            (60, 3, 1, 2)
        );
        minutes.add_at(at(60));
        let counts = minutes.counts_at(at(60));
        assert_eq!((counts[0], counts[58], counts[59]), (1, 2, 1));
        assert_eq!(minutes.counts_at(at(500)), [0; 60]);
        assert_eq!(
            minutes.counts_at(at(0)).iter().sum::<u64>(),
            0,
            "the slot is the 60th's"
        );
    }
}
