//! One request, and the requests that it splits into: bytes from the buffer, an outcome for
//! each event.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tracing::{Instrument, info_span, warn};

use super::window::Entry;
use crate::buffer::Buffer;
use crate::event::Payload;
use crate::qstash::{BatchOutcome, Client, Message, Outcome};

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
    /// It was discarded meanwhile.
    Gone,
}

/// Publishes these events, in order. A batch that is refused whole is halved until the
/// message that is wrong stands alone, so that it cannot hold back the others; the halves
/// go one after the other, since events of one document may be in both.
pub(super) async fn publish(
    buffer: &Buffer,
    client: &Client,
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
    let mut tried: Vec<Tried> = (0..size)
        .map(|_| if readable { Tried::Gone } else { Tried::No })
        .collect();
    // An event discarded meanwhile has no payload.
    let ready: Vec<(usize, &Entry, Payload)> = entries
        .iter()
        .enumerate()
        .filter_map(|(at, entry)| {
            found
                .next_if(|(seq, _)| *seq == entry.seq())
                .map(|(_, payload)| (at, entry, payload))
        })
        .collect();
    for (at, ..) in &ready {
        if let Some(slot) = tried.get_mut(*at) {
            *slot = Tried::No;
        }
    }
    let messages: Vec<Message<'_>> = ready
        .iter()
        .map(|(_, entry, payload)| message(entry, payload))
        .collect();

    // Parts yet to be published, as where they begin and how long they are; the next is last.
    let mut parts = vec![(0, messages.len())];
    let mut unknown: HashSet<&str> = HashSet::new();
    while let Some((begin, count)) = parts.pop() {
        let part = messages.get(begin..begin + count).unwrap_or_default();
        let of_part = ready.get(begin..begin + count).unwrap_or_default();
        let is_unknown = |entry: &Entry| unknown.contains(entry.event.address.destination.as_str());
        if of_part.iter().all(|(_, entry, _)| is_unknown(entry)) {
            continue; // known by now not to exist: they wait with the others of their destination
        }
        let span = info_span!("publish", events = part.len(), attempt = ?attempt);
        let started = Instant::now();
        let answered: Vec<Outcome> = match part {
            [] => continue, // all of it is gone
            [alone] => vec![client.publish(*alone, patience).instrument(span).await],
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
        for (place, ((at, entry, _), outcome)) in of_part.iter().zip(answered).enumerate() {
            match &outcome {
                // In a batch a refusal comes without a status: alone it has one.
                Outcome::Rejected { .. } if count > 1 => {
                    refused.push((begin + place, 1));
                    continue;
                }
                Outcome::UnknownDestination { .. } => {
                    unknown.insert(entry.event.address.destination.as_str());
                }
                outcome => stopped |= !outcome.is_about_the_message(),
            }
            if let Some(slot) = tried.get_mut(*at) {
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

fn message<'a>(entry: &'a Entry, payload: &'a Payload) -> Message<'a> {
    let event = &entry.event;
    Message {
        id: event.id,
        replays: event.replays,
        destination: &entry.destination,
        payload,
    }
}
