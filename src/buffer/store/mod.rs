//! The file: the only place that speaks SQL.
//!
//! One [`Store`] writes (the writer thread owns it), one [`Reader`] reads, one
//! [`Checkpointer`] copies the write-ahead log into the file. Durable means WAL with
//! `synchronous=FULL`: each commit is one fdatasync, and an event is only promised after it.
//! `NORMAL` would lose acknowledged events when the power goes.

mod count;
mod create;
mod error;
mod files;
mod list;
pub(super) mod log;
mod payload;
mod read;
mod rescue;
mod step;
mod write;

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params};

use self::count::Count;
pub(super) use self::create::create;
pub use self::error::StoreError;
use self::files::Files;
pub(super) use self::files::try_reading;
pub(super) use self::read::Reader;
pub(super) use self::rescue::{Rescued, rescue, settle_rescue};
use self::write::{Append, discard, remove, replay, settle};
use super::{Change, NewEvent, Seq, Settlement, Tally};
use crate::clock::Timestamp;

/// `PRAGMA user_version` of this format, one number for the whole schema: it grows by one with
/// each change of `schema.sql`. A file with another one is not opened.
const FORMAT: i32 = 5;
/// `PRAGMA application_id`: `SqsB`, so that `file` and people can tell what it is.
const APPLICATION_ID: i32 = 0x5371_7342;
/// The best of 4, 8 and 16 KiB for events of 2 KB with the checkpoint off the ack path.
pub(super) const PAGE_SIZE: u32 = 8192;
/// How long a statement waits for another process that holds the file, such as a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pages given back to the file system in one step; a step of 1,000 stalls 360 ms.
const VACUUM_PAGES: u32 = 32;
/// Delivered events removed in one step of the purge, and the bytes of bodies after which it
/// ends early.
pub(super) const PURGE_ROWS: u32 = 64;
pub(super) const PURGE_BYTES: u64 = 1 << 20;

/// Pages that a commit writes beside the bytes of its events: inner pages of the trees, free
/// lists, the counts.
const COMMIT_PAGES: u64 = 64;

const PENDING: i64 = 0;
const DELIVERED: i64 = 1;
const DEAD: i64 = 2;

/// The writing side.
pub(super) struct Store {
    db: Connection,
    /// The file once more. Behind the connection, so that it is closed after it: to close any
    /// descriptor of a file drops the locks that this process holds on it (POSIX locks).
    file: Arc<File>,
    files: Files,
    frames: Arc<AtomicU32>,
    /// As of the last commit.
    count: Count,
    size: Size,
    keeps_history: bool,
}

/// How large the file is, after the last commit of this connection, which alone writes: to ask
/// between two of them takes locks.
#[derive(Debug, Clone, Copy)]
struct Size {
    pages: u64,
    free_pages: u64,
}

impl Size {
    fn of(db: &Connection) -> Result<Self, StoreError> {
        let count = |name| -> Result<u64, StoreError> {
            let pages: i64 = pragma(db, name)?;
            Ok(u64::try_from(pages).unwrap_or(0))
        };
        Ok(Self {
            pages: count("page_count")?,
            free_pages: count("freelist_count")?,
        })
    }
}

impl Store {
    /// Opens the file, and creates it when there is none (readable by its owner only, since
    /// bodies hold what is not public).
    pub(super) fn open(path: &Path, keeps_history: bool) -> Result<Self, StoreError> {
        // `create_new`: an existing file must not be opened here, since closing it again would
        // drop the locks that other connections of this process hold on it (POSIX locks).
        match std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
        {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StoreError::Io(error)),
        }
        refuse_other_programs(path)?;
        let mut db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        // Both must be set before the first page is written.
        db.pragma_update(None, "page_size", PAGE_SIZE)?;
        db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        use_log(&db)?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "cache_size", -4096)?;
        // A burst may grow the log; what it leaves behind is cut to this.
        db.pragma_update(None, "journal_size_limit", 64 << 20)?;
        prepare_format(&mut db)?;
        // A log that was made just now has a name that may not last. SQLite syncs the folder too,
        // and does not look whether that worked.
        files::sync_folder(path).map_err(StoreError::Io)?;
        let frames = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&frames);
        // In place of SQLite's own checkpoint, which would run inside some commit.
        db.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages| {
            seen.store(u32::try_from(pages).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        }))?;
        Ok(Self {
            count: Count::read(&db)?,
            size: Size::of(&db)?,
            db,
            files: Files::new(path).map_err(StoreError::Io)?,
            frames,
            keeps_history,
            file: Arc::new(File::open(path).map_err(StoreError::Io)?),
        })
    }

    /// Copies all of the log into the file, and begins it anew: after an fsync of the file that
    /// failed, what was copied into it before may be lost.
    /// Nobody may have had the file open in between: see [`Self::keep_log`].
    pub(super) fn leave_log_behind(&self) -> Result<(), StoreError> {
        self.db
            .wal_checkpoint_v2(None::<&str>, CheckpointMode::TRUNCATE)?;
        Ok(())
    }

    /// When this is the last to close the file it would copy the log into it, less what it
    /// takes for copied, and remove it: after a failure that may lose what was copied and never
    /// came to the disk.
    pub(super) fn keep_log(&self) {
        keep_log(&self.db).ok(); // it fails for a setting that is not known, and this one is
    }

    /// Whether the file and its log are still where they were opened. A commit into a file that
    /// was deleted is durable for nobody.
    pub(super) fn is_in_place(&mut self) -> bool {
        self.files.are_in_place()
    }

    /// How many bytes the disk must have free, so that these bytes more can be committed, and
    /// all of the log be copied into the file after that.
    pub(super) fn growth(&self, incoming: u64) -> Result<u64, StoreError> {
        let page = u64::from(PAGE_SIZE);
        let Size { pages, free_pages } = self.size;
        // Each page that is written lies in the log first, with a frame's header.
        let incoming_pages = incoming.div_ceil(page) + COMMIT_PAGES;
        let log = (u64::from(self.log_frames()) + incoming_pages) * (page + 24);
        let file = (pages + incoming_pages.saturating_sub(free_pages)) * page;
        let (file_now, log_now) = self.files.sizes().map_err(StoreError::Io)?;
        Ok(log.saturating_sub(log_now) + file.saturating_sub(file_now))
    }

    /// Frames in the write-ahead log after the last commit.
    pub(super) fn log_frames(&self) -> u32 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Commits all of these together, with one fdatasync.
    pub(super) fn commit(
        &mut self,
        events: &[&NewEvent],
        settlements: &[&Settlement],
        now: Timestamp,
    ) -> Result<Tally, StoreError> {
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut count = self.count;
        if !events.is_empty() {
            let mut append = Append::new(&tx, now, self.keeps_history)?;
            for event in events {
                append.event(event, &mut count)?;
            }
        }
        for settlement in settlements {
            settle(&tx, settlement, now, self.keeps_history, &mut count.tally)?;
        }
        (self.size, self.count) = seal(tx, self.count, count)?;
        Ok(self.tally())
    }

    /// Changes events as a person wants it; how many of them were changed.
    pub(super) fn change(
        &mut self,
        wanted: &Change,
        now: Timestamp,
    ) -> Result<(u64, Tally), StoreError> {
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut count = self.count;
        let changed = match wanted {
            Change::Replay(events) => replay(&tx, events, now, &mut count.tally)?,
            Change::Discard(seqs) => discard(&tx, seqs, &mut count.tally)?,
        };
        (self.size, self.count) = seal(tx, self.count, count)?;
        Ok((changed, self.tally()))
    }

    /// Whether the disk takes writes is only known by writing.
    pub(super) fn probe(&mut self) -> Result<(), StoreError> {
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        // It is written though it is what it was: a page goes through the log and to the disk. A row
        // that stays what it was would not be.
        tx.pragma_update(None, "user_version", FORMAT)?;
        tx.commit()?;
        Ok(())
    }

    /// Bytes of the pages in use. Free pages do not count: the next events go there.
    pub(super) fn used_bytes(&self) -> u64 {
        let Size { pages, free_pages } = self.size;
        pages.saturating_sub(free_pages) * u64::from(PAGE_SIZE)
    }

    /// How many events are in each state.
    pub(super) fn tally(&self) -> Tally {
        self.count.tally
    }

    /// Removes a few of the delivered events settled before `before`, oldest first; whether
    /// there may be more.
    pub(super) fn purge(&mut self, before: Timestamp) -> Result<bool, StoreError> {
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let old: Vec<(Seq, u64)> = tx
            .prepare_cached(
                "SELECT seq, size FROM event WHERE state = 1 AND settled_at < ?1 ORDER BY settled_at LIMIT ?2",
            )?
            .query_map(params![before.as_millis(), PURGE_ROWS], |row| {
                Ok((Seq(row.get(0)?), u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0)))
            })?
            .collect::<Result<_, _>>()?;
        let (mut count, mut bytes) = (self.count, 0);
        for (seq, size) in &old {
            remove(&tx, *seq)?;
            count.tally.delivered -= 1;
            count.tally.forgotten += 1;
            bytes += size;
            if bytes > PURGE_BYTES {
                break;
            }
        }
        (self.size, self.count) = seal(tx, self.count, count)?;
        Ok(!old.is_empty())
    }

    /// Gives a few free pages back to the file system; whether there may be more.
    pub(super) fn shrink(&mut self) -> Result<bool, StoreError> {
        let free = self.size.free_pages;
        if free == 0 {
            return Ok(false);
        }
        let mut statement = self
            .db
            .prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        self.size = Size::of(&self.db)?;
        Ok(free > u64::from(VACUUM_PAGES))
    }

    /// Opens the file for a checkpointer, which has to be closed before the store is.
    pub(super) fn checkpointer(&self, path: &Path) -> Result<Checkpointer, StoreError> {
        let db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "wal_autocheckpoint", 0)?;
        keep_log(&db)?;
        Ok(Checkpointer {
            db,
            file: Arc::clone(&self.file),
        })
    }

    /// Copies what is left of the log into the file. Between two commits nothing else writes,
    /// so the log ends here and the next commit begins it anew.
    pub(super) fn finish_checkpoint(&self) -> Result<(), StoreError> {
        match self
            .db
            .wal_checkpoint_v2(None::<&str>, CheckpointMode::PASSIVE)
        {
            Ok(_) => Ok(()),
            // Some other process is at it, such as a backup: later then.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Commits it, with the counts that it leads to; both as they are then.
fn seal(tx: Transaction<'_>, before: Count, count: Count) -> Result<(Size, Count), StoreError> {
    count.write_after(before, &tx)?;
    let size = Size::of(&tx)?;
    tx.commit()?;
    Ok((size, count))
}

/// Copies the log into the file while the writer goes on.
pub(super) struct Checkpointer {
    db: Connection,
    file: Arc<File>,
}

impl Checkpointer {
    /// One pass; how many frames of the log are in the file now.
    pub(super) fn run(&self) -> Result<u32, StoreError> {
        let (_, copied) = self
            .db
            .wal_checkpoint_v2(None::<&str>, CheckpointMode::PASSIVE)?;
        // SQLite syncs the file once all of the log is in it, which is when the writer finishes, and
        // senders wait. What is on the disk by then need not be waited for.
        self.file.sync_data().map_err(StoreError::Sync)?;
        Ok(u32::try_from(copied).unwrap_or(0))
    }
}

fn keep_log(db: &Connection) -> Result<(), StoreError> {
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(())
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let db = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    Ok(db)
}

/// With the rollback journal that SQLite has else, a power cut can take back the last commit: the
/// journal's end is not synced.
fn use_log(db: &Connection) -> Result<(), StoreError> {
    let mut switch = db.prepare("PRAGMA journal_mode = WAL")?;
    let mut rows = switch.query([])?;
    // SQLite gives the new mode before it commits the change, which then may fail.
    while rows.next()?.is_some() {}
    let mode: String = pragma(db, "journal_mode")?;
    match mode.as_str() {
        "wal" => Ok(()),
        _ => Err(StoreError::NoLog),
    }
}

/// Looks before anything is written: to open a database for writing may change it.
fn refuse_other_programs(path: &Path) -> Result<(), StoreError> {
    let db = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let looked = || {
        let application: i32 = pragma(&db, "application_id")?;
        let count = "SELECT count(*) FROM sqlite_schema";
        let tables: i64 = db.query_row(count, [], |row| row.get(0))?;
        Ok::<_, StoreError>((application, tables))
    };
    match looked() {
        Ok((APPLICATION_ID, _) | (0, 0)) => Ok(()),
        Ok(_) | Err(StoreError::NotABuffer) => Err(StoreError::NotABuffer),
        // Such as a log or a journal that must be written to be read: whoever writes will tell.
        Err(_) => Ok(()),
    }
}

fn prepare_format(db: &mut Connection) -> Result<(), StoreError> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let application: i32 = pragma(&tx, "application_id")?;
    let format: i32 = pragma(&tx, "user_version")?;
    let tables: i64 = tx.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (application, format, tables) {
        (APPLICATION_ID, FORMAT, _) => Ok(()),
        (APPLICATION_ID, found, _) => Err(StoreError::Format { found }),
        (0, 0, 0) => {
            tx.execute_batch(include_str!("schema.sql"))?;
            tx.pragma_update(None, "application_id", APPLICATION_ID)?;
            tx.pragma_update(None, "user_version", FORMAT)?;
            tx.commit()?;
            Ok(())
        }
        _ => Err(StoreError::NotABuffer),
    }
}

fn pragma<T: rusqlite::types::FromSql>(db: &Connection, name: &str) -> Result<T, StoreError> {
    Ok(db
        .prepare_cached(&format!("PRAGMA {name}"))?
        .query_row([], |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_program_or_version_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("buffer.db");
        drop(Store::open(&path, true).unwrap());
        let db = Connection::open(&path).unwrap();
        db.pragma_update(None, "user_version", 99).unwrap();
        drop(db);
        assert!(matches!(
            Store::open(&path, true),
            Err(StoreError::Format { found: 99 })
        ));

        let other = dir.path().join("other.db");
        Connection::open(&other)
            .unwrap()
            .execute_batch("CREATE TABLE t (a)")
            .unwrap();
        assert!(matches!(
            Store::open(&other, true),
            Err(StoreError::NotABuffer)
        ));
        let text = dir.path().join("notes.txt");
        std::fs::write(
            &text,
            "not a database at all, but longer than a header of one is\n".repeat(20),
        )
        .unwrap();
        assert!(matches!(
            Store::open(&text, true),
            Err(StoreError::NotABuffer)
        ));
    }

    #[test]
    fn a_probe_writes() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("buffer.db"), true).unwrap();
        let before = store.log_frames();
        store.probe().unwrap();
        assert!(store.log_frames() > before);
    }

    #[test]
    fn the_file_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("buffer.db");
        let _store = Store::open(&path, true).unwrap();
        for suffix in ["", "-wal", "-shm"] {
            let file = dir.path().join(format!("buffer.db{suffix}"));
            assert_eq!(
                std::fs::metadata(file).unwrap().permissions().mode() & 0o777,
                0o600,
                "{suffix}"
            );
        }
    }
}
