use std::time::{Duration, Instant};

use hyper::StatusCode;
use strapi_qstash::clock;
use strapi_qstash::dev_server::Fault;

use crate::harness::{Answer, LONG, TestApp};

const TRIGGER: &str = r#"{"event":"trigger-test","createdAt":"2026-11-23T16:14:13.890Z"}"#;

async fn press(app: &TestApp) -> Answer {
    let answer = app.client().await.post("/webhook", TRIGGER).await;
    assert!(
        !answer.body.contains('\n') && answer.body.chars().count() <= 200,
        "{answer:?}"
    );
    assert!(answer.header("x-event-id").is_some());
    answer
}

#[tokio::test]
async fn a_test_that_qstash_accepted_succeeds() {
    let app = TestApp::start().await;
    let answer = press(&app).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    // It was accepted before the answer, not some time after.
    assert_eq!(app.qstash.accepted().len(), 1);
    let tally = app.sidecar.buffer().tally();
    assert_eq!((tally.pending, tally.delivered, tally.dead), (0, 1, 0));
}

#[tokio::test]
async fn a_test_that_failed_says_why_and_is_kept_where_that_helps() {
    for (fault, status, told) in [
        (Fault::Refuse, 503, "QStash cannot be reached"),
        (Fault::Reset, 503, "QStash cannot be reached"),
        (
            Fault::html(StatusCode::BAD_GATEWAY),
            503,
            "QStash cannot be reached",
        ),
        (Fault::Garbled, 503, "QStash cannot be reached"),
        (
            Fault::Unauthorized,
            401,
            "QStash refuses the sidecar's token",
        ),
        (
            Fault::status(StatusCode::FORBIDDEN, "read-only token"),
            403,
            "read-only token",
        ),
    ] {
        let app = TestApp::start().await;
        app.qstash.server.faults().set(fault.clone()).await;
        let answer = press(&app).await;
        assert_eq!(answer.status, status, "{fault:?}: {answer:?}");
        assert!(answer.body.contains(told), "{fault:?}: {answer:?}");
        assert_eq!(app.sidecar.buffer().tally().pending, 1, "{fault:?}");
        app.qstash.server.faults().set(Fault::None).await;
        app.qstash.wait_for(1, LONG).await;
    }
}

#[tokio::test]
async fn a_hanging_qstash_is_told_before_strapi_gives_up() {
    let app = TestApp::start().await;
    app.qstash.server.faults().set(Fault::Hang).await;
    let started = Instant::now();
    let answer = press(&app).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(
        started.elapsed() < Duration::from_millis(9500),
        "Strapi waits 10 s"
    );
}

#[tokio::test]
async fn a_test_for_a_missing_group_names_it() {
    let app = TestApp::builder()
        .no_topic()
        .flag("--topic", "nowhere")
        .start()
        .await;
    let answer = press(&app).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    assert!(
        answer.body.contains("QStash does not know nowhere"),
        "{answer:?}"
    );
    let app = TestApp::builder().no_topic().start().await;
    let answer = press(&app).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    assert!(answer.body.contains("--topic"), "{answer:?}");
}

#[tokio::test]
async fn a_test_does_not_pass_a_used_up_quota() {
    let app = TestApp::start().await;
    let reset = clock::now().plus(Duration::from_secs(3600));
    app.qstash
        .server
        .faults()
        .set(Fault::DailyQuota { reset })
        .await;
    assert_eq!(press(&app).await.status, 429);
    let answer = press(&app).await;
    assert_eq!(answer.status, 429);
    assert!(
        answer.body.contains("quota for today is used up"),
        "{answer:?}"
    );
    let met = app.qstash.server.seen().len();
    assert!(
        met <= 2,
        "{met} requests: the second test should not ask QStash again"
    );
}

#[tokio::test]
async fn a_test_that_qstash_refuses_is_a_dead_letter() {
    let app = TestApp::start().await;
    app.qstash
        .server
        .faults()
        .set(Fault::status(StatusCode::BAD_REQUEST, "no such thing"))
        .await;
    let answer = press(&app).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("no such thing"), "{answer:?}");
    assert_eq!(app.sidecar.buffer().tally().dead, 1);
}
