use std::convert::Infallible;
use std::path::Path;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use strapi_qstash::config::Config;
use tokio::net::TcpListener;

use crate::harness::{Client, LONG, Process, QStash, Said, command, update, wait_until};

const WEBHOOK_SECRET: &str = "hook-5ecret-7Qm2";
const ADMIN_TOKEN: &str = "adm1n-t0ken-9Xw4";
const QSTASH_TOKEN: &str = strapi_qstash::dev_server::DEVELOPMENT_TOKEN;
const SECRETS: [&str; 3] = [WEBHOOK_SECRET, ADMIN_TOKEN, QSTASH_TOKEN];

/// What was looked at, and by which name.
#[derive(Default)]
struct Searched(usize);

impl Searched {
    fn look(&mut self, what: &str, bytes: impl AsRef<[u8]>) {
        for secret in SECRETS {
            let found = bytes
                .as_ref()
                .windows(secret.len())
                .position(|part| part == secret.as_bytes());
            if let Some(at) = found {
                let around = &bytes.as_ref()[at.saturating_sub(80)..at];
                panic!(
                    "{secret} is in {what}, behind {:?}",
                    String::from_utf8_lossy(around)
                );
            }
        }
        self.0 += 1;
    }

    fn look_at_folder(&mut self, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => self.look_at_folder(&path),
                false => self.look(&path.display().to_string(), std::fs::read(&path).unwrap()),
            }
        }
    }
}

/// Not QStash but a proxy that tells what it was asked in its refusal.
async fn echoing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(|request: hyper::Request<Incoming>| async move {
                let authorization = request.headers()["authorization"].to_str().unwrap();
                assert!(authorization.contains(QSTASH_TOKEN));
                let error = serde_json::json!({ "error": format!("not by {authorization}") });
                let mut answer = hyper::Response::new(Full::new(Bytes::from(error.to_string())));
                *answer.status_mut() = hyper::StatusCode::BAD_REQUEST;
                Ok::<_, Infallible>(answer)
            });
            let stream = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(stream, service),
            );
        }
    });
    url
}

/// A sidecar that has all the secrets there are, and logs all there is to log.
async fn start(dir: &Path, qstash: &str) -> Process {
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--log",
        "trace",
        "--route",
        "media.*=nowhere",
    ];
    let mut command = Process::command_to(dir, qstash, &flags);
    command
        .env("STRAPI_QSTASH_WEBHOOK_SECRET", WEBHOOK_SECRET)
        .env("STRAPI_QSTASH_ADMIN_TOKEN", ADMIN_TOKEN);
    Process::spawn(command).await
}

/// Webhooks of every kind, and every page of admin; all that was answered is looked at.
async fn visit(process: &Process, searched: &mut Searched) {
    let bearer = format!("Authorization: Bearer {WEBHOOK_SECRET}");
    let json = "Content-Type: application/json";
    let large = format!(r#"{{"event":"entry.update","x":"{}"}}"#, "x".repeat(2_000));
    let mut client = Client::connect(process.webhook).await;
    for (path, headers, body) in [
        ("/webhook", vec![json, &bearer], update(1)),
        ("/webhook", vec![json, &bearer], large),
        ("/webhook", vec![json, &bearer], "no json".to_owned()),
        (
            "/webhook",
            vec![json, &bearer],
            r#"{"event":"media.create"}"#.to_owned(),
        ),
        (
            "/webhook",
            vec![json, &bearer],
            r#"{"event":"trigger-test"}"#.to_owned(),
        ),
        ("/webhook", vec![json], update(2)),
        ("/webhook", vec![&bearer], update(3)),
        ("/nothing", vec![json, &bearer], update(4)),
        ("/webhook", vec![json, &bearer], update(5)),
        ("/webhook/news", vec![json, &bearer], update(6)),
        ("/v2/publish/news", vec![json, &bearer], update(7)),
    ] {
        let answer = client.post_with(path, &headers, body.as_bytes()).await;
        searched.look(path, format!("{answer:?}"));
    }
    let address = process.admin_address().await;
    let mut client = Client::connect(address).await;
    let mut get = async |path: &str, token: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{token}\r\n");
        client.send(request.as_bytes()).await
    };
    let token = format!("authorization: Bearer {ADMIN_TOKEN}\r\n");
    let events = get("/api/events", &token).await;
    let ids = serde_json::from_str::<serde_json::Value>(&events.body).unwrap();
    let ids = ids["events"].as_array().unwrap().iter();
    let mut paths: Vec<String> = ids
        .flat_map(|event| {
            let path = format!("/api/events/{}", event["id"].as_str().unwrap());
            [format!("{path}/body"), path]
        })
        .collect();
    assert!(paths.len() >= 8, "{paths:?}");
    let others = [
        "/",
        "/metrics",
        "/readyz",
        "/healthz",
        "/api/status",
        "/api/events",
        "/nothing",
    ];
    paths.extend(others.map(str::to_owned));
    for path in paths {
        for token in [token.as_str(), ""] {
            let answer = get(&path, token).await;
            searched.look(&path, format!("{answer:?}"));
        }
    }
}

#[tokio::test]
async fn no_secret_is_in_any_log_line_page_answer_export_or_file() {
    let mut searched = Searched::default();
    let qstash = QStash::start().await;
    let echoing = echoing().await;
    for url in [qstash.server.url(), echoing] {
        let dir = tempfile::tempdir().unwrap();
        let mut process = start(dir.path(), &url).await;
        visit(&process, &mut searched).await;
        let log_has = |text: &str| process.log().contains(text);
        let settled = async |text: &str| wait_until(LONG, || log_has(text)).await;
        match url == qstash.server.url() {
            true => {
                qstash.wait_for(2, LONG).await;
                assert!(settled("Destination does not exist").await);
            }
            false => assert!(settled("[redacted]").await, "{}", process.log()),
        }
        let admin = process.admin_address().await;
        let out = dir.path().join("out").display().to_string();
        let bad_route = ["check", "--route", "x", "--max-body", "1"];
        for words in [
            &["events", "list"][..],
            &["events", "list", "--json"],
            &["events", "export", "--event", "*", "--out", &out],
            &["events", "replay", "--state", "dead", "--yes"],
            &["check", "--topic", "news"],
            &["check", "--topic", "news", "--json"],
            &bad_route,
            &["topics", "list"],
            &["topics", "create", "news", "http://127.0.0.1:1"],
            &["--max-body", "1", "--route", "x"],
            &["--help"],
            &["check", "--help"],
            &["man"],
            &["strapi-bootstrap"],
        ] {
            let mut command = command::command(dir.path(), &url, Some(admin), words);
            command
                .env("STRAPI_QSTASH_WEBHOOK_SECRET", WEBHOOK_SECRET)
                .env("STRAPI_QSTASH_ADMIN_TOKEN", ADMIN_TOKEN);
            let said: Said = command.output().await.unwrap().into();
            searched.look(&words.join(" "), format!("{}{}", said.out, said.err));
        }
        let list = ["events", "list", "--json"];
        let listed: Said = command::command(dir.path(), &url, None, &list)
            .output()
            .await
            .unwrap()
            .into();
        for event in listed.json() {
            let show = ["events", "show", event["id"].as_str().unwrap()];
            let mut command = command::command(dir.path(), &url, None, &show);
            let said: Said = command.output().await.unwrap().into();
            searched.look("events show", format!("{}{}", said.out, said.err));
        }
        searched.look_at_folder(dir.path()); // while it runs, with the log of the file
        process.signal("TERM");
        assert_eq!(process.exit_code().await, Some(0));
        searched.look_at_folder(dir.path());
        let log = process.log();
        assert!(log.contains("\"level\":\"TRACE\"") && log.len() > 10_000);
        searched.look("the log", log);
    }
    // Nor does the receiver get them.
    for received in qstash.catcher.received() {
        searched.look(
            "a delivery",
            format!("{:?}{:?}", received.headers, received.body),
        );
    }
    println!(
        "{} outputs and files were searched for {} secrets",
        searched.0,
        SECRETS.len()
    );
    assert!(searched.0 > 100, "{}", searched.0);
}

#[test]
fn no_panic_tells_a_secret_even_of_all_the_settings() {
    let flags = [
        "--qstash-token",
        QSTASH_TOKEN,
        "--webhook-secret",
        WEBHOOK_SECRET,
        "--admin-token",
        ADMIN_TOKEN,
        "--topic",
        "news",
    ];
    let flags = flags.map(str::to_owned);
    let (config, warnings) = Config::from_args(&crate::harness::parse(&flags)).unwrap();
    let summary = config.summary();
    let panicked = std::panic::catch_unwind(move || -> () { panic!("{config:?}") });
    let message = panicked
        .map(|()| {})
        .unwrap_err()
        .downcast::<String>()
        .unwrap();
    assert!(message.contains("[redacted]"), "{message}");
    let mut searched = Searched::default();
    searched.look("a panic", message.as_bytes());
    searched.look("the settings", summary);
    searched.look("the warnings", warnings.join("\n"));
}

#[tokio::test]
async fn what_a_url_or_a_header_may_hide_is_in_no_log_and_no_settings() {
    let (qstash, dir) = (QStash::start().await, tempfile::tempdir().unwrap());
    let url = qstash.catcher.url("/hook?secret=in-the-url-3Lk8");
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--log",
        "debug",
        "--route",
        &format!("entry.*={url}&retries=2&forward-header=X-Key:%20in-a-header-5Tz1"),
        "--forward-header",
        "X-Other: in-a-header-5Tz1",
        "--callback",
        &url.replace("//", "//me:in-the-url-3Lk8@"),
    ];
    let mut process = Process::spawn(Process::command_to(
        dir.path(),
        &qstash.server.url(),
        &flags,
    ))
    .await;
    let mut client = Client::connect(process.webhook).await;
    client.post("/webhook", &update(1)).await;
    let arrived = wait_until(LONG, || qstash.catcher.received().len() == 2).await;
    assert!(arrived, "{}", process.log());
    let delivered = wait_until(LONG, || process.log().contains("\"Delivered\"")).await;
    assert!(delivered, "{}", process.log());
    let received = qstash.catcher.received();
    let key = received.iter().find_map(|one| one.headers.get("x-key"));
    assert_eq!(
        key.unwrap(),
        "in-a-header-5Tz1",
        "and the callback has none"
    );
    let status = process.admin("/api/status").await.body;
    process.signal("TERM");
    assert_eq!(process.exit_code().await, Some(0));
    let told = qstash.catcher.url("/hook");
    let route = format!("entry.*={told}?retries=2&forward-header=X-Key");
    for text in [&status, &process.log()] {
        assert!(text.contains(&told), "{text}");
        assert!(text.contains(&route), "{route} in {text}");
        for secret in ["in-the-url-3Lk8", "in-a-header-5Tz1"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}
