//! What publishers speak to: one request in, one answer out, or none when a fault has it so.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::fault::Fault;
use super::message::{Progress, Seen};
use super::publish::{self, Item, Refusal, Request};
use super::recent::{own_body, own_headers};
use super::target::{Call, Query};
use super::{Shared, delivery, manage};
use crate::clock::{self, Timestamp};
use crate::http::Answer;
use crate::secret::Secret;

/// The largest request body: what QStash takes in one batch.
/// See <https://upstash.com/docs/qstash/overall/changelog>, December 2024.
const MAX_REQUEST: usize = 100 << 20;

/// The quota that the daily fault claims: the free plan's.
const DAILY_QUOTA: u64 = 1_000;

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("connection closed without an answer")]
pub(super) struct Closed;

/// Answers one request. `period` ends when the port closes.
pub(super) async fn answer(
    shared: Arc<Shared>,
    period: CancellationToken,
    request: hyper::Request<Incoming>,
) -> Result<Answer, Closed> {
    let (parts, body) = request.into_parts();
    let query = Query::read(parts.uri.query().unwrap_or_default());
    let received = Received {
        method: &parts.method,
        path: parts.uri.path(),
        query,
        headers: &parts.headers,
        body: tokio::select! {
            // What cannot be read in full was cut off by the client.
            body = read(body) => body?,
            () = period.cancelled() => return Err(Closed),
        },
    };
    let call = Call::read(received.path);
    debug!(method = %received.method, ?call, "Request");
    if let Call::Publish { .. } | Call::Enqueue { .. } | Call::Batch = call {
        if received.method != Method::POST {
            return Ok(method_not_allowed());
        }
        return match publish(&shared, call, received) {
            Reaction::Answer(answer) => Ok(answer),
            Reaction::Close => Err(Closed),
            Reaction::Hang => {
                period.cancelled().await;
                Err(Closed)
            }
        };
    }
    if call == Call::Unknown {
        return Ok(error(StatusCode::NOT_FOUND, "not found"));
    }
    if !received.is_authorised(&shared.settings.token) {
        return Ok(unauthorised());
    }
    Ok(manage::answer(&shared, call, &received))
}

/// A request that was read.
pub(super) struct Received<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) query: Query,
    pub(super) headers: &'a HeaderMap,
    /// `None` when it is larger than any request may be.
    pub(super) body: Option<Bytes>,
}

/// What is done about a publish.
enum Reaction {
    Answer(Answer),
    Close,
    Hang,
}

async fn read(body: Incoming) -> Result<Option<Bytes>, Closed> {
    match Limited::new(body, MAX_REQUEST).collect().await {
        Ok(body) => Ok(Some(body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Ok(None),
        Err(error) => {
            debug!(error = chain(error.as_ref()), "Request was cut off");
            Err(Closed)
        }
    }
}

impl Received<'_> {
    fn is_authorised(&self, token: &Secret) -> bool {
        let header = self.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let bearer = header.and_then(|value| {
            let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
        });
        let parameter = self.query.token.as_deref().map(str::as_bytes);
        bearer
            .or(parameter)
            .is_some_and(|offered| token.matches(offered))
    }

    /// The messages that are asked for.
    fn to_request(&self, call: Call<'_>, max_message: u64) -> Result<Request, Refusal> {
        let (destination, queue) = match call {
            Call::Publish { destination } => (destination, None),
            Call::Enqueue { queue, destination } => (destination, Some(queue.to_owned())),
            _ => {
                let body = self.body.as_ref().ok_or_else(|| Refusal {
                    status: StatusCode::PAYLOAD_TOO_LARGE,
                    error: format!("request body is larger than {MAX_REQUEST} bytes"),
                })?;
                return Request::batch(body);
            }
        };
        let body = self.body.clone();
        let body = body.ok_or_else(|| publish::too_large(max_message))?;
        let body = own_body(&body);
        let mut destination = destination.to_owned();
        if !self.query.rest.is_empty() {
            destination.push('?');
            destination.push_str(&self.query.rest);
        }
        let mut headers = own_headers(self.headers);
        for (name, value) in &self.query.options {
            let invalid = || publish::bad_request(format!("invalid parameter {name}"));
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_not_a_name| invalid())?;
            let value =
                HeaderValue::from_bytes(value.as_bytes()).map_err(|_not_a_value| invalid())?;
            headers.entry(name).or_insert(value);
        }
        Ok(Request::single(Item {
            destination,
            queue,
            headers,
            body,
        }))
    }
}

/// Takes a publish, an enqueue or a batch, or fails as told to.
fn publish(shared: &Arc<Shared>, call: Call<'_>, received: Received<'_>) -> Reaction {
    let now = clock::now();
    let mut seen = Seen {
        instant: Instant::now(),
        at: now,
        path: received.path.to_owned(),
        messages: 1,
        bytes: received.body.as_ref().map_or(0, Bytes::len),
        faulted: false,
        status: None,
    };
    let request = received.to_request(call, shared.settings.max_message);
    if let Ok(request) = &request {
        seen.messages = request.items.len();
    }
    let fault = shared.faults.take();
    seen.faulted = fault != Fault::None;
    let accept = || {
        if !received.is_authorised(&shared.settings.token) {
            return unauthorised();
        }
        match request {
            Ok(request) => accept(shared, request, &mut seen.faulted, now),
            Err(refusal) => error(refusal.status, &refusal.error),
        }
    };
    let reaction = match fault {
        Fault::None => Reaction::Answer(accept()),
        Fault::Hang => Reaction::Hang,
        // A request that was read while the port closed.
        Fault::Reset | Fault::Refuse => Reaction::Close,
        Fault::AcceptThenReset => {
            accept();
            Reaction::Close
        }
        Fault::Garbled => Reaction::Answer(garbled()),
        Fault::GarbledAccepted => {
            accept();
            Reaction::Answer(garbled())
        }
        Fault::Status {
            code,
            body,
            content_type,
            headers,
        } => Reaction::Answer(other(code, body, &content_type, headers)),
        Fault::DailyQuota { reset } => Reaction::Answer(limited("RateLimit", DAILY_QUOTA, reset)),
        Fault::BurstLimit { reset } => Reaction::Answer(limited("Burst-RateLimit", 1, reset)),
        Fault::Unauthorized => Reaction::Answer(unauthorised()),
    };
    if let Reaction::Answer(answer) = &reaction {
        seen.status = Some(answer.status().as_u16());
    }
    shared.state().saw(seen);
    shared.changes.send_replace(());
    reaction
}

/// Accepts what can be accepted, and starts its delivery.
fn accept(shared: &Arc<Shared>, request: Request, rejected: &mut bool, now: Timestamp) -> Answer {
    let rejection = shared.faults.rejection();
    let limit = shared.settings.max_message;
    let outcome = {
        let mut state = shared.state();
        let outcome = publish::accept(&mut state, request, rejection.as_ref(), limit, now);
        for message in &outcome.accepted {
            shared.record_in(&mut state, message, Progress::Created);
        }
        outcome
    };
    *rejected |= outcome.rejected;
    for job in outcome.jobs {
        delivery::start(shared, job);
    }
    match outcome.answer {
        Ok((status, answer)) => json_answer(status, &answer),
        Err(refusal) => error(refusal.status, &refusal.error),
    }
}

/// An answer in JSON.
pub(super) fn json_answer(status: StatusCode, value: &Value) -> Answer {
    other(
        status,
        Bytes::from(value.to_string()),
        "application/json",
        HeaderMap::new(),
    )
}

/// `{"error": …}`.
pub(super) fn error(status: StatusCode, text: &str) -> Answer {
    json_answer(status, &json!({ "error": text }))
}

pub(super) fn method_not_allowed() -> Answer {
    error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
}

fn unauthorised() -> Answer {
    error(
        StatusCode::UNAUTHORIZED,
        "unable to authenticate: invalid token",
    )
}

fn garbled() -> Answer {
    let body = Bytes::from_static(b"[{\"messageId\":\"msg_\xff\xfe");
    other(StatusCode::OK, body, "application/json", HeaderMap::new())
}

/// 429, with the three headers that say of which quota and until when.
fn limited(family: &str, limit: u64, reset: Timestamp) -> Answer {
    let mut answer = error(StatusCode::TOO_MANY_REQUESTS, "rate limit exceeded");
    for (name, value) in [
        ("Limit", limit.to_string()),
        ("Remaining", "0".to_owned()),
        // Rounded up: a second early is too early.
        (
            "Reset",
            reset
                .plus(std::time::Duration::from_millis(999))
                .as_secs()
                .to_string(),
        ),
    ] {
        let name = HeaderName::try_from(format!("{family}-{name}"));
        let value = HeaderValue::try_from(value);
        if let (Ok(name), Ok(value)) = (name, value) {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}

fn other(status: StatusCode, body: Bytes, content_type: &str, headers: HeaderMap) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    if let Ok(content_type) = HeaderValue::try_from(content_type) {
        answer.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    answer
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
