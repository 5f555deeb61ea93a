//! What every listener of this program shares: the accept loop and plain answers.
//!
//! The loop bounds connections and idle time, survives accept errors, and closes
//! gracefully. It knows nothing of what is served.

use std::error::Error;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN,
};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// The usual kind of answer: whole, from memory.
pub(crate) type Answer = Response<Full<Bytes>>;

/// How long a connection may be silent between requests, or take to send one head.
/// Strapi's client keeps a connection as long as it is told to (`Keep-Alive: timeout=75`).
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// What a connection may have in memory unread: a head must fit, a body comes in pieces of this.
const LARGEST_HEAD: usize = 64 << 10;

/// Open connections per listener. One that says nothing costs 1.5 KB, one that has had a request
/// 20 KB; Strapi opens five.
const MAX_CONNECTIONS: usize = 16_384;

/// The pause after a failed accept: the usual cause is a lack of file descriptors, which
/// passes when some connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts and serves connections until `shutdown`, then lets each finish the request it
/// is in. The connections run on `tasks`, so that a drain can wait for them.
///
/// `linger` is how long an idle connection may still bring a request after `shutdown`: a
/// sender that believes in keep-alive may have one on its way, and Strapi does not repeat
/// what meets a closed connection. Answers say `Connection: close` from then on.
///
/// An answer may have a body that comes bit by bit; whoever gives one ends it on `shutdown`.
pub(crate) async fn serve<S, B>(
    listener: TcpListener,
    shutdown: CancellationToken,
    linger: Duration,
    tasks: TaskTracker,
    service: S,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = accept(&listener, &connections) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                tasks.spawn(connection(
                    stream,
                    permit,
                    shutdown.clone(),
                    linger,
                    service.clone(),
                ));
            }
            Err(error) => {
                warn!(%error, "Accept failed, will try again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The next connection, once there is room for it: whoever comes too many waits in the
/// kernel's queue instead of being refused.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections)
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn connection<S, B>(
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    shutdown: CancellationToken,
    linger: Duration,
    service: S,
) where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
{
    // Without it Nagle's algorithm and the peer's delayed ACK cost 44 ms an answer.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "Could not set TCP_NODELAY");
    }
    if begins(&stream, &shutdown, linger).await {
        // Boxed, so that a connection that only waits takes no memory for what follows.
        Box::pin(requests(stream, shutdown, linger, service)).await;
    }
    drop(permit);
}

/// Whether a request begins in time. Until it does, a connection has no buffers: 10,000 that say
/// nothing would take 200 MB for them.
async fn begins(stream: &TcpStream, shutdown: &CancellationToken, linger: Duration) -> bool {
    let mut first = [0];
    let begun = tokio::select! {
        begun = timeout(IDLE_TIMEOUT, stream.peek(&mut first)) => begun,
        () = shutdown.cancelled() => timeout(linger, stream.peek(&mut first)).await,
    };
    matches!(begun, Ok(Ok(1)))
}

/// One request after the other.
async fn requests<S, B>(
    stream: TcpStream,
    shutdown: CancellationToken,
    linger: Duration,
    service: S,
) where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
{
    let stopping = shutdown.clone();
    let service = service_fn(move |request| {
        let (answering, stopping) = (service.call(request), stopping.clone());
        async move {
            let mut answer = answering.await?;
            if stopping.is_cancelled() {
                answer
                    .headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, S::Error>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(LARGEST_HEAD)
        // A sender that hangs up after its last byte does not take the request along with it.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => match timeout(linger, connection.as_mut()).await {
            Ok(ended) => ended,
            Err(_elapsed) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        },
    };
    if let Err(error) = ended {
        debug!(%error, "Connection ended early");
    }
}

/// What `Authorization: Bearer` carries.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

/// An answer of one plain line; an empty text gives an empty body.
pub(crate) fn plain(status: StatusCode, text: impl Into<String>) -> Answer {
    let text = text.into();
    let is_empty = text.is_empty();
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    if !is_empty {
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        answer.headers_mut().insert(CONTENT_TYPE, plain);
    }
    answer
}

/// An answer in JSON, on one line.
pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    let mut answer = plain(status, format!("{value}\n"));
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}

/// Whether a browser sent it for a page of another site, or under a name that another site may
/// have pointed at this machine (DNS rebinding). Only for what changes something: whoever is no
/// browser can send any header.
pub(crate) fn is_from_another_site(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(HOST).unwrap_or_default();
    let has_foreign_origin = headers.contains_key(ORIGIN)
        && text(ORIGIN)
            .and_then(|origin| origin.split_once("://"))
            .is_none_or(|(_, origin)| origin != host);
    let name = host
        .rsplit_once(':')
        .map_or(host, |(name, port)| match port.parse::<u16>() {
            Ok(_) => name,
            Err(_) => host,
        });
    let is_address = name.parse::<Ipv4Addr>().is_ok()
        || name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'))
            .is_some_and(|name| name.parse::<Ipv6Addr>().is_ok());
    has_foreign_origin || !(is_address || name == "localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_this_address_may_change_something() {
        for (host, origin, foreign) in [
            ("127.0.0.1:8788", None, false),
            ("[::1]:8788", None, false),
            ("[::1]", None, false),
            ("localhost", None, false),
            ("127.0.0.1:8788", Some("http://127.0.0.1:8788"), false),
            ("127.0.0.1:8788", Some("http://127.0.0.1:3000"), true),
            ("127.0.0.1:8788", Some("https://evil.example"), true),
            ("127.0.0.1:8788", Some("null"), true),
            ("evil.example:8788", Some("http://evil.example:8788"), true),
            ("evil.example", None, true),
            ("", None, true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static(host));
            if let Some(origin) = origin {
                headers.insert(ORIGIN, HeaderValue::from_static(origin));
            }
            assert_eq!(is_from_another_site(&headers), foreign, "{host} {origin:?}");
        }
    }
}
