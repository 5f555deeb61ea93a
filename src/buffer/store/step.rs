//! What events went through, for people. It is written with the outcome that it belongs to, in
//! one transaction; an event that passes at the first attempt leaves nothing here.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::StoreError;
use crate::buffer::{Seq, Step, StepKind};
use crate::clock::Timestamp;

/// Rows of one event. An outage makes one of all its attempts; beyond this the oldest go.
const MOST: i64 = 16;

const NUMBER_BITS: u32 = 16;
const LAST_NUMBER: i64 = (1 << NUMBER_BITS) - 1;

pub(super) fn note(
    tx: &Transaction<'_>,
    seq: Seq,
    kind: StepKind,
    at: Timestamp,
    words: &str,
) -> Result<(), StoreError> {
    let last = tx
        .prepare_cached(
            "SELECT place, what = ?3 AND words = ?4 FROM step WHERE place BETWEEN ?1 AND ?2
             ORDER BY place DESC LIMIT 1",
        )?
        .query_row(
            params![place(seq, 0), place(seq, LAST_NUMBER), raw(kind), words],
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, bool>(1)?)),
        )
        .optional()?;
    if let Some((place, true)) = last
        && kind == StepKind::Failed
    {
        tx.prepare_cached("UPDATE step SET last_at = ?2, count = count + 1 WHERE place = ?1")?
            .execute([place, at.as_millis()])?;
        return Ok(());
    }
    let number = last.map_or(0, |(place, _)| ((place & LAST_NUMBER) + 1).min(LAST_NUMBER));
    tx.prepare_cached(
        "INSERT OR REPLACE INTO step (place, what, first_at, last_at, count, words) VALUES (?1, ?2, ?3, ?3, 1, ?4)",
    )?
    .execute(params![place(seq, number), raw(kind), at.as_millis(), words])?;
    if number >= MOST {
        tx.prepare_cached("DELETE FROM step WHERE place BETWEEN ?1 AND ?2")?
            .execute([place(seq, 0), place(seq, number - MOST)])?;
    }
    Ok(())
}

pub(super) fn delete(tx: &Transaction<'_>, seq: Seq) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM step WHERE place BETWEEN ?1 AND ?2")?
        .execute([place(seq, 0), place(seq, LAST_NUMBER)])?;
    Ok(())
}

/// In their order.
pub(super) fn read(db: &Connection, seq: Seq) -> Result<Vec<Step>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT what, first_at, last_at, count, words FROM step WHERE place BETWEEN ?1 AND ?2 ORDER BY place",
    )?;
    let step = |row: &Row<'_>| {
        Ok(Step {
            kind: match row.get(0)? {
                1 => StepKind::Delivered,
                2 => StepKind::Dead,
                3 => StepKind::Replayed,
                _ => StepKind::Failed,
            },
            first_at: Timestamp::from_millis(row.get(1)?),
            last_at: Timestamp::from_millis(row.get(2)?),
            count: row.get(3)?,
            words: row.get(4)?,
        })
    };
    let range = [place(seq, 0), place(seq, LAST_NUMBER)];
    let steps = statement.query_map(range, step)?;
    Ok(steps.collect::<Result<_, _>>()?)
}

/// Copies what can be read from another file: only people miss the rest.
pub(super) fn copy(from: &Connection, tx: &Transaction<'_>, seq: Seq) -> Result<(), StoreError> {
    for (number, step) in (0..).zip(read(from, seq).unwrap_or_default()) {
        tx.prepare_cached(
            "INSERT OR REPLACE INTO step (place, what, first_at, last_at, count, words) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            place(seq, number),
            raw(step.kind),
            step.first_at.as_millis(),
            step.last_at.as_millis(),
            step.count,
            step.words
        ])?;
    }
    Ok(())
}

fn place(seq: Seq, number: i64) -> i64 {
    seq.0 << NUMBER_BITS | number
}

fn raw(kind: StepKind) -> i64 {
    match kind {
        StepKind::Failed => 0,
        StepKind::Delivered => 1,
        StepKind::Dead => 2,
        StepKind::Replayed => 3,
    }
}
