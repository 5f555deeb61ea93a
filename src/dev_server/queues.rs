//! FIFO queues: what waits in them, how many work on them, and whether they are paused.
//!
//! A queue is worked on by as many tasks as its parallelism allows; each takes the next
//! message once it is through with the last one, all its retries and callbacks included.
//! See <https://upstash.com/docs/qstash/features/queues>.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use super::message::Message;
use super::target::{NameError, check_name};
use crate::clock::Timestamp;

/// Queues, and tasks on one of them: the limits of the pay-as-you-go plan.
/// See <https://upstash.com/pricing/qstash>.
const MAX_QUEUES: usize = 100;
const MAX_PARALLELISM: u32 = 100;

/// All queues. One that was used once stays until it is deleted.
#[derive(Default)]
pub(super) struct Queues {
    by_name: BTreeMap<String, Queue>,
    /// How many were ever created.
    created: u64,
}

/// Workers that are to be started on a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hiring {
    pub(super) queue: QueueId,
    pub(super) workers: u32,
}

/// A queue; one that was created again under its name is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueId {
    name: String,
    number: u64,
}

struct Queue {
    number: u64,
    parallelism: u32,
    is_paused: bool,
    created_at: Timestamp,
    updated_at: Timestamp,
    waiting: VecDeque<Arc<Message>>,
    /// Tasks that work on it.
    workers: u32,
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum QueueError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("queue {name} not found")]
    Unknown { name: String },
    #[error("parallelism must be greater than 0")]
    Parallelism,
    #[error("quota {quota} exceeded, current limit: {limit}")]
    Quota { quota: &'static str, limit: u32 },
}

impl Queues {
    /// Creates a queue or changes it.
    pub(super) fn upsert(
        &mut self,
        name: &str,
        parallelism: u32,
        paused: Option<bool>,
        now: Timestamp,
    ) -> Result<Hiring, QueueError> {
        check_name(name)?;
        if parallelism == 0 {
            return Err(QueueError::Parallelism);
        }
        if parallelism > MAX_PARALLELISM {
            return Err(QueueError::Quota {
                quota: "maxParallelism",
                limit: MAX_PARALLELISM,
            });
        }
        self.check_room([name])?;
        let queue = self.entry(name, now);
        queue.parallelism = parallelism;
        queue.is_paused = paused.unwrap_or(queue.is_paused);
        queue.updated_at = now;
        Ok(queue.hire(name))
    }

    /// Whether these queues exist or can be created.
    pub(super) fn check_room<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), QueueError> {
        let new = names
            .into_iter()
            .filter(|name| !self.by_name.contains_key(*name));
        let new: BTreeSet<&str> = new.collect();
        if !new.is_empty() && self.by_name.len() + new.len() > MAX_QUEUES {
            return Err(QueueError::Quota {
                quota: "maxQueues",
                limit: u32::try_from(MAX_QUEUES).unwrap_or(u32::MAX),
            });
        }
        Ok(())
    }

    /// Pauses a queue or resumes it.
    pub(super) fn pause(
        &mut self,
        name: &str,
        is_paused: bool,
        now: Timestamp,
    ) -> Result<Hiring, QueueError> {
        check_name(name)?;
        let queue = self.by_name.get_mut(name).ok_or_else(|| unknown(name))?;
        queue.is_paused = is_paused;
        queue.updated_at = now;
        Ok(queue.hire(name))
    }

    /// Deletes a queue, if there is one. Returns what waited in it.
    pub(super) fn remove(&mut self, name: &str) -> VecDeque<Arc<Message>> {
        self.by_name
            .remove(name)
            .map(|q| q.waiting)
            .unwrap_or_default()
    }

    /// Adds a message, creating the queue if needed.
    pub(super) fn push(&mut self, name: &str, message: &Arc<Message>, now: Timestamp) -> Hiring {
        let queue = self.entry(name, now);
        // A queue goes on once the callbacks of a message are through as well.
        if message.callback_of.is_some() {
            queue.waiting.push_front(Arc::clone(message));
        } else {
            queue.waiting.push_back(Arc::clone(message));
        }
        queue.hire(name)
    }

    /// The next message for a worker; when there is none, that worker has ended.
    pub(super) fn next(&mut self, id: &QueueId) -> Option<Arc<Message>> {
        let queue = self.by_name.get_mut(&id.name)?;
        if queue.number != id.number {
            return None;
        }
        let is_one_too_many = queue.workers > queue.parallelism;
        let next = if queue.is_paused || is_one_too_many {
            None
        } else {
            queue.waiting.pop_front()
        };
        if next.is_none() {
            queue.workers = queue.workers.saturating_sub(1);
        }
        next
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// A queue, as the API shows it.
    pub(super) fn get(&self, name: &str) -> Result<Value, QueueError> {
        check_name(name)?;
        let queue = self.by_name.get(name).ok_or_else(|| unknown(name))?;
        Ok(queue.describe(name))
    }

    /// All queues, as the API shows them.
    pub(super) fn list(&self) -> Value {
        self.by_name
            .iter()
            .map(|(name, q)| q.describe(name))
            .collect()
    }

    fn entry(&mut self, name: &str, now: Timestamp) -> &mut Queue {
        let created = &mut self.created;
        self.by_name
            .entry(name.to_owned())
            .or_insert_with(|| Queue {
                number: {
                    *created += 1;
                    *created
                },
                parallelism: 1,
                is_paused: false,
                created_at: now,
                updated_at: now,
                waiting: VecDeque::new(),
                workers: 0,
            })
    }
}

impl Queue {
    /// Takes on the workers that have something to do and may work.
    fn hire(&mut self, name: &str) -> Hiring {
        let workers = if self.is_paused {
            0
        } else {
            let free = self.parallelism.saturating_sub(self.workers);
            free.min(u32::try_from(self.waiting.len()).unwrap_or(u32::MAX))
        };
        self.workers += workers;
        let queue = QueueId {
            name: name.to_owned(),
            number: self.number,
        };
        Hiring { queue, workers }
    }

    fn describe(&self, name: &str) -> Value {
        json!({
            "name": name,
            "createdAt": self.created_at.as_millis(),
            "updatedAt": self.updated_at.as_millis(),
            "parallelism": self.parallelism,
            "paused": self.is_paused,
            // A worker has one message in hand.
            "lag": self.waiting.len() + usize::try_from(self.workers).unwrap_or(0),
        })
    }
}

fn unknown(name: &str) -> QueueError {
    QueueError::Unknown {
        name: name.to_owned(),
    }
}
