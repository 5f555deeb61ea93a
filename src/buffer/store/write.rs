//! The changes: each within a transaction of the writer's.

use rusqlite::{CachedStatement, OptionalExtension, Transaction, params};

use super::count::Count;
use super::{DEAD, DELIVERED, PENDING, StoreError, payload, step};
use crate::buffer::{Address, Fate, NewEvent, Seq, Settlement, StepKind, Tally, Verdict};
use crate::clock::Timestamp;

/// Appends events, with statements that are prepared once for all of them.
pub(super) struct Append<'tx> {
    tx: &'tx Transaction<'tx>,
    now: Timestamp,
    keeps_history: bool,
    row: CachedStatement<'tx>,
    bytes: payload::Insert<'tx>,
}

impl<'tx> Append<'tx> {
    pub(super) fn new(
        tx: &'tx Transaction<'tx>,
        now: Timestamp,
        keeps_history: bool,
    ) -> Result<Self, StoreError> {
        // It may be there already: a commit whose fsync failed is tried once more.
        let row = tx.prepare_cached(
            "INSERT INTO event (seq, id, received_at, state, kind, model, uid, document, is_document_id, locale,
                                destination, options, size, is_text, attempts, due_at, settled_at, message_ids, reason, stored_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)
             ON CONFLICT (id) DO NOTHING",
        )?;
        let bytes = payload::Insert::new(tx)?;
        Ok(Self {
            tx,
            now,
            keeps_history,
            row,
            bytes,
        })
    }

    pub(super) fn event(&mut self, new: &NewEvent, count: &mut Count) -> Result<(), StoreError> {
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
            Fate::Delivered { .. } if !self.keeps_history => return Ok(()),
            Fate::Delivered { message_ids } => (DELIVERED, 1, Some(message_ids.join("\n")), None),
            Fate::Dead { reason, attempts } => (DEAD, *attempts, None, Some(reason.as_str())),
        };
        let facts = &event.facts;
        let document = facts.document.as_ref();
        let settled_at = (state != PENDING).then_some(self.now.as_millis());
        let seq = Seq(count.last + 1);
        let inserted = self.row.execute(params![
            seq.0,
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
            address
                .as_ref()
                .map_or("", |address| address.options.as_str()),
            i64::try_from(event.payload.body.len()).unwrap_or(i64::MAX),
            payload::is_text(&event.payload),
            attempts,
            event.received_at.as_millis(),
            settled_at,
            message_ids,
            reason,
            self.now.as_millis(),
        ])?;
        if inserted == 0 {
            return Ok(());
        }
        self.bytes.payload(seq, &event.payload)?;
        if let Fate::Pending {
            failed: Some(reason),
        } = fate
        {
            step::note(self.tx, seq, StepKind::Failed, self.now, reason)?;
        }
        *count.tally.of(state) += 1;
        count.tally.accepted += 1;
        count.last = seq.0;
        Ok(())
    }
}

pub(super) fn settle(
    tx: &Transaction<'_>,
    settlement: &Settlement,
    now: Timestamp,
    keeps_history: bool,
    tally: &mut Tally,
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
                tally.pending -= 1;
                match keeps_history {
                    true => tally.delivered += 1,
                    false => tally.forgotten += 1,
                }
            }
            Verdict::Dead { .. } => {
                tally.pending -= 1;
                tally.dead += 1;
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
    tally: &mut Tally,
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
            *tally.of(state) -= 1;
            tally.pending += 1;
            count += 1;
        }
    }
    Ok(count)
}

pub(super) fn discard(
    tx: &Transaction<'_>,
    seqs: &[Seq],
    tally: &mut Tally,
) -> Result<u64, StoreError> {
    let mut count = 0;
    for seq in seqs {
        if let Some(state) = state_of(tx, *seq)? {
            remove(tx, *seq)?;
            *tally.of(state) -= 1;
            tally.discarded += 1;
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
