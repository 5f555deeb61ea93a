use strapi_qstash::buffer::Tally;
use strapi_qstash::dev_server::Fault;

use crate::harness::{Answer, Client, LONG, TestApp, update, wait_until};

#[tokio::test]
async fn health_and_readiness_do_not_depend_on_qstash() {
    let app = TestApp::start().await;
    app.qstash.server.faults().set(Fault::Refuse).await;
    app.post_updates(10).await;
    assert_eq!(app.admin("/healthz").await.status, 200);
    assert_eq!(app.admin("/readyz").await.status, 200);
    assert_eq!(app.admin("/nothing").await.status, 404);
}

#[tokio::test]
async fn the_counters_tell_what_happened() {
    let app = TestApp::start().await;
    app.post_updates(30).await;
    app.qstash.wait_for(30, LONG).await;
    app.wait_until_drained().await;
    for (name, value) in [
        ("strapi_qstash_accepted_events_total", 30.0),
        ("strapi_qstash_delivered_events_total", 30.0),
        ("strapi_qstash_buffer_events{state=\"pending\"}", 0.0),
        ("strapi_qstash_buffer_events{state=\"delivered\"}", 30.0),
        ("strapi_qstash_buffer_oldest_age_seconds", 0.0),
        ("strapi_qstash_qstash_flowing", 1.0),
    ] {
        assert_eq!(app.metric(name).await, value, "{name}");
    }
    app.client().await.post_with("/webhook", &[], b"{}").await;
    assert_eq!(
        app.metric("strapi_qstash_refused_requests_total{reason=\"content_type\"}")
            .await,
        1.0
    );
}

#[tokio::test]
async fn status_wants_the_token_where_there_is_one_and_shows_no_secret() {
    let app = TestApp::builder()
        .flag("--admin-token", "adm1n")
        .flag("--webhook-secret", "s3cret")
        .start()
        .await;
    for path in ["/", "/api/status"] {
        assert_eq!(app.admin(path).await.status, 401, "{path}");
        let mut client = Client::connect(app.sidecar.admin_address().unwrap()).await;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer adm1n\r\n\r\n");
        let answer = client.send(request.as_bytes()).await;
        assert_eq!(answer.status, 200, "{path}");
        for secret in [
            "adm1n",
            "s3cret",
            strapi_qstash::dev_server::DEVELOPMENT_TOKEN,
        ] {
            assert!(!answer.body.contains(secret), "{path}");
        }
    }
    assert_eq!(app.admin("/metrics").await.status, 200);
    assert_eq!(app.admin("/readyz").await.status, 200);
}

#[tokio::test]
async fn the_page_is_for_browsers_and_shows_nothing_by_itself() {
    let open = TestApp::start().await;
    let locked = TestApp::builder()
        .flag("--admin-token", "adm1n")
        .start()
        .await;
    for app in [&open, &locked] {
        let get = async |path: &str| {
            let mut client = Client::connect(app.sidecar.admin_address().unwrap()).await;
            let request = format!(
                "GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: text/html,*/*;q=0.8\r\n\r\n"
            );
            client.send(request.as_bytes()).await
        };
        for (path, kind) in [
            ("/", "text/html; charset=utf-8"),
            ("/status.js", "text/javascript; charset=utf-8"),
            ("/page.js", "text/javascript; charset=utf-8"),
            ("/page.css", "text/css; charset=utf-8"),
        ] {
            let answer = get(path).await;
            assert_eq!(
                (answer.status, answer.header("content-type")),
                (200, Some(kind)),
                "{path}"
            );
            let policy = answer.header("content-security-policy").unwrap();
            assert!(policy.starts_with("default-src 'none'"), "{policy}");
        }
    }
    // The token protects what the page asks for.
    assert_eq!(locked.admin("/api/status").await.status, 401);
    let sentence = open.admin("/").await;
    assert!(sentence.body.starts_with("QStash takes events."));
}

#[tokio::test]
async fn nothing_is_changed_by_a_get_and_nothing_else_is_taken() {
    let app = TestApp::start().await;
    let mut client = Client::connect(app.sidecar.admin_address().unwrap()).await;
    let answer = client
        .send(b"POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        .await;
    assert_eq!(answer.status, 405);
}

async fn act(app: &TestApp, id: &str, verb: &str, headers: &[&str]) -> Answer {
    let mut client = Client::connect(app.sidecar.admin_address().unwrap()).await;
    let path = format!("/api/events/{id}/{verb}");
    client.post_with(&path, headers, b"").await
}

#[tokio::test]
async fn a_dead_letter_is_replayed_once_its_cause_is_gone_and_a_delivered_event_again() {
    use strapi_qstash::dev_server::{InBatch, Rejection};
    let app = TestApp::start().await;
    app.qstash.server.faults().reject(Some(Rejection {
        containing: "article".to_owned(),
        in_batch: InBatch::ItemAlone,
    }));
    let answer = app.client().await.post("/webhook", &update(1)).await;
    let id = answer.header("x-event-id").unwrap();
    let dead = || app.sidecar.buffer().tally().dead;
    assert!(wait_until(LONG, || dead() == 1).await);
    app.qstash.server.faults().reject(None);

    assert_eq!(act(&app, id, "replay", &[]).await.status, 200);
    app.qstash.wait_for(1, LONG).await;
    app.wait_until_drained().await;
    assert_eq!(dead(), 0);
    // QStash must not take it for a repeat.
    assert_eq!(act(&app, id, "replay", &[]).await.status, 200);
    app.qstash.wait_for(2, LONG).await;
    let ids: Vec<_> = app
        .qstash
        .accepted()
        .iter()
        .map(|message| message.options.deduplication_id.clone().unwrap())
        .collect();
    assert_eq!(ids, [format!("{id}-2"), format!("{id}-3")]);
    app.wait_until_drained().await;

    assert_eq!(act(&app, id, "discard", &[]).await.status, 200);
    assert_eq!(act(&app, id, "discard", &[]).await.status, 404);
    let tally = app.sidecar.buffer().tally();
    let discarded = Tally {
        accepted: 1,
        discarded: 1,
        ..Tally::default()
    };
    assert_eq!(tally, discarded);
}

#[tokio::test]
async fn no_page_of_another_site_changes_an_event() {
    let app = TestApp::start().await;
    let answer = app.client().await.post("/webhook", &update(1)).await;
    let id = answer.header("x-event-id").unwrap();
    app.wait_until_drained().await;
    let answer = act(&app, id, "discard", &["Origin: https://evil.example"]).await;
    assert_eq!(answer.status, 403);
    assert_eq!(app.sidecar.buffer().tally().delivered, 1);
    assert_eq!(
        app.admin(&format!("/api/events/{id}/discard")).await.status,
        405
    );
}

#[tokio::test]
async fn status_tells_what_flows_since_when_and_by_the_minute() {
    let app = TestApp::start().await;
    app.post_updates(12).await;
    app.qstash.wait_for(12, LONG).await;
    app.wait_until_drained().await;
    let status = async || {
        let text = app.admin("/api/status").await.body;
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let before = status().await;
    let sum = |status: &serde_json::Value, name: &str| {
        let minutes = status["per_minute"][name].as_array().unwrap();
        assert_eq!(minutes.len(), 60);
        minutes
            .iter()
            .map(|count| count.as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!(
        (sum(&before, "accepted"), sum(&before, "delivered")),
        (12, 12)
    );
    assert_eq!(before["settings"]["buffer_max"], "1.0 GiB");
    assert_eq!(before["level"], "good", "{before}");
    assert_eq!(before["accepted"], 12);

    app.qstash.server.faults().set(Fault::Refuse).await;
    app.post_updates(1).await;
    let deadline = std::time::Instant::now() + LONG;
    while status().await["qstash"]["flowing"] == true {
        assert!(std::time::Instant::now() < deadline);
    }
    let stopped = status().await;
    assert_eq!(stopped["qstash"]["cause"], "unreachable");
    let since = |status: &serde_json::Value| status["qstash"]["since"].as_str().unwrap().to_owned();
    assert!(since(&stopped) > since(&before), "{stopped}");
}

#[tokio::test]
async fn status_tells_the_quota_as_qstash_told_it() {
    let app = TestApp::start().await;
    let quota = async || {
        let text = app.admin("/api/status").await.body;
        let status = serde_json::from_str::<serde_json::Value>(&text).unwrap();
        status["qstash"]["quota"].clone()
    };
    assert!(quota().await.is_null(), "nothing was told yet");
    let reset = strapi_qstash::clock::now().plus(LONG);
    app.qstash
        .server
        .faults()
        .set(Fault::DailyQuota { reset })
        .await;
    app.post_updates(1).await;
    let deadline = std::time::Instant::now() + LONG;
    while quota().await.is_null() {
        assert!(std::time::Instant::now() < deadline);
    }
    assert_eq!(
        quota().await,
        serde_json::json!({ "limit": 1000, "remaining": 0 })
    );
}
