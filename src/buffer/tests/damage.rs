use std::path::Path;

use super::*;

/// Closes the buffer and changes its file.
async fn damage(buffer: Buffer, dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    buffer.close().await;
    let path = dir.join("buffer.db");
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
}

pub(super) fn asides(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with("-wal"))
        .filter(|name| name.contains(".damaged-") || name.contains(".replaced-"))
        .collect()
}

/// Waits until it takes events again.
async fn append_at_last(buffer: &Buffer, body: &str) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while let Err(error) = buffer.append(pending(body, "news")).await {
        assert!(std::time::Instant::now() < deadline, "{error:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const PAGE: usize = 8192;

#[tokio::test]
async fn a_file_whose_first_page_is_gone_is_read_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    let bodies_in: Vec<String> = (0..500).map(|n| format!("{n:0>2000}")).collect();
    for body in &bodies_in {
        buffer.append(pending(body, "news")).await.unwrap();
    }
    damage(buffer, dir.path(), |bytes| bytes[..PAGE].fill(0x55)).await;
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    assert_eq!(bodies(&buffer).await, bodies_in);
    assert_eq!(asides(dir.path()).len(), 1, "{:?}", asides(dir.path()));
    // What comes now comes behind.
    buffer.append(pending("new", "news")).await.unwrap();
    assert_eq!(bodies(&buffer).await.last().unwrap(), "new");
}

#[tokio::test]
async fn of_a_damaged_file_all_is_carried_over_that_can_be_read() {
    for page in [5, 20, 60, 100] {
        let dir = tempfile::tempdir().unwrap();
        let buffer = Buffer::open(&settings(dir.path())).unwrap();
        for n in 0..500 {
            buffer
                .append(pending(&format!("{n:0>2000}"), "news"))
                .await
                .unwrap();
        }
        damage(buffer, dir.path(), |bytes| {
            bytes[page * PAGE..(page + 1) * PAGE].fill(0x55);
        })
        .await;
        let buffer = Buffer::open(&settings(dir.path())).unwrap();
        // The damage is met when that page is read.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let left = loop {
            if let Ok(events) = buffer.pending(Seq::START, vec![], 1000).await
                && let Ok(payloads) = buffer
                    .payloads(events.iter().map(|event| event.seq).collect())
                    .await
                && payloads.iter().all(|(_, payload)| payload.is_some())
            {
                break payloads.len();
            }
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let tally = buffer.tally();
        assert_eq!(i64::try_from(left).unwrap(), tally.pending, "page {page}");
        assert!(tally.pending >= 450, "page {page}: {tally:?}");
        assert_eq!(
            tally.pending + tally.dead,
            500,
            "page {page}: none is gone without a trace"
        );
        assert_eq!((tally.accepted, tally.lost), (500, 0), "page {page}");
        append_at_last(&buffer, "new").await;
    }
}

#[tokio::test]
async fn what_a_damaged_file_does_not_give_back_is_counted_as_lost() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    for n in 0..100 {
        let body = format!("{n:0>2000}");
        buffer.append(pending(&body, "news")).await.unwrap();
    }
    buffer.close().await;
    // Row and bytes of some of those that came last, which no count was written for.
    let path = dir.path().join("buffer.db");
    let db = rusqlite::Connection::open(&path).unwrap();
    for table in ["event", "payload"] {
        let sql = format!("DELETE FROM {table} WHERE seq BETWEEN 91 AND 95");
        db.execute(&sql, []).unwrap();
    }
    drop(db);
    store::rescue(&path, None, clock::now()).unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    let told = Tally {
        pending: 95,
        accepted: 100,
        lost: 5,
        ..Tally::default()
    };
    assert_eq!(buffer.tally(), told);
}

#[tokio::test]
async fn numbers_of_events_that_are_gone_are_not_used_again_after_a_rescue() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    buffer.append(pending("a", "news")).await.unwrap();
    buffer.close().await;
    let path = dir.path().join("buffer.db");
    let db = rusqlite::Connection::open(&path).unwrap();
    let sql =
        "UPDATE tally SET last = 5000000, pending = 1, forgotten = 4999999, accepted = 5000000";
    db.execute(sql, []).unwrap();
    drop(db);
    store::rescue(&path, None, clock::now()).unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    buffer.append(pending("b", "news")).await.unwrap();
    let seqs = all_pending(&buffer).await;
    assert!(seqs[1].seq.raw() > 5_000_000, "{seqs:?}");
    let tally = buffer.tally();
    assert_eq!(
        (tally.accepted, tally.sum(), tally.lost),
        (5_000_001, 5_000_001, 0)
    );
}

#[tokio::test]
async fn a_rescue_ends_in_whatever_order_the_pages_lie() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    for n in 0..300 {
        buffer
            .append(pending(&n.to_string(), "news"))
            .await
            .unwrap();
    }
    buffer.close().await;
    let path = dir.path().join("buffer.db");
    let whole = std::fs::read(&path).unwrap();
    let pages = whole.len() / PAGE;
    for first in 1..pages - 1 {
        let mut bytes = whole.clone();
        let (left, right) = bytes.split_at_mut((first + 1) * PAGE);
        left[first * PAGE..].swap_with_slice(&mut right[..PAGE]);
        std::fs::write(&path, &bytes).unwrap();
        let rescued = store::rescue(&path, None, clock::now()).unwrap();
        let found = rescued.carried + rescued.in_part;
        assert!((1..=300).contains(&found), "page {first}: {rescued:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_deleted_in_use_is_written_anew_with_all_that_was_in_it() {
    for suffix in ["", "-wal"] {
        let dir = tempfile::tempdir().unwrap();
        let buffer = Buffer::open(&settings(dir.path())).unwrap();
        buffer.append(pending("before", "news")).await.unwrap();
        std::fs::remove_file(dir.path().join(format!("buffer.db{suffix}"))).unwrap();
        append_at_last(&buffer, "after").await;
        buffer.close().await;
        let buffer = Buffer::open(&settings(dir.path())).unwrap();
        let bodies = bodies(&buffer).await;
        assert!(
            bodies.contains(&"before".to_owned()) && bodies.contains(&"after".to_owned()),
            "{bodies:?}"
        );
    }
}

#[tokio::test]
async fn a_file_that_is_replaced_in_use_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    buffer.append(pending("before", "news")).await.unwrap();
    let path = dir.path().join("buffer.db");
    std::fs::write(dir.path().join("other"), "something else").unwrap();
    std::fs::rename(dir.path().join("other"), &path).unwrap();
    append_at_last(&buffer, "after").await;
    let bodies = bodies(&buffer).await;
    assert!(
        bodies.contains(&"before".to_owned()) && bodies.contains(&"after".to_owned()),
        "{bodies:?}"
    );
    let aside = dir.path().join(&asides(dir.path())[0]);
    assert_eq!(std::fs::read_to_string(aside).unwrap(), "something else");
}

#[tokio::test]
async fn a_rescue_that_was_cut_short_is_finished_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    buffer.append(pending("carried", "news")).await.unwrap();
    buffer.close().await;
    // As it is between the two renames at its end.
    let path = dir.path().join("buffer.db");
    std::fs::rename(&path, dir.path().join("buffer.db.rescued")).unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    assert_eq!(bodies(&buffer).await, ["carried"]);
}
