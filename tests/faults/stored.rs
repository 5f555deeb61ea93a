//! What the buffer file holds, read beside the sidecar or after its death.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::harness::try_number;

/// The events of a buffer file, by the numbers of [`update`](crate::harness::update).
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// Those that wait to be published.
    pub(crate) pending: BTreeSet<usize>,
    /// Dead letters, each with its reason; without a number where it is no update.
    pub(crate) dead: Vec<(Option<usize>, String)>,
    /// What is wrong with the file itself.
    pub(crate) damage: Vec<String>,
}

/// How closely the file is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Check {
    /// `PRAGMA quick_check`.
    Quick,
    /// `PRAGMA integrity_check`.
    Full,
}

impl Stored {
    /// Reads the file in this folder.
    pub(crate) fn read(folder: &Path, check: Check) -> Self {
        let db = Connection::open_with_flags(
            folder.join("strapi-qstash.db"),
            OpenFlags::SQLITE_OPEN_READ_ONLY,
        )
        .unwrap();
        let mut stored = Self::default();
        let mut statement = db
            .prepare(
                "SELECT state, reason, seq, pieces, body FROM event LEFT JOIN payload USING (seq)
                 WHERE state <> 1",
            )
            .unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let body: Option<Vec<u8>> = row.get(4).unwrap();
            let Some(mut body) = body else {
                stored.damage.push("an event has no bytes".to_owned());
                continue;
            };
            if row.get::<_, i64>(3).unwrap() > 0 {
                body = pieces(&db, row.get(2).unwrap());
            }
            match row.get::<_, i64>(0).unwrap() {
                0 => stored.pending.extend(try_number(&body)),
                _ => {
                    let reason: Option<String> = row.get(1).unwrap();
                    stored
                        .dead
                        .push((try_number(&body), reason.unwrap_or_default()));
                }
            }
        }
        stored.check_tally(&db);
        let pragma = match check {
            Check::Quick => "PRAGMA quick_check",
            Check::Full => "PRAGMA integrity_check",
        };
        let found: String = db.query_row(pragma, [], |row| row.get(0)).unwrap();
        if found != "ok" {
            stored.damage.push(format!("{pragma}: {found}"));
        }
        stored
    }

    /// The counts that are kept beside the rows are those of the rows.
    fn check_tally(&mut self, db: &Connection) {
        db.execute_batch("BEGIN").unwrap(); // of one moment: a sidecar may be at work
        let told = "SELECT pending + appended, delivered, dead, forgotten, discarded, lost, accepted + appended
                    FROM tally, (SELECT max(0, (SELECT ifnull(max(seq), 0) FROM event) - last) AS appended FROM tally)";
        let told: Vec<i64> = db
            .query_row(told, [], |row| (0..7).map(|at| row.get(at)).collect())
            .unwrap();
        for (state, told) in (0..3).zip(&told) {
            let counted = "SELECT count(*) FROM event WHERE state = ?1";
            let counted: i64 = db.query_row(counted, [state], |row| row.get(0)).unwrap();
            if *told != counted {
                let text = format!("the tally says {told} of state {state}, there are {counted}");
                self.damage.push(text);
            }
        }
        db.execute_batch("COMMIT").unwrap();
        // What ever came is in one place each.
        let (sum, accepted) = (told[..6].iter().sum::<i64>(), told[6]);
        if sum != accepted {
            let text = format!("the tally says {accepted} were accepted, and knows of {sum}");
            self.damage.push(text);
        }
    }
}

/// A large body.
fn pieces(db: &Connection, seq: i64) -> Vec<u8> {
    let mut statement = db
        .prepare_cached("SELECT bytes FROM piece WHERE place >> 16 = ?1 ORDER BY place")
        .unwrap();
    let pieces = statement.query_map([seq], |row| row.get::<_, Vec<u8>>(0));
    pieces.unwrap().flat_map(Result::unwrap).collect()
}
