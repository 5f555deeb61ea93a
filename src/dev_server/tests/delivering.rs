//! What receivers get, and when.

use hyper::StatusCode;
use serde_json::Value;

use super::*;

#[tokio::test]
async fn a_delayed_message_waits() {
    let world = World::new().await;
    world.publish(&[("upstash-delay", "1s")], "later").await;
    world.publish(&[], "now").await;
    let bodies = world.arrived(2).await;
    assert_eq!(bodies[0].body, "now");
    assert!(bodies[1].at >= world.qstash.messages()[0].options.not_before.unwrap());
    world.end().await;
}

#[tokio::test]
async fn a_failing_receiver_is_tried_again() {
    let world = World::new().await;
    let failing = Reply::status(StatusCode::BAD_GATEWAY).times(2);
    world.catcher.respond_with(failing);
    let mut life = world.qstash.subscribe();
    world.publish(&[], "x").await;
    let received = world.arrived(3).await;
    let retried: Vec<_> = received
        .iter()
        .map(|received| received.header("upstash-retried").unwrap())
        .collect();
    assert_eq!(retried, ["0", "1", "2"]);
    let mut steps = Vec::new();
    while !matches!(steps.last(), Some(Progress::Delivered { .. })) {
        let step = tokio::time::timeout(SOON, life.recv()).await;
        steps.push(step.unwrap().unwrap().progress);
    }
    assert_eq!(steps[0], Progress::Created);
    assert!(matches!(
        steps[2],
        Progress::Retry {
            status: Some(502),
            retried: 0,
            ..
        }
    ));
    assert_eq!(
        steps[6],
        Progress::Delivered {
            status: 200,
            retried: 2
        }
    );
    world.end().await;
}

#[tokio::test]
async fn a_message_fails_after_its_last_retry() {
    let world = World::new().await;
    let delay = ("upstash-retry-delay", "5 * (1 + retried)");
    let answer = world
        .send(
            "POST",
            // Nobody listens on port 1.
            "/v2/publish/http://127.0.0.1:1/",
            &[("upstash-retries", "2"), delay],
            "x",
        )
        .await;
    world.wait_until(|counts| counts.failed == 1).await;
    let id = answer.json()["messageId"].as_str().unwrap().to_owned();
    let path = format!("/v2/logs?messageId={id}");
    let logs = world.send("GET", &path, &[], "").await.json();
    let logs = logs["logs"].as_array().unwrap();
    let states: Vec<_> = logs
        .iter()
        .map(|log| log["state"].as_str().unwrap())
        .collect();
    let expected = [
        "FAILED", "ERROR", "ACTIVE", "RETRY", "ERROR", "ACTIVE", "RETRY", "ERROR", "ACTIVE",
        "CREATED",
    ];
    assert_eq!(states, expected);
    world.end().await;
}

#[tokio::test]
async fn a_receiver_that_refuses_retries_or_redirects_is_heeded() {
    let world = World::new().await;
    let mut refusing = Reply::status(StatusCode::from_u16(489).unwrap());
    let no_more = "upstash-nonretryable-error";
    refusing.headers.insert(no_more, "true".parse().unwrap());
    world.catcher.respond_with(refusing);
    world.publish(&[], "x").await;
    world.wait_until(|counts| counts.failed == 1).await;
    let mut moved = Reply::status(StatusCode::FOUND);
    moved.headers.insert("location", "/other".parse().unwrap());
    world.catcher.respond_with(moved);
    world.publish(&[("upstash-retries", "0")], "x").await;
    world.wait_until(|counts| counts.failed == 2).await;
    assert_eq!(world.catcher.received().len(), 2);
    world.end().await;
}

#[tokio::test]
async fn a_queue_keeps_its_order_through_retries() {
    let world = World::new().await;
    world
        .catcher
        .respond_with(Reply::status(StatusCode::SERVICE_UNAVAILABLE).times(2));
    let path = format!("/v2/enqueue/q/{}", world.catcher.url("/hook"));
    for body in ["1", "2", "3", "4", "5"] {
        world.send("POST", &path, &[], body).await;
    }
    let bodies = world.arrived(7).await;
    let bodies: Vec<_> = bodies
        .iter()
        .map(|received| received.body.clone())
        .collect();
    assert_eq!(bodies, ["1", "1", "1", "2", "3", "4", "5"]);
    world.end().await;
}

#[tokio::test]
async fn a_delivery_is_verified_across_one_rotation() {
    let world = World::new().await;
    for verified in [true, false] {
        let rotated = world.send("POST", "/v2/keys/rotate", &[], "").await.json();
        world.publish(&[], "x").await;
        world
            .wait_until(|counts| counts.accepted == counts.delivered)
            .await;
        let received = world.catcher.received();
        assert_eq!(received.last().unwrap().verified, verified, "{rotated}");
    }
    world.end().await;
}

#[tokio::test]
async fn callbacks_tell_of_each_attempt_and_of_the_end() {
    let world = World::new().await;
    world
        .catcher
        .respond_with(Reply::status(StatusCode::CONFLICT).times(2));
    let (told, failed) = (world.catcher.url("/told"), world.catcher.url("/failed"));
    let headers = [
        ("upstash-retries", "0"),
        ("upstash-callback", told.as_str()),
        ("upstash-failure-callback", failed.as_str()),
        ("upstash-failure-callback-forward-x-own", "1"),
    ];
    let path = format!("/v2/enqueue/q/{}", world.catcher.url("/hook"));
    let answer = world.send("POST", &path, &headers, "body").await;
    world.send("POST", &path, &[], "next").await;
    let received = world.arrived(5).await;
    let paths: Vec<_> = received.iter().map(|r| r.path.as_str()).collect();
    // One of the callbacks fails once as well, and the queue waits for it.
    assert_eq!(paths[0], "/hook");
    assert_eq!(paths[4], "/hook");
    assert!(received.iter().all(|received| received.verified));
    let failed = received.iter().rfind(|r| r.path == "/failed").unwrap();
    assert_eq!(failed.header("x-own"), Some("1"));
    let told: Value = serde_json::from_slice(&failed.body).unwrap();
    assert_eq!(told["status"], 409);
    assert_eq!(told["sourceMessageId"], answer.json()["messageId"]);
    assert_eq!(told["sourceBody"], "Ym9keQ==");
    let callbacks = world.qstash.messages();
    let callbacks = callbacks.iter().filter(|m| m.callback_of.is_some());
    assert_eq!(callbacks.count(), 2);
    world.end().await;
}

#[tokio::test]
async fn everything_ends_while_messages_wait() {
    let world = World::with(Settings::default()).await;
    world
        .catcher
        .respond_with(Reply::default().after(SOON * 10));
    world.publish(&[], "in flight").await;
    world.publish(&[("upstash-delay", "1h")], "waiting").await;
    world.arrived(1).await;
    world.end().await;
}

#[tokio::test]
async fn a_wait_that_began_is_shortened_with_the_scale_of_time() {
    let world = World::with(Settings::default()).await;
    let failing = Reply::status(StatusCode::BAD_GATEWAY).times(1);
    world.catcher.respond_with(failing);
    let mut life = world.qstash.subscribe();
    world.publish(&[], "x").await;
    loop {
        let step = tokio::time::timeout(SOON, life.recv()).await;
        if let Progress::Retry { after, .. } = step.unwrap().unwrap().progress {
            assert!(after > SOON, "{after:?}");
            break;
        }
    }
    world.qstash.set_time_scale(1_000.0);
    world.arrived(2).await;
    assert!((world.qstash.time_scale() - 1_000.0).abs() < f64::EPSILON);
    world.end().await;
}

#[tokio::test]
async fn a_receiver_that_takes_too_long_is_tried_again() {
    let world = World::new().await;
    let slow = Reply::status(StatusCode::OK).after(SOON * 10).times(1);
    world.catcher.respond_with(slow);
    let id = world.publish(&[("upstash-timeout", "1s")], "x").await.id();
    world.wait_until(|counts| counts.delivered == 1).await;
    let log = world
        .get(&format!("/v2/logs?messageId={id}&state=ERROR"))
        .await;
    assert_eq!(log["logs"][0]["error"], "context deadline exceeded");
    assert_eq!(log["logs"][0].get("responseStatus"), None);
    assert_eq!(log["logs"][0]["timeout"], 1_000);
    world.end().await;
}

#[tokio::test]
async fn a_callback_carries_the_whole_answer() {
    let world = World::new().await;
    let mut reply = Reply::status(StatusCode::OK).times(1);
    reply.body = vec![b'x'; 200_000].into();
    world.catcher.respond_with(reply);
    let told = world.catcher.url("/told");
    world.publish(&[("upstash-callback", &told)], "x").await;
    let callback = world.arrived(2).await.pop().unwrap();
    assert_eq!(callback.path, "/told");
    let told: Value = serde_json::from_slice(&callback.body).unwrap();
    let body = told["body"].as_str().unwrap();
    assert_eq!(body.len(), 266_668, "base64 of 200,000 bytes");
    world.end().await;
}
