use strapi_qstash::dev_server::Fault;

use crate::harness::{LONG, TestApp};

#[tokio::test]
async fn a_full_buffer_publishes_before_the_answer_and_heals() {
    let app = TestApp::builder()
        .flag("--buffer-max", "1MiB")
        .flag("--keep-delivered", "1h")
        .start()
        .await;
    let mut client = app.client().await;
    let event = |n: usize| {
        format!(
            r#"{{"event":"entry.update","entry":{{"id":{n},"x":"{}"}}}}"#,
            "x".repeat(50_000)
        )
    };
    app.qstash.server.faults().set(Fault::Refuse).await;
    let mut kept = 0;
    let answer = loop {
        let answer = client.post("/webhook", &event(kept)).await;
        if answer.status != 202 {
            break answer;
        }
        kept += 1;
    };
    // Neither durable nor published: the only 503 there is.
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("buffer is full"), "{answer:?}");
    assert!((10..25).contains(&kept), "{kept} events in 1 MiB");
    assert_eq!(app.admin("/readyz").await.status, 503);

    app.qstash.server.faults().set(Fault::None).await;
    app.qstash.wait_for(kept, LONG).await;
    app.wait_until_drained().await;
    assert_eq!(client.post("/webhook", &event(2000)).await.status, 202);
    assert_eq!(app.admin("/readyz").await.status, 200);
}

#[tokio::test]
async fn an_event_larger_than_the_whole_buffer_is_published_before_the_answer() {
    let app = TestApp::builder()
        .flag("--buffer-max", "1MiB")
        .start()
        .await;
    let large = format!(
        r#"{{"event":"entry.update","x":"{}"}}"#,
        "x".repeat(1_040_000)
    );
    let answer = app.client().await.post("/webhook", &large).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(app.qstash.accepted().len(), 1);
    assert_eq!(app.metric("strapi_qstash_direct_events_total").await, 1.0);
    // A small one still fits.
    assert_eq!(app.client().await.post("/webhook", "{}").await.status, 202);
}
