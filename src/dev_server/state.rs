//! What the server knows: URL groups, keys, messages, deduplication, queues, logs.
//!
//! No I/O, and the time is an argument. Everything is in memory and bounded.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::HeaderMap;
use uuid::Uuid;

use super::dlq::Dlq;
use super::duplicates::{self, Known, Named};
use super::flow::Flows;
use super::groups::{Endpoint, Groups};
use super::message::{Counts, Message, Progress, Seen};
use super::options::Options;
use super::queues::{Hiring, QueueId, Queues};
use super::recent::Recent;
use super::target::Destination;
use crate::clock::Timestamp;
use crate::qstash::signature::Keys;

/// Messages that are remembered, at about a kilobyte each beside the body.
pub(super) const MAX_MESSAGES: usize = 100_000;

/// What they may weigh, in bytes: beyond it the oldest messages are forgotten.
pub(super) const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// Messages that may wait for their delivery, and what they may weigh. No message that was
/// accepted is dropped, so what comes beyond it is refused.
const MAX_PENDING: usize = 100_000;
const MAX_PENDING_BYTES: usize = 512 << 20;

/// Publish, enqueue and batch requests that are remembered, and what their paths may weigh.
const MAX_SEEN: usize = 100_000;
const MAX_SEEN_BYTES: usize = 64 << 20;

/// Steps in the life of messages that the logs tell of, and what the answers in them may weigh.
const MAX_LOG: usize = 100_000;
const MAX_LOG_BYTES: usize = 64 << 20;

/// How long `GET /v2/messages/{id}` finds a message after its end: QStash says "shortly",
/// and people look at a message they just published.
const READABLE: Duration = Duration::from_secs(10);

/// A message that passed every check and is not accepted yet.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) destination: Destination,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) queue: Option<String>,
    pub(super) callback_of: Option<String>,
    pub(super) headers: HeaderMap,
    pub(super) options: Options,
    pub(super) body: Bytes,
}

/// What is to be delivered because of something that was accepted.
#[derive(Debug)]
pub(super) enum Job {
    /// This message, whenever it is due.
    Message(Arc<Message>),
    /// The messages of this queue, one after the other, until there is none.
    Queue(QueueId),
}

/// Everything that changes, behind one lock.
pub(super) struct State {
    pub(super) groups: Groups,
    pub(super) keys: Keys,
    pub(super) counts: Counts,
    pub(super) queues: Queues,
    pub(super) flows: Flows,
    pub(super) dlq: Dlq,
    messages: Recent<Arc<Message>>,
    by_id: HashMap<String, Record>,
    /// The ids of messages that have not ended.
    pending: HashSet<String>,
    pending_bytes: usize,
    known: Known,
    seen: Recent<Seen>,
    log: Recent<Entry>,
}

struct Record {
    message: Arc<Message>,
    is_cancelled: bool,
    ended_at: Option<Timestamp>,
    /// No longer among the latest messages: it goes when it ends.
    is_old: bool,
}

/// One step in the life of a message, as the logs keep it.
pub(super) struct Entry {
    pub(super) at: Timestamp,
    pub(super) message_id: String,
    pub(super) progress: Progress,
}

impl State {
    pub(super) fn new(keys: Keys) -> Self {
        Self {
            groups: Groups::default(),
            keys,
            counts: Counts::default(),
            queues: Queues::default(),
            flows: Flows::default(),
            dlq: Dlq::default(),
            messages: Recent::new(MAX_MESSAGES, MAX_MESSAGE_BYTES),
            by_id: HashMap::new(),
            pending: HashSet::new(),
            pending_bytes: 0,
            known: Known::default(),
            seen: Recent::new(MAX_SEEN, MAX_SEEN_BYTES),
            log: Recent::new(MAX_LOG, MAX_LOG_BYTES),
        }
    }

    /// Whether so many messages more may wait.
    pub(super) fn has_room(&self, messages: usize, bytes: usize) -> bool {
        self.pending.len().saturating_add(messages) <= MAX_PENDING
            && self.pending_bytes.saturating_add(bytes) <= MAX_PENDING_BYTES
    }

    /// Accepts a message for each endpoint, or recognises a duplicate. What there is to
    /// deliver is added to `jobs`.
    pub(super) fn accept(
        &mut self,
        draft: Draft,
        now: Timestamp,
        jobs: &mut Vec<Job>,
    ) -> Vec<Arc<Message>> {
        let key = duplicates::key(&draft);
        let earlier = key.as_ref().and_then(|key| self.known.get(key, now));
        let deduplicated = earlier.is_some();
        let named = earlier.unwrap_or_else(|| {
            let new = draft.endpoints.iter().map(|endpoint| Named {
                id: format!("msg_{}", Uuid::now_v7().simple()),
                endpoint: endpoint.clone(),
            });
            new.collect()
        });
        if let (false, Some(key)) = (deduplicated, key) {
            self.known.insert(key, named.clone(), now);
        }
        let messages: Vec<_> = named
            .into_iter()
            .map(|Named { id, endpoint }| {
                Arc::new(Message {
                    id,
                    destination: draft.destination.clone(),
                    endpoint_name: endpoint.name,
                    queue: draft.queue.clone(),
                    url: endpoint.url,
                    callback_of: draft.callback_of.clone(),
                    headers: draft.headers.clone(),
                    options: draft.options.clone(),
                    body: draft.body.clone(),
                    deduplicated,
                    created_at: now,
                })
            })
            .collect();
        for message in &messages {
            self.remember(message);
            if deduplicated {
                self.counts.deduplicated += 1;
            } else {
                self.counts.accepted += 1;
                if let Some(flow_control) = &message.options.flow_control {
                    self.flows.configure(flow_control, now);
                }
                self.add_jobs(message, now, jobs);
            }
        }
        messages
    }

    fn remember(&mut self, message: &Arc<Message>) {
        if !message.deduplicated {
            let record = Record {
                message: Arc::clone(message),
                is_cancelled: false,
                ended_at: None,
                is_old: false,
            };
            self.by_id.insert(message.id.clone(), record);
            self.pending.insert(message.id.clone());
            self.pending_bytes += message.weight();
        }
        // The bodies of one fan-out are one, but counting them as many is on the safe side.
        let gone = self.messages.push(Arc::clone(message), message.weight());
        for message in gone.iter().filter(|message| !message.deduplicated) {
            match self.by_id.get_mut(&message.id) {
                Some(record) if record.ended_at.is_none() => record.is_old = true,
                _ => drop(self.by_id.remove(&message.id)),
            }
        }
    }

    /// Adds the work that a new message makes.
    fn add_jobs(&mut self, message: &Arc<Message>, now: Timestamp, jobs: &mut Vec<Job>) {
        match &message.queue {
            // The callback of a message whose queue was deleted meanwhile waits for nobody.
            Some(name) if message.callback_of.is_none() || self.queues.contains(name) => {
                hire(self.queues.push(name, message, now), jobs);
            }
            _ => jobs.push(Job::Message(Arc::clone(message))),
        }
    }

    /// Notes a step in the life of a message.
    pub(super) fn record(&mut self, message: &Message, progress: Progress, now: Timestamp) {
        if message.deduplicated {
            return; // the logs tell of the message that it repeats
        }
        match progress {
            Progress::Delivered { .. } => self.counts.delivered += 1,
            Progress::Failed { .. } => self.counts.failed += 1,
            Progress::Cancelled => self.counts.cancelled += 1,
            Progress::Created
            | Progress::Active { .. }
            | Progress::Retry { .. }
            | Progress::CancelRequested => {}
        }
        if progress.is_end() {
            self.end(message, now);
        }
        let weight = progress.weight();
        let entry = Entry {
            at: now,
            message_id: message.id.clone(),
            progress,
        };
        self.log.push(entry, weight);
    }

    fn end(&mut self, message: &Message, now: Timestamp) {
        if self.pending.remove(&message.id) {
            self.pending_bytes = self.pending_bytes.saturating_sub(message.weight());
        }
        match self.by_id.get_mut(&message.id) {
            Some(record) if !record.is_old => record.ended_at = Some(now),
            _ => drop(self.by_id.remove(&message.id)),
        }
    }

    /// Has a message that has not ended be cancelled once it is its turn. `None` where there
    /// is none, or where that was asked for before.
    pub(super) fn cancel(&mut self, id: &str) -> Option<Arc<Message>> {
        let record = self.by_id.get_mut(id)?;
        if record.ended_at.is_some() || record.is_cancelled {
            return None;
        }
        record.is_cancelled = true;
        Some(Arc::clone(&record.message))
    }

    pub(super) fn is_cancelled(&self, id: &str) -> bool {
        self.by_id.get(id).is_some_and(|record| record.is_cancelled)
    }

    /// The messages that have not ended and are not to be cancelled.
    pub(super) fn pending(&self) -> impl Iterator<Item = &Arc<Message>> {
        let records = self.pending.iter().filter_map(|id| self.by_id.get(id));
        let records = records.filter(|record| !record.is_cancelled);
        records.map(|record| &record.message)
    }

    pub(super) fn saw(&mut self, seen: Seen) {
        let weight = seen.path.len();
        self.seen.push(seen, weight);
    }

    /// A message that is on its way, or ended a moment ago. One that is to be cancelled is
    /// gone already.
    pub(super) fn message(&self, id: &str, now: Timestamp) -> Option<&Arc<Message>> {
        let record = self.by_id.get(id).filter(|record| !record.is_cancelled)?;
        let is_readable = record
            .ended_at
            .is_none_or(|ended_at| now.since(ended_at) < READABLE);
        is_readable.then_some(&record.message)
    }

    /// The log, newest first, of messages that are still remembered; with each entry its
    /// number, which no other has.
    pub(super) fn log(&self) -> impl Iterator<Item = (u64, &Entry, &Arc<Message>)> {
        let newest = self.log.pushed();
        let numbered = (0..newest).rev().zip(self.log.iter().rev());
        numbered.filter_map(|(number, entry)| {
            let record = self.by_id.get(&entry.message_id)?;
            Some((number, entry, &record.message))
        })
    }

    pub(super) fn messages(&self) -> Vec<Arc<Message>> {
        self.messages.iter().cloned().collect()
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.iter().cloned().collect()
    }
}

/// A job for each worker.
pub(super) fn hire(hiring: Hiring, jobs: &mut Vec<Job>) {
    let Hiring { queue, workers } = hiring;
    jobs.extend((0..workers).map(|_| Job::Queue(queue.clone())));
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_763_900_000_000);

    fn state() -> State {
        State::new(Keys {
            current: "a".into(),
            next: "b".into(),
        })
    }

    fn draft(body: &'static str, deduplication_id: Option<&str>) -> Draft {
        Draft {
            destination: Destination::Url("http://a".into()),
            endpoints: vec![Endpoint {
                name: None,
                url: "http://a".into(),
            }],
            queue: None,
            callback_of: None,
            headers: HeaderMap::new(),
            options: Options {
                deduplication_id: deduplication_id.map(str::to_owned),
                ..Options::default()
            },
            body: Bytes::from(body),
        }
    }

    #[test]
    fn a_duplicate_is_known_for_ten_minutes() {
        let mut state = state();
        let mut jobs = Vec::new();
        let mut publish = |now| {
            state
                .accept(draft("x", Some("id")), now, &mut jobs)
                .remove(0)
        };
        let first = publish(NOW);
        assert!(!first.deduplicated);
        let second = publish(NOW.plus(Duration::from_millis(599_999)));
        assert!(second.deduplicated);
        assert_eq!(second.id, first.id);
        let third = publish(NOW.plus(duplicates::DEDUPLICATION));
        assert!(!third.deduplicated);
        assert_ne!(third.id, first.id);
        assert_eq!(jobs.len(), 2);
        assert_eq!(state.counts.accepted, 2);
        assert_eq!(state.counts.deduplicated, 1);
    }

    #[test]
    fn content_serves_as_an_id_when_asked() {
        let mut state = state();
        let mut accept = |body| {
            let mut draft = draft(body, None);
            draft.options.content_based_deduplication = true;
            state
                .accept(draft, NOW, &mut Vec::new())
                .remove(0)
                .deduplicated
        };
        assert!(!accept("x"));
        assert!(!accept("y"));
        assert!(accept("x"));
    }

    #[test]
    fn a_queue_is_worked_on_once_and_in_order() {
        let mut state = state();
        let mut jobs = Vec::new();
        for body in ["1", "2", "3"] {
            let mut draft = draft(body, None);
            draft.queue = Some("q".into());
            state.accept(draft, NOW, &mut jobs);
        }
        let [Job::Queue(queue)] = jobs.as_slice() else {
            panic!("{jobs:?}");
        };
        let queue = queue.clone();
        for body in ["1", "2", "3"] {
            assert_eq!(state.queues.next(&queue).unwrap().body, body);
        }
        assert!(state.queues.next(&queue).is_none());
        let mut draft = draft("4", None);
        draft.queue = Some("q".into());
        state.accept(draft, NOW, &mut jobs);
        assert_eq!(jobs.len(), 2, "the work on it starts again");
    }

    #[test]
    fn a_message_that_waits_is_never_forgotten() {
        let mut state = state();
        state.messages = Recent::new(1, usize::MAX);
        let accept = |state: &mut State| {
            let draft = draft("x", None);
            state.accept(draft, NOW, &mut Vec::new()).remove(0)
        };
        let (first, _) = (accept(&mut state), accept(&mut state));
        assert!(state.message(&first.id, NOW).is_some());
        assert_eq!(state.pending().count(), 2);
        let delivered = Progress::Delivered {
            status: 200,
            retried: 0,
        };
        state.record(&first, delivered, NOW);
        assert!(state.message(&first.id, NOW).is_none());
        assert_eq!((state.by_id.len(), state.pending().count()), (1, 1));
    }

    #[test]
    fn a_message_is_cancelled_once() {
        let mut state = state();
        let message = state
            .accept(draft("x", None), NOW, &mut Vec::new())
            .remove(0);
        assert!(state.cancel("no").is_none());
        assert!(state.cancel(&message.id).is_some());
        assert!(state.cancel(&message.id).is_none());
        assert!(state.is_cancelled(&message.id));
        assert!(state.message(&message.id, NOW).is_none());
        assert_eq!(state.pending().count(), 0);
        assert!(!state.has_room(MAX_PENDING, 0), "it still waits");
        state.record(&message, Progress::Cancelled, NOW);
        assert!(state.has_room(MAX_PENDING, 0));
        assert_eq!(state.counts.cancelled, 1);
    }

    #[test]
    fn a_message_is_readable_until_shortly_after_its_end() {
        let mut state = state();
        let message = state
            .accept(draft("x", None), NOW, &mut Vec::new())
            .remove(0);
        let much_later = NOW.plus(Duration::from_secs(1_000));
        assert!(state.message(&message.id, much_later).is_some());
        let delivered = Progress::Delivered {
            status: 200,
            retried: 0,
        };
        state.record(&message, delivered, NOW);
        assert!(state.message(&message.id, NOW.plus(READABLE / 2)).is_some());
        assert!(state.message(&message.id, much_later).is_none());
    }
}
