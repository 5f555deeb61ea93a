use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use strapi_qstash::dev_server::Fault;

use crate::harness::{Client, LONG, Process, QStash, number, update, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_exits_within_the_grace_and_loses_nothing() {
    let qstash = QStash::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(&dir, &qstash, None, &[]).await;
    let address = process.webhook;
    let count = Arc::new(AtomicUsize::new(0));
    let senders: Vec<_> = (0..5)
        .map(|sender| {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut answered = Vec::new();
                let mut client = Client::connect(address).await;
                for n in (sender..).step_by(5) {
                    let headers = ["Content-Type: application/json"];
                    match client
                        .try_post("/webhook", &headers, update(n).as_bytes())
                        .await
                    {
                        Ok(answer) if answer.status == 202 => {
                            answered.push(n);
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        _ => break,
                    }
                }
                answered
            })
        })
        .collect();
    assert!(wait_until(LONG, || count.load(Ordering::Relaxed) > 100).await);
    let started = Instant::now();
    process.signal("TERM");
    assert_eq!(process.exit_code().await, Some(0), "{}", process.log());
    println!("stopped after {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(10));
    let mut accepted = Vec::new();
    for sender in senders {
        accepted.extend(sender.await.unwrap());
    }
    // What QStash has not got yet is on disk, for the next start.
    let _process = Process::start(&dir, &qstash, Some(address), &[]).await;
    let all_there = qstash
        .server
        .wait_until(LONG, |_| {
            let arrived: std::collections::HashSet<usize> = qstash
                .accepted()
                .iter()
                .map(|message| number(&message.body))
                .collect();
            accepted.iter().all(|n| arrived.contains(n))
        })
        .await;
    assert!(all_there);
}

#[tokio::test]
async fn a_stop_while_qstash_hangs_ends_with_the_grace_and_keeps_the_events() {
    let qstash = QStash::start().await;
    let dir = tempfile::tempdir().unwrap();
    qstash.server.faults().set(Fault::Hang).await;
    let mut process = Process::start(&dir, &qstash, None, &["--shutdown-grace", "1s"]).await;
    let mut client = Client::connect(process.webhook).await;
    crate::harness::post_updates(&mut client, 0..50).await;
    let started = Instant::now();
    process.signal("INT");
    assert_eq!(process.exit_code().await, Some(0), "{}", process.log());
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    qstash.server.faults().set(Fault::None).await;
    let _process = Process::start(&dir, &qstash, None, &[]).await;
    qstash.wait_for(50, LONG).await;
}
