//! The buffer: the durable queue on disk that stands between Strapi and QStash.
//!
//! What it promises: when [`Buffer::append`] returns `Ok`, the event survives a killed
//! process and a power cut. Events come out in order of arrival and stay until they are
//! settled. What it leaves to others: when to publish, and what an answer means.
//!
//! One thread writes: while one commit waits for the disk, whatever arrives
//! gathers for the next, so a busy buffer pays one fdatasync for many events and a quiet one
//! delays none. One thread reads, one copies the log into the file. SQL is in `store` only.

mod checkpoint;
mod lock;
mod observer;
mod opening;
mod outcomes;
mod reading;
mod record;
mod reopening;
mod reserve;
mod room;
mod store;
#[cfg(test)]
mod tests;
mod tidying;
mod writer;

use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;

pub use self::lock::LockError;
pub use self::observer::{ObserveError, Observer, Whole};
use self::opening::{Left, Opener};
use self::reading::Asked;
pub use self::record::{
    Address, Change, EventState, Fate, Filter, Found, ListFrom, Listed, NewEvent, Page, Pending,
    Seq, Settlement, Step, StepKind, StoredBody, StoredPayload, Tally, Verdict,
};
use self::store::Reader;
pub use self::store::StoreError;
use self::writer::{Command, Shared};
use crate::clock::Timestamp;
use crate::event::EventId;

/// Outcomes wait this long for new events, whose commit they share.
const SETTLE_PAUSE: Duration = Duration::from_millis(5);

/// Appends and settlements that may wait for the writer. Beyond it callers wait: Strapi has
/// five requests in flight, so this is only reached by other senders.
const WAITING_COMMANDS: usize = 1024;

/// Reads that may wait for the reader; the forwarder asks for one thing at a time per request.
const WAITING_READS: usize = 64;

/// Where and how much is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The buffer file. `-wal`, `-shm`, `.lock` and `.reserve` lie beside it.
    pub path: PathBuf,
    /// Most bytes of the file that events may use; beyond it [`AppendError::Full`].
    pub max_bytes: u64,
    /// How long a delivered event stays for inspection and replay; zero keeps none.
    pub keep_delivered: Duration,
    /// How long to wait for another sidecar to let go of the buffer: a successor is started
    /// before its predecessor has ended.
    pub wait_for_lock: Duration,
}

/// Whether events can be made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Writable,
    /// The disk is full, or the buffer is at its limit.
    Full,
    /// The file cannot be used; it is being opened again.
    Failed,
}

/// Why the buffer did not take an event.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The buffer is at its limit.
    #[error("the buffer is full: {used_bytes} of {limit_bytes} bytes are in use")]
    Full {
        /// Bytes in use.
        used_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The disk is full, or the commit failed.
    #[error("the event could not be made durable")]
    Commit(#[source] Arc<StoreError>),
    /// The sidecar is stopping.
    #[error("the buffer is closed")]
    Closed,
}

/// Why a buffer could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its folder could not be made.
    #[error("could not create the folder {path}; choose another with --data-dir")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another sidecar has it, or the lock file cannot be used.
    #[error(transparent)]
    Lock(LockError),
    /// The file is not usable.
    #[error(
        "could not open the buffer {path}; move the file away, or choose another with --buffer"
    )]
    Store {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: StoreError,
    },
    /// A thread could not be started.
    #[error("could not start a thread for the buffer")]
    Thread(#[source] std::io::Error),
}

/// The handle: cheap to clone, for any task.
#[derive(Clone)]
pub struct Buffer {
    commands: mpsc::Sender<Command>,
    reads: mpsc::Sender<Asked>,
    shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    settings: Arc<Settings>,
}

/// How much of the disk a buffer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that events take in the file.
    pub used_bytes: u64,
    /// What they may take.
    pub limit_bytes: u64,
    /// What is free on the disk beside; `None` where that cannot be told.
    pub free_bytes: Option<u64>,
}

impl Buffer {
    /// Opens the buffer, or creates it. Refused while another sidecar has it, and for what only
    /// a person can mend. A disk that does not work is no reason to refuse: the buffer is
    /// [`Health::Failed`] then, until it works.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        let path = settings.path.as_path();
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            make_folder(folder).map_err(|source| OpenError::Folder {
                path: folder.to_owned(),
                source,
            })?;
        }
        let mut opener = Opener::new(settings);
        let shared = Arc::new(Shared::default());
        let opened = match opener.open(&mut Left::Closed) {
            Ok((store, tally)) => {
                shared.opened(tally);
                Ok(store)
            }
            Err(error) if opening::is_a_mistake(&error, path) => {
                return Err(match error {
                    StoreError::Lock(error) => OpenError::Lock(error),
                    source => OpenError::Store {
                        path: path.to_owned(),
                        source,
                    },
                });
            }
            Err(error) => {
                shared.failed(&error);
                Err(error)
            }
        };

        let (commands, waiting) = mpsc::channel(WAITING_COMMANDS);
        let (reads, asked) = mpsc::channel(WAITING_READS);
        opener.follow(reads.downgrade());
        let writer = {
            let (shared, settings) = (Arc::clone(&shared), settings.clone());
            spawn("buffer-writer", move || {
                writer::run(opened, opener, waiting, &shared, &settings);
            })?
        };
        let reader = {
            let (shared, path, commands) =
                (Arc::clone(&shared), path.to_owned(), commands.downgrade());
            spawn("buffer-reader", move || {
                reading::run(&path, asked, &shared, &commands);
            })?
        };
        Ok(Self {
            commands,
            reads,
            shared,
            threads: Arc::new(Mutex::new(vec![writer, reader])),
            settings: Arc::new(settings.clone()),
        })
    }

    /// Makes an event durable. The caller may go away: once begun, it is finished.
    pub async fn append(&self, event: NewEvent) -> Result<(), AppendError> {
        let (done, committed) = oneshot::channel();
        // Held until the writer has let go of it: memory that is freed by another thread than it
        // came from costs both of them the allocator's lock.
        let event = Arc::new(event);
        let sent = self
            .commands
            .send(Command::Append {
                event: Arc::clone(&event),
                done,
            })
            .await;
        sent.map_err(|_closed| AppendError::Closed)?;
        committed.await.map_err(|_closed| AppendError::Closed)?
    }

    /// Records what became of events, within a few milliseconds: new events that come meanwhile
    /// share the commit.
    pub async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), AppendError> {
        let (done, mut committed) = oneshot::channel();
        let sent = self
            .commands
            .send(Command::Settle { settlements, done })
            .await;
        sent.map_err(|_closed| AppendError::Closed)?;
        if let Ok(committed) = timeout(SETTLE_PAUSE, &mut committed).await {
            return committed.map_err(|_closed| AppendError::Closed)?;
        }
        let sent = self.commands.send(Command::SettleNow).await;
        sent.map_err(|_closed| AppendError::Closed)?;
        committed.await.map_err(|_closed| AppendError::Closed)?
    }

    /// Changes events as a person wants it; how many of them were changed.
    pub async fn change(&self, change: Change) -> Result<u64, AppendError> {
        let (done, changed) = oneshot::channel();
        let sent = self.commands.send(Command::Change { change, done }).await;
        sent.map_err(|_closed| AppendError::Closed)?;
        changed.await.map_err(|_closed| AppendError::Closed)?
    }

    /// Whether events were replayed since this was asked last: they are pending again, behind
    /// events that came after them.
    pub fn take_replayed(&self) -> bool {
        self.shared.replayed.swap(false, Ordering::AcqRel)
    }

    /// Begins to remove history that is older than it is kept, in small steps between
    /// commits.
    pub async fn tidy(&self) {
        self.commands.send(Command::Tidy).await.ok(); // a closed buffer needs no tidying
    }

    /// Whether events can be made durable now. When they could not, it is tried.
    pub async fn health(&self) -> Health {
        let health = *self.shared.health.borrow();
        if health == Health::Writable {
            return health;
        }
        let (done, probed) = oneshot::channel();
        if self.commands.send(Command::Probe { done }).await.is_err() {
            return Health::Failed;
        }
        probed.await.ok();
        *self.shared.health.borrow()
    }

    /// Follows [`Health`].
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    /// How many events are in each state, as of the last commit.
    pub fn tally(&self) -> Tally {
        *self
            .shared
            .tally
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How much of the disk it takes.
    pub async fn usage(&self) -> Result<Usage, StoreError> {
        let used_bytes = self.read(Reader::used_bytes).await?;
        Ok(Usage {
            used_bytes,
            limit_bytes: self.settings.max_bytes,
            free_bytes: reserve::Disk::of(&self.settings.path).map(|disk| disk.free),
        })
    }

    /// Told after each commit that brought something to publish.
    pub fn appended(&self) -> &Notify {
        &self.shared.appended
    }

    /// Pending events after `after` in order of arrival, at most `limit`, without those for
    /// the destinations in `held`.
    pub async fn pending(
        &self,
        after: Seq,
        held: Vec<String>,
        limit: usize,
    ) -> Result<Vec<Pending>, StoreError> {
        self.read(move |reader| reader.pending(after, &held, limit))
            .await
    }

    /// The oldest pending event for a destination.
    pub async fn first_for(&self, destination: String) -> Result<Option<Pending>, StoreError> {
        self.read(move |reader| reader.first_for(&destination))
            .await
    }

    /// The event of this name.
    pub async fn find(&self, id: EventId) -> Result<Option<Found>, StoreError> {
        self.read(move |reader| reader.find(id)).await
    }

    /// Events that pass the filter, at most `limit`; looks at a bounded part of the buffer.
    pub async fn list(
        &self,
        filter: Filter,
        from: ListFrom,
        limit: usize,
    ) -> Result<Page, StoreError> {
        self.read(move |reader| reader.list(&filter, from, limit))
            .await
    }

    /// The event of this name, and what it went through before the state it is in.
    pub async fn story(&self, id: EventId) -> Result<Option<(Listed, Vec<Step>)>, StoreError> {
        self.read(move |reader| {
            let Some(event) = reader.between((id, id), 1)?.pop() else {
                return Ok(None);
            };
            let steps = reader.steps(event.seq)?;
            Ok(Some((event, steps)))
        })
        .await
    }

    /// The bytes of an event; `None` when it is gone.
    pub async fn payload(&self, seq: Seq) -> Result<Option<StoredPayload>, StoreError> {
        self.read(move |reader| reader.payload(seq)).await
    }

    /// The bytes of these events, in their order; one that is gone is left out. `None` in place
    /// of the bytes: the others can be read and these cannot, for now.
    pub async fn payloads(
        &self,
        seqs: Vec<Seq>,
    ) -> Result<Vec<(Seq, Option<StoredPayload>)>, StoreError> {
        let read = seqs.clone();
        let all = self.read(move |reader| {
            let payload = |seq| Ok(reader.payload(seq)?.map(|payload| (seq, Some(payload))));
            read.into_iter()
                .filter_map(|seq| payload(seq).transpose())
                .collect()
        });
        let error = match all.await {
            Ok(all) => return Ok(all),
            Err(error) => error,
        };
        // One by one, to find which can be read: one bad sector must not hold back the rest.
        let (mut found, mut is_readable) = (Vec::with_capacity(seqs.len()), false);
        for seq in seqs {
            match self.payload(seq).await {
                Ok(payload) => {
                    is_readable = true;
                    found.extend(payload.map(|payload| (seq, Some(payload))));
                }
                Err(_) => found.push((seq, None)),
            }
        }
        if is_readable { Ok(found) } else { Err(error) }
    }

    /// A piece of a large body; `None` when the event is gone.
    pub async fn piece(&self, seq: Seq, number: u32) -> Result<Option<Bytes>, StoreError> {
        self.read(move |reader| reader.piece(seq, number)).await
    }

    /// When the oldest pending event came.
    pub async fn oldest_pending(&self) -> Result<Option<Timestamp>, StoreError> {
        self.read(Reader::oldest_pending).await
    }

    /// Ends the threads, after what they were given. From then on nothing is taken or read.
    pub async fn close(self) {
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // An error means that the thread has ended.
        self.commands.send(Command::Close).await.ok();
        self.reads.send(Asked::Close).await.ok();
        let ended = tokio::task::spawn_blocking(move || {
            for thread in threads {
                thread.join().ok(); // its panic has been reported by the panic hook
            }
        });
        ended.await.ok();
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let read = Box::new(move |reader: Result<&Reader, StoreError>| {
            let result = reader.and_then(read);
            let is_damaged = result.as_ref().is_err_and(StoreError::is_damage);
            answer.send(result).ok(); // whoever asked may have gone
            is_damaged
        });
        let sent = self.reads.send(Asked::Read(read)).await;
        sent.map_err(|_closed| StoreError::NotOpen)?;
        answered.await.map_err(|_closed| StoreError::NotOpen)?
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(OpenError::Thread)
}

/// Makes a folder that is still there after a power cut: its entry in its parent is synced too.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(folder)?;
    let parent = folder
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Gives a new file beside the buffer to whom the buffer belongs, as SQLite does with its own: what
/// root leaves here after changing a stopped buffer must not keep the sidecar from starting.
fn give_to_owner(file: &std::fs::File, buffer: &Path) {
    let (Ok(owner), Ok(own)) = (std::fs::metadata(buffer), file.metadata()) else {
        return; // there is no buffer yet
    };
    if owner.uid() != own.uid() {
        // Only root can, and only root has to.
        fchown(file, Some(owner.uid()), Some(owner.gid())).ok();
    }
}

/// A file beside the buffer: `buffer.db` gives `buffer.db.lock`.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
