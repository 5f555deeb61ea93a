//! Outcomes that wait for a commit.
//!
//! Nobody at Strapi waits for them: one that is lost only means that QStash is sent the event
//! again and drops it as a repeat. So they share the commits of new events, a few at a time,
//! and have one of their own only when no event comes for a moment or when many wait.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::writer::Command;
use super::{AppendError, Settlement};

/// Beside new events, who wait for the same commit: this many take about as long as the
/// fdatasync does.
const BESIDE_EVENTS: usize = 64;

/// In a commit without new events; they do not wait any longer when there are so many.
const ALONE: usize = 256;

type Done = oneshot::Sender<Result<(), AppendError>>;

#[derive(Default)]
pub(super) struct Outcomes {
    waiting: VecDeque<Waiting>,
    /// How many settlements are not committed.
    count: usize,
    /// They have waited long enough.
    are_overdue: bool,
}

struct Waiting {
    settlements: Vec<Settlement>,
    /// How many of them are committed.
    committed: usize,
    done: Done,
}

impl Outcomes {
    pub(super) fn push(&mut self, settlements: Vec<Settlement>, done: Done) {
        self.count += settlements.len();
        self.waiting.push_back(Waiting {
            settlements,
            committed: 0,
            done,
        });
    }

    /// Has them written without new events.
    pub(super) fn hurry(&mut self) {
        self.are_overdue = !self.waiting.is_empty();
    }

    pub(super) fn are_due(&self) -> bool {
        self.are_overdue || self.count >= ALONE
    }

    /// Those for the next commit.
    pub(super) fn next(&self, beside_events: bool) -> Vec<&Settlement> {
        let most = match beside_events {
            true => BESIDE_EVENTS,
            false if self.are_due() => ALONE,
            false => 0,
        };
        let open = |waiting: &'_ Waiting| waiting.committed..waiting.settlements.len();
        let settlements = self
            .waiting
            .iter()
            .flat_map(|waiting| waiting.settlements.get(open(waiting)).unwrap_or_default());
        settlements.take(most).collect()
    }

    /// The first `count` are committed; returns whom to tell that all of theirs are.
    pub(super) fn committed(&mut self, mut count: usize) -> Vec<Done> {
        self.count -= count;
        let mut done = Vec::new();
        while let Some(first) = self.waiting.front_mut() {
            let open = first.settlements.len() - first.committed;
            if open > count {
                first.committed += count;
                break;
            }
            count -= open;
            done.extend(self.waiting.pop_front().map(|waiting| waiting.done));
        }
        self.are_overdue &= !self.waiting.is_empty();
        done
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whoever waits, to be told that it did not work.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Done> {
        let waiting = std::mem::take(self).waiting;
        waiting.into_iter().map(|waiting| waiting.done)
    }

    /// What is to be tried again, whole: to settle twice does no harm.
    pub(super) fn into_commands(self) -> impl Iterator<Item = Command> {
        self.waiting.into_iter().map(|waiting| Command::Settle {
            settlements: waiting.settlements,
            done: waiting.done,
        })
    }
}
