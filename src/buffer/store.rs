//! The file: the only place that speaks SQL.
//!
//! One [`Store`] writes (the writer thread owns it), one [`Reader`] reads, one
//! [`Checkpointer`] copies the write-ahead log into the file. Durable means WAL with
//! `synchronous=FULL`: each commit is one fdatasync, and an event is only promised after it.
//! `NORMAL` would lose acknowledged events when the power goes.

use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{
    CachedStatement, Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction,
    TransactionBehavior, params, wal::CheckpointMode,
};

use super::{Address, Fate, NewEvent, Pending, Seq, Settlement, Tally, Verdict};
use crate::clock::Timestamp;
use crate::event::{Document, EventId, Facts, Payload};

/// `PRAGMA user_version` of this format. A file with another one is not opened.
const FORMAT: i32 = 1;
/// `PRAGMA application_id`: `SqsB`, so that `file` and people can tell what it is.
const APPLICATION_ID: i32 = 0x5371_7342;
/// The best of 4, 8 and 16 KiB for events of 2 KB with the checkpoint off the ack path.
const PAGE_SIZE: u32 = 8192;
/// How long a statement waits for another process that holds the file, such as a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pages given back to the file system in one step; a step of 1,000 stalls 360 ms.
const VACUUM_PAGES: u32 = 32;
/// Delivered events removed in one step of the purge.
const PURGE_ROWS: u32 = 64;

const PENDING: i64 = 0;
const DELIVERED: i64 = 1;
const DEAD: i64 = 2;

/// Why the file could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no room on the disk.
    #[error("the disk is full")]
    DiskFull,
    /// The file was written by a version that this one does not know.
    #[error("the buffer file has format {found}, this version reads format {FORMAT}")]
    Format {
        /// What the file says.
        found: i32,
    },
    /// The file is some other program's.
    #[error("the file is not a strapi-qstash buffer")]
    NotABuffer,
    /// The file could not be created.
    #[error("could not create the buffer file")]
    Create(#[source] std::io::Error),
    /// The writer panicked; it starts again.
    #[error("the writer of the buffer panicked")]
    Panicked,
    /// SQLite failed.
    #[error("the buffer file could not be used")]
    Sqlite(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull,
            Some(ErrorCode::NotADatabase) => Self::NotABuffer,
            _ => Self::Sqlite(error),
        }
    }
}

/// The writing side.
pub(super) struct Store {
    db: Connection,
    frames: Arc<AtomicU32>,
    keeps_history: bool,
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
            Err(error) => return Err(StoreError::Create(error)),
        }
        let mut db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        // Both must be set before the first page is written.
        db.pragma_update(None, "page_size", PAGE_SIZE)?;
        db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "cache_size", -4096)?;
        // A burst may grow the log; what it leaves behind is cut to this.
        db.pragma_update(None, "journal_size_limit", 64 << 20)?;
        prepare_format(&mut db)?;
        let frames = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&frames);
        // In place of SQLite's own checkpoint, which would run inside some commit.
        db.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages| {
            seen.store(u32::try_from(pages).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        }))?;
        Ok(Self {
            db,
            frames,
            keeps_history,
        })
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
        let mut change = Tally::default();
        for event in events {
            append(&tx, event, now, self.keeps_history, &mut change)?;
        }
        for settlement in settlements {
            settle(&tx, settlement, now, self.keeps_history, &mut change)?;
        }
        let tally = add_tally(&tx, change)?;
        tx.commit()?;
        Ok(tally)
    }

    /// Makes a pending row of its own durable and takes it away again: whether the disk takes
    /// writes is only known by writing.
    pub(super) fn probe(&mut self) -> Result<(), StoreError> {
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Rewrites a row with what it holds: a page goes through the log and to the disk.
        tx.execute("UPDATE tally SET count = count + 0", [])?;
        tx.commit()?;
        Ok(())
    }

    /// Bytes of the pages in use. Free pages do not count: the next events go there.
    pub(super) fn used_bytes(&self) -> Result<u64, StoreError> {
        let pages: i64 = pragma(&self.db, "page_count")?;
        let free: i64 = pragma(&self.db, "freelist_count")?;
        Ok(u64::try_from(pages - free).unwrap_or(0) * u64::from(PAGE_SIZE))
    }

    /// Removes a few of the delivered events settled before `before`, oldest first; whether
    /// there may be more.
    pub(super) fn purge(&mut self, before: Timestamp) -> Result<bool, StoreError> {
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let seqs: Vec<Seq> = tx
            .prepare_cached(
                "SELECT seq FROM event WHERE state = 1 AND settled_at < ?1 ORDER BY settled_at LIMIT ?2",
            )?
            .query_map(params![before.as_millis(), PURGE_ROWS], |row| row.get(0).map(Seq))?
            .collect::<Result<_, _>>()?;
        for seq in &seqs {
            remove(&tx, *seq)?;
        }
        let removed = i64::try_from(seqs.len()).unwrap_or(0);
        if removed > 0 {
            add_tally(
                &tx,
                Tally {
                    delivered: -removed,
                    ..Tally::default()
                },
            )?;
        }
        tx.commit()?;
        Ok(!seqs.is_empty())
    }

    /// Gives a few free pages back to the file system; whether there may be more.
    pub(super) fn shrink(&mut self) -> Result<bool, StoreError> {
        let free: i64 = pragma(&self.db, "freelist_count")?;
        if free == 0 {
            return Ok(false);
        }
        let mut statement = self
            .db
            .prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(free > i64::from(VACUUM_PAGES))
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

fn append(
    tx: &Transaction<'_>,
    new: &NewEvent,
    now: Timestamp,
    keeps_history: bool,
    change: &mut Tally,
) -> Result<(), StoreError> {
    let NewEvent {
        event,
        address,
        fate,
    } = new;
    let (state, attempts, message_ids, reason) = match fate {
        Fate::Pending { failed: None } => (PENDING, 0, None, None),
        Fate::Pending {
            failed: Some(reason),
        } => (PENDING, 1, None, Some(reason.as_str())),
        Fate::Delivered { .. } if !keeps_history => return Ok(()),
        Fate::Delivered { message_ids } => (DELIVERED, 1, Some(message_ids.join("\n")), None),
        Fate::Dead { reason, attempts } => (DEAD, *attempts, None, Some(reason.as_str())),
    };
    let facts = &event.facts;
    let document = facts.document.as_ref();
    let settled_at = (state != PENDING).then_some(now.as_millis());
    tx.prepare_cached(
        "INSERT INTO event (id, received_at, state, kind, model, uid, document, is_document_id, locale,
                            destination, options, size, is_text, attempts, due_at, settled_at, message_ids, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
    )?
    .execute(params![
        event.id.as_bytes(),
        event.received_at.as_millis(),
        state,
        facts.kind,
        facts.model,
        facts.uid,
        document.map(|document| &document.id),
        document.is_some_and(|document| document.is_document_id),
        document.and_then(|document| document.locale.as_ref()),
        address.as_ref().map(|address| &address.destination),
        address.as_ref().map_or("", |address| address.options.as_str()),
        i64::try_from(event.payload.body.len()).unwrap_or(i64::MAX),
        is_text(&event.payload),
        attempts,
        event.received_at.as_millis(),
        settled_at,
        message_ids,
        reason,
    ])?;
    tx.prepare_cached("INSERT INTO payload (seq, headers, body) VALUES (?1, ?2, ?3)")?
        .execute(params![
            tx.last_insert_rowid(),
            write_headers(&event.payload.headers),
            &event.payload.body[..],
        ])?;
    match state {
        PENDING => change.pending += 1,
        DELIVERED => change.delivered += 1,
        _ => change.dead += 1,
    }
    Ok(())
}

fn settle(
    tx: &Transaction<'_>,
    settlement: &Settlement,
    now: Timestamp,
    keeps_history: bool,
    change: &mut Tally,
) -> Result<(), StoreError> {
    // Only what is pending can be settled: an event discarded meanwhile stays discarded.
    let changed = match &settlement.verdict {
        Verdict::Delivered { .. } if !keeps_history => remove_pending(tx, settlement.seq)?,
        Verdict::Delivered { message_ids } => tx
            .prepare_cached(
                "UPDATE event SET state = 1, attempts = attempts + 1, settled_at = ?2, message_ids = ?3,
                        reason = NULL WHERE seq = ?1 AND state = 0",
            )?
            .execute(params![settlement.seq.0, now.as_millis(), message_ids.join("\n")])?,
        Verdict::Postponed { due_at, reason } => tx
            .prepare_cached(
                "UPDATE event SET attempts = attempts + 1, due_at = ?2, reason = ?3 WHERE seq = ?1 AND state = 0",
            )?
            .execute(params![settlement.seq.0, due_at.as_millis(), reason])?,
        Verdict::Dead { reason, attempted } => tx
            .prepare_cached(
                "UPDATE event SET state = 2, attempts = attempts + ?4, settled_at = ?2, reason = ?3
                 WHERE seq = ?1 AND state = 0",
            )?
            .execute(params![settlement.seq.0, now.as_millis(), reason, i64::from(*attempted)])?,
    };
    if changed == 1 {
        match settlement.verdict {
            Verdict::Postponed { .. } => {}
            Verdict::Delivered { .. } => {
                change.pending -= 1;
                change.delivered += i64::from(keeps_history);
            }
            Verdict::Dead { .. } => {
                change.pending -= 1;
                change.dead += 1;
            }
        }
    }
    Ok(())
}

fn remove_pending(tx: &Transaction<'_>, seq: Seq) -> Result<usize, StoreError> {
    let removed = tx
        .prepare_cached("DELETE FROM event WHERE seq = ?1 AND state = 0")?
        .execute([seq.0])?;
    if removed == 1 {
        tx.prepare_cached("DELETE FROM payload WHERE seq = ?1")?
            .execute([seq.0])?;
    }
    Ok(removed)
}

fn remove(tx: &Transaction<'_>, seq: Seq) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM event WHERE seq = ?1")?
        .execute([seq.0])?;
    tx.prepare_cached("DELETE FROM payload WHERE seq = ?1")?
        .execute([seq.0])?;
    Ok(())
}

fn add_tally(tx: &Transaction<'_>, change: Tally) -> Result<Tally, StoreError> {
    for (state, by) in [
        (PENDING, change.pending),
        (DELIVERED, change.delivered),
        (DEAD, change.dead),
    ] {
        if by != 0 {
            tx.prepare_cached("UPDATE tally SET count = count + ?2 WHERE state = ?1")?
                .execute([state, by])?;
        }
    }
    read_tally(tx)
}

fn read_tally(db: &Connection) -> Result<Tally, StoreError> {
    let mut tally = Tally::default();
    let mut statement = db.prepare_cached("SELECT state, count FROM tally")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        match row.get::<_, i64>(0)? {
            PENDING => tally.pending = row.get(1)?,
            DELIVERED => tally.delivered = row.get(1)?,
            _ => tally.dead = row.get(1)?,
        }
    }
    Ok(tally)
}

/// The reading side. Each read is short and limited: a reader that holds its snapshot
/// keeps the log from being begun anew, and it grows by a gigabyte in seconds.
pub(super) struct Reader {
    db: Connection,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let db = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        db.pragma_update(None, "cache_size", -1024)?;
        Ok(Self { db })
    }

    /// Pending events after `after`, in order of arrival, without those for a destination
    /// in `held`; with them the last seq that was looked at.
    pub(super) fn pending(
        &self,
        after: Seq,
        held: &[String],
        limit: usize,
    ) -> Result<Vec<Pending>, StoreError> {
        let held = serde_json::to_string(held).unwrap_or_else(|_| "[]".to_owned());
        let mut statement = self.statement(&select_pending(
            "seq > ?1 AND destination NOT IN (SELECT value FROM json_each(?2)) ORDER BY seq LIMIT ?3",
        ))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![after.0, held, limit], pending_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The oldest pending event for a destination.
    pub(super) fn first_for(&self, destination: &str) -> Result<Option<Pending>, StoreError> {
        let mut statement =
            self.statement(&select_pending("destination = ?1 ORDER BY seq LIMIT 1"))?;
        Ok(statement.query_row([destination], pending_row).optional()?)
    }

    /// The bytes of these events, in their order; an event discarded meanwhile is left out.
    pub(super) fn payloads(&self, seqs: &[Seq]) -> Result<Vec<(Seq, Payload)>, StoreError> {
        let mut statement = self.statement("SELECT headers, body FROM payload WHERE seq = ?1")?;
        let mut payloads = Vec::with_capacity(seqs.len());
        for seq in seqs {
            let payload = statement
                .query_row([seq.0], |row| {
                    let headers: Vec<u8> = row.get(0)?;
                    let body: Vec<u8> = row.get(1)?;
                    Ok(Payload {
                        headers: read_headers(&headers),
                        body: Bytes::from(body),
                    })
                })
                .optional()?;
            payloads.extend(payload.map(|payload| (*seq, payload)));
        }
        Ok(payloads)
    }

    /// When the oldest pending event came.
    pub(super) fn oldest_pending(&self) -> Result<Option<Timestamp>, StoreError> {
        let mut statement =
            self.statement("SELECT received_at FROM event INDEXED BY event_pending WHERE state = 0 ORDER BY seq LIMIT 1")?;
        Ok(statement
            .query_row([], |row| row.get(0).map(Timestamp::from_millis))
            .optional()?)
    }

    /// How many events are in each state.
    pub(super) fn tally(&self) -> Result<Tally, StoreError> {
        read_tally(&self.db)
    }

    fn statement(&self, sql: &str) -> Result<CachedStatement<'_>, StoreError> {
        Ok(self.db.prepare_cached(sql)?)
    }
}

/// `INDEXED BY`: by itself SQLite walks the table from the seq on, and so through all of the
/// history that lies between.
fn select_pending(condition: &str) -> String {
    format!(
        "SELECT seq, id, received_at, kind, model, uid, document, is_document_id, locale, destination, options,
                size, is_text, attempts, replays, due_at
         FROM event INDEXED BY event_pending WHERE state = 0 AND {condition}"
    )
}

fn pending_row(row: &Row<'_>) -> rusqlite::Result<Pending> {
    let is_document_id = row.get(7)?;
    let locale = row.get(8)?;
    Ok(Pending {
        seq: Seq(row.get(0)?),
        id: EventId::from_bytes(row.get(1)?),
        received_at: Timestamp::from_millis(row.get(2)?),
        facts: Facts {
            kind: row.get(3)?,
            model: row.get(4)?,
            uid: row.get(5)?,
            document: row.get::<_, Option<String>>(6)?.map(|id| Document {
                id,
                is_document_id,
                locale,
            }),
        },
        address: Address {
            destination: row.get(9)?,
            options: row.get(10)?,
        },
        size: u64::try_from(row.get::<_, i64>(11)?).unwrap_or(0),
        is_text: row.get(12)?,
        attempts: row.get(13)?,
        replays: row.get(14)?,
        due_at: Timestamp::from_millis(row.get(15)?),
    })
}

/// Copies the log into the file while the writer goes on.
pub(super) struct Checkpointer {
    db: Connection,
}

impl Checkpointer {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "wal_autocheckpoint", 0)?;
        Ok(Self { db })
    }

    /// One pass; how many frames of the log are in the file now.
    pub(super) fn run(&self) -> Result<u32, StoreError> {
        let (_, copied) = self
            .db
            .wal_checkpoint_v2(None::<&str>, CheckpointMode::PASSIVE)?;
        Ok(u32::try_from(copied).unwrap_or(0))
    }
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let db = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    Ok(db)
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

/// Whether all of it fits into JSON strings unchanged, as a batch needs it.
fn is_text(payload: &Payload) -> bool {
    let headers_are_text = payload
        .headers
        .iter()
        .all(|(_, value)| std::str::from_utf8(value).is_ok());
    headers_are_text && std::str::from_utf8(&payload.body).is_ok()
}

fn write_headers(headers: &[(String, Bytes)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in headers {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value);
        text.extend_from_slice(b"\r\n");
    }
    text
}

fn read_headers(text: &[u8]) -> Vec<(String, Bytes)> {
    text.split_inclusive(|byte| *byte == b'\n')
        .filter_map(|line| {
            let line = line.strip_suffix(b"\r\n")?;
            let colon = line.windows(2).position(|pair| pair == b": ")?;
            let (name, value) = line.split_at_checked(colon)?;
            Some((
                String::from_utf8_lossy(name).into_owned(),
                Bytes::copy_from_slice(value.get(2..)?),
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_byte_for_byte() {
        let headers = vec![
            (
                "content-type".to_owned(),
                Bytes::from_static(b"application/json"),
            ),
            (
                "x-latin".to_owned(),
                Bytes::from_static(b"Gr\xfc\xdfe: \xe9"),
            ),
            ("x-empty".to_owned(), Bytes::new()),
        ];
        assert_eq!(read_headers(&write_headers(&headers)), headers);
    }

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
