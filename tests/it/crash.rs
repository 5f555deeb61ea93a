use std::collections::BTreeSet;
use std::time::Duration;

use crate::harness::{Client, LONG, Process, QStash, assert_once_and_in_order, number, update};

/// Posts events `n`, `n + step`, … until the connection breaks; those answered 202.
async fn post_until_killed(address: std::net::SocketAddr, first: usize, step: usize) -> Vec<usize> {
    let mut answered = Vec::new();
    let mut client = Client::connect(address).await;
    for n in (first..).step_by(step) {
        match client
            .try_post(
                "/webhook",
                &["Content-Type: application/json"],
                update(n).as_bytes(),
            )
            .await
        {
            Ok(answer) => {
                assert_eq!(answer.status, 202);
                answered.push(n);
            }
            Err(_killed) => break,
        }
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_accepted_event_survives_kill_nine() {
    const ROUNDS: u64 = 20;
    let qstash = QStash::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(20);
    let mut accepted: BTreeSet<usize> = BTreeSet::new();
    let mut address = None;
    let mut next = 0;
    for _ in 0..ROUNDS {
        let process = Process::start(&dir, &qstash, address, &[]).await;
        address = Some(process.webhook);
        // Each sender has two documents of its own, so that its order is theirs.
        let senders: Vec<_> = (0..5)
            .map(|sender| tokio::spawn(post_until_killed(process.webhook, next + sender, 5)))
            .collect();
        tokio::time::sleep(Duration::from_millis(random.u64(20..200))).await;
        process.kill().await;
        for sender in senders {
            let answered = sender.await.unwrap();
            next = next.max(answered.last().map_or(0, |n| n + 100));
            accepted.extend(answered);
        }
        next -= next % 10;
    }
    let mut last = Process::start(&dir, &qstash, address, &[]).await;
    let arrived = || -> BTreeSet<usize> {
        qstash
            .accepted()
            .iter()
            .map(|message| number(&message.body))
            .collect()
    };
    let all_there = qstash
        .server
        .wait_until(LONG, |_| accepted.is_subset(&arrived()))
        .await;
    let missing: Vec<usize> = accepted.difference(&arrived()).copied().collect();
    assert!(
        all_there,
        "{} of {} events are missing: {missing:?}",
        missing.len(),
        accepted.len()
    );

    let counts = qstash.server.counts();
    println!(
        "{ROUNDS} kills: {} answered 202, all arrived; {} arrived that were not answered; {} repeats seen by deduplication",
        accepted.len(),
        arrived().len() - accepted.len(),
        counts.deduplicated
    );
    assert!(accepted.len() > 200, "too little load: {}", accepted.len());
    let messages = qstash.accepted();
    let numbers: Vec<usize> = messages
        .iter()
        .map(|message| number(&message.body))
        .collect();
    assert_eq!(
        numbers.iter().collect::<BTreeSet<_>>().len(),
        numbers.len(),
        "none arrives twice"
    );
    for document in 0..10 {
        assert!(
            numbers.iter().filter(|n| *n % 10 == document).is_sorted(),
            "document {document} is out of order"
        );
    }
    last.signal("TERM");
    assert_eq!(last.exit_code().await, Some(0));
    let db = rusqlite::Connection::open(dir.path().join("strapi-qstash.db")).unwrap();
    let check: String = db
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
}

#[tokio::test]
async fn a_backlog_survives_kill_nine_and_is_repeated_only_as_far_as_qstash_can_tell() {
    use strapi_qstash::dev_server::Fault;
    let qstash = QStash::start().await;
    let dir = tempfile::tempdir().unwrap();
    qstash.server.faults().set(Fault::Refuse).await;
    let process = Process::start(&dir, &qstash, None, &[]).await;
    let mut client = Client::connect(process.webhook).await;
    crate::harness::post_updates(&mut client, 0..300).await;
    // The answers get lost, so QStash has what the sidecar does not know of when it dies.
    qstash.server.faults().set(Fault::AcceptThenReset).await;
    assert!(
        qstash
            .server
            .wait_until(LONG, |server| server.counts().accepted > 0)
            .await
    );
    process.kill().await;
    qstash.server.faults().set(Fault::None).await;
    let _process = Process::start(&dir, &qstash, None, &[]).await;
    qstash.wait_for(300, LONG).await;
    assert!(
        qstash
            .server
            .wait_until(LONG, |server| server.counts().deduplicated > 0)
            .await,
        "the repeats were told from new events by their deduplication id"
    );
    assert_once_and_in_order(&qstash.accepted(), 300);
}
