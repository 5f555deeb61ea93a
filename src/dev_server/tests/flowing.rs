//! Flow control over HTTP, and what it does to deliveries.

use hyper::StatusCode;
use serde_json::json;

use super::*;

impl World {
    async fn publish_with_key(&self, limits: &'static str) -> Answered {
        let headers = [
            ("upstash-flow-control-key", "a/b"),
            ("upstash-flow-control-value", limits),
        ];
        self.publish(&headers, "x").await
    }

    async fn key(&self) -> Value {
        self.get("/v2/flowControl/a%2Fb").await
    }

    async fn change(&self, change: &str) -> u16 {
        let path = format!("/v2/flowControl/a%2Fb/{change}");
        self.send("POST", &path, &[], "").await.status
    }
}

#[tokio::test]
async fn no_more_deliveries_run_at_a_time_than_a_key_allows() {
    let world = World::new().await;
    world
        .catcher
        .respond_with(Reply::status(StatusCode::OK).after(SOON * 10));
    for _ in 0..4 {
        world.publish_with_key("parallelism=2").await;
    }
    world.publish(&[], "without").await;
    world.arrived(3).await;
    let key = world.key().await;
    assert_eq!(
        (&key["parallelismCount"], &key["waitListSize"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(world.get("/v2/flowControl?search=a/").await, json!([key]));
    assert_eq!(world.get("/v2/flowControl?search=c").await, json!([]));
    assert_eq!(world.change("pin?parallelism=3").await, 200);
    world.arrived(4).await;
    assert_eq!(world.key().await["isPinnedParallelism"], true);
    world.end().await;
}

#[tokio::test]
async fn no_more_deliveries_begin_in_a_period_than_a_key_allows() {
    let world = World::new().await;
    for _ in 0..3 {
        world.publish_with_key("rate=2, period=1s").await;
    }
    let arrived = world.arrived(3).await;
    let apart = arrived[2].at.since(arrived[0].at);
    // Deliveries take some time, so the first may arrive late in its period.
    assert!(apart > Duration::from_millis(700), "{apart:?}");
    world.publish_with_key("rate=1, period=1d").await;
    world.publish_with_key("rate=1, period=1d").await;
    world.change("resetRate").await;
    world.arrived(4).await;
    assert_eq!(world.key().await["waitListSize"], 1);
    assert_eq!(world.key().await["ratePeriod"], 86_400);
    world.change("resetRate").await;
    world.arrived(5).await;
    world.end().await;
}

#[tokio::test]
async fn a_paused_key_keeps_what_comes() {
    let world = World::new().await;
    assert_eq!(world.change("pause").await, 200);
    let id = world.publish_with_key("parallelism=1").await.id();
    world.publish_with_key("parallelism=1").await;
    assert_eq!(world.key().await["isPaused"], true);
    let cancelled = world
        .send("DELETE", &format!("/v2/messages/{id}"), &[], "")
        .await;
    assert_eq!(cancelled.status, 200);
    assert_eq!(world.catcher.received().len(), 0);
    assert_eq!(world.change("resume").await, 200);
    world
        .wait_until(|counts| counts.cancelled + counts.delivered == 2)
        .await;
    assert_eq!(world.catcher.received().len(), 1);
    world.end().await;
}

#[tokio::test]
async fn what_is_no_limit_is_told() {
    let world = World::new().await;
    for change in [
        "pin?rate=0",
        "pin?period=x",
        "pin?rate=1&period=604801",
        "unpin?rate=1",
    ] {
        assert_eq!(world.change(change).await, 400, "{change}");
    }
    assert_eq!(
        world
            .send("POST", "/v2/flowControl//pause", &[], "")
            .await
            .status,
        400
    );
    assert_eq!(
        world
            .send("GET", "/v2/flowControl/none", &[], "")
            .await
            .status,
        404
    );
    world.end().await;
}
