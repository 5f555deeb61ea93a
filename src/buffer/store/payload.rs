//! The bytes of events: how they lie in the file, with their checksums.

use bytes::Bytes;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Transaction, params};

use super::StoreError;
use crate::buffer::{Seq, StoredBody, StoredPayload};
use crate::event::{Headers, Payload};

/// A body up to this size lies in one piece: SQLite has it in memory two or three times while
/// it is written.
const LARGEST_WHOLE: usize = 1 << 20;

/// The size of a piece of a larger body.
const PIECE: usize = 256 << 10;

/// The bits of a piece's place that are its number: bodies of up to 16 GiB.
const NUMBER_BITS: u32 = 16;

/// The last number of an event whose pieces have places.
pub(super) const LAST_SEQ: i64 = i64::MAX >> NUMBER_BITS;

/// Writes the bytes of events, with a statement that is prepared once for all of them.
pub(super) struct Insert<'tx> {
    tx: &'tx Transaction<'tx>,
    row: CachedStatement<'tx>,
}

impl<'tx> Insert<'tx> {
    pub(super) fn new(tx: &'tx Transaction<'tx>) -> Result<Self, StoreError> {
        let row = tx.prepare_cached(
            "INSERT INTO payload (seq, headers, pieces, body, crc) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        Ok(Self { tx, row })
    }

    pub(super) fn payload(&mut self, seq: Seq, payload: &Payload) -> Result<(), StoreError> {
        let pieces = match payload.body.len() {
            0..=LARGEST_WHOLE => 0,
            size => u32::try_from(size.div_ceil(PIECE)).unwrap_or(u32::MAX),
        };
        if pieces == 0 {
            return self.row(seq, &payload.headers, 0, &payload.body);
        }
        self.row(seq, &payload.headers, pieces, &[])?;
        for (number, bytes) in (0..).zip(payload.body.chunks(PIECE)) {
            insert_piece(self.tx, seq, number, bytes)?;
        }
        Ok(())
    }

    fn row(
        &mut self,
        seq: Seq,
        headers: &Headers,
        pieces: u32,
        body: &[u8],
    ) -> Result<(), StoreError> {
        let headers = headers.as_text();
        let crc = checksum(headers, body);
        self.row
            .execute(params![seq.0, headers, pieces, body, crc])?;
        Ok(())
    }
}

fn insert_piece(
    tx: &Transaction<'_>,
    seq: Seq,
    number: u32,
    bytes: &[u8],
) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT INTO piece (place, bytes, crc) VALUES (?1, ?2, ?3)")?
        .execute(params![place(seq, number), bytes, checksum(&[], bytes)])?;
    Ok(())
}

/// Copies the bytes of an event from another file. `false`: they cannot be read there.
pub(super) fn copy(from: &Connection, tx: &Transaction<'_>, seq: Seq) -> Result<bool, StoreError> {
    let Ok(Some(StoredPayload { headers, body })) = read(from, seq) else {
        return Ok(false);
    };
    let count = match body {
        StoredBody::Whole(body) => {
            Insert::new(tx)?.payload(seq, &Payload { headers, body })?;
            return Ok(true);
        }
        StoredBody::Pieces { count } => count,
    };
    Insert::new(tx)?.row(seq, &headers, count, &[])?;
    for number in 0..count {
        let Ok(Some(bytes)) = read_piece(from, seq, number) else {
            delete(tx, seq)?;
            return Ok(false);
        };
        insert_piece(tx, seq, number, &bytes)?;
    }
    Ok(true)
}

pub(super) fn delete(tx: &Transaction<'_>, seq: Seq) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM payload WHERE seq = ?1")?
        .execute([seq.0])?;
    tx.prepare_cached("DELETE FROM piece WHERE place BETWEEN ?1 AND ?2")?
        .execute([place(seq, 0), place(seq, LAST_NUMBER)])?;
    Ok(())
}

/// `None`: there is no such event (any more).
pub(super) fn read(db: &Connection, seq: Seq) -> Result<Option<StoredPayload>, StoreError> {
    let row = db
        .prepare_cached("SELECT headers, pieces, body, crc FROM payload WHERE seq = ?1")?
        .query_row([seq.0], |row| {
            let (headers, body): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(2)?);
            Ok((headers, row.get::<_, u32>(1)?, body, row.get::<_, u32>(3)?))
        })
        .optional()?;
    let Some((headers, pieces, body, crc)) = row else {
        return Ok(None);
    };
    if checksum(&headers, &body) != crc {
        return Err(StoreError::Checksum { seq: seq.0 });
    }
    let body = match pieces {
        0 => StoredBody::Whole(body.into()),
        count => StoredBody::Pieces { count },
    };
    Ok(Some(StoredPayload {
        headers: Headers::from_text(headers),
        body,
    }))
}

/// `None`: the event is gone.
pub(super) fn read_piece(
    db: &Connection,
    seq: Seq,
    number: u32,
) -> Result<Option<Bytes>, StoreError> {
    let row = db
        .prepare_cached("SELECT bytes, crc FROM piece WHERE place = ?1")?
        .query_row([place(seq, number)], |row| {
            Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, u32>(1)?))
        })
        .optional()?;
    match row {
        Some((bytes, crc)) if checksum(&[], &bytes) == crc => Ok(Some(bytes.into())),
        Some(_) => Err(StoreError::Checksum { seq: seq.0 }),
        None => Ok(None),
    }
}

const LAST_NUMBER: u32 = (1 << NUMBER_BITS) - 1;

fn place(seq: Seq, number: u32) -> i64 {
    seq.0 << NUMBER_BITS | i64::from(number.min(LAST_NUMBER))
}

fn checksum(headers: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(headers);
    crc.update(body);
    crc.finalize()
}

/// Whether all of it fits into JSON strings unchanged, as a batch needs it.
pub(super) fn is_text(payload: &Payload) -> bool {
    let is_text = |bytes| std::str::from_utf8(bytes).is_ok();
    is_text(payload.headers.as_text()) && is_text(&payload.body)
}
