//! The reading side.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use rusqlite::{CachedStatement, Connection, OpenFlags, OptionalExtension, Row, params};

use super::count::Count;
use super::{APPLICATION_ID, FORMAT, PAGE_SIZE, StoreError, connect, payload, pragma};
use crate::buffer::{Address, Found, Pending, Seq, StoredPayload, Tally};
use crate::clock::Timestamp;
use crate::event::{Document, EventId, Facts};

/// The reading side. Each read is short and limited: a reader that holds its snapshot
/// keeps the log from being begun anew, and it grows by a gigabyte in seconds.
pub(in crate::buffer) struct Reader {
    pub(super) db: Connection,
}

impl Reader {
    pub(in crate::buffer) fn open(path: &Path) -> Result<Self, StoreError> {
        let db = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        db.pragma_update(None, "cache_size", -1024)?;
        Ok(Self { db })
    }

    /// Of a file that nobody has open: as it lies, without the log that SQLite would make to
    /// read it. What is read while somebody opens it may make no sense.
    pub(in crate::buffer) fn open_at_rest(path: &Path) -> Result<Self, StoreError> {
        let mut uri = b"file://".to_vec();
        for byte in std::path::absolute(path)
            .map_err(StoreError::Io)?
            .as_os_str()
            .as_bytes()
        {
            match byte {
                b'%' | b'?' | b'#' => uri.extend_from_slice(format!("%{byte:02X}").as_bytes()),
                byte => uri.push(*byte),
            }
        }
        uri.extend_from_slice(b"?immutable=1");
        let access = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let db = connect(Path::new(OsStr::from_bytes(&uri)), access)?;
        Ok(Self { db })
    }

    /// Whether this version can read the file.
    pub(in crate::buffer) fn check_format(&self) -> Result<(), StoreError> {
        let application: i32 = pragma(&self.db, "application_id")?;
        match (application, pragma(&self.db, "user_version")?) {
            (APPLICATION_ID, FORMAT) => Ok(()),
            (APPLICATION_ID, found) => Err(StoreError::Format { found }),
            _ => Err(StoreError::NotABuffer),
        }
    }

    /// How many events are in each state.
    pub(in crate::buffer) fn tally(&self) -> Result<Tally, StoreError> {
        Ok(Count::read(&self.db)?.tally)
    }

    /// Bytes of the pages in use. Free pages do not count: the next events go there.
    pub(in crate::buffer) fn used_bytes(&self) -> Result<u64, StoreError> {
        let (all, free): (i64, i64) = (
            pragma(&self.db, "page_count")?,
            pragma(&self.db, "freelist_count")?,
        );
        let used = u64::try_from(all.saturating_sub(free)).unwrap_or(0);
        Ok(used * u64::from(PAGE_SIZE))
    }

    /// Pending events after `after`, in order of arrival, without those for a destination
    /// in `held`; with them the last seq that was looked at.
    pub(in crate::buffer) fn pending(
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
    pub(in crate::buffer) fn first_for(
        &self,
        destination: &str,
    ) -> Result<Option<Pending>, StoreError> {
        let mut statement =
            self.statement(&select_pending("destination = ?1 ORDER BY seq LIMIT 1"))?;
        Ok(statement.query_row([destination], pending_row).optional()?)
    }

    /// The event of this name.
    pub(in crate::buffer) fn find(&self, id: EventId) -> Result<Option<Found>, StoreError> {
        let mut statement = self.statement(
            "SELECT seq, destination IS NOT NULL, kind, model, uid, document, is_document_id, locale
             FROM event WHERE id = ?1",
        )?;
        let found = |row: &Row<'_>| {
            Ok(Found {
                seq: Seq(row.get(0)?),
                has_address: row.get(1)?,
                facts: facts(row, 2)?,
            })
        };
        Ok(statement.query_row([id.as_bytes()], found).optional()?)
    }

    /// The bytes of an event; `None` when it is gone.
    pub(in crate::buffer) fn payload(&self, seq: Seq) -> Result<Option<StoredPayload>, StoreError> {
        payload::read(&self.db, seq)
    }

    /// A piece of a large body; `None` when the event is gone.
    pub(in crate::buffer) fn piece(
        &self,
        seq: Seq,
        number: u32,
    ) -> Result<Option<Bytes>, StoreError> {
        payload::read_piece(&self.db, seq, number)
    }

    /// When the oldest pending event came.
    pub(in crate::buffer) fn oldest_pending(&self) -> Result<Option<Timestamp>, StoreError> {
        let mut statement =
            self.statement("SELECT received_at FROM event INDEXED BY event_pending WHERE state = 0 ORDER BY seq LIMIT 1")?;
        Ok(statement
            .query_row([], |row| row.get(0).map(Timestamp::from_millis))
            .optional()?)
    }

    pub(super) fn statement(&self, sql: &str) -> Result<CachedStatement<'_>, StoreError> {
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
    Ok(Pending {
        seq: Seq(row.get(0)?),
        id: EventId::from_bytes(row.get(1)?),
        received_at: Timestamp::from_millis(row.get(2)?),
        facts: facts(row, 3)?,
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

/// From kind, model, uid, document, is_document_id and locale, of which the first is in column
/// `first`.
pub(super) fn facts(row: &Row<'_>, first: usize) -> rusqlite::Result<Facts> {
    let is_document_id = row.get(first + 4)?;
    let locale = row.get(first + 5)?;
    Ok(Facts {
        kind: row.get(first)?,
        model: row.get(first + 1)?,
        uid: row.get(first + 2)?,
        document: row.get::<_, Option<String>>(first + 3)?.map(|id| Document {
            id,
            is_document_id,
            locale,
        }),
    })
}
