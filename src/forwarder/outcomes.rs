//! What becomes of events after a request: each outcome turned into a settlement, a wait or a
//! hold, and told to whoever operates the sidecar.

use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::breaker::{Cause, Change};
use super::publish::{Attempt, Published, Tried};
use super::window::Entry;
use super::{BUFFER_PAUSE, Forwarder, Hold, State, backoff};
use crate::buffer::{Settlement, Verdict};
use crate::clock;
use crate::destination::for_log;
use crate::qstash::Outcome;

/// How often an event may break the connection alone, while others pass, before it is a
/// dead letter. Only this counts: a QStash that answers 500 to every other request, or a
/// network that cuts most of them, must not bury anything.
const MAX_STRIKES: u32 = 5;

impl Forwarder {
    /// Takes in what a request brought.
    pub(super) fn published(&self, state: &mut State, published: Published) {
        state.requests -= 1;
        if !published.took.is_zero() {
            self.metrics.publish_seconds.observe(published.took);
        }
        let now = Instant::now();
        let alone = published.size == 1;
        let mut settlements = Vec::with_capacity(published.size);
        let mut stopped: Option<(Cause, Option<Duration>, String)> = None;
        let (mut reached, mut any_broke) = (false, false);
        if !published.readable {
            state.paused_until = Some(now + BUFFER_PAUSE);
        }
        for (mut entry, tried) in published.tried {
            state.window.attempt_over(entry.key);
            state.bytes_out -= entry.bytes_out();
            let outcome = match tried {
                Tried::Yes(outcome) => outcome,
                Tried::No => {
                    state.put_back(entry);
                    continue;
                }
                Tried::Unread => {
                    entry.due = Some(now + BUFFER_PAUSE);
                    state.put_back(entry);
                    continue;
                }
                Tried::Gone => {
                    state.window.forget(entry.seq());
                    continue;
                }
            };
            reached |= outcome.is_about_the_message();
            let failure = match outcome {
                Outcome::Accepted {
                    message_ids,
                    duplicate,
                } => {
                    state.passed += 1;
                    self.delivered(&entry, &message_ids, duplicate, published.took);
                    settlements.push(settle_one(&entry, Verdict::Delivered { message_ids }));
                    if let Attempt::Held(destination) = &published.attempt {
                        self.release(state, destination);
                    }
                    continue;
                }
                Outcome::Rejected { reason } => {
                    self.metrics.dead_rejected.add();
                    settlements.push(bury(&entry, reason));
                    continue;
                }
                Outcome::TooLarge { reason } => {
                    self.metrics.dead_too_large.add();
                    let reason = format!(
                        "too large for the QStash plan with {} bytes. {reason}",
                        entry.event.size
                    );
                    settlements.push(bury(&entry, reason));
                    continue;
                }
                Outcome::UnknownDestination { reason } => {
                    settlements.push(postpone(&entry, Duration::ZERO, &reason));
                    self.hold(state, &entry, &reason, now);
                    state.window.forget(entry.seq());
                    continue;
                }
                Outcome::Unauthorized { reason, .. } => (Cause::Unauthorized, None, reason),
                Outcome::Limited { wait, reason, .. } => (Cause::Limited, wait, reason),
                Outcome::Unreachable {
                    wait,
                    broke,
                    reason,
                } => {
                    entry.largest_batch = (entry.largest_batch.min(published.size) / 2).max(1);
                    let is_new = broke && entry.failures == 0;
                    any_broke |= is_new;
                    if alone {
                        // Its own failure is no sign of anything else.
                        entry.fail(broke, state.passed, state.broken + u64::from(is_new));
                    }
                    if entry.strikes >= MAX_STRIKES {
                        self.metrics.dead_poison.add();
                        let reason = format!(
                            "broke the connection {MAX_STRIKES} times while other events passed. {reason}"
                        );
                        settlements.push(bury(&entry, reason));
                        continue;
                    }
                    (Cause::Unreachable, wait, reason)
                }
            };
            let wait = match failure.0 {
                // It goes behind the others for a while, or it would open the breaker anew.
                Cause::Unreachable if entry.failures > 1 => backoff::wait(entry.failures, 1.0),
                _ => Duration::ZERO,
            };
            entry.due = (!wait.is_zero()).then(|| now + wait);
            settlements.push(postpone(&entry, wait, &failure.2));
            state.put_back(entry);
            stopped = Some(failure);
        }
        state.broken += u64::from(any_broke);
        if let Attempt::Held(destination) = &published.attempt
            && let Some(hold) = state.holds.get_mut(destination)
        {
            hold.trying = false;
        }
        self.step_breaker(
            state,
            stopped,
            reached,
            &published.attempt,
            published.took,
            now,
        );
        self.settle(state, settlements);
    }

    fn step_breaker(
        &self,
        state: &mut State,
        stopped: Option<(Cause, Option<Duration>, String)>,
        reached: bool,
        attempt: &Attempt,
        took: Duration,
        now: Instant,
    ) {
        match stopped {
            Some((cause, wait, reason)) => {
                self.metrics.publishes_failed.add();
                match state.breaker.failed(cause, wait, fastrand::f64(), now) {
                    Change::Opened | Change::CauseChanged => {
                        match cause {
                            Cause::Unreachable => {
                                warn!(reason, "QStash is unreachable, events are kept")
                            }
                            Cause::Unauthorized => {
                                error!(reason, "QStash refuses the token, events are kept")
                            }
                            Cause::Limited => warn!(
                                reason,
                                retry_in_ms = wait.map(millis),
                                "QStash takes no more for now, events are kept"
                            ),
                        }
                        self.flow.send_modify(|flow| {
                            if flow.stopped.is_none() {
                                flow.since = clock::now();
                            }
                            flow.stopped = Some((cause, reason));
                        });
                    }
                    Change::None | Change::Closed => debug!(reason, "Publish failed, will retry"),
                }
            }
            None if reached => {
                self.metrics.publishes_ok.add();
                if state.breaker.succeeded(took) == Change::Closed {
                    info!("QStash takes events again");
                    self.flow.send_modify(|flow| {
                        flow.stopped = None;
                        flow.since = clock::now();
                    });
                }
            }
            // Nothing was tried: its event was gone.
            None if !matches!(attempt, Attempt::Flow) => state.breaker.trial_void(now),
            None => {}
        }
    }

    /// One line for each delivered event.
    fn delivered(&self, entry: &Entry, message_ids: &[String], duplicate: bool, took: Duration) {
        self.metrics.delivered.add();
        self.metrics.delivered_minutes.add();
        if duplicate {
            self.metrics.duplicates.add();
        }
        let event = &entry.event;
        info!(
            event.id = %event.id,
            event.kind = event.facts.kind,
            event.model = event.facts.model,
            destination = %event.address.for_log(),
            attempt = event.attempts + 1,
            elapsed_ms = millis(took),
            message_id = message_ids.join(","),
            duplicate,
            "Delivered",
        );
    }

    fn hold(&self, state: &mut State, entry: &Entry, reason: &str, now: Instant) {
        let destination = &entry.event.address.destination;
        let hold = Hold {
            until: now + self.settings.hold,
            trying: false,
        };
        if state.holds.insert(destination.clone(), hold).is_none() {
            error!(
                destination = %entry.event.address.for_log(),
                reason,
                "Destination does not exist, its events are kept; create it, or change the route"
            );
            self.tell_holds(state);
        }
        state.window.remove_for(destination);
    }

    /// A destination takes events again: those on disk that were passed over come in.
    pub(super) fn release(&self, state: &mut State, destination: &str) {
        if state.holds.remove(destination).is_some() {
            info!(
                destination = %for_log(destination),
                "Destination takes events again"
            );
            state.rewind();
            self.tell_holds(state);
        }
    }

    fn tell_holds(&self, state: &State) {
        let mut held: Vec<String> = state.holds.keys().cloned().collect();
        held.sort();
        self.flow.send_modify(|flow| flow.held = held);
    }
}

fn settle_one(entry: &Entry, verdict: Verdict) -> Settlement {
    Settlement {
        seq: entry.seq(),
        verdict,
    }
}

fn bury(entry: &Entry, reason: String) -> Settlement {
    let event = &entry.event;
    error!(
        event.id = %event.id,
        event.kind = event.facts.kind,
        destination = %event.address.for_log(),
        reason,
        "Event is a dead letter",
    );
    settle_one(
        entry,
        Verdict::Dead {
            reason,
            attempted: true,
        },
    )
}

fn postpone(entry: &Entry, wait: Duration, reason: &str) -> Settlement {
    let due_at = clock::now().plus(wait);
    settle_one(
        entry,
        Verdict::Postponed {
            due_at,
            reason: reason.to_owned(),
        },
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
