//! Events of 2 KB, of different documents, as all benches use them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use strapi_qstash::buffer::{self, Address, Buffer, Fate, NewEvent};
use strapi_qstash::clock;
use strapi_qstash::event::{Event, EventId, Facts, Headers, Payload};
use tokio::task::JoinSet;

/// What Strapi 5 sent for a published article.
pub(crate) const CAPTURED: &str = include_str!("../../tests/fixtures/strapi/entry.publish.http");

/// The length of a body: the captured one, with more text in its entry.
pub(crate) const BODY_BYTES: usize = 2048;

/// The documentId in it, of which each event gets one of its own.
const DOCUMENT_ID: &str = "iqwvfxc4e8sp7cuped293ta8";

/// The body of an event, of the document with this number.
pub(crate) fn body(number: u64) -> Vec<u8> {
    let (_, body) = CAPTURED.split_once("\r\n\r\n").unwrap();
    let text = "\"slug\":\"";
    let padding = format!("{text}{}", "x".repeat(BODY_BYTES - body.len()));
    let body = body
        .replacen(text, &padding, 1)
        .replacen(DOCUMENT_ID, &format!("{number:024}"), 1);
    assert_eq!(body.len(), BODY_BYTES);
    body.into_bytes()
}

/// Makes so many events wait, as an outage would.
pub(crate) async fn fill(folder: &Path, events: u64) {
    const APPENDING: usize = 256;
    let buffer = Buffer::open(&buffer::Settings {
        path: folder.join("strapi-qstash.db"),
        max_bytes: u64::MAX,
        keep_delivered: Duration::ZERO,
        wait_for_lock: Duration::ZERO,
    });
    let buffer = buffer.unwrap();
    let next = Arc::new(AtomicU64::new(0));
    let mut appending = JoinSet::new();
    for _ in 0..APPENDING {
        let (buffer, next) = (buffer.clone(), Arc::clone(&next));
        appending.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= events {
                    return;
                }
                buffer.append(waiting(number)).await.unwrap();
            }
        });
    }
    appending.join_all().await;
    buffer.close().await;
}

/// An event that waits.
pub(crate) fn waiting(number: u64) -> NewEvent {
    let body = Bytes::from(body(number));
    NewEvent {
        event: Arc::new(Event {
            id: EventId::new(),
            received_at: clock::now(),
            facts: Facts::read(&body).unwrap(),
            payload: Payload {
                headers: Headers::from_iter([
                    ("x-custom-header", b"custom value".as_slice()),
                    ("x-strapi-event", b"entry.publish"),
                    ("content-type", b"application/json"),
                ]),
                body,
            },
        }),
        address: Some(Address {
            destination: "news".to_owned(),
            options: String::new(),
        }),
        fate: Fate::Pending { failed: None },
    }
}
