//! The forwarder: claims what is due, publishes it, settles it.
//!
//! One task owns all decisions; requests run beside it and report back. One event alone goes
//! at once, as a single publish, a backlog as batches: while all requests are out, the next
//! batch gathers, and while events come in, so does each (see `pace`).
//!
//! Where an event is while something fails: on disk, pending. It leaves the queue only by an
//! outcome that was committed. What is in memory is a window on the head of the backlog.

mod backoff;
mod breaker;
mod large;
mod outcomes;
mod pace;
mod publish;
mod window;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use self::breaker::{Breaker, Permit};
use self::pace::Pace;
use self::publish::{Attempt, Published};
use self::window::{Entry, Window};
use crate::buffer::{AppendError, Buffer, Pending, Seq, Settlement, Verdict};
use crate::clock::{self, Timestamp};
use crate::destination::{DeliveryOptions, Destination};
use crate::metrics::Metrics;
use crate::qstash::Client;
use crate::spans::Spans;

pub(crate) use self::breaker::Cause;

/// Requests in flight. At 80 ms an answer, 8 batches of 100 make 10,000 events a second.
const MAX_REQUESTS: usize = 8;

/// Events in memory, without their bytes: enough to fill all requests past events that wait
/// for one of their document.
const WINDOW: usize = 2 * MAX_REQUESTS * window::MAX_BATCH;

/// Bytes of bodies in requests, each at most twice in memory. One request may have a quarter.
const MAX_BYTES_OUT: u64 = 4 << 20;

/// Outcomes that wait for the disk. Beyond it nothing new is published: it could be lost
/// track of.
const MAX_UNSETTLED: usize = 2 * WINDOW;

/// Between two tries of a destination that does not exist.
const HOLD: Duration = Duration::from_secs(60);

/// While the token is refused, how often its file is looked at.
const TOKEN_LOOK: Duration = Duration::from_secs(1);

/// How often ages are looked at, with `--max-age`.
const AGE_LOOK: Duration = Duration::from_secs(60);

/// After the buffer could not be read or written.
const BUFFER_PAUSE: Duration = Duration::from_secs(1);

/// What the forwarder is told by flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Give up on a pending event that is older.
    pub max_age: Option<Duration>,
    /// Between two tries of a destination that does not exist.
    pub hold: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_age: None,
            hold: HOLD,
        }
    }
}

/// Whether QStash takes events, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Flow {
    /// Why nothing flows, and in which words; `None` while it does.
    pub(crate) stopped: Option<(Cause, String)>,
    /// Since when it does, or does not.
    pub(crate) since: Timestamp,
    /// Destinations that do not exist, in the order of their names.
    pub(crate) held: Vec<String>,
}

/// The task's parts; [`Forwarder::run`] is the task.
pub(crate) struct Forwarder {
    pub(crate) settings: Settings,
    pub(crate) buffer: Buffer,
    pub(crate) client: Arc<Client>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) spans: Arc<Spans>,
    pub(crate) flow: watch::Sender<Flow>,
    /// Something was made at QStash: destinations that did not exist are tried at once.
    pub(crate) retry_held: Arc<Notify>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// What the requests and settlements report.
enum Report {
    Published(Published),
    Settled { count: usize, done: Vec<Seq> },
    Failed(JoinError),
}

/// A destination that does not exist: its events stay on disk, one is tried now and then.
#[derive(Debug)]
struct Hold {
    until: Instant,
    trying: bool,
}

struct State {
    window: Window,
    breaker: Breaker,
    pace: Pace,
    holds: HashMap<String, Hold>,
    /// All pending events up to here are known, or held.
    cursor: Seq,
    /// Whether there may be pending events behind the cursor.
    more: bool,
    requests: usize,
    /// Bytes of bodies that requests have in memory.
    bytes_out: u64,
    unsettled: usize,
    /// Out, and still pending on disk when they were passed over on the way from the start.
    passed_over: HashSet<Seq>,
    /// Messages accepted so far: tells whether others pass while one fails.
    passed: u64,
    /// Requests so far in which the connection broke, and not for an event that had failed
    /// before: tells whether the way to QStash is what breaks them.
    broken: u64,
    paused_until: Option<Instant>,
    reports: mpsc::UnboundedSender<Report>,
}

impl State {
    fn may_request(&self) -> bool {
        self.requests < MAX_REQUESTS
            && self.bytes_out < MAX_BYTES_OUT
            && self.unsettled < MAX_UNSETTLED
            && !self.is_paused()
    }

    fn is_paused(&self) -> bool {
        self.paused_until
            .is_some_and(|until| Instant::now() < until)
    }

    /// Reads the backlog from its start once more: events are pending that were passed over.
    fn rewind(&mut self) {
        self.cursor = Seq::START;
        self.more = true;
    }

    fn retry_held(&mut self) {
        let now = Instant::now();
        self.holds.values_mut().for_each(|hold| hold.until = now);
    }

    /// Outcomes are on disk.
    fn settled(&mut self, count: usize, done: &[Seq]) {
        self.unsettled -= count;
        let mut replayed = false;
        for seq in done {
            self.window.forget(*seq);
            // It may be pending again, by a replay that came before this was told.
            replayed |= self.passed_over.remove(seq);
        }
        if replayed {
            self.rewind();
        }
    }

    /// An event that was not settled waits again: here, or on disk while its destination is held.
    fn put_back(&mut self, entry: Entry) {
        self.passed_over.remove(&entry.seq());
        if self.holds.contains_key(&entry.event.address.destination) {
            self.window.forget(entry.seq());
        } else {
            self.window.insert(entry);
        }
    }
}

impl Forwarder {
    /// Publishes until `stop`, then lets what is out come back and be settled. After a panic, which
    /// is a mistake of ours, it begins anew with what is on disk.
    pub(crate) async fn run(self) {
        let (forwarder, tasks) = (Arc::new(self), TaskTracker::new());
        loop {
            let running = Arc::clone(&forwarder);
            match tasks.spawn(async move { running.forward().await }).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) | Err(error) => {
                    error!(%error, "Forwarder failed, starting it again")
                }
            }
            tokio::time::sleep(BUFFER_PAUSE).await;
        }
    }

    async fn forward(&self) -> Result<(), JoinError> {
        // Unbounded, since its content is bounded: at most one report a request or settlement.
        let (reports, mut reported) = mpsc::unbounded_channel();
        let mut state = State {
            window: Window::default(),
            breaker: Breaker::new(),
            pace: Pace::default(),
            holds: HashMap::new(),
            cursor: Seq::START,
            more: true,
            requests: 0,
            bytes_out: 0,
            unsettled: 0,
            passed_over: HashSet::new(),
            passed: 0,
            broken: 0,
            paused_until: None,
            reports,
        };
        loop {
            if self.stop.is_cancelled() {
                if state.requests == 0 && state.unsettled == 0 {
                    return Ok(());
                }
            } else if state.pace.rest(Instant::now()).is_none() {
                self.take_turn(&mut state).await;
            }
            let rest = state.pace.rest(Instant::now());
            let wake = [self.next_wake(&state), rest].into_iter().flatten().min();
            tokio::select! {
                () = self.stop.cancelled(), if !self.stop.is_cancelled() => {}
                report = reported.recv() => match report {
                    Some(Report::Published(published)) => self.published(&mut state, published),
                    Some(Report::Settled { count, done }) => state.settled(count, &done),
                    // Its events are known to nobody now but the disk.
                    Some(Report::Failed(error)) => return Err(error),
                    None => return Ok(()), // the state holds a sender: not before it is dropped
                },
                () = self.buffer.appended().notified(), if rest.is_none() => match self.buffer.take_replayed() {
                    true => state.rewind(),
                    false => state.more = true,
                },
                () = self.retry_held.notified() => state.retry_held(),
                () = sleep_until(wake) => self.look_at_token(&mut state),
            }
        }
    }

    /// Starts what may go. What came during a rest is not told apart from what comes now.
    async fn take_turn(&self, state: &mut State) {
        let most = state
            .pace
            .turn(self.buffer.tally().accepted, Instant::now());
        state.more |= most.is_some();
        self.expire(state);
        self.refill(state).await;
        self.dispatch(state, most).await;
    }

    /// Fills the window from disk, once there is room for a good part of it.
    async fn refill(&self, state: &mut State) {
        while state.more && !state.is_paused() && state.window.len() <= WINDOW / 2 {
            let held: Vec<String> = state.holds.keys().cloned().collect();
            let limit = WINDOW - state.window.len();
            let events = match self.buffer.pending(state.cursor, held, limit).await {
                Ok(events) => events,
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "Buffer could not be read, will try again"
                    );
                    state.paused_until = Some(Instant::now() + BUFFER_PAUSE);
                    return;
                }
            };
            state.more = events.len() == limit;
            for event in events {
                state.cursor = event.seq;
                if state.window.is_out(event.seq) {
                    state.passed_over.insert(event.seq);
                } else if !state.window.knows(event.seq)
                    && let Some(entry) = self.entry(state, event)
                {
                    state.window.insert(entry);
                }
            }
        }
    }

    /// Makes an entry of what the buffer gave. It may go at once, whatever time it was due: the
    /// wall clock may have jumped since, and what it waits for is tried anyway. An address that this version cannot read is a
    /// dead letter, so that it blocks nothing.
    fn entry(&self, state: &mut State, event: Pending) -> Option<Entry> {
        let destination = event
            .address
            .destination
            .parse::<Destination>()
            .map_err(|error| error.to_string());
        let options =
            DeliveryOptions::parse(&event.address.options).map_err(|error| error.to_string());
        match (destination, options) {
            (Ok(destination), Ok(options)) => Some(Entry::new(
                event,
                Destination {
                    options,
                    ..destination
                },
            )),
            (Err(reason), _) | (_, Err(reason)) => {
                self.metrics.dead_rejected.add();
                error!(event.id = %event.id, destination = %event.address.for_log(), reason, "Event is a dead letter");
                self.settle(
                    state,
                    vec![Settlement {
                        seq: event.seq,
                        verdict: Verdict::Dead {
                            reason,
                            attempted: false,
                        },
                    }],
                );
                None
            }
        }
    }

    /// Starts as many requests as may be out, or as `most` events fill.
    async fn dispatch(&self, state: &mut State, most: Option<usize>) {
        let mut started = 0;
        while state.may_request() && most.is_none_or(|most| started < most) {
            let now = Instant::now();
            match state.breaker.permit(now) {
                Permit::Wait(_) | Permit::WaitForTrial => return,
                Permit::Trial => {
                    let (entry, attempt) = match state.window.take_trial(now) {
                        Some(entry) => (entry, Attempt::Trial),
                        None => match self.take_held(state, now).await {
                            Some(held) => held,
                            None => return,
                        },
                    };
                    state.breaker.trial_started();
                    self.start(state, vec![entry], attempt);
                }
                Permit::Flow => {
                    if let Some((entry, attempt)) = self.take_held(state, now).await {
                        self.start(state, vec![entry], attempt);
                        continue;
                    }
                    let entries = state.window.take_batch(self.client.can_batch(), now);
                    if entries.is_empty() {
                        return;
                    }
                    started += entries.len();
                    self.start(state, entries, Attempt::Flow);
                }
            }
            self.refill(state).await;
        }
    }

    /// The oldest event of a destination that is held and due to be tried.
    async fn take_held(&self, state: &mut State, now: Instant) -> Option<(Entry, Attempt)> {
        loop {
            let due = state
                .holds
                .iter()
                .find(|(_, hold)| !hold.trying && hold.until <= now);
            let destination = due.map(|(destination, _)| destination.clone())?;
            let first = self.buffer.first_for(destination.clone()).await;
            let Some(hold) = state.holds.get_mut(&destination) else {
                continue;
            };
            match first {
                // Its last outcome is not on disk yet.
                Ok(Some(event)) if state.window.knows(event.seq) => hold.until = now + BUFFER_PAUSE,
                Ok(Some(event)) if self.is_expired(&event) => {
                    hold.until = now + BUFFER_PAUSE;
                    self.bury_expired(state, &event);
                }
                Ok(Some(event)) => {
                    hold.until = now + BUFFER_PAUSE;
                    if let Some(entry) = self.entry(state, event) {
                        if let Some(hold) = state.holds.get_mut(&destination) {
                            hold.trying = true;
                        }
                        state.window.take_out(&entry);
                        return Some((entry, Attempt::Held(destination)));
                    }
                }
                // Nothing waits for it any more: the next event for it will tell.
                Ok(None) => self.release(state, &destination),
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "Buffer could not be read, will try again"
                    );
                    hold.until = now + BUFFER_PAUSE;
                }
            }
        }
    }

    fn start(&self, state: &mut State, entries: Vec<Entry>, attempt: Attempt) {
        state.requests += 1;
        state.bytes_out += entries.iter().map(Entry::bytes_out).sum::<u64>();
        let patience = state.breaker.patience(Instant::now());
        let (buffer, client, spans, reports) = (
            self.buffer.clone(),
            Arc::clone(&self.client),
            Arc::clone(&self.spans),
            state.reports.clone(),
        );
        let publishing = self.tasks.spawn(async move {
            publish::publish(&buffer, &client, &spans, entries, attempt, patience).await
        });
        self.tasks.spawn(async move {
            let report = publishing
                .await
                .map_or_else(Report::Failed, Report::Published);
            // The forwarder is only gone when the grace is over: the events stay pending.
            reports.send(report).ok();
        });
    }

    /// Has outcomes written, and written again until they are: an event whose outcome is lost
    /// would be published once more after the next start.
    fn settle(&self, state: &mut State, settlements: Vec<Settlement>) {
        if settlements.is_empty() {
            return;
        }
        state.unsettled += settlements.len();
        let (buffer, reports) = (self.buffer.clone(), state.reports.clone());
        self.tasks.spawn(async move {
            // What is postponed is known all along: it waits in the window, or is out again.
            let is_done =
                |settlement: &&Settlement| !matches!(settlement.verdict, Verdict::Postponed { .. });
            let done = settlements
                .iter()
                .filter(is_done)
                .map(|settlement| settlement.seq)
                .collect();
            let count = settlements.len();
            let mut warned = false;
            loop {
                match buffer.settle(settlements.clone()).await {
                    Ok(()) | Err(AppendError::Closed) => break,
                    Err(error) => {
                        if !std::mem::replace(&mut warned, true) {
                            warn!(
                                error = &error as &dyn std::error::Error,
                                "Outcomes could not be written, will try again"
                            );
                        }
                        tokio::time::sleep(BUFFER_PAUSE).await;
                    }
                }
            }
            reports.send(Report::Settled { count, done }).ok(); // the forwarder may have ended
        });
    }

    fn is_expired(&self, event: &Pending) -> bool {
        self.settings
            .max_age
            .is_some_and(|max_age| clock::now().since(event.received_at) > max_age)
    }

    fn expire(&self, state: &mut State) {
        if self.settings.max_age.is_none() {
            return;
        }
        for entry in state.window.take_older(|event| self.is_expired(event)) {
            state.window.attempt_over(entry.key);
            self.bury_expired(state, &entry.event);
        }
    }

    fn bury_expired(&self, state: &mut State, event: &Pending) {
        self.metrics.dead_expired.add();
        let max_age = humantime::format_duration(self.settings.max_age.unwrap_or_default());
        let reason = format!("not delivered within {max_age} (--max-age)");
        error!(event.id = %event.id, event.kind = event.facts.kind, reason, "Event is a dead letter");
        self.settle(
            state,
            vec![Settlement {
                seq: event.seq,
                verdict: Verdict::Dead {
                    reason,
                    attempted: false,
                },
            }],
        );
    }

    /// When something is to be done without being told.
    fn next_wake(&self, state: &State) -> Option<Instant> {
        if self.stop.is_cancelled() {
            return None;
        }
        let now = Instant::now();
        let look = match state.breaker.cause() {
            Some(Cause::Unauthorized) => Some(now + TOKEN_LOOK),
            _ => None,
        };
        let age =
            (self.settings.max_age.is_some() && state.window.len() > 0).then(|| now + AGE_LOOK);
        let flow = match state.breaker.permit(now) {
            Permit::Wait(until) if state.window.len() > 0 || !state.holds.is_empty() => Some(until),
            Permit::Flow | Permit::Trial => {
                let holds = state
                    .holds
                    .values()
                    .filter(|hold| !hold.trying)
                    .map(|hold| hold.until)
                    .min();
                state.window.next_due(now).into_iter().chain(holds).min()
            }
            _ => None,
        };
        [
            look,
            age,
            flow,
            state.paused_until.filter(|until| *until > now),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn look_at_token(&self, state: &mut State) {
        if state.breaker.cause() == Some(Cause::Unauthorized) && self.client.refresh_token() {
            state.breaker.try_now(Instant::now());
        }
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}
