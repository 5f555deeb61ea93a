//! Flow control: how many deliveries of a key may run at a time, and how many may start in a
//! period. Each attempt counts, retries too.
//!
//! No I/O, and the time is an argument: `delivery` waits for its turn and tells when it has
//! ended.
//! See <https://upstash.com/docs/qstash/features/flowcontrol>.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::oneshot;

use super::options::FlowControl;
use crate::clock::Timestamp;

/// Keys that are remembered; beyond it, those that nobody waits for are forgotten.
const MAX_KEYS: usize = 10_000;

/// All keys.
#[derive(Default)]
pub(super) struct Flows(BTreeMap<String, Flow>);

/// What is known of a key.
struct Flow {
    parallelism: Option<u32>,
    rate: Option<u32>,
    period: Duration,
    is_pinned_parallelism: bool,
    is_pinned_rate: bool,
    is_paused: bool,
    /// Deliveries that run.
    active: u32,
    /// Deliveries that began in this period.
    started: u32,
    period_start: Timestamp,
    /// In the order in which they came. Who hung up is passed over.
    waiting: VecDeque<oneshot::Sender<()>>,
    /// Whether somebody looks again when the period is over.
    is_watched: bool,
}

/// Limits that hold whatever messages say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pin {
    pub(super) parallelism: Option<u32>,
    pub(super) rate: Option<u32>,
    pub(super) period: Option<Duration>,
}

impl Flows {
    /// Takes over the limits of a message that was accepted: the latest say what holds,
    /// unless it is pinned.
    pub(super) fn configure(&mut self, wanted: &FlowControl, now: Timestamp) {
        let flow = self.entry(&wanted.key, now);
        if !flow.is_pinned_parallelism {
            flow.parallelism = wanted.parallelism;
        }
        if !flow.is_pinned_rate {
            (flow.rate, flow.period) = (wanted.rate, wanted.period);
        }
    }

    /// Asks for a delivery to begin: what to wait for. Followed by [`admit`](Self::admit).
    pub(super) fn enter(&mut self, key: &str, now: Timestamp) -> oneshot::Receiver<()> {
        let (go, turn) = oneshot::channel();
        self.entry(key, now).waiting.push_back(go);
        turn
    }

    /// A delivery has ended. Followed by [`admit`](Self::admit).
    pub(super) fn leave(&mut self, key: &str) {
        if let Some(flow) = self.0.get_mut(key) {
            flow.active = flow.active.saturating_sub(1);
        }
    }

    /// Lets begin what may. When it is the rate that stops the others, and nobody else looks
    /// again: when to, with [`look_again`](Self::look_again).
    pub(super) fn admit(&mut self, key: &str, now: Timestamp) -> Option<Timestamp> {
        let flow = self.0.get_mut(key)?;
        flow.admit(now);
        let is_late = flow.is_paused || flow.waiting.is_empty() || flow.is_watched;
        if is_late || flow.rate.is_none_or(|rate| flow.started < rate) {
            return None;
        }
        flow.is_watched = true;
        Some(flow.period_end())
    }

    /// As [`admit`](Self::admit), for whoever was told to look again.
    pub(super) fn look_again(&mut self, key: &str, now: Timestamp) -> Option<Timestamp> {
        if let Some(flow) = self.0.get_mut(key) {
            flow.is_watched = false;
        }
        self.admit(key, now)
    }

    /// Pauses a key or resumes it. Followed by [`admit`](Self::admit), as is all below.
    pub(super) fn pause(&mut self, key: &str, is_paused: bool, now: Timestamp) {
        self.entry(key, now).is_paused = is_paused;
    }

    /// Fixes limits; the count of the rate begins anew.
    pub(super) fn pin(&mut self, key: &str, pin: Pin, now: Timestamp) {
        let flow = self.entry(key, now);
        if let Some(parallelism) = pin.parallelism {
            flow.parallelism = Some(parallelism);
            flow.is_pinned_parallelism = true;
        }
        if let Some(rate) = pin.rate {
            flow.rate = Some(rate);
            flow.period = pin.period.unwrap_or(flow.period);
            flow.is_pinned_rate = true;
        }
        (flow.started, flow.period_start) = (0, now);
    }

    /// Lets messages say again what holds. Until one does, it stays as it is.
    pub(super) fn unpin(&mut self, key: &str, parallelism: bool, rate: bool) {
        if let Some(flow) = self.0.get_mut(key) {
            flow.is_pinned_parallelism &= !parallelism;
            flow.is_pinned_rate &= !rate;
        }
    }

    /// Begins a new period.
    pub(super) fn reset_rate(&mut self, key: &str, now: Timestamp) {
        if let Some(flow) = self.0.get_mut(key) {
            (flow.started, flow.period_start) = (0, now);
        }
    }

    /// A key, as the API shows it.
    pub(super) fn describe(&self, key: &str, now: Timestamp) -> Option<Value> {
        self.0.get(key).map(|flow| flow.describe(key, now))
    }

    /// The keys whose name contains `search`, as the API shows them.
    pub(super) fn list(&self, search: &str, now: Timestamp) -> Value {
        let found = self.0.iter().filter(|(key, _)| key.contains(search));
        found.map(|(key, flow)| flow.describe(key, now)).collect()
    }

    fn entry(&mut self, key: &str, now: Timestamp) -> &mut Flow {
        if self.0.len() >= MAX_KEYS && !self.0.contains_key(key) {
            self.0
                .retain(|_, flow| flow.is_busy() || flow.is_set_by_hand());
            if self.0.len() >= MAX_KEYS {
                self.0.retain(|_, flow| flow.is_busy());
            }
        }
        self.0.entry(key.to_owned()).or_insert_with(|| Flow {
            parallelism: None,
            rate: None,
            period: Duration::from_secs(1),
            is_pinned_parallelism: false,
            is_pinned_rate: false,
            is_paused: false,
            active: 0,
            started: 0,
            period_start: now,
            waiting: VecDeque::new(),
            is_watched: false,
        })
    }
}

impl Flow {
    fn admit(&mut self, now: Timestamp) {
        if now >= self.period_end() {
            (self.started, self.period_start) = (0, now);
        }
        while !self.is_paused
            && self.rate.is_none_or(|rate| self.started < rate)
            && self.parallelism.is_none_or(|most| self.active < most)
            && let Some(go) = self.waiting.pop_front()
        {
            if go.send(()).is_ok() {
                self.active += 1;
                self.started += 1;
            }
        }
    }

    fn period_end(&self) -> Timestamp {
        self.period_start.plus(self.period)
    }

    fn is_busy(&self) -> bool {
        self.active > 0 || !self.waiting.is_empty()
    }

    fn is_set_by_hand(&self) -> bool {
        self.is_paused || self.is_pinned_parallelism || self.is_pinned_rate
    }

    fn describe(&self, key: &str, now: Timestamp) -> Value {
        let mut fields = Map::new();
        let mut set = |name: &str, value: Value| {
            fields.insert(name.to_owned(), value);
        };
        set("flowControlKey", key.into());
        set("waitListSize", self.waiting.len().into());
        set("parallelismCount", self.active.into());
        if let Some(parallelism) = self.parallelism {
            set("parallelismMax", parallelism.into());
        }
        if let Some(rate) = self.rate {
            let is_over = now >= self.period_end();
            set("rateMax", rate.into());
            set("rateCount", if is_over { 0 } else { self.started }.into());
            set("ratePeriod", self.period.as_secs().into());
            set("ratePeriodStart", self.period_start.as_secs().into());
        }
        set("isPinnedParallelism", self.is_pinned_parallelism.into());
        set("isPinnedRate", self.is_pinned_rate.into());
        set("isPaused", self.is_paused.into());
        Value::Object(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_763_900_000_000);
    const PERIOD: Duration = Duration::from_secs(60);

    fn flows(parallelism: Option<u32>, rate: Option<u32>) -> Flows {
        let mut flows = Flows::default();
        let wanted = FlowControl {
            key: "k".into(),
            parallelism,
            rate,
            period: PERIOD,
        };
        flows.configure(&wanted, NOW);
        flows
    }

    /// How many of these may begin.
    fn begun(turns: &mut [oneshot::Receiver<()>]) -> usize {
        turns
            .iter_mut()
            .filter_map(|turn| turn.try_recv().ok())
            .count()
    }

    #[test]
    fn no_more_run_at_a_time_than_may() {
        let mut flows = flows(Some(2), None);
        let mut turns: Vec<_> = (0..4).map(|_| flows.enter("k", NOW)).collect();
        assert_eq!(flows.admit("k", NOW), None, "only an end lets others begin");
        assert_eq!(begun(&mut turns), 2);
        flows.leave("k");
        flows.admit("k", NOW);
        assert_eq!(begun(&mut turns), 1);
        let described = flows.describe("k", NOW).unwrap();
        assert_eq!(described["waitListSize"], 1);
        assert_eq!(described["parallelismCount"], 2);
        assert_eq!(described["parallelismMax"], 2);
        assert_eq!(described.get("rateMax"), None);
    }

    #[test]
    fn no_more_begin_in_a_period_than_may() {
        let mut flows = flows(None, Some(2));
        let mut turns: Vec<_> = (0..5).map(|_| flows.enter("k", NOW)).collect();
        let end = NOW.plus(PERIOD);
        assert_eq!(flows.admit("k", NOW), Some(end));
        assert_eq!(flows.admit("k", NOW), None, "somebody looks again already");
        assert_eq!(begun(&mut turns), 2);
        flows.leave("k");
        flows.leave("k");
        flows.admit("k", NOW.plus(PERIOD / 2));
        assert_eq!(begun(&mut turns), 0, "their end changes nothing");
        assert_eq!(flows.look_again("k", end), Some(end.plus(PERIOD)));
        assert_eq!(begun(&mut turns), 2);
        flows.reset_rate("k", end);
        flows.admit("k", end);
        assert_eq!(begun(&mut turns), 1);
    }

    #[test]
    fn a_paused_key_lets_nothing_begin() {
        let mut flows = flows(Some(9), None);
        flows.pause("k", true, NOW);
        let mut turns = [flows.enter("k", NOW)];
        flows.admit("k", NOW);
        assert_eq!(begun(&mut turns), 0);
        flows.pause("k", false, NOW);
        flows.admit("k", NOW);
        assert_eq!(begun(&mut turns), 1);
    }

    #[test]
    fn a_pin_wins_over_what_messages_say_until_it_is_taken_away() {
        let mut flows = flows(Some(1), Some(1));
        let pin = Pin {
            parallelism: Some(3),
            ..Pin::default()
        };
        flows.pin("k", pin, NOW);
        let said = FlowControl {
            key: "k".into(),
            parallelism: Some(7),
            rate: Some(7),
            period: PERIOD,
        };
        let limits = |flows: &Flows| {
            let described = flows.describe("k", NOW).unwrap();
            [&described["parallelismMax"], &described["rateMax"]].map(|n| n.as_i64().unwrap())
        };
        flows.configure(&said, NOW);
        assert_eq!(limits(&flows), [3, 7]);
        flows.unpin("k", false, true);
        flows.configure(&said, NOW);
        assert_eq!(limits(&flows), [3, 7], "the other one was pinned");
        flows.unpin("k", true, false);
        assert_eq!(limits(&flows), [3, 7]);
        flows.configure(&said, NOW);
        assert_eq!(limits(&flows), [7, 7]);
    }

    #[test]
    fn who_hung_up_takes_no_turn() {
        let mut flows = flows(Some(1), None);
        drop(flows.enter("k", NOW));
        let mut turns = [flows.enter("k", NOW)];
        flows.admit("k", NOW);
        assert_eq!(begun(&mut turns), 1);
    }

    #[test]
    fn idle_keys_are_forgotten_when_there_are_too_many() {
        let mut flows = Flows::default();
        let _waits = flows.enter("busy", NOW);
        flows.pause("paused", true, NOW);
        for n in 0..MAX_KEYS {
            flows.enter(&format!("k{n}"), NOW);
            flows.admit(&format!("k{n}"), NOW);
        }
        assert!(flows.0.len() <= MAX_KEYS);
        assert!(flows.describe("busy", NOW).is_some());
        assert!(flows.describe("paused", NOW).is_some());
    }
}
