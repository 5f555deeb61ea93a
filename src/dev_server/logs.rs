//! Messages and logs as the API shows them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::api::json_answer;
use super::message::{Destination, Message, Progress};
use super::state::{Entry, State};
use crate::http::Answer;

/// Entries in one answer, unless fewer are asked for.
const MAX_ENTRIES: usize = 1_000;

/// A message, for `GET /v2/messages/{id}`.
pub(super) fn describe(message: &Message) -> Value {
    let mut fields = common(message);
    match std::str::from_utf8(&message.body) {
        Ok(body) => fields.insert("body".into(), body.into()),
        Err(_) => fields.insert("bodyBase64".into(), STANDARD.encode(&message.body).into()),
    };
    let not_before = message.options.not_before.unwrap_or(message.created_at);
    fields.insert("notBefore".into(), not_before.as_millis().into());
    fields.insert("createdAt".into(), message.created_at.as_millis().into());
    if let Some(flow_control) = &message.options.flow_control {
        fields.insert("flowControlKey".into(), flow_control.key.clone().into());
        fields.insert("period".into(), flow_control.period.as_secs().into());
        let limits = [
            ("rate", flow_control.rate),
            ("parallelism", flow_control.parallelism),
        ];
        for (name, limit) in limits {
            if let Some(limit) = limit {
                fields.insert(name.into(), limit.into());
            }
        }
    }
    Value::Object(fields)
}

/// What messages and log entries have in common.
fn common(message: &Message) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    let options = &message.options;
    set("messageId", message.id.as_str().into());
    set("url", message.url.as_str().into());
    if let Destination::Group(name) = &message.destination {
        set("topicName", name.as_str().into());
    }
    set("endpointName", message.endpoint_name.as_deref().into());
    set("queueName", message.queue.as_deref().into());
    set("method", options.method.as_str().into());
    set("header", describe_headers(&message.headers));
    set("maxRetries", options.retries.into());
    set("callerIP", super::delivery::CALLER_IP.into());
    let callbacks = [
        ("callback", &options.callback),
        ("failureCallback", &options.failure_callback),
    ];
    for (name, callback) in callbacks {
        set(
            name,
            callback
                .as_ref()
                .map(|callback| callback.url.as_str())
                .into(),
        );
    }
    set("label", options.labels.first().map(String::as_str).into());
    if !options.labels.is_empty() {
        set("labels", options.labels.clone().into());
    }
    if let Some(expression) = &options.retry_delay {
        // The names differ between QStash's description and its SDKs.
        set("retryDelayExpression", expression.source().into());
        set("retryDelayExpr", expression.source().into());
    }
    if let Some(timeout) = options.timeout {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        set("timeout", millis.into());
    }
    fields
}

/// Names as people write them (`X-Strapi-Event`), each with its values.
pub(super) fn describe_headers(headers: &HeaderMap) -> Value {
    let describe = |name: &hyper::header::HeaderName| {
        let values = headers.get_all(name).iter();
        let values = values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        (
            capitalised(name.as_str()),
            values.collect::<Vec<_>>().into(),
        )
    };
    Value::Object(headers.keys().map(describe).collect())
}

fn capitalised(name: &str) -> String {
    let mut starts = true;
    name.chars()
        .map(|c| {
            let c = if starts { c.to_ascii_uppercase() } else { c };
            starts = c == '-';
            c
        })
        .collect()
}

/// The log, newest first, for `GET /v2/logs` and its older form `/v2/events`.
pub(super) fn list(state: &State, field: &str, parameters: &[(String, String)]) -> Answer {
    let count = parameters
        .iter()
        .find(|(name, _)| name == "count")
        .and_then(|(_, count)| count.parse().ok())
        .unwrap_or(MAX_ENTRIES);
    let entries: Vec<Value> = state
        .log()
        .flat_map(|(entry, message)| {
            let lines = lines(entry).into_iter().rev();
            lines.map(move |(name, extra)| (entry, message, name, extra))
        })
        .filter(|(_, message, name, _)| parameters.iter().all(|p| matches(p, message, name)))
        .take(count.min(MAX_ENTRIES))
        .map(|(entry, message, name, extra)| {
            let mut fields = common(message);
            fields.insert("time".into(), entry.at.as_millis().into());
            fields.insert("state".into(), name.into());
            fields.insert("body".into(), STANDARD.encode(&message.body).into());
            fields.extend(extra);
            Value::Object(fields)
        })
        .collect();
    json_answer(StatusCode::OK, &json!({ field: entries }))
}

/// The lines that QStash logs for a step, in order. A failed delivery has two.
fn lines(entry: &Entry) -> Vec<(&'static str, Map<String, Value>)> {
    let error = |status: &Option<u16>, error: &String| {
        let mut fields = Map::from_iter([("error".to_owned(), error.as_str().into())]);
        if let Some(status) = status {
            fields.insert("responseStatus".into(), (*status).into());
        }
        ("ERROR", fields)
    };
    match &entry.progress {
        Progress::Created => vec![("CREATED", Map::new())],
        Progress::Active { .. } => vec![("ACTIVE", Map::new())],
        Progress::Delivered { status, .. } => {
            let status = ("responseStatus".to_owned(), (*status).into());
            vec![("DELIVERED", Map::from_iter([status]))]
        }
        Progress::Retry {
            status,
            error: text,
            after,
            ..
        } => {
            let next = entry.at.plus(*after).as_millis();
            let next = ("nextDeliveryTime".to_owned(), next.into());
            vec![error(status, text), ("RETRY", Map::from_iter([next]))]
        }
        Progress::Failed {
            status,
            error: text,
            ..
        } => vec![error(status, text), ("FAILED", Map::new())],
    }
}

/// Whether a line passes one filter; what is no filter of ours lets everything pass.
fn matches((name, wanted): &(String, String), message: &Message, state: &str) -> bool {
    match name.as_str() {
        "messageId" => message.id == *wanted,
        "state" if wanted == "IN_PROGRESS" => ["ACTIVE", "RETRY", "ERROR"].contains(&state),
        "state" => wanted.eq_ignore_ascii_case(state),
        "url" => message.url == *wanted,
        "topicName" => message.destination == Destination::Group(wanted.clone()),
        "queueName" => message.queue.as_ref() == Some(wanted),
        "label" => message.options.labels.contains(wanted),
        _ => true,
    }
}
