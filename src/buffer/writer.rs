//! The writer: the one thread that changes the file.
//!
//! Group commit without a timer: it takes whatever waits, commits it with one fdatasync,
//! and answers each caller after that. A full disk is an answer; any other failed commit
//! ends the connection (after a failed fsync the page cache cannot be trusted), and the
//! file is opened again from what the disk really holds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::checkpoint::Copying;
use super::opening::{Failure, Left, Opener};
use super::reopening::Waiters;
use super::reserve::{Disk, Reserve};
use super::store::{Store, StoreError};
use super::{AppendError, Change, Fate, Health, NewEvent, Settings, Settlement, Tally};
use crate::clock;

/// Commands in one commit. More would only make the first of them wait longer: the cost of
/// the fdatasync is spread thinly enough at this.
const MAX_GROUP: usize = 256;

/// Between two tries to take the reserve back.
const RESERVE_LOOK: Duration = Duration::from_millis(500);

/// What must fit for the buffer to count as writable.
const TYPICAL_EVENT: u64 = 4096;

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
    Change {
        change: Change,
        done: oneshot::Sender<Result<u64, AppendError>>,
    },
    Tidy,
    Probe {
        done: oneshot::Sender<()>,
    },
    /// The reader found the file damaged that was opened so many times.
    Damaged {
        generation: u64,
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
    /// Events became pending behind those that came before them.
    pub(super) replayed: AtomicBool,
    pub(super) accepted: AtomicU64,
    /// Counts the times that the file was opened; 0 before the first.
    pub(super) generation: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            health: watch::Sender::new(Health::Writable),
            tally: Mutex::default(),
            appended: Notify::new(),
            replayed: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            generation: AtomicU64::new(0),
        }
    }
}

impl Shared {
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

    pub(super) fn failed(&self, cause: &StoreError) {
        error!(
            error = cause as &dyn std::error::Error,
            "Buffer failed, opening it again"
        );
        self.set_health(Health::Failed);
    }

    pub(super) fn opened(&self, tally: Tally) {
        self.set_tally(tally);
        self.generation.fetch_add(1, Ordering::Release);
        self.set_health(Health::Writable);
    }

    fn set_tally(&self, tally: Tally) {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner) = tally;
    }
}

/// Runs until it is told to close or all handles are gone.
pub(super) fn run(
    opened: Result<Store, StoreError>,
    mut opener: Opener,
    mut commands: mpsc::Receiver<Command>,
    shared: &Shared,
    settings: &Settings,
) {
    let (mut opened, mut left) = (opened.map_err(Arc::new), Left::Closed);
    let (mut carried, mut unanswered) = (Carried::default(), Vec::new());
    loop {
        let (store, waiting) = match opened {
            Ok(store) => (store, Vec::new()),
            Err(cause) => {
                let waiters = Waiters::new(&mut commands, unanswered, cause);
                let Some((store, tally, kept)) = waiters.reopen(&mut opener, left) else {
                    return;
                };
                shared.opened(tally);
                shared.accepted.fetch_add(carried.events, Ordering::Relaxed);
                carried.waiting.drain(..).for_each(|done| {
                    done.send(Ok(())).ok(); // the caller may have gone
                });
                (store, kept)
            }
        };
        let mut writer = Writer::new(store, &mut opener.reserve, shared, settings);
        // A panic is a mistake of ours: what was committed stands, and what was not has had no
        // answer. Without this the sidecar would go on with nobody writing.
        let served = catch_unwind(AssertUnwindSafe(|| writer.serve(&mut commands, waiting)));
        let cause = match served {
            Ok(Ended::Closed) => {
                if writer.copying.end() {
                    writer.store.keep_log();
                }
                return;
            }
            Ok(Ended::Failed(cause)) => cause,
            Err(_panic) => Arc::new(StoreError::Panicked),
        };
        shared.failed(&cause);
        writer.store.keep_log();
        carried = std::mem::take(&mut writer.carried);
        unanswered = std::mem::take(&mut writer.unanswered);
        left = match &*cause {
            StoreError::Moved => Left::Moved(Box::new(writer.into_store())),
            error if error.is_damage() => Left::Damaged,
            _ => Left::Failed,
        };
        opened = Err(cause);
    }
}

enum Ended {
    Closed,
    Failed(Failure),
}

struct Writer<'a> {
    /// Before the store, which is then the last to close the file, and removes the log.
    copying: Copying,
    store: Store,
    reserve: &'a mut Reserve,
    shared: &'a Shared,
    settings: &'a Settings,
    /// Whether there may be history to remove or free pages to give back.
    tidying: bool,
    /// The reserve is not tried to be taken back before this.
    reserve_look: Instant,
    carried: Carried,
    /// What could not be committed: tried once more in the file as it is opened again.
    unanswered: Vec<Command>,
}

/// What was committed into a file that was gone by then: it is answered once it has been
/// carried over.
#[derive(Default)]
struct Carried {
    events: u64,
    waiting: Vec<oneshot::Sender<Result<(), AppendError>>>,
}

impl<'a> Writer<'a> {
    fn new(
        store: Store,
        reserve: &'a mut Reserve,
        shared: &'a Shared,
        settings: &'a Settings,
    ) -> Self {
        let copying = Copying::start(settings, reserve.bytes());
        Self {
            store,
            reserve,
            shared,
            settings,
            tidying: true,
            copying,
            reserve_look: Instant::now(),
            carried: Carried::default(),
            unanswered: Vec::new(),
        }
    }

    fn into_store(self) -> Store {
        self.store
    }

    /// `group` is what has waited meanwhile.
    fn serve(&mut self, commands: &mut mpsc::Receiver<Command>, mut group: Vec<Command>) -> Ended {
        let mut is_second_try = !group.is_empty();
        self.take_reserve();
        loop {
            if self.tidying && group.is_empty() && commands.is_empty() {
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
            if group.is_empty() && commands.blocking_recv_many(&mut group, MAX_GROUP) == 0 {
                return Ended::Closed;
            }
            match self.handle(&mut group) {
                Ok(false) => {}
                Ok(true) => return Ended::Closed,
                Err(cause) => {
                    if is_second_try {
                        let refused = self.unanswered.drain(..);
                        refused.for_each(|command| command.refuse(&cause));
                    }
                    return Ended::Failed(cause);
                }
            }
            is_second_try = false;
            match self.copying.step(&self.store, self.reserve.is_held()) {
                // The log cannot be copied now; it is where it was.
                Ok(()) | Err(StoreError::DiskFull) => {}
                Err(error) => return Ended::Failed(error.into()),
            }
        }
    }

    /// Commits a group and answers it; `true` when it was told to close.
    fn handle(&mut self, group: &mut Vec<Command>) -> Result<bool, Failure> {
        let (mut appends, mut settles, mut changes, mut probes, mut close) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), false);
        let mut is_damaged = false;
        for command in group.drain(..) {
            match command {
                Command::Append { event, done } => appends.push((event, done)),
                Command::Settle { settlements, done } => settles.push((settlements, done)),
                Command::Change { change, done } => changes.push((change, done)),
                Command::Tidy => {
                    self.tidying = true;
                    self.take_reserve();
                }
                Command::Probe { done } => probes.push(done),
                Command::Damaged { generation } => {
                    is_damaged |= generation == self.shared.generation.load(Ordering::Acquire);
                }
                Command::Close => close = true,
                #[cfg(test)]
                Command::Panic => panic!("as the test wants it"),
            }
        }
        if let Err(failure) = self.commit(&mut appends, &mut settles) {
            let appends = appends
                .into_iter()
                .map(|(event, done)| Command::Append { event, done });
            let settles = settles
                .into_iter()
                .map(|(settlements, done)| Command::Settle { settlements, done });
            self.unanswered = appends.chain(settles).collect();
            return Err(failure);
        }
        for (change, done) in changes {
            self.change(&change, done)?;
        }
        if !probes.is_empty() {
            self.probe()?;
        }
        drop(probes); // whoever asked reads the health now
        match is_damaged {
            true => Err(Arc::new(StoreError::Unreadable)),
            false => Ok(close),
        }
    }

    /// Answers all of them, or fails.
    fn commit(
        &mut self,
        appends: &mut Vec<Waiting<Box<NewEvent>>>,
        settles: &mut Vec<Waiting<Vec<Settlement>>>,
    ) -> Result<(), Failure> {
        if let Err(full) = self.make_room(appends)? {
            self.shared.set_health(Health::Full);
            for (_, done) in appends.drain(..) {
                done.send(Err(full.clone())).ok(); // the caller may have gone
            }
        }
        if appends.is_empty() && settles.is_empty() {
            return Ok(());
        }
        let events: Vec<&NewEvent> = appends.iter().map(|(event, _)| &**event).collect();
        let settlements: Vec<&Settlement> = settles
            .iter()
            .flat_map(|(settlements, _)| settlements)
            .collect();
        let appended = self.write(&events, &settlements);
        let settled = match &appended {
            // What was delivered needs little room, and makes some.
            Err(failure) if is_full(failure) && !settles.is_empty() => {
                self.make_do()?;
                self.write(&[], &settlements)
            }
            other => other.clone(),
        };
        if let Ok(tally) = settled {
            self.shared.set_tally(tally);
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
        match &appended {
            Err(failure) if matches!(**failure, StoreError::Moved) => {
                self.carried.events = events.len() as u64;
                let appends = appends.drain(..).map(|(_, done)| done);
                let settles = settles.drain(..).map(|(_, done)| done);
                self.carried.waiting = appends.chain(settles).collect();
                return Err(Arc::clone(failure));
            }
            Err(failure) if !is_full(failure) => return Err(Arc::clone(failure)),
            _ => answer(appends, &appended),
        }
        match &settled {
            Err(failure) if !is_full(failure) => Err(Arc::clone(failure)),
            _ => {
                answer(settles, &settled);
                Ok(())
            }
        }
    }

    /// What a person wants changed.
    fn change(
        &mut self,
        change: &Change,
        done: oneshot::Sender<Result<u64, AppendError>>,
    ) -> Result<(), Failure> {
        let changed = self.store.change(change, clock::now()).map_err(Arc::new);
        if let Ok((_, tally)) = changed {
            self.shared.set_tally(tally);
            if matches!(change, Change::Replay(_)) {
                self.shared.replayed.store(true, Ordering::Release);
                self.shared.appended.notify_one();
            }
        }
        let count = changed.as_ref().map(|(count, _)| *count);
        done.send(count.map_err(|failure| AppendError::Commit(Arc::clone(failure))))
            .ok(); // whoever asked may have gone
        match changed {
            Err(failure) if !is_full(&failure) => Err(failure),
            _ => Ok(()),
        }
    }

    /// Durable when it returns, in files that the next start will find.
    fn write(
        &mut self,
        events: &[&NewEvent],
        settlements: &[&Settlement],
    ) -> Result<Tally, Failure> {
        let tally = self.store.commit(events, settlements, clock::now())?;
        match self.store.is_in_place() {
            true => Ok(tally),
            false => Err(Arc::new(StoreError::Moved)),
        }
    }

    /// Whether these fit under the limit and onto the disk; history goes first when they do not.
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
        let incoming = incoming as u64;
        if !self.reserve.is_held() && !self.take_reserve() {
            return Ok(Err(AppendError::Commit(Arc::new(StoreError::DiskFull))));
        }
        let limit_bytes = self.settings.max_bytes;
        loop {
            let used_bytes = self.store.used_bytes()?;
            let full = if used_bytes.saturating_add(incoming) > limit_bytes {
                AppendError::Full {
                    used_bytes,
                    limit_bytes,
                }
            } else if self.disk_takes(incoming)? {
                return Ok(Ok(()));
            } else {
                AppendError::Commit(Arc::new(StoreError::DiskFull))
            };
            if !self.forget_some_history()? {
                return Ok(Err(full));
            }
        }
    }

    /// Whether so many bytes more can be committed and copied into the file. Asked before, since
    /// what is committed and cannot be copied would take the room from what is to be settled.
    fn disk_takes(&self, incoming: u64) -> Result<bool, Failure> {
        let Some(disk) = Disk::of(&self.settings.path) else {
            return Ok(true); // it does not tell: the commit will
        };
        // Looking closer is not worth it then.
        const PLENTY: u64 = 256 << 20;
        Ok(disk.free >= PLENTY + 4 * incoming || disk.free >= self.store.growth(incoming)?)
    }

    /// Removes a little of the history, whatever its age; whether there was any.
    fn forget_some_history(&mut self) -> Result<bool, Failure> {
        let all = clock::now().plus(Duration::from_secs(24 * 3600)); // also of a clock that went back
        match self.store.purge(all) {
            Err(StoreError::DiskFull) => Ok(false),
            purged => Ok(purged?),
        }
    }

    /// On a full disk: room for what is to be settled.
    fn make_do(&mut self) -> Result<(), Failure> {
        if self.reserve.give_up() {
            warn!("The disk is full, the reserve is given up so that events go on being published");
        }
        match self.store.finish_checkpoint() {
            Ok(()) | Err(StoreError::DiskFull) => {}
            Err(error) => return Err(error.into()),
        }
        // Settled events are a little longer than pending ones.
        self.forget_some_history()?;
        Ok(())
    }

    /// Takes the reserve back, if there is room again; whether it is held.
    fn take_reserve(&mut self) -> bool {
        let now = Instant::now();
        if self.reserve.is_held() || now < self.reserve_look {
            return self.reserve.is_held();
        }
        self.reserve_look = now + RESERVE_LOOK;
        let taken = self.reserve.take();
        if taken {
            info!(
                bytes = self.reserve.bytes(),
                "Reserve for a full disk is set aside"
            );
        }
        taken
    }

    fn probe(&mut self) -> Result<(), Failure> {
        // Healthy again only with some room: at the brim the next event would not fit.
        let limit = self.settings.max_bytes - self.settings.max_bytes / 16;
        let has_room = self.take_reserve()
            && self.store.used_bytes()? < limit
            && self.disk_takes(TYPICAL_EVENT)?;
        let health = match self.store.probe() {
            Ok(()) if !self.store.is_in_place() => return Err(Arc::new(StoreError::Moved)),
            Ok(()) if has_room => Health::Writable,
            Ok(()) | Err(StoreError::DiskFull) => Health::Full,
            Err(error) => return Err(error.into()),
        };
        self.shared.set_health(health);
        Ok(())
    }

    fn tidy_step(&mut self) -> Result<bool, Failure> {
        if !self.store.is_in_place() {
            return Err(Arc::new(StoreError::Moved));
        }
        let kept_since = clock::now().minus(self.settings.keep_delivered);
        let more = self.store.purge(kept_since)? || self.store.shrink()?;
        self.copying.step(&self.store, self.reserve.is_held())?;
        Ok(more)
    }
}

type Waiting<T> = (T, oneshot::Sender<Result<(), AppendError>>);

fn answer<T>(waiting: &mut Vec<Waiting<T>>, result: &Result<Tally, Failure>) {
    for (_, done) in waiting.drain(..) {
        // A caller that hung up keeps its event.
        done.send(result.clone().map(|_| ()).map_err(AppendError::Commit))
            .ok();
    }
}

fn is_full(failure: &Failure) -> bool {
    matches!(**failure, StoreError::DiskFull)
}
