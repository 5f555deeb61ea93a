//! The receiving end: takes QStash's deliveries, checks that they are QStash's, drops
//! repeats, and passes each on to the API behind it, with what Strapi sent.
//!
//! What it promises: nothing reaches the API that QStash did not sign, and QStash gets a 2xx
//! only when the API gave one. Anything else QStash tries again, so nothing is lost here; it
//! keeps nothing but the ids of what the API has, in memory.
//!
//! What can come twice: a delivery whose answer was lost between the API and this program, and
//! a repeat of one that came before a restart. The sidecar's `Webhook-Id` tells those.

mod repeats;

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytesize::ByteSize;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName};
use hyper::http::request;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use reqwest::Url;
use reqwest::redirect::Policy;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::repeats::Repeats;
use crate::clock;
use crate::http::{self, Answer, plain};
use crate::inbound::{Admission, Unread, read_body};
use crate::qstash::{ClientError, ExtraRoots, tls};
use crate::signature::{self, Claims, Keys, SignatureError};

/// How far QStash's clock and ours may be apart.
const TOLERANCE: Duration = Duration::from_secs(30);

/// An API that does not even complete a handshake in this time is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// QStash shows an answer to people and to callbacks; of a longer one, this is the beginning.
const LARGEST_ANSWER: usize = 1 << 20;

/// Names the delivery, the same for all of its retries.
const MESSAGE_ID: &str = "upstash-message-id";

/// What belongs to a connection, and not to what is sent over it.
const OF_THE_CONNECTION: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What the receiving end is told by flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where QStash delivers.
    pub listen: SocketAddr,
    /// The API: a delivery's path and query are put behind it.
    pub upstream: Url,
    /// Whom that API's certificate may be signed by, besides those whom browsers trust.
    pub roots: ExtraRoots,
    /// What deliveries are signed with.
    pub keys: Keys,
    /// What QStash has for this address, without the delivery's path; `None`: any URL will do.
    pub public_url: Option<Url>,
    /// Largest body taken, in bytes.
    pub max_body: u64,
    /// How long the API may take to answer.
    pub patience: Duration,
}

/// What a delivery needs.
pub(crate) struct Receiver {
    settings: Settings,
    api: reqwest::Client,
    admission: Admission,
    repeats: Repeats,
    /// Deliveries that are being passed on: they end even if QStash hangs up, since the API
    /// may have acted by then and its answer has to be remembered.
    passing: TaskTracker,
}

/// Why a delivery did not get to the API, or its answer not back.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("the API cannot be reached")]
    Away(#[source] reqwest::Error),
    #[error("the API did not answer in time")]
    Silent,
    #[error("the connection to the API broke")]
    Broken(#[source] reqwest::Error),
    #[error("the API answered with a redirect ({0}), which a webhook cannot follow")]
    Redirect(StatusCode),
}

impl Failed {
    /// What lies at the bottom of it, without the layers between.
    fn cause(&self) -> Option<String> {
        let mut cause = self.source()?;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Some(cause.to_string())
    }
}

impl Receiver {
    pub(crate) fn new(settings: Settings, passing: TaskTracker) -> Result<Arc<Self>, ClientError> {
        let mut api = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(&settings.roots))
            .redirect(Policy::none())
            // What is local is not to be asked of a proxy, and what is not should not be here.
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(settings.patience);
        if settings.upstream.scheme() == "http" {
            api = api.http1_only();
        }
        Ok(Arc::new(Self {
            api: api.build()?,
            admission: Admission::new(settings.max_body),
            repeats: Repeats::default(),
            settings,
            passing,
        }))
    }

    /// Accepts connections until `shutdown`.
    pub(crate) async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        shutdown: CancellationToken,
        tasks: TaskTracker,
    ) {
        let service = service_fn(move |request| {
            let receiver = Arc::clone(&self);
            async move { Ok::<_, Infallible>(receiver.handle(request).await) }
        });
        http::serve(listener, shutdown, Duration::ZERO, tasks, service).await;
    }

    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let limit = self.settings.max_body;
        // No stranger's body is read: it would take room from what QStash brings.
        let claims = match self.claims(&head) {
            Ok(claims) => claims,
            Err(error) => return refuse(&error),
        };
        let (body, room) = match read_body(body, limit, &self.admission).await {
            Ok(read) => read,
            Err(unread) => return refuse_body(&unread, limit),
        };
        if let Err(error) = claims.verify_body(&body) {
            return refuse(&error);
        }
        let receiver = Arc::clone(&self);
        let passing = self.passing.spawn(async move {
            let answer = receiver.pass_once(&head, body).await;
            drop(room);
            answer
        });
        passing.await.unwrap_or_else(|_panicked| {
            plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the delivery could not be passed on",
            )
        })
    }

    fn claims(&self, head: &request::Parts) -> Result<Claims, SignatureError> {
        let token = text(&head.headers, signature::HEADER);
        let url = self.settings.public_url.as_ref().map(|public| {
            let target = head
                .uri
                .path_and_query()
                .map_or("/", |target| target.as_str());
            joined(public, target)
        });
        let (keys, now) = (&self.settings.keys, clock::now());
        signature::verify_claims(keys, token, url.as_deref(), now, TOLERANCE)
    }

    /// Passes a delivery on, unless the API has it. While another try of the same is on its
    /// way, this one waits for what becomes of it.
    async fn pass_once(&self, head: &request::Parts, body: Bytes) -> Answer {
        let id = text(&head.headers, MESSAGE_ID);
        if id.is_empty() {
            return self.pass(head, body).await; // QStash names all its messages
        }
        let slot = self.repeats.slot(id);
        let mut is_done = slot.lock().await;
        if *is_done {
            info!(message_id = id, "Dropped a repeat");
            return plain(StatusCode::OK, format!("{id} was dealt with before"));
        }
        let answer = self.pass(head, body).await;
        *is_done = answer.status().is_success();
        answer
    }

    async fn pass(&self, head: &request::Parts, body: Bytes) -> Answer {
        let (id, kind) = (
            text(&head.headers, MESSAGE_ID),
            text(&head.headers, "x-strapi-event"),
        );
        let (started, size) = (Instant::now(), body.len());
        let answer = self.ask(head, body).await;
        let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match answer {
            Ok(answer) => {
                let status = answer.status().as_u16();
                info!(
                    message_id = id,
                    event.kind = kind,
                    size,
                    status,
                    elapsed_ms,
                    "Passed on"
                );
                answer
            }
            Err(failed) => {
                warn!(
                    message_id = id,
                    event.kind = kind,
                    elapsed_ms,
                    error = %failed,
                    cause = failed.cause(),
                    "Not passed on, QStash will try again"
                );
                let status = match failed {
                    Failed::Silent => StatusCode::GATEWAY_TIMEOUT,
                    Failed::Away(_) | Failed::Broken(_) | Failed::Redirect(_) => {
                        StatusCode::BAD_GATEWAY
                    }
                };
                plain(status, failed.to_string())
            }
        }
    }

    async fn ask(&self, head: &request::Parts, body: Bytes) -> Result<Answer, Failed> {
        let target = head
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let url = joined(&self.settings.upstream, target);
        let mut headers = end_to_end(&head.headers);
        headers.remove(HOST);
        let request = self.api.request(head.method.clone(), url).headers(headers);
        let failed = |error: reqwest::Error| match error {
            error if error.is_connect() => Failed::Away(error),
            error if error.is_timeout() => Failed::Silent,
            error => Failed::Broken(error),
        };
        let mut response = request.body(body).send().await.map_err(failed)?;
        let status = response.status();
        if status.is_redirection() {
            return Err(Failed::Redirect(status));
        }
        let headers = end_to_end(response.headers());
        let mut text = Vec::new();
        while text.len() < LARGEST_ANSWER {
            match response.chunk().await {
                Ok(Some(piece)) => text.extend_from_slice(&piece),
                Ok(None) => break,
                // Its status says that it has the event: a second delivery would be a repeat.
                Err(_) if status.is_success() => break,
                Err(error) => return Err(failed(error)),
            }
        }
        text.truncate(LARGEST_ANSWER);
        let mut answer = Response::new(Full::new(Bytes::from(text)));
        *answer.status_mut() = status;
        *answer.headers_mut() = headers;
        Ok(answer)
    }
}

fn refuse(error: &SignatureError) -> Answer {
    warn!(%error, "Delivery is refused");
    plain(StatusCode::UNAUTHORIZED, error.to_string())
}

fn refuse_body(unread: &Unread, limit: u64) -> Answer {
    match unread {
        Unread::TooLarge => {
            let limit = ByteSize(limit);
            warn!(%limit, "Delivery is refused: its body is larger than --max-body");
            plain(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is larger than {limit}; raise --max-body"),
            )
        }
        Unread::TooSlow => plain(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not arrive in time",
        ),
        Unread::Broken(_) => plain(StatusCode::BAD_REQUEST, "the body did not arrive whole"),
    }
}

/// A URL with a path and a query put behind its own path.
fn joined(base: &Url, target: &str) -> String {
    format!("{}{target}", base.as_str().trim_end_matches('/'))
}

/// The headers that are for whoever is at the other end.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for value in headers.get_all(CONNECTION) {
        for name in value.to_str().unwrap_or_default().split(',') {
            if let Ok(name) = HeaderName::from_bytes(name.trim().as_bytes()) {
                kept.remove(name);
            }
        }
    }
    for name in OF_THE_CONNECTION {
        kept.remove(name);
    }
    kept.remove(CONTENT_LENGTH); // it is made anew
    kept
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn a_path_is_put_behind_that_of_the_base() {
        for (base, target, url) in [
            ("http://127.0.0.1:3000", "/", "http://127.0.0.1:3000/"),
            (
                "http://127.0.0.1:3000/",
                "/hook?a=1",
                "http://127.0.0.1:3000/hook?a=1",
            ),
            ("http://api/v1/", "/hook", "http://api/v1/hook"),
        ] {
            assert_eq!(joined(&base.parse().unwrap(), target), url);
        }
    }

    #[test]
    fn headers_of_the_connection_go_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("x-strapi-event", "entry.publish"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let kept = end_to_end(&headers);
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["x-strapi-event"]);
    }
}
