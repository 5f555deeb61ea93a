//! Deliveries: each message is tried, and tried again, until it arrives or is given up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue, USER_AGENT};
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use tracing::{Instrument, debug, info_span, warn};

use super::api::chain;
use super::dlq::DeadLetter;
use super::message::{Destination, Message, Progress, Response};
use super::queues::QueueId;
use super::recent::own_headers;
use super::retry::{self, Attempt, Next};
use super::state::{Draft, Job};
use super::{Shared, callback};
use crate::clock;
use crate::qstash::signature::{self, Keys};
use crate::qstash::tls;

/// Where publishes come from, as deliveries tell it: this machine.
pub(super) const CALLER_IP: &str = "127.0.0.1";

/// The region that deliveries come from: the one behind `qstash.upstash.io`. SDKs warn of any
/// that is not one of QStash's.
const REGION: &str = "EU-CENTRAL-1";

/// How long a receiver may take: the free plan's limit, which `Upstash-Timeout` shortens.
const MAX_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// How much of an answer is told in words.
const MAX_ERROR: usize = 1_000;

/// What users of QStash see when a receiver takes longer than it may.
const TIMED_OUT: &str = "context deadline exceeded";

/// The longest wait, where scaling gives none.
const MAX_WAIT: Duration = Duration::from_secs(86_400);

/// The client of all deliveries. What it sends is what is asked for: no proxy, no redirect.
pub(super) fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .tls_backend_preconfigured(tls::client_config(&tls::ExtraRoots::default()))
        .build()
        .expect("with the TLS configuration given, nothing is left that can fail")
}

/// Starts to deliver.
pub(super) fn start(shared: &Arc<Shared>, job: Job) {
    let of_task = Arc::clone(shared);
    shared.tasks.spawn(async move {
        let shared = of_task;
        tokio::select! {
            // Nothing outlives the process, so a delivery may be cut off anywhere.
            () = shared.shutdown.cancelled() => {}
            () = work(&shared, job) => {}
        }
    });
}

async fn work(shared: &Arc<Shared>, job: Job) {
    match job {
        Job::Message(message) => deliver(shared, &message).await,
        Job::Queue(queue) => {
            while let Some(message) = next_in_queue(shared, &queue) {
                deliver(shared, &message).await;
            }
        }
    }
}

fn next_in_queue(shared: &Shared, queue: &QueueId) -> Option<Arc<Message>> {
    shared.state().queues.next(queue)
}

/// Tries until the message is delivered, failed or cancelled.
async fn deliver(shared: &Arc<Shared>, message: &Arc<Message>) {
    if let Some(not_before) = message.options.not_before {
        tokio::time::sleep(not_before.since(clock::now())).await;
    }
    for retried in 0.. {
        let attempt = {
            let _turn = turn(shared, message).await;
            let _permit = shared.deliveries.acquire().await;
            if !begin(shared, message, retried) {
                return;
            }
            let span = info_span!("delivery", message_id = %message.id, attempt = retried);
            // Boxed: most messages wait most of the time, and need no room for a request.
            Box::pin(attempt(shared, message, retried).instrument(span)).await
        };
        let next = retry::next(&message.options, retried, &attempt, clock::now());
        let (response, error) = match &attempt {
            Attempt::Answered(response) => (Some(Arc::clone(response)), in_words(response)),
            Attempt::Broken { error } => (None, error.clone()),
        };
        let dead_letter = (next == Next::Failed).then(|| DeadLetter {
            message: Arc::clone(message),
            at: clock::now(),
            error: error.clone(),
            response: response.clone(),
        });
        let dead_letter = dead_letter.map(|letter| shared.state().dlq.add(letter));
        // Before the end is noted: who sees it may count on the callbacks.
        let callbacks = callback::drafts(message, &attempt, retried, next, dead_letter);
        call_back(shared, callbacks);
        let status = response.as_ref().map(|response| response.status);
        match next {
            Next::Delivered => {
                let status = status.unwrap_or_default();
                shared.record(message, Progress::Delivered { status, retried });
                return;
            }
            Next::Failed => {
                let failed = Progress::Failed {
                    status,
                    error,
                    retried,
                    response,
                };
                shared.record(message, failed);
                return;
            }
            Next::Retry { after } => {
                let retry = Progress::Retry {
                    status,
                    error,
                    retried,
                    after: scaled(after, *shared.time_scale.borrow()),
                    response,
                };
                shared.record(message, retry);
                wait(shared, after).await;
            }
        }
    }
}

/// Notes that an attempt begins, unless the message is to be cancelled: it is its turn.
fn begin(shared: &Shared, message: &Arc<Message>, retried: u32) -> bool {
    let goes_on = {
        let mut state = shared.state();
        let goes_on = !state.is_cancelled(&message.id);
        let step = if goes_on {
            Progress::Active { retried }
        } else {
            Progress::Cancelled
        };
        shared.record_in(&mut state, message, step);
        goes_on
    };
    shared.changes.send_replace(());
    goes_on
}

/// Waits until flow control lets the message go; whatever comes back is held meanwhile.
async fn turn(shared: &Arc<Shared>, message: &Message) -> Option<Turn> {
    let key = &message.options.flow_control.as_ref()?.key;
    let turn = shared.state().flows.enter(key, clock::now());
    admit(shared, key);
    // It cannot be forgotten while somebody waits.
    turn.await.ok();
    Some(Turn {
        shared: Arc::clone(shared),
        key: key.clone(),
    })
}

/// A delivery that counts for its flow-control key as long as it lives.
struct Turn {
    shared: Arc<Shared>,
    key: String,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.shared.state().flows.leave(&self.key);
        admit(&self.shared, &self.key);
    }
}

/// Lets go what flow control lets go, now and when the next period begins.
pub(super) fn admit(shared: &Arc<Shared>, key: &str) {
    let next_look = shared.state().flows.admit(key, clock::now());
    let Some(mut at) = next_look else {
        return;
    };
    let (of_task, key) = (Arc::clone(shared), key.to_owned());
    shared.tasks.spawn(async move {
        let shared = of_task;
        let looking = async {
            loop {
                tokio::time::sleep(at.since(clock::now())).await;
                match shared.state().flows.look_again(&key, clock::now()) {
                    Some(next) => at = next,
                    None => return,
                }
            }
        };
        tokio::select! {
            () = shared.shutdown.cancelled() => {}
            () = looking => {}
        }
    });
}

/// Waits before a retry. When the scale of time changes, so does what is left of the wait.
async fn wait(shared: &Shared, mut left: Duration) {
    let mut scale = shared.time_scale.subscribe();
    loop {
        let factor = *scale.borrow_and_update();
        let began = Instant::now();
        tokio::select! {
            () = tokio::time::sleep(scaled(left, factor)) => return,
            // It cannot end while this handle holds the sender.
            _ = scale.changed() => {
                let passed = began.elapsed().as_secs_f64() * sane(factor);
                let passed = Duration::try_from_secs_f64(passed).unwrap_or(Duration::MAX);
                left = left.saturating_sub(passed);
            }
        }
    }
}

/// An answer in words, for people.
fn in_words(response: &Response) -> String {
    let body = String::from_utf8_lossy(&response.body);
    let body = body.trim();
    let end = body.char_indices().nth(MAX_ERROR).map(|(at, _)| at);
    match body.get(..end.unwrap_or(body.len())) {
        Some(text) if !text.is_empty() => format!("{}: {text}", response.status),
        _ => response.status.to_string(),
    }
}

fn call_back(shared: &Arc<Shared>, drafts: Vec<Draft>) {
    let mut jobs = Vec::new();
    for draft in drafts {
        let mut state = shared.state();
        if state.has_room(1, draft.body.len()) {
            shared.accept(&mut state, draft, &mut jobs);
        } else {
            warn!(url = ?draft.destination, "Callback dropped: too many messages wait");
        }
    }
    for job in jobs {
        start(shared, job);
    }
}

fn scaled(wait: Duration, time_scale: f64) -> Duration {
    let wait = Duration::try_from_secs_f64(wait.as_secs_f64() / sane(time_scale));
    wait.unwrap_or(MAX_WAIT)
}

/// The scale of time: what is not above zero changes nothing.
fn sane(time_scale: f64) -> f64 {
    if time_scale > 0.0 && time_scale.is_finite() {
        time_scale
    } else {
        1.0
    }
}

/// One request to the receiver.
async fn attempt(shared: &Shared, message: &Message, retried: u32) -> Attempt {
    let key = shared.state().keys.current.clone();
    let signature = signature::sign(&key, &message.url, &message.body, clock::now());
    let timeout = message.options.timeout.unwrap_or(MAX_TIMEOUT);
    let mut request = shared
        .client
        .request(message.options.method.clone(), &message.url)
        .headers(headers(message, retried, &signature))
        .timeout(timeout.min(MAX_TIMEOUT));
    if !message.body.is_empty() {
        request = request.body(message.body.clone());
    }
    let attempt = match request.send().await {
        Ok(response) => read(response, shared.settings.max_message).await,
        Err(error) => Attempt::Broken { error: why(error) },
    };
    match &attempt {
        Attempt::Answered(response) => debug!(status = response.status, "Receiver answered"),
        Attempt::Broken { error } => debug!(error, "Receiver did not answer"),
    }
    attempt
}

/// Reads an answer, up to the size of a message: a callback has to carry it.
async fn read(mut response: reqwest::Response, max_body: u64) -> Attempt {
    let max_body = usize::try_from(max_body).unwrap_or(usize::MAX);
    let mut body = BytesMut::new();
    while body.len() < max_body {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(error) => return Attempt::Broken { error: why(error) },
        }
    }
    body.truncate(max_body);
    Attempt::Answered(Arc::new(Response {
        status: response.status().as_u16(),
        headers: own_headers(response.headers()),
        body: body.freeze(),
    }))
}

fn why(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return TIMED_OUT.to_owned();
    }
    chain(&error.without_url())
}

/// The publisher's headers, and QStash's own, which nobody can forge.
fn headers(message: &Message, retried: u32, signature: &str) -> HeaderMap {
    let mut headers = message.headers.clone();
    headers.insert(USER_AGENT, HeaderValue::from_static("Upstash-QStash"));
    let group = match &message.destination {
        Destination::Group(name) => Some(name.as_str()),
        Destination::Url(_) => None,
    };
    let retried = retried.to_string();
    for (name, value) in [
        ("upstash-message-id", Some(message.id.as_str())),
        ("upstash-retried", Some(&retried)),
        (signature::HEADER, Some(signature)),
        ("upstash-topic-name", group),
        ("upstash-caller-ip", Some(CALLER_IP)),
        ("upstash-region", Some(REGION)),
    ] {
        let name = HeaderName::from_static(name);
        headers.remove(&name);
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name, value);
        }
    }
    headers
}

/// The keys, for whoever has the token.
pub(super) fn describe_keys(keys: &Keys) -> Value {
    json!({ "current": keys.current, "next": keys.next })
}

/// The next key becomes the current one.
pub(super) fn rotate(keys: &mut Keys) {
    let next: String = std::iter::repeat_with(fastrand::alphanumeric)
        .take(28)
        .collect();
    keys.current = std::mem::replace(&mut keys.next, format!("sig_{next}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_scaled_and_a_bad_scale_changes_nothing() {
        let wait = Duration::from_secs(12);
        assert_eq!(scaled(wait, 1.0), wait);
        assert_eq!(scaled(wait, 1_000.0), Duration::from_millis(12));
        for scale in [0.0, -1.0, f64::NAN] {
            assert_eq!(scaled(wait, scale), wait);
        }
        assert_eq!(scaled(wait, f64::MIN_POSITIVE), MAX_WAIT);
    }

    #[test]
    fn a_rotation_moves_the_next_key_up() {
        let mut keys = Keys {
            current: "a".into(),
            next: "b".into(),
        };
        rotate(&mut keys);
        assert_eq!(keys.current, "b");
        assert!(keys.next.starts_with("sig_") && keys.next.len() == 32);
    }
}
