use std::time::Duration;

use strapi_qstash::dev_server::{Fault, InBatch, Rejection};

use crate::harness::{LONG, TestApp, assert_once_and_in_order, number, update, wait_until};

#[tokio::test]
async fn a_missing_group_holds_only_its_own_events() {
    let app = TestApp::builder()
        .flag("--route", "entry.*:page=pages")
        .hold(Duration::from_millis(500))
        .start()
        .await;
    let mut client = app.client().await;
    let page = |n: usize| {
        format!(
            r#"{{"event":"entry.update","model":"page","uid":"api::page.page","entry":{{"documentId":"d{}","n":{n}}}}}"#,
            n % 10
        )
    };
    for n in 0..100 {
        assert_eq!(client.post("/webhook", &page(n)).await.status, 202);
        assert_eq!(client.post("/webhook", &update(n)).await.status, 202);
    }
    app.qstash.wait_for(100, LONG).await;
    // Some trials later it is as before: the others are through, these wait.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let tally = app.sidecar.buffer().tally();
    assert_eq!((tally.pending, tally.delivered, tally.dead), (100, 100, 0));
    assert_once_and_in_order(&app.qstash.accepted(), 100);
    assert!(app.admin("/").await.body.contains("pages does not exist"));
    let unknown = app.qstash.server.seen().len();
    assert!(unknown < 120, "{unknown} requests");

    app.qstash.add_group("pages");
    app.qstash.wait_for(200, Duration::from_secs(5)).await;
    app.wait_until_drained().await;
    let pages: Vec<_> = app
        .qstash
        .accepted()
        .into_iter()
        .filter(|message| message.url.ends_with("/pages"))
        .collect();
    assert_once_and_in_order(&pages, 100);
}

/// One bad event in a batch of 100: the others arrive, it is a dead letter.
async fn one_bad_event(in_batch: InBatch) {
    let app = TestApp::start().await;
    let faults = app.qstash.server.faults();
    faults.reject(Some(Rejection {
        containing: "poison".to_owned(),
        in_batch,
    }));
    // A backlog, so that there are batches.
    faults.set(Fault::Refuse).await;
    let mut client = app.client().await;
    for n in 0..100 {
        let body = if n == 42 {
            r#"{"event":"entry.update","poison":true}"#.to_owned()
        } else {
            update(n)
        };
        assert_eq!(client.post("/webhook", &body).await.status, 202);
    }
    faults.set(Fault::None).await;
    app.qstash.wait_for(99, LONG).await;
    app.wait_until_drained().await;
    let tally = app.sidecar.buffer().tally();
    assert_eq!((tally.pending, tally.delivered, tally.dead), (0, 99, 1));
    let numbers: Vec<usize> = app
        .qstash
        .accepted()
        .iter()
        .map(|message| number(&message.body))
        .collect();
    assert_eq!(numbers.len(), 99);
    for document in 0..10 {
        assert!(numbers.iter().filter(|n| *n % 10 == document).is_sorted());
    }
    let batches = app
        .qstash
        .server
        .seen()
        .iter()
        .filter(|seen| seen.path == "/v2/batch")
        .count();
    assert!((1..20).contains(&batches), "{batches} batches");
}

#[tokio::test]
async fn an_event_refused_in_a_batch_holds_back_no_other() {
    one_bad_event(InBatch::ItemAlone).await;
}

#[tokio::test]
async fn a_batch_refused_for_one_event_is_split_until_that_one_is_alone() {
    one_bad_event(InBatch::WholeBatch).await;
}

#[tokio::test]
async fn an_event_that_is_too_large_is_a_dead_letter_with_both_sizes() {
    let app = TestApp::start().await;
    let mut client = app.client().await;
    let large = format!(
        r#"{{"event":"entry.update","entry":{{"documentId":"d0","x":"{}"}}}}"#,
        "x".repeat(2 << 20)
    );
    assert_eq!(client.post("/webhook", &large).await.status, 202);
    assert_eq!(client.post("/webhook", &update(0)).await.status, 202);
    app.qstash.wait_for(1, LONG).await;
    assert!(wait_until(LONG, || app.sidecar.buffer().tally().dead == 1).await);
    assert_eq!(
        app.metric("strapi_qstash_dead_events_total{reason=\"too_large\"}")
            .await,
        1.0
    );
    let db = rusqlite::Connection::open(app.dir.path().join("strapi-qstash.db")).unwrap();
    let reason: String = db
        .query_row("SELECT reason FROM event WHERE state = 2", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert!(
        reason.contains(&large.len().to_string()) && reason.contains("1048576"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_backlog_goes_in_batches_and_one_event_alone_as_itself() {
    let app = TestApp::start().await;
    app.post_updates(1).await;
    app.qstash.wait_for(1, LONG).await;
    app.qstash.server.faults().set(Fault::Refuse).await;
    let mut client = app.client().await;
    crate::harness::post_updates(&mut client, 1..1000).await;
    app.qstash.server.faults().set(Fault::None).await;
    app.qstash.wait_for(1000, LONG).await;
    let seen = app.qstash.server.seen();
    assert_eq!(seen[0].path, "/v2/publish/news");
    assert!(seen.len() < 60, "{} requests for 1000 events", seen.len());
    assert!(seen.iter().all(|seen| seen.messages <= 100));
    assert_once_and_in_order(&app.qstash.accepted(), 1000);
}

#[tokio::test]
async fn routes_decide_where_and_how_an_event_is_delivered() {
    let qstash_url = "https://example.com/hook";
    let app = TestApp::builder()
        .flag(
            "--route",
            &format!("entry.delete=queue:fifo/{qstash_url}?site=1&retries=0"),
        )
        .flag("--route", "entry.create=news?retries=5&delay=1s&method=PUT")
        .flag("--retries", "2")
        .flag("--label", "cms")
        .flag("--forward-header", "X-Site: a")
        .start()
        .await;
    let mut client = app.client().await;
    for kind in ["entry.delete", "entry.create", "entry.update"] {
        let body = format!(r#"{{"event":"{kind}"}}"#);
        let headers = [
            "Content-Type: application/json; charset=utf-8",
            "X-Tag: one",
            "X-Tag: two",
            "Upstash-Timeout: 30s",
        ];
        assert_eq!(
            client
                .post_with("/webhook", &headers, body.as_bytes())
                .await
                .status,
            202
        );
    }
    app.qstash.wait_for(3, LONG).await;
    let accepted = app.qstash.accepted();
    let of = |kind: &str| {
        accepted
            .iter()
            .find(|message| message.headers["x-strapi-event"] == kind)
            .unwrap()
    };
    let (deleted, created, updated) = (of("entry.delete"), of("entry.create"), of("entry.update"));
    assert_eq!(deleted.queue.as_deref(), Some("fifo"));
    assert_eq!(deleted.url, format!("{qstash_url}?site=1"));
    assert_eq!(
        (
            deleted.options.retries,
            created.options.retries,
            updated.options.retries
        ),
        (0, 5, 2)
    );
    let waits = created
        .options
        .not_before
        .unwrap()
        .since(created.created_at);
    assert!(
        waits > Duration::from_millis(900) && waits <= Duration::from_secs(1),
        "{waits:?}"
    );
    assert_eq!(created.options.method.as_str(), "PUT");
    for message in [deleted, created, updated] {
        assert_eq!(message.options.labels, ["cms"]);
        assert_eq!(message.headers["x-site"], "a");
        assert_eq!(
            message.headers["content-type"],
            "application/json; charset=utf-8"
        );
        let tags: Vec<_> = message
            .headers
            .get_all("x-tag")
            .iter()
            .map(|tag| tag.to_str().unwrap())
            .collect();
        assert_eq!(tags.join(", "), "one, two");
        assert_eq!(message.options.timeout, Some(Duration::from_secs(30)));
    }
}

#[tokio::test]
async fn the_old_api_is_spoken_where_it_is_wanted() {
    let app = TestApp::builder().flag("--qstash-api", "v1").start().await;
    app.qstash.server.faults().set(Fault::Refuse).await;
    app.post_updates(20).await;
    app.qstash.server.faults().set(Fault::None).await;
    app.qstash.wait_for(20, LONG).await;
    assert!(
        app.qstash
            .server
            .seen()
            .iter()
            .all(|seen| seen.path == "/v1/publish/news")
    );
    assert_once_and_in_order(&app.qstash.accepted(), 20);
}

#[tokio::test]
async fn an_event_older_than_it_may_be_is_given_up() {
    let app = TestApp::builder()
        .flag("--max-age", "500ms")
        .hold(Duration::from_millis(200))
        .start()
        .await;
    app.qstash.server.faults().set(Fault::Refuse).await;
    app.post_updates(5).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    app.qstash.server.faults().set(Fault::None).await;
    app.post_updates(1).await;
    assert!(
        wait_until(LONG, || app.sidecar.buffer().tally().dead == 5).await,
        "{:?}",
        app.sidecar.buffer().tally()
    );
    app.qstash.wait_for(1, LONG).await;
}

/// A QStash of a few lines, for what the development server would never do: `answer` is given
/// each request's path and body, and `None` breaks the connection.
async fn scripted(
    answer: impl Fn(&str, &str) -> Option<(u16, String)> + Clone + Send + Sync + 'static,
) -> std::net::SocketAddr {
    use http_body_util::{BodyExt, Full};
    use hyper::body::{Bytes, Incoming};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let (status, text) =
                        answer(&path, &String::from_utf8_lossy(&body)).ok_or("broken")?;
                    let answer = hyper::Response::builder()
                        .status(status)
                        .body(Full::new(Bytes::from(text)));
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer.unwrap())
                }
            });
            let stream = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(stream, service),
            );
        }
    });
    address
}

/// What QStash answers when all is well.
fn accepted(path: &str, body: &str) -> (u16, String) {
    if path != "/v2/batch" {
        return (200, r#"[{"messageId":"msg"}]"#.to_owned());
    }
    let items: Vec<serde_json::Value> = serde_json::from_str(body).unwrap();
    (
        200,
        serde_json::to_string(&vec![
            serde_json::json!([{"messageId": "msg"}]);
            items.len()
        ])
        .unwrap(),
    )
}

#[tokio::test]
async fn an_event_that_breaks_the_connection_is_found_and_holds_back_no_other() {
    let address =
        scripted(|path, body| (!body.contains("poison")).then(|| accepted(path, body))).await;
    let app = TestApp::builder()
        .flag("--qstash-url", &format!("http://{address}"))
        .start()
        .await;
    let mut client = app.client().await;
    for n in 0..60 {
        let body = if n == 20 {
            r#"{"event":"entry.update","poison":1}"#.to_owned()
        } else {
            update(n)
        };
        assert_eq!(client.post("/webhook", &body).await.status, 202);
    }
    // Others have to pass between its failures, or it could be QStash that is away.
    let buried = async {
        for n in 60.. {
            if app.sidecar.buffer().tally().dead == 1 {
                return n;
            }
            assert_eq!(client.post("/webhook", &update(n)).await.status, 202);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        unreachable!()
    };
    let sent = tokio::time::timeout(LONG, buried).await.unwrap();
    app.wait_until_drained().await;
    let tally = app.sidecar.buffer().tally();
    assert_eq!((tally.delivered, tally.dead), (sent as i64 - 1, 1));
    assert_eq!(
        app.metric("strapi_qstash_dead_events_total{reason=\"poison\"}")
            .await,
        1.0
    );
}

#[tokio::test]
async fn an_event_that_breaks_the_connection_is_kept_while_nothing_else_passes() {
    let address = scripted(|_, _| None).await;
    let app = TestApp::builder()
        .flag("--qstash-url", &format!("http://{address}"))
        .start()
        .await;
    app.post_updates(1).await;
    let failed = "strapi_qstash_publish_requests_total{outcome=\"failed\"}";
    let deadline = std::time::Instant::now() + LONG;
    while app.metric(failed).await < 8.0 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(app.sidecar.buffer().tally().pending, 1);
}

#[tokio::test]
async fn a_batch_refused_with_404_asks_for_the_group_a_few_times_only() {
    let address =
        scripted(|_, _| Some((404, r#"{"error":"topic news not found"}"#.to_owned()))).await;
    let app = TestApp::builder()
        .flag("--qstash-url", &format!("http://{address}"))
        .start()
        .await;
    app.post_updates(500).await;
    let held = || async { app.admin("/").await.body.contains("news does not exist") };
    let deadline = std::time::Instant::now() + LONG;
    while !held().await {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(app.sidecar.buffer().tally().pending, 500);
    let asked = app
        .metric("strapi_qstash_publish_requests_total{outcome=\"ok\"}")
        .await;
    assert!(
        asked < 20.0,
        "{asked} requests for a group that does not exist"
    );
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_split_until_it_is_not() {
    let taken = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&taken);
    // Away until there is a backlog; then it counts the batches that it refuses.
    let refused = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(usize::MAX));
    let refusing = std::sync::Arc::clone(&refused);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let address = scripted(move |path, body| {
        if refusing.load(relaxed) == usize::MAX {
            return None;
        }
        let mut numbers: Vec<usize> = Vec::new();
        if path == "/v2/batch" {
            let items: Vec<serde_json::Value> = serde_json::from_str(body).unwrap();
            if items.len() > 10 {
                refusing.fetch_add(1, relaxed);
                return Some((413, "too much".to_owned()));
            }
            numbers.extend(
                items
                    .iter()
                    .map(|item| number(item["body"].as_str().unwrap().as_bytes())),
            );
        } else {
            numbers.push(number(body.as_bytes()));
        }
        seen.lock().unwrap().extend(numbers);
        Some(accepted(path, body))
    })
    .await;
    let app = TestApp::builder()
        .flag("--qstash-url", &format!("http://{address}"))
        .start()
        .await;
    app.post_updates(300).await;
    refused.store(0, relaxed);
    app.wait_until_drained().await;
    assert!(refused.load(relaxed) > 0, "no batch was too large");
    let taken = taken.lock().unwrap();
    assert_eq!(
        taken.iter().collect::<std::collections::HashSet<_>>().len(),
        300
    );
    assert_eq!(taken.len(), 300, "none goes out twice");
    for document in 0..10 {
        assert!(
            taken.iter().filter(|n| *n % 10 == document).is_sorted(),
            "document {document} is out of order"
        );
    }
    assert_eq!(app.sidecar.buffer().tally().dead, 0);
}

#[tokio::test]
async fn a_trace_goes_through_to_the_receiver_or_begins_with_the_event() {
    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let app = TestApp::start().await;
    let given = format!("traceparent: {GIVEN}");
    let headers = ["content-type: application/json", &given];
    let mut client = app.client().await;
    client
        .post_with("/webhook", &headers, update(1).as_bytes())
        .await;
    let answer = client.post("/webhook", &update(2)).await;
    let id = answer.header("x-event-id").unwrap();
    let received = || app.qstash.catcher.received();
    assert!(wait_until(LONG, || received().len() == 2).await);
    let trace_of = |n: usize| {
        let received = received().into_iter();
        let event = received.into_iter().find(|event| number(&event.body) == n);
        event.unwrap().header("traceparent").unwrap().to_owned()
    };
    assert_eq!(trace_of(1), GIVEN);
    let begun = trace_of(2);
    assert_eq!(begun.split('-').nth(1).unwrap(), id.replace('-', ""));
    let said = app.run(&["events", "show", id]).await;
    assert!(
        said.out
            .contains(&format!("trace     {}", id.replace('-', ""))),
        "{said:?}"
    );
}
