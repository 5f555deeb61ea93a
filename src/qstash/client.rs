//! The connection to QStash: builds a request, sends it, and has the answer read.
//!
//! It keeps one invariant for all who publish: while QStash has said "not before then"
//! (429), nothing is sent.

use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Body;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Response, Url};

use super::account::Quota;
use super::answer::{Answer, BatchOutcome, Outcome};
use super::message::Message;
use super::token::Token;
use super::{Api, BaseUrl, Settings, tls};
use crate::clock;
use crate::destination::{DeliveryOptions, Target};

/// A host that does not even complete a handshake in this time is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an idle connection is kept for the next event.
const POOL_IDLE: Duration = Duration::from_secs(90);

/// The time an answer may take grows with what is sent: 30 MB need two minutes here.
const SLOWEST_UPLOAD_BYTES_PER_SEC: u64 = 256 * 1024;

/// The answer to a batch of 100 for a group of 100 endpoints has about 1 MB.
const LARGEST_ANSWER: usize = 8 << 20;

/// A refusal is a line of JSON, or some proxy's page, of which the beginning is enough.
const LARGEST_REFUSAL: usize = 64 << 10;

/// Publishes what it is given and reports what became of it.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    settings: Settings,
    token: Token,
    limit: Mutex<Option<Limit>>,
    /// What the last answer that told it said of the day's quota.
    quota: Mutex<Option<Quota>>,
}

#[derive(Debug, Clone)]
struct Limit {
    until: Instant,
    daily: bool,
    reason: String,
}

/// The HTTP client could not be built.
#[derive(Debug, thiserror::Error)]
#[error("could not set up the connection to QStash")]
pub struct ClientError(#[from] reqwest::Error);

impl Client {
    /// Sets up a client; nothing is sent yet.
    pub fn new(settings: Settings) -> Result<Self, ClientError> {
        let http = connections(&settings.base, tls::client_config(&settings.roots))?;
        let token = Token::new(settings.token.clone());
        Ok(Self {
            http,
            settings,
            token,
            limit: Mutex::new(None),
            quota: Mutex::new(None),
        })
    }

    /// Whether a batch can be published at all: the old API has none.
    pub fn can_batch(&self) -> bool {
        self.settings.api == Api::V2
    }

    /// Reads the token again if its file changed; whether it is another one now.
    pub fn refresh_token(&self) -> bool {
        self.token.refresh()
    }

    /// Publishes one message. `patience` is how long QStash may take to answer.
    pub async fn publish(&self, message: Message<'_>, patience: Duration) -> Outcome {
        let body = &message.payload.body;
        self.publish_body(&message, body.clone().into(), body.len() as u64, patience)
            .await
    }

    /// The same for a body that is read while it is sent; that of the payload is not looked at.
    pub async fn publish_streamed<B>(
        &self,
        message: Message<'_>,
        body: B,
        patience: Duration,
    ) -> Outcome
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Sync + 'static,
    {
        let size = body.size_hint().lower();
        self.publish_body(&message, reqwest::Body::wrap(body), size, patience)
            .await
    }

    async fn publish_body(
        &self,
        message: &Message<'_>,
        body: reqwest::Body,
        size: u64,
        patience: Duration,
    ) -> Outcome {
        let Some(url) = self.publish_url(message) else {
            return Outcome::Rejected {
                reason: format!("{} is no URL", message.destination),
            };
        };
        let headers = message.header_map(&self.settings.options);
        match self.send(url, headers, body, size, patience).await {
            Ok((response, body)) => self.note(read(&response, &body).to_message()),
            Err(outcome) => outcome,
        }
    }

    /// Publishes several messages in one request.
    pub async fn publish_batch(
        &self,
        messages: &[Message<'_>],
        patience: Duration,
    ) -> BatchOutcome {
        let body = match batch_body(messages, &self.settings.options) {
            Ok(body) => body,
            // Not text after all: split until the one that is not goes alone.
            Err(error) => {
                return BatchOutcome::Whole(Outcome::Rejected {
                    reason: error.to_string(),
                });
            }
        };
        let Some(url) = self.url("v2/batch") else {
            return BatchOutcome::Whole(Outcome::unreachable("the QStash URL has no /v2/batch"));
        };
        let headers =
            HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let size = body.len() as u64;
        match self.send(url, headers, body.into(), size, patience).await {
            Ok((response, body)) => match read(&response, &body).to_batch(messages.len()) {
                BatchOutcome::Whole(outcome) => BatchOutcome::Whole(self.note(outcome)),
                each @ BatchOutcome::Each(_) => each,
            },
            Err(outcome) => BatchOutcome::Whole(outcome),
        }
    }

    fn publish_url(&self, message: &Message<'_>) -> Option<Url> {
        let target = match &message.destination.target {
            Target::Group(name) => name,
            // Unescaped: QStash refuses `https%3A%2F%2F…` in the path.
            Target::Url(url) => url,
        };
        match (&message.destination.queue, self.settings.api) {
            (Some(queue), _) => self.url(&format!("v2/enqueue/{queue}/{target}")),
            (None, Api::V2) => self.url(&format!("v2/publish/{target}")),
            (None, Api::V1) => self.url(&format!("v1/publish/{target}")),
        }
    }

    fn url(&self, path: &str) -> Option<Url> {
        Url::parse(&format!("{}/{path}", self.settings.base)).ok()
    }

    async fn send(
        &self,
        url: Url,
        headers: HeaderMap,
        body: reqwest::Body,
        size: u64,
        patience: Duration,
    ) -> Result<(Response, Vec<u8>), Outcome> {
        if let Some(limited) = self.limited() {
            return Err(limited);
        }
        let Some(token) = self.token.current() else {
            return Err(Outcome::Unauthorized {
                status: 401,
                reason: "there is no QStash token".to_owned(),
            });
        };
        let mut authorization = match HeaderValue::try_from(format!("Bearer {}", token.expose())) {
            Ok(value) => value,
            Err(_) => {
                let reason = "the QStash token has characters that no token has".to_owned();
                return Err(Outcome::Unauthorized {
                    status: 401,
                    reason,
                });
            }
        };
        authorization.set_sensitive(true);
        let upload = Duration::from_secs(size / SLOWEST_UPLOAD_BYTES_PER_SEC);
        let request = self
            .http
            .post(url)
            .headers(headers)
            .header(AUTHORIZATION, authorization)
            .body(body)
            .timeout(patience + upload);
        let failed = |error: reqwest::Error| Outcome::Unreachable {
            wait: None,
            broke: !error.is_connect(),
            reason: describe(&error),
        };
        let mut response = request.send().await.map_err(failed)?;
        if let Some(quota) = Quota::told(response.headers()) {
            *self.quota.lock().unwrap_or_else(PoisonError::into_inner) = Some(quota);
        }
        let bound = if response.status().is_success() {
            LARGEST_ANSWER
        } else {
            LARGEST_REFUSAL
        };
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > bound {
                break; // what is cut short is no JSON, and so no success
            }
        }
        token.redact(&mut body);
        Ok((response, body))
    }

    /// The day's quota as QStash told it last; not all plans have one, and not all answers tell.
    pub fn quota(&self) -> Option<Quota> {
        let quota = self.quota.lock().unwrap_or_else(PoisonError::into_inner);
        quota.clone()
    }

    /// Why nothing may be sent now, if so.
    fn limited(&self) -> Option<Outcome> {
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        limit.take_if(|limit| limit.until <= now);
        let Limit {
            until,
            daily,
            reason,
        } = limit.as_ref()?;
        Some(Outcome::Limited {
            wait: Some(*until - now),
            daily: *daily,
            reason: reason.clone(),
        })
    }

    fn note(&self, outcome: Outcome) -> Outcome {
        if let Outcome::Limited {
            wait: Some(wait),
            daily,
            reason,
        } = &outcome
        {
            let until = Instant::now() + *wait;
            let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
            if limit.as_ref().is_none_or(|before| before.until < until) {
                *limit = Some(Limit {
                    until,
                    daily: *daily,
                    reason: reason.clone(),
                });
            }
        }
        outcome
    }
}

/// The body of a batch.
pub(super) fn batch_body(
    messages: &[Message<'_>],
    defaults: &DeliveryOptions,
) -> serde_json::Result<Vec<u8>> {
    let items: Vec<_> = messages
        .iter()
        .map(|message| message.batch_item(defaults))
        .collect();
    // A body grows by the escapes of its quotes; headers and names take less than this.
    const BESIDE_BODY: usize = 1024;
    let sizes = messages.iter().map(|message| message.payload.body.len());
    let size: usize = sizes.map(|size| size + size / 4 + BESIDE_BODY).sum();
    let mut body = Vec::with_capacity(size);
    serde_json::to_writer(&mut body, &items)?;
    Ok(body)
}

/// What requests to QStash go through.
pub(super) fn connections(
    base: &BaseUrl,
    tls: rustls::ClientConfig,
) -> Result<reqwest::Client, ClientError> {
    let mut http = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        // A redirect would carry the token to another host.
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE)
        .user_agent(concat!("strapi-qstash/", env!("CARGO_PKG_VERSION")));
    if base.is_loopback() {
        // HTTPS_PROXY is for the way out of the machine.
        http = http.no_proxy();
    }
    Ok(http.build()?)
}

fn read<'a>(response: &'a Response, body: &'a [u8]) -> Answer<'a> {
    Answer {
        status: response.status(),
        headers: response.headers(),
        body,
        now: clock::now(),
    }
}

/// What happened, for a person: the kind of failure and its cause, without the layers
/// between them.
pub(super) fn describe(error: &reqwest::Error) -> String {
    let kind = match error {
        error if error.is_timeout() && error.is_connect() => "no connection in time",
        error if error.is_timeout() => "no answer in time",
        error if error.is_connect() => "no connection",
        _ => "the connection broke",
    };
    let mut cause: &dyn Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    match error.is_timeout() {
        true => kind.to_owned(),
        false => format!("{kind}: {cause}"),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::Full;
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::event::{EventId, Headers, Payload};
    use crate::qstash::{BaseUrl, ExtraRoots, TokenSource};
    use crate::secret::Secret;

    /// A server that speaks HTTP/2 only, behind a certificate of its own; counts connections.
    async fn http2_server(connections: Arc<AtomicUsize>) -> (Settings, ExtraRoots, TaskTracker) {
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key =
            rustls::pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key)
            .unwrap();
        server.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!(
            "https://localhost:{}",
            listener.local_addr().unwrap().port()
        );
        let tasks = TaskTracker::new();
        let serving = tasks.clone();
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                connections.fetch_add(1, Ordering::Relaxed);
                let service = service_fn(|_| async {
                    let body = Full::new(Bytes::from_static(br#"{"messageId":"msg_1"}"#));
                    Ok::<_, Infallible>(hyper::Response::new(body))
                });
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                serving.spawn(
                    async move { http.serve_connection(TokioIo::new(stream), service).await },
                );
            }
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, tls::tests::pem(signed.cert.der())).unwrap();
        let trusting = ExtraRoots::read(file.path()).unwrap();
        let settings = Settings {
            base: BaseUrl::parse(&base).unwrap(),
            api: Api::V2,
            token: TokenSource::Value(Secret::trimmed("t").unwrap()),
            roots: ExtraRoots::default(),
            options: crate::destination::DeliveryOptions::default(),
        };
        (settings, trusting, tasks)
    }

    async fn publish(client: &Client) -> Outcome {
        let (destination, payload) = (
            "news".parse().unwrap(),
            Payload {
                headers: Headers::default(),
                body: Bytes::new(),
            },
        );
        let message = Message {
            id: EventId::new(),
            replays: 0,
            destination: &destination,
            payload: &payload,
        };
        client.publish(message, Duration::from_secs(10)).await
    }

    #[tokio::test]
    async fn http_2_is_spoken_where_it_is_offered_over_one_connection() {
        let connections = Arc::new(AtomicUsize::new(0));
        let (settings, trusting, _tasks) = http2_server(Arc::clone(&connections)).await;
        let client = Client::new(Settings {
            roots: trusting,
            ..settings
        })
        .unwrap();
        for _ in 0..5 {
            assert!(matches!(publish(&client).await, Outcome::Accepted { .. }));
        }
        assert_eq!(
            connections.load(Ordering::Relaxed),
            1,
            "connections are kept"
        );
    }

    #[tokio::test]
    async fn a_certificate_that_does_not_verify_is_named_as_the_cause() {
        let (settings, _, _tasks) = http2_server(Arc::default()).await;
        let client = Client::new(settings).unwrap();
        let Outcome::Unreachable {
            reason,
            broke: false,
            ..
        } = publish(&client).await
        else {
            panic!()
        };
        assert!(reason.contains("certificate"), "{reason}");
    }
}
