use std::path::Path;

use rusqlite::Connection;

use super::damage::asides;
use super::*;

const HEADER: usize = 32;
const FRAME: usize = 24 + 8192;

/// Bytes of an event: three of them fill a page.
const BODY: usize = 2000;

fn body(n: usize, size: usize) -> String {
    let number = n.to_string();
    "0".repeat(size - number.len()) + &number
}

/// Appends events, each in a commit of its own.
async fn append(buffer: &Buffer, numbers: std::ops::Range<usize>) {
    for n in numbers {
        buffer
            .append(pending(&body(n, BODY), "news"))
            .await
            .unwrap();
    }
}

/// What a process leaves that is killed: the log is not copied into the file.
struct Killed {
    file: Vec<u8>,
    log: Vec<u8>,
}

impl Killed {
    fn of(dir: &Path) -> Self {
        Self {
            file: std::fs::read(dir.join("buffer.db")).unwrap(),
            log: std::fs::read(dir.join("buffer.db-wal")).unwrap(),
        }
    }

    async fn after(numbers: std::ops::Range<usize>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let buffer = Buffer::open(&settings(dir.path())).unwrap();
        append(&buffer, numbers).await;
        let left = Self::of(dir.path());
        buffer.close().await;
        left
    }

    fn write(&self, log: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("buffer.db"), &self.file).unwrap();
        std::fs::write(dir.path().join("buffer.db-wal"), log).unwrap();
        std::fs::write(dir.path().join("buffer.db.lock"), "4711      \n").unwrap();
        dir
    }

    /// What a sidecar finds with this log.
    async fn found_with(&self, log: &[u8]) -> (Vec<usize>, bool) {
        found_in(self.write(log).path()).await
    }

    /// Where each commit ends.
    fn ends(&self) -> Vec<usize> {
        let frames = self.log[HEADER..].chunks_exact(FRAME).enumerate();
        frames
            .filter(|(_, frame)| frame[4..8] != [0; 4])
            .map(|(at, _)| HEADER + (at + 1) * FRAME)
            .collect()
    }
}

/// The numbers of the events that a sidecar finds, and whether it took the buffer for damaged.
async fn found_in(dir: &Path) -> (Vec<usize>, bool) {
    let buffer = Buffer::open(&settings(dir)).unwrap();
    let bodies = bodies(&buffer).await;
    buffer.append(pending("new", "news")).await.unwrap();
    buffer.close().await;
    let numbers = bodies.iter().map(|body| body.parse().unwrap()).collect();
    (numbers, !asides(dir).is_empty())
}

#[tokio::test]
async fn a_page_of_the_log_that_went_bad_costs_no_more_than_its_own_events() {
    let killed = Killed::after(0..60).await;
    let pages = killed.log.len() / 8192;
    // What is bad in the last two commits looks as if they had been torn.
    let ends = killed.ends();
    let last = ends[ends.len() - 4] / 8192;
    for page in (0..4)
        .chain((4..pages).step_by(17))
        .filter(|page| *page < last)
    {
        for fill in [0, 0x55] {
            let mut log = killed.log.clone();
            log[page * 8192..][..8192].fill(fill);
            let (found, is_damaged) = killed.found_with(&log).await;
            assert!(found.len() >= 57, "page {page}: {found:?}");
            assert!(found.is_sorted(), "page {page}: {found:?}");
            assert!(is_damaged, "page {page}");
        }
    }
}

#[tokio::test]
async fn a_commit_that_was_torn_is_not_taken_for_damage() {
    let killed = Killed::after(0..20).await;
    let ends = killed.ends();
    let (begin, end) = (ends[ends.len() - 2], ends[ends.len() - 1]);
    for frame in (begin..end).step_by(FRAME) {
        // The header did not come to the disk, some of the bytes did not, or nothing behind it.
        for missing in [frame..frame + 24, frame + 4096..frame + 8192, frame..end] {
            let mut log = killed.log.clone();
            log[missing.clone()].fill(0x55);
            let (found, is_damaged) = killed.found_with(&log).await;
            assert_eq!(found, (0..19).collect::<Vec<_>>(), "{missing:?}");
            assert!(!is_damaged, "{missing:?}");
        }
        let (found, is_damaged) = killed.found_with(&killed.log[..frame + 100]).await;
        assert_eq!((found.len(), is_damaged), (19, false));
    }
}

/// A commit that failed leaves its frames in the log; the next one writes over the first of them.
#[tokio::test]
async fn what_a_failed_commit_left_is_neither_damage_nor_carried_over() {
    let before = Killed::after(0..20).await;
    let mut futures = Vec::new();
    for (n, size) in [(20, 100_000), (21, BODY)] {
        let dir = before.write(&before.log);
        let buffer = Buffer::open(&settings(dir.path())).unwrap();
        let new = pending(&body(n, size), "news");
        buffer.append(new).await.unwrap();
        futures.push(Killed::of(dir.path()));
        buffer.close().await;
    }
    let (failed, next) = (&futures[0], &futures[1]);
    assert!(failed.log.len() > next.log.len() && next.log[..32] == before.log[..32]);
    let mut log = failed.log.clone();
    log[..next.log.len()].copy_from_slice(&next.log);
    let (found, is_damaged) = before.found_with(&log).await;
    let numbers: Vec<usize> = (0..20).chain([21]).collect();
    assert_eq!((found, is_damaged), (numbers.clone(), false));
    // With a page that is bad before all that, it is damage, and still that commit is left out.
    let middle = before.log.len() / 2;
    log[middle..middle + 8192].fill(0x55);
    let (found, is_damaged) = before.found_with(&log).await;
    assert!(is_damaged && !found.contains(&20), "{found:?}");
}

#[tokio::test]
async fn a_page_that_was_copied_before_it_went_bad_in_the_log_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    append(&buffer, 0..30).await;
    let db = Connection::open(dir.path().join("buffer.db")).unwrap();
    db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        .unwrap();
    let killed = Killed::of(dir.path());
    buffer.close().await;
    let end = killed.ends()[28];
    for frame in (HEADER..end).step_by(FRAME).step_by(5) {
        let mut log = killed.log.clone();
        log[frame + 24..frame + FRAME].fill(0x55);
        let dir = killed.write(&log);
        // Whoever carries the files elsewhere may not take the lock along.
        std::fs::remove_file(dir.path().join("buffer.db.lock")).unwrap();
        let (found, is_damaged) = found_in(dir.path()).await;
        assert_eq!(found, (0..30).collect::<Vec<_>>(), "frame at {frame}");
        assert!(is_damaged, "frame at {frame}");
    }
}
