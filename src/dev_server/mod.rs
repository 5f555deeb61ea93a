//! The QStash development server: enough of QStash, in memory and on one machine, to try
//! everything that a publisher does; and the [`Catcher`], which plays the receiving API.
//!
//! It is used by `strapi-qstash dev` and by the tests, by nothing else.
//!
//! # What it has
//!
//! Publish, enqueue and batch, URL groups, deduplication, delays, deliveries with signatures
//! and retries, callbacks, queues, flow control, labels, redaction, cancelling, the dead letter
//! queue, logs, keys. Upstash's server is closed, so the sources are its documentation, the
//! description of its API and its SDKs, and nothing else. A stand-in that is kinder than QStash
//! hides bugs: what is not here is refused with 501 and a clear text, not ignored. That is
//! schedules, calls of language models, workflows, and the first version of the API beyond
//! `/v1/publish`.
//!
//! Quotas are those of the free plan (size of a message, delay, time to answer) and, for
//! numbers of groups, queues and parallel deliveries, those of the pay-as-you-go plan. A
//! receiver may be on this machine, which QStash itself refuses. Everything is in memory and
//! bounded; only undelivered messages are never dropped, so beyond some 100,000 of them a
//! publish is answered 503.
//!
//! # Where the sources disagree
//!
//! | about | one says | another says | here |
//! |---|---|---|---|
//! | publish to a URL group | description: `{"messages": […]}` | SDKs: an array | the array |
//! | a duplicate | description: 200 | documentation: 202 | 202 |
//! | an unknown URL group | description: nothing | Go SDK: `topic … not found` | 404 |
//! | how long an id is remembered | documentation: 10 minutes | comments in the SDK: 90 days | 10 minutes |
//! | the last state of a cancelled message | description: `CANCELLED` | SDKs: `CANCELED` | the one in `/v2/logs`, the other in `/v2/events`; both as filters |
//! | the log's answer | description: `logs` in `/v2/logs` | SDKs: `events` in `/v2/events` | both |
//! | fields of the log | `retryDelayExpression`, `responseHeaders` | Python SDK: `retryDelayExpr`, `responseHeader` | all |
//! | lines of the log in one answer | description: 100 at most | Python SDK: 1,000 | 100, and 1,000 when asked for |
//! | `count` of a bulk cancel | description: the most that are cancelled | JavaScript SDK: ignored | ignored |
//! | ids of a bulk call | description: in the query | Python SDK: in a JSON body | both |
//! | parameters that are no filter | description: nothing | JavaScript SDK: an error | 400 |
//! | redacting all headers | documentation: `headers` | SDKs: `header` | both |
//! | `nbf` of a signature | example: as `iat` | changelog: 0 | 0 |
//! | the backoff | documentation: e^(2.5 n) | an old page: e^(2 n) | e^(2.5 n) |
//!
//! # What no source says
//!
//! A quota that is exceeded by a message is answered 400 in QStash's words, the number of
//! groups and queues 412. 3xx is no delivery. Deduplication ids are the account's, whatever the
//! destination. A delay in a queue holds what is behind it. A queue that is deleted takes with
//! it what waits in it; pausing one that does not exist is a mistake (400). A retry from the
//! dead letter queue is new to deduplication. Each attempt counts for flow control.
//!
//! # The parts
//!
//! `target`, `options`, `filter`, `expression`, `durations`, `publish` and `retry` decide and
//! do no I/O; `state` with `groups`, `queues`, `flow`, `dlq` and `duplicates` is what is known,
//! behind one lock; `api` and `manage` speak HTTP to publishers, in the words of `describe`,
//! `redact` and `logs`; `delivery` speaks to receivers; `listening` keeps the port.

mod api;
mod callback;
mod catcher;
mod delivery;
mod describe;
mod dlq;
mod duplicates;
mod durations;
mod expression;
mod fault;
mod filter;
mod flow;
mod groups;
mod listening;
mod logs;
mod manage;
mod message;
mod options;
mod publish;
mod queues;
mod recent;
mod redact;
mod retry;
mod state;
mod target;
mod topics;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use catcher::{Catcher, CatcherSettings, Received, Reply, TooFew};
pub use expression::{Expression, ExpressionError};
pub use fault::{Fault, Faults, InBatch, Rejection};
pub use message::{
    Callback, Counts, Destination, FlowControl, Life, Message, Options, Progress, RedactedHeaders,
    Redaction, Response, Seen,
};
pub use target::NameError;

pub use crate::qstash::signature::Keys;

use crate::clock;
use crate::secret::Secret;
use groups::Endpoint;
use state::{Draft, Job, State};

/// The token of Upstash's own development server. It is public, and not secret.
/// See <https://upstash.com/docs/qstash/howto/local-development>.
pub const DEVELOPMENT_TOKEN: &str =
    "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0=";

/// Its current signing key, as public.
pub const DEVELOPMENT_CURRENT_KEY: &str = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r";

/// Its next signing key, as public.
pub const DEVELOPMENT_NEXT_KEY: &str = "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs";

/// Deliveries in flight. The rest wait: there is one receiver or two, on this machine.
const MAX_DELIVERIES: usize = 64;

/// Events that a slow subscriber can be behind before it misses some.
const LIFE_EVENTS: usize = 4_096;

/// How the server is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The token that publishers must show.
    pub token: Secret,
    /// The keys that deliveries are signed with.
    pub keys: Keys,
    /// Waits between retries are this many times shorter. What is not above zero counts as 1.
    pub time_scale: f64,
    /// The largest body of a message, in bytes.
    pub max_message: u64,
}

/// Upstash's own development token and keys, and the limits of the free plan.
impl Default for Settings {
    fn default() -> Self {
        Self {
            token: Secret::trimmed(DEVELOPMENT_TOKEN).expect("it is not empty"),
            keys: development_keys(),
            time_scale: 1.0,
            max_message: 1_048_576,
        }
    }
}

fn development_keys() -> Keys {
    Keys {
        current: DEVELOPMENT_CURRENT_KEY.to_owned(),
        next: DEVELOPMENT_NEXT_KEY.to_owned(),
    }
}

/// A running development server. Clones speak of the same one; it runs until the token it
/// was started with is cancelled.
#[derive(Clone)]
pub struct DevServer(Arc<Shared>);

/// What the parts share.
struct Shared {
    addr: SocketAddr,
    settings: Settings,
    state: Mutex<State>,
    faults: Faults,
    client: reqwest::Client,
    deliveries: Semaphore,
    /// By how many times waits are shorter: those before retries.
    time_scale: watch::Sender<f64>,
    life: broadcast::Sender<Life>,
    /// Told of every change of the state, for those who wait for something.
    changes: watch::Sender<()>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl DevServer {
    /// Starts to serve on `listener`, with all work on `tasks`, until `shutdown`.
    pub fn start(
        listener: TcpListener,
        settings: Settings,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        let addr = listener
            .local_addr()
            .expect("a listening socket has an address");
        let (open, is_open) = watch::channel(true);
        let shared = Arc::new(Shared {
            addr,
            state: Mutex::new(State::new(settings.keys.clone())),
            time_scale: watch::Sender::new(settings.time_scale),
            settings,
            faults: Faults::new(is_open),
            client: delivery::client(),
            deliveries: Semaphore::new(MAX_DELIVERIES),
            life: broadcast::Sender::new(LIFE_EVENTS),
            changes: watch::Sender::new(()),
            tasks: tasks.clone(),
            shutdown,
        });
        tasks.spawn(listening::listen(Arc::clone(&shared), listener, open));
        Self(shared)
    }

    /// Where it listens, or did before [`Fault::Refuse`].
    pub fn addr(&self) -> SocketAddr {
        self.0.addr
    }

    /// The base URL for publishers.
    pub fn url(&self) -> String {
        format!("http://{}", self.0.addr)
    }

    /// Adds endpoints (a name or none, and a URL) to a URL group, creating it if needed.
    pub fn upsert_endpoints(
        &self,
        group: &str,
        endpoints: &[(Option<&str>, &str)],
    ) -> Result<(), NameError> {
        let endpoints = endpoints.iter().map(|(name, url)| Endpoint {
            name: name.map(str::to_owned),
            url: (*url).to_owned(),
        });
        let mut state = self.0.state();
        state
            .groups
            .upsert(group, endpoints.collect(), clock::now())
    }

    /// Removes a URL group, if there is one.
    pub fn remove_group(&self, name: &str) {
        self.0.state().groups.remove(name);
    }

    /// The switch of the faults.
    pub fn faults(&self) -> Faults {
        self.0.faults.clone()
    }

    /// By how many times the waits between retries are shorter.
    pub fn time_scale(&self) -> f64 {
        *self.0.time_scale.borrow()
    }

    /// Changes that, for the waits that have begun as well. What is not above zero counts
    /// as 1.
    pub fn set_time_scale(&self, time_scale: f64) {
        self.0.time_scale.send_replace(time_scale);
    }

    /// The publish, enqueue and batch requests that arrived, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.0.state().seen()
    }

    /// The messages that were accepted, duplicates among them, oldest first.
    pub fn messages(&self) -> Vec<Arc<Message>> {
        self.0.state().messages()
    }

    /// How many messages came to what.
    pub fn counts(&self) -> Counts {
        self.0.state().counts
    }

    /// What happens to messages from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Life> {
        self.0.life.subscribe()
    }

    /// Waits until `condition` holds, looking after every change; false when `timeout`
    /// passes first.
    pub async fn wait_until(
        &self,
        timeout: Duration,
        condition: impl Fn(&Self) -> bool + Send,
    ) -> bool {
        let mut changes = self.0.changes.subscribe();
        let waiting = async {
            while !condition(self) {
                // It cannot end while this handle holds the sender.
                changes.changed().await.ok();
            }
        };
        tokio::time::timeout(timeout, waiting).await.is_ok()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a step in the life of a message and tells whoever listens.
    fn record(&self, message: &Arc<Message>, progress: Progress) {
        self.record_in(&mut self.state(), message, progress);
        self.changes.send_replace(());
    }

    /// The same for who holds the lock already. Telling under the lock keeps the steps of a
    /// message in order.
    fn record_in(&self, state: &mut State, message: &Arc<Message>, progress: Progress) {
        let at = clock::now();
        state.record(message, progress.clone(), at);
        let life = Life {
            at,
            message: Arc::clone(message),
            progress,
        };
        self.life.send(life).ok(); // nobody has to listen
    }

    /// Accepts a message that was checked. What there is to deliver is added to `jobs`.
    fn accept(&self, state: &mut State, draft: Draft, jobs: &mut Vec<Job>) {
        for message in state.accept(draft, clock::now(), jobs) {
            self.record_in(state, &message, Progress::Created);
        }
    }
}
