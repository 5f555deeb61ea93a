//! The development server and the catcher, over real sockets.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};

use super::*;
use crate::clock::Timestamp;

const SOON: Duration = Duration::from_secs(10);

/// One of each, on this machine.
struct World {
    qstash: DevServer,
    catcher: Catcher,
    client: reqwest::Client,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// An answer that was read.
struct Answered {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

impl World {
    async fn new() -> Self {
        Self::with(Settings {
            // The first retry after 12 ms.
            time_scale: 1_000.0,
            ..Settings::default()
        })
        .await
    }

    async fn with(settings: Settings) -> Self {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let listen = || TcpListener::bind("127.0.0.1:0");
        let catcher = Catcher::start(
            listen().await.unwrap(),
            CatcherSettings::default(),
            tasks.clone(),
            shutdown.clone(),
        );
        let qstash = DevServer::start(
            listen().await.unwrap(),
            settings,
            tasks.clone(),
            shutdown.clone(),
        );
        Self {
            qstash,
            catcher,
            client: delivery::client(),
            tasks,
            shutdown,
        }
    }

    async fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<Answered, reqwest::Error> {
        let method = method.parse().unwrap();
        let url = format!("{}{path}", self.qstash.url());
        let mut request = self.client.request(method, url).body(body);
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.bearer_auth(DEVELOPMENT_TOKEN);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.timeout(SOON).send().await?;
        Ok(Answered {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: String::from_utf8_lossy(&response.bytes().await?).into_owned(),
        })
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answered {
        self.try_send(method, path, headers, body).await.unwrap()
    }

    /// Publishes a body to the catcher.
    async fn publish(&self, headers: &[(&str, &str)], body: &'static str) -> Answered {
        let path = format!("/v2/publish/{}", self.catcher.url("/hook"));
        self.send("POST", &path, headers, body).await
    }

    async fn try_publish(&self) -> Result<Answered, reqwest::Error> {
        let path = format!("/v2/publish/{}", self.catcher.url("/hook"));
        self.try_send("POST", &path, &[], "x").await
    }

    async fn arrived(&self, n: u64) -> Vec<Arc<Received>> {
        self.catcher.wait_for(n, SOON).await.unwrap()
    }

    async fn wait_until(&self, condition: impl Fn(Counts) -> bool + Send) {
        let holds = move |qstash: &DevServer| condition(qstash.counts());
        assert!(
            self.qstash.wait_until(SOON, holds).await,
            "{:?}",
            self.qstash.counts()
        );
    }

    /// Ends everything; all tasks must go.
    async fn end(self) {
        self.shutdown.cancel();
        self.tasks.close();
        tokio::time::timeout(SOON, self.tasks.wait()).await.unwrap();
    }
}

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
    // No header at all is what a webhook sends; an empty one is a wrong token.
    assert_eq!(keys.status, 200);
    assert_eq!(keys.json()["current"], DEVELOPMENT_CURRENT_KEY);
    assert_eq!(world.send("GET", "/v2/keys", &none, "").await.status, 401);
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
    ];
    let id = world.publish(&headers, "body").await.json()["messageId"].clone();
    let path = format!("/v2/messages/{}", id.as_str().unwrap());
    let message = world.send("GET", &path, &[], "").await.json();
    assert_eq!(message["body"], "body");
    assert_eq!(message["header"], json!({ "Test-Header": ["v"] }));
    assert_eq!(message["labels"], json!(["a", "b"]));
    assert_eq!(message["maxRetries"], 3);
    assert!(message["notBefore"].as_i64() > message["createdAt"].as_i64());
    assert_eq!(
        world.send("GET", "/v2/messages/no", &[], "").await.status,
        404
    );
    world.end().await;
}

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
