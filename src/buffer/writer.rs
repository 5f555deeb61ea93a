//! The writer: the one thread that changes the file.
//!
//! Group commit without a timer: it takes whatever waits, commits it with one fdatasync,
//! and answers each caller after that. A full disk is an answer; any other failed commit
//! ends the connection (after a failed fsync the page cache cannot be trusted), and the
//! file is opened again from what the disk really holds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::checkpoint::Copying;
use super::opening::{Failure, Left, Opener};
use super::outcomes::Outcomes;
use super::reopening::Waiters;
use super::reserve::Reserve;
use super::store::{Store, StoreError};
use super::tidying::Tidying;
use super::{AppendError, Change, Fate, Health, NewEvent, Settings, Settlement, Tally};
use crate::clock;

/// Commands in one commit. More would only make the first of them wait longer: the cost of
/// the fdatasync is spread thinly enough at this.
const MAX_GROUP: usize = 256;

/// What the writer is asked to do.
pub(super) enum Command {
    Append {
        event: Arc<NewEvent>,
        done: oneshot::Sender<Result<(), AppendError>>,
    },
    Settle {
        settlements: Vec<Settlement>,
        done: oneshot::Sender<Result<(), AppendError>>,
    },
    /// Outcomes do not wait for new events any longer.
    SettleNow,
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
            generation: AtomicU64::new(0),
        }
    }
}

impl Shared {
    /// Each change is logged once, here, and not at each event that meets it.
    pub(super) fn set_health(&self, health: Health) {
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

    pub(super) fn set_tally(&self, tally: Tally) {
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
        unanswered.extend(std::mem::take(&mut writer.outcomes).into_commands());
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

pub(super) struct Writer<'a> {
    /// Before the store, which is then the last to close the file, and removes the log.
    pub(super) copying: Copying,
    pub(super) store: Store,
    pub(super) reserve: &'a mut Reserve,
    pub(super) shared: &'a Shared,
    pub(super) settings: &'a Settings,
    pub(super) tidying: Tidying,
    /// The reserve is not tried to be taken back before this.
    pub(super) reserve_look: Instant,
    outcomes: Outcomes,
    carried: Carried,
    /// What could not be committed: tried once more in the file as it is opened again.
    unanswered: Vec<Command>,
}

/// What was committed into a file that was gone by then: it is answered once it has been
/// carried over.
#[derive(Default)]
struct Carried {
    waiting: Vec<oneshot::Sender<Result<(), AppendError>>>,
}

impl<'a> Writer<'a> {
    fn new(
        store: Store,
        reserve: &'a mut Reserve,
        shared: &'a Shared,
        settings: &'a Settings,
    ) -> Self {
        let copying = Copying::start(&store, settings, reserve.bytes());
        Self {
            store,
            reserve,
            shared,
            settings,
            tidying: Tidying::default(),
            copying,
            reserve_look: Instant::now(),
            outcomes: Outcomes::default(),
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
            let is_busy = !group.is_empty() || self.outcomes.are_due();
            let waits = is_busy || !commands.is_empty();
            if group.is_empty() && self.tidying.is_due(waits) {
                if let Err(failure) = self.tidy() {
                    return Ended::Failed(failure);
                }
                continue;
            }
            if is_busy {
                let waiting = std::iter::from_fn(|| commands.try_recv().ok());
                group.extend(waiting.take(MAX_GROUP));
            } else if commands.blocking_recv_many(&mut group, MAX_GROUP) == 0 {
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
        let (mut appends, mut changes, mut probes, mut close) =
            (Vec::new(), Vec::new(), Vec::new(), false);
        let mut is_damaged = false;
        for command in group.drain(..) {
            match command {
                Command::Append { event, done } => appends.push((event, done)),
                Command::Settle { settlements, done } => self.outcomes.push(settlements, done),
                Command::SettleNow => self.outcomes.hurry(),
                Command::Change { change, done } => changes.push((change, done)),
                Command::Tidy => {
                    self.tidying.begin();
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
        self.tidying
            .events(appends.iter().map(|(new, _)| new.event.payload.body.len()));
        let is_urgent = close || !changes.is_empty();
        if let Err(failure) = self.commit_all(&mut appends, is_urgent) {
            let appends = appends
                .into_iter()
                .map(|(event, done)| Command::Append { event, done });
            self.unanswered = appends.collect();
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

    /// Commits the events; outcomes as they are due, or all when it `is_urgent`: what a person
    /// changes is to be what they have come to.
    fn commit_all(
        &mut self,
        appends: &mut Vec<Waiting<Arc<NewEvent>>>,
        is_urgent: bool,
    ) -> Result<(), Failure> {
        self.commit(appends)?;
        while is_urgent && !self.outcomes.is_empty() {
            self.outcomes.hurry();
            self.commit(&mut Vec::new())?;
        }
        Ok(())
    }

    /// Answers all events and some outcomes, or fails.
    fn commit(&mut self, appends: &mut Vec<Waiting<Arc<NewEvent>>>) -> Result<(), Failure> {
        if let Err(full) = self.make_room(appends)? {
            self.shared.set_health(Health::Full);
            for (_, done) in appends.drain(..) {
                done.send(Err(full.clone())).ok(); // the caller may have gone
            }
        }
        let events: Vec<&NewEvent> = appends.iter().map(|(event, _)| &**event).collect();
        let settlements = self.outcomes.next(!events.is_empty());
        let mut settled_count = settlements.len();
        if events.is_empty() && settlements.is_empty() {
            answer(self.outcomes.committed(0), &Ok(()));
            return Ok(());
        }
        let appended = write(&mut self.store, &events, &settlements);
        let settled = match &appended {
            // What was delivered needs little room, and makes some.
            Err(failure) if is_full(failure) && settled_count > 0 => {
                self.make_do()?;
                self.outcomes.hurry();
                let settlements = self.outcomes.next(false);
                settled_count = settlements.len();
                write(&mut self.store, &[], &settlements)
            }
            other => other.clone(),
        };
        if let Ok(tally) = settled {
            self.shared.set_tally(tally);
        }
        match &appended {
            Ok(_) if !events.is_empty() => {
                self.shared.set_health(Health::Writable);
            }
            Err(failure) if is_full(failure) => self.shared.set_health(Health::Full),
            _ => {}
        }
        let is_pending = |event: &&NewEvent| matches!(event.fate, Fate::Pending { .. });
        let to_publish = appended.is_ok() && events.iter().any(is_pending);
        match appended {
            Err(failure) if matches!(*failure, StoreError::Moved) => {
                let appends = appends.drain(..).map(|(_, done)| done);
                let settled = self.outcomes.committed(settled_count);
                self.carried.waiting = appends.chain(settled).collect();
                return Err(failure);
            }
            Err(failure) if !is_full(&failure) => return Err(failure),
            appended => answer(appends.drain(..).map(|(_, done)| done), &appended.map(drop)),
        }
        // After the answers: those who wait for them come first.
        if to_publish {
            self.shared.appended.notify_one();
        }
        match settled {
            Ok(_) => answer(self.outcomes.committed(settled_count), &Ok(())),
            Err(failure) if !is_full(&failure) => return Err(failure),
            full => answer(self.outcomes.drain(), &full.map(drop)),
        }
        Ok(())
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
}

pub(super) type Waiting<T> = (T, oneshot::Sender<Result<(), AppendError>>);

/// Durable when it returns, in files that the next start will find.
fn write(
    store: &mut Store,
    events: &[&NewEvent],
    settlements: &[&Settlement],
) -> Result<Tally, Failure> {
    let tally = store.commit(events, settlements, clock::now())?;
    match store.is_in_place() {
        true => Ok(tally),
        false => Err(Arc::new(StoreError::Moved)),
    }
}

fn answer(
    waiting: impl IntoIterator<Item = oneshot::Sender<Result<(), AppendError>>>,
    result: &Result<(), Failure>,
) {
    for done in waiting {
        // A caller that hung up keeps its event.
        done.send(result.clone().map_err(AppendError::Commit)).ok();
    }
}

pub(super) fn is_full(failure: &Failure) -> bool {
    matches!(**failure, StoreError::DiskFull)
}
