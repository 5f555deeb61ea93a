//! A QStash that answers rightly, but for the request that a case is about.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::Ledger;
use crate::wire::Whole;

/// The bytes of an answer, and what follows them.
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    pub(super) then: Then,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// The connection is kept for the next request.
    Keep,
    /// It is closed.
    Close,
    /// It is reset.
    Reset,
}

/// How a request is answered, once.
pub(super) type Script = Arc<dyn Fn(&mut Asked<'_>) -> Answer + Send + Sync>;

/// The request at hand.
pub(super) struct Asked<'a> {
    ledger: &'a mut Ledger,
    refused: &'a mut HashSet<String>,
    request: &'a Whole,
    /// How many messages it is for.
    pub(super) count: usize,
}

/// A running server; it ends when it is dropped.
pub(super) struct Scripted {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: AbortOnDropHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    /// Closed: answers wait.
    gate: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    /// Deduplication ids of messages that are wrong.
    refused: HashSet<String>,
    script: Option<(Script, Kind)>,
    requests: usize,
    paths: Vec<String>,
}

/// What a script is for; other requests are answered rightly meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Single,
    Batch,
}

impl Asked<'_> {
    /// Takes all messages in; the right answer.
    pub(super) fn accept(&mut self) -> Value {
        let id = self.request.header("upstash-deduplication-id");
        let path = path(self.request);
        let taken = self
            .ledger
            .take_request(&path, id.as_deref(), self.request.body());
        taken.unwrap_or_else(|| panic!("{}", self.request.head()))
    }

    /// Takes one message of a batch in; its right answer.
    pub(super) fn accept_one(&mut self, at: usize) -> Value {
        let (id, body) = self.item(at);
        self.ledger.take_one(&id, body.as_bytes())
    }

    /// Refuses one message of a batch, and does so again when it comes alone.
    pub(super) fn refuse_one(&mut self, at: usize) -> Value {
        let (id, _) = self.item(at);
        self.refused.insert(id);
        json!({ "error": "no such thing" })
    }

    fn item(&self, at: usize) -> (String, String) {
        let items: Vec<Value> = serde_json::from_slice(self.request.body()).unwrap();
        let item = &items[at];
        let id = item["headers"]["Upstash-Deduplication-Id"].as_str();
        let body = item["body"].as_str();
        (id.unwrap().to_owned(), body.unwrap().to_owned())
    }

    fn is_refused(&self) -> bool {
        let id = self.request.header("upstash-deduplication-id");
        id.is_some_and(|id| self.refused.contains(&id))
    }
}

impl Scripted {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            gate: watch::Sender::new(true),
        });
        let serving = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&serving)));
            }
        });
        Self {
            address,
            shared,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers the next request of this kind so.
    pub(super) fn set(&self, script: Script, kind: Kind) {
        self.state().script = Some((script, kind));
    }

    /// Whether the script was used, or else is taken back.
    pub(super) fn take_back(&self) -> bool {
        self.state().script.take().is_none()
    }

    /// Lets answers wait, or go out.
    pub(super) fn hold(&self, hold: bool) {
        self.shared.gate.send_replace(!hold);
    }

    pub(super) fn requests(&self) -> usize {
        self.state().requests
    }

    /// The numbers that arrived, without repeats, in order.
    pub(super) fn numbers(&self) -> Vec<usize> {
        self.state().ledger.numbers.clone()
    }

    /// Paths of requests that are none for messages of the group `news`.
    pub(super) fn strange_paths(&self) -> Vec<String> {
        let state = self.state();
        let is_known = |path: &&String| !["/v2/batch", "/v2/publish/news"].contains(&path.as_str());
        state.paths.iter().filter(is_known).cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    // An error is the sidecar's leaving.
    talk(&mut stream, &shared).await.ok();
}

async fn talk(stream: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    while let Some(request) = Whole::read(stream).await? {
        shared.state.lock().unwrap().requests += 1;
        let mut gate = shared.gate.subscribe();
        gate.wait_for(|open| *open).await.ok(); // its sender is in `shared`
        let answer = shared.answer(&request);
        stream.write_all(&answer.bytes).await?;
        match answer.then {
            Then::Keep => {}
            Then::Close => return Ok(()),
            Then::Reset => return stream.set_zero_linger(),
        }
    }
    Ok(())
}

impl Shared {
    fn answer(&self, request: &Whole) -> Answer {
        let mut state = self.state.lock().unwrap();
        let path = path(request);
        let kind = match path.as_str() {
            "/v2/batch" => Kind::Batch,
            _ => Kind::Single,
        };
        state.paths.push(path);
        let count = match kind {
            Kind::Single => 1,
            Kind::Batch => serde_json::from_slice::<Vec<Value>>(request.body())
                .unwrap()
                .len(),
        };
        let script = state.script.take_if(|(_, wanted)| *wanted == kind);
        let state = &mut *state;
        let mut asked = Asked {
            ledger: &mut state.ledger,
            refused: &mut state.refused,
            request,
            count,
        };
        match script {
            Some((script, _)) => script(&mut asked),
            None if asked.is_refused() => Answer::new(400, "", br#"{"error":"no such thing"}"#),
            None => Answer::new(200, "", asked.accept().to_string().as_bytes()),
        }
    }
}

impl Answer {
    /// An answer with these header lines, each with its end.
    pub(super) fn new(status: u16, lines: &str, body: &[u8]) -> Self {
        Self::raw(
            &format!(
                "HTTP/1.1 {status} Word\r\ncontent-type: application/json\r\n{lines}content-length: {}\r\n\r\n",
                body.len()
            ),
            body,
            Then::Keep,
        )
    }

    /// An answer as it stands here.
    pub(super) fn raw(head: &str, body: &[u8], then: Then) -> Self {
        let bytes = [head.as_bytes(), body].concat();
        Self { bytes, then }
    }
}

fn path(request: &Whole) -> String {
    let head = request.head();
    head.split(' ').nth(1).unwrap_or_default().to_owned()
}
