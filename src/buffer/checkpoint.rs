//! When the log is copied into the file, and by whom.

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
        let progress = Arc::new(Progress::default());
        let frame = u64::from(PAGE_SIZE);
        let longest = u32::try_from(reserve / frame).unwrap_or(u32::MAX);
        let enough = longest / 2;
        let (wake, woken) = mpsc::sync_channel(1);
        let started = store
            .checkpointer(&settings.path)
            .map_err(|error| error.to_string())
            .and_then(|checkpointer| {
                let progress = Arc::clone(&progress);
                std::thread::Builder::new()
                    .name("buffer-checkpoint".to_owned())
                    .spawn(move || {
                        while woken.recv().is_ok() {
                            match checkpointer.run() {
                                Ok(copied) => progress.copied.store(copied, Ordering::Relaxed),
                                Err(error) if error.may_pass() => warn!(
                                    error = &error as &dyn std::error::Error,
                                    "Checkpoint failed, will try again"
                                ),
                                Err(error) => *progress.failure() = Some(error),
                            }
                            progress.running.store(false, Ordering::Release);
                        }
                    })
                    .map_err(|error| error.to_string())
            });
        match started {
            Ok(thread) => Self {
                wake: Some(wake),
                thread: Some(thread),
                progress,
                pass: enough / 4,
                enough,
                longest,
            },
            Err(error) => {
                // Slower answers now and then, but no event is at risk.
                warn!(error, "No thread for checkpoints, the writer does them");
                Self {
                    wake: None,
                    thread: None,
                    progress,
                    pass: enough / 4,
                    enough,
                    longest,
                }
            }
        }
    }

    /// Between two commits: starts a pass, or finishes one. Without a reserve the log must not
    /// grow beyond the room that it has.
    pub(super) fn step(&mut self, store: &Store, has_reserve: bool) -> Result<(), StoreError> {
        if let Some(error) = self.progress.failure().take() {
            return Err(error);
        }
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
