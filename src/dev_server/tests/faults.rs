//! What the server does wrong when told to.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn faults_answer_as_told() {
    let world = World::new().await;
    let reset = Timestamp::from_millis(1_763_942_400_000);
    let faults = world.qstash.faults();
    for (fault, status, header) in [
        (
            Fault::status(StatusCode::INTERNAL_SERVER_ERROR, "x"),
            500,
            None,
        ),
        (
            Fault::html(StatusCode::BAD_GATEWAY),
            502,
            Some(("content-type", "text/html")),
        ),
        (
            Fault::DailyQuota { reset },
            429,
            Some(("ratelimit-reset", "1763942400")),
        ),
        (
            Fault::BurstLimit { reset },
            429,
            Some(("burst-ratelimit-reset", "1763942400")),
        ),
        (Fault::Unauthorized, 401, None),
        (Fault::Garbled, 200, None),
    ] {
        faults.set(fault).await;
        let answer = world.publish(&[], "x").await;
        assert_eq!(answer.status, status);
        if let Some((name, value)) = header {
            assert_eq!(answer.headers[name], value);
        }
        // Only publishing is spoiled.
        assert_eq!(world.send("GET", "/v2/keys", &[], "").await.status, 200);
    }
    assert_eq!(world.qstash.counts().accepted, 0);
    assert!(world.qstash.seen().iter().all(|seen| seen.faulted));
    faults.set(Fault::GarbledAccepted).await;
    let garbled = world.publish(&[], "x").await;
    assert!(serde_json::from_str::<Value>(&garbled.body).is_err());
    faults.set(Fault::None).await;
    assert_eq!(world.publish(&[], "x").await.status, 200);
    assert_eq!(world.qstash.counts().accepted, 2);
    world.end().await;
}

#[tokio::test]
async fn a_lost_answer_is_made_good_by_deduplication() {
    let world = World::new().await;
    let faults = world.qstash.faults();
    faults.set_for(1, Fault::Reset).await;
    assert!(world.try_publish().await.is_err());
    assert_eq!(world.qstash.counts().accepted, 0);
    faults.set_for(1, Fault::AcceptThenReset).await;
    let path = format!("/v2/publish/{}", world.catcher.url("/hook"));
    let id = [("upstash-deduplication-id", "a")];
    assert!(world.try_send("POST", &path, &id, "x").await.is_err());
    assert_eq!(world.publish(&id, "x").await.status, 202);
    world.wait_until(|counts| counts.delivered == 1).await;
    assert_eq!(world.catcher.received().len(), 1);
    world.end().await;
}

#[tokio::test]
async fn a_hung_request_stays_hung_after_the_fault() {
    let world = World::new().await;
    let faults = world.qstash.faults();
    faults.set(Fault::Hang).await;
    let mut hung = std::pin::pin!(world.try_publish());
    let seen = |qstash: &DevServer| !qstash.seen().is_empty();
    tokio::select! {
        _ = hung.as_mut() => panic!("it was answered"),
        seen = world.qstash.wait_until(SOON, seen) => assert!(seen),
    }
    faults.set(Fault::None).await;
    tokio::select! {
        _ = hung.as_mut() => panic!("it was answered"),
        answer = world.publish(&[], "x") => assert_eq!(answer.status, 200),
    }
    assert_eq!(world.qstash.counts().accepted, 1);
    // The end of the server is the end of its connections.
    world.shutdown.cancel();
    assert!(hung.await.is_err());
}

#[tokio::test]
async fn a_closed_port_refuses_and_opens_again() {
    let world = World::new().await;
    world.publish(&[], "x").await;
    let faults = world.qstash.faults();
    for _ in 0..3 {
        faults.set(Fault::Refuse).await;
        let refused = world.try_publish().await.err().unwrap();
        assert!(refused.is_connect() || refused.is_request(), "{refused:?}");
        let fresh = tokio::net::TcpStream::connect(world.qstash.addr()).await;
        let refused = fresh.unwrap_err().kind();
        assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
        faults.set(Fault::None).await;
        assert_eq!(world.publish(&[], "x").await.status, 200);
    }
    assert_eq!(world.qstash.counts().accepted, 4);
    world.end().await;
}

#[tokio::test]
async fn a_port_that_was_taken_meanwhile_is_taken_back() {
    let world = World::new().await;
    let faults = world.qstash.faults();
    faults.set(Fault::Refuse).await;
    let taken = TcpListener::bind(world.qstash.addr()).await.unwrap();
    let lifting = async {
        faults.set(Fault::None).await;
        assert_eq!(world.publish(&[], "x").await.status, 200);
    };
    let letting_go = async {
        let queued = tokio::net::TcpStream::connect(world.qstash.addr()).await;
        drop((taken, queued));
    };
    tokio::join!(lifting, letting_go);
    world.end().await;
}

#[tokio::test]
async fn bodies_can_be_refused_by_their_content() {
    let world = World::new().await;
    world.qstash.faults().reject(Some(Rejection {
        containing: "poison".into(),
        in_batch: InBatch::WholeBatch,
    }));
    assert_eq!(world.publish(&[], "poison").await.status, 400);
    assert_eq!(world.publish(&[], "good").await.status, 200);
    let url = world.catcher.url("/hook");
    let batch = json!([{ "destination": url, "body": "a poison" }, { "destination": url }]);
    let refused = world
        .send("POST", "/v2/batch", &[], batch.to_string())
        .await;
    assert_eq!(refused.status, 400);
    world.qstash.faults().reject(None);
    assert_eq!(world.publish(&[], "poison").await.status, 200);
    let faulted = world.qstash.seen();
    let faulted: Vec<_> = faulted.iter().map(|seen| seen.faulted).collect();
    assert_eq!(faulted, [true, false, true, false]);
    world.end().await;
}
