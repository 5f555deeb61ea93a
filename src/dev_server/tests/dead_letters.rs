//! The dead letter queue over HTTP.

use hyper::StatusCode;
use serde_json::json;

use super::*;

impl World {
    /// Publishes what fails at once, with this label.
    async fn fail(&self, label: &str, status: u16) {
        let failed = self.qstash.counts().failed;
        let mut reply = Reply::status(StatusCode::from_u16(status).unwrap());
        reply.body = "no".into();
        self.catcher.respond_with(reply);
        let headers = [
            ("upstash-retries", "0"),
            ("upstash-label", label),
            ("upstash-forward-x-own", "1"),
        ];
        self.publish(&headers, "body").await;
        self.wait_until(move |counts| counts.failed == failed + 1)
            .await;
    }

    async fn letters(&self, query: &str) -> Vec<Value> {
        let answer = self.get(&format!("/v2/dlq{query}")).await;
        answer["messages"].as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn a_message_that_was_given_up_is_a_dead_letter() {
    let world = World::new().await;
    world.fail("a", 503).await;
    let letters = world.letters("").await;
    let letter = &letters[0];
    assert_eq!(letter["body"], "body");
    assert_eq!(letter["header"]["X-Own"], json!(["1"]));
    assert_eq!(letter["responseStatus"], 503);
    assert_eq!(letter["responseBody"], "no");
    assert!(letter["responseHeader"].is_object());
    let path = format!("/v2/dlq/{}", letter["dlqId"].as_str().unwrap());
    assert_eq!(&world.get(&path).await, letter);
    assert_eq!(world.send("DELETE", &path, &[], "").await.status, 200);
    assert_eq!(world.send("DELETE", &path, &[], "").await.status, 404);
    assert_eq!(world.send("GET", &path, &[], "").await.status, 404);
    let nowhere = "/v2/publish/http://127.0.0.1:1/";
    world
        .send("POST", nowhere, &[("upstash-retries", "0")], "x")
        .await;
    world.wait_until(|counts| counts.failed == 2).await;
    let letter = world.letters("").await.remove(0);
    assert_eq!(letter["responseStatus"], 0);
    assert!(letter["responseBody"].as_str().unwrap().contains("refused"));
    world.end().await;
}

#[tokio::test]
async fn dead_letters_are_found_by_filters_and_page_by_page() {
    let world = World::new().await;
    for (label, status) in [("a", 500), ("b", 404), ("c", 404)] {
        world.fail(label, status).await;
    }
    for (query, count) in [
        ("", 3),
        ("?responseStatus=404", 2),
        ("?responseStatus=404&label=b", 1),
        ("?label=a,b", 2),
        ("?queueName=q", 0),
        ("?toDate=1", 0),
    ] {
        assert_eq!(world.letters(query).await.len(), count, "{query}");
    }
    let unknown = world.send("GET", "/v2/dlq?status=1", &[], "").await;
    assert_eq!(unknown.status, 400);
    let first = world.get("/v2/dlq?count=2").await;
    assert_eq!(first["messages"][0]["label"], "c", "newest first");
    let cursor = first["cursor"].as_str().unwrap();
    let second = world.get(&format!("/v2/dlq?count=2&cursor={cursor}")).await;
    assert_eq!(second["messages"][0]["label"], "a");
    assert_eq!(second.get("cursor"), None);
    let ids = json!({ "dlqIds": [second["messages"][0]["dlqId"], "1-1", "x"] });
    let deleted = world.send("DELETE", "/v2/dlq", &[], ids.to_string()).await;
    assert_eq!(deleted.json(), json!({ "deleted": 1 }));
    let deleted = world
        .send("DELETE", "/v2/dlq?count=1", &[], "")
        .await
        .json();
    assert_eq!(deleted["deleted"], 1);
    assert!(deleted["cursor"].is_string());
    assert_eq!(world.letters("").await.len(), 1);
    world.end().await;
}

#[tokio::test]
async fn a_dead_letter_is_published_again_with_what_was_changed() {
    let world = World::new().await;
    world.fail("a", 500).await;
    let letter = world.letters("").await.remove(0);
    let path = format!("/v2/dlq/retry/{}", letter["dlqId"].as_str().unwrap());
    world.catcher.respond_with(StatusCode::OK);
    let wrong = [("upstash-delay", "x")];
    assert_eq!(world.send("POST", &path, &wrong, "").await.status, 400);
    let headers = [("upstash-method", "PUT"), ("upstash-forward-x-new", "2")];
    let retried = world.send("POST", &path, &headers, "").await;
    assert_eq!(retried.status, 201);
    assert_ne!(retried.json()["messageId"], letter["messageId"]);
    let received = world.arrived(2).await.pop().unwrap();
    assert_eq!(
        (received.method.as_str(), &*received.body),
        ("PUT", &b"body"[..])
    );
    let headers = ["x-own", "x-new"].map(|name| received.header(name));
    assert_eq!(headers, [Some("1"), Some("2")]);
    assert_eq!(world.send("POST", &path, &[], "").await.status, 404);
    world.end().await;
}

#[tokio::test]
async fn dead_letters_are_retried_together() {
    let world = World::new().await;
    for label in ["a", "b", "b"] {
        world.fail(label, 500).await;
    }
    world.catcher.respond_with(StatusCode::OK);
    let retried = world.send("POST", "/v2/dlq/retry?label=b", &[], "").await;
    assert_eq!(retried.status, 201);
    assert_eq!(
        retried.json()["responses"].as_array().map(Vec::len),
        Some(2)
    );
    assert_eq!(retried.json()["cursor"], "");
    world.wait_until(|counts| counts.delivered == 2).await;
    let unknown = world
        .send("POST", "/v2/dlq/retry?dlqIds=1-1", &[], "")
        .await;
    assert_eq!(unknown.status, 404);
    assert_eq!(world.letters("").await.len(), 1);
    world.end().await;
}

#[tokio::test]
async fn the_failure_callback_names_the_dead_letter() {
    let world = World::new().await;
    world
        .catcher
        .respond_with(Reply::status(StatusCode::CONFLICT).times(1));
    let url = world.catcher.url("/failed");
    let headers = [
        ("upstash-retries", "0"),
        ("upstash-failure-callback", &*url),
    ];
    world.publish(&headers, "x").await;
    let told = world.arrived(2).await.pop().unwrap();
    let told: Value = serde_json::from_slice(&told.body).unwrap();
    assert_eq!(told["dlqId"], world.letters("").await[0]["dlqId"]);
    world.end().await;
}
