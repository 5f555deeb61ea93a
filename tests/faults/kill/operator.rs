//! A person at the admin API who replays and discards events, whatever happens meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{Client, number};

/// One action in so many is a discard.
const DISCARD_EVERY: u8 = 5;

/// Between two actions.
const PAUSE: Duration = Duration::from_millis(5);

/// What was done to events, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Discarded, as the sidecar has said.
    pub(super) discarded: BTreeSet<usize>,
    /// Discarded or not: there was no answer.
    pub(super) may_be_discarded: BTreeSet<usize>,
    /// How often each was replayed, as the sidecar has said.
    pub(super) replayed: BTreeMap<usize, usize>,
    /// How often more, perhaps: there was no answer.
    pub(super) may_be_replayed: BTreeMap<usize, usize>,
}

impl Done {
    pub(super) fn add(&mut self, other: Self) {
        self.discarded.extend(other.discarded);
        self.may_be_discarded.extend(other.may_be_discarded);
        for (sum, more) in [
            (&mut self.replayed, other.replayed),
            (&mut self.may_be_replayed, other.may_be_replayed),
        ] {
            for (number, times) in more {
                *sum.entry(number).or_default() += times;
            }
        }
    }

    /// Whether nothing is promised of an event any more.
    pub(super) fn is_released(&self, number: usize) -> bool {
        self.discarded.contains(&number) || self.may_be_discarded.contains(&number)
    }

    /// How often an event may have arrived for what was done.
    pub(super) fn replays(&self, number: usize) -> usize {
        let times = |of: &BTreeMap<usize, usize>| of.get(&number).copied().unwrap_or(0);
        times(&self.replayed) + times(&self.may_be_replayed)
    }
}

/// Acts on one event after the other until it is told to stop, or the sidecar is gone.
pub(super) async fn operate(
    admin: SocketAddr,
    file: PathBuf,
    mut random: fastrand::Rng,
    has_replayed: Arc<AtomicBool>,
    stop: CancellationToken,
) -> Done {
    let mut done = Done::default();
    let Ok(mut client) = Client::try_connect(admin).await else {
        return done;
    };
    while !stop.is_cancelled() {
        tokio::time::sleep(PAUSE).await;
        let discard = random.u8(0..DISCARD_EVERY) == 0;
        let Some((id, number)) = any_event(&file, discard) else {
            continue;
        };
        let verb = if discard { "discard" } else { "replay" };
        let request = format!(
            "POST /api/events/{id}/{verb} HTTP/1.1\r\nhost: {admin}\r\ncontent-length: 0\r\n\r\n"
        );
        match (client.try_send(request.as_bytes()).await, discard) {
            (Ok(answer), true) if answer.status == 200 => {
                done.discarded.insert(number);
            }
            (Ok(answer), false) if answer.status == 200 => {
                *done.replayed.entry(number).or_default() += 1;
                has_replayed.store(true, Ordering::Relaxed);
            }
            (Ok(answer), _) => assert!(matches!(answer.status, 404 | 409), "{answer:?}"),
            (Err(_killed), true) => {
                done.may_be_discarded.insert(number);
                break;
            }
            (Err(_killed), false) => {
                *done.may_be_replayed.entry(number).or_default() += 1;
                break;
            }
        }
    }
    done
}

/// The id and the number of any event in the file; of one that waits only where asked for, since
/// that cannot be replayed.
fn any_event(file: &Path, may_wait: bool) -> Option<(Uuid, usize)> {
    let db = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
    let any = db.query_row(
        "SELECT id, body FROM event JOIN payload USING (seq) WHERE state <> 0 OR ?1
         ORDER BY random() LIMIT 1",
        [may_wait],
        |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)),
    );
    let (id, body) = any.optional().unwrap()?;
    Some((Uuid::from_bytes(id), number(&body)))
}
