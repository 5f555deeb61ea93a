//! A publish: the headers and the body that QStash gets for one event.
//!
//! `Content-Type` goes through as it is; every other header reaches the receiver only as
//! `Upstash-Forward-*`. The hook's own `Upstash-*` headers are options for QStash, as they
//! are when Strapi points straight at it, and win over the options of the route.
//! <https://upstash.com/docs/qstash/howto/publishing>

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::destination::{DeliveryOptions, Destination, Target};
use crate::event::{EventId, Payload};

/// One event on its way to QStash.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Our name for it: goes to the receiver as `Webhook-Id`.
    pub id: EventId,
    /// How often it was replayed by hand; QStash must not take a replay for a repeat.
    pub replays: u32,
    /// Where QStash sends it.
    pub destination: &'a Destination,
    /// What QStash sends.
    pub payload: &'a Payload,
}

/// A name and a value; the value may be Latin-1.
pub(super) type Header = (String, Bytes);

impl Message<'_> {
    /// The headers of the publish, without the token.
    pub(super) fn headers(&self, defaults: &DeliveryOptions) -> Vec<Header> {
        let mut headers = vec![
            (
                "Upstash-Deduplication-Id".to_owned(),
                Bytes::from(self.deduplication_id()),
            ),
            (
                "Upstash-Forward-Webhook-Id".to_owned(),
                Bytes::from(self.id.to_string()),
            ),
        ];
        for (name, value) in self.payload.headers.iter() {
            let name = match name {
                "content-type" => "Content-Type".to_owned(),
                "upstash-deduplication-id" | "upstash-content-based-deduplication" => continue,
                "upstash-forward-webhook-id" | "webhook-id" => continue,
                option if option.starts_with("upstash-") => option.to_owned(),
                name => format!("Upstash-Forward-{name}"),
            };
            headers.push((name, Bytes::copy_from_slice(value)));
        }
        let set_by_hook = headers.len();
        for (name, value) in self.destination.options.over(defaults).headers() {
            let by_hook = headers
                .iter()
                .take(set_by_hook)
                .any(|(hook, _)| hook.eq_ignore_ascii_case(&name));
            if !by_hook {
                headers.push((name, Bytes::from(value)));
            }
        }
        headers
    }

    /// The event's id; a replay by hand gets one of its own, or QStash would swallow it.
    fn deduplication_id(&self) -> String {
        match self.replays {
            0 => self.id.to_string(),
            n => format!("{}-{}", self.id, u64::from(n) + 1),
        }
    }

    pub(super) fn header_map(&self, defaults: &DeliveryOptions) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in self.headers(defaults) {
            // Both came in as headers, or were checked as options.
            let header = (
                HeaderName::from_bytes(name.as_bytes()),
                HeaderValue::from_maybe_shared(value),
            );
            if let (Ok(name), Ok(value)) = header {
                map.append(name, value);
            }
        }
        map
    }

    /// As an element of a batch. What is not UTF-8 has no place in one: see
    /// [`crate::buffer::Pending::is_text`].
    pub(super) fn batch_item<'a>(&'a self, defaults: &'a DeliveryOptions) -> BatchItem<'a> {
        BatchItem {
            message: self,
            defaults,
        }
    }
}

pub(super) struct BatchItem<'a> {
    message: &'a Message<'a>,
    defaults: &'a DeliveryOptions,
}

impl Serialize for BatchItem<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Destination { queue, target, .. } = self.message.destination;
        let mut item = serializer.serialize_map(None)?;
        match target {
            Target::Group(name) => item.serialize_entry("destination", name)?,
            Target::Url(url) => item.serialize_entry("destination", url)?,
        }
        if let Some(queue) = queue {
            item.serialize_entry("queue", queue)?;
        }
        item.serialize_entry("headers", &JsonHeaders(self.message.headers(self.defaults)))?;
        item.serialize_entry("body", text::<S>(&self.message.payload.body)?)?;
        item.end()
    }
}

/// Headers as a JSON object: a name that comes twice has its values joined by a comma, as
/// HTTP allows.
struct JsonHeaders(Vec<Header>);

impl Serialize for JsonHeaders {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (at, (name, value)) in self.0.iter().enumerate() {
            let same = |(other, _): &&Header| other.eq_ignore_ascii_case(name);
            if self.0.iter().take(at).any(|header| same(&header)) {
                continue; // written with the first of its name
            }
            let mut joined = text::<S>(value)?.to_owned();
            for (_, more) in self.0.iter().skip(at + 1).filter(same) {
                joined.push_str(", ");
                joined.push_str(text::<S>(more)?);
            }
            map.serialize_entry(name, &joined)?;
        }
        map.end()
    }
}

fn text<S: Serializer>(bytes: &[u8]) -> Result<&str, S::Error> {
    std::str::from_utf8(bytes).map_err(serde::ser::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(headers: &[(&str, &[u8])]) -> Payload {
        Payload {
            headers: headers.iter().copied().collect(),
            body: Bytes::from_static(
                br#"{"event":"entry.publish","entry":{"title":"\"G\u00fc\" 1"}}"#,
            ),
        }
    }

    #[test]
    fn only_the_content_type_goes_unprefixed_and_the_hook_wins_over_options() {
        let destination = Destination {
            options: DeliveryOptions {
                retries: Some(2),
                delay: Some("10s".into()),
                ..DeliveryOptions::default()
            },
            .."news".parse().unwrap()
        };
        let payload = payload(&[
            ("content-type", b"application/json"),
            ("x-strapi-event", b"entry.publish"),
            ("x-latin", b"Gr\xfc\xdfe"),
            ("upstash-retries", b"7"),
            ("upstash-deduplication-id", b"of-the-hook"),
        ]);
        let id = EventId::new();
        let message = Message {
            id,
            replays: 0,
            destination: &destination,
            payload: &payload,
        };
        let map = message.header_map(&DeliveryOptions::default());
        let all = |name: &str| {
            map.get_all(name)
                .iter()
                .map(|value| value.as_bytes().to_vec())
                .collect::<Vec<_>>()
        };
        assert_eq!(all("content-type"), [b"application/json".to_vec()]);
        assert_eq!(
            all("upstash-forward-x-strapi-event"),
            [b"entry.publish".to_vec()]
        );
        assert_eq!(all("upstash-forward-x-latin"), [b"Gr\xfc\xdfe".to_vec()]);
        assert_eq!(all("upstash-retries"), [b"7".to_vec()]);
        assert_eq!(all("upstash-delay"), [b"10s".to_vec()]);
        assert_eq!(
            all("upstash-deduplication-id"),
            [id.to_string().into_bytes()]
        );
        assert_eq!(
            all("upstash-forward-webhook-id"),
            [id.to_string().into_bytes()]
        );
    }

    #[test]
    fn a_replay_is_no_repeat() {
        let (destination, payload) = ("news".parse().unwrap(), payload(&[]));
        let id = EventId::new();
        let message = |replays| Message {
            id,
            replays,
            destination: &destination,
            payload: &payload,
        };
        assert_eq!(message(0).deduplication_id(), id.to_string());
        assert_eq!(message(1).deduplication_id(), format!("{id}-2"));
        assert_eq!(message(2).deduplication_id(), format!("{id}-3"));
        assert!(
            message(u32::MAX).deduplication_id().len() <= 64,
            "QStash takes at most 64 characters"
        );
    }

    #[test]
    fn a_batch_item_is_what_the_single_publish_would_be() {
        let destination: Destination = "queue:fifo/https://example.com/a?b=1".parse().unwrap();
        let payload = payload(&[
            ("content-type", b"application/json"),
            ("x-tag", b"a"),
            ("x-tag", b"b"),
        ]);
        let message = Message {
            id: EventId::new(),
            replays: 0,
            destination: &destination,
            payload: &payload,
        };
        let json = serde_json::to_value(message.batch_item(&DeliveryOptions::default())).unwrap();
        assert_eq!(json["destination"], "https://example.com/a?b=1");
        assert_eq!(json["queue"], "fifo");
        assert_eq!(json["headers"]["Content-Type"], "application/json");
        assert_eq!(json["headers"]["Upstash-Forward-x-tag"], "a, b");
        assert_eq!(json["body"].as_str().unwrap().as_bytes(), payload.body);
    }
}
