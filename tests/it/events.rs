use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use hyper::StatusCode;
use serde_json::Value;
use strapi_qstash::dev_server::{Fault, InBatch, Rejection, Reply};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::harness::{
    Answer, Client, LONG, Process, QStash, TestApp, command, number, run_on, update, wait_until,
};

const MEDIA: &str = r#"{"event":"media.create","media":{"id":7}}"#;

fn id(answer: &Answer) -> String {
    answer.header("x-event-id").unwrap().to_owned()
}

fn text<'a>(event: &'a Value, field: &str) -> &'a str {
    event[field].as_str().unwrap_or_default()
}

/// Everything that QStash is to refuse for good.
fn refuse(qstash: &QStash, containing: &str) {
    qstash.server.faults().reject(Some(Rejection {
        containing: containing.to_owned(),
        in_batch: InBatch::ItemAlone,
    }));
}

#[tokio::test]
async fn events_are_listed_by_every_filter_while_the_sidecar_runs_and_when_it_is_stopped() {
    let app = TestApp::start().await;
    refuse(&app.qstash, "media");
    app.post_updates(12).await;
    let media = id(&app.client().await.post("/webhook", MEDIA).await);
    app.wait_until_drained().await;

    let listed = app.run(&["events", "list", "--json"]).await.json();
    assert_eq!(listed.len(), 13);
    assert_eq!(text(&listed[0], "id"), media, "the newest is first");
    assert_eq!(text(&listed[0], "state"), "dead");
    assert!(text(&listed[0], "reason").len() > 5);
    assert_eq!(text(&listed[12], "state"), "delivered");
    assert!(listed[12]["message_ids"][0].is_string());

    let (dir, qstash) = (app.dir, app.qstash);
    app.sidecar.drain(LONG).await;
    for (filter, count) in [
        (&["--state", "dead"][..], 1),
        (&["--state", "delivered"], 12),
        (&["--state", "pending"], 0),
        (&["--event", "entry.*"], 12),
        (&["--event", "media.create"], 1),
        (&["--uid", "api::article.*"], 12),
        (&["--uid", "article"], 12),
        (&["--document", "d3"], 1),
        (&["--document", "d1"], 2),
        (&["--since", "1h"], 13),
        (&["--since", "2099-01-01"], 0),
        (&["--limit", "5"], 5),
        (&["--uid", "article", "--document", "d0", "--limit", "1"], 1),
    ] {
        let words = [&["events", "list", "--json"], filter].concat();
        let said = run_on(dir.path(), &qstash, &words).await;
        assert_eq!(said.json().len(), count, "{filter:?}");
    }
    let said = run_on(dir.path(), &qstash, &["events", "list", "--state", "lost"]).await;
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("--state: ") && said.err.contains("pending, delivered or dead"));
}

#[tokio::test]
async fn a_table_is_never_wider_than_it_may_be() {
    let app = TestApp::start().await;
    refuse(&app.qstash, "article");
    app.post_updates(3).await;
    app.wait_until_drained().await;
    for width in [30, 40, 60, 80, 120] {
        let said = app
            .run(&["events", "list", "--width", &width.to_string()])
            .await;
        let lines = said.lines();
        assert_eq!(lines.len(), 4, "{said:?}");
        for line in &lines {
            assert!(line.chars().count() <= width, "{width}: {line}");
        }
        assert!(lines[1].contains("dead"), "{lines:?}");
        // What is cut is still the name of one event.
        let cut = lines[1].split_whitespace().next().unwrap();
        assert_eq!(app.run(&["events", "show", cut]).await.code, Some(0));
    }
    let whole = app.run(&["events", "list"]).await;
    assert!(!whole.out.contains('…'), "{whole:?}");
    assert!(whole.err.contains("3 dead"), "{whole:?}");
}

#[tokio::test]
async fn what_came_from_outside_does_not_move_the_cursor() {
    let app = TestApp::start().await;
    let body =
        r#"{"event":"entry.\u001b[2Jx","model":"a\u0007\nb","entry":{"documentId":"\u009bd"}}"#;
    let id = id(&app.client().await.post("/webhook", body).await);
    app.wait_until_drained().await;
    for words in [&["events", "list"][..], &["events", "show", &id]] {
        let said = app.run(words).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        let moves = |c: char| c.is_control() && c != '\n';
        assert!(!said.out.contains(moves), "{said:?}");
        assert!(said.out.contains("entry. [2Jx"), "{said:?}");
    }
}

#[tokio::test]
async fn reading_leaves_a_running_and_a_stopped_buffer_as_it_is() {
    let app = TestApp::start().await;
    app.post_updates(3).await;
    app.wait_until_drained().await;
    let names = |dir: &std::path::Path| {
        std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect::<BTreeSet<_>>()
    };
    let before = names(app.dir.path());
    app.run(&["events", "list"]).await.lines();
    assert_eq!(names(app.dir.path()), before);
    let (dir, qstash) = (app.dir, app.qstash);
    app.sidecar.drain(LONG).await;
    let before = names(dir.path());
    let bytes = std::fs::read(dir.path().join("strapi-qstash.db")).unwrap();
    run_on(dir.path(), &qstash, &["events", "list"])
        .await
        .lines();
    assert_eq!(names(dir.path()), before);
    assert_eq!(
        std::fs::read(dir.path().join("strapi-qstash.db")).unwrap(),
        bytes
    );

    let empty = tempfile::tempdir().unwrap();
    for words in [
        &["events", "list"][..],
        &["events", "show", "01"],
        &["events", "discard", "--state", "dead", "--yes"],
    ] {
        let said = run_on(empty.path(), &qstash, words).await;
        assert_eq!(said.code, Some(1));
        assert!(said.err.contains("--data-dir"), "{said:?}");
    }
    assert_eq!(names(empty.path()), BTreeSet::new());
}

#[tokio::test]
async fn show_tells_the_whole_way_of_an_event_to_the_endpoint() {
    let app = TestApp::start().await;
    app.qstash
        .catcher
        .respond_with(Reply::status(StatusCode::BAD_GATEWAY).times(1));
    let id = id(&app.client().await.post("/webhook", &update(1)).await);
    app.wait_until_drained().await;
    let delivered = || async {
        let said = app.run(&["events", "show", &id[..30]]).await;
        said.out.contains("the endpoint took it")
    };
    let deadline = std::time::Instant::now() + LONG;
    while !delivered().await {
        assert!(std::time::Instant::now() < deadline);
    }
    let said = app.run(&["events", "show", &id]).await;
    let story = said.out.as_str();
    let mut at = 0;
    for part in [
        id.as_str(),
        "delivered",
        "entry.update",
        "api::article.article",
        "goes to   news",
        "received from Strapi",
        "made durable",
        "QStash has it: msg_",
        &format!("to {}", app.qstash.catcher.url("/news")),
        "the endpoint failed with 502",
        "will be tried again at",
        "delivered, the endpoint took it",
    ] {
        let found = story[at..].find(part);
        at += found.unwrap_or_else(|| panic!("no {part:?} behind {at} in\n{story}"));
    }
    let json = app.run(&["events", "show", &id, "--json"]).await.json();
    assert_eq!(json[0]["qstash"][0]["log"][0]["state"], "CREATED");

    // QStash's absence takes that part away and no other.
    app.qstash.server.faults().set(Fault::Refuse).await;
    let said = app.run(&["events", "show", &id]).await;
    assert_eq!(said.code, Some(0));
    assert!(said.out.contains("QStash has it: msg_"), "{said:?}");
    assert!(
        said.out.contains("is not known: ") && said.out.contains("unreachable"),
        "{said:?}"
    );
}

#[tokio::test]
async fn show_tells_attempts_in_qstash_s_words_and_what_to_do() {
    let app = TestApp::start().await;
    app.qstash.server.remove_group("news");
    let id = id(&app.client().await.post("/webhook", &update(1)).await);
    let tried = async || app.run(&["events", "show", &id]).await;
    let deadline = std::time::Instant::now() + LONG;
    while !tried().await.out.contains("attempt failed: ") {
        assert!(std::time::Instant::now() < deadline);
    }
    let said = tried().await;
    assert!(said.out.contains("topic news not found"), "{said:?}");
    assert!(
        said.out
            .contains("strapi-qstash topics create news https://"),
        "{said:?}"
    );
    let said = app.run(&["events", "show", "0"]).await;
    assert_eq!(said.code, Some(0), "one event: any beginning will do");
    let said = app.run(&["events", "show", "ffff"]).await;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("there is no event ffff"), "{said:?}");
    let other = app.client().await.post("/webhook", &update(2)).await;
    let said = app.run(&["events", "show", "0"]).await;
    assert!(said.err.contains("write more of the id"), "{said:?}");

    // One that was never tried waits for the same, as the sidecar knows.
    let other = self::id(&other);
    let said = app.run(&["events", "show", &other]).await;
    for part in [
        "not tried yet",
        "It waits for the URL group news",
        "\n-> strapi-qstash topics create news https://YOUR-RECEIVER\n",
    ] {
        assert!(said.out.contains(part), "{part} in {said:?}");
    }
}

#[tokio::test]
async fn show_tells_what_a_pending_event_waits_for() {
    let app = TestApp::start().await;
    app.qstash.server.faults().set(Fault::Refuse).await;
    app.client().await.post("/webhook", &update(1)).await;
    let second = id(&app.client().await.post("/webhook", &update(2)).await);
    let deadline = std::time::Instant::now() + LONG;
    while app.metric("strapi_qstash_qstash_flowing").await != 0.0 {
        assert!(std::time::Instant::now() < deadline);
    }
    let said = app.run(&["events", "show", &second]).await;
    let told = "QStash has taken nothing since 2";
    assert!(said.out.contains(told), "{said:?}");
    assert!(said.out.contains("\n-> strapi-qstash check\n"), "{said:?}");

    let said = app
        .run(&["events", "show", &second, "--admin", "127.0.0.1:1"])
        .await;
    assert!(
        said.out.contains("none answers at the admin address"),
        "{said:?}"
    );
}

#[tokio::test]
async fn dead_letters_are_replayed_and_discarded_by_filter_on_a_running_sidecar() {
    let app = TestApp::start().await;
    refuse(&app.qstash, "article");
    app.post_updates(250).await;
    app.wait_until_drained().await;
    assert_eq!(app.sidecar.buffer().tally().dead, 250);
    app.qstash.server.faults().reject(None);

    // Nobody is there to say yes.
    for verb in ["replay", "discard"] {
        let said = app.run(&["events", verb, "--state", "dead"]).await;
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(
            said.err.contains("250 events (250 dead)") && said.err.contains("--yes"),
            "{said:?}"
        );
        let said = app.run(&["events", verb, "--yes"]).await;
        assert!(said.err.contains("say which events"), "{said:?}");
    }
    assert_eq!(app.sidecar.buffer().tally().dead, 250);

    let words = [
        "events",
        "replay",
        "--state",
        "dead",
        "--document",
        "d3",
        "--yes",
    ];
    assert_eq!(app.run(&words).await.lines(), ["Replayed 25 events."]);
    app.qstash.wait_for(25, LONG).await;
    for message in app.qstash.accepted() {
        assert_eq!(number(&message.body) % 10, 3);
    }
    let words = ["events", "discard", "--state", "dead", "--yes", "--json"];
    let said = app.run(&words).await;
    assert_eq!(
        said.json()[0],
        serde_json::json!({"changed": 225, "unchanged": 0})
    );
    app.wait_until_drained().await;
    let tally = app.sidecar.buffer().tally();
    assert_eq!((tally.delivered, tally.dead), (25, 0));
    let said = app.run(&words).await;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("nothing to do"), "{said:?}");
}

#[tokio::test]
async fn what_is_replayed_on_a_stopped_sidecar_goes_out_at_the_next_start() {
    let qstash = QStash::start().await;
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--route", "entry.*=drop", "--keep-delivered", "7d"];
    // No route takes it: it is a dead letter that goes nowhere.
    let process = [
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--route",
        "entry.*=news",
    ];
    let process = command::command(dir.path(), &qstash.server.url(), None, &process);
    let mut process = Process::spawn(process).await;
    let mut client = Client::connect(process.webhook).await;
    let media = id(&client.post("/webhook", MEDIA).await);
    client.post("/webhook", &update(5)).await;
    qstash.wait_for(1, LONG).await;
    process.signal("TERM");
    assert_eq!(process.exit_code().await, Some(0));

    let said = run_on(dir.path(), &qstash, &["events", "replay", &media]).await;
    assert_eq!(
        said.lines(),
        ["Replayed 0 events."],
        "there is no route for it yet"
    );
    let replay = [
        "events", "replay", "--topic", "news", "--event", "*", "--yes",
    ];
    let said = run_on(dir.path(), &qstash, &replay).await;
    assert_eq!(said.lines(), ["Replayed 2 events."]);
    assert!(said.err.contains("when it is started"), "{said:?}");

    let _process = Process::start(&dir, &qstash, None, &flags).await;
    qstash.wait_for(3, LONG).await;
    let ids: Vec<_> = qstash
        .accepted()
        .iter()
        .map(|message| message.options.deduplication_id.clone().unwrap())
        .collect();
    assert!(ids.contains(&format!("{media}-2")), "{ids:?}");
}

#[tokio::test]
async fn a_change_names_the_sidecar_that_it_cannot_reach() {
    let app = TestApp::builder()
        .flag("--admin-token", "adm1n")
        .start()
        .await;
    app.post_updates(1).await;
    app.wait_until_drained().await;
    let words = ["events", "discard", "--state", "delivered", "--yes"];
    let said = app.run(&words).await;
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("STRAPI_QSTASH_ADMIN_TOKEN"), "{said:?}");
    let said = app
        .run(&[&words[..], &["--admin", "127.0.0.1:1"]].concat())
        .await;
    assert!(
        said.err.contains("127.0.0.1:1") && said.err.contains("--admin"),
        "{said:?}"
    );
    let other = TestApp::start().await;
    let address = other.sidecar.admin_address().unwrap().to_string();
    let said = app
        .run(&[&words[..], &["--admin", &address]].concat())
        .await;
    assert!(said.err.contains("uses another buffer"), "{said:?}");
    let said = app
        .run(&[&words[..], &["--admin-token", "adm1n"]].concat())
        .await;
    assert_eq!(said.lines(), ["Discarded 1 event."]);
}

#[tokio::test]
async fn follow_tells_what_comes_and_what_becomes_of_it() {
    let app = TestApp::start().await;
    app.qstash.server.faults().set(Fault::Refuse).await;
    app.post_updates(1).await;
    let admin = app.sidecar.admin_address();
    let words = ["events", "list", "--follow", "--json", "--event", "entry.*"];
    let mut following = command::command(app.dir.path(), &app.qstash.server.url(), admin, &words)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(LONG, lines.next_line()).await;
        let line = line.unwrap().unwrap().unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    let first = next().await;
    assert_eq!(text(&first, "state"), "pending");
    app.client().await.post("/webhook", MEDIA).await;
    let second = id(&app.client().await.post("/webhook", &update(2)).await);
    while text(&next().await, "id") != second {}
    app.qstash.server.faults().set(Fault::None).await;
    let mut delivered = BTreeSet::new();
    while delivered.len() < 2 {
        let event = next().await;
        assert_eq!(text(&event, "event"), "entry.update");
        if text(&event, "state") == "delivered" {
            delivered.insert(text(&event, "id").to_owned());
        }
    }
    assert!(delivered.contains(text(&first, "id")) && delivered.contains(&second));
}

/// The settings of a file for `curl -K`, with what is quoted as it is.
fn curl_settings(file: &str) -> Vec<(String, String)> {
    let lines = file.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.split_once(" = ").unwrap();
            let value = value.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
            (
                name.to_owned(),
                value.replace("\\\"", "\"").replace("\\\\", "\\"),
            )
        })
        .collect()
}

#[tokio::test]
async fn an_export_has_what_strapi_sent_for_curl_to_post() {
    let app = TestApp::start().await;
    let body = update(1);
    let headers = [
        "Content-Type: application/json",
        "X-Strapi-Event: entry.update",
        r#"X-Quoted: say "hi" \"#,
    ];
    let mut client = app.client().await;
    let id = id(&client
        .post_with("/webhook", &headers, body.as_bytes())
        .await);
    app.wait_until_drained().await;
    let out = app.dir.path().join("out");
    let words = [
        "events",
        "export",
        "--event",
        "*",
        "--out",
        out.to_str().unwrap(),
    ];
    let said = app.run(&words).await;
    assert!(said.lines()[0].starts_with("Wrote 1 event to "), "{said:?}");

    let written = std::fs::read(out.join(format!("{id}.json"))).unwrap();
    assert_eq!(written, body.as_bytes());
    let config = std::fs::read_to_string(out.join(format!("{id}.curl"))).unwrap();
    let settings = curl_settings(&config);
    let has = |name: &str, value: &str| {
        let found = settings.iter().any(|(n, v)| n == name && v == value);
        assert!(found, "{name} {value} in {config}");
    };
    has("request", "POST");
    has("header", "content-type: application/json");
    has("header", "x-strapi-event: entry.update");
    has("header", r#"x-quoted: say "hi" \"#);
    has("data-binary", &format!("@{id}.json"));
    for name in [format!("{id}.json"), format!("{id}.curl")] {
        let mode = std::fs::metadata(out.join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    // Where there is curl, it takes the file.
    let url = format!("http://{}/webhook", app.webhook);
    let curl = tokio::process::Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "-K",
            &format!("{id}.curl"),
            &url,
        ])
        .current_dir(&out)
        .output();
    if let Ok(output) = curl.await {
        assert!(output.status.success(), "{output:?}");
        app.qstash.wait_for(2, LONG).await;
        let accepted = app.qstash.accepted();
        assert_eq!(accepted[0].body, accepted[1].body);
        assert_eq!(
            accepted[0].headers["x-quoted"],
            accepted[1].headers["x-quoted"]
        );
    }
}

#[tokio::test]
async fn the_api_lists_in_pages_and_shows_bodies_to_this_machine_only() {
    let app = TestApp::start().await;
    app.post_updates(7).await;
    app.wait_until_drained().await;
    let json = |answer: &Answer| serde_json::from_str::<Value>(&answer.body).unwrap();
    let (mut ids, mut before) = (Vec::new(), String::new());
    loop {
        let page = json(
            &app.admin(&format!("/api/events?limit=3&before={before}"))
                .await,
        );
        let events = page["events"].as_array().unwrap();
        assert!(events.len() <= 3);
        ids.extend(events.iter().map(|event| text(event, "id").to_owned()));
        match page["next"].as_i64() {
            Some(next) => before = next.to_string(),
            None => break,
        }
    }
    assert_eq!(ids.len(), 7);
    let story = json(&app.admin(&format!("/api/events/{}", ids[0])).await);
    assert_eq!(text(&story, "state"), "delivered");
    assert!(story["steps"].as_array().unwrap().is_empty());
    let body = app.admin(&format!("/api/events/{}/body", ids[0])).await;
    assert_eq!(number(body.body.as_bytes()), 6);
    assert_eq!(body.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(app.admin("/api/events?state=lost").await.status, 400);
    assert_eq!(
        app.admin("/api/events/01980e5c-1b2a-7c3d-8e4f-0123456789ab")
            .await
            .status,
        404
    );
    // A page that has its own name pointed at this address, and one of another site.
    for headers in [
        "host: evil.example",
        "host: localhost\r\norigin: https://evil.example",
    ] {
        for path in [
            "/",
            "/api/status",
            "/api/events",
            &format!("/api/events/{}/body", ids[0]),
        ] {
            let mut client = Client::connect(app.sidecar.admin_address().unwrap()).await;
            let request = format!("GET {path} HTTP/1.1\r\n{headers}\r\n\r\n");
            assert_eq!(
                client.send(request.as_bytes()).await.status,
                403,
                "{path} {headers}"
            );
        }
    }
    let mut client = Client::connect(app.sidecar.admin_address().unwrap()).await;
    let many = format!(r#"{{"ids":["{}","{}"]}}"#, ids[0], ids[1]);
    let answer = client.post("/api/events/discard", &many).await;
    assert_eq!(json(&answer)["changed"], 2, "{answer:?}");
    assert_eq!(client.post("/api/events/discard", "{}").await.status, 400);
    assert!(wait_until(LONG, || app.sidecar.buffer().tally().delivered == 5).await);
}

#[tokio::test]
async fn what_the_endpoint_never_took_is_told_with_its_place_at_qstash() {
    let app = TestApp::builder().flag("--retries", "1").start().await;
    app.qstash
        .catcher
        .respond_with(Reply::status(StatusCode::INTERNAL_SERVER_ERROR));
    let id = id(&app.client().await.post("/webhook", &update(1)).await);
    app.wait_until_drained().await;
    let deadline = std::time::Instant::now() + LONG;
    let said = loop {
        let said = app.run(&["events", "show", &id]).await;
        if said.out.contains("given up after the last retry") {
            break said;
        }
        assert!(std::time::Instant::now() < deadline, "{said:?}");
    };
    assert!(
        said.out.contains("the endpoint failed with 500"),
        "{said:?}"
    );
    assert!(
        said.out.contains(&format!("events replay {id}")),
        "{said:?}"
    );
    let json = app.run(&["events", "show", &id, "--json"]).await.json();
    let letter = json[0]["qstash"][0]["dead_letter"].as_str().unwrap();
    assert!(
        said.out.contains(&format!("dead letter queue as {letter}")),
        "{said:?}"
    );
}
