//! URL groups and messages over HTTP.

use serde_json::json;

use super::*;

#[tokio::test]
async fn url_groups_are_managed_over_http() {
    let world = World::new().await;
    let endpoints = "/v2/topics/g/endpoints";
    let url = world.catcher.url("/hook");
    let body = json!({ "endpoints": [{ "url": url, "name": "a" }, { "url": "http://b" }] });
    let added = world.send("POST", endpoints, &[], body.to_string()).await;
    assert_eq!(added.status, 200);
    let group = world.send("GET", "/v2/topics/g", &[], "").await.json();
    assert_eq!(group["endpoints"], body["endpoints"]);
    let removed = json!({ "endpoints": [{ "url": "http://b" }] }).to_string();
    assert_eq!(
        world.send("DELETE", endpoints, &[], removed).await.status,
        200
    );
    let headers = json!({ "headers": { "Upstash-Header-Forward": ["true"] } }).to_string();
    assert_eq!(
        world
            .send("PATCH", "/v2/topics/g", &[], headers)
            .await
            .status,
        200
    );
    world
        .send("POST", "/v2/publish/g", &[("x-own", "1")], "x")
        .await;
    assert_eq!(world.arrived(1).await[0].header("x-own"), Some("1"));
    assert_eq!(
        world.send("DELETE", "/v2/topics/g", &[], "").await.status,
        200
    );
    assert_eq!(
        world.send("DELETE", "/v2/topics/g", &[], "").await.status,
        200
    );
    assert_eq!(world.send("GET", "/v2/topics/g", &[], "").await.status, 404);
    assert_eq!(
        world.send("GET", "/v2/topics", &[], "").await.json(),
        json!([])
    );
    let nobody = world
        .send("PATCH", "/v2/topics/g", &[], "{\"headers\":{}}")
        .await;
    assert_eq!(nobody.status, 404);
    world.end().await;
}

#[tokio::test]
async fn a_message_can_be_looked_at() {
    let world = World::new().await;
    let headers = [
        ("upstash-forward-test-header", "v"),
        ("upstash-label", "a,b"),
        ("upstash-delay", "1h"),
        ("upstash-failure-callback", "http://127.0.0.1:1"),
    ];
    let id = world.publish(&headers, "body").await.json()["messageId"].clone();
    let path = format!("/v2/messages/{}", id.as_str().unwrap());
    let message = world.send("GET", &path, &[], "").await.json();
    assert_eq!(message["body"], "body");
    assert_eq!(message["header"], json!({ "Test-Header": ["v"] }));
    assert_eq!(message["labels"], json!(["a", "b"]));
    assert_eq!(message["maxRetries"], 3);
    assert_eq!(message["failureCallback"], "http://127.0.0.1:1");
    assert_eq!(message.get("callback"), None);
    assert!(message["notBefore"].as_i64() > message["createdAt"].as_i64());
    assert_eq!(
        world.send("GET", "/v2/messages/no", &[], "").await.status,
        404
    );
    world.end().await;
}
