use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::IgnoredAny;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::Role;
use crate::client::ask;
use crate::process::{self, Bare};

/// Answers at once, takes all.
#[derive(Default)]
struct Sink {
    delay_ms: AtomicU64,
    refuses: AtomicBool,
    messages: AtomicU64,
}

/// The bare QStash: one thread, so that it leaves the other core to what is measured.
pub(crate) async fn serve() {
    let mut connections = JoinSet::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    process::announce(listener.local_addr().unwrap());
    let sink = Arc::new(Sink::default());
    let accept = async {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let sink = Arc::clone(&sink);
            let service = service_fn(move |request| {
                let sink = Arc::clone(&sink);
                async move { Ok::<_, Infallible>(sink.answer(request).await) }
            });
            connections.spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    };
    tokio::select! {
        () = accept => {}
        () = process::wait_for_parent() => {}
    }
}

impl Sink {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        if let Some(told) = path.strip_prefix("/told/") {
            return self.told(told);
        }
        let body = request.into_body().collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        if self.refuses.load(Ordering::Relaxed) {
            return json(
                StatusCode::SERVICE_UNAVAILABLE,
                r#"{"error":"away"}"#.into(),
            );
        }
        match self.delay_ms.load(Ordering::Relaxed) {
            0 => {}
            delay => tokio::time::sleep(Duration::from_millis(delay)).await,
        }
        if path != "/v2/batch" {
            let first = self.messages.fetch_add(1, Ordering::Relaxed);
            return json(StatusCode::OK, answers(first, 1));
        }
        match serde_json::from_slice::<Vec<IgnoredAny>>(&body) {
            Ok(items) => {
                let count = items.len() as u64;
                let first = self.messages.fetch_add(count, Ordering::Relaxed);
                json(StatusCode::OK, format!("[{}]", answers(first, count)))
            }
            Err(error) => json(StatusCode::BAD_REQUEST, format!(r#"{{"error":"{error}"}}"#)),
        }
    }

    fn told(&self, what: &str) -> Response<Full<Bytes>> {
        match what.split_once('/') {
            Some(("delay", ms)) => self.delay_ms.store(ms.parse().unwrap(), Ordering::Relaxed),
            Some(("refuse", yes)) => self.refuses.store(yes.parse().unwrap(), Ordering::Relaxed),
            _ => {}
        }
        json(
            StatusCode::OK,
            self.messages.load(Ordering::Relaxed).to_string(),
        )
    }
}

/// What QStash answers for messages to a URL group with one endpoint.
fn answers(first: u64, count: u64) -> String {
    let mut text = String::with_capacity(140 * count as usize);
    for number in first..first + count {
        let comma = if number == first { "" } else { "," };
        write!(
            text,
            r#"{comma}[{{"messageId":"msg_7YoJxFpwkEy5zBp378JgvD6Y{number:032}","url":"https://example.com/api/revalidate"}}]"#
        )
        .unwrap();
    }
    text
}

fn json(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// A sink that runs.
pub(crate) struct Running(Bare);

impl Running {
    pub(crate) async fn start() -> Self {
        Self(Bare::start(Role::Sink).await)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// How long it takes from now on for an answer.
    pub(crate) async fn delay(&self, delay: Duration) {
        self.tell(&format!("delay/{}", delay.as_millis())).await;
    }

    /// Whether it answers 503 from now on.
    pub(crate) async fn refuse(&self, yes: bool) {
        self.tell(&format!("refuse/{yes}")).await;
    }

    /// Messages taken so far.
    pub(crate) async fn messages(&self) -> u64 {
        self.tell("messages").await
    }

    async fn tell(&self, what: &str) -> u64 {
        let (_, text) = ask(self.address(), "PUT", &format!("/told/{what}"))
            .await
            .unwrap();
        text.parse().unwrap()
    }
}
