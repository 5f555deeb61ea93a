//! The dead letter queue: messages that were given up, to be looked at, deleted or retried.
//!
//! See <https://upstash.com/docs/qstash/features/dlq>.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use hyper::HeaderMap;
use serde_json::Value;

use super::describe;
use super::filter::Filter;
use super::groups::Endpoint;
use super::message::{Message, Response};
use super::options::{OptionError, receiver_headers};
use super::state::{Draft, Job, State};
use crate::clock::Timestamp;

/// Dead letters that are kept, and what they may weigh: beyond it the oldest are forgotten, as
/// QStash forgets them after some days.
const MAX_LETTERS: usize = 10_000;
const MAX_BYTES: usize = 128 << 20;

/// Dead letters that one call is about, at most.
const MAX_COUNT: usize = 100;

/// The name of a dead letter, such as `1725323658779-0`. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DlqId {
    millis: i64,
    number: u64,
}

/// A message that was given up.
#[derive(Debug, Clone)]
pub(super) struct DeadLetter {
    pub(super) message: Arc<Message>,
    pub(super) at: Timestamp,
    /// What went wrong last, in words.
    pub(super) error: String,
    /// The receiver's last answer; `None` where there was none.
    pub(super) response: Option<Arc<Response>>,
}

/// All dead letters.
#[derive(Default)]
pub(super) struct Dlq {
    letters: BTreeMap<DlqId, DeadLetter>,
    bytes: usize,
    last: Option<DlqId>,
}

/// Some dead letters, and where the next ones begin.
pub(super) struct Page {
    pub(super) ids: Vec<DlqId>,
    pub(super) cursor: Option<DlqId>,
    /// Ids that were asked for and are none.
    pub(super) unknown: usize,
}

impl Dlq {
    /// Adds a message that was given up.
    pub(super) fn add(&mut self, letter: DeadLetter) -> DlqId {
        let millis = letter.at.as_millis();
        let id = match self.last {
            // Also when the clock went back: ids only grow.
            Some(last) if last.millis >= millis => DlqId {
                number: last.number + 1,
                ..last
            },
            _ => DlqId { millis, number: 0 },
        };
        self.last = Some(id);
        self.bytes += letter.weight();
        self.letters.insert(id, letter);
        while self.letters.len() > 1 && (self.letters.len() > MAX_LETTERS || self.bytes > MAX_BYTES)
        {
            if let Some((_, oldest)) = self.letters.pop_first() {
                self.bytes = self.bytes.saturating_sub(oldest.weight());
            }
        }
        id
    }

    pub(super) fn get(&self, id: DlqId) -> Option<&DeadLetter> {
        self.letters.get(&id)
    }

    pub(super) fn remove(&mut self, id: DlqId) -> Option<DeadLetter> {
        let letter = self.letters.remove(&id)?;
        self.bytes = self.bytes.saturating_sub(letter.weight());
        Some(letter)
    }

    /// The dead letters that a call is about, newest first.
    pub(super) fn find(&self, filter: &Filter) -> Page {
        if let Some(ids) = &filter.ids {
            let named: Vec<_> = ids.iter().filter_map(|id| id.parse().ok()).collect();
            let known = named.into_iter().filter(|id| self.letters.contains_key(id));
            let known: Vec<DlqId> = known.collect();
            return Page {
                unknown: ids.len() - known.len(),
                ids: known,
                cursor: None,
            };
        }
        let count = filter.count.unwrap_or(MAX_COUNT).min(MAX_COUNT);
        let before: Option<DlqId> = filter.cursor.as_deref().and_then(|c| c.parse().ok());
        let passing = self.letters.iter().rev().filter(|(id, letter)| {
            let status = letter
                .response
                .as_ref()
                .map_or(0, |response| response.status);
            before.is_none_or(|before| **id < before)
                && filter.matches_status(status)
                && filter.matches(&letter.message, letter.at)
        });
        let mut ids: Vec<DlqId> = passing.map(|(id, _)| *id).take(count + 1).collect();
        let has_more = ids.len() > count;
        ids.truncate(count);
        Page {
            cursor: if has_more { ids.last().copied() } else { None },
            ids,
            unknown: 0,
        }
    }

    /// Dead letters, as the API shows them.
    pub(super) fn describe(&self, ids: &[DlqId]) -> Vec<Value> {
        let letters = ids
            .iter()
            .filter_map(|id| Some((id, self.letters.get(id)?)));
        letters
            .map(|(id, letter)| describe::dead_letter(*id, letter))
            .collect()
    }
}

/// Publishes dead letters again, as new messages, with what `headers` say over what they had.
pub(super) fn retry(
    state: &mut State,
    ids: &[DlqId],
    headers: &HeaderMap,
    now: Timestamp,
    jobs: &mut Vec<Job>,
) -> Result<Vec<Arc<Message>>, OptionError> {
    let named = headers.iter();
    let named = named.filter(|(name, _)| name.as_str().starts_with("upstash-forward-"));
    let named: HeaderMap = named.map(|(n, v)| (n.clone(), v.clone())).collect();
    let forwarded = receiver_headers(&named)?;
    let letters = ids.iter().filter_map(|id| Some((*id, state.dlq.get(*id)?)));
    let drafts = letters.map(|(id, letter)| {
        let message = &letter.message;
        let mut headers_of_new = message.headers.clone();
        headers_of_new.extend(forwarded.clone()); // in place of those of the same name
        let draft = Draft {
            destination: message.destination.clone(),
            endpoints: vec![Endpoint {
                name: message.endpoint_name.clone(),
                url: message.url.clone(),
            }],
            queue: message.queue.clone(),
            callback_of: message.callback_of.clone(),
            headers: headers_of_new,
            options: message.options.clone().overridden(headers, now)?,
            body: message.body.clone(),
        };
        Ok((id, draft))
    });
    // All are checked before the first is gone.
    let drafts = drafts.collect::<Result<Vec<_>, OptionError>>()?;
    let mut messages = Vec::new();
    for (id, draft) in drafts {
        state.dlq.remove(id);
        messages.extend(state.accept(draft, now, jobs));
    }
    Ok(messages)
}

impl DeadLetter {
    fn weight(&self) -> usize {
        let response = self.response.as_deref().map_or(0, Response::weight);
        self.message.weight() + self.error.len() + response
    }
}

impl fmt::Display for DlqId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.number)
    }
}

/// A text is no dead letter's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotAnId;

impl FromStr for DlqId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let (millis, number) = text.split_once('-').ok_or(NotAnId)?;
        let id = Self {
            millis: millis.parse().map_err(|_no_number| NotAnId)?,
            number: number.parse().map_err(|_no_number| NotAnId)?,
        };
        // One way to write it only.
        if id.to_string() == text {
            Ok(id)
        } else {
            Err(NotAnId)
        }
    }
}
