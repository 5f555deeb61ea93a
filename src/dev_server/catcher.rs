//! The catcher: plays the API that receives deliveries, checks their signatures, remembers
//! them, and can be told to fail.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use reqwest::Url;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::recent::{Recent, own_body, own_headers};
use super::state::{MAX_MESSAGE_BYTES, MAX_MESSAGES};
use crate::clock::{self, Timestamp};
use crate::http::{self, Answer, plain};
use crate::qstash::signature::{self, Keys, SignatureError};

/// The largest body that is taken.
const MAX_BODY: usize = 100 << 20;

/// Deliveries that a slow subscriber can be behind before it misses some.
const DELIVERIES: usize = 1_024;

/// How the catcher is set up.
#[derive(Debug, Clone)]
pub struct CatcherSettings {
    /// The keys that deliveries are to be signed with.
    pub keys: Keys,
    /// How far the clocks of the two ends may be apart.
    pub tolerance: Duration,
}

/// Upstash's own development keys, and no tolerance: there is one clock.
impl Default for CatcherSettings {
    fn default() -> Self {
        Self {
            keys: super::development_keys(),
            tolerance: Duration::ZERO,
        }
    }
}

/// What arrived.
#[derive(Debug, Clone)]
pub struct Received {
    /// When its last byte had arrived.
    pub at: Timestamp,
    /// Its method.
    pub method: Method,
    /// Its path, with the query.
    pub path: String,
    /// Its headers, values as bytes.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Whether the signature is QStash's, for this body and this URL.
    pub verified: bool,
    /// Why it is not; `None` where there is no signature at all.
    pub signature_error: Option<SignatureError>,
    /// What it was answered.
    pub answered: StatusCode,
}

impl Received {
    /// A header's value, where it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.headers.get(name)?.as_bytes()).ok()
    }
}

/// How the catcher answers.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// Headers, such as `Retry-After`.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The time it takes.
    pub delay: Duration,
    /// Only every n-th delivery is answered like this (1: all), the others with 200.
    pub every: NonZeroU64,
    /// Only so many deliveries are answered like this, those after them with 200.
    pub times: Option<u64>,
}

impl Reply {
    /// This status and nothing else, to every delivery.
    pub fn status(status: StatusCode) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            delay: Duration::ZERO,
            every: NonZeroU64::MIN,
            times: None,
        }
    }

    /// The same after some time.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// The same to every n-th delivery, counted from now; 0 counts as 1.
    #[must_use]
    pub fn every(self, n: u64) -> Self {
        let every = NonZeroU64::new(n).unwrap_or(NonZeroU64::MIN);
        Self { every, ..self }
    }

    /// The same to the next deliveries only.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        let times = Some(times);
        Self { times, ..self }
    }
}

/// 200 to everything.
impl Default for Reply {
    fn default() -> Self {
        Self::status(StatusCode::OK)
    }
}

impl From<StatusCode> for Reply {
    fn from(status: StatusCode) -> Self {
        Self::status(status)
    }
}

/// Fewer deliveries arrived than were waited for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{received} deliveries arrived, not {wanted}")]
pub struct TooFew {
    /// How many arrived.
    pub received: u64,
    /// How many were waited for.
    pub wanted: u64,
}

/// A running catcher. It takes every method and path. Clones speak of the same one.
#[derive(Clone)]
pub struct Catcher(Arc<Shared>);

struct Shared {
    addr: SocketAddr,
    settings: CatcherSettings,
    state: Mutex<State>,
    arrivals: broadcast::Sender<Arc<Received>>,
    count: watch::Sender<u64>,
}

struct State {
    received: Recent<Arc<Received>>,
    reply: Reply,
    /// Deliveries since the reply was set.
    since_reply: u64,
}

impl Catcher {
    /// Starts to serve on `listener`, with all work on `tasks`, until `shutdown`.
    pub fn start(
        listener: TcpListener,
        settings: CatcherSettings,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        let addr = listener
            .local_addr()
            .expect("a listening socket has an address");
        let shared = Arc::new(Shared {
            addr,
            settings,
            state: Mutex::new(State {
                received: Recent::new(MAX_MESSAGES, MAX_MESSAGE_BYTES),
                reply: Reply::default(),
                since_reply: 0,
            }),
            arrivals: broadcast::Sender::new(DELIVERIES),
            count: watch::Sender::new(0),
        });
        let service = {
            let (shared, shutdown) = (Arc::clone(&shared), shutdown.clone());
            service_fn(move |request| {
                let (shared, shutdown) = (Arc::clone(&shared), shutdown.clone());
                async move {
                    tokio::select! {
                        answer = shared.catch(request) => answer,
                        () = shutdown.cancelled() => Err(CutOff),
                    }
                }
            })
        };
        tasks.spawn(http::serve(
            listener,
            shutdown,
            Duration::ZERO,
            tasks.clone(),
            service,
        ));
        Self(shared)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.0.addr
    }

    /// The URL of a path (with its `/`) at the catcher.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.0.addr)
    }

    /// What arrived, oldest first.
    pub fn received(&self) -> Vec<Arc<Received>> {
        self.0.state().received.iter().cloned().collect()
    }

    /// What arrives from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Received>> {
        self.0.arrivals.subscribe()
    }

    /// Waits until `n` deliveries arrived since the start, and gives all that are remembered.
    pub async fn wait_for(&self, n: u64, timeout: Duration) -> Result<Vec<Arc<Received>>, TooFew> {
        let mut count = self.0.count.subscribe();
        let enough = count.wait_for(|count| *count >= n);
        let waited = tokio::time::timeout(timeout, async { enough.await.is_ok() }).await;
        if waited.is_err() {
            return Err(TooFew {
                received: *self.0.count.borrow(),
                wanted: n,
            });
        }
        Ok(self.received())
    }

    /// Answers like this from now on: a [`Reply`], or just a status.
    pub fn respond_with(&self, reply: impl Into<Reply>) {
        let mut state = self.0.state();
        state.reply = reply.into();
        state.since_reply = 0;
    }
}

/// A delivery that was cut off, by its sender or by the end.
#[derive(Debug, thiserror::Error)]
#[error("delivery was cut off")]
struct CutOff;

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn catch(&self, request: Request<Incoming>) -> Result<Answer, CutOff> {
        let (parts, body) = request.into_parts();
        let body = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => own_body(&body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                return Ok(plain(StatusCode::PAYLOAD_TOO_LARGE, "too large\n"));
            }
            Err(error) => {
                debug!(%error, "Delivery was cut off");
                return Err(CutOff);
            }
        };
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let at = clock::now();
        let verdict = self.verify(&parts.headers, path, &body, at);
        let reply = self.state().next_reply();
        let received = Arc::new(Received {
            at,
            method: parts.method,
            path: path.to_owned(),
            headers: own_headers(&parts.headers),
            body,
            verified: matches!(verdict, Some(Ok(()))),
            signature_error: verdict.and_then(Result::err),
            answered: reply.status,
        });
        self.remember(&received);
        tokio::time::sleep(reply.delay).await;
        let mut answer = Response::new(Full::new(reply.body));
        *answer.status_mut() = reply.status;
        *answer.headers_mut() = reply.headers;
        Ok(answer)
    }

    fn remember(&self, received: &Arc<Received>) {
        let count = {
            let mut state = self.state();
            let bytes = received.body.len();
            state.received.push(Arc::clone(received), bytes);
            state.received.pushed()
        };
        self.arrivals.send(Arc::clone(received)).ok(); // nobody has to listen
        self.count
            .send_modify(|counted| *counted = count.max(*counted));
    }

    /// Checks the signature; `None` where there is none.
    fn verify(
        &self,
        headers: &HeaderMap,
        path: &str,
        body: &[u8],
        now: Timestamp,
    ) -> Option<Result<(), SignatureError>> {
        let signature = headers.get(signature::HEADER)?;
        // What is not text has no dots either, and fails as malformed.
        let signature = signature.to_str().unwrap_or_default();
        let CatcherSettings { keys, tolerance } = &self.settings;
        let claims = signature::verify(keys, signature, body, None, now, *tolerance);
        Some(claims.and_then(|claims| {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            let ours = format!("http://{}{path}", host.unwrap_or_default());
            // As URLs, not as texts: `http://host` is delivered to `http://host/`.
            match (Url::parse(&claims.sub), Url::parse(&ours)) {
                (Ok(signed), Ok(ours)) if signed == ours => Ok(()),
                _ => Err(SignatureError::Url { signed: claims.sub }),
            }
        }))
    }
}

impl State {
    /// The answer to the delivery at hand.
    fn next_reply(&mut self) -> Reply {
        self.since_reply += 1;
        let is_due = self.since_reply % self.reply.every == 0;
        match &mut self.reply.times {
            _ if !is_due => Reply::default(),
            Some(0) => Reply::default(),
            Some(times) => {
                *times -= 1;
                self.reply.clone()
            }
            None => self.reply.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(reply: Reply, n: usize) -> Vec<u16> {
        let mut state = State {
            received: Recent::new(1, 1),
            reply,
            since_reply: 0,
        };
        let mut next = || state.next_reply().status.as_u16();
        std::iter::repeat_with(&mut next).take(n).collect()
    }

    #[test]
    fn a_reply_concerns_some_deliveries_or_all() {
        let failing = || Reply::status(StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(statuses(failing(), 3), [503, 503, 503]);
        assert_eq!(statuses(failing().times(2), 3), [503, 503, 200]);
        assert_eq!(statuses(failing().every(2), 4), [200, 503, 200, 503]);
        assert_eq!(
            statuses(failing().every(2).times(1), 4),
            [200, 503, 200, 200]
        );
        assert_eq!(statuses(failing().every(0), 2), [503, 503]);
    }
}
