//! The changes: each within a transaction of the writer's.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{
    ACCEPTED, DEAD, DELIVERED, DISCARDED, FORGOTTEN, LOST, PENDING, StoreError, payload, step,
};
use crate::buffer::{Address, Fate, NewEvent, Seq, Settlement, StepKind, Tally, Verdict};
use crate::clock::Timestamp;

pub(super) fn append(
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
    // It may be there already: a commit whose fsync failed is tried once more.
    let inserted = tx.prepare_cached(
        "INSERT INTO event (id, received_at, state, kind, model, uid, document, is_document_id, locale,
                            destination, options, size, is_text, attempts, due_at, settled_at, message_ids, reason, stored_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)
         ON CONFLICT (id) DO NOTHING",
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
        payload::is_text(&event.payload),
        attempts,
        event.received_at.as_millis(),
        settled_at,
        message_ids,
        reason,
        now.as_millis(),
    ])?;
    if inserted == 0 {
        return Ok(());
    }
    let seq = Seq(tx.last_insert_rowid());
    payload::insert(tx, seq, &event.payload)?;
    if let Fate::Pending {
        failed: Some(reason),
    } = fate
    {
        step::note(tx, seq, StepKind::Failed, now, reason)?;
    }
    *change.of(state) += 1;
    change.accepted += 1;
    Ok(())
}

pub(super) fn settle(
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
        match &settlement.verdict {
            Verdict::Postponed { reason, .. } => {
                step::note(tx, settlement.seq, StepKind::Failed, now, reason)?;
            }
            Verdict::Delivered { .. } => {
                change.pending -= 1;
                match keeps_history {
                    true => change.delivered += 1,
                    false => change.forgotten += 1,
                }
            }
            Verdict::Dead { .. } => {
                change.pending -= 1;
                change.dead += 1;
            }
        }
    }
    Ok(())
}

/// Without its bytes, or without a place to go, an event stays what it is.
pub(super) fn replay(
    tx: &Transaction<'_>,
    events: &[(Seq, Option<Address>)],
    now: Timestamp,
    change: &mut Tally,
) -> Result<u64, StoreError> {
    let mut count = 0;
    for (seq, address) in events {
        let Some((state, settled_at, words)) = settled(tx, *seq)? else {
            continue;
        };
        let changed = tx
            .prepare_cached(
                "UPDATE event SET state = 0, replays = replays + 1, due_at = ?2, settled_at = NULL, message_ids = NULL,
                        reason = NULL, options = iif(destination IS NULL, ifnull(?4, ''), options),
                        destination = ifnull(destination, ?3)
                 WHERE seq = ?1 AND ifnull(destination, ?3) IS NOT NULL
                   AND EXISTS (SELECT 1 FROM payload WHERE payload.seq = event.seq)",
            )?
            .execute(params![
                seq.0,
                now.as_millis(),
                address.as_ref().map(|address| &address.destination),
                address.as_ref().map(|address| &address.options),
            ])?;
        if changed == 1 {
            // The row tells the new life; what ended the old one goes on being known.
            let ended = match state {
                DELIVERED => StepKind::Delivered,
                _ => StepKind::Dead,
            };
            step::note(tx, *seq, ended, settled_at, &words)?;
            step::note(tx, *seq, StepKind::Replayed, now, "")?;
            *change.of(state) -= 1;
            change.pending += 1;
            count += 1;
        }
    }
    Ok(count)
}

pub(super) fn discard(
    tx: &Transaction<'_>,
    seqs: &[Seq],
    change: &mut Tally,
) -> Result<u64, StoreError> {
    let mut count = 0;
    for seq in seqs {
        if let Some(state) = state_of(tx, *seq)? {
            remove(tx, *seq)?;
            *change.of(state) -= 1;
            change.discarded += 1;
            count += 1;
        }
    }
    Ok(count)
}

/// State, time and words of an event that is settled.
fn settled(tx: &Transaction<'_>, seq: Seq) -> Result<Option<(i64, Timestamp, String)>, StoreError> {
    let mut statement = tx.prepare_cached(
        "SELECT state, ifnull(settled_at, received_at), ifnull(iif(state = 1, message_ids, reason), '')
         FROM event WHERE seq = ?1 AND state <> 0",
    )?;
    let row = statement.query_row([seq.0], |row| {
        Ok((
            row.get(0)?,
            Timestamp::from_millis(row.get(1)?),
            row.get(2)?,
        ))
    });
    Ok(row.optional()?)
}

fn state_of(tx: &Transaction<'_>, seq: Seq) -> Result<Option<i64>, StoreError> {
    let mut statement = tx.prepare_cached("SELECT state FROM event WHERE seq = ?1")?;
    Ok(statement.query_row([seq.0], |row| row.get(0)).optional()?)
}

impl Tally {
    /// The count of a state as it is stored.
    pub(super) fn of(&mut self, state: i64) -> &mut i64 {
        match state {
            PENDING => &mut self.pending,
            DELIVERED => &mut self.delivered,
            FORGOTTEN => &mut self.forgotten,
            DISCARDED => &mut self.discarded,
            ACCEPTED => &mut self.accepted,
            LOST => &mut self.lost,
            _ => &mut self.dead,
        }
    }
}

fn remove_pending(tx: &Transaction<'_>, seq: Seq) -> Result<usize, StoreError> {
    let removed = tx
        .prepare_cached("DELETE FROM event WHERE seq = ?1 AND state = 0")?
        .execute([seq.0])?;
    if removed == 1 {
        payload::delete(tx, seq)?;
        step::delete(tx, seq)?;
    }
    Ok(removed)
}

pub(super) fn remove(tx: &Transaction<'_>, seq: Seq) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM event WHERE seq = ?1")?
        .execute([seq.0])?;
    payload::delete(tx, seq)?;
    step::delete(tx, seq)
}

pub(super) fn add_tally(tx: &Transaction<'_>, change: Tally) -> Result<Tally, StoreError> {
    for (state, by) in [
        (PENDING, change.pending),
        (DELIVERED, change.delivered),
        (DEAD, change.dead),
        (FORGOTTEN, change.forgotten),
        (DISCARDED, change.discarded),
        (ACCEPTED, change.accepted),
        (LOST, change.lost),
    ] {
        if by != 0 {
            tx.prepare_cached("UPDATE tally SET count = count + ?2 WHERE state = ?1")?
                .execute([state, by])?;
        }
    }
    read_tally(tx)
}

pub(super) fn read_tally(db: &Connection) -> Result<Tally, StoreError> {
    let mut tally = Tally::default();
    let mut statement = db.prepare_cached("SELECT state, count FROM tally")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        *tally.of(row.get(0)?) = row.get(1)?;
    }
    Ok(tally)
}
