//! Admin: health, metrics and status for the operator. It holds no state: it reads the
//! buffer, the counters and whether QStash takes events. It shows no secret and no body.

mod events;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::buffer::{Buffer, Health};
use crate::clock;
use crate::forwarder::{Cause, Flow};
use crate::http::{self, Answer, plain};
use crate::metrics::{Gauges, Metrics};
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

/// What a request needs.
pub(crate) struct Admin {
    pub(crate) settings: Settings,
    pub(crate) buffer: Buffer,
    pub(crate) router: Arc<Router>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) flow: watch::Receiver<Flow>,
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
        async move { Ok::<_, Infallible>(admin.handle(&request).await) }
    });
    http::serve(listener, shutdown, Duration::ZERO, tasks, service).await;
}

impl Admin {
    async fn handle(&self, request: &Request<Incoming>) -> Answer {
        let path = request.uri().path();
        if let Some(action) = events::Action::of(path) {
            return match *request.method() {
                Method::POST => self.change(request, &action).await,
                _ => not_allowed("POST"),
            };
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return not_allowed("GET");
        }
        match path {
            "/healthz" => plain(StatusCode::OK, "ok\n"),
            "/readyz" => self.ready().await,
            "/metrics" => self.metrics().await,
            "/" | "/api/status" if !self.is_authorised(request) => unauthorised(),
            "/" => plain(StatusCode::OK, self.status_text()),
            "/api/status" => self.status_json().await,
            _ => plain(
                StatusCode::NOT_FOUND,
                "there are /healthz, /readyz, /metrics, /api/status, /api/events/ID/replay, /api/events/ID/discard and /\n",
            ),
        }
    }

    /// Whoever has the token is no page of another site.
    async fn change(&self, request: &Request<Incoming>, action: &events::Action) -> Answer {
        if !self.is_authorised(request) {
            return unauthorised();
        }
        if self.settings.token.is_none() && http::is_from_another_site(request.headers()) {
            let text = "pages of other sites may not change events\n";
            return plain(StatusCode::FORBIDDEN, text);
        }
        self.act(action).await
    }

    fn is_authorised(&self, request: &Request<Incoming>) -> bool {
        let Some(token) = &self.settings.token else {
            return true;
        };
        http::bearer(request.headers()).is_some_and(|offered| token.matches(offered))
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
        Gauges {
            accepted: self.buffer.accepted(),
            tally: self.buffer.tally(),
            oldest_age_seconds: oldest
                .map_or(0.0, |oldest| clock::now().since(oldest).as_secs_f64()),
            writable: *self.buffer.watch_health().borrow() == Health::Writable,
            flowing: self.flow.borrow().stopped.is_none(),
        }
    }

    /// One sentence for a person.
    fn status_text(&self) -> String {
        let tally = self.buffer.tally();
        let flow = self.flow.borrow();
        let mut text = match &flow.stopped {
            None => "QStash takes events.".to_owned(),
            Some((Cause::Unreachable, reason)) => {
                format!("QStash is unreachable, events are kept: {reason}")
            }
            Some((Cause::Unauthorized, reason)) => {
                format!("QStash refuses the token, events are kept: {reason}")
            }
            Some((Cause::Limited, reason)) => {
                format!("QStash takes no more for now, events are kept: {reason}")
            }
        };
        for destination in &flow.held {
            text.push_str(&format!(
                "\n{destination} does not exist at QStash, its events are kept."
            ));
        }
        text.push_str(&format!(
            "\n{} pending, {} delivered and kept as history, {} dead letters\n",
            tally.pending, tally.delivered, tally.dead
        ));
        text
    }

    async fn status_json(&self) -> Answer {
        let gauges = self.gauges().await;
        let flow = self.flow.borrow().clone();
        let cause = flow.stopped.as_ref().map(|(cause, _)| match cause {
            Cause::Unreachable => "unreachable",
            Cause::Unauthorized => "unauthorized",
            Cause::Limited => "limited",
        });
        let status = json!({
            "writable": gauges.writable,
            "qstash": { "flowing": gauges.flowing, "cause": cause, "reason": flow.stopped.map(|(_, reason)| reason) },
            "held": flow.held,
            "events": {
                "pending": gauges.tally.pending,
                "delivered": gauges.tally.delivered,
                "dead": gauges.tally.dead,
            },
            "oldest_age_seconds": gauges.oldest_age_seconds,
            "version": env!("CARGO_PKG_VERSION"),
        });
        http::json(StatusCode::OK, &status)
    }
}
