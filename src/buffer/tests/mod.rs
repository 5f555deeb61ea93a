//! The buffer through its handle, on a real file.

/// Files that are damaged, deleted or replaced.
mod damage;
/// A write-ahead log that is damaged, or only torn.
mod log;
/// Read from beside.
mod observing;

use std::path::Path;

use super::*;
use crate::clock;
use crate::event::{Event, EventId, Facts, Headers, Payload};

fn settings(dir: &Path) -> Settings {
    Settings {
        path: dir.join("buffer.db"),
        max_bytes: 1 << 30,
        keep_delivered: Duration::from_secs(3600),
        wait_for_lock: Duration::ZERO,
    }
}

fn event(body: &str) -> Event {
    Event {
        id: EventId::new(),
        received_at: clock::now(),
        facts: Facts {
            kind: "entry.publish".into(),
            ..Facts::default()
        },
        payload: Payload {
            headers: Headers::from_iter([("x-strapi-event", b"entry.publish".as_slice())]),
            body: body.to_owned().into(),
        },
    }
}

fn pending(body: &str, destination: &str) -> NewEvent {
    NewEvent {
        event: event(body).into(),
        address: Some(Address {
            destination: destination.into(),
            options: "retries=5".into(),
        }),
        fate: Fate::Pending { failed: None },
    }
}

fn delivered(body: &str) -> NewEvent {
    NewEvent {
        fate: Fate::Delivered {
            message_ids: vec![],
        },
        ..pending(body, "news")
    }
}

async fn all_pending(buffer: &Buffer) -> Vec<Pending> {
    buffer.pending(Seq::START, vec![], 1000).await.unwrap()
}

async fn bodies(buffer: &Buffer) -> Vec<String> {
    let seqs = all_pending(buffer)
        .await
        .iter()
        .map(|event| event.seq)
        .collect();
    let payloads = buffer.payloads(seqs).await.unwrap();
    payloads
        .into_iter()
        .map(|(_, payload)| match payload.unwrap().body {
            StoredBody::Whole(body) => String::from_utf8(body.to_vec()).unwrap(),
            StoredBody::Pieces { count } => format!("{count} pieces"),
        })
        .collect()
}

#[tokio::test]
async fn what_was_appended_is_there_after_opening_again_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    for n in 0..20 {
        buffer
            .append(pending(&format!("{n}"), "news"))
            .await
            .unwrap();
    }
    buffer.close().await;
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    assert_eq!(
        bodies(&buffer).await,
        (0..20).map(|n| n.to_string()).collect::<Vec<_>>()
    );
    assert_eq!(
        buffer.tally(),
        Tally {
            pending: 20,
            delivered: 0,
            dead: 0,
            ..buffer.tally()
        }
    );
    let first = &all_pending(&buffer).await[0];
    assert_eq!(
        first.address,
        Address {
            destination: "news".into(),
            options: "retries=5".into()
        }
    );
}

#[tokio::test]
async fn a_settled_event_leaves_the_queue_for_good_and_a_postponed_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    for body in ["a", "b", "c"] {
        buffer.append(pending(body, "news")).await.unwrap();
    }
    let events = all_pending(&buffer).await;
    let due_at = clock::now().plus(Duration::from_secs(60));
    let verdicts = [
        Verdict::Delivered {
            message_ids: vec!["msg_1".into()],
        },
        Verdict::Postponed {
            due_at,
            reason: "500".into(),
        },
        Verdict::Dead {
            reason: "too large".into(),
            attempted: true,
        },
    ];
    let settlements: Vec<Settlement> = events
        .iter()
        .zip(verdicts)
        .map(|(event, verdict)| Settlement {
            seq: event.seq,
            verdict,
        })
        .collect();
    buffer.settle(settlements.clone()).await.unwrap();
    // A second settlement of what is settled changes nothing.
    let repeated = settlements
        .into_iter()
        .filter(|s| !matches!(s.verdict, Verdict::Postponed { .. }))
        .collect();
    buffer.settle(repeated).await.unwrap();

    assert_eq!(
        buffer.tally(),
        Tally {
            pending: 1,
            delivered: 1,
            dead: 1,
            ..buffer.tally()
        }
    );
    buffer.close().await;
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    assert_eq!(bodies(&buffer).await, ["b"]);
    let left = &all_pending(&buffer).await[0];
    assert_eq!((left.attempts, left.due_at), (1, due_at));
}

#[tokio::test]
async fn events_of_a_held_destination_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    for (body, destination) in [("a", "held"), ("b", "news"), ("c", "held"), ("d", "other")] {
        buffer.append(pending(body, destination)).await.unwrap();
    }
    let flowing = buffer
        .pending(Seq::START, vec!["held".into()], 10)
        .await
        .unwrap();
    let destinations: Vec<_> = flowing
        .iter()
        .map(|event| event.address.destination.as_str())
        .collect();
    assert_eq!(destinations, ["news", "other"]);
    let first = buffer.first_for("held".into()).await.unwrap().unwrap();
    assert_eq!(first.seq, all_pending(&buffer).await[0].seq);
    assert!(buffer.first_for("nobody".into()).await.unwrap().is_none());
}

#[tokio::test]
async fn sequence_numbers_are_never_used_twice() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        keep_delivered: Duration::ZERO,
        ..settings(dir.path())
    };
    let buffer = Buffer::open(&settings).unwrap();
    buffer.append(pending("a", "news")).await.unwrap();
    let seq = all_pending(&buffer).await[0].seq;
    buffer
        .settle(vec![Settlement {
            seq,
            verdict: Verdict::Delivered {
                message_ids: vec![],
            },
        }])
        .await
        .unwrap();
    let tally = buffer.tally();
    assert_eq!((tally.delivered, tally.forgotten, tally.sum()), (0, 1, 1));
    // Nor by the next process, which finds no event.
    buffer.close().await;
    let buffer = Buffer::open(&settings).unwrap();
    buffer.append(pending("b", "news")).await.unwrap();
    assert!(all_pending(&buffer).await[0].seq > seq);
    let tally = buffer.tally();
    assert_eq!((tally.pending, tally.accepted), (1, 2));
}

#[tokio::test]
async fn a_full_buffer_says_so_gives_up_history_first_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        max_bytes: 400 << 10,
        ..settings(dir.path())
    };
    let buffer = Buffer::open(&settings).unwrap();
    let body = "x".repeat(20 << 10);
    // History to the brim: it must give way to new events.
    for _ in 0..10 {
        buffer.append(delivered(&body)).await.unwrap();
    }
    let mut accepted = 0;
    let refused = loop {
        match buffer.append(pending(&body, "news")).await {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AppendError::Full { .. }), "{refused}");
    assert!(accepted > 10, "history kept {accepted} new events out");
    assert_eq!(
        buffer.tally(),
        Tally {
            pending: accepted,
            delivered: 0,
            dead: 0,
            ..buffer.tally()
        }
    );
    assert_eq!(buffer.health().await, Health::Full);

    let seqs = all_pending(&buffer)
        .await
        .into_iter()
        .map(|event| event.seq);
    let dead = |seq| Settlement {
        seq,
        verdict: Verdict::Delivered {
            message_ids: vec![],
        },
    };
    buffer.settle(seqs.map(dead).collect()).await.unwrap();
    buffer.append(pending(&body, "news")).await.unwrap();
    assert_eq!(buffer.health().await, Health::Writable);
}

#[tokio::test]
async fn history_older_than_it_is_kept_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        keep_delivered: Duration::from_millis(1),
        ..settings(dir.path())
    };
    let buffer = Buffer::open(&settings).unwrap();
    for _ in 0..200 {
        buffer.append(delivered("x")).await.unwrap();
    }
    buffer.append(pending("y", "news")).await.unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        buffer.tidy().await;
        if buffer.tally()
            == (Tally {
                pending: 1,
                delivered: 0,
                dead: 0,
                ..buffer.tally()
            })
        {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{:?}", buffer.tally());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn old_history_goes_while_senders_always_wait() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        keep_delivered: Duration::from_millis(1),
        ..settings(dir.path())
    };
    let buffer = Buffer::open(&settings).unwrap();
    const OLD: i64 = 1_000;
    for _ in 0..OLD {
        buffer.append(delivered("x")).await.unwrap();
    }
    tokio::time::sleep(settings.keep_delivered * 2).await;
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let buffer = buffer.clone();
        senders.spawn(async move { while buffer.append(delivered("x")).await.is_ok() {} });
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let before = buffer.tally();
    buffer.tidy().await;
    loop {
        let now = buffer.tally();
        if now.forgotten - before.forgotten >= OLD {
            break;
        }
        assert!(now.accepted - before.accepted < 4 * OLD, "{now:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_second_sidecar_on_the_same_file_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    let refused = Buffer::open(&settings(dir.path()))
        .err()
        .unwrap()
        .to_string();
    assert!(
        refused.contains(&format!("process {}", std::process::id())),
        "{refused}"
    );
    assert!(refused.contains("buffer.db"), "{refused}");
    buffer.close().await;
    Buffer::open(&settings(dir.path())).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_log_is_copied_into_the_file_while_events_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    let body = "x".repeat(64 << 10);
    let tasks = tokio_util::task::TaskTracker::new();
    for _ in 0..4 {
        let (buffer, body) = (buffer.clone(), body.clone());
        tasks.spawn(async move {
            for _ in 0..800 {
                buffer.append(pending(&body, "news")).await.unwrap();
            }
        });
    }
    tasks.close();
    tasks.wait().await;
    let log = std::fs::metadata(dir.path().join("buffer.db-wal"))
        .unwrap()
        .len();
    let written = 3200 * (64 << 10);
    assert!(
        log < written * 3 / 4,
        "the log has {log} bytes of {written} written"
    );
    assert_eq!(buffer.tally().pending, 3200);
}

#[tokio::test]
async fn a_writer_that_panics_starts_again_with_what_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    buffer.append(pending("before", "news")).await.unwrap();
    assert!(buffer.commands.send(Command::Panic).await.is_ok());
    // Whoever comes in between is told, and can publish straight away.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while buffer.append(pending("after", "news")).await.is_err() {
        assert!(std::time::Instant::now() < deadline);
    }
    assert_eq!(bodies(&buffer).await, ["before", "after"]);
    assert_eq!(buffer.health().await, Health::Writable);
}

#[tokio::test]
async fn a_large_body_comes_back_piece_by_piece() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    let body: String = (0..600_000).map(|n| format!("{n},")).collect();
    buffer.append(pending(&body, "news")).await.unwrap();
    let seq = all_pending(&buffer).await[0].seq;
    let payload = buffer.payload(seq).await.unwrap().unwrap();
    let StoredBody::Pieces { count } = payload.body else {
        panic!("{} bytes in one piece", body.len())
    };
    let mut read = Vec::new();
    for number in 0..count {
        read.extend(buffer.piece(seq, number).await.unwrap().unwrap());
    }
    assert!(read == body.as_bytes());
    assert!(buffer.piece(seq, count).await.unwrap().is_none());
}

#[tokio::test]
async fn what_root_leaves_beside_a_buffer_belongs_to_its_owner() {
    const NOBODY: u32 = 65_534;
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    buffer.close().await;
    let path = |suffix: &str| dir.path().join(format!("buffer.db{suffix}"));
    if std::os::unix::fs::chown(path(""), Some(NOBODY), Some(NOBODY)).is_err() {
        return; // only root can give a file away
    }
    for suffix in [".lock", ".reserve"] {
        std::fs::remove_file(path(suffix)).unwrap();
    }
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    buffer.append(pending("{}", "news")).await.unwrap();
    for suffix in ["-wal", "-shm", ".lock", ".reserve"] {
        let owner = std::fs::metadata(path(suffix)).unwrap().uid();
        assert_eq!(owner, NOBODY, "{suffix}");
    }
    buffer.close().await;

    // Not what the owner has put there for root to find.
    let own = dir.path().join("own");
    std::fs::write(&own, "").unwrap();
    for suffix in [".lock", ".reserve"] {
        std::fs::remove_file(path(suffix)).unwrap();
        std::os::unix::fs::symlink(&own, path(suffix)).unwrap();
    }
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    buffer.append(pending("{}", "news")).await.unwrap();
    buffer.close().await;
    assert_ne!(std::fs::metadata(&own).unwrap().uid(), NOBODY);
}
