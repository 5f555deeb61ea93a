//! Callbacks: messages that tell a publisher how its message fared.
//!
//! See <https://upstash.com/docs/qstash/features/callbacks>.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};

use super::groups::Endpoint;
use super::logs::describe_headers;
use super::message::{Callback, Destination, Message};
use super::retry::{Attempt, Next};
use super::state::Draft;

/// The callbacks that follow an attempt: one after each, another after the last that failed.
pub(super) fn drafts(message: &Message, attempt: &Attempt, retried: u32, next: Next) -> Vec<Draft> {
    let failure = match next {
        Next::Failed => message.options.failure_callback.as_deref(),
        Next::Delivered | Next::Retry { .. } => None,
    };
    // The queue waits for the last callbacks only: a retry must not wait for one.
    let queue = match next {
        Next::Retry { .. } => None,
        Next::Delivered | Next::Failed => message.queue.clone(),
    };
    let callbacks = [message.options.callback.as_deref(), failure];
    let callbacks = callbacks.into_iter().flatten();
    callbacks
        .map(|callback| draft(message, callback, queue.clone(), attempt, retried))
        .collect()
}

fn draft(
    message: &Message,
    callback: &Callback,
    queue: Option<String>,
    attempt: &Attempt,
    retried: u32,
) -> Draft {
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
        body: Bytes::from(describe(message, attempt, retried).to_string()),
    }
}

fn describe(message: &Message, attempt: &Attempt, retried: u32) -> Value {
    let no_headers = HeaderMap::new();
    let (status, headers, body) = match attempt {
        Attempt::Answered {
            status,
            headers,
            body,
        } => (*status, headers, body.as_ref()),
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
        Destination::Group(name) => Some(name),
        Destination::Url(_) => None,
    };
    let optional = [
        ("topicName", group),
        ("endpointName", message.endpoint_name.as_ref()),
    ];
    for (name, value) in optional {
        if let (Some(value), Some(fields)) = (value, described.as_object_mut()) {
            fields.insert(name.into(), value.as_str().into());
        }
    }
    described
}
