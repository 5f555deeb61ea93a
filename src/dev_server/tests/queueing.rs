//! Queues over HTTP, and in what order they deliver.

use hyper::StatusCode;
use serde_json::json;

use super::*;

impl World {
    async fn enqueue(&self, body: &'static str) -> Answered {
        let path = format!("/v2/enqueue/q/{}", self.catcher.url("/hook"));
        self.send("POST", &path, &[], body).await
    }

    async fn upsert_queue(&self, body: Value) -> u16 {
        let body = body.to_string();
        self.send("POST", "/v2/queues", &[], body).await.status
    }
}

#[tokio::test]
async fn queues_are_managed_over_http() {
    let world = World::new().await;
    world.enqueue("x").await;
    world.wait_until(|counts| counts.delivered == 1).await;
    let queue = world.get("/v2/queues/q").await;
    assert_eq!(
        (&queue["name"], &queue["parallelism"]),
        (&json!("q"), &json!(1))
    );
    assert_eq!(queue["paused"], false);
    let body = json!({ "queueName": "q", "parallelism": 3, "paused": true });
    assert_eq!(world.upsert_queue(body).await, 200);
    assert_eq!(world.upsert_queue(json!({ "queueName": "r" })).await, 200);
    let queues = world.get("/v2/queues").await;
    assert_eq!(
        (&queues[0]["parallelism"], &queues[0]["paused"]),
        (&json!(3), &json!(true))
    );
    assert_eq!(queues[1]["name"], "r");
    for (body, status) in [
        (json!({ "queueName": "a/b" }), 400),
        (json!({ "queueName": "q", "parallelism": 0 }), 400),
        (json!({ "queueName": "q", "parallelism": 101 }), 412),
        (json!({ "parallelism": 1 }), 400),
    ] {
        assert_eq!(world.upsert_queue(body.clone()).await, status, "{body}");
    }
    for (method, path, status) in [
        ("DELETE", "/v2/queues/q", 200),
        ("DELETE", "/v2/queues/q", 200),
        ("GET", "/v2/queues/q", 404),
        ("POST", "/v2/queues/q/pause", 400),
        ("GET", "/v2/queues/a%20b", 400),
        ("PUT", "/v2/queues", 405),
    ] {
        assert_eq!(
            world.send(method, path, &[], "").await.status,
            status,
            "{method} {path}"
        );
    }
    world.end().await;
}

#[tokio::test]
async fn only_so_many_queues_are_made() {
    let world = World::new().await;
    for n in 0..100 {
        assert_eq!(
            world
                .upsert_queue(json!({ "queueName": format!("r{n}") }))
                .await,
            200
        );
    }
    let refused = world.enqueue("x").await;
    assert_eq!(refused.status, 412);
    assert_eq!(
        refused.error(),
        "quota maxQueues exceeded, current limit: 100"
    );
    world.end().await;
}

#[tokio::test]
async fn a_paused_queue_keeps_what_comes_and_goes_on_in_order() {
    let world = World::new().await;
    let paused = json!({ "queueName": "q", "paused": true });
    world.upsert_queue(paused).await;
    for body in ["1", "2", "3"] {
        world.enqueue(body).await;
    }
    assert_eq!(world.get("/v2/queues/q").await["lag"], 3);
    // Others are not kept.
    world.publish(&[], "direct").await;
    assert_eq!(world.arrived(1).await[0].body, "direct");
    world.send("POST", "/v2/queues/q/resume", &[], "").await;
    let bodies: Vec<_> = world
        .arrived(4)
        .await
        .iter()
        .map(|r| r.body.clone())
        .collect();
    assert_eq!(bodies, ["direct", "1", "2", "3"]);
    world.wait_until(|counts| counts.delivered == 4).await;
    assert_eq!(world.get("/v2/queues/q").await["lag"], 0);
    world.end().await;
}

#[tokio::test]
async fn a_queue_delivers_as_many_at_a_time_as_it_may() {
    let world = World::new().await;
    let paused = json!({ "queueName": "q", "parallelism": 2, "paused": true });
    world.upsert_queue(paused).await;
    world
        .catcher
        .respond_with(Reply::status(StatusCode::OK).after(SOON * 10));
    for body in ["1", "2", "3"] {
        world.enqueue(body).await;
    }
    world.send("POST", "/v2/queues/q/resume", &[], "").await;
    world.arrived(2).await;
    let global = world.get("/v2/globalParallelism").await;
    assert_eq!(global["parallelismCount"], 2);
    assert_eq!(world.get("/v2/queues/q").await["lag"], 3);
    let more = json!({ "queueName": "q", "parallelism": 3 });
    world.upsert_queue(more).await;
    world.arrived(3).await;
    world.end().await;
}

#[tokio::test]
async fn what_waits_in_a_queue_goes_with_it() {
    let world = World::new().await;
    world
        .upsert_queue(json!({ "queueName": "q", "paused": true }))
        .await;
    world.enqueue("x").await;
    world.send("DELETE", "/v2/queues/q", &[], "").await;
    world.wait_until(|counts| counts.cancelled == 1).await;
    world.enqueue("y").await;
    assert_eq!(world.arrived(1).await[0].body, "y");
    world.end().await;
}

#[tokio::test]
async fn a_queue_takes_no_delayed_callback() {
    let world = World::new().await;
    let path = format!("/v2/enqueue/q/{}", world.catcher.url("/hook"));
    let headers = [
        ("upstash-callback", "http://127.0.0.1:1"),
        ("upstash-callback-delay", "1m"),
    ];
    assert_eq!(world.send("POST", &path, &headers, "x").await.status, 400);
    world.end().await;
}
