//! Everything that is no publish: one call in, one answer out, under the lock.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Received, error, json_answer, method_not_allowed};
use super::dlq::{self, DlqId};
use super::filter::{Filter, FilterError, Kind};
use super::flow::Pin;
use super::logs::{self, Form};
use super::message::{Message, Progress};
use super::options::{OptionError, is_period};
use super::publish::Refusal;
use super::queues::QueueError;
use super::state::{self, Job, State};
use super::target::{Call, FlowChange, decode};
use super::{MAX_DELIVERIES, Shared, delivery, describe, topics};
use crate::clock::{self, Timestamp};
use crate::http::Answer;

/// The largest body of such a call.
const MAX_BODY: usize = 1 << 20;

/// Why a call was not done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{what} not found")]
    Missing { what: &'static str },
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Option(#[from] OptionError),
    #[error("invalid request body: {0}")]
    Body(#[from] serde_json::Error),
    #[error("flow control key must be provided")]
    NoKey,
    #[error("invalid value {value:?} of parameter {name}: expected {expected}")]
    Parameter {
        name: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("{method} {path} is not part of this development server")]
    Unsupported { method: String, path: String },
    #[error("method not allowed")]
    Method,
    #[error("this development server holds as many undelivered messages as it can")]
    NoRoom,
}

/// What an answer has, with its status where that is not 200.
enum Done {
    Nothing,
    Json(Value),
    Created(Value),
    /// One that is finished already.
    Answer(Answer),
}

#[derive(Deserialize)]
struct QueueBody {
    #[serde(rename = "queueName")]
    name: String,
    parallelism: Option<u32>,
    paused: Option<bool>,
}

/// The ids of a bulk call, where the Python SDK has them.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct IdsBody {
    message_ids: Option<Vec<String>>,
    dlq_ids: Option<Vec<String>>,
}

/// Answers a call whose token was right.
pub(super) fn answer(shared: &Arc<Shared>, call: Call<'_>, received: &Received<'_>) -> Answer {
    let body = received.body.as_deref();
    let Some(body) = body.filter(|body| body.len() <= MAX_BODY) else {
        return error(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("request body is larger than {MAX_BODY} bytes"),
        );
    };
    let mut jobs = Vec::new();
    let done = {
        let mut state = shared.state();
        let mut calling = Calling {
            shared,
            state: &mut state,
            received,
            body,
            now: clock::now(),
            jobs: &mut jobs,
        };
        calling.call(call)
    };
    for job in jobs {
        delivery::start(shared, job);
    }
    if let Call::FlowChange { key, .. } = call {
        delivery::admit(shared, &decode(key));
    }
    shared.changes.send_replace(());
    match done {
        Ok(Done::Nothing) => Response::new(Full::default()),
        Ok(Done::Json(value)) => json_answer(StatusCode::OK, &value),
        Ok(Done::Created(value)) => json_answer(StatusCode::CREATED, &value),
        Ok(Done::Answer(answer)) => answer,
        Err(Failure::Method) => method_not_allowed(),
        Err(failure) => error(status_of(&failure), &failure.to_string()),
    }
}

fn status_of(failure: &Failure) -> StatusCode {
    match failure {
        Failure::Missing { .. } => StatusCode::NOT_FOUND,
        Failure::Queue(QueueError::Quota { .. }) => StatusCode::PRECONDITION_FAILED,
        Failure::Option(error) => Refusal::from(error.clone()).status,
        Failure::Method => StatusCode::METHOD_NOT_ALLOWED,
        Failure::Unsupported { .. } => StatusCode::NOT_IMPLEMENTED,
        Failure::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
        Failure::Filter(_)
        | Failure::Queue(_)
        | Failure::Body(_)
        | Failure::NoKey
        | Failure::Parameter { .. } => StatusCode::BAD_REQUEST,
    }
}

/// One call, with the state in hand.
struct Calling<'a> {
    shared: &'a Shared,
    state: &'a mut State,
    received: &'a Received<'a>,
    body: &'a [u8],
    now: Timestamp,
    /// What is to be delivered because of it.
    jobs: &'a mut Vec<Job>,
}

impl Calling<'_> {
    fn call(&mut self, call: Call<'_>) -> Result<Done, Failure> {
        let now = self.now;
        let found = |what| move || Failure::Missing { what };
        match (self.received.method.as_str(), call) {
            ("GET", Call::Keys) => Ok(Done::Json(delivery::describe_keys(&self.state.keys))),
            ("POST", Call::RotateKeys) => {
                delivery::rotate(&mut self.state.keys);
                Ok(Done::Json(delivery::describe_keys(&self.state.keys)))
            }
            ("GET", Call::Message { id }) => {
                let message = self.state.message(&decode(id), now);
                let message = message.ok_or_else(found("message"))?;
                Ok(Done::Json(describe::message(message)))
            }
            ("DELETE", Call::Message { id }) => {
                let message = self.state.cancel(&decode(id));
                self.cancelled(&message.ok_or_else(found("message"))?);
                Ok(Done::Json(json!({ "cancelled": 1 })))
            }
            ("DELETE", Call::Messages) => self.cancel_many(),
            ("GET", Call::Logs) => self.logs(Form::Logs),
            ("GET", Call::Events) => self.logs(Form::Events),
            (method, call @ (Call::Topics | Call::Topic { .. } | Call::TopicEndpoints { .. })) => {
                let groups = &mut self.state.groups;
                Ok(Done::Answer(topics::answer(
                    groups, method, call, self.body, now,
                )))
            }
            (_, call @ (Call::Queues | Call::Queue { .. } | Call::QueueSwitch { .. })) => {
                self.queues(call)
            }
            (_, call @ (Call::Dlq | Call::DlqEntry { .. } | Call::DlqRetry { .. })) => {
                self.dlq(call)
            }
            ("GET", Call::FlowKeys) => {
                let parameters = self.received.query.parameters();
                let search = parameters.iter().find(|(name, _)| name == "search");
                let search = search.map_or("", |(_, search)| search);
                Ok(Done::Json(self.state.flows.list(search, now)))
            }
            ("GET", Call::FlowKey { key }) => {
                let flow = self.state.flows.describe(&decode(key), now);
                Ok(Done::Json(flow.ok_or_else(found("flow control key"))?))
            }
            ("POST", Call::FlowChange { key, change }) => self.change_flow(&decode(key), change),
            ("GET", Call::GlobalParallelism) => {
                let free = self.shared.deliveries.available_permits();
                Ok(Done::Json(json!({
                    "parallelismMax": MAX_DELIVERIES,
                    "parallelismCount": MAX_DELIVERIES.saturating_sub(free),
                })))
            }
            (method, Call::Missing) => Err(Failure::Unsupported {
                method: method.to_owned(),
                path: self.received.path.to_owned(),
            }),
            _ => Err(Failure::Method),
        }
    }

    fn cancelled(&mut self, message: &Arc<Message>) {
        let requested = Progress::CancelRequested;
        self.shared.record_in(self.state, message, requested);
    }

    /// Cancels what the query means, or the ids in the body: without either, everything. That
    /// all of it is done in one call, whatever `count` says, is what the SDK documents.
    fn cancel_many(&mut self) -> Result<Done, Failure> {
        let mut filter = self.filter(Kind::Messages)?;
        if let Some(ids) = self.ids()?.message_ids {
            filter.ids = Some(ids);
        }
        let ids: Vec<String> = match filter.ids.take() {
            Some(ids) => ids,
            None => {
                let pending = self.state.pending();
                let passing = pending.filter(|one| filter.matches(one, one.created_at));
                passing.map(|message| message.id.clone()).collect()
            }
        };
        let mut cancelled = 0;
        for id in ids {
            if let Some(message) = self.state.cancel(&id) {
                self.cancelled(&message);
                cancelled += 1;
            }
        }
        Ok(Done::Json(json!({ "cancelled": cancelled })))
    }

    fn logs(&mut self, form: Form) -> Result<Done, Failure> {
        let filter = self.filter(Kind::Logs)?;
        Ok(Done::Answer(logs::list(self.state, form, &filter)))
    }

    fn queues(&mut self, call: Call<'_>) -> Result<Done, Failure> {
        let now = self.now;
        match (self.received.method.as_str(), call) {
            ("GET", Call::Queues) => Ok(Done::Json(self.state.queues.list())),
            ("POST", Call::Queues) => {
                let body: QueueBody = serde_json::from_slice(self.body)?;
                let parallelism = body.parallelism.unwrap_or(1);
                let queues = &mut self.state.queues;
                let hiring = queues.upsert(&body.name, parallelism, body.paused, now)?;
                state::hire(hiring, self.jobs);
                Ok(Done::Nothing)
            }
            ("GET", Call::Queue { name }) => match self.state.queues.get(&decode(name)) {
                Err(QueueError::Unknown { .. }) => Err(Failure::Missing { what: "queue" }),
                found => Ok(Done::Json(found?)),
            },
            ("DELETE", Call::Queue { name }) => {
                // What waits in it goes with it. No error when there is none, as with groups.
                for message in self.state.queues.remove(&decode(name)) {
                    let cancelled = Progress::Cancelled;
                    self.shared.record_in(self.state, &message, cancelled);
                }
                Ok(Done::Nothing)
            }
            ("POST", Call::QueueSwitch { name, paused }) => {
                let hiring = self.state.queues.pause(&decode(name), paused, now)?;
                state::hire(hiring, self.jobs);
                Ok(Done::Nothing)
            }
            _ => Err(Failure::Method),
        }
    }

    fn dlq(&mut self, call: Call<'_>) -> Result<Done, Failure> {
        const MISSING: Failure = Failure::Missing {
            what: "dead letter",
        };
        let id = |text: &str| decode(text).parse().map_err(|_no_id| MISSING);
        match (self.received.method.as_str(), call) {
            ("GET", Call::Dlq) => {
                let page = self.state.dlq.find(&self.filter(Kind::Dlq)?);
                let mut answer = json!({ "messages": self.state.dlq.describe(&page.ids) });
                add_cursor(&mut answer, page.cursor);
                Ok(Done::Json(answer))
            }
            ("DELETE", Call::Dlq) => {
                let mut filter = self.filter(Kind::Dlq)?;
                if let Some(ids) = self.ids()?.dlq_ids {
                    filter.ids = Some(ids);
                }
                let page = self.state.dlq.find(&filter);
                let removed = page.ids.iter().filter_map(|id| self.state.dlq.remove(*id));
                let mut answer = json!({ "deleted": removed.count() });
                add_cursor(&mut answer, page.cursor);
                Ok(Done::Json(answer))
            }
            ("GET", Call::DlqEntry { id: text }) => {
                let id: DlqId = id(text)?;
                let letter = self.state.dlq.get(id).ok_or(MISSING)?;
                Ok(Done::Json(describe::dead_letter(id, letter)))
            }
            ("DELETE", Call::DlqEntry { id: text }) => {
                let id: DlqId = id(text)?;
                self.state.dlq.remove(id).map(drop).ok_or(MISSING)?;
                Ok(Done::Nothing)
            }
            ("POST", Call::DlqRetry { id: Some(text) }) => {
                let id: DlqId = id(text)?;
                self.state.dlq.get(id).ok_or(MISSING)?;
                let answers = self.retry(&[id])?;
                Ok(Done::Created(
                    answers.into_iter().next().unwrap_or_default(),
                ))
            }
            ("POST", Call::DlqRetry { id: None }) => {
                let mut filter = self.filter(Kind::Dlq)?;
                if let Some(ids) = self.ids()?.dlq_ids {
                    filter.ids = Some(ids);
                }
                let page = self.state.dlq.find(&filter);
                if page.unknown > 0 {
                    return Err(MISSING);
                }
                let responses = self.retry(&page.ids)?;
                // The SDK expects an empty one at the end.
                let cursor = page.cursor.map(|id| id.to_string()).unwrap_or_default();
                Ok(Done::Created(
                    json!({ "cursor": cursor, "responses": responses }),
                ))
            }
            _ => Err(Failure::Method),
        }
    }

    fn retry(&mut self, ids: &[DlqId]) -> Result<Vec<Value>, Failure> {
        let letters = ids.iter().filter_map(|id| self.state.dlq.get(*id));
        let bytes = letters.map(|letter| letter.message.weight()).sum();
        if !self.state.has_room(ids.len(), bytes) {
            return Err(Failure::NoRoom);
        }
        let headers = self.received.headers;
        let messages = dlq::retry(self.state, ids, headers, self.now, self.jobs)?;
        let mut answers = Vec::new();
        for message in messages {
            self.shared
                .record_in(self.state, &message, Progress::Created);
            answers.push(json!({ "messageId": message.id }));
        }
        Ok(answers)
    }

    fn change_flow(&mut self, key: &str, change: FlowChange) -> Result<Done, Failure> {
        if key.is_empty() {
            return Err(Failure::NoKey);
        }
        let (flows, now) = (&mut self.state.flows, self.now);
        let parameters = self.received.query.parameters();
        let given = |name| {
            let found = parameters.iter().find(|(given, _)| given == name);
            found.map(|(_, value)| value.as_str())
        };
        match change {
            FlowChange::Pause => flows.pause(key, true, now),
            FlowChange::Resume => flows.pause(key, false, now),
            FlowChange::Pin => {
                let pin = Pin {
                    parallelism: limit("parallelism", given("parallelism"))?,
                    rate: limit("rate", given("rate"))?,
                    period: limit("period", given("period"))?
                        .map(|seconds| Duration::from_secs(seconds.into())),
                };
                if pin.period.is_some_and(|period| !is_period(period)) {
                    return Err(Failure::Parameter {
                        name: "period",
                        value: given("period").unwrap_or_default().to_owned(),
                        expected: "seconds, a week at most",
                    });
                }
                flows.pin(key, pin, now);
            }
            FlowChange::Unpin => {
                let parallelism = flag("parallelism", given("parallelism"))?;
                flows.unpin(key, parallelism, flag("rate", given("rate"))?);
            }
            FlowChange::ResetRate => flows.reset_rate(key, now),
        }
        Ok(Done::Nothing)
    }

    fn filter(&self, kind: Kind) -> Result<Filter, FilterError> {
        Filter::read(kind, &self.received.query.parameters())
    }

    fn ids(&self) -> Result<IdsBody, Failure> {
        if self.body.trim_ascii().is_empty() {
            return Ok(IdsBody::default());
        }
        Ok(serde_json::from_slice(self.body)?)
    }
}

fn add_cursor(answer: &mut Value, cursor: Option<DlqId>) {
    if let (Some(cursor), Some(fields)) = (cursor, answer.as_object_mut()) {
        fields.insert("cursor".into(), cursor.to_string().into());
    }
}

fn limit(name: &'static str, given: Option<&str>) -> Result<Option<u32>, Failure> {
    let read = |text: &str| {
        let number = text.parse().ok().filter(|number| *number > 0);
        number.ok_or_else(|| Failure::Parameter {
            name,
            value: text.to_owned(),
            expected: "a number above 0",
        })
    };
    given.map(read).transpose()
}

fn flag(name: &'static str, given: Option<&str>) -> Result<bool, Failure> {
    match given {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(Failure::Parameter {
            name,
            value: other.to_owned(),
            expected: "true or false",
        }),
    }
}
