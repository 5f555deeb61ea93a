//! Admin: health, metrics and status for the operator. It holds no state: it reads the
//! buffer, the counters and whether QStash takes events. It shows no secret, and a body only to
//! whoever may read the buffer too: somebody on this machine, or with the token.

mod events;
mod page;
mod status;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::buffer::{Buffer, Health};
use crate::clock;
use crate::forwarder::{Cause, Flow};
use crate::http::{self, Answer, plain};
use crate::metrics::{Gauges, Metrics};
use crate::page as shared_page;
use crate::qstash::Client;
use crate::router::Router;
use crate::secret::Secret;

/// What admin is told by flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// What `Authorization: Bearer` must carry for all but health and metrics.
    pub token: Option<Secret>,
}

/// Has held destinations tried: something was made at QStash.
const RETRY: &str = "/api/destinations/retry";

/// Bytes of a request: a thousand ids.
const LARGEST_REQUEST: usize = 64 << 10;

/// What a request needs.
pub(crate) struct Admin {
    pub(crate) settings: Settings,
    pub(crate) buffer: Buffer,
    pub(crate) router: Arc<Router>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) client: Arc<Client>,
    pub(crate) flow: watch::Receiver<Flow>,
    /// The effective settings, without secrets.
    pub(crate) effective: Vec<(String, String)>,
    /// Has destinations that do not exist tried at once.
    pub(crate) retry_held: Arc<Notify>,
    /// Whether only this machine can reach the address.
    pub(crate) is_local: bool,
    /// Set when the sidecar stops taking events.
    pub(crate) draining: Arc<AtomicBool>,
}

fn unauthorised() -> Answer {
    plain(
        StatusCode::UNAUTHORIZED,
        "set the header 'Authorization: Bearer TOKEN' with the token of --admin-token\n",
    )
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, format!("use {allowed}\n"));
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

/// Accepts connections until `shutdown`.
pub(crate) async fn serve(
    admin: Arc<Admin>,
    listener: TcpListener,
    shutdown: CancellationToken,
    tasks: TaskTracker,
) {
    let service = service_fn(move |request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(admin.handle(request).await) }
    });
    http::serve(listener, shutdown, Duration::ZERO, tasks, service).await;
}

impl Admin {
    async fn handle(&self, request: Request<Incoming>) -> Answer {
        let mut answer = self.route(request).await;
        shared_page::protect(answer.headers_mut());
        answer
    }

    async fn route(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let asked = events::Asked::of(path);
        let method = match asked {
            Some(asked) => asked.method(),
            None if path == RETRY => Method::POST,
            None => Method::GET,
        };
        if !(head.method == method || (method == Method::GET && head.method == Method::HEAD)) {
            return not_allowed(if method == Method::GET { "GET" } else { "POST" });
        }
        let part = page::part(path, &head.headers);
        match path {
            "/healthz" => return plain(StatusCode::OK, "ok\n"),
            "/readyz" => return self.ready().await,
            "/metrics" => return self.metrics().await,
            "/" | "/api/status" | RETRY => {}
            _ if asked.is_some() || part.is_some() => {}
            _ => {
                return plain(
                    StatusCode::NOT_FOUND,
                    "there are /healthz, /readyz, /metrics, /api/status, /api/events, /api/events/ID, \
                     /api/events/ID/replay, /api/events/ID/discard and /\n",
                );
            }
        }
        // The page without what it shows is no secret, and it is what asks for the token.
        if let (Some(part), Some(_)) = (&part, &self.settings.token) {
            return part.clone();
        }
        if let Some(refusal) = self.refuse(&head.headers) {
            return refusal;
        }
        if let Some(part) = part {
            return part;
        }
        match (path, asked) {
            ("/", _) => plain(StatusCode::OK, self.status_text()),
            (RETRY, _) => {
                self.retry_held.notify_one();
                http::json(StatusCode::OK, &json!({ "held": self.flow.borrow().held }))
            }
            (_, Some(asked)) => {
                let Ok(body) = Limited::new(body, LARGEST_REQUEST).collect().await else {
                    return plain(StatusCode::PAYLOAD_TOO_LARGE, "that is too much\n");
                };
                self.answer(asked, head.uri.query(), &body.to_bytes()).await
            }
            (_, None) => self.status_json().await,
        }
    }

    /// Why somebody may see and change nothing. Whoever has the token is no page of another site;
    /// without one it must be somebody on this machine, and no page that got here by DNS
    /// rebinding.
    fn refuse(&self, headers: &HeaderMap) -> Option<Answer> {
        match &self.settings.token {
            Some(token) => {
                let offered = http::bearer(headers);
                let is_right = offered.is_some_and(|offered| token.matches(offered));
                (!is_right).then(unauthorised)
            }
            None if !self.is_local => Some(unauthorised()),
            None if http::is_from_another_site(headers) => Some(plain(
                StatusCode::FORBIDDEN,
                "pages of other sites may neither see nor change events\n",
            )),
            None => None,
        }
    }

    /// Whether events can be made durable. QStash's absence changes nothing: that is what the
    /// buffer is for, and a restart would not help.
    async fn ready(&self) -> Answer {
        if self.draining.load(Ordering::Relaxed) {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
        }
        match self.buffer.health().await {
            Health::Writable => plain(StatusCode::OK, "ready\n"),
            Health::Full => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "the disk is full, or the buffer is at its limit\n",
            ),
            Health::Failed => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "the buffer cannot be used\n",
            ),
        }
    }

    async fn metrics(&self) -> Answer {
        let text = self.metrics.render(&self.gauges().await);
        let mut answer = plain(StatusCode::OK, text);
        answer.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        answer
    }

    async fn gauges(&self) -> Gauges {
        let oldest = self.buffer.oldest_pending().await.ok().flatten();
        let usage = self.buffer.usage().await.ok();
        let writable = *self.buffer.watch_health().borrow() == Health::Writable;
        let (stopped, held) = {
            let flow = self.flow.borrow();
            let stopped = flow.stopped.as_ref().map(|(cause, _)| *cause);
            (stopped, flow.held.len())
        };
        Gauges {
            tally: self.buffer.tally(),
            oldest_age_seconds: oldest
                .map_or(0.0, |oldest| clock::now().since(oldest).as_secs_f64()),
            writable,
            usage,
            stopped: stopped.map(cause_name),
            held_destinations: held,
        }
    }
}

/// As the metrics and the API have it: one of [`STOPPED_CAUSES`](crate::metrics::STOPPED_CAUSES).
fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Unreachable => "unreachable",
        Cause::Unauthorized => "unauthorized",
        Cause::Limited => "limited",
    }
}
