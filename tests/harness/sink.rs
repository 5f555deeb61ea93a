//! A QStash that answers at once and keeps next to nothing: the development server keeps
//! every message and delivers it, which is too much for a million.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::{try_number, wait_until};

/// Bodies that are no [`update`](super::update) are kept up to this length.
const LONGEST_BODY: usize = 64 << 10;

/// A running sink; it takes no more connections once it is dropped.
pub(crate) struct Sink {
    address: SocketAddr,
    ledger: Arc<Mutex<Ledger>>,
    _accepting: AbortOnDropHandle<()>,
}

/// What arrived, without repeats.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The numbers of updates, in the order they came in.
    pub(crate) numbers: Vec<usize>,
    /// The bodies of what is no update.
    pub(crate) others: Vec<Vec<u8>>,
    /// How many messages were repeats.
    pub(crate) repeats: usize,
    ids: HashSet<u128>,
}

impl Sink {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let kept = Arc::clone(&ledger);
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let kept = Arc::clone(&kept);
                let service = service_fn(move |request| {
                    let kept = Arc::clone(&kept);
                    async move { Ok::<_, Infallible>(answer(&kept, request).await) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self {
            address,
            ledger,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    /// Waits until so many messages came in, without repeats; whether they did.
    pub(crate) async fn wait_for(&self, count: usize, timeout: Duration) -> bool {
        wait_until(timeout, || self.ledger().len() >= count).await
    }
}

impl Ledger {
    pub(crate) fn len(&self) -> usize {
        self.numbers.len() + self.others.len()
    }

    /// Takes a message in; whether it is new.
    pub(crate) fn take(&mut self, id: &str, body: &[u8]) -> bool {
        let id = uuid::Uuid::parse_str(id).unwrap();
        if !self.ids.insert(id.as_u128()) {
            self.repeats += 1;
            return false;
        }
        match try_number(body) {
            Some(number) => self.numbers.push(number),
            None => self
                .others
                .push(body[..body.len().min(LONGEST_BODY)].to_vec()),
        }
        true
    }

    /// Takes the messages of a request in; the answer that QStash would give for a URL group
    /// of one endpoint. `None` where the request is none for messages.
    pub(crate) fn take_request(
        &mut self,
        path: &str,
        id: Option<&str>,
        body: &[u8],
    ) -> Option<Value> {
        if path != "/v2/batch" {
            return Some(self.take_one(id?, body));
        }
        #[derive(serde::Deserialize)]
        struct Item<'a> {
            #[serde(borrow)]
            headers: HashMap<Cow<'a, str>, Cow<'a, str>>,
            #[serde(borrow)]
            body: Cow<'a, str>,
        }
        let items: Vec<Item<'_>> = serde_json::from_slice(body).ok()?;
        let answers = items.iter().map(|item| {
            let id = item.headers.get("Upstash-Deduplication-Id")?;
            Some(self.take_one(id, item.body.as_bytes()))
        });
        answers.collect()
    }

    /// Takes a message in; its right answer.
    pub(crate) fn take_one(&mut self, id: &str, body: &[u8]) -> Value {
        match self.take(id, body) {
            true => json!([{ "messageId": format!("msg_{id}") }]),
            false => json!([{ "messageId": format!("msg_{id}"), "deduplicated": true }]),
        }
    }
}

async fn answer(ledger: &Mutex<Ledger>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let mut answer = Response::default();
    let Ok(body) = body.collect().await else {
        *answer.status_mut() = StatusCode::BAD_REQUEST;
        return answer; // it was cut off, so nobody reads this
    };
    let id = head.headers.get("upstash-deduplication-id");
    let id = id.map(|id| id.to_str().unwrap());
    let taken = ledger
        .lock()
        .unwrap()
        .take_request(head.uri.path(), id, &body.to_bytes());
    match taken {
        Some(taken) => *answer.body_mut() = Full::new(Bytes::from(taken.to_string())),
        None => *answer.status_mut() = StatusCode::BAD_REQUEST,
    }
    answer
}
