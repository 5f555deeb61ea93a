//! Callbacks: messages that tell a publisher how its message fared.
//!
//! See <https://upstash.com/docs/qstash/features/callbacks>.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};

use super::describe::headers as describe_headers;
use super::dlq::DlqId;
use super::groups::Endpoint;
use super::message::{Callback, Destination, Message};
use super::retry::{Attempt, Next};
use super::state::Draft;

/// The callbacks that follow an attempt: one after each, another when the message is given up
/// and so a dead letter.
pub(super) fn drafts(
    message: &Message,
    attempt: &Attempt,
    retried: u32,
    next: Next,
    dead_letter: Option<DlqId>,
) -> Vec<Draft> {
    // The queue waits for the last callbacks only: a retry must not wait for one.
    let queue = match next {
        Next::Retry { .. } => None,
        Next::Delivered | Next::Failed => message.queue.clone(),
    };
    let always = message.options.callback.as_deref();
    let on_failure = message.options.failure_callback.as_deref();
    let callbacks = [
        always.map(|callback| (callback, None)),
        dead_letter.and_then(|id| Some((on_failure?, Some(id)))),
    ];
    callbacks
        .into_iter()
        .flatten()
        .map(|(callback, id)| {
            let body = describe(message, attempt, retried, id);
            draft(message, callback, queue.clone(), &body)
        })
        .collect()
}

fn draft(message: &Message, callback: &Callback, queue: Option<String>, body: &Value) -> Draft {
    let mut headers = callback.headers.clone();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Draft {
        destination: Destination::Url(callback.url.clone()),
        endpoints: vec![Endpoint {
            name: None,
            url: callback.url.clone(),
        }],
        queue,
        callback_of: Some(message.id.clone()),
        headers,
        options: callback.options.clone(),
        body: Bytes::from(body.to_string()),
    }
}

fn describe(
    message: &Message,
    attempt: &Attempt,
    retried: u32,
    dead_letter: Option<DlqId>,
) -> Value {
    let no_headers = HeaderMap::new();
    let (status, headers, body) = match attempt {
        Attempt::Answered(response) => (response.status, &response.headers, response.body.as_ref()),
        Attempt::Broken { error } => (0, &no_headers, error.as_bytes()),
    };
    let options = &message.options;
    let not_before = options.not_before.unwrap_or(message.created_at);
    let mut described = json!({
        "status": status,
        "header": describe_headers(headers),
        "body": STANDARD.encode(body),
        "retried": retried,
        "maxRetries": options.retries,
        "sourceMessageId": message.id,
        "url": message.url,
        "method": options.method.as_str(),
        "sourceHeader": describe_headers(&message.headers),
        "sourceBody": STANDARD.encode(&message.body),
        "notBefore": not_before.as_millis().to_string(),
        "createdAt": message.created_at.as_millis().to_string(),
        "callerIP": super::delivery::CALLER_IP,
    });
    let group = match &message.destination {
        Destination::Group(name) => Some(name.clone()),
        Destination::Url(_) => None,
    };
    let optional = [
        ("topicName", group),
        ("endpointName", message.endpoint_name.clone()),
        ("dlqId", dead_letter.map(|id| id.to_string())),
    ];
    for (name, value) in optional {
        if let (Some(value), Some(fields)) = (value, described.as_object_mut()) {
            fields.insert(name.into(), value.into());
        }
    }
    described
}
