//! The head of the backlog, in memory, and the order of each document. Pure; time is an
//! argument.
//!
//! Invariant: of one document, no event goes out while an earlier one that is known here is
//! out or waits. Events of different documents overtake each other freely.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use crate::buffer::{Pending, Seq};
use crate::destination::Destination;
use crate::event::DocumentKey;

/// Most events in one request: more would make the first of them wait for the last.
pub(super) const MAX_BATCH: usize = 100;

/// Most bytes of bodies in one batch. A message of the free plan may have as many.
const MAX_BATCH_BYTES: u64 = 1 << 20;

/// An event that is to be published.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) event: Pending,
    pub(super) destination: Destination,
    pub(super) key: Option<DocumentKey>,
    /// Not before this.
    pub(super) due: Option<Instant>,
    /// How many events it may share a request with. Halved when a request of several broke
    /// the connection: the one that breaks it ends up alone.
    pub(super) largest_batch: usize,
    /// How often it failed alone, while others passed.
    pub(super) failures: u32,
    /// In how many of them the connection broke, and broke for it alone.
    pub(super) strikes: u32,
    /// The forwarder's count of accepted messages when it last failed alone.
    pub(super) passed_at_failure: u64,
    /// The forwarder's count of broken requests then.
    pub(super) broken_at_failure: u64,
}

impl Entry {
    pub(super) fn new(event: Pending, destination: Destination) -> Self {
        let key = event.facts.document_key();
        let largest_batch = if event.is_text { MAX_BATCH } else { 1 };
        Self {
            event,
            destination,
            key,
            due: None,
            largest_batch,
            failures: 0,
            strikes: 0,
            passed_at_failure: 0,
            broken_at_failure: 0,
        }
    }

    pub(super) fn seq(&self) -> Seq {
        self.event.seq
    }

    /// What its body takes in memory while it is out: a large one is never there as a whole.
    pub(super) fn bytes_out(&self) -> u64 {
        self.event.size.min(MAX_BATCH_BYTES)
    }
}

impl Entry {
    /// It failed alone, for no reason of its own that is known: with the counts of accepted
    /// messages and of broken requests until then.
    pub(super) fn fail(&mut self, broke: bool, passed: u64, broken: u64) {
        if self.failures > 0 && self.passed_at_failure == passed {
            return; // nothing passed meanwhile: all fail
        }
        // A way that breaks requests of others too breaks this one for no fault of its own.
        self.strikes +=
            u32::from(broke && (self.failures == 0 || self.broken_at_failure == broken));
        self.failures += 1;
        self.passed_at_failure = passed;
        self.broken_at_failure = broken;
    }
}

#[derive(Debug, Default)]
pub(super) struct Window {
    waiting: BTreeMap<Seq, Entry>,
    /// How many of them wait for a time: mostly none, and all need not be looked at for it.
    timed: usize,
    /// Out, or settled but not on disk yet: a read of the buffer still finds them pending.
    out: HashSet<Seq>,
    documents_out: HashMap<DocumentKey, usize>,
}

impl Window {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn knows(&self, seq: Seq) -> bool {
        self.waiting.contains_key(&seq) || self.out.contains(&seq)
    }

    pub(super) fn is_out(&self, seq: Seq) -> bool {
        self.out.contains(&seq)
    }

    /// Takes an event in, or back after an attempt that did not settle it.
    pub(super) fn insert(&mut self, entry: Entry) {
        self.out.remove(&entry.seq());
        self.timed += usize::from(entry.due.is_some());
        let before = self.waiting.insert(entry.seq(), entry);
        self.timed -= usize::from(before.is_some_and(|entry| entry.due.is_some()));
    }

    /// An event that was fetched to be tried now, past those that wait.
    pub(super) fn take_out(&mut self, entry: &Entry) {
        self.remove(entry.seq());
        self.mark_out(entry);
    }

    /// The attempt is over: later events of its document may go. The seq stays known until
    /// [`Self::forget`] or [`Self::insert`].
    pub(super) fn attempt_over(&mut self, key: Option<DocumentKey>) {
        let Some(key) = key else { return };
        if let Some(count) = self.documents_out.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.documents_out.remove(&key);
            }
        }
    }

    /// The outcome is on disk, or the event is gone, or it is left to the disk.
    pub(super) fn forget(&mut self, seq: Seq) {
        self.out.remove(&seq);
    }

    /// Takes away what waits for a destination that is held: it stays on disk.
    pub(super) fn remove_for(&mut self, destination: &str) {
        self.waiting
            .retain(|_, entry| entry.event.address.destination != destination);
        let timed = self.waiting.values().filter(|entry| entry.due.is_some());
        self.timed = timed.count();
    }

    /// Takes away what is too old.
    pub(super) fn take_older(&mut self, is_old: impl Fn(&Pending) -> bool) -> Vec<Entry> {
        let old: Vec<Seq> = self
            .waiting
            .values()
            .filter(|entry| is_old(&entry.event))
            .map(Entry::seq)
            .collect();
        old.into_iter().filter_map(|seq| self.take(seq)).collect()
    }

    /// The next request: the first event that may go, and as many after it as fit.
    pub(super) fn take_batch(&mut self, can_batch: bool, now: Instant) -> Vec<Entry> {
        let mut chosen: Vec<Seq> = Vec::new();
        let (mut most, mut bytes) = (MAX_BATCH, 0);
        for entry in self.eligible(now) {
            if chosen.is_empty() {
                most = if can_batch { entry.largest_batch } else { 1 };
            } else if chosen.len() >= entry.largest_batch
                || bytes + entry.event.size > MAX_BATCH_BYTES
            {
                // It cannot join, and so nothing later of its document may: the batch ends here.
                break;
            }
            chosen.push(entry.seq());
            bytes += entry.event.size;
            most = most.min(entry.largest_batch);
            if chosen.len() >= most {
                break;
            }
        }
        chosen
            .into_iter()
            .filter_map(|seq| self.take(seq))
            .collect()
    }

    /// The one event to find out with whether QStash takes events: the one that failed least.
    pub(super) fn take_trial(&mut self, now: Instant) -> Option<Entry> {
        let seq = self
            .eligible_alone(now)
            .min_by_key(|entry| (entry.failures, entry.seq()))
            .map(Entry::seq)?;
        self.take(seq)
    }

    /// When the next event that waits for its time may go.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        if self.timed == 0 {
            return None;
        }
        self.waiting
            .values()
            .filter_map(|entry| entry.due)
            .filter(|due| *due > now)
            .min()
    }

    /// Events that may go out now in one request, in order. Several of one document may go
    /// together, since a batch keeps their order.
    fn eligible(&self, now: Instant) -> impl Iterator<Item = &Entry> {
        let mut blocked: HashSet<DocumentKey> = HashSet::new();
        self.waiting.values().filter(move |entry| {
            let Some(key) = entry.key else {
                return entry.is_due(now);
            };
            if blocked.contains(&key) || self.documents_out.contains_key(&key) {
                return false;
            }
            let due = entry.is_due(now);
            if !due {
                blocked.insert(key);
            }
            due
        })
    }

    /// Events that may go out now alone: the first of each document.
    fn eligible_alone(&self, now: Instant) -> impl Iterator<Item = &Entry> {
        let mut seen: HashSet<DocumentKey> = HashSet::new();
        self.eligible(now)
            .filter(move |entry| entry.key.is_none_or(|key| seen.insert(key)))
    }

    fn take(&mut self, seq: Seq) -> Option<Entry> {
        let entry = self.remove(seq)?;
        self.mark_out(&entry);
        Some(entry)
    }

    fn remove(&mut self, seq: Seq) -> Option<Entry> {
        let entry = self.waiting.remove(&seq)?;
        self.timed -= usize::from(entry.due.is_some());
        Some(entry)
    }

    fn mark_out(&mut self, entry: &Entry) {
        self.out.insert(entry.seq());
        if let Some(key) = entry.key {
            *self.documents_out.entry(key).or_default() += 1;
        }
    }
}

impl Entry {
    fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| due <= now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::buffer::Address;
    use crate::clock::Timestamp;
    use crate::event::{Document, EventId, Facts};

    fn entry(seq: i64, document: &str) -> Entry {
        let document = (!document.is_empty()).then(|| Document {
            id: document.to_owned(),
            is_document_id: true,
            locale: None,
        });
        let event = Pending {
            seq: Seq::from_raw(seq),
            id: EventId::new(),
            received_at: Timestamp::default(),
            facts: Facts {
                kind: "entry.update".into(),
                document,
                ..Facts::default()
            },
            address: Address {
                destination: "news".into(),
                options: String::new(),
            },
            size: 1000,
            is_text: true,
            attempts: 0,
            replays: 0,
            due_at: Timestamp::default(),
        };
        Entry::new(event, "news".parse().unwrap())
    }

    fn window(documents: &[&str]) -> Window {
        let mut window = Window::default();
        for (seq, document) in (1..).zip(documents) {
            window.insert(entry(seq, document));
        }
        window
    }

    fn seqs(entries: &[Entry]) -> Vec<i64> {
        entries.iter().map(|entry| entry.seq().raw()).collect()
    }

    #[test]
    fn one_alone_goes_alone_and_more_go_together_in_order() {
        let now = Instant::now();
        assert_eq!(seqs(&window(&["a"]).take_batch(true, now)), [1]);
        assert_eq!(
            seqs(&window(&["a", "b", "a", ""]).take_batch(true, now)),
            [1, 2, 3, 4]
        );
        assert_eq!(seqs(&window(&["a", "b"]).take_batch(false, now)), [1]);
    }

    #[test]
    fn an_event_waits_for_the_one_of_its_document_that_is_out() {
        let now = Instant::now();
        let mut window = window(&["a", "b", "a", "c"]);
        let out = window.take_batch(false, now);
        assert_eq!(seqs(&out), [1]);
        assert_eq!(seqs(&window.take_batch(true, now)), [2, 4]);
        assert!(window.take_batch(true, now).is_empty());
        window.attempt_over(out[0].key);
        assert_eq!(seqs(&window.take_batch(true, now)), [3]);
    }

    #[test]
    fn an_event_that_waits_for_its_time_holds_back_its_document_only() {
        let now = Instant::now();
        let mut window = window(&["a", "b", "a"]);
        let mut first = window.take_batch(false, now).remove(0);
        first.due = Some(now + Duration::from_secs(1));
        window.attempt_over(first.key);
        window.insert(first);
        assert_eq!(window.next_due(now), Some(now + Duration::from_secs(1)));
        assert_eq!(seqs(&window.take_batch(true, now)), [2]);
        assert_eq!(
            seqs(&window.take_batch(true, now + Duration::from_secs(1))),
            [1, 3]
        );
    }

    #[test]
    fn batches_are_bounded_by_count_and_bytes() {
        let now = Instant::now();
        let mut many = window(&vec![""; 250]);
        assert_eq!(many.take_batch(true, now).len(), MAX_BATCH);
        let mut large = Window::default();
        for seq in 1..=3 {
            let mut entry = entry(seq, "");
            entry.event.size = MAX_BATCH_BYTES / 2;
            large.insert(entry);
        }
        assert_eq!(seqs(&large.take_batch(true, now)), [1, 2]);
        let mut huge = Window::default();
        let mut one = entry(1, "");
        one.event.size = 30 << 20;
        huge.insert(one);
        huge.insert(entry(2, ""));
        assert_eq!(seqs(&huge.take_batch(true, now)), [1]);
    }

    #[test]
    fn what_is_no_text_or_broke_a_batch_goes_in_smaller_company() {
        let now = Instant::now();
        let mut window = window(&["", "", "", ""]);
        let mut second = window.take_batch(true, now).remove(1);
        second.largest_batch = 1;
        window.attempt_over(second.key);
        window.insert(second);
        for seq in [1, 3] {
            window.insert(entry(seq, ""));
        }
        assert_eq!(seqs(&window.take_batch(true, now)), [1]);
        assert_eq!(seqs(&window.take_batch(true, now)), [2]);
        assert_eq!(seqs(&window.take_batch(true, now)), [3]);
    }

    #[test]
    fn only_an_event_that_breaks_the_connection_while_no_other_does_gets_strikes() {
        let mut poison = entry(1, "a");
        for passed in 0..5 {
            poison.fail(true, passed, 0);
            poison.fail(true, passed, 0); // nothing passed since
        }
        assert_eq!(poison.strikes, 5);
        let (mut unlucky, mut refused) = (entry(2, "b"), entry(3, "c"));
        for n in 0..50 {
            unlucky.fail(true, n, n);
            refused.fail(false, n, 0);
        }
        assert_eq!((unlucky.strikes, refused.strikes), (1, 0));
    }

    #[test]
    fn the_trial_is_the_one_that_failed_least() {
        let now = Instant::now();
        let mut window = window(&["a", "b", "a"]);
        let mut first = window.take_batch(false, now).remove(0);
        first.failures = 1;
        window.attempt_over(first.key);
        window.insert(first);
        assert_eq!(window.take_trial(now).unwrap().seq().raw(), 2);
        assert_eq!(window.take_trial(now).unwrap().seq().raw(), 1);
        assert!(
            window.take_trial(now).is_none(),
            "the third waits for the first"
        );
    }

    #[test]
    fn an_event_is_known_until_its_outcome_is_on_disk() {
        let now = Instant::now();
        let mut window = window(&["a"]);
        let out = window.take_batch(true, now).remove(0);
        window.attempt_over(out.key);
        assert!(window.knows(out.seq()));
        window.forget(out.seq());
        assert!(!window.knows(out.seq()));
    }
}
