//! Tidying: history that is older than it is kept goes, and the pages that this frees go back
//! to the file system.
//!
//! In small steps between commits. Each step is a commit of its own, for which a sender waits that
//! comes meanwhile; so while events come there are only as many as keep up with them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::info;

use super::opening::Failure;
use super::store::{PURGE_BYTES, PURGE_ROWS, StoreError};
use super::writer::Writer;
use crate::clock;

/// Bytes of events that come between two steps, when nothing waits after them: a step may remove
/// twice as much.
const BESIDE_EVENTS: u64 = PURGE_BYTES / 2;

/// What an event counts for at least, so that steps keep up with many small ones too.
const SMALL_EVENT: u64 = PURGE_BYTES / PURGE_ROWS as u64;

/// How often a long purge is told.
const TELL: Duration = Duration::from_secs(10);

/// What is to be tidied.
#[derive(Debug)]
pub(super) struct Tidying {
    /// Whether there may be history to remove or free pages to give back.
    is_wanted: bool,
    /// Whether the last that came was no event.
    is_quiet: bool,
    /// Bytes of the events since the last step.
    came: u64,
    purge: Option<Purge>,
}

/// A purge of old history that goes on.
#[derive(Debug)]
struct Purge {
    /// When it began, or was told last.
    told: Instant,
    /// How many events had ever been removed when it began.
    began_at: i64,
    is_long: bool,
}

impl Default for Tidying {
    /// As a file is opened.
    fn default() -> Self {
        Self {
            is_wanted: true,
            is_quiet: true,
            came: 0,
            purge: None,
        }
    }
}

impl Tidying {
    pub(super) fn begin(&mut self) {
        self.is_wanted = true;
    }

    /// A group came: the sizes of its events, of which there may be none.
    pub(super) fn events(&mut self, sizes: impl ExactSizeIterator<Item = usize>) {
        self.is_quiet = sizes.len() == 0;
        self.came += sizes
            .map(|size| (size as u64).max(SMALL_EVENT))
            .sum::<u64>();
    }

    /// Whether it is time for a step, while something `waits` or not.
    pub(super) fn is_due(&self, waits: bool) -> bool {
        let is_time = match waits {
            false => self.is_quiet || self.came >= BESIDE_EVENTS,
            // Else it would never come, and history grow, where something always waits.
            true => self.came >= PURGE_BYTES,
        };
        self.is_wanted && is_time
    }
}

impl Writer<'_> {
    /// One step.
    pub(super) fn tidy(&mut self) -> Result<(), Failure> {
        if !self.store.is_in_place() {
            return Err(Arc::new(StoreError::Moved));
        }
        self.tidying.came = 0;
        self.tidying.is_wanted = match self.tidy_some() {
            // It needs room itself; what is stored is as safe as before.
            Err(StoreError::DiskFull) => false,
            more => more?,
        };
        Ok(())
    }

    /// Whether there may be more.
    fn tidy_some(&mut self) -> Result<bool, StoreError> {
        let more = self.purge_old()? || self.store.shrink()?;
        self.copying.step(&self.store, self.reserve.is_held())?;
        Ok(more)
    }

    /// A step of the purge; whether there may be more. One that takes long is told.
    fn purge_old(&mut self) -> Result<bool, StoreError> {
        let before = clock::now().minus(self.settings.keep_delivered);
        let began_at = self.store.tally().forgotten;
        let more = self.purge(before)?;
        let forgotten = self.store.tally().forgotten;
        let purging = self.tidying.purge.take();
        if !more {
            if let Some(ended) = purging.filter(|purge| purge.is_long) {
                info!(
                    events = forgotten - ended.began_at,
                    "Removed deliveries that were older than they are kept"
                );
            }
            return Ok(false);
        }
        let mut purge = purging.unwrap_or_else(|| Purge {
            told: Instant::now(),
            began_at,
            is_long: false,
        });
        if purge.told.elapsed() >= TELL {
            (purge.told, purge.is_long) = (Instant::now(), true);
            info!(
                events = forgotten - purge.began_at,
                "Removing deliveries that are older than they are kept"
            );
        }
        self.tidying.purge = Some(purge);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is due after groups of so many events of a size: when nothing waits, and else.
    fn due_after(groups: &[usize], size: u64) -> (bool, bool) {
        let mut tidying = Tidying::default();
        for count in groups {
            let size = usize::try_from(size).unwrap();
            tidying.events(std::iter::repeat_n(size, *count));
        }
        (tidying.is_due(false), tidying.is_due(true))
    }

    #[test]
    fn steps_keep_up_with_what_comes_and_no_more() {
        assert_eq!(due_after(&[], 0), (true, false), "a file just opened");
        assert_eq!(due_after(&[5, 26], 2_000), (false, false));
        assert_eq!(due_after(&[5, 27], 2_000), (true, false));
        assert_eq!(due_after(&[32, 32], 2_000), (true, true));
        assert_eq!(due_after(&[5, 0], 2_000), (true, false), "none came last");
        assert_eq!(due_after(&[1, 1], PURGE_BYTES / 4), (true, false));
        assert_eq!(due_after(&[1, 1], PURGE_BYTES / 2), (true, true));
    }
}
