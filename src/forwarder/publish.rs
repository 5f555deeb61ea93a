//! One request, and the requests that it splits into: bytes from the buffer, an outcome for
//! each event.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{Instrument, info_span, warn};

use super::large;
use super::window::Entry;
use crate::buffer::{Buffer, StoredBody, StoredPayload};
use crate::event::Payload;
use crate::qstash::{BatchOutcome, Client, Message, Outcome};
use crate::spans::Spans;

/// Why a request is made.
#[derive(Debug)]
pub(super) enum Attempt {
    /// QStash takes events.
    Flow,
    /// To find out whether it does.
    Trial,
    /// To find out whether this destination exists by now.
    Held(String),
}

/// What a request brought.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) attempt: Attempt,
    /// How many events it was for.
    pub(super) size: usize,
    /// What became of each.
    pub(super) tried: Vec<(Entry, Tried)>,
    /// The buffer gave the bytes.
    pub(super) readable: bool,
    /// How long the last answer took.
    pub(super) took: Duration,
}

/// What became of an event in a request.
#[derive(Debug)]
pub(super) enum Tried {
    /// QStash was asked.
    Yes(Outcome),
    /// It was not its turn.
    No,
    /// Its bytes could not be read.
    Unread,
    /// It was discarded meanwhile.
    Gone,
}

/// An event whose bytes, or the first of them, have been read.
struct Ready<'a> {
    /// Its place in the request.
    at: usize,
    entry: &'a Entry,
    payload: Payload,
    /// So many pieces of its body are still to be read; 0: the payload has all of it.
    pieces: u32,
}

/// Publishes these events, in order. A batch that is refused whole is halved until the
/// message that is wrong stands alone, so that it cannot hold back the others; the halves
/// go one after the other, since events of one document may be in both.
pub(super) async fn publish(
    buffer: &Buffer,
    client: &Client,
    spans: &Spans,
    entries: Vec<Entry>,
    attempt: Attempt,
    patience: Duration,
) -> Published {
    let size = entries.len();
    let mut took = Duration::ZERO;
    let mut readable = true;
    let payloads = match buffer
        .payloads(entries.iter().map(Entry::seq).collect())
        .await
    {
        Ok(payloads) => payloads,
        Err(error) => {
            warn!(
                error = &error as &dyn std::error::Error,
                "Buffer could not be read, will try again"
            );
            readable = false;
            Vec::new()
        }
    };
    let mut found = payloads.into_iter().peekable();
    let mut tried = Vec::with_capacity(size);
    let mut ready = Vec::with_capacity(size);
    for (at, entry) in entries.iter().enumerate() {
        // An event discarded meanwhile has no payload.
        let payload = found.next_if(|(seq, _)| *seq == entry.seq());
        tried.push(match payload {
            _ if !readable => Tried::No,
            None => Tried::Gone,
            Some((_, None)) => Tried::Unread,
            Some((_, Some(StoredPayload { headers, body }))) => {
                let (body, pieces) = match body {
                    StoredBody::Whole(body) => (body, 0),
                    StoredBody::Pieces { count } => (Bytes::new(), count),
                };
                ready.push(Ready {
                    at,
                    entry,
                    payload: Payload { headers, body },
                    pieces,
                });
                Tried::No
            }
        });
    }
    let messages: Vec<Message<'_>> = ready.iter().map(message).collect();

    // Parts yet to be published, as where they begin and how long they are; the next is last.
    let mut parts = vec![(0, messages.len())];
    let mut unknown: HashSet<&str> = HashSet::new();
    while let Some((begin, count)) = parts.pop() {
        let part = messages.get(begin..begin + count).unwrap_or_default();
        let of_part = ready.get(begin..begin + count).unwrap_or_default();
        let is_unknown = |entry: &Entry| unknown.contains(entry.event.address.destination.as_str());
        if of_part.iter().all(|ready| is_unknown(ready.entry)) {
            continue; // known by now not to exist: they wait with the others of their destination
        }
        let span = info_span!("publish", events = part.len(), attempt = ?attempt);
        let started = Instant::now();
        let answered: Vec<Outcome> = match part {
            [] => continue, // all of it is gone
            [alone] => {
                let large = of_part.first().filter(|ready| ready.pieces > 0);
                let published = async {
                    match large {
                        None => Some(client.publish(*alone, patience).await),
                        Some(ready) => {
                            let (entry, pieces) = (ready.entry, ready.pieces);
                            large::publish(buffer, client, entry, pieces, *alone, patience).await
                        }
                    }
                };
                let published = published.instrument(span).await;
                if published.is_none()
                    && let Some(slot) = large.and_then(|ready| tried.get_mut(ready.at))
                {
                    *slot = Tried::Unread;
                }
                published.into_iter().collect()
            }
            part => match client.publish_batch(part, patience).instrument(span).await {
                BatchOutcome::Each(outcomes) => outcomes,
                BatchOutcome::Whole(outcome) if outcome.is_about_the_message() => {
                    let half = count / 2;
                    parts.push((begin + half, count - half));
                    parts.push((begin, half));
                    continue;
                }
                BatchOutcome::Whole(outcome) => vec![outcome; part.len()],
            },
        };
        took = started.elapsed();
        let (mut stopped, mut refused) = (false, Vec::new());
        for (place, (ready, outcome)) in of_part.iter().zip(answered).enumerate() {
            match &outcome {
                // In a batch a refusal comes without a status: alone it has one.
                Outcome::Rejected { .. } if count > 1 => {
                    refused.push((begin + place, 1));
                    continue;
                }
                Outcome::UnknownDestination { .. } => {
                    unknown.insert(ready.entry.event.address.destination.as_str());
                }
                outcome => stopped |= !outcome.is_about_the_message(),
            }
            let event = &ready.entry.event;
            spans.published(
                event.id,
                &event.facts,
                &event.address.destination,
                &ready.payload.headers,
                &outcome,
                took,
            );
            if let Some(slot) = tried.get_mut(ready.at) {
                *slot = Tried::Yes(outcome);
            }
        }
        parts.extend(refused.into_iter().rev()); // in order: the last part is the next
        if stopped {
            break; // the other parts would fare no better, and wait for their turn
        }
    }
    drop((messages, unknown));
    drop(ready);
    Published {
        attempt,
        size,
        tried: entries.into_iter().zip(tried).collect(),
        readable,
        took,
    }
}

fn message<'a>(ready: &'a Ready<'_>) -> Message<'a> {
    let event = &ready.entry.event;
    Message {
        id: event.id,
        replays: event.replays,
        destination: &ready.entry.destination,
        payload: &ready.payload,
    }
}
