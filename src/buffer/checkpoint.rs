//! When the log is copied into the file, and by whom.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::warn;

use super::Settings;
use super::store::{PAGE_SIZE, Store, StoreError};

/// Frames of the log on a full disk.
const FEW_FRAMES: u32 = 32;

/// How often a writer that waits for a pass looks whether it is over.
const PASS_LOOK: Duration = Duration::from_millis(1);

/// The copying of the log into the file, off the ack path: a second connection copies while
/// commits go on, and the writer only finishes what came meanwhile. Inline it would cost
/// 8 to 14 ms in some commit.
pub(super) struct Copying {
    wake: Option<mpsc::SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    progress: Arc<Progress>,
    /// Frames of the log after which the checkpointer copies them into the file. They are few:
    /// a pass ends with an fsync of what it has written, and commits meanwhile wait for the disk.
    pass: u32,
    /// Frames of the log after which it is finished, once no more than those of a pass are left.
    enough: u32,
    /// A log this long is finished by the writer whatever it costs: it stays bounded, and fits
    /// into the reserve.
    longest: u32,
}

#[derive(Default)]
struct Progress {
    running: AtomicBool,
    /// Frames of the log that the last pass has left in the file; 0 once it is begun anew.
    copied: AtomicU32,
    /// What the writer has to begin anew for: an fsync of the file that failed lost what passes
    /// before it have copied.
    failed: Mutex<Option<StoreError>>,
}

impl Progress {
    fn failure(&self) -> MutexGuard<'_, Option<StoreError>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copying {
    /// `reserve` is how many bytes of the log a full disk would still let into the file.
    pub(super) fn start(store: &Store, settings: &Settings, reserve: u64) -> Self {
        let mut copying = Self::by_writer(reserve);
        let started = store
            .checkpointer(&settings.path)
            .map_err(|error| error.to_string())
            .and_then(|checkpointer| {
                let spawned = copying.spawn(move || checkpointer.run());
                spawned.map_err(|error| error.to_string())
            });
        if let Err(error) = started {
            // Slower answers now and then, but no event is at risk.
            warn!(error, "No thread for checkpoints, the writer does them");
        }
        copying
    }

    /// Without a checkpointer.
    fn by_writer(reserve: u64) -> Self {
        let longest = u32::try_from(reserve / u64::from(PAGE_SIZE)).unwrap_or(u32::MAX);
        let enough = longest / 2;
        Self {
            wake: None,
            thread: None,
            progress: Arc::default(),
            pass: enough / 4,
            enough,
            longest,
        }
    }

    /// From now on `pass` copies, in a thread of its own. It says how many frames of the log are in
    /// the file then.
    fn spawn(
        &mut self,
        pass: impl Fn() -> Result<u32, StoreError> + Send + 'static,
    ) -> std::io::Result<()> {
        let (wake, woken) = mpsc::sync_channel(1);
        let progress = Arc::clone(&self.progress);
        let thread = std::thread::Builder::new()
            .name("buffer-checkpoint".to_owned())
            .spawn(move || {
                while woken.recv().is_ok() {
                    // A panic is a mistake of ours. Without this the writer would wait for a pass
                    // that never ends.
                    let passed = catch_unwind(AssertUnwindSafe(&pass));
                    match passed.unwrap_or(Err(StoreError::Panicked)) {
                        Ok(copied) => progress.copied.store(copied, Ordering::Relaxed),
                        Err(error) if error.may_pass() => warn!(
                            error = &error as &dyn std::error::Error,
                            "Checkpoint failed, will try again"
                        ),
                        Err(error) => *progress.failure() = Some(error),
                    }
                    progress.running.store(false, Ordering::Release);
                }
            })?;
        (self.wake, self.thread) = (Some(wake), Some(thread));
        Ok(())
    }

    /// Between two commits: starts a pass, or finishes one. Without a reserve the log must not
    /// grow beyond the room that it has.
    pub(super) fn step(&mut self, store: &Store, has_reserve: bool) -> Result<(), StoreError> {
        let frames = store.log_frames();
        let (enough, longest) = match has_reserve {
            true => (self.enough, self.longest),
            false => (FEW_FRAMES, FEW_FRAMES),
        };
        if self.is_running() && frames < longest {
            return Ok(());
        }
        // The disk does not keep up: the log stays bounded, and the senders wait.
        while self.is_running() {
            std::thread::park_timeout(PASS_LOOK);
        }
        // Only now, since the pass that was waited for may have failed.
        if let Some(error) = self.progress.failure().take() {
            return Err(error);
        }
        let copied = &self.progress.copied;
        if copied.load(Ordering::Relaxed) > frames {
            copied.store(0, Ordering::Relaxed);
        }
        let left = frames - copied.load(Ordering::Relaxed);
        let is_nearly_done = left <= self.pass || self.wake.is_none();
        if frames >= longest || (frames >= enough && is_nearly_done) {
            copied.store(0, Ordering::Relaxed);
            return store.finish_checkpoint();
        }
        if let Some(wake) = &self.wake
            && left >= self.pass
        {
            self.progress.running.store(true, Ordering::Release);
            wake.try_send(()).ok(); // it is only full when a pass is due anyway
        }
        Ok(())
    }

    /// Waits for the checkpointer: whoever closes the buffer may rely on nobody using the file.
    /// Whether it failed at last.
    pub(super) fn end(&mut self) -> bool {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok(); // its panic has been reported by the panic hook
        }
        self.progress.failure().is_some()
    }

    fn is_running(&self) -> bool {
        self.progress.running.load(Ordering::Acquire)
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Of the log, in frames.
    const BOUND: u32 = 16;

    /// What the writer is told, and how long the log is then, when each pass ends so. A pass knows
    /// how long the log is.
    fn told(
        pass: impl Fn(&AtomicU32) -> Result<u32, StoreError> + Send + 'static,
    ) -> (StoreError, u32) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("buffer.db"), true).unwrap();
        let mut copying = Copying::by_writer(u64::from(BOUND * PAGE_SIZE));
        let frames = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&frames);
        copying.spawn(move || pass(&seen)).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            assert!(Instant::now() < until, "nothing");
            store.probe().unwrap();
            frames.store(store.log_frames(), Ordering::Relaxed);
            if let Err(error) = copying.step(&store, true) {
                return (error, store.log_frames());
            }
        }
    }

    #[test]
    fn a_pass_that_fails_while_the_writer_waits_for_it_is_told_before_more_is_copied() {
        let (error, frames) = told(|frames| {
            while frames.load(Ordering::Relaxed) < BOUND {
                std::thread::park_timeout(PASS_LOOK);
            }
            std::thread::park_timeout(50 * PASS_LOOK); // the writer waits
            Err(StoreError::Sync(std::io::Error::other("EIO")))
        });
        assert!(matches!(error, StoreError::Sync(_)), "{error}");
        assert_eq!(frames, BOUND);
    }

    #[test]
    fn a_pass_that_panics_does_not_keep_the_writer_waiting() {
        let (error, _) = told(|_| panic!("as the test wants it"));
        assert!(matches!(error, StoreError::Panicked), "{error}");
    }
}
