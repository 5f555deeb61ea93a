//! How much of the bodies may be in memory at a time: whoever does not fit waits, since
//! Strapi gives an answer 10 s and a refusal would lose the event.
//!
//! Small bodies have room of their own, so that no large one makes them wait.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A body up to this size is small. Nearly all are: 2 KB are typical.
pub(super) const SMALL: u64 = 64 << 10;

/// Bytes of all small bodies together.
const ALL_SMALL: u64 = 4 << 20;

/// Bytes of all large bodies together, unless one alone may have more.
const ALL_LARGE: u64 = 32 << 20;

/// Room is counted in steps of so many bytes, since a semaphore counts to 2^29 at least.
const STEP: u64 = 1 << 10;

#[derive(Debug)]
pub(crate) struct Admission {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// The steps of the largest body.
    largest: u32,
}

/// Room for a body, until it is dropped.
#[derive(Debug)]
pub(crate) struct Room(
    #[expect(dead_code, reason = "it is given back when dropped")] Option<OwnedSemaphorePermit>,
);

impl Admission {
    pub(crate) fn new(max_body: u64) -> Self {
        let pool = |bytes: u64| {
            let steps = usize::try_from(bytes / STEP).unwrap_or(Semaphore::MAX_PERMITS);
            Arc::new(Semaphore::new(steps.min(Semaphore::MAX_PERMITS)))
        };
        let all_large = ALL_LARGE.max(max_body.saturating_add(STEP));
        Self {
            small: pool(ALL_SMALL),
            large: pool(all_large),
            largest: steps(max_body),
        }
    }

    /// Waits until there is room for a body of so many bytes.
    pub(super) async fn room(&self, size: u64) -> Room {
        let pool = if size <= SMALL {
            &self.small
        } else {
            &self.large
        };
        let steps = steps(size).min(self.largest.max(1));
        // An error means that the pool is closed, which it never is.
        Room(Arc::clone(pool).acquire_many_owned(steps).await.ok())
    }
}

fn steps(size: u64) -> u32 {
    u32::try_from(size / STEP + 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn large_bodies_wait_for_each_other_and_small_ones_do_not() {
        let admission = Admission::new(32 << 20);
        let wait = Duration::from_millis(20);
        let first = admission.room(30 << 20).await;
        assert!(timeout(wait, admission.room(30 << 20)).await.is_err());
        let small = timeout(wait, admission.room(2_000)).await;
        assert!(small.is_ok());
        drop(first);
        assert!(timeout(wait, admission.room(30 << 20)).await.is_ok());
    }

    #[tokio::test]
    async fn the_largest_body_always_fits_whatever_the_limit() {
        for max_body in [1, 1 << 10, 32 << 20, 1 << 30, 1 << 40] {
            let admission = Admission::new(max_body);
            let room = timeout(Duration::from_secs(5), admission.room(max_body)).await;
            assert!(room.is_ok(), "{max_body}");
        }
    }
}
