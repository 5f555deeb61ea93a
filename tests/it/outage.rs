use std::time::{Duration, Instant};

use hyper::StatusCode;
use strapi_qstash::clock;
use strapi_qstash::dev_server::{DEVELOPMENT_TOKEN, Fault};

use crate::harness::{LONG, TestApp, assert_once_and_in_order, wait_until};

/// 500 events come while QStash is away; all are taken at once, and all arrive soon after it
/// is back.
async fn outage(fault: Fault) {
    let app = TestApp::start().await;
    app.qstash.server.faults().set(fault.clone()).await;
    let median = app.post_updates(500).await;
    assert!(median < Duration::from_millis(50), "{fault:?}: {median:?}");
    // Long enough for what is out to fail, and for the first waits.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let tally = app.sidecar.buffer().tally();
    assert_eq!((tally.pending, tally.dead), (500, 0), "{fault:?}");

    app.qstash.server.faults().set(Fault::None).await;
    let back = Instant::now();
    app.qstash.wait_for(500, Duration::from_secs(5)).await;
    println!(
        "{fault:?}: answered in {median:?} at the median, all there {:?} after its return",
        back.elapsed()
    );
    app.wait_until_drained().await;
    assert_once_and_in_order(&app.qstash.accepted(), 500);
    let delivered = app.qstash.catcher.wait_for(500, LONG).await.unwrap();
    assert_eq!(delivered.len(), 500, "each is delivered once");
}

#[tokio::test]
async fn nothing_is_lost_while_connections_are_refused() {
    outage(Fault::Refuse).await;
}

#[tokio::test]
async fn nothing_is_lost_while_qstash_hangs() {
    outage(Fault::Hang).await;
}

#[tokio::test]
async fn nothing_is_lost_while_connections_are_reset() {
    outage(Fault::Reset).await;
}

#[tokio::test]
async fn nothing_is_lost_while_qstash_answers_500() {
    outage(Fault::status(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal error",
    ))
    .await;
}

#[tokio::test]
async fn nothing_is_lost_while_a_proxy_answers_502_in_html() {
    outage(Fault::html(StatusCode::BAD_GATEWAY)).await;
}

#[tokio::test]
async fn nothing_is_lost_while_answers_are_garbled() {
    outage(Fault::Garbled).await;
}

#[tokio::test]
async fn an_answer_that_got_lost_delivers_nothing_twice() {
    for fault in [Fault::AcceptThenReset, Fault::GarbledAccepted] {
        let app = TestApp::start().await;
        app.qstash.server.faults().set_for(3, fault).await;
        app.post_updates(100).await;
        app.qstash.wait_for(100, LONG).await;
        app.wait_until_drained().await;
        assert_once_and_in_order(&app.qstash.accepted(), 100);
        assert!(
            app.qstash.server.counts().deduplicated > 0,
            "no repeat was seen"
        );
        assert_eq!(
            app.qstash.catcher.wait_for(100, LONG).await.unwrap().len(),
            100
        );
    }
}

#[tokio::test]
async fn a_wrong_token_loses_nothing_and_a_replaced_file_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "wrong").unwrap();
    let app = TestApp::builder()
        .flag("--qstash-token-file", file.to_str().unwrap())
        .start()
        .await;
    app.post_updates(200).await;
    let told = || async { app.admin("/api/status").await.body.contains("unauthorized") };
    let deadline = Instant::now() + LONG;
    while !told().await {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let tally = app.sidecar.buffer().tally();
    assert_eq!((tally.pending, tally.dead), (200, 0));
    let tried = app.qstash.server.seen().len();
    assert!(tried < 60, "{tried} requests with a token that is refused");

    std::fs::write(&file, format!(" {DEVELOPMENT_TOKEN}\n")).unwrap();
    app.qstash.wait_for(200, Duration::from_secs(5)).await;
    assert_once_and_in_order(&app.qstash.accepted(), 200);
}

/// No request before the reset, and nothing lost.
async fn limit(fault: impl Fn(clock::Timestamp) -> Fault) {
    let app = TestApp::start().await;
    let reset = clock::Timestamp::from_millis((clock::now().as_secs() + 4) * 1000);
    app.qstash.server.faults().set(fault(reset)).await;
    app.post_updates(100).await;
    let limited = wait_until(LONG, || {
        app.qstash
            .server
            .seen()
            .iter()
            .any(|seen| seen.status == Some(429))
    })
    .await;
    assert!(limited);
    // Requests that were out together may all have met the limit.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = app.qstash.server.seen().len();
    assert!(before <= 8, "{before} requests met the limit");
    app.qstash.server.faults().set(Fault::None).await;
    while clock::now() < reset {
        assert_eq!(
            app.qstash.server.seen().len(),
            before,
            "a request before the reset"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    app.qstash.wait_for(100, Duration::from_secs(5)).await;
    app.wait_until_drained().await;
    assert_once_and_in_order(&app.qstash.accepted(), 100);
}

#[tokio::test]
async fn the_quota_of_the_day_is_waited_for() {
    limit(|reset| Fault::DailyQuota { reset }).await;
}

#[tokio::test]
async fn a_burst_limit_is_waited_for() {
    limit(|reset| Fault::BurstLimit { reset }).await;
}
