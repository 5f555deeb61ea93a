//! An event: one webhook that Strapi handed over, and what is read from its body.
//!
//! The body is read once, without building anything of it: only the few fields that
//! routing, ordering and people need. Whatever is authentic is taken (`"entry": null`,
//! unknown events, no uid): Strapi sends each webhook once, so a refusal is a loss.

mod headers;

use std::borrow::Cow;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::AssertUnwindSafe;
use std::str::FromStr;
use std::sync::{LazyLock, Mutex};

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use uuid::{ContextV7, Uuid};

pub use self::headers::Headers;
use crate::clock::Timestamp;

/// The event that Strapi's panel sends when someone presses Trigger.
pub const TRIGGER_TEST: &str = "trigger-test";

/// What Strapi's panel offers to send, and Trigger.
pub(crate) const STRAPI_EVENTS: [&str; 10] = [
    "entry.create",
    "entry.update",
    "entry.delete",
    "entry.publish",
    "entry.unpublish",
    "entry.draft-discard",
    "media.create",
    "media.update",
    "media.delete",
    TRIGGER_TEST,
];

/// Where the next id comes from. With the time within the millisecond in their first digits, ids
/// that came one after the other are told apart by those, as a table shows them.
static IDS: LazyLock<Mutex<AssertUnwindSafe<ContextV7>>> = LazyLock::new(|| {
    Mutex::new(AssertUnwindSafe(
        ContextV7::new().with_additional_precision(),
    ))
});

/// Our name for an event: a UUID v7, so ids sort by the time of receipt. It is also the
/// deduplication id at QStash (letters, digits and `-` only, 36 characters).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId(Uuid);

impl EventId {
    /// A new id, later than all before it in this process.
    pub fn new() -> Self {
        Self(Uuid::new_v7(uuid::Timestamp::now(&*IDS)))
    }

    /// The ids that begin with these hexadecimal digits, as the first and the last there can be;
    /// `None` for what is no beginning of an id.
    pub fn range(prefix: &str) -> Option<(Self, Self)> {
        let mut digits = prefix.trim().to_ascii_lowercase();
        digits.retain(|c| c != '-');
        if digits.is_empty() || digits.len() > 32 {
            return None;
        }
        let of = |fill: &str| {
            let text = format!("{digits}{}", fill.repeat(32 - digits.len()));
            Uuid::try_parse(&text).ok().map(Self)
        };
        Some((of("0")?, of("f")?))
    }

    /// The 16 bytes that are stored.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From the 16 bytes that were stored.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl Default for EventId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EventId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

/// One received webhook.
#[derive(Debug, Clone)]
pub struct Event {
    /// Our name for it.
    pub id: EventId,
    /// When its last byte had arrived.
    pub received_at: Timestamp,
    /// What was read from its body.
    pub facts: Facts,
    /// What goes to the receiver.
    pub payload: Payload,
}

/// The bytes of an event: what the receiver gets, untouched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Headers for the receiver.
    pub headers: Headers,
    /// The body, byte for byte.
    pub body: Bytes,
}

/// What is known of an event without looking into its entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// `entry.publish`, `media.create`, …; `unknown` where neither body nor header tells.
    pub kind: String,
    /// `article`; absent for media.
    pub model: Option<String>,
    /// `api::article.article`; absent in Strapi 3 and in some events of Strapi 4.
    pub uid: Option<String>,
    /// documentId, or the row id where there is none (Strapi 3 and 4).
    pub document: Option<Document>,
}

/// Which thing an event is about. Strapi 5: documentId and locale; before: the row id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// documentId, or the row id in decimals.
    pub id: String,
    /// Whether `id` is a documentId: then the thing is of its uid, else of its model, since
    /// Strapi 4 leaves the uid out of some events of a thing and not of others.
    pub is_document_id: bool,
    /// The locale, where the content type has one.
    pub locale: Option<String>,
}

/// Why a body is not an event: it is no JSON object.
#[derive(Debug, thiserror::Error)]
#[error("not a JSON object: {0}")]
pub struct NotAnObject(#[from] serde_json::Error);

/// Names the document of an event among those in flight: equal for all events of one
/// document. Two documents that share a key by chance only wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DocumentKey(u64);

impl Facts {
    /// Reads a Strapi body (3, 4 or 5). `kind` stays empty when the body has no `event`.
    pub fn read(body: &[u8]) -> Result<Self, NotAnObject> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let facts = json.deserialize_map(FactsVisitor)?;
        json.end()?;
        Ok(facts)
    }

    /// The key by which events of one document are kept in order; `None` where the event
    /// names none (Trigger, `"entry": null`).
    pub fn document_key(&self) -> Option<DocumentKey> {
        let document = self.document.as_ref()?;
        let family = match (&self.uid, &self.model) {
            (Some(uid), _) if document.is_document_id => Some(uid),
            (uid, model) => model.as_ref().or(uid.as_ref()),
        };
        // Media and releases have neither: `media.create` and `media.delete` are of `media`.
        let family = family.map_or_else(
            || self.kind.split('.').next().unwrap_or_default(),
            String::as_str,
        );
        let mut hasher = DefaultHasher::new();
        (family, &document.id, &document.locale).hash(&mut hasher);
        Some(DocumentKey(hasher.finish()))
    }

    /// What follows the first dot of the kind: `publish` of `entry.publish`; the kind itself
    /// where it has no dot.
    pub fn action(&self) -> &str {
        self.kind
            .split_once('.')
            .map_or(self.kind.as_str(), |(_, action)| action)
    }
}

struct FactsVisitor;

impl<'de> Visitor<'de> for FactsVisitor {
    type Value = Facts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Facts, A::Error> {
        let mut facts = Facts::default();
        while let Some(key) = map.next_key_seed(Text)? {
            match key.as_deref() {
                Some("event") => facts.kind = owned(map.next_value_seed(Text)?).unwrap_or_default(),
                Some("model") => facts.model = owned(map.next_value_seed(Text)?),
                Some("uid") => facts.uid = owned(map.next_value_seed(Text)?),
                Some("entry" | "media" | "entity" | "release") => {
                    // At most one of them is an object in an event; `"entry": null` is common.
                    if let Some(document) = map.next_value_seed(Thing)? {
                        facts.document = Some(document);
                    }
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(facts)
    }
}

/// The document that an entry, a medium or an entity is; `None` from any other value.
struct Thing;

impl<'de> DeserializeSeed<'de> for Thing {
    type Value = Option<Document>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Thing {
    type Value = Option<Document>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut document_id, mut row_id, mut locale) = (None, None, None);
        while let Some(key) = map.next_key_seed(Text)? {
            match key.as_deref() {
                Some("documentId") => document_id = map.next_value_seed(Text)?,
                Some("id") => row_id = map.next_value_seed(Text)?,
                Some("locale") => locale = map.next_value_seed(Text)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let is_document_id = document_id.is_some();
        Ok(document_id.or(row_id).map(|id| Document {
            id: id.into_owned(),
            is_document_id,
            locale: owned(locale),
        }))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

fn owned(text: Option<Cow<'_, str>>) -> Option<String> {
    text.map(Cow::into_owned)
}

/// A string or a whole number as text; `None` from any other value. Only one with escapes is copied.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(text.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.to_owned().into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(number.to_string().into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(number.to_string().into()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Facts {
        Facts::read(body.as_bytes()).unwrap()
    }

    #[test]
    fn the_beginning_of_an_id_is_a_range() {
        let id: EventId = "01980e5c-1b2a-7c3d-8e4f-0123456789ab".parse().unwrap();
        for prefix in [
            "0",
            "01980e5c-1b",
            "01980E5C1B2A7",
            "01980e5c-1b2a-7c3d-8e4f-0123456789ab",
        ] {
            let (first, last) = EventId::range(prefix).unwrap();
            assert!((first.0..=last.0).contains(&id.0), "{prefix}");
        }
        let (_, last) = EventId::range("00").unwrap();
        assert!(last.0 < id.0);
        for prefix in ["", "-", "xyz", "01980e5c-1b2a-7c3d-8e4f-0123456789abc"] {
            assert!(EventId::range(prefix).is_none(), "{prefix}");
        }
    }

    #[test]
    fn strapi_five_names_the_document() {
        let facts = read(
            r#"{"event":"entry.publish","createdAt":"x","model":"page","uid":"api::page.page",
                "entry":{"id":3,"seo":{"id":9,"documentId":"inner"},"documentId":"abc","locale":"en"}}"#,
        );
        assert_eq!(facts.kind, "entry.publish");
        assert_eq!(facts.action(), "publish");
        assert_eq!(facts.model.as_deref(), Some("page"));
        assert_eq!(facts.uid.as_deref(), Some("api::page.page"));
        let document = Document {
            id: "abc".into(),
            is_document_id: true,
            locale: Some("en".into()),
        };
        assert_eq!(facts.document, Some(document));
    }

    #[test]
    fn strapi_four_events_of_one_entry_share_a_key_with_and_without_uid() {
        let created = read(
            r#"{"event":"entry.create","model":"article","uid":"api::article.article","entry":{"id":1}}"#,
        );
        let published = read(r#"{"event":"entry.publish","model":"article","entry":{"id":1}}"#);
        assert_eq!(created.document_key(), published.document_key());
        let other = read(r#"{"event":"entry.publish","model":"article","entry":{"id":2}}"#);
        assert_ne!(created.document_key(), other.document_key());
    }

    #[test]
    fn locales_and_types_are_documents_of_their_own() {
        let key = |uid: &str, locale: &str| {
            read(&format!(r#"{{"event":"entry.update","uid":"{uid}","entry":{{"documentId":"a","locale":"{locale}"}}}}"#))
                .document_key()
                .unwrap()
        };
        assert_eq!(key("api::a.a", "en"), key("api::a.a", "en"));
        assert_ne!(key("api::a.a", "en"), key("api::a.a", "de"));
        assert_ne!(key("api::a.a", "en"), key("api::b.b", "en"));
    }

    #[test]
    fn whatever_is_an_object_is_an_event() {
        for body in [
            r#"{}"#,
            r#"{"event":"entry.publish","entry":null}"#,
            r#"{"event":"entry.publish","entry":[1,{"documentId":"x"}],"model":7,"uid":{"a":1}}"#,
            r#"{"event":5,"entry":"text","media":false,"entity":-1.5}"#,
            r#"{"entry":{"documentId":null,"id":null,"locale":["x"]}}"#,
            r#"{"event":"a","event":"b"}"#,
        ] {
            assert_eq!(read(body).document, None, "{body}");
        }
        assert_eq!(read(r#"{"event":"a","event":"b"}"#).kind, "b");
    }

    #[test]
    fn a_body_nested_beyond_any_stack_is_read() {
        let deep = format!(
            r#"{{"event":"entry.update","entry":{{"a":{}1{}}}}}"#,
            "[".repeat(200_000),
            "]".repeat(200_000)
        );
        assert_eq!(read(&deep).kind, "entry.update");
    }

    #[test]
    fn what_is_no_object_is_told() {
        for body in [
            "",
            "null",
            "[]",
            "\"x\"",
            "{",
            "{\"a\":1}x",
            "{\"a\":1}{}",
            "not json",
        ] {
            assert!(Facts::read(body.as_bytes()).is_err(), "{body}");
        }
    }
}
