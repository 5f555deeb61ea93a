//! Events over HTTP: listed, told, replayed and discarded. A page can use all of it.

use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Admin;
use crate::buffer::{
    Address, AppendError, Change, Filter, Found, ListFrom, Seq, StoreError, StoredBody,
};
use crate::describe;
use crate::event::EventId;
use crate::http::{Answer, json, plain};
use crate::router::Routing;
use crate::when;

/// Events in one answer, unless another number is asked for, and at most.
const PAGE: usize = 50;
const LARGEST_PAGE: usize = 500;

/// Parts of the buffer that are looked through for one answer; then it says where to go on.
const LOOKS: usize = 20;

/// Events that one request may change: they share a commit.
const MOST_CHANGES: usize = 1_000;

/// What is asked about events, by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Those that pass a filter.
    List,
    /// All that is known of one.
    Story(EventId),
    /// The body of one.
    Body(EventId),
    /// A change of one.
    Change(EventId, Verb),
    /// A change of those that the request names.
    ChangeMany(Verb),
}

/// What a person wants to become of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// Publish it once more.
    Replay,
    /// Delete it.
    Discard,
}

impl Asked {
    /// `None` for a path that is about nothing here.
    pub(super) fn of(path: &str) -> Option<Self> {
        let rest = path.strip_prefix("/api/events")?.trim_end_matches('/');
        if rest.is_empty() {
            return Some(Self::List);
        }
        let verb = |text: &str| match text {
            "replay" => Some(Verb::Replay),
            "discard" => Some(Verb::Discard),
            _ => None,
        };
        let rest = rest.strip_prefix('/')?;
        match rest.split_once('/') {
            None => verb(rest)
                .map(Self::ChangeMany)
                .or_else(|| rest.parse().ok().map(Self::Story)),
            Some((id, "body")) => id.parse().ok().map(Self::Body),
            Some((id, text)) => Some(Self::Change(id.parse().ok()?, verb(text)?)),
        }
    }

    pub(super) fn method(self) -> Method {
        match self {
            Self::List | Self::Story(_) | Self::Body(_) => Method::GET,
            Self::Change(..) | Self::ChangeMany(_) => Method::POST,
        }
    }
}

impl Admin {
    pub(super) async fn answer(&self, asked: Asked, query: Option<&str>, body: &[u8]) -> Answer {
        match asked {
            Asked::List => self.list(query.unwrap_or_default()).await,
            Asked::Story(id) => self.story(id).await,
            Asked::Body(id) => self.body(id).await,
            Asked::Change(id, verb) => self.change_one(id, verb).await,
            Asked::ChangeMany(verb) => self.change_many(body, verb).await,
        }
    }

    async fn list(&self, query: &str) -> Answer {
        let (filter, mut from, limit) = match read_query(query) {
            Ok(read) => read,
            Err(text) => return plain(StatusCode::BAD_REQUEST, format!("{text}\n")),
        };
        let mut events = Vec::new();
        let mut next = None;
        for _ in 0..LOOKS {
            let room = limit - events.len();
            let page = match self.buffer.list(filter.clone(), from, room).await {
                Ok(page) => page,
                Err(error) => return unreadable(&error),
            };
            let described = page.events.iter().map(describe::event).map(Value::Object);
            events.extend(described);
            next = page.next;
            match next {
                Some(seq) if events.len() < limit => from = ListFrom::Newest(Some(seq)),
                _ => break,
            }
        }
        let next = next.map(Seq::raw);
        json(StatusCode::OK, &json!({ "events": events, "next": next }))
    }

    async fn story(&self, id: EventId) -> Answer {
        match self.buffer.story(id).await {
            Ok(Some((event, steps))) => {
                let mut fields = describe::event(&event);
                fields.insert("steps".to_owned(), describe::steps(&steps));
                json(StatusCode::OK, &Value::Object(fields))
            }
            Ok(None) => unknown(),
            Err(error) => unreadable(&error),
        }
    }

    /// What anybody may have posted: it must not be taken for a page.
    async fn body(&self, id: EventId) -> Answer {
        let read = async {
            let Some(found) = self.buffer.find(id).await? else {
                return Ok(None);
            };
            let Some(payload) = self.buffer.payload(found.seq).await? else {
                return Ok(None);
            };
            let count = match payload.body {
                StoredBody::Whole(body) => return Ok(Some(body)),
                StoredBody::Pieces { count } => count,
            };
            let mut whole = Vec::new();
            for number in 0..count {
                match self.buffer.piece(found.seq, number).await? {
                    Some(piece) => whole.extend_from_slice(&piece),
                    None => return Ok(None),
                }
            }
            Ok::<_, StoreError>(Some(whole.into()))
        };
        let body = match read.await {
            Ok(Some(body)) => body,
            Ok(None) => return unknown(),
            Err(error) => return unreadable(&error),
        };
        let mut answer = plain(StatusCode::OK, "");
        *answer.body_mut() = http_body_util::Full::new(body);
        let headers: &mut HeaderMap = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(
            HeaderName::from_static("x-content-type-options"),
            HeaderValue::from_static("nosniff"),
        );
        answer
    }

    async fn change_one(&self, id: EventId, verb: Verb) -> Answer {
        let found = match self.buffer.find(id).await {
            Ok(Some(found)) => found,
            Ok(None) => return unknown(),
            Err(error) => return unreadable(&error),
        };
        match self.buffer.change(self.change(vec![found], verb)).await {
            Ok(1..) => json(StatusCode::OK, &json!({ "id": id.to_string() })),
            Ok(_) => plain(
                StatusCode::CONFLICT,
                "nothing to do: it is pending already, no route takes it, or its bytes are gone\n",
            ),
            Err(error) => unwritable(&error),
        }
    }

    async fn change_many(&self, body: &[u8], verb: Verb) -> Answer {
        #[derive(Deserialize)]
        struct Many {
            ids: Vec<String>,
        }
        let read = serde_json::from_slice::<Many>(body).ok().and_then(|many| {
            let ids = many.ids.iter().map(|id| id.parse::<EventId>().ok());
            ids.collect::<Option<Vec<_>>>()
        });
        let Some(ids) = read.filter(|ids| ids.len() <= MOST_CHANGES) else {
            let text = format!("post {{\"ids\": [\"…\"]}} with at most {MOST_CHANGES} ids\n");
            return plain(StatusCode::BAD_REQUEST, text);
        };
        let mut found = Vec::with_capacity(ids.len());
        for id in &ids {
            match self.buffer.find(*id).await {
                Ok(event) => found.extend(event),
                Err(error) => return unreadable(&error),
            }
        }
        let known = found.len();
        match self.buffer.change(self.change(found, verb)).await {
            Ok(changed) => json(
                StatusCode::OK,
                &json!({ "changed": changed, "known": known, "asked": ids.len() }),
            ),
            Err(error) => unwritable(&error),
        }
    }

    fn change(&self, found: Vec<Found>, verb: Verb) -> Change {
        match verb {
            Verb::Discard => Change::Discard(found.into_iter().map(|found| found.seq).collect()),
            Verb::Replay => {
                let with_address = found.into_iter().map(|found| {
                    let address = (!found.has_address).then(|| self.address_for(&found));
                    (found.seq, address.flatten())
                });
                Change::Replay(with_address.collect())
            }
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

/// The filter, where the list begins, and how long it may be.
fn read_query(query: &str) -> Result<(Filter, ListFrom, usize), String> {
    let mut filter = Filter::default();
    let (mut from, mut limit) = (ListFrom::Newest(None), PAGE);
    let url = Url::parse(&format!("http://x/?{query}")).map_err(|error| error.to_string())?;
    for (name, value) in url.query_pairs().filter(|(_, value)| !value.is_empty()) {
        let value = value.into_owned();
        match &*name {
            "state" => filter.state = Some(value.parse()?),
            "event" => filter.kind = Some(value),
            "uid" => filter.uid = Some(value),
            "document" => filter.document = Some(value),
            "since" => filter.since = Some(when::since(&value)?),
            "limit" => {
                let number = value.parse::<usize>();
                limit = number
                    .ok()
                    .filter(|limit| (1..=LARGEST_PAGE).contains(limit))
                    .ok_or_else(|| format!("limit: write a number from 1 to {LARGEST_PAGE}"))?;
            }
            "before" => {
                let number = value.parse::<i64>();
                let seq = number
                    .map_err(|_not_one| "before: write what an answer gave as next".to_owned());
                from = ListFrom::Newest(Some(Seq::from_raw(seq?)));
            }
            other => {
                return Err(format!(
                    "there is no {other:?}: write state, event, uid, document, since, limit or before"
                ));
            }
        }
    }
    Ok((filter, from, limit))
}

fn unknown() -> Answer {
    plain(StatusCode::NOT_FOUND, "there is no such event\n")
}

fn unreadable(error: &StoreError) -> Answer {
    let text = format!("the buffer could not be read: {error}\n");
    plain(StatusCode::SERVICE_UNAVAILABLE, text)
}

fn unwritable(error: &AppendError) -> Answer {
    let text = format!("the buffer could not be changed: {error}\n");
    plain(StatusCode::SERVICE_UNAVAILABLE, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_what_is_asked() {
        let id = EventId::new();
        for (path, expected) in [
            ("/api/events".to_owned(), Some(Asked::List)),
            ("/api/events/".to_owned(), Some(Asked::List)),
            (format!("/api/events/{id}"), Some(Asked::Story(id))),
            (format!("/api/events/{id}/body"), Some(Asked::Body(id))),
            (
                format!("/api/events/{id}/replay"),
                Some(Asked::Change(id, Verb::Replay)),
            ),
            (
                "/api/events/discard".to_owned(),
                Some(Asked::ChangeMany(Verb::Discard)),
            ),
            (format!("/api/events/{id}/delete"), None),
            ("/api/events/x".to_owned(), None),
            ("/api/eventsreplay".to_owned(), None),
            ("/api/event".to_owned(), None),
        ] {
            assert_eq!(Asked::of(&path), expected, "{path}");
        }
    }

    #[test]
    fn a_query_that_means_nothing_is_told() {
        assert_eq!(
            read_query("state=dead&event=entry.*&limit=7&before=12").unwrap(),
            (
                Filter {
                    state: Some(crate::buffer::EventState::Dead),
                    kind: Some("entry.*".into()),
                    ..Filter::default()
                },
                ListFrom::Newest(Some(Seq::from_raw(12))),
                7
            )
        );
        for query in [
            "state=lost",
            "limit=0",
            "limit=501",
            "before=x",
            "since=soon",
            "page=2",
        ] {
            assert!(read_query(query).is_err(), "{query}");
        }
    }
}
