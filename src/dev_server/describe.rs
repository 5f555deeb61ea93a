//! Messages, dead letters and log lines as the API shows them, redacted where that was asked
//! for. Where QStash's description and its SDKs name a field differently, both are there.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::HeaderMap;
use serde_json::{Map, Value};

use super::delivery::CALLER_IP;
use super::dlq::{DeadLetter, DlqId};
use super::message::{Callback, Destination, Message};
use super::redact;

/// A message, for `GET /v2/messages/{id}`.
pub(super) fn message(message: &Message) -> Value {
    Value::Object(whole(message))
}

/// A dead letter, for `GET /v2/dlq`.
pub(super) fn dead_letter(id: DlqId, letter: &DeadLetter) -> Value {
    let mut fields = whole(&letter.message);
    fields.insert("dlqId".into(), id.to_string().into());
    let no_headers = HeaderMap::new();
    // Where there was no answer, the words for that stand for its body, as in callbacks.
    let (status, response_headers, body) = match letter.response.as_deref() {
        Some(response) => (response.status, &response.headers, response.body.clone()),
        None => (0, &no_headers, Bytes::from(letter.error.clone())),
    };
    fields.insert("responseStatus".into(), status.into());
    fields.insert("responseHeader".into(), headers(response_headers));
    insert_body(&mut fields, "responseBody", &body);
    Value::Object(fields)
}

fn whole(message: &Message) -> Map<String, Value> {
    let mut fields = common(message);
    let body = redact::body(&message.body, message.options.redact.as_ref());
    insert_body(&mut fields, "body", &body);
    let not_before = message.options.not_before.unwrap_or(message.created_at);
    fields.insert("notBefore".into(), not_before.as_millis().into());
    fields.insert("createdAt".into(), message.created_at.as_millis().into());
    let callbacks = [
        ("callbackHeader", &message.options.callback),
        ("failureCallbackHeader", &message.options.failure_callback),
    ];
    insert_callback_headers(&mut fields, callbacks);
    fields
}

/// As text under `name`, or in base64 under `name` + `Base64`.
fn insert_body(fields: &mut Map<String, Value>, name: &str, body: &[u8]) {
    match std::str::from_utf8(body) {
        Ok(body) => fields.insert(name.to_owned(), body.into()),
        Err(_) => fields.insert(format!("{name}Base64"), STANDARD.encode(body).into()),
    };
}

fn insert_callback_headers(
    fields: &mut Map<String, Value>,
    callbacks: [(&str, &Option<Box<Callback>>); 2],
) {
    for (name, callback) in callbacks {
        if let Some(callback) = callback
            && !callback.headers.is_empty()
        {
            fields.insert(name.to_owned(), headers(&callback.headers));
        }
    }
}

/// What the log lines of a message have in common.
pub(super) fn log_line(message: &Message) -> Map<String, Value> {
    let mut fields = common(message);
    let body = redact::body(&message.body, message.options.redact.as_ref());
    fields.insert("body".into(), STANDARD.encode(&body).into());
    let callbacks = [
        ("callbackHeaders", &message.options.callback),
        ("failureCallbackHeaders", &message.options.failure_callback),
    ];
    insert_callback_headers(&mut fields, callbacks);
    fields
}

/// What messages and log lines have in common.
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
    let shown = redact::headers(&message.headers, options.redact.as_ref());
    set("header", headers(&shown));
    set("maxRetries", options.retries.into());
    set("callerIP", CALLER_IP.into());
    let url = |callback: &Option<Box<Callback>>| callback.as_ref().map(|one| one.url.clone());
    set("callback", url(&options.callback).into());
    set("failureCallback", url(&options.failure_callback).into());
    set("label", options.labels.first().map(String::as_str).into());
    if !options.labels.is_empty() {
        set("labels", options.labels.clone().into());
    }
    if let Some(expression) = &options.retry_delay {
        set("retryDelayExpression", expression.source().into());
        set("retryDelayExpr", expression.source().into());
    }
    if let Some(timeout) = options.timeout {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        set("timeout", millis.into());
    }
    if let Some(flow_control) = &options.flow_control {
        set("flowControlKey", flow_control.key.as_str().into());
        set("period", flow_control.period.as_secs().into());
        set("rate", flow_control.rate.into());
        set("parallelism", flow_control.parallelism.into());
    }
    fields
}

/// Names as people write them (`X-Strapi-Event`), each with its values.
pub(super) fn headers(headers: &HeaderMap) -> Value {
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
