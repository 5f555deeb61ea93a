//! Which messages the API has. Only the last so many are remembered: a repeat comes with one
//! of QStash's retries, the last of which may be days later.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Ids that are remembered: 15 MB of them, and at ten events a second the last three hours.
const REMEMBERED: usize = 100_000;

/// Whether the API has answered a message with 2xx. Whoever passes it on holds the lock, so
/// that of two tries at a time one waits for the other.
pub(super) type Slot = tokio::sync::Mutex<bool>;

#[derive(Default)]
pub(super) struct Repeats(Mutex<Known>);

#[derive(Default)]
struct Known {
    slots: HashMap<Arc<str>, Arc<Slot>>,
    /// Oldest first.
    order: VecDeque<Arc<str>>,
}

impl Repeats {
    /// The slot of a message, new or known.
    pub(super) fn slot(&self, id: &str) -> Arc<Slot> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = known.slots.get(id) {
            return Arc::clone(slot);
        }
        if known.order.len() >= REMEMBERED
            && let Some(oldest) = known.order.pop_front()
        {
            known.slots.remove(&oldest);
        }
        let (id, slot) = (Arc::<str>::from(id), Arc::<Slot>::default());
        known.order.push_back(Arc::clone(&id));
        known.slots.insert(id, Arc::clone(&slot));
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_done_is_known_until_too_many_came_after_it() {
        let repeats = Repeats::default();
        *repeats.slot("first").lock().await = true;
        for n in 1..REMEMBERED {
            repeats.slot(&n.to_string());
        }
        assert!(*repeats.slot("first").lock().await);
        repeats.slot("one more");
        assert!(!*repeats.slot("first").lock().await);
        let known = repeats.0.lock().unwrap();
        assert_eq!(
            (known.slots.len(), known.order.len()),
            (REMEMBERED, REMEMBERED)
        );
    }
}
