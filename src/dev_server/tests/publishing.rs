//! What publishers send and what they are answered.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_publish_arrives_signed_and_unchanged() {
    let world = World::new().await;
    let body = "{\"title\": \"na\u{ef}ve \\u00e9\",\n \"n\": 1.0}";
    let url = world.catcher.url("/a//b/hook?x=1&y=%20");
    let headers = [
        ("content-type", "application/json; charset=utf-8"),
        ("upstash-forward-x-strapi-event", "entry.publish"),
        ("upstash-method", "PUT"),
        ("x-other", "stays behind"),
    ];
    let path = format!("/v2/publish/{url}&upstash-retries=1&qstash_token=ignored");
    let answer = world.send("POST", &path, &headers, body).await;
    assert_eq!(answer.status, 200);
    let id = answer.json()["messageId"].as_str().unwrap().to_owned();
    let received = world.arrived(1).await.remove(0);
    assert!(received.verified, "{:?}", received.signature_error);
    assert_eq!(received.body, body);
    assert_eq!(received.method, "PUT");
    assert_eq!(received.path, "/a//b/hook?x=1&y=%20");
    for (name, value) in [
        ("content-type", Some("application/json; charset=utf-8")),
        ("x-strapi-event", Some("entry.publish")),
        ("user-agent", Some("Upstash-QStash")),
        ("upstash-message-id", Some(id.as_str())),
        ("upstash-retried", Some("0")),
        ("upstash-topic-name", None),
        ("x-other", None),
        ("authorization", None),
    ] {
        assert_eq!(received.header(name), value, "{name}");
    }
    world.wait_until(|counts| counts.delivered == 1).await;
    let message = world.qstash.messages().remove(0);
    assert_eq!((message.id.as_str(), message.options.retries), (&*id, 1));
    let seen = world.qstash.seen().remove(0);
    assert_eq!((seen.messages, seen.bytes), (1, body.len()));
    assert_eq!((seen.status, seen.faulted), (Some(200), false));
    world.end().await;
}

#[tokio::test]
async fn a_group_gets_a_message_for_each_endpoint() {
    let world = World::new().await;
    let (one, two) = (world.catcher.url("/one"), world.catcher.url("/two"));
    world
        .qstash
        .upsert_endpoints("strapi.create", &[(Some("one"), &one), (None, &two)])
        .unwrap();
    for version in ["v2", "v1"] {
        let path = format!("/{version}/publish/strapi.create");
        let answer = world.send("POST", &path, &[], "x").await;
        let answers = answer.json();
        assert_eq!(answers[0]["url"], one.as_str());
        assert_eq!(answers[1]["url"], two.as_str());
    }
    for received in world.arrived(4).await {
        assert!(received.verified);
        assert_eq!(received.header("upstash-topic-name"), Some("strapi.create"));
    }
    world.qstash.remove_group("strapi.create");
    let answer = world
        .send("POST", "/v2/publish/strapi.create", &[], "x")
        .await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.error(), "topic strapi.create not found");
    world.end().await;
}

#[tokio::test]
async fn a_batch_takes_urls_groups_and_queues() {
    let world = World::new().await;
    let url = world.catcher.url("/hook");
    world
        .qstash
        .upsert_endpoints("group", &[(None, &url)])
        .unwrap();
    let batch = json!([
        { "destination": url, "body": "one", "headers": { "Upstash-Forward-N": "1" } },
        { "destination": "nobody", "body": "lost" },
        { "destination": "group", "body": "two" },
        { "destination": "group", "body": "three", "queue": "q" },
    ]);
    let answer = world
        .send("POST", "/v2/batch", &[], batch.to_string())
        .await;
    assert_eq!(answer.status, 200);
    let answers = answer.json();
    assert!(answers[0]["messageId"].is_string());
    assert_eq!(answers[1]["error"], "topic nobody not found");
    assert_eq!(answers[2].as_array().unwrap().len(), 1);
    let received = world.arrived(3).await;
    let mut bodies: Vec<_> = received.iter().map(|r| r.body.clone()).collect();
    bodies.sort();
    assert_eq!(bodies, ["one", "three", "two"]);
    assert!(received.iter().all(|received| received.verified));
    assert_eq!(world.qstash.seen().remove(0).messages, 4);
    world.end().await;
}

#[tokio::test]
async fn a_duplicate_is_accepted_and_not_delivered() {
    let world = World::new().await;
    let id = [("upstash-deduplication-id", "0198-abc")];
    let first = world.publish(&id, "one").await;
    let second = world.publish(&id, "one").await;
    assert_eq!((first.status, second.status), (200, 202));
    assert_eq!(first.json()["messageId"], second.json()["messageId"]);
    assert_eq!(first.json().get("deduplicated"), None);
    assert_eq!(second.json()["deduplicated"], true);
    world.publish(&[], "two").await;
    world.wait_until(|counts| counts.delivered == 2).await;
    assert_eq!(world.qstash.counts().deduplicated, 1);
    assert_eq!(world.catcher.received().len(), 2);
    let flags = world.qstash.messages();
    let flags: Vec<_> = flags.iter().map(|message| message.deduplicated).collect();
    assert_eq!(flags, [false, true, false]);
    world.end().await;
}

#[tokio::test]
async fn header_values_pass_as_bytes() {
    let world = World::new().await;
    let value = reqwest::header::HeaderValue::from_bytes(b"caf\xe9").unwrap();
    let url = format!(
        "{}/v2/publish/{}",
        world.qstash.url(),
        world.catcher.url("/")
    );
    let request = world.client.post(url).bearer_auth(DEVELOPMENT_TOKEN);
    let request = request.header("upstash-forward-x-name", value.clone());
    let body = [0_u8, 159, 146, 150];
    assert_eq!(
        request.body(body.to_vec()).send().await.unwrap().status(),
        200
    );
    let received = world.arrived(1).await.remove(0);
    assert_eq!(received.headers["x-name"], value);
    assert_eq!(received.body, body.as_slice());
    assert!(received.verified);
    world.end().await;
}

#[tokio::test]
async fn what_is_not_right_is_refused_with_qstashs_words() {
    let world = World::with(Settings {
        max_message: 3,
        ..Settings::default()
    })
    .await;
    let bad_token = [("authorization", "Bearer wrong")];
    let bad_id = [("upstash-deduplication-id", "a:b")];
    let cron = [("upstash-cron", "* * * * *")];
    for (path, headers, body, status, error) in [
        (
            "/v2/publish/x",
            &bad_token[..],
            "",
            401,
            "unable to authenticate: invalid token",
        ),
        (
            "/v2/publish/http%3A%2F%2Fh",
            &[],
            "",
            400,
            "invalid destination url: endpoint has invalid scheme, add http:// or https://",
        ),
        (
            "/v2/publish/",
            &[],
            "",
            400,
            "a non-empty destination must be provided",
        ),
        (
            "/v2/publish/http://h",
            &bad_id,
            "",
            400,
            "DeduplicationId cannot contain ':'",
        ),
        (
            "/v2/publish/http://h",
            &[],
            "1234",
            400,
            "quota maxMessageSize exceeded, current limit: 3",
        ),
        (
            "/v2/publish/http://h",
            &cron,
            "",
            501,
            "Upstash-Cron is not part of this development server",
        ),
        (
            "/v2/schedules/http://h",
            &[],
            "",
            501,
            "POST /v2/schedules/http://h is not part of this development server",
        ),
        ("/elsewhere", &[], "", 404, "not found"),
    ] {
        let answer = world.send("POST", path, headers, body).await;
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (status, error),
            "{path}"
        );
    }
    let wrong_method = world.send("GET", "/v2/publish/http://h", &[], "").await;
    assert_eq!(wrong_method.status, 405);
    assert!(world.qstash.messages().is_empty());
    world.end().await;
}

#[tokio::test]
async fn the_token_may_be_a_parameter() {
    let world = World::new().await;
    let none = [("authorization", "")];
    let path = format!("/v2/keys?qstash_token={DEVELOPMENT_TOKEN}");
    let keys = world.send("GET", &path, &none, "").await;
    assert_eq!(keys.status, 200);
    assert_eq!(keys.json()["current"], DEVELOPMENT_CURRENT_KEY);
    assert_eq!(world.send("GET", "/v2/keys", &none, "").await.status, 401);
    world.end().await;
}
