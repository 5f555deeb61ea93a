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

#[tokio::test]
async fn a_cancelled_message_ends_when_it_is_its_turn() {
    let world = World::new().await;
    let id = world.publish(&[("upstash-delay", "1s")], "x").await.id();
    let path = format!("/v2/messages/{id}");
    let cancelled = world.send("DELETE", &path, &[], "").await;
    assert_eq!(
        (cancelled.status, &*cancelled.body),
        (200, "{\"cancelled\":1}")
    );
    assert_eq!(world.send("DELETE", &path, &[], "").await.status, 404);
    assert_eq!(world.send("GET", &path, &[], "").await.status, 404);
    assert_eq!(world.states(&id).await, ["CREATED", "CANCEL_REQUESTED"]);
    world.wait_until(|counts| counts.cancelled == 1).await;
    let states = ["CREATED", "CANCEL_REQUESTED", "CANCELLED"];
    assert_eq!(world.states(&id).await, states);
    // The SDKs know one of them in another spelling only.
    let events = world.get("/v2/events?state=CANCELED").await;
    assert_eq!(events["events"][0]["state"], "CANCELED");
    assert_eq!(world.catcher.received().len(), 0);
    world.end().await;
}

#[tokio::test]
async fn messages_are_cancelled_by_ids_and_by_filters() {
    let world = World::new().await;
    let mut ids = Vec::new();
    for label in ["a", "a", "b", "c,d", "e"] {
        let headers = [("upstash-delay", "1h"), ("upstash-label", label)];
        ids.push(world.publish(&headers, "x").await.id());
    }
    let cancel = async |query: &str, body: String| {
        let path = format!("/v2/messages{query}");
        let answer = world.send("DELETE", &path, &[], body).await;
        (answer.status, answer.json()["cancelled"].as_u64())
    };
    let none = String::new;
    assert_eq!(cancel("?label=x", none()).await, (200, Some(0)));
    assert_eq!(
        cancel("?label=a&label=d&count=1", none()).await,
        (200, Some(3))
    );
    let named = json!({ "messageIds": [ids[0], ids[2], "msg_none"] }).to_string();
    assert_eq!(cancel("", named).await, (200, Some(1)));
    assert_eq!(cancel("?messageid=x", none()).await, (400, None));
    assert_eq!(
        cancel("", "{\"messageIds\":[]}".into()).await,
        (200, Some(0))
    );
    assert_eq!(cancel("", none()).await, (200, Some(1)));
    world.end().await;
}

#[tokio::test]
async fn the_log_is_read_page_by_page() {
    let world = World::new().await;
    for body in ["1", "2", "3"] {
        world.publish(&[], body).await;
    }
    world.wait_until(|counts| counts.delivered == 3).await;
    let mut lines = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = world
            .get(&format!("/v2/events?count=2&cursor={cursor}"))
            .await;
        let page_lines = page["events"].as_array().unwrap();
        assert!(!page_lines.is_empty() && page_lines.len() <= 2);
        lines.extend(page_lines.clone());
        match page.get("cursor") {
            Some(next) => next.as_str().unwrap().clone_into(&mut cursor),
            None => break,
        }
    }
    assert_eq!(lines.len(), 9);
    let whole = world.get("/v2/events").await;
    assert_eq!(whole["events"].as_array(), Some(&lines));
    let now = clock::now().as_millis();
    let since = world
        .get(&format!("/v2/logs?cursor={now}&state=CREATED"))
        .await;
    assert_eq!(since["logs"].as_array().map(Vec::len), Some(3));
    let early = world.get("/v2/logs?toDate=1").await;
    assert_eq!(early, json!({ "logs": [] }));
    world.end().await;
}

#[tokio::test]
async fn what_was_redacted_is_delivered_and_not_shown() {
    let world = World::new().await;
    let headers = [
        ("upstash-redact-fields", "body,header[Authorization]"),
        ("upstash-forward-authorization", "Bearer receiver"),
        ("upstash-forward-x-open", "open"),
        ("content-type", "text/plain"),
    ];
    let id = world.publish(&headers, "secret").await.id();
    let received = world.arrived(1).await.remove(0);
    assert_eq!(received.body, "secret");
    assert_eq!(received.header("authorization"), Some("Bearer receiver"));
    let message = world.get(&format!("/v2/messages/{id}")).await;
    let log = world.get("/v2/logs").await.to_string();
    let hidden = "REDACTED:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    assert_eq!(message["body"], hidden);
    assert_eq!(message["header"]["X-Open"], json!(["open"]));
    assert!(!format!("{message}{log}").contains("Bearer"));
    world.end().await;
}

#[tokio::test]
async fn what_this_server_has_not_it_says_so() {
    let world = World::new().await;
    for (method, path) in [
        ("GET", "/v2/schedules"),
        ("POST", "/v2/schedules/http://127.0.0.1:1"),
        ("GET", "/v1/topics"),
        ("POST", "/llm/v1/chat/completions"),
        ("POST", "/v2/publish/api/llm"),
        ("GET", "/v2/workflows/runs"),
    ] {
        let answer = world.send(method, path, &[], "").await;
        assert_eq!(answer.status, 501, "{path}");
        assert!(
            answer
                .error()
                .contains("not part of this development server")
        );
    }
    assert_eq!(world.send("GET", "/", &[], "").await.status, 404);
    let wrong = [("authorization", "Bearer wrong")];
    for path in ["/v2/schedules", "/v2/dlq", "/v2/queues/q"] {
        assert_eq!(world.send("GET", path, &wrong, "").await.status, 401);
    }
    world.end().await;
}
