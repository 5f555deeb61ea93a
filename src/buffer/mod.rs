//! The buffer: the durable queue on disk that stands between Strapi and QStash.
//!
//! What it promises: when [`Buffer::append`] returns `Ok`, the event survives a killed
//! process and a power cut. Events come out in order of arrival and stay until they are
//! settled. What it leaves to others: when to publish, and what an answer means.
//!
//! One thread writes: while one commit waits for the disk, whatever arrives
//! gathers for the next, so a busy buffer pays one fdatasync for many events and a quiet one
//! delays none. One thread reads, one copies the log into the file. SQL is in `store` only.

mod lock;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use self::lock::LockError;
pub use self::store::StoreError;
use self::store::{Reader, Store};
use self::writer::{Command, Shared};
use crate::clock::Timestamp;
use crate::event::{Event, EventId, Facts, Payload};

/// Appends and settlements that may wait for the writer. Beyond it callers wait: Strapi has
/// five requests in flight, so this is only reached by other senders.
const WAITING_COMMANDS: usize = 1024;

/// Reads that may wait for the reader; the forwarder asks for one thing at a time per request.
const WAITING_READS: usize = 64;

/// Where and how much is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The buffer file. `-wal`, `-shm` and `.lock` lie beside it.
    pub path: PathBuf,
    /// Most bytes of the file that events may use; beyond it [`AppendError::Full`].
    pub max_bytes: u64,
    /// How long a delivered event stays for inspection and replay; zero keeps none.
    pub keep_delivered: Duration,
    /// How long to wait for another sidecar to let go of the buffer: a successor is started
    /// before its predecessor has ended.
    pub wait_for_lock: Duration,
}

/// The place of an event in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(i64);

impl Seq {
    /// Before all events.
    pub const START: Self = Self(0);

    /// As it is stored and shown.
    pub const fn raw(self) -> i64 {
        self.0
    }

    #[cfg(test)]
    pub(crate) const fn from_raw(raw: i64) -> Self {
        Self(raw)
    }
}

/// Where an event goes, as text: the buffer does not read it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Address {
    /// The destination; events with equal texts are held together.
    pub destination: String,
    /// Delivery options of the route it took.
    pub options: String,
}

/// An event to append.
#[derive(Debug)]
pub struct NewEvent {
    /// The event.
    pub event: Event,
    /// Where it goes; `None` for a dead letter without a route.
    pub address: Option<Address>,
    /// What is known of it already.
    pub fate: Fate,
}

/// In which state an event enters the buffer.
#[derive(Debug)]
pub enum Fate {
    /// To be published; `failed` says why a first attempt did not succeed.
    Pending {
        /// The first attempt's failure.
        failed: Option<String>,
    },
    /// Published already, before it came here.
    Delivered {
        /// QStash's message ids.
        message_ids: Vec<String>,
    },
    /// Cannot be published.
    Dead {
        /// Why not.
        reason: String,
        /// Attempts made.
        attempts: u32,
    },
}

/// A pending event, without its bytes.
#[derive(Debug, Clone)]
pub struct Pending {
    /// Its place in the order of arrival.
    pub seq: Seq,
    /// Our name for it.
    pub id: EventId,
    /// When it came.
    pub received_at: Timestamp,
    /// What was read from its body.
    pub facts: Facts,
    /// Where it goes.
    pub address: Address,
    /// Bytes of the body.
    pub size: u64,
    /// Whether headers and body are UTF-8, as a batch needs it.
    pub is_text: bool,
    /// Attempts so far.
    pub attempts: u32,
    /// How often it was replayed by hand.
    pub replays: u32,
    /// Not before this.
    pub due_at: Timestamp,
}

/// What became of a pending event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Which.
    pub seq: Seq,
    /// What.
    pub verdict: Verdict,
}

/// The outcome of an attempt, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// QStash has it.
    Delivered {
        /// QStash's message ids.
        message_ids: Vec<String>,
    },
    /// Stays pending.
    Postponed {
        /// Not before this.
        due_at: Timestamp,
        /// Why it was not delivered.
        reason: String,
    },
    /// A dead letter.
    Dead {
        /// Why.
        reason: String,
        /// Whether an attempt was made for it (an event can die of age alone).
        attempted: bool,
    },
}

/// How many events are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// To be published.
    pub pending: i64,
    /// Published, kept as history.
    pub delivered: i64,
    /// Dead letters.
    pub dead: i64,
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
    Lock(#[from] LockError),
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
}

/// What the reader is asked: to read something, or to end.
enum Asked {
    Read(Box<dyn FnOnce(&Reader) + Send>),
    Close,
}

impl Buffer {
    /// Opens the buffer, or creates it. Refused while another sidecar has it.
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
        let lock = lock::take(path, settings.wait_for_lock)?;
        let failed = |source| OpenError::Store {
            path: path.to_owned(),
            source,
        };
        let store = Store::open(path, !settings.keep_delivered.is_zero()).map_err(failed)?;
        let reader = Reader::open(path).map_err(failed)?;
        let tally = reader.tally().map_err(failed)?;

        let (commands, waiting) = mpsc::channel(WAITING_COMMANDS);
        let (reads, asked) = mpsc::channel(WAITING_READS);
        let shared = Arc::new(Shared::new(tally));
        let writer = {
            let (shared, settings) = (Arc::clone(&shared), settings.clone());
            spawn("buffer-writer", move || {
                writer::run(store, waiting, &shared, &settings);
                drop(lock);
            })?
        };
        let reader = spawn("buffer-reader", move || run_reader(&reader, asked))?;
        Ok(Self {
            commands,
            reads,
            shared,
            threads: Arc::new(Mutex::new(vec![writer, reader])),
        })
    }

    /// Makes an event durable. The caller may go away: once begun, it is finished.
    pub async fn append(&self, event: NewEvent) -> Result<(), AppendError> {
        let (done, committed) = oneshot::channel();
        let sent = self
            .commands
            .send(Command::Append {
                event: Box::new(event),
                done,
            })
            .await;
        sent.map_err(|_closed| AppendError::Closed)?;
        committed.await.map_err(|_closed| AppendError::Closed)?
    }

    /// Records what became of events; all of them in one commit.
    pub async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), AppendError> {
        let (done, committed) = oneshot::channel();
        let sent = self
            .commands
            .send(Command::Settle { settlements, done })
            .await;
        sent.map_err(|_closed| AppendError::Closed)?;
        committed.await.map_err(|_closed| AppendError::Closed)?
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

    /// Events appended since the start. Counted where they are committed: a caller that went
    /// away does not count its own.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
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
            .unwrap_or_else(|| Ok(Vec::new()))
    }

    /// The oldest pending event for a destination.
    pub async fn first_for(&self, destination: String) -> Result<Option<Pending>, StoreError> {
        self.read(move |reader| reader.first_for(&destination))
            .await
            .unwrap_or(Ok(None))
    }

    /// The bytes of these events; one that is gone is left out.
    pub async fn payloads(&self, seqs: Vec<Seq>) -> Result<Vec<(Seq, Payload)>, StoreError> {
        self.read(move |reader| reader.payloads(&seqs))
            .await
            .unwrap_or_else(|| Ok(Vec::new()))
    }

    /// When the oldest pending event came.
    pub async fn oldest_pending(&self) -> Result<Option<Timestamp>, StoreError> {
        self.read(Reader::oldest_pending).await.unwrap_or(Ok(None))
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
        read: impl FnOnce(&Reader) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let read = Box::new(move |reader: &Reader| {
            answer.send(read(reader)).ok(); // whoever asked may have gone
        });
        self.reads.send(Asked::Read(read)).await.ok()?;
        answered.await.ok()
    }
}

fn run_reader(reader: &Reader, mut asked: mpsc::Receiver<Asked>) {
    while let Some(Asked::Read(read)) = asked.blocking_recv() {
        read(reader);
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

/// A file beside the buffer: `buffer.db` gives `buffer.db.lock`.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
