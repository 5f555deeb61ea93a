use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use strapi_qstash::clock;
use strapi_qstash::dev_server::{DEVELOPMENT_CURRENT_KEY, DEVELOPMENT_NEXT_KEY};
use strapi_qstash::signature;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::{Answer, Client, LONG, Process, QStash, binary, fixtures, wait_until};

/// What the API got.
struct Call {
    method: String,
    target: String,
    headers: HeaderMap,
    body: Bytes,
}

/// An API that answers what it is told, else 200.
struct Api {
    address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    answers: Arc<Mutex<VecDeque<Response<Full<Bytes>>>>>,
    /// An answer needs a permit.
    may_answer: Arc<Semaphore>,
    _accepting: AbortOnDropHandle<()>,
}

impl Api {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::<Mutex<Vec<Call>>>::default();
        let answers = Arc::<Mutex<VecDeque<_>>>::default();
        let may_answer = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let (kept, told, permits) = (calls.clone(), answers.clone(), may_answer.clone());
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (kept, told, permits) = (kept.clone(), told.clone(), permits.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (kept, told, permits) = (kept.clone(), told.clone(), permits.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let call = Call {
                            method: head.method.to_string(),
                            target: head.uri.to_string(),
                            headers: head.headers,
                            body: body.collect().await.unwrap().to_bytes(),
                        };
                        kept.lock().unwrap().push(call);
                        permits.acquire().await.unwrap().forget();
                        let answer = told.lock().unwrap().pop_front();
                        Ok::<_, Infallible>(answer.unwrap_or_default())
                    }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self {
            address,
            calls,
            answers,
            may_answer,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    fn answer_next(&self, status: u16, headers: &[(&str, &str)], body: &'static str) {
        let mut answer = Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        let answer = answer.body(Full::new(Bytes::from_static(body.as_bytes())));
        self.answers.lock().unwrap().push_back(answer.unwrap());
    }

    fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

/// `verify` before an API.
async fn verify_before(upstream: &str, flags: &[&str]) -> Process {
    let mut command = Command::new(binary());
    command
        .args(["verify", "--listen", "127.0.0.1:0", "--log-format", "json"])
        .args(["--upstream", upstream])
        .args(flags)
        .env("QSTASH_CURRENT_SIGNING_KEY", DEVELOPMENT_CURRENT_KEY)
        .env("QSTASH_NEXT_SIGNING_KEY", DEVELOPMENT_NEXT_KEY);
    Process::spawn_saying(command, "Deliveries go to http://").await
}

/// A delivery as QStash makes it.
struct Delivery<'a> {
    id: &'a str,
    path: &'a str,
    url: &'a str,
    key: &'a str,
    body: &'a [u8],
}

impl Default for Delivery<'_> {
    fn default() -> Self {
        Self {
            id: "msg_1",
            path: "/hook",
            url: "https://api.example.com/hook",
            key: DEVELOPMENT_CURRENT_KEY,
            body: br#"{"event":"entry.publish"}"#,
        }
    }
}

impl Delivery<'_> {
    async fn to(&self, address: SocketAddr) -> Answer {
        let token = signature::sign(self.key, self.url, self.body, clock::now());
        let headers = [
            "Content-Type: application/json".to_owned(),
            "X-Strapi-Event: entry.publish".to_owned(),
            format!("Upstash-Message-Id: {}", self.id),
            format!("Upstash-Signature: {token}"),
        ];
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let mut client = Client::connect(address).await;
        client.post_with(self.path, &headers, self.body).await
    }
}

#[tokio::test]
async fn a_webhook_gets_through_the_whole_chain_as_strapi_sent_it() {
    let api = Api::start().await;
    let verify = verify_before(&format!("http://{}/api", api.address), &[]).await;
    let qstash = QStash::start().await;
    let url = format!("http://{}/hooks?from=qstash", verify.webhook);
    qstash
        .server
        .upsert_endpoints("api", &[(None, &url)])
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let sidecar = Process::start(&dir, &qstash, None, &["--route", "*=api"]).await;

    let (request, body) = fixtures::captured("entry.publish.http");
    let sent = Client::connect(sidecar.webhook).await.send(&request).await;
    assert_eq!(sent.status, 202);
    assert!(
        wait_until(LONG, || api.count() == 1).await,
        "{}",
        verify.log()
    );
    let calls = api.calls.lock().unwrap();
    let call = &calls[0];
    assert_eq!(
        (call.method.as_str(), call.target.as_str()),
        ("POST", "/api/hooks?from=qstash")
    );
    assert_eq!(call.body, body);
    for (name, value) in [
        ("content-type", "application/json"),
        ("x-strapi-event", "entry.publish"),
        ("x-custom-header", "custom value"),
        ("webhook-id", sent.header("x-event-id").unwrap()),
        ("host", &api.address.to_string()),
    ] {
        assert_eq!(call.headers.get(name).unwrap(), value, "{name}");
    }
    assert!(call.headers.contains_key("upstash-message-id"));
}

#[tokio::test]
async fn what_qstash_did_not_sign_never_reaches_the_api() {
    let api = Api::start().await;
    let upstream = format!("http://{}", api.address);
    let verify = verify_before(&upstream, &["--public-url", "https://api.example.com"]).await;
    let mut client = Client::connect(verify.webhook).await;
    let unsigned = client.post("/hook", "{}").await;
    assert_eq!(unsigned.status, 401, "{unsigned:?}");
    for wrong in [
        Delivery {
            key: "sig_other",
            ..Delivery::default()
        },
        Delivery {
            url: "https://api.example.com/other",
            ..Delivery::default()
        },
        Delivery {
            url: "https://staging.example.com/hook",
            ..Delivery::default()
        },
        Delivery {
            path: "/hook?admin=1",
            ..Delivery::default()
        },
    ] {
        assert_eq!(wrong.to(verify.webhook).await.status, 401);
    }
    assert_eq!(api.count(), 0);
    let next = Delivery {
        key: DEVELOPMENT_NEXT_KEY,
        ..Delivery::default()
    };
    assert_eq!(next.to(verify.webhook).await.status, 200);
    assert_eq!(api.count(), 1);
}

#[tokio::test]
async fn a_repeat_is_dropped_once_the_api_has_said_yes_and_not_before() {
    let api = Api::start().await;
    let verify = verify_before(&format!("http://{}", api.address), &[]).await;
    for status in [500, 404, 429] {
        api.answer_next(status, &[("retry-after", "7")], "not now");
        let answer = Delivery::default().to(verify.webhook).await;
        assert_eq!((answer.status, answer.body.as_str()), (status, "not now"));
        assert_eq!(
            answer.header("retry-after"),
            Some("7"),
            "QStash waits as the API says"
        );
    }
    api.answer_next(
        201,
        &[("content-type", "application/json")],
        r#"{"done":true}"#,
    );
    let answer = Delivery::default().to(verify.webhook).await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (201, r#"{"done":true}"#)
    );
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(api.count(), 4);

    for _ in 0..3 {
        let answer = Delivery::default().to(verify.webhook).await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!(api.count(), 4, "repeats are dropped");
    let other = Delivery {
        id: "msg_2",
        ..Delivery::default()
    };
    assert_eq!(other.to(verify.webhook).await.status, 200);
    assert_eq!(api.count(), 5, "another message with the same body is none");
}

#[tokio::test]
async fn of_two_tries_at_a_time_the_second_waits_for_the_first() {
    let api = Api::start().await;
    api.may_answer.forget_permits(usize::MAX);
    let verify = verify_before(&format!("http://{}", api.address), &[]).await;
    let address = verify.webhook;
    let deliver = || tokio::spawn(async move { Delivery::default().to(address).await });
    // The first hangs up before the API has answered.
    let first = deliver();
    assert!(wait_until(LONG, || api.count() == 1).await);
    first.abort();
    let second = deliver();
    assert!(first.await.is_err());
    api.may_answer.add_permits(1);
    assert_eq!(second.await.unwrap().status, 200);
    assert_eq!(
        api.count(),
        1,
        "what the API answered the first counts for the second"
    );
}

#[tokio::test]
async fn an_api_that_is_away_slow_or_elsewhere_is_tried_again_by_qstash() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = taken.local_addr().unwrap();
    drop(taken);
    let away = verify_before(&format!("http://{gone}"), &[]).await;
    let answer = Delivery::default().to(away.webhook).await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (502, "the API cannot be reached")
    );
    let log = || away.log();
    assert!(
        wait_until(LONG, || log().contains("refused")).await,
        "{}",
        log()
    );

    let api = Api::start().await;
    let upstream = format!("http://{}", api.address);
    let verify = verify_before(&upstream, &["--upstream-timeout", "100ms"]).await;
    api.answer_next(302, &[("location", "/login")], "");
    assert_eq!(Delivery::default().to(verify.webhook).await.status, 502);
    api.may_answer.forget_permits(usize::MAX);
    assert_eq!(Delivery::default().to(verify.webhook).await.status, 504);
    api.may_answer.add_permits(10);
    assert_eq!(Delivery::default().to(verify.webhook).await.status, 200);
}

#[tokio::test]
async fn a_strangers_body_is_not_even_read() {
    let verify = verify_before("http://127.0.0.1:1", &[]).await;
    let mut client = Client::connect(verify.webhook).await;
    let head = b"POST /hook HTTP/1.1\r\nhost: x\r\ncontent-length: 40000000\r\n\r\n";
    assert_eq!(client.send(head).await.status, 401);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let api = Api::start().await;
    let verify = verify_before(&format!("http://{}", api.address), &["--max-body", "1KiB"]).await;
    let body = vec![b' '; 1025];
    let large = Delivery {
        body: &body,
        ..Delivery::default()
    };
    assert_eq!(large.to(verify.webhook).await.status, 413);
    assert_eq!(api.count(), 0);
}

#[test]
fn every_mistake_is_told_and_keys_may_be_in_files() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "sig_x\n").unwrap();
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(binary());
        let output = command
            .arg("verify")
            .args(args)
            .env_clear()
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, told) = run(&[
        "--upstream",
        "127.0.0.1:3000",
        "--listen",
        "x",
        "--max-body",
        "5",
        "--public-url",
        "api",
    ]);
    assert_eq!(code, Some(2));
    for flag in [
        "--upstream",
        "--listen",
        "--max-body",
        "--public-url",
        "--current-signing-key",
        "--next-signing-key",
    ] {
        assert!(told.contains(&format!("{flag}: ")), "{flag}\n{told}");
    }
    let key = key.to_str().unwrap();
    let files = [
        "--current-signing-key-file",
        key,
        "--next-signing-key-file",
        key,
    ];
    let (_, told) = run(&[
        &["--upstream", "http://127.0.0.1:1", "--listen", "x"],
        &files[..],
    ]
    .concat());
    assert!(!told.contains("signing-key"), "{told}");
}
