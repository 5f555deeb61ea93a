//! Reading a buffer from beside: by a command, while a sidecar uses it or while none does.
//!
//! What it promises: it creates, changes and locks nothing that the sidecar would notice. Each
//! read opens the file and closes it again, so no snapshot is held between two of them.
//!
//! A buffer that was closed has no log. SQLite would make one to read it, so such a file is
//! read as it lies (`immutable`), and the reading counts only if no sidecar began meanwhile.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::store::{Reader, StoreError};
use super::{Filter, ListFrom, Listed, Page, Seq, Step, StoredBody, StoredPayload, Tally, beside};
use crate::event::{EventId, Headers};

/// How often a reading is tried that a starting or stopping sidecar disturbs.
const TRIES: u32 = 20;

const PAUSE: Duration = Duration::from_millis(25);

/// Why a buffer cannot be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// There is none.
    #[error("there is no buffer at {}; name it with --data-dir or --buffer, as for the sidecar", .0.display())]
    Missing(PathBuf),
    /// It belongs to another user, and holds what is not public.
    #[error("may not read the buffer {}; run this as the user that the sidecar runs as", .0.display())]
    Forbidden(PathBuf),
    /// It cannot be read.
    #[error("could not read the buffer {path}")]
    Store {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: StoreError,
    },
}

/// Reads the buffer at a path.
#[derive(Debug, Clone)]
pub struct Observer {
    path: PathBuf,
}

impl Observer {
    /// A buffer that is there and can be read.
    pub fn open(path: &Path) -> Result<Self, ObserveError> {
        let observer = Self {
            path: path.to_owned(),
        };
        observer.read(|reader| reader.check_format())?;
        Ok(observer)
    }

    /// How many events are in each state.
    pub fn tally(&self) -> Result<Tally, ObserveError> {
        self.read(Reader::tally)
    }

    /// Events that pass the filter, at most `limit`; looks at a bounded part of the buffer.
    pub fn list(
        &self,
        filter: &Filter,
        from: ListFrom,
        limit: usize,
    ) -> Result<Page, ObserveError> {
        self.read(|reader| reader.list(filter, from, limit))
    }

    /// Events whose ids lie between these.
    pub fn between(
        &self,
        ids: (EventId, EventId),
        limit: usize,
    ) -> Result<Vec<Listed>, ObserveError> {
        self.read(|reader| reader.between(ids, limit))
    }

    /// Events by their places; one that is gone is left out.
    pub fn events(&self, seqs: &[Seq]) -> Result<Vec<Listed>, ObserveError> {
        if seqs.is_empty() {
            return Ok(Vec::new());
        }
        self.read(|reader| {
            let events = seqs.iter().filter_map(|seq| reader.event(*seq).transpose());
            events.collect()
        })
    }

    /// What an event went through before the state it is in.
    pub fn steps(&self, seq: Seq) -> Result<Vec<Step>, ObserveError> {
        self.read(|reader| reader.steps(seq))
    }

    /// The headers and the whole body of an event; `None` when it is gone.
    pub fn payload(&self, seq: Seq) -> Result<Option<Whole>, ObserveError> {
        self.read(|reader| {
            let Some(StoredPayload { headers, body }) = reader.payload(seq)? else {
                return Ok(None);
            };
            let body = match body {
                StoredBody::Whole(body) => body.to_vec(),
                StoredBody::Pieces { count } => {
                    let mut whole = Vec::new();
                    for number in 0..count {
                        match reader.piece(seq, number)? {
                            Some(piece) => whole.extend_from_slice(&piece),
                            None => return Ok(None),
                        }
                    }
                    whole
                }
            };
            Ok(Some(Whole { headers, body }))
        })
    }

    fn read<T>(&self, read: impl Fn(&Reader) -> Result<T, StoreError>) -> Result<T, ObserveError> {
        let failed = |source| ObserveError::Store {
            path: self.path.clone(),
            source,
        };
        for tried in 1.. {
            let before = self.stamp()?;
            let opened = match before.has_log {
                true => Reader::open(&self.path),
                false => Reader::open_at_rest(&self.path),
            };
            let result = opened.and_then(|reader| read(&reader));
            let is_steady = before.has_log || self.stamp()? == before;
            match result {
                Ok(read) if is_steady => return Ok(read),
                // A sidecar opens or closes it just now, or begins it anew.
                _ if tried < TRIES && self.stamp()? != before => std::thread::park_timeout(PAUSE),
                Ok(_) => return Err(failed(StoreError::Moved)),
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(StoreError::Moved))
    }

    /// Changes whenever a sidecar does more than read.
    fn stamp(&self) -> Result<Stamp, ObserveError> {
        let file = std::fs::metadata(&self.path).and_then(|meta| {
            // As SQLite will open it; asked here for the better words.
            rustix::fs::access(&self.path, rustix::fs::Access::READ_OK)?;
            Ok((meta.ino(), meta.len(), meta.modified()?))
        });
        match file {
            Ok(file) => Ok(Stamp {
                file,
                has_log: beside(&self.path, "-wal").exists(),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Err(ObserveError::Forbidden(self.path.clone()))
            }
            Err(_) => Err(ObserveError::Missing(self.path.clone())),
        }
    }
}

#[derive(PartialEq, Eq)]
struct Stamp {
    file: (u64, u64, SystemTime),
    has_log: bool,
}

/// The bytes of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    /// Headers for the receiver.
    pub headers: Headers,
    /// The body.
    pub body: Vec<u8>,
}
