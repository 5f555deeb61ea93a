//! A buffer file that is damaged, or gone from its place: what can be read is carried over
//! into a new file, and the old one is kept beside it for a person to look at.
//!
//! At each moment of it either the old file or the complete new one is where the next start
//! looks: a process that dies meanwhile loses nothing.

use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, Transaction, params, params_from_iter};

use super::count::Count;
use super::{
    DEAD, DELIVERED, FORMAT, PAGE_SIZE, PENDING, Store, StoreError, connect, files, log, payload,
    pragma, step,
};
use crate::buffer::{Seq, Tally, beside};
use crate::clock::Timestamp;
use crate::event::{EventId, Facts};

/// Rows read at a time: between two commits of the new file.
const ROWS: u32 = 256;

/// New events begin so far behind the last one that can be read: the numbers of those that
/// cannot must not be used again while somebody still knows them.
const GAP: i64 = 1_000_000;

/// What can be an event's number: what is read from a damaged page may be anything.
const NUMBERS: RangeInclusive<i64> = 1..=payload::LAST_SEQ;

/// Why an event without its bytes is a dead letter.
const NO_BYTES: &str = "its bytes were on a damaged page of the buffer file";

/// Why bytes without their event are a dead letter.
const NO_ROW: &str = "its row was on a damaged page of the buffer file, so where it should go, and whether it did, is not known";

/// What became of the old file.
#[derive(Debug)]
pub(in crate::buffer) struct Rescued {
    /// Where it is now; `None` where there was none left.
    pub(in crate::buffer) aside: Option<PathBuf>,
    /// Events that were carried over whole.
    pub(in crate::buffer) carried: u64,
    /// Events that became dead letters, since a part of them cannot be read.
    pub(in crate::buffer) in_part: u64,
}

/// Puts a new file in place of the one at `path`, with all that can be read. Where files are
/// gone from their place, `open` can still read them. Whoever else has the old file open must
/// open it again.
pub(in crate::buffer) fn rescue(
    path: &Path,
    open: Option<&Store>,
    now: Timestamp,
) -> Result<Rescued, StoreError> {
    let (new, source) = (beside(path, ".rescue"), beside(path, ".rescue-source"));
    remove_database(&new)?;
    remove_database(&source)?;
    remove_database(&finished(path))?;
    let mut into = Store::open(&new, true)?;
    into.leave_log_behind()?; // so that the first page is in the file
    let (carried, in_part) = match open {
        Some(store) => carry_over(&store.db, &mut into, now)?,
        None => {
            let is_salvaged = log::salvage(path, &source).map_err(StoreError::Io)?;
            let from = read_only(if is_salvaged { &source } else { path });
            let from = from.or_else(|_unreadable| {
                if !is_salvaged {
                    copy_with_log(path, &source).map_err(StoreError::Io)?;
                }
                transplant(&new, &source).map_err(StoreError::Io)?;
                read_only(&source)
            })?;
            if is_salvaged {
                // This file was never opened, so nobody has looked at that.
                match pragma(&from, "user_version")? {
                    FORMAT => {}
                    found => return Err(StoreError::Format { found }),
                }
            }
            carry_over(&from, &mut into, now)?
        }
    };
    into.leave_log_behind()?;
    drop(into); // the last connection takes the log away
    remove_database(&source)?;
    std::fs::rename(&new, finished(path)).map_err(StoreError::Io)?;
    files::sync_folder(path).map_err(StoreError::Io)?;
    let kind = if open.is_some() {
        "replaced"
    } else {
        "damaged"
    };
    let aside = settle_rescue(path, kind, now)?;
    Ok(Rescued {
        aside,
        carried,
        in_part,
    })
}

/// Ends a rescue whose new file is complete: the old file goes aside, the new one takes its
/// place. Also at each start, since the process may have died in between.
pub(in crate::buffer) fn settle_rescue(
    path: &Path,
    kind: &str,
    now: Timestamp,
) -> Result<Option<PathBuf>, StoreError> {
    let finished = finished(path);
    if !finished.exists() {
        return Ok(None);
    }
    let name = format!(".{kind}-{}", now.to_file_name());
    let aside = (1..)
        .map(|n| match n {
            1 => beside(path, &name),
            n => beside(path, &format!("{name}-{n}")),
        })
        .find(|aside| !aside.exists())
        .unwrap_or_else(|| beside(path, &name));
    // The log first: SQLite would read it into the new file.
    move_aside(&beside(path, "-wal"), &beside(&aside, "-wal"))?;
    files::remove(&beside(path, "-shm")).map_err(StoreError::Io)?;
    let was_there = move_aside(path, &aside)?;
    files::sync_folder(path).map_err(StoreError::Io)?;
    std::fs::rename(&finished, path).map_err(StoreError::Io)?;
    files::sync_folder(path).map_err(StoreError::Io)?;
    Ok(was_there.then_some(aside))
}

fn finished(path: &Path) -> PathBuf {
    beside(path, ".rescued")
}

fn move_aside(from: &Path, to: &Path) -> Result<bool, StoreError> {
    match std::fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::Io(error)),
    }
}

fn remove_database(path: &Path) -> Result<(), StoreError> {
    files::remove_database(path).map_err(StoreError::Io)
}

fn read_only(path: &Path) -> Result<Connection, StoreError> {
    let db = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name IN ('event', 'payload')";
    match db.query_row(tables, [], |row| row.get::<_, i64>(0))? {
        2 => Ok(db),
        _ => Err(StoreError::NotABuffer),
    }
}

fn copy_with_log(path: &Path, copy: &Path) -> std::io::Result<()> {
    let log = beside(path, "-wal");
    if log.exists() {
        std::fs::copy(log, beside(copy, "-wal"))?;
    }
    std::fs::copy(path, copy).map(|_| ())
}

/// Gives the copy of a file the first page of a new one: that page says where the tables begin,
/// which is the same in each buffer.
fn transplant(new: &Path, copy: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;

    let page_size = usize::try_from(PAGE_SIZE).unwrap_or(usize::MAX);
    let mut page = std::fs::read(new)?;
    page.resize(page_size, 0);
    let copy = std::fs::OpenOptions::new().write(true).open(copy)?;
    let pages = copy.metadata()?.len() / u64::from(PAGE_SIZE);
    // <https://sqlite.org/fileformat2.html#the_database_header>: the number of pages, and
    // no list of free ones, since where it begins is lost.
    let mut field = |at: usize, value: u32| {
        if let Some(field) = page.get_mut(at..at + 4) {
            field.copy_from_slice(&value.to_be_bytes());
        }
    };
    field(28, u32::try_from(pages).unwrap_or(u32::MAX));
    field(32, 0);
    field(36, 0);
    copy.write_all_at(&page, 0)
}

/// How many events were carried over whole, and how many in part.
fn carry_over(
    from: &Connection,
    into: &mut Store,
    now: Timestamp,
) -> Result<(u64, u64), StoreError> {
    let (last, before) = (last_seqs(from), Count::read_row(from));
    // Where the counts cannot be read, what was purged could not be told from what is lost.
    let before = before.map_or_else(|_| Count::default(), |count| count.up_to(agreed(last)));
    let (mut carried, mut in_part, mut highest) = (0, 0, 0);
    let mut found = Tally::default();
    from.execute_batch("BEGIN")?; // one look at it, and fewer locks
    let columns: Vec<&str> = COLUMNS.split_whitespace().collect();
    let select = format!("SELECT seq, {} FROM event", columns.join(", "));
    let read = |row: &Row<'_>| {
        let values = (1..=columns.len()).map(|at| row.get::<_, Value>(at));
        Ok((row.get(0)?, values.collect::<Result<Vec<_>, _>>()?))
    };
    walk(from, &select, read, |rows| {
        let tx = into.db.transaction()?;
        for (seq, values) in rows {
            let whole = payload::copy(from, &tx, Seq(seq))?;
            if insert(&tx, seq, values, &columns, whole, now, &mut found)? {
                *(if whole { &mut carried } else { &mut in_part }) += 1;
                step::copy(from, &tx, Seq(seq))?;
                highest = highest.max(seq);
            } else {
                payload::delete(&tx, Seq(seq))?;
            }
        }
        Ok(tx.commit()?)
    })?;
    let read = |row: &Row<'_>| Ok((row.get(0)?, ()));
    walk(from, "SELECT seq FROM payload", read, |rows| {
        let tx = into.db.transaction()?;
        for (seq, ()) in rows {
            let known = "SELECT count(*) FROM event WHERE seq = ?1";
            let known: i64 = tx
                .prepare_cached(known)?
                .query_row([seq], |row| row.get(0))?;
            if known == 0 && payload::copy(from, &tx, Seq(seq))? {
                insert_orphan(&tx, Seq(seq), now)?;
                found.dead += 1;
                in_part += 1;
                highest = highest.max(seq);
            }
        }
        Ok(tx.commit()?)
    })?;
    from.execute_batch("COMMIT").ok(); // damage may have ended it
    let last = last.into_iter().fold(highest.max(before.last), i64::max);
    let count = Count {
        tally: account(found, before.tally),
        last: last.min(payload::LAST_SEQ) + GAP,
    };
    count.write(&into.db)?;
    into.count = count;
    Ok((carried, in_part))
}

/// What became of the events that are here no more is known from the old file, and so is how
/// many of those that should be here cannot be read.
fn account(found: Tally, before: Tally) -> Tally {
    let known = Tally {
        forgotten: before.forgotten,
        discarded: before.discarded,
        lost: before.lost,
        ..found
    };
    let accepted = before.accepted.max(known.sum());
    Tally {
        lost: known.lost + accepted - known.sum(),
        accepted,
        ..known
    }
}

const COLUMNS: &str = "state id received_at stored_at kind model uid document is_document_id locale destination \
                       options size is_text attempts replays due_at settled_at message_ids reason";

/// `false`: the row is no event.
fn insert(
    tx: &Transaction<'_>,
    seq: i64,
    mut values: Vec<Value>,
    columns: &[&str],
    whole: bool,
    now: Timestamp,
    found: &mut Tally,
) -> Result<bool, StoreError> {
    let mut set = |column: &str, value: Value| {
        let at = columns.iter().position(|name| *name == column);
        if let Some(slot) = at.and_then(|at| values.get_mut(at)) {
            *slot = value;
        }
    };
    if !whole {
        set("state", Value::Integer(DEAD));
        set("settled_at", Value::Integer(now.as_millis()));
        set("reason", Value::Text(NO_BYTES.to_owned()));
    }
    let state = match values.first() {
        Some(Value::Integer(state @ (PENDING | DELIVERED | DEAD))) => *state,
        _ => return Ok(false),
    };
    let places: Vec<String> = (1..=values.len() + 1).map(|n| format!("?{n}")).collect();
    let sql = format!(
        "INSERT INTO event (seq, {}) VALUES ({})",
        columns.join(", "),
        places.join(", ")
    );
    let row = std::iter::once(Value::Integer(seq)).chain(values);
    match tx.prepare_cached(&sql)?.execute(params_from_iter(row)) {
        Ok(_) => {
            *found.of(state) += 1;
            Ok(true)
        }
        // A row that the table would never have taken.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// An event for bytes that have lost theirs.
fn insert_orphan(tx: &Transaction<'_>, seq: Seq, now: Timestamp) -> Result<(), StoreError> {
    let body: Vec<u8> = tx
        .prepare_cached("SELECT body FROM payload WHERE seq = ?1")?
        .query_row([seq.0], |row| row.get(0))?;
    let facts = Facts::read(&body).unwrap_or_default();
    let kind = match facts.kind.as_str() {
        "" => "unknown",
        kind => kind,
    };
    tx.prepare_cached(
        "INSERT INTO event (seq, id, received_at, stored_at, state, kind, model, uid, is_document_id, options, size, is_text,
                            attempts, due_at, settled_at, reason)
         VALUES (?1, ?2, ?3, ?3, 2, ?4, ?5, ?6, 0, '', ?7, 0, 0, ?3, ?3, ?8)",
    )?
    .execute(params![
        seq.0,
        EventId::new().as_bytes(),
        now.as_millis(),
        kind,
        facts.model,
        facts.uid,
        i64::try_from(body.len()).unwrap_or(i64::MAX),
        NO_ROW,
    ])?;
    Ok(())
}

/// Reads all rows that can be read, in order, and gives them on by the hundreds. Over a
/// damaged page it goes row by row, since SQLite cannot say where the next good one begins.
fn walk<T>(
    from: &Connection,
    select: &str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<(i64, T)>,
    mut each: impl FnMut(Vec<(i64, T)>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let range = format!("{select} WHERE seq > ?1 ORDER BY seq LIMIT ?2");
    let one = format!("{select} WHERE seq = ?1");
    let mut seen = 0;
    let mut known = None;
    loop {
        let (mut rows, mut failed) = readable(from, &range, params![seen, ROWS], &read);
        // A page that is older than those around it may have rows in it that are elsewhere by
        // now: SQLite gives them as they lie.
        let (found, before) = (rows.len(), seen);
        rows.retain(|(seq, _)| {
            let is_new = *seq > seen && NUMBERS.contains(seq);
            seen = if is_new { *seq } else { seen };
            is_new
        });
        failed |= found > 0 && seen == before;
        if failed {
            let known: &Vec<i64> = known.get_or_insert_with(|| known_seqs(from));
            let behind = known.partition_point(|seq| *seq <= seen);
            let next = known.iter().skip(behind).find_map(|seq| {
                let mut row = from.prepare_cached(&one).ok()?;
                row.query_row([seq], &read).ok()
            });
            seen = next.as_ref().map_or(i64::MAX, |(seq, _)| *seq);
            rows.extend(next);
        }
        if rows.is_empty() {
            return Ok(());
        }
        each(rows)?;
    }
}

/// The rows up to the first that cannot be read, and whether there was such a one.
fn readable<T>(
    from: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> (Vec<T>, bool) {
    let mut rows = Vec::new();
    let all = || {
        for row in from.prepare_cached(sql)?.query_map(parameters, read)? {
            rows.push(row?);
        }
        Ok::<_, rusqlite::Error>(())
    };
    let failed = { all }().is_err();
    (rows, failed)
}

/// The numbers of all events, from wherever they can be read: each stands in several places.
fn known_seqs(from: &Connection) -> Vec<i64> {
    let mut seqs: Vec<i64> = [
        "SELECT seq FROM payload",
        "SELECT seq FROM event INDEXED BY sqlite_autoindex_event_1 WHERE id > x''",
        "SELECT seq FROM event INDEXED BY event_pending WHERE state = 0",
        "SELECT seq FROM event INDEXED BY event_dead WHERE state = 2",
        "SELECT seq FROM event INDEXED BY event_delivered WHERE state = 1",
    ]
    .iter()
    .flat_map(|sql| readable(from, sql, [], |row| row.get(0)).0)
    .collect();
    seqs.sort_unstable();
    seqs.dedup();
    seqs
}

/// The highest numbers, from wherever they can be read; 0 where not.
fn last_seqs(from: &Connection) -> [i64; 3] {
    [
        "SELECT max(seq) FROM event",
        "SELECT max(seq) FROM payload",
        "SELECT max(seq) FROM event INDEXED BY event_pending WHERE state = 0",
    ]
    .map(|sql| from.query_row(sql, [], |row| row.get(0)).unwrap_or(0))
    .map(|seq| if NUMBERS.contains(&seq) { seq } else { 0 })
}

/// What is behind the counted is pending, and stands in three places, of which one may be damaged:
/// the number that two of them agree on.
fn agreed([event, payload, pending]: [i64; 3]) -> i64 {
    match event == payload || event == pending {
        true => event,
        false if payload == pending => payload,
        false => 0,
    }
}
