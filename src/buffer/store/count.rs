//! How many events are in each state.
//!
//! Counting a million rows at each scrape or start would take longer than starting, so the counts
//! are kept, in the transaction that moves the events. But not in one that only appends pending
//! ones: the page of the counts would be one more to write before the answer, and it can be told
//! without. Numbers have no gaps, and whatever moves an event writes the counts; so all that
//! stands behind the last number that was counted is pending.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{DEAD, DELIVERED, StoreError};
use crate::buffer::Tally;

/// All of it, as of one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Count {
    pub(super) tally: Tally,
    /// The last number that was given to an event, whether that is still there or not.
    pub(super) last: i64,
}

impl Count {
    pub(super) fn read(db: &Connection) -> Result<Self, StoreError> {
        let sql = "SELECT last, pending, delivered, dead, forgotten, discarded, accepted, lost,
                          (SELECT max(seq) FROM event) FROM tally";
        let counted = db
            .prepare_cached(sql)?
            .query_row([], |row| {
                Ok((Self::of(row)?, row.get::<_, Option<i64>>(8)?))
            })
            .optional()?;
        let (counted, last) = counted.ok_or(StoreError::Unreadable)?;
        Ok(counted.up_to(last.unwrap_or(0)))
    }

    /// As it was counted last, of a file whose events may not be readable.
    pub(super) fn read_row(db: &Connection) -> Result<Self, StoreError> {
        let sql = "SELECT last, pending, delivered, dead, forgotten, discarded, accepted, lost FROM tally";
        Ok(db.query_row(sql, [], Self::of)?)
    }

    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            last: row.get(0)?,
            tally: Tally {
                pending: row.get(1)?,
                delivered: row.get(2)?,
                dead: row.get(3)?,
                forgotten: row.get(4)?,
                discarded: row.get(5)?,
                accepted: row.get(6)?,
                lost: row.get(7)?,
            },
        })
    }

    /// With the events up to this number, of which nobody knows but that they were appended.
    pub(super) fn up_to(self, last: i64) -> Self {
        let appended = (last - self.last).max(0);
        Self {
            tally: Tally {
                pending: self.tally.pending + appended,
                accepted: self.tally.accepted + appended,
                ..self.tally
            },
            last: self.last + appended,
        }
    }

    /// Writes it, unless it can be told from what was there `before`.
    pub(super) fn write_after(self, before: Self, db: &Connection) -> Result<(), StoreError> {
        if before.up_to(self.last) == self {
            return Ok(());
        }
        self.write(db)
    }

    pub(super) fn write(self, db: &Connection) -> Result<(), StoreError> {
        let Self { tally, last } = self;
        db.prepare_cached(
            "UPDATE tally SET last = ?1, pending = ?2, delivered = ?3, dead = ?4, forgotten = ?5, discarded = ?6,
                    accepted = ?7, lost = ?8",
        )?
        .execute(params![
            last,
            tally.pending,
            tally.delivered,
            tally.dead,
            tally.forgotten,
            tally.discarded,
            tally.accepted,
            tally.lost,
        ])?;
        Ok(())
    }
}

impl Tally {
    /// The count of a state that an event can be in, as it is stored.
    pub(super) fn of(&mut self, state: i64) -> &mut i64 {
        match state {
            DELIVERED => &mut self.delivered,
            DEAD => &mut self.dead,
            _ => &mut self.pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: Count = Count {
        tally: Tally {
            pending: 2,
            delivered: 3,
            dead: 1,
            forgotten: 4,
            discarded: 0,
            accepted: 10,
            lost: 0,
        },
        last: 12,
    };

    #[test]
    fn what_is_behind_the_last_that_was_counted_is_pending() {
        let count = COUNT.up_to(15);
        assert_eq!((count.tally.pending, count.tally.accepted), (5, 13));
        assert_eq!((count.tally.sum(), count.last), (13, 15));
        assert_eq!(COUNT.up_to(7), COUNT, "the last events may be gone");
    }

    #[test]
    fn only_what_cannot_be_told_is_written() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(include_str!("schema.sql")).unwrap();
        COUNT.write(&db).unwrap();
        let appended = COUNT.up_to(15);
        appended.write_after(COUNT, &db).unwrap();
        assert_eq!(Count::read_row(&db).unwrap(), COUNT);
        let mut settled = appended;
        settled.tally.pending -= 1;
        settled.tally.dead += 1;
        settled.write_after(appended, &db).unwrap();
        assert_eq!(Count::read(&db).unwrap(), settled);
    }
}
