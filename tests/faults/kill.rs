use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::harness::{Client, LONG, Process, QStash, number, update};
use crate::report::{Report, Scale};

/// Posts events `n`, `n + step`, … until the connection breaks; those answered 202.
async fn post_until_killed(address: SocketAddr, first: usize, step: usize) -> Vec<usize> {
    let mut answered = Vec::new();
    let mut client = Client::connect(address).await;
    for n in (first..).step_by(step) {
        let headers = ["Content-Type: application/json"];
        match client
            .try_post("/webhook", &headers, update(n).as_bytes())
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

/// New events while a backlog drains and history is purged, killed at random moments.
pub(crate) fn under_mixed_load(scale: Scale) -> Report {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(scale.pick(15, 300)))
}

async fn run(rounds: usize) -> Report {
    let qstash = QStash::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(20);
    let mut report = Report::default();
    let mut accepted: BTreeSet<usize> = BTreeSet::new();
    let mut address = None;
    let mut next = 0;
    for _ in 0..rounds {
        report.tries += 1;
        let started = Instant::now();
        let process = Process::start(&dir, &qstash, address, &["--keep-delivered", "1s"]).await;
        report.recovered_in(started.elapsed());
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
    qstash
        .server
        .wait_until(LONG, |_| accepted.is_subset(&arrived()))
        .await;
    report.accepted = accepted.len();
    report.lost = accepted.difference(&arrived()).count();
    let numbers: Vec<usize> = qstash
        .accepted()
        .iter()
        .map(|message| number(&message.body))
        .collect();
    report.duplicated = numbers.len() - numbers.iter().collect::<BTreeSet<_>>().len();
    for document in 0..10 {
        if !numbers.iter().filter(|n| *n % 10 == document).is_sorted() {
            report
                .wrong
                .push(format!("document {document} is out of order"));
        }
    }
    last.signal("TERM");
    assert_eq!(last.exit_code().await, Some(0));
    let db = rusqlite::Connection::open(dir.path().join("strapi-qstash.db")).unwrap();
    let check: String = db
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    if check != "ok" {
        report.wrong.push(check);
    }
    report
}
