//! Deduplication: what was published in the last ten minutes is not delivered again.
//!
//! See <https://upstash.com/docs/qstash/features/deduplication>.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;

use super::groups::Endpoint;
use super::state::Draft;
use super::target::Destination;
use crate::clock::Timestamp;

/// How long a deduplication id is remembered.
pub(super) const DEDUPLICATION: Duration = Duration::from_secs(600);

/// Ids that are remembered, at a few hundred bytes each: more than anything publishes here in
/// ten minutes.
const MAX_KNOWN: usize = 500_000;

/// By what a duplicate is recognised. An id serves for the whole account: whether QStash
/// looks at the destination too is not documented, and this is the stricter reading.
pub(super) fn key(draft: &Draft) -> Option<String> {
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
pub(super) struct Named {
    pub(super) id: String,
    pub(super) endpoint: Endpoint,
}

/// The deduplication ids of the last ten minutes, and the messages that had them.
#[derive(Default)]
pub(super) struct Known {
    named: HashMap<String, Vec<Named>>,
    by_age: VecDeque<(Timestamp, String)>,
}

impl Known {
    pub(super) fn get(&mut self, key: &str, now: Timestamp) -> Option<Vec<Named>> {
        while let Some((at, key)) = self.by_age.front() {
            if now.since(*at) < DEDUPLICATION {
                break;
            }
            self.named.remove(key);
            self.by_age.pop_front();
        }
        self.named.get(key).cloned()
    }

    pub(super) fn insert(&mut self, key: String, named: Vec<Named>, now: Timestamp) {
        if self.by_age.len() >= MAX_KNOWN
            && let Some((_, key)) = self.by_age.pop_front()
        {
            self.named.remove(&key);
        }
        self.by_age.push_back((now, key.clone()));
        self.named.insert(key, named);
    }
}
