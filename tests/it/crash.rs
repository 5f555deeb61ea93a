use crate::harness::{Client, LONG, Process, QStash, assert_once_and_in_order};

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
