//! The writer: the one thread that changes the file.
//!
//! Group commit without a timer: it takes whatever waits, commits it with one fdatasync,
//! and answers each caller after that. A full disk is an answer; any other failed commit
//! ends the connection (after a failed fsync the page cache cannot be trusted), and the
//! file is opened again from what the disk really holds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as sync_mpsc};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::store::{Checkpointer, Store, StoreError};
use super::{AppendError, Fate, Health, NewEvent, Settings, Settlement, Tally};
use crate::clock;

/// Commands in one commit. More would only make the first of them wait longer: the cost of
/// the fdatasync is spread thinly enough at this.
const MAX_GROUP: usize = 256;

/// Frames of the log after which it is copied into the file, by the checkpointer.
const CHECKPOINT_FRAMES: u32 = 4_000;

/// How many frames the writer copies itself to let the log begin anew; with more, the
/// checkpointer goes once more.
const FINISH_FRAMES: u32 = 1_000;

/// A log this long is finished by the writer whatever it costs, so that it stays bounded.
const LONGEST_LOG: u32 = 16_000;

/// How often a writer that waits for a pass looks whether it is over.
const PASS_LOOK: Duration = Duration::from_millis(1);

/// Between two tries to open the file again.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);

/// What the writer is asked to do.
pub(super) enum Command {
    Append {
        event: Box<NewEvent>,
        done: oneshot::Sender<Result<(), AppendError>>,
    },
    Settle {
        settlements: Vec<Settlement>,
        done: oneshot::Sender<Result<(), AppendError>>,
    },
    Tidy,
    Probe {
        done: oneshot::Sender<()>,
    },
    Close,
    #[cfg(test)]
    Panic,
}

/// What the writer tells the handles.
pub(super) struct Shared {
    pub(super) health: watch::Sender<Health>,
    pub(super) tally: Mutex<Tally>,
    pub(super) appended: Notify,
    pub(super) accepted: AtomicU64,
}

impl Shared {
    pub(super) fn new(tally: Tally) -> Self {
        Self {
            health: watch::Sender::new(Health::Writable),
            tally: Mutex::new(tally),
            appended: Notify::new(),
            accepted: AtomicU64::new(0),
        }
    }

    /// Each change is logged once, here, and not at each event that meets it.
    fn set_health(&self, health: Health) {
        let changed = self
            .health
            .send_if_modified(|now| std::mem::replace(now, health) != health);
        match health {
            _ if !changed => {}
            Health::Writable => info!("Buffer takes events again"),
            Health::Full => warn!("Buffer is full, events are published straight away"),
            Health::Failed => error!("Buffer cannot be used, events are published straight away"),
        }
    }
}

/// Runs until it is told to close or all handles are gone.
pub(super) fn run(
    mut store: Store,
    mut commands: mpsc::Receiver<Command>,
    shared: &Shared,
    settings: &Settings,
) {
    loop {
        let mut writer = Writer {
            store,
            shared,
            settings,
            tidying: true,
            copying: Copying::start(settings),
        };
        // A panic is a mistake of ours: what was committed stands, and what was not has had no
        // answer. Without this the sidecar would go on with nobody writing.
        let served = catch_unwind(AssertUnwindSafe(|| writer.serve(&mut commands)));
        match served.unwrap_or_else(|_panic| Ended::Failed(Arc::new(StoreError::Panicked))) {
            Ended::Closed => return,
            Ended::Failed(cause) => {
                error!(
                    error = &*cause as &dyn std::error::Error,
                    "Commit failed, opening the buffer again"
                );
                shared.set_health(Health::Failed);
                drop(writer);
                match reopen(&mut commands, settings, cause) {
                    Some(reopened) => store = reopened,
                    None => return,
                }
                shared.set_health(Health::Writable);
            }
        }
    }
}

/// Tries to open the file until it works; meanwhile whoever asks is told that it does not,
/// so that events are published straight away. `None` when the buffer was closed.
fn reopen(
    commands: &mut mpsc::Receiver<Command>,
    settings: &Settings,
    mut cause: Failure,
) -> Option<Store> {
    loop {
        loop {
            match commands.try_recv() {
                Ok(Command::Append { done, .. } | Command::Settle { done, .. }) => {
                    done.send(Err(AppendError::Commit(Arc::clone(&cause)))).ok(); // the caller may have gone
                }
                Ok(Command::Close) | Err(mpsc::error::TryRecvError::Disconnected) => return None,
                Ok(Command::Tidy | Command::Probe { .. }) => {}
                #[cfg(test)]
                Ok(Command::Panic) => {}
                Err(mpsc::error::TryRecvError::Empty) => break,
            }
        }
        match Store::open(&settings.path, !settings.keep_delivered.is_zero()) {
            Ok(store) => return Some(store),
            Err(error) => cause = Arc::new(error),
        }
        std::thread::park_timeout(REOPEN_PAUSE);
    }
}

enum Ended {
    Closed,
    Failed(Failure),
}

struct Writer<'a> {
    store: Store,
    shared: &'a Shared,
    settings: &'a Settings,
    /// Whether there may be history to remove or free pages to give back.
    tidying: bool,
    copying: Copying,
}

impl Writer<'_> {
    fn serve(&mut self, commands: &mut mpsc::Receiver<Command>) -> Ended {
        let mut group = Vec::with_capacity(MAX_GROUP);
        loop {
            if self.tidying && commands.is_empty() {
                match self.tidy_step() {
                    Ok(more) => self.tidying = more,
                    // It needs room itself; what is stored is as safe as before.
                    Err(failure) if is_full(&failure) => self.tidying = false,
                    Err(failure) => return Ended::Failed(failure),
                }
                if self.tidying {
                    continue;
                }
            }
            if commands.blocking_recv_many(&mut group, MAX_GROUP) == 0 {
                return Ended::Closed;
            }
            match self.handle(&mut group) {
                Ok(false) => {}
                Ok(true) => return Ended::Closed,
                Err(error) => return Ended::Failed(error),
            }
            if let Err(error) = self.copying.step(&self.store) {
                return Ended::Failed(error.into());
            }
        }
    }

    /// Commits a group and answers it; `true` when it was told to close.
    fn handle(&mut self, group: &mut Vec<Command>) -> Result<bool, Failure> {
        let (mut appends, mut settles, mut probes, mut close) =
            (Vec::new(), Vec::new(), Vec::new(), false);
        for command in group.drain(..) {
            match command {
                Command::Append { event, done } => appends.push((event, done)),
                Command::Settle { settlements, done } => settles.push((settlements, done)),
                Command::Tidy => self.tidying = true,
                Command::Probe { done } => probes.push(done),
                Command::Close => close = true,
                #[cfg(test)]
                Command::Panic => panic!("as the test wants it"),
            }
        }
        if let Err(full) = self.make_room(&appends)? {
            self.shared.set_health(Health::Full);
            for (_, done) in appends.drain(..) {
                done.send(Err(full.clone())).ok(); // the caller may have gone
            }
        }
        self.commit(appends, settles)?;
        if !probes.is_empty() {
            self.probe()?;
        }
        drop(probes); // whoever asked reads the health now
        Ok(close)
    }

    fn commit(
        &mut self,
        appends: Vec<Waiting<Box<NewEvent>>>,
        settles: Vec<Waiting<Vec<Settlement>>>,
    ) -> Result<(), Failure> {
        if appends.is_empty() && settles.is_empty() {
            return Ok(());
        }
        let events: Vec<&NewEvent> = appends.iter().map(|(event, _)| &**event).collect();
        let settlements: Vec<&Settlement> = settles
            .iter()
            .flat_map(|(settlements, _)| settlements)
            .collect();
        let appended = self
            .store
            .commit(&events, &settlements, clock::now())
            .map_err(Arc::new);
        let settled = match &appended {
            // What was delivered needs little room, and makes some.
            Err(failure) if is_full(failure) && !appends.is_empty() && !settles.is_empty() => self
                .store
                .commit(&[], &settlements, clock::now())
                .map_err(Arc::new),
            other => other.clone(),
        };
        if let Ok(tally) = settled {
            *self
                .shared
                .tally
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = tally;
        }
        match &appended {
            Ok(_) if !appends.is_empty() => {
                self.shared
                    .accepted
                    .fetch_add(events.len() as u64, Ordering::Relaxed);
                self.shared.set_health(Health::Writable);
            }
            Err(failure) if is_full(failure) => self.shared.set_health(Health::Full),
            _ => {}
        }
        if appended.is_ok()
            && events
                .iter()
                .any(|event| matches!(event.fate, Fate::Pending { .. }))
        {
            self.shared.appended.notify_one();
        }
        answer(appends, &appended);
        answer(settles, &settled);
        match (appended, settled) {
            (Err(failure), _) | (_, Err(failure)) if !is_full(&failure) => Err(failure),
            _ => Ok(()),
        }
    }

    /// Whether these fit under the limit; history goes first when they do not.
    fn make_room(
        &mut self,
        appends: &[Waiting<Box<NewEvent>>],
    ) -> Result<Result<(), AppendError>, Failure> {
        if appends.is_empty() {
            return Ok(Ok(()));
        }
        // An event's row and its part of the indexes take less than this beside its bytes.
        const ROW_BYTES: usize = 1024;
        let incoming: usize = appends
            .iter()
            .map(|(event, _)| event.event.payload.body.len() + ROW_BYTES)
            .sum();
        let limit_bytes = self.settings.max_bytes;
        loop {
            let used_bytes = self.store.used_bytes()?;
            if used_bytes.saturating_add(incoming as u64) <= limit_bytes {
                return Ok(Ok(()));
            }
            match self.store.purge(clock::now().plus(Duration::from_secs(1))) {
                Ok(true) => {}
                Ok(false) | Err(StoreError::DiskFull) => {
                    return Ok(Err(AppendError::Full {
                        used_bytes,
                        limit_bytes,
                    }));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn probe(&mut self) -> Result<(), Failure> {
        // Healthy again only with some room: at the brim the next event would not fit.
        let limit = self.settings.max_bytes - self.settings.max_bytes / 16;
        let used_bytes = self.store.used_bytes()?;
        let health = match self.store.probe() {
            Ok(()) if used_bytes < limit => Health::Writable,
            Ok(()) | Err(StoreError::DiskFull) => Health::Full,
            Err(error) => return Err(error.into()),
        };
        self.shared.set_health(health);
        Ok(())
    }

    fn tidy_step(&mut self) -> Result<bool, Failure> {
        let kept_since = clock::now().minus(self.settings.keep_delivered);
        let more = self.store.purge(kept_since)? || self.store.shrink()?;
        self.copying.step(&self.store)?;
        Ok(more)
    }
}

type Waiting<T> = (T, oneshot::Sender<Result<(), AppendError>>);

/// Shared by all callers whose commit it was.
type Failure = Arc<StoreError>;

fn answer<T>(waiting: Vec<Waiting<T>>, result: &Result<Tally, Failure>) {
    for (_, done) in waiting {
        // A caller that hung up keeps its event.
        done.send(result.clone().map(|_| ()).map_err(AppendError::Commit))
            .ok();
    }
}

fn is_full(failure: &Failure) -> bool {
    matches!(**failure, StoreError::DiskFull)
}

/// The copying of the log into the file, off the ack path: a second connection copies while
/// commits go on, and the writer only finishes what came meanwhile. Inline it would cost
/// 8 to 14 ms in some commit.
struct Copying {
    wake: Option<sync_mpsc::SyncSender<()>>,
    progress: Arc<Progress>,
}

#[derive(Default)]
struct Progress {
    running: AtomicBool,
    /// Frames that are in the file, told once per pass; taken by the writer.
    copied: AtomicU32,
}

impl Copying {
    fn start(settings: &Settings) -> Self {
        let progress = Arc::new(Progress::default());
        let (wake, woken) = sync_mpsc::sync_channel(1);
        let started = Checkpointer::open(&settings.path)
            .map_err(|error| error.to_string())
            .and_then(|checkpointer| {
                let progress = Arc::clone(&progress);
                std::thread::Builder::new()
                    .name("buffer-checkpoint".to_owned())
                    .spawn(move || {
                        while woken.recv().is_ok() {
                            match checkpointer.run() {
                                Ok(copied) => progress.copied.store(copied, Ordering::Relaxed),
                                Err(error) => warn!(
                                    error = &error as &dyn std::error::Error,
                                    "Checkpoint failed, will try again"
                                ),
                            }
                            progress.running.store(false, Ordering::Release);
                        }
                    })
                    .map_err(|error| error.to_string())
            });
        match started {
            Ok(_) => Self {
                wake: Some(wake),
                progress,
            },
            Err(error) => {
                // Slower answers now and then, but no event is at risk.
                warn!(error, "No thread for checkpoints, the writer does them");
                Self {
                    wake: None,
                    progress,
                }
            }
        }
    }

    /// Between two commits: starts a pass, or finishes one.
    fn step(&mut self, store: &Store) -> Result<(), StoreError> {
        let frames = store.log_frames();
        if frames < CHECKPOINT_FRAMES {
            return Ok(());
        }
        if self.is_running() && frames < LONGEST_LOG {
            return Ok(());
        }
        // The disk does not keep up: the log stays bounded, and the senders wait.
        while self.is_running() {
            std::thread::park_timeout(PASS_LOOK);
        }
        let copied = self.progress.copied.swap(0, Ordering::Relaxed);
        let left = frames.saturating_sub(copied);
        let nearly_done = copied > 0 && left <= FINISH_FRAMES;
        match &self.wake {
            Some(wake) if !nearly_done && frames < LONGEST_LOG => {
                self.progress.running.store(true, Ordering::Release);
                wake.try_send(()).ok(); // it is only full when a pass is due anyway
                Ok(())
            }
            _ => store.finish_checkpoint(),
        }
    }

    fn is_running(&self) -> bool {
        self.progress.running.load(Ordering::Acquire)
    }
}
