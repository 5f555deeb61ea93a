//! What the server knows: URL groups, keys, messages, deduplication, queues, logs.
//!
//! No I/O, and the time is an argument. Everything is in memory and bounded.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hyper::HeaderMap;
use ring::digest;
use uuid::Uuid;

use super::groups::{Endpoint, Groups};
use super::message::{Counts, Message, Progress, Seen};
use super::options::Options;
use super::recent::Recent;
use super::target::Destination;
use crate::clock::Timestamp;
use crate::qstash::signature::Keys;

/// Messages that are remembered, at about a kilobyte each beside the body.
pub(super) const MAX_MESSAGES: usize = 100_000;

/// Bodies that are remembered, in bytes: with them the oldest messages are forgotten.
pub(super) const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// Publish, enqueue and batch requests that are remembered.
const MAX_SEEN: usize = 100_000;

/// Steps in the life of messages that the logs tell of.
const MAX_LOG: usize = 100_000;

/// How long a deduplication id is remembered.
/// See <https://upstash.com/docs/qstash/features/deduplication>.
pub(super) const DEDUPLICATION: Duration = Duration::from_secs(600);

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
    /// The messages of this queue, one after the other, until it is empty.
    Queue(String),
}

/// Everything that changes, behind one lock.
pub(super) struct State {
    pub(super) groups: Groups,
    pub(super) keys: Keys,
    pub(super) counts: Counts,
    messages: Recent<Arc<Message>>,
    by_id: HashMap<String, Record>,
    known: Known,
    /// Messages that wait for those before them. A queue is here as long as it is worked on.
    queues: HashMap<String, VecDeque<Arc<Message>>>,
    seen: Recent<Seen>,
    log: Recent<Entry>,
}

struct Record {
    message: Arc<Message>,
    ended_at: Option<Timestamp>,
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
            messages: Recent::new(MAX_MESSAGES, MAX_MESSAGE_BYTES),
            by_id: HashMap::new(),
            known: Known::default(),
            queues: HashMap::new(),
            seen: Recent::new(MAX_SEEN, usize::MAX),
            log: Recent::new(MAX_LOG, usize::MAX),
        }
    }

    /// Accepts a message for each endpoint, or recognises a duplicate. What there is to
    /// deliver is added to `jobs`.
    pub(super) fn accept(
        &mut self,
        draft: Draft,
        now: Timestamp,
        jobs: &mut Vec<Job>,
    ) -> Vec<Arc<Message>> {
        let key = deduplication_key(&draft);
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
                jobs.extend(self.job(message));
            }
        }
        messages
    }

    fn remember(&mut self, message: &Arc<Message>) {
        if !message.deduplicated {
            let record = Record {
                message: Arc::clone(message),
                ended_at: None,
            };
            self.by_id.insert(message.id.clone(), record);
        }
        // The bodies of one fan-out are one, but counting them as many is on the safe side.
        let gone = self.messages.push(Arc::clone(message), message.body.len());
        for message in gone {
            self.by_id.remove(&message.id);
        }
    }

    /// The work that a new message makes: none where its queue is being worked on.
    fn job(&mut self, message: &Arc<Message>) -> Option<Job> {
        let Some(name) = &message.queue else {
            return Some(Job::Message(Arc::clone(message)));
        };
        if let Some(waiting) = self.queues.get_mut(name) {
            // A queue goes on once the callbacks of a message are through as well.
            if message.callback_of.is_some() {
                waiting.push_front(Arc::clone(message));
            } else {
                waiting.push_back(Arc::clone(message));
            }
            return None;
        }
        let waiting = VecDeque::from([Arc::clone(message)]);
        self.queues.insert(name.clone(), waiting);
        Some(Job::Queue(name.clone()))
    }

    /// The next message of a queue; once there is none, its work has ended.
    pub(super) fn next_in_queue(&mut self, name: &str) -> Option<Arc<Message>> {
        let next = self.queues.get_mut(name)?.pop_front();
        if next.is_none() {
            self.queues.remove(name);
        }
        next
    }

    /// Notes a step in the life of a message.
    pub(super) fn record(&mut self, message: &Message, progress: Progress, now: Timestamp) {
        if message.deduplicated {
            return; // the logs tell of the message that it repeats
        }
        match progress {
            Progress::Delivered { .. } => self.counts.delivered += 1,
            Progress::Failed { .. } => self.counts.failed += 1,
            Progress::Created | Progress::Active { .. } | Progress::Retry { .. } => {}
        }
        let has_ended = matches!(
            progress,
            Progress::Delivered { .. } | Progress::Failed { .. }
        );
        if let (true, Some(record)) = (has_ended, self.by_id.get_mut(&message.id)) {
            record.ended_at = Some(now);
        }
        let entry = Entry {
            at: now,
            message_id: message.id.clone(),
            progress,
        };
        self.log.push(entry, 0);
    }

    pub(super) fn saw(&mut self, seen: Seen) {
        self.seen.push(seen, 0);
    }

    /// A message that is on its way, or ended a moment ago.
    pub(super) fn message(&self, id: &str, now: Timestamp) -> Option<&Arc<Message>> {
        let record = self.by_id.get(id)?;
        let is_readable = record
            .ended_at
            .is_none_or(|ended_at| now.since(ended_at) < READABLE);
        is_readable.then_some(&record.message)
    }

    /// The log, newest first, of messages that are still remembered.
    pub(super) fn log(&self) -> impl Iterator<Item = (&Entry, &Arc<Message>)> {
        self.log.iter().rev().filter_map(|entry| {
            let record = self.by_id.get(&entry.message_id)?;
            Some((entry, &record.message))
        })
    }

    pub(super) fn messages(&self) -> Vec<Arc<Message>> {
        self.messages.iter().cloned().collect()
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.iter().cloned().collect()
    }
}

/// By what a duplicate is recognised. An id serves for the whole account: whether QStash
/// looks at the destination too is not documented, and this is the stricter reading.
fn deduplication_key(draft: &Draft) -> Option<String> {
    if let Some(id) = &draft.options.deduplication_id {
        return Some(id.clone());
    }
    if !draft.options.content_based_deduplication {
        return None;
    }
    let mut context = digest::Context::new(&digest::SHA256);
    let mut add = |part: &[u8]| {
        // With its length, so that no part can pass for the end of another.
        context.update(&part.len().to_le_bytes());
        context.update(part);
    };
    let (Destination::Url(destination) | Destination::Group(destination)) = &draft.destination;
    add(destination.as_bytes());
    add(&draft.body);
    for (name, value) in &draft.headers {
        add(name.as_str().as_bytes());
        add(value.as_bytes());
    }
    // An id has no colon: the two kinds of key never meet.
    let digest = URL_SAFE_NO_PAD.encode(context.finish());
    Some(format!("content:{digest}"))
}

#[derive(Clone)]
struct Named {
    id: String,
    endpoint: Endpoint,
}

/// The deduplication ids of the last ten minutes, and the messages that had them.
#[derive(Default)]
struct Known {
    named: HashMap<String, Vec<Named>>,
    by_age: VecDeque<(Timestamp, String)>,
}

impl Known {
    fn get(&mut self, key: &str, now: Timestamp) -> Option<Vec<Named>> {
        while let Some((at, key)) = self.by_age.front() {
            if now.since(*at) < DEDUPLICATION {
                break;
            }
            self.named.remove(key);
            self.by_age.pop_front();
        }
        self.named.get(key).cloned()
    }

    fn insert(&mut self, key: String, named: Vec<Named>, now: Timestamp) {
        self.by_age.push_back((now, key.clone()));
        self.named.insert(key, named);
    }
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
        let third = publish(NOW.plus(DEDUPLICATION));
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
        assert!(matches!(jobs.as_slice(), [Job::Queue(_)]));
        for body in ["1", "2", "3"] {
            assert_eq!(state.next_in_queue("q").unwrap().body, body);
        }
        assert!(state.next_in_queue("q").is_none());
        let mut draft = draft("4", None);
        draft.queue = Some("q".into());
        state.accept(draft, NOW, &mut jobs);
        assert_eq!(jobs.len(), 2, "the work on it starts again");
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
