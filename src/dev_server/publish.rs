//! Publish, enqueue and batch: from what was sent to what is accepted.
//!
//! A request is checked as a whole before anything of it is accepted. In a batch an
//! unknown URL group concerns its own item only; a broken rule refuses the whole batch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::fault::{InBatch, Rejection};
use super::groups::{Endpoint, GroupError};
use super::message::Message;
use super::options::{OptionError, Options, receiver_headers};
use super::state::{Draft, Job, State};
use super::target::{Destination, NameError, check_name};
use crate::clock::Timestamp;

/// The longest delay on the free plan: seven days.
/// See <https://upstash.com/pricing/qstash>.
const MAX_DELAY: Duration = Duration::from_secs(7 * 86_400);

/// The most retries, as the API of accounts has it for every plan.
const MAX_RETRIES: u32 = 999;

/// A request that could be read.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) items: Vec<Item>,
    is_batch: bool,
}

/// One message as it was asked for.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) destination: String,
    pub(super) queue: Option<String>,
    /// The options, and what is meant for the receiver.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// A request, or a part of it, that is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) error: String,
}

/// What came of a request.
pub(super) struct Outcome {
    /// Status and JSON of the answer.
    pub(super) answer: Result<(StatusCode, Value), Refusal>,
    pub(super) accepted: Vec<Arc<Message>>,
    pub(super) jobs: Vec<Job>,
    /// Whether a [`Rejection`] had a part in it.
    pub(super) rejected: bool,
}

impl Request {
    /// A publish or an enqueue.
    pub(super) fn single(item: Item) -> Self {
        Self {
            items: vec![item],
            is_batch: false,
        }
    }

    /// Reads a batch.
    pub(super) fn batch(body: &[u8]) -> Result<Self, Refusal> {
        let items: Vec<BatchItem> = serde_json::from_slice(body)
            .map_err(|error| bad_request(format!("invalid batch request: {error}")))?;
        let items = items.into_iter().map(Item::try_from);
        Ok(Self {
            items: items.collect::<Result<_, _>>()?,
            is_batch: true,
        })
    }
}

/// SDKs send `null` for what is not given.
#[derive(Deserialize)]
struct BatchItem {
    destination: Option<String>,
    queue: Option<String>,
    headers: Option<BTreeMap<String, Value>>,
    body: Option<String>,
}

impl TryFrom<BatchItem> for Item {
    type Error = Refusal;

    fn try_from(item: BatchItem) -> Result<Self, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in item.headers.unwrap_or_default() {
            let text = match value {
                Value::Null => continue,
                Value::String(text) => text,
                other => other.to_string(),
            };
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_not_a_name| bad_request(format!("invalid header name {name:?}")))?;
            let value = HeaderValue::from_bytes(text.as_bytes())
                .map_err(|_not_a_value| bad_request(format!("invalid value of header {name}")))?;
            headers
                .try_append(name, value)
                .map_err(|_too_many| bad_request("too many headers".to_owned()))?;
        }
        Ok(Self {
            destination: item.destination.unwrap_or_default(),
            queue: item.queue.filter(|queue| !queue.is_empty()),
            headers,
            body: Bytes::from(item.body.unwrap_or_default()),
        })
    }
}

/// Why an item is not taken, and whether the others of its batch are.
enum Refused {
    Item(Refusal),
    Request(Refusal),
}

/// Accepts what can be accepted of a request.
pub(super) fn accept(
    state: &mut State,
    request: Request,
    rejection: Option<&Rejection>,
    max_message: u64,
    now: Timestamp,
) -> Outcome {
    let mut rejected = false;
    let mut checked = Vec::with_capacity(request.items.len());
    for item in request.items {
        let result = match rejection.filter(|rejection| is_rejected(&item, rejection)) {
            Some(rejection) => {
                rejected = true;
                Err(refuse(rejection))
            }
            None => check(state, item, max_message, now),
        };
        match result {
            Ok(draft) => checked.push(Ok(draft)),
            Err(Refused::Item(refusal)) if request.is_batch => checked.push(Err(refusal)),
            Err(Refused::Item(refusal) | Refused::Request(refusal)) => {
                return Outcome {
                    answer: Err(refusal),
                    accepted: Vec::new(),
                    jobs: Vec::new(),
                    rejected,
                };
            }
        }
    }
    if let Err(refusal) = check_room(state, checked.iter().flatten()) {
        return Outcome {
            answer: Err(refusal),
            accepted: Vec::new(),
            jobs: Vec::new(),
            rejected,
        };
    }
    let (mut accepted, mut jobs, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for item in checked {
        answers.push(match item {
            Ok(draft) => {
                let is_group = matches!(draft.destination, Destination::Group(_));
                let messages = state.accept(draft, now, &mut jobs);
                let answer = describe(&messages, is_group);
                accepted.extend(messages);
                answer
            }
            Err(refusal) => json!({ "error": refusal.error }),
        });
    }
    let answer = if request.is_batch {
        (StatusCode::OK, Value::Array(answers))
    } else if accepted.iter().all(|message| message.deduplicated) {
        (StatusCode::ACCEPTED, answers.pop().unwrap_or_default())
    } else {
        (StatusCode::OK, answers.pop().unwrap_or_default())
    };
    Outcome {
        answer: Ok(answer),
        accepted,
        jobs,
        rejected,
    }
}

/// An object for a URL, an array of objects for a URL group: what the SDKs read.
fn describe(messages: &[Arc<Message>], is_group: bool) -> Value {
    let mut described = messages.iter().map(|message| {
        let mut described = json!({ "messageId": message.id, "url": message.url });
        if let (true, Some(fields)) = (message.deduplicated, described.as_object_mut()) {
            fields.insert("deduplicated".into(), true.into());
        }
        described
    });
    if is_group {
        Value::Array(described.collect())
    } else {
        described.next().unwrap_or_default()
    }
}

/// Checks an item against every rule.
fn check(
    state: &State,
    mut item: Item,
    max_message: u64,
    now: Timestamp,
) -> Result<Draft, Refused> {
    let destination = Destination::parse(&item.destination)?;
    if let Some(queue) = &item.queue {
        check_name(queue)?;
    }
    let endpoints = match &destination {
        Destination::Url(url) => vec![Endpoint {
            name: None,
            url: url.clone(),
        }],
        Destination::Group(name) => {
            let group = state.groups.get(name)?;
            add_defaults(&mut item.headers, &group.headers);
            group.endpoints.clone()
        }
    };
    if u64::try_from(item.body.len()).is_ok_and(|size| size > max_message) {
        return Err(Refused::Request(too_large(max_message)));
    }
    let options = Options::read(&item.headers, now)?;
    check_quotas(&options, now)?;
    if item.queue.is_some() && has_delayed_callback(&options) {
        let error = "a message of a queue cannot have a delayed callback";
        return Err(Refused::Request(bad_request(error.into())));
    }
    Ok(Draft {
        destination,
        endpoints,
        queue: item.queue,
        callback_of: None,
        headers: receiver_headers(&item.headers)?,
        options,
        body: item.body,
    })
}

/// QStash's words for what is more than the plan allows.
fn check_quotas(options: &Options, now: Timestamp) -> Result<(), Refused> {
    let exceeded = |quota: &str, limit: u64| {
        let error = format!("quota {quota} exceeded, current limit: {limit}");
        Err(Refused::Request(bad_request(error)))
    };
    if options.retries > MAX_RETRIES {
        return exceeded("maxRetries", MAX_RETRIES.into());
    }
    let delay = options.not_before.map(|not_before| not_before.since(now));
    if delay.is_some_and(|delay| delay > MAX_DELAY) {
        return exceeded("maxDelay", MAX_DELAY.as_secs());
    }
    Ok(())
}

/// See <https://upstash.com/docs/qstash/overall/changelog>, March 2025.
fn has_delayed_callback(options: &Options) -> bool {
    let callbacks = [&options.callback, &options.failure_callback];
    let mut callbacks = callbacks.into_iter().flatten();
    callbacks.any(|callback| callback.options.not_before.is_some())
}

/// Whether there is room for all these messages, and for their queues.
fn check_room<'a>(
    state: &State,
    drafts: impl Iterator<Item = &'a Draft> + Clone,
) -> Result<(), Refusal> {
    let queues = drafts.clone().filter_map(|draft| draft.queue.as_deref());
    let queues = state.queues.check_room(queues);
    queues.map_err(|error| Refusal {
        status: StatusCode::PRECONDITION_FAILED,
        error: error.to_string(),
    })?;
    let messages = drafts.clone().map(|draft| draft.endpoints.len()).sum();
    let bytes = drafts.map(|draft| draft.body.len() * draft.endpoints.len());
    if !state.has_room(messages, bytes.sum()) {
        return Err(Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            error: "this development server holds as many undelivered messages as it can".into(),
        });
    }
    Ok(())
}

/// The group's headers count where the message says nothing of its own.
fn add_defaults(headers: &mut HeaderMap, defaults: &HeaderMap) {
    let given = headers.clone();
    for (name, value) in defaults {
        if !given.contains_key(name) {
            // Only an item with tens of thousands of headers has no room left.
            headers.try_append(name.clone(), value.clone()).ok();
        }
    }
}

fn is_rejected(item: &Item, rejection: &Rejection) -> bool {
    let wanted = rejection.containing.as_bytes();
    !wanted.is_empty() && item.body.windows(wanted.len()).any(|part| part == wanted)
}

fn refuse(rejection: &Rejection) -> Refused {
    let refusal = bad_request(format!("body contains {:?}", rejection.containing));
    match rejection.in_batch {
        InBatch::ItemAlone => Refused::Item(refusal),
        InBatch::WholeBatch => Refused::Request(refusal),
    }
}

/// QStash's words for a message that is larger than the plan allows.
pub(super) fn too_large(max_message: u64) -> Refusal {
    bad_request(format!(
        "quota maxMessageSize exceeded, current limit: {max_message}"
    ))
}

pub(super) fn bad_request(error: String) -> Refusal {
    Refusal {
        status: StatusCode::BAD_REQUEST,
        error,
    }
}

impl From<NameError> for Refused {
    fn from(error: NameError) -> Self {
        let status = match error {
            NameError::Api { .. } => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::Request(Refusal {
            status,
            error: error.to_string(),
        })
    }
}

impl From<GroupError> for Refused {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Unknown { .. } => Self::Item(Refusal {
                status: StatusCode::NOT_FOUND,
                error: error.to_string(),
            }),
            GroupError::Name(error) => error.into(),
            // Publishing adds to no group.
            GroupError::Quota { .. } => Self::Request(bad_request(error.to_string())),
        }
    }
}

impl From<OptionError> for Refusal {
    fn from(error: OptionError) -> Self {
        let status = match error {
            OptionError::Unsupported { .. } => StatusCode::NOT_IMPLEMENTED,
            OptionError::Value { .. } | OptionError::DeduplicationId => StatusCode::BAD_REQUEST,
        };
        Self {
            status,
            error: error.to_string(),
        }
    }
}

impl From<OptionError> for Refused {
    fn from(error: OptionError) -> Self {
        Self::Request(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qstash::signature::Keys;

    const NOW: Timestamp = Timestamp::from_millis(1_763_900_000_000);

    fn state() -> State {
        let mut state = State::new(Keys {
            current: "a".into(),
            next: "b".into(),
        });
        let endpoints = ["http://one", "http://two"].map(|url| Endpoint {
            name: None,
            url: url.into(),
        });
        state.groups.upsert("group", endpoints.into(), NOW).unwrap();
        state
    }

    fn batch(state: &mut State, body: &Value, rejection: Option<&Rejection>) -> Outcome {
        let request = Request::batch(body.to_string().as_bytes()).unwrap();
        accept(state, request, rejection, 10, NOW)
    }

    #[test]
    fn a_batch_answers_each_item_in_its_place() {
        let mut state = state();
        let body = json!([
            { "destination": "http://a", "headers": null, "body": null, "queue": null },
            { "destination": "unknown", "body": "x" },
            { "destination": "group", "headers": { "upstash-retries": 1, "x": null }, "body": "x" },
        ]);
        let outcome = batch(&mut state, &body, None);
        let (status, answer) = outcome.answer.unwrap();
        assert_eq!(status, StatusCode::OK);
        assert!(answer[0]["messageId"].is_string());
        assert_eq!(answer[1], json!({ "error": "topic unknown not found" }));
        assert_eq!(answer[2].as_array().unwrap().len(), 2);
        assert_eq!(outcome.accepted.len(), 3);
        assert_eq!(outcome.jobs.len(), 3);
    }

    #[test]
    fn a_broken_rule_refuses_the_whole_batch() {
        for (item, status) in [
            (
                json!({ "destination": "http://a", "headers": { "Upstash-Deduplication-Id": "a:b" } }),
                400,
            ),
            (
                json!({ "destination": "http://a", "headers": { "Upstash-Delay": "x" } }),
                400,
            ),
            (
                json!({ "destination": "http://a", "body": "12345678901" }),
                400,
            ),
            (json!({ "destination": "a b" }), 400),
            (json!({ "body": "x" }), 400),
            (json!({ "destination": "http://a", "queue": "a/b" }), 400),
            (
                json!({ "destination": "http://a", "headers": { "Upstash-Cron": "* * * * *" } }),
                501,
            ),
        ] {
            let mut state = state();
            let body = json!([{ "destination": "http://a" }, item]);
            let outcome = batch(&mut state, &body, None);
            assert_eq!(outcome.answer.unwrap_err().status, status, "{item}");
            assert!(outcome.accepted.is_empty());
            assert!(state.messages().is_empty());
        }
        for body in ["", "{}", "[1]", r#"[{"body":{}}]"#] {
            assert!(Request::batch(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn a_rejection_concerns_the_item_or_its_batch() {
        let body = json!([
            { "destination": "http://a", "body": "good" },
            { "destination": "http://a", "body": "is poison" },
        ]);
        let mut rejection = Rejection {
            containing: "poison".into(),
            in_batch: InBatch::ItemAlone,
        };
        let alone = batch(&mut state(), &body, Some(&rejection));
        let (_, answer) = alone.answer.unwrap();
        assert!(answer[0]["messageId"].is_string() && answer[1]["error"].is_string());
        assert!(alone.rejected);
        rejection.in_batch = InBatch::WholeBatch;
        let whole = batch(&mut state(), &body, Some(&rejection));
        assert_eq!(whole.answer.unwrap_err().status, 400);
        assert!(whole.accepted.is_empty());
    }

    #[test]
    fn a_groups_headers_are_defaults() {
        let mut state = state();
        let mut defaults = HeaderMap::new();
        defaults.insert("upstash-retries", HeaderValue::from_static("7"));
        defaults.insert("upstash-forward-x", HeaderValue::from_static("group"));
        state.groups.set_headers("group", defaults, NOW).unwrap();
        let body = json!([{ "destination": "group", "headers": { "Upstash-Forward-X": "own" } }]);
        let outcome = batch(&mut state, &body, None);
        assert_eq!(outcome.accepted[0].options.retries, 7);
        assert_eq!(outcome.accepted[0].headers["x"], "own");
    }
}
