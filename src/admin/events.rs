//! What a person may do with an event.

use hyper::StatusCode;
use serde_json::json;

use super::Admin;
use crate::buffer::{Address, AppendError, Change, Found, StoreError};
use crate::event::EventId;
use crate::http::{Answer, json, plain};
use crate::router::Routing;

/// `POST /api/events/ID/replay`, or `…/discard`.
pub(super) struct Action {
    id: EventId,
    verb: Verb,
}

enum Verb {
    /// Publish it once more.
    Replay,
    /// Delete it.
    Discard,
}

impl Action {
    /// The action that a path names.
    pub(super) fn of(path: &str) -> Option<Self> {
        let (id, verb) = path.strip_prefix("/api/events/")?.split_once('/')?;
        let verb = match verb {
            "replay" => Verb::Replay,
            "discard" => Verb::Discard,
            _ => return None,
        };
        let id = id.parse().ok()?;
        Some(Self { id, verb })
    }
}

impl Admin {
    pub(super) async fn act(&self, action: &Action) -> Answer {
        let found = match self.buffer.find(action.id).await {
            Ok(Some(found)) => found,
            Ok(None) => return plain(StatusCode::NOT_FOUND, "there is no such event\n"),
            Err(error) => return unreadable(&error),
        };
        let change = match action.verb {
            Verb::Discard => Change::Discard(vec![found.seq]),
            Verb::Replay => {
                let address = (!found.has_address).then(|| self.address_for(&found));
                Change::Replay(vec![(found.seq, address.flatten())])
            }
        };
        match self.buffer.change(change).await {
            Ok(1..) => json(StatusCode::OK, &json!({ "id": action.id.to_string() })),
            Ok(_) => plain(
                StatusCode::CONFLICT,
                "nothing to do: it is pending already, no route takes it, or its bytes are gone\n",
            ),
            Err(error) => unwritable(&error),
        }
    }

    /// A dead letter that no route took may have one by now.
    fn address_for(&self, found: &Found) -> Option<Address> {
        match self.router.route(&found.facts) {
            Routing::To(destination) => Some((&destination).into()),
            Routing::Drop | Routing::NoRoute => None,
        }
    }
}

fn unreadable(error: &StoreError) -> Answer {
    let text = format!("the buffer could not be read: {error}\n");
    plain(StatusCode::SERVICE_UNAVAILABLE, text)
}

fn unwritable(error: &AppendError) -> Answer {
    let text = format!("the buffer could not be changed: {error}\n");
    plain(StatusCode::SERVICE_UNAVAILABLE, text)
}
