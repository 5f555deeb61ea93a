//! Deliveries: each message is tried, and tried again, until it arrives or is given up.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue, USER_AGENT};
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use tracing::{Instrument, debug, info_span};

use super::api::chain;
use super::message::{Destination, Message, Progress};
use super::retry::{self, Attempt, Next};
use super::state::{Draft, Job};
use super::{Shared, callback};
use crate::clock;
use crate::qstash::signature::{self, Keys};
use crate::qstash::tls;

/// Where publishes come from, as deliveries tell it: this machine.
pub(super) const CALLER_IP: &str = "127.0.0.1";

/// The region that deliveries come from, in the form of QStash's.
const REGION: &str = "LOCAL";

/// How long a receiver may take: the free plan's limit, which `Upstash-Timeout` shortens.
const MAX_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// How much of a receiver's answer is read: it is for people to look at.
const MAX_ANSWER: usize = 64 << 10;

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
        Job::Queue(name) => {
            while let Some(message) = next_in_queue(shared, &name) {
                deliver(shared, &message).await;
            }
        }
    }
}

fn next_in_queue(shared: &Shared, name: &str) -> Option<Arc<Message>> {
    shared.state().next_in_queue(name)
}

/// Tries until the message is delivered or failed.
async fn deliver(shared: &Arc<Shared>, message: &Arc<Message>) {
    if let Some(not_before) = message.options.not_before {
        tokio::time::sleep(not_before.since(clock::now())).await;
    }
    for retried in 0.. {
        let attempt = {
            let _permit = shared.deliveries.acquire().await;
            shared.record(message, Progress::Active { retried });
            let span = info_span!("delivery", message_id = %message.id, attempt = retried);
            attempt(shared, message, retried).instrument(span).await
        };
        let next = retry::next(&message.options, retried, &attempt, clock::now());
        // Before the end is noted: who sees it may count on the callbacks.
        call_back(shared, callback::drafts(message, &attempt, retried, next));
        let (status, error) = match attempt {
            Attempt::Answered { status, body, .. } => {
                let body = String::from_utf8_lossy(&body).into_owned();
                (Some(status), body)
            }
            Attempt::Broken { error } => (None, error),
        };
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
                };
                shared.record(message, failed);
                return;
            }
            Next::Retry { after } => {
                let after = scaled(after, shared.settings.time_scale);
                let retry = Progress::Retry {
                    status,
                    error,
                    retried,
                    after,
                };
                shared.record(message, retry);
                tokio::time::sleep(after).await;
            }
        }
    }
}

fn call_back(shared: &Arc<Shared>, drafts: Vec<Draft>) {
    let mut jobs = Vec::new();
    for draft in drafts {
        shared.accept(&mut shared.state(), draft, &mut jobs);
    }
    for job in jobs {
        start(shared, job);
    }
}

fn scaled(wait: Duration, time_scale: f64) -> Duration {
    if time_scale > 0.0 {
        let wait = Duration::try_from_secs_f64(wait.as_secs_f64() / time_scale);
        return wait.unwrap_or(MAX_WAIT);
    }
    wait
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
        Ok(response) => read(response).await,
        Err(error) => Attempt::Broken {
            error: chain(&error.without_url()),
        },
    };
    match &attempt {
        Attempt::Answered { status, .. } => debug!(status, "Receiver answered"),
        Attempt::Broken { error } => debug!(error, "Receiver did not answer"),
    }
    attempt
}

async fn read(mut response: reqwest::Response) -> Attempt {
    let mut body = BytesMut::new();
    while body.len() < MAX_ANSWER {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(error) => {
                return Attempt::Broken {
                    error: chain(&error.without_url()),
                };
            }
        }
    }
    body.truncate(MAX_ANSWER);
    Attempt::Answered {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: body.freeze(),
    }
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
