//! The log, for `GET /v2/logs` and the older `GET /v2/events`, which is what the SDKs call.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::api::json_answer;
use super::describe;
use super::filter::Filter;
use super::message::{Progress, Response};
use super::state::{Entry, State};
use crate::clock::Timestamp;
use crate::http::Answer;

/// Lines in one answer, unless another number is asked for, and the most of them. The
/// description of the API says 100 for both, the Python SDK that 1,000 can be asked for.
const LINES: usize = 100;
const MAX_LINES: usize = 1_000;

/// The two forms of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As the description of the API has it.
    Logs,
    /// As the SDKs read it.
    Events,
}

impl Form {
    fn field(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Events => "events",
        }
    }

    /// The SDKs know the last state in the other spelling only.
    fn state(self, state: &'static str) -> &'static str {
        match (self, state) {
            (Self::Events, "CANCELLED") => "CANCELED",
            (_, state) => state,
        }
    }
}

/// Where a page of the log begins: after the line that the last one ended with, or at an
/// instant, as old clients have it (`Date.now()` for the first page).
#[derive(Debug, Clone, Copy)]
enum Cursor {
    After { line: u64 },
    At(Timestamp),
}

impl Cursor {
    fn read(text: &str) -> Option<Self> {
        match text.split_once('-') {
            Some((_, line)) => line.parse().ok().map(|line| Self::After { line }),
            None => {
                let millis = text.parse().ok()?;
                Some(Self::At(Timestamp::from_millis(millis)))
            }
        }
    }

    fn lets_pass(self, line: u64, at: Timestamp) -> bool {
        match self {
            Self::After { line: last } => line < last,
            Self::At(instant) => at <= instant,
        }
    }
}

/// The log, newest first.
pub(super) fn list(state: &State, form: Form, filter: &Filter) -> Answer {
    let count = filter.count.unwrap_or(LINES).min(MAX_LINES);
    let cursor = filter.cursor.as_deref().and_then(Cursor::read);
    let lines = state.log().flat_map(|(number, entry, message)| {
        let lines = lines(entry).into_iter().enumerate().rev();
        // A step has two lines at most.
        lines.map(move |(n, line)| (2 * number + n as u64, line, entry, message))
    });
    let mut passing = lines.filter(|(number, (name, _), entry, message)| {
        cursor.is_none_or(|cursor| cursor.lets_pass(*number, entry.at))
            && filter.matches_state(name)
            && filter.matches(message, entry.at)
            && is_named(filter, &message.id)
    });
    let mut last = None;
    let mut page = Vec::new();
    for (number, (name, extra), entry, message) in passing.by_ref().take(count) {
        let mut fields = describe::log_line(message);
        fields.insert("time".into(), entry.at.as_millis().into());
        fields.insert("state".into(), form.state(name).into());
        fields.extend(extra);
        page.push(Value::Object(fields));
        last = Some(format!("{}-{number}", entry.at.as_millis()));
    }
    let mut answer = json!({ form.field(): page });
    if let (Some(last), Some(_), Some(fields)) = (last, passing.next(), answer.as_object_mut()) {
        fields.insert("cursor".into(), last.into());
    }
    json_answer(StatusCode::OK, &answer)
}

fn is_named(filter: &Filter, id: &str) -> bool {
    let ids = filter.ids.as_ref();
    ids.is_none_or(|ids| ids.iter().any(|named| named == id))
}

/// The lines that QStash logs for a step, in order. A failed delivery has two.
fn lines(entry: &Entry) -> Vec<(&'static str, Map<String, Value>)> {
    let plain = |state| vec![(state, Map::new())];
    match &entry.progress {
        Progress::Created => plain("CREATED"),
        Progress::Active { .. } => plain("ACTIVE"),
        Progress::CancelRequested => plain("CANCEL_REQUESTED"),
        Progress::Cancelled => plain("CANCELLED"),
        Progress::Delivered { .. } => plain("DELIVERED"),
        Progress::Retry {
            error,
            response,
            after,
            ..
        } => {
            let next = entry.at.plus(*after).as_millis();
            let next = ("nextDeliveryTime".to_owned(), next.into());
            let error = error_line(error, response.as_deref());
            vec![error, ("RETRY", Map::from_iter([next]))]
        }
        Progress::Failed {
            error, response, ..
        } => vec![
            error_line(error, response.as_deref()),
            ("FAILED", Map::new()),
        ],
    }
}

fn error_line(error: &str, response: Option<&Response>) -> (&'static str, Map<String, Value>) {
    let mut fields = Map::from_iter([("error".to_owned(), error.into())]);
    if let Some(response) = response {
        let headers = describe::headers(&response.headers);
        let body = STANDARD.encode(&response.body);
        fields.extend([
            ("responseStatus".to_owned(), response.status.into()),
            ("responseBody".to_owned(), body.into()),
            // The description of the API has the plural, the Python SDK reads the singular.
            ("responseHeaders".to_owned(), headers.clone()),
            ("responseHeader".to_owned(), headers),
        ]);
    }
    ("ERROR", fields)
}
