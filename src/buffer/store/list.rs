//! Lists for people: what was received, by state, kind, type, document and time.
//!
//! One call looks at so many rows and no more, whatever the filter lets pass, and says where to
//! go on: a list over a million events must hold no snapshot that long.

use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Row, params, params_from_iter};

use super::read::{Reader, facts};
use super::{DEAD, DELIVERED, PENDING, StoreError, step};
use crate::buffer::{EventState, Filter, ListFrom, Listed, Page, Seq, Step};
use crate::clock::Timestamp;
use crate::event::EventId;

/// Rows looked at in one statement: some 2 ms.
const LOOK: i64 = 2_000;

const COLUMNS: &str = "seq, id, received_at, state, kind, model, uid, document, is_document_id, locale, destination, \
                       options, size, attempts, replays, due_at, settled_at, message_ids, reason, stored_at";

impl Reader {
    /// Events that pass the filter, at most `limit`.
    pub(in crate::buffer) fn list(
        &self,
        filter: &Filter,
        from: ListFrom,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let (table, state) = source(filter.state);
        let (cursor, order, beyond, edge, up_to) = match from {
            ListFrom::Newest(before) => {
                (before.map_or(i64::MAX, Seq::raw), "DESC", "<", "min", ">=")
            }
            ListFrom::Oldest(after) => (after.raw(), "ASC", ">", "max", "<="),
        };
        let looked = format!(
            "SELECT {edge}(seq), count(*) FROM (SELECT seq FROM {table} WHERE {state} AND seq {beyond} ?1 ORDER BY seq {order} LIMIT ?2)"
        );
        let (last, count): (Option<i64>, i64) = self
            .statement(&looked)?
            .query_row(params![cursor, LOOK], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let Some(last) = last else {
            return Ok(Page::default());
        };
        let mut values = vec![
            Value::Integer(cursor),
            Value::Integer(last),
            Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)),
        ];
        let mut condition = format!("{state} AND seq {beyond} ?1 AND seq {up_to} ?2");
        let mut also = |text: &str, value: Value| {
            values.push(value);
            condition.push_str(&format!(" AND {text} ?{}", values.len()));
        };
        if let Some(kind) = &filter.kind {
            also("kind GLOB", Value::Text(glob(kind)));
        }
        if let Some(uid) = &filter.uid {
            let column = if uid.contains("::") { "uid" } else { "model" };
            also(&format!("{column} GLOB"), Value::Text(glob(uid)));
        }
        if let Some(document) = &filter.document {
            also("document =", Value::Text(document.clone()));
        }
        if let Some(since) = filter.since {
            also("received_at >=", Value::Integer(since.as_millis()));
        }
        let sql = format!(
            "SELECT {COLUMNS} FROM {table} WHERE {condition} ORDER BY seq {order} LIMIT ?3"
        );
        let mut statement = self.statement(&sql)?;
        let events: Vec<Listed> = statement
            .query_map(params_from_iter(values), listed)?
            .collect::<Result<_, _>>()?;
        let next = match events.last() {
            Some(event) if events.len() == limit => Some(event.seq),
            _ => (count == LOOK).then_some(Seq(last)),
        };
        Ok(Page { events, next })
    }

    /// Events whose ids lie between these, both included; at most `limit`.
    pub(in crate::buffer) fn between(
        &self,
        (first, last): (EventId, EventId),
        limit: usize,
    ) -> Result<Vec<Listed>, StoreError> {
        let sql =
            format!("SELECT {COLUMNS} FROM event WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3");
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut statement = self.statement(&sql)?;
        let events =
            statement.query_map(params![first.as_bytes(), last.as_bytes(), limit], listed)?;
        Ok(events.collect::<Result<_, _>>()?)
    }

    /// An event by its place; `None` when it is gone.
    pub(in crate::buffer) fn event(&self, seq: Seq) -> Result<Option<Listed>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM event WHERE seq = ?1");
        let mut statement = self.statement(&sql)?;
        Ok(statement.query_row([seq.raw()], listed).optional()?)
    }

    /// What an event went through before the state it is in.
    pub(in crate::buffer) fn steps(&self, seq: Seq) -> Result<Vec<Step>, StoreError> {
        step::read(&self.db, seq)
    }
}

/// By the index of a state, where there is one in the order of arrival.
fn source(state: Option<EventState>) -> (&'static str, &'static str) {
    match state {
        None => ("event NOT INDEXED", "1"),
        Some(EventState::Pending) => ("event INDEXED BY event_pending", "state = 0"),
        Some(EventState::Delivered) => ("event NOT INDEXED", "state = 1"),
        Some(EventState::Dead) => ("event INDEXED BY event_dead", "state = 2"),
    }
}

/// SQLite's patterns are a route's, but for the bracket.
fn glob(pattern: &str) -> String {
    pattern.replace('[', "[[]")
}

fn listed(row: &Row<'_>) -> rusqlite::Result<Listed> {
    let state = match row.get(3)? {
        PENDING => EventState::Pending,
        DELIVERED => EventState::Delivered,
        DEAD => EventState::Dead,
        other => return Err(rusqlite::Error::IntegralValueOutOfRange(3, other)),
    };
    let message_ids: Option<String> = row.get(17)?;
    Ok(Listed {
        seq: Seq(row.get(0)?),
        id: EventId::from_bytes(row.get(1)?),
        received_at: Timestamp::from_millis(row.get(2)?),
        state,
        facts: facts(row, 4)?,
        destination: row.get(10)?,
        options: row.get(11)?,
        size: u64::try_from(row.get::<_, i64>(12)?).unwrap_or(0),
        attempts: row.get(13)?,
        replays: row.get(14)?,
        due_at: Timestamp::from_millis(row.get(15)?),
        settled_at: row.get::<_, Option<i64>>(16)?.map(Timestamp::from_millis),
        message_ids: message_ids
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect(),
        reason: row.get(18)?,
        stored_at: Timestamp::from_millis(row.get(19)?),
    })
}
