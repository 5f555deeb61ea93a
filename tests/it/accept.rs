use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{Client, LONG, TestApp, fixtures};

#[tokio::test]
async fn every_captured_webhook_arrives_byte_for_byte() {
    let app = TestApp::builder()
        .flag("--webhook-secret", "s3cret-token")
        .start()
        .await;
    let lax = TestApp::start().await;
    let names = fixtures::names();
    assert!(names.len() >= 17, "{names:?}");
    for (at, name) in names.iter().enumerate() {
        let (request, body) = fixtures::captured(name);
        // One was captured with another secret.
        let app = if name == "entry.publish.null-entry.http" {
            &lax
        } else {
            &app
        };
        let before = app.qstash.server.messages().len();
        let answer = app.client().await.send(&request).await;
        let is_test = name.contains("trigger-test");
        assert_eq!(
            answer.status,
            if is_test { 200 } else { 202 },
            "{name}: {answer:?}"
        );
        assert!(is_test || answer.body.is_empty(), "{name}");
        assert_eq!(answer.header("x-event-id").unwrap().len(), 36, "{name}");
        assert_eq!(answer.header("keep-alive"), Some("timeout=75"), "{name}");

        app.qstash.wait_for(before + 1, LONG).await;
        let delivered = app
            .qstash
            .catcher
            .wait_for(before as u64 + 1, LONG)
            .await
            .unwrap();
        let delivered = delivered.last().unwrap();
        assert_eq!(delivered.body, body, "{name}");
        assert!(delivered.verified, "{name}");
        assert_eq!(delivered.path, "/news", "{name}");
        let kind = String::from_utf8_lossy(&request);
        let kind = kind
            .split("X-Strapi-Event: ")
            .nth(1)
            .unwrap()
            .split('\r')
            .next()
            .unwrap();
        assert_eq!(delivered.header("x-strapi-event"), Some(kind), "{name}");
        assert_eq!(
            delivered.header("content-type"),
            Some("application/json"),
            "{name}"
        );
        assert_eq!(
            delivered.header("webhook-id"),
            answer.header("x-event-id"),
            "{name}"
        );
        assert_eq!(
            delivered.header("user-agent"),
            Some("Upstash-QStash"),
            "{name}"
        );
        assert_eq!(delivered.header("authorization"), None, "{name}");
        if name != "entry.publish.null-entry.http" {
            assert_eq!(
                delivered.header("x-custom-header"),
                Some("custom value"),
                "{name}"
            );
        }
        let _ = at;
    }
}

#[tokio::test]
async fn whatever_is_authentic_is_taken() {
    let app = TestApp::start().await;
    let mut client = app.client().await;
    let bodies = [
        r#"{"event":"entry.publish","createdAt":"x","model":"article","uid":"api::article.article","entry":null}"#,
        r#"{"event":"something.new","payload":[1,2,3]}"#,
        r#"{"event":"entry.create","created_at":"2019-01-08T22:35:12.500Z","model":"article","entry":{"id":1}}"#,
        r#"{"event":"releases.publish","isPublished":true,"release":{"id":2}}"#,
        r#"{}"#,
        r#" {"event":"entry.create","entry":{"id":1}} "#,
    ];
    for body in bodies {
        assert_eq!(client.post("/webhook", body).await.status, 202, "{body}");
    }
    app.qstash.wait_for(bodies.len(), LONG).await;
    let mut arrived: Vec<String> = app
        .qstash
        .accepted()
        .iter()
        .map(|message| String::from_utf8(message.body.to_vec()).unwrap())
        .collect();
    arrived.sort();
    let mut sent = bodies.map(str::to_owned);
    sent.sort();
    assert_eq!(arrived, sent);
}

#[tokio::test]
async fn latin_1_header_values_arrive_byte_for_byte() {
    let app = TestApp::start().await;
    let body = br#"{"event":"entry.create"}"#;
    let mut request = b"POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nX-Who: Gr\xfc\xdfe\r\n".to_vec();
    request.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    request.extend_from_slice(body);
    // Several, so that a batch is tried too.
    app.qstash
        .server
        .faults()
        .set(strapi_qstash::dev_server::Fault::Refuse)
        .await;
    let mut client = app.client().await;
    for _ in 0..5 {
        assert_eq!(client.send(&request).await.status, 202);
    }
    app.qstash
        .server
        .faults()
        .set(strapi_qstash::dev_server::Fault::None)
        .await;
    let delivered = app.qstash.catcher.wait_for(5, LONG).await.unwrap();
    for received in delivered {
        assert_eq!(
            received.headers.get("x-who").unwrap().as_bytes(),
            b"Gr\xfc\xdfe"
        );
    }
}

#[tokio::test]
async fn a_body_of_30_megabytes_is_made_durable() {
    let app = TestApp::start().await;
    // QStash's free plan takes 1 MB, so this one is a dead letter in the end, with both sizes.
    let body = format!(
        r#"{{"event":"entry.create","entry":{{"documentId":"big","text":"{}"}}}}"#,
        "x".repeat(30 << 20)
    );
    let answer = app.client().await.post("/webhook", &body).await;
    assert_eq!(answer.status, 202);
    let dead = || app.sidecar.buffer().tally().dead == 1;
    assert!(
        crate::harness::wait_until(LONG, dead).await,
        "{:?}",
        app.sidecar.buffer().tally()
    );
}

#[tokio::test]
async fn a_chunked_body_is_taken() {
    let app = TestApp::start().await;
    let request = b"POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n\
                    8\r\n{\"event\"\r\n10\r\n:\"entry.create\"}\r\n0\r\n\r\n";
    assert_eq!(app.client().await.send(request).await.status, 202);
    app.qstash.wait_for(1, LONG).await;
    assert_eq!(app.qstash.accepted()[0].body, r#"{"event":"entry.create"}"#);
}

#[tokio::test]
async fn what_is_no_webhook_is_told_so_in_one_line() {
    let app = TestApp::builder()
        .flag("--webhook-secret", "s3cret")
        .flag("--max-body", "1KiB")
        .start()
        .await;
    let json = "Content-Type: application/json";
    let secret = "Authorization: Bearer s3cret";
    let event = r#"{"event":"entry.create"}"#;
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(2000));
    for (path, headers, body, status) in [
        ("/webhook", vec![json], event, 401),
        (
            "/webhook",
            vec![json, "Authorization: Bearer wrong"],
            event,
            401,
        ),
        (
            "/webhook",
            vec![json, "Authorization: Basic s3cret"],
            event,
            401,
        ),
        ("/webhook", vec![secret], event, 415),
        (
            "/webhook",
            vec![secret, "Content-Type: text/plain"],
            event,
            415,
        ),
        ("/webhook", vec![secret, json], large.as_str(), 413),
        ("/webhook", vec![secret, json], "not json", 422),
        ("/webhook", vec![secret, json], "[]", 422),
        ("/webhook", vec![secret, json], "", 422),
        ("/", vec![secret, json], event, 404),
        ("/webhook/a/b", vec![secret, json], event, 404),
        ("/webhook/my%20group", vec![secret, json], event, 404),
        (
            "/v2/publish/https://example.com/",
            vec![secret, json],
            event,
            404,
        ),
        ("/v2/batch", vec![secret, json], event, 404),
        ("/webhook", vec![secret, json], event, 202),
    ] {
        let answer = app
            .client()
            .await
            .post_with(path, &headers, body.as_bytes())
            .await;
        assert_eq!(
            answer.status, status,
            "{path} {headers:?} {body}: {answer:?}"
        );
        if status != 202 {
            assert!(
                !answer.body.is_empty() && !answer.body.contains('\n') && answer.body.len() < 300,
                "{answer:?}"
            );
            assert!(!answer.body.contains("s3cret"), "{answer:?}");
        }
    }
    // What was authentic and no event is kept; what was not authentic is not.
    app.qstash.wait_for(1, LONG).await;
    app.wait_until_drained().await;
    assert_eq!(app.sidecar.buffer().tally().dead, 3);
    assert_eq!(app.qstash.server.messages().len(), 1);
}

#[tokio::test]
async fn other_methods_are_refused() {
    let app = TestApp::start().await;
    for method in ["GET", "PUT", "OPTIONS", "DELETE"] {
        let answer = app
            .client()
            .await
            .send(format!("{method} /webhook HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .await;
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some("POST"));
    }
}

#[tokio::test]
async fn a_sender_that_is_still_writing_reads_why_it_was_refused() {
    let app = TestApp::builder().flag("--max-body", "1MiB").start().await;
    let body = vec![b'x'; 20 << 20];
    let answer = app
        .client()
        .await
        .post_with("/webhook", &["Content-Type: application/json"], &body)
        .await;
    assert_eq!(answer.status, 413);
    assert!(answer.body.contains("--max-body"), "{answer:?}");
}

#[tokio::test]
async fn an_idle_connection_is_kept_for_the_next_event() {
    let app = TestApp::start().await;
    let mut client = app.client().await;
    assert_eq!(client.post("/webhook", "{}").await.status, 202);
    // Strapi's client would drop it after 4 s without the header.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(client.post("/webhook", "{}").await.status, 202);
}

#[tokio::test]
async fn a_path_names_a_group_as_in_old_tutorials() {
    let app = TestApp::builder().no_topic().start().await;
    app.qstash.add_group("strapi.create");
    for path in [
        "/webhook/strapi.create",
        "/v1/publish/strapi.create",
        "/v2/publish/strapi.create?x=1",
    ] {
        assert_eq!(
            app.client().await.post(path, "{}").await.status,
            202,
            "{path}"
        );
    }
    app.qstash.wait_for(3, LONG).await;
    for received in app.qstash.catcher.wait_for(3, LONG).await.unwrap() {
        assert_eq!(received.path, "/strapi.create");
    }
}

#[tokio::test]
async fn an_event_without_a_route_is_a_dead_letter_and_a_dropped_one_is_gone() {
    let app = TestApp::builder()
        .no_topic()
        .flag("--route", "media.*=drop")
        .start()
        .await;
    let mut client = Client::connect(app.webhook).await;
    assert_eq!(
        client
            .post("/webhook", r#"{"event":"entry.create"}"#)
            .await
            .status,
        202
    );
    assert_eq!(
        client
            .post("/webhook", r#"{"event":"media.create"}"#)
            .await
            .status,
        202
    );
    let tally = app.sidecar.buffer().tally();
    assert_eq!((tally.pending, tally.delivered, tally.dead), (0, 0, 1));
    assert_eq!(
        app.metric("strapi_qstash_dead_events_total{reason=\"no_route\"}")
            .await,
        1.0
    );
    assert_eq!(app.metric("strapi_qstash_dropped_events_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_come_whole_is_kept_though_its_sender_hangs_up() {
    let app = TestApp::start().await;
    for (n, size) in [100, 600_000, 900_000].into_iter().enumerate() {
        let body = format!(
            r#"{{"event":"entry.create","x":[{}0]}}"#,
            "0,".repeat(size / 2)
        );
        let mut stream = TcpStream::connect(app.webhook).await.unwrap();
        let head = format!(
            "POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        drop(stream);
        app.qstash.wait_for(n + 1, LONG).await;
    }
}
