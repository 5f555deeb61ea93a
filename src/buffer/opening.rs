//! Opening the buffer, in whatever state it is found: locked by another sidecar, on a full
//! disk, damaged, or gone from its place while it was in use.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::lock::{self, Lock};
use super::reading::{self, Asked};
use super::reserve::{Disk, Reserve};
use super::store::{Rescued, Store, StoreError, create, log, rescue, settle_rescue, try_reading};
use super::{LockError, Settings, Tally};
use crate::clock;

/// With less than this free, whatever fails at the opening may fail for want of room: SQLite
/// says so of its files, but not of its shared memory.
const NO_ROOM: u64 = 1 << 20;

/// Opens the buffer, again and again if need be.
pub(super) struct Opener {
    settings: Settings,
    lock: Option<Lock>,
    pub(super) reserve: Reserve,
    /// There is none before the buffer was opened, or given up, for the first time.
    reader: Option<mpsc::WeakSender<Asked>>,
}

/// In which state the buffer was left.
pub(super) enum Left {
    /// Closed, or never opened.
    Closed,
    /// Something failed.
    Failed,
    /// What is in the file makes no sense.
    Damaged,
    /// Another file is in its place, or none; this one can still be read.
    Moved(Box<Store>),
}

impl Opener {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            reserve: Reserve::of(&settings.path),
            settings: settings.clone(),
            lock: None,
            reader: None,
        }
    }

    /// This one has to be away when the file is opened after something failed.
    pub(super) fn follow(&mut self, reader: mpsc::WeakSender<Asked>) {
        self.reader = Some(reader);
    }

    pub(super) fn open(&mut self, left: &mut Left) -> Result<(Store, Tally), StoreError> {
        let path = self.settings.path.clone();
        let lock = match self.lock.take() {
            Some(lock) => lock,
            None => lock::take(&path, self.settings.wait_for_lock)?,
        };
        let is_ours = lock.was_signed();
        self.lock = Some(lock);
        if let Some(aside) = settle_rescue(&path, "damaged", clock::now())? {
            warn!(aside = %aside.display(), "A rescue of the buffer that was cut short is finished");
        }
        if matches!(left, Left::Damaged) && try_reading(&path).is_err() {
            *left = Left::Failed; // the disk cannot be read, which may pass
        }
        // Another program's file that was named by mistake must not be touched.
        let is_known = is_ours || log::is_buffer(&path);
        match left {
            Left::Moved(store) => self.rescue(&path, Some(store))?,
            Left::Damaged => self.rescue(&path, None)?,
            Left::Closed if is_known => self.look_at_log(&path)?,
            Left::Closed | Left::Failed => {}
        }
        if matches!(left, Left::Moved(_) | Left::Damaged) {
            *left = Left::Failed; // the new file is in place, whatever happens now
        }
        // Which pages of the log are in the file is known for as long as anybody has it open,
        // and wrong after an fsync that failed: then all of them must be copied once more.
        let _away = match left {
            Left::Failed => self.reader.as_ref().and_then(reading::send_away),
            _ => None,
        };
        let is_there = std::fs::symlink_metadata(&path).map(drop);
        if is_there.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            self.with_room(&path, || create(&path))?;
        } else if is_known {
            self.with_room(&path, || log::renew(&path).map_err(StoreError::Io))?;
        }
        let store = match self.open_with_room(&path) {
            Err(StoreError::NotABuffer) if !is_ours => return Err(StoreError::NotABuffer),
            Err(error) if error.is_damage() => {
                try_reading(&path).map_err(StoreError::Io)?;
                error!(
                    error = &error as &dyn std::error::Error,
                    "Buffer file is damaged"
                );
                self.rescue(&path, None)?;
                self.open_with_room(&path)?
            }
            opened => opened?,
        };
        // Of a file that was never opened here nobody knows how it was left.
        if matches!(left, Left::Failed) || !is_ours {
            store.leave_log_behind()?;
        }
        let tally = store.tally();
        *left = Left::Closed;
        if let Some(lock) = &mut self.lock {
            lock.sign();
        }
        Ok((store, tally))
    }

    /// Before SQLite does: of a log that is damaged it would throw away the better part.
    fn look_at_log(&mut self, path: &Path) -> Result<(), StoreError> {
        let Some(damage) = log::look(path).map_err(StoreError::Io)? else {
            return Ok(());
        };
        error!(
            commits = damage.commits_behind,
            frames = damage.broken,
            "The log of the buffer file is damaged in its middle"
        );
        self.rescue(path, None)
    }

    fn open_with_room(&mut self, path: &Path) -> Result<Store, StoreError> {
        let keeps_history = !self.settings.keep_delivered.is_zero();
        self.with_room(path, || Store::open(path, keeps_history))
    }

    /// Once more without the reserve, where it fails for want of room.
    fn with_room<T>(
        &mut self,
        path: &Path,
        work: impl Fn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match work() {
            Err(error) if is_for_want_of_room(path, &error) && self.reserve.give_up() => {
                warn!("The disk is full, the reserve is given up to open the buffer");
                work()
            }
            done => done,
        }
    }

    fn rescue(&mut self, path: &Path, open: Option<&Store>) -> Result<(), StoreError> {
        let Rescued {
            aside,
            carried,
            in_part,
        } = rescue(path, open, clock::now())?;
        let aside = aside.map(|aside| aside.display().to_string());
        match in_part {
            0 => info!(
                carried,
                aside, "Buffer begins anew with the events of the old file, which is kept"
            ),
            _ => error!(
                carried,
                in_part,
                aside,
                "Buffer begins anew with what can be read of the old file, which is kept; events that can be read in part are dead letters"
            ),
        }
        Ok(())
    }
}

fn is_for_want_of_room(path: &Path, error: &StoreError) -> bool {
    match error {
        StoreError::DiskFull => true,
        StoreError::Sqlite(_) | StoreError::Io(_) => {
            Disk::of(path).is_some_and(|disk| disk.free < NO_ROOM)
        }
        _ => false,
    }
}

/// Whether the buffer cannot be opened for a reason that only a person can mend: then the
/// start fails with what to do. Anything else may pass, and until then events are published
/// straight away.
pub(super) fn is_a_mistake(error: &StoreError, path: &Path) -> bool {
    let of_the_path = |error: &std::io::Error| {
        matches!(
            error.kind(),
            ErrorKind::PermissionDenied
                | ErrorKind::NotFound
                | ErrorKind::NotADirectory
                | ErrorKind::IsADirectory
        )
    };
    match error {
        StoreError::Format { .. } | StoreError::NotABuffer => true,
        StoreError::Lock(LockError::Held { .. }) => true,
        StoreError::Lock(LockError::Io { source, .. }) | StoreError::Io(source) => {
            of_the_path(source)
        }
        StoreError::Sqlite(error) => {
            // SQLite does not tell why: the files beside it could not be made on a disk that is
            // read-only for now, or this one cannot be opened by anybody.
            let opened = || OpenOptions::new().read(true).write(true).open(path);
            error.sqlite_error_code() == Some(rusqlite::ErrorCode::CannotOpen)
                && opened().is_err_and(|error| of_the_path(&error))
        }
        _ => false,
    }
}

/// Shared by all callers whose commit it was.
pub(super) type Failure = Arc<StoreError>;
