//! Bytes as a webhook's body: what is read of it is what a plain reading of the JSON gives.
#![no_main]

use std::fmt;

use libfuzzer_sys::fuzz_target;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use strapi_qstash::event::{Document, Facts};

fuzz_target!(|body: &[u8]| {
    let read = Facts::read(body);
    if let Ok(facts) = &read {
        assert_eq!(facts.document_key().is_some(), facts.document.is_some());
        assert!(facts.kind.ends_with(facts.action()));
    }
    match (read, serde_json::from_slice::<Members>(body)) {
        (Ok(facts), Ok(members)) => assert_eq!(facts, members.facts()),
        (Err(error), Ok(_)) => panic!("an object is refused: {error}"),
        (Ok(_), Err(error)) => {
            let start = body.iter().find(|byte| !byte.is_ascii_whitespace());
            assert_eq!(start, Some(&b'{'), "no object is taken");
            assert!(
                serde_json::from_slice::<IgnoredAny>(body).is_ok(),
                "no JSON is taken: {error}"
            );
            // What is skipped is not built: there, more is taken than a `Value` can hold.
            let told = error.to_string();
            let cannot_be_built = std::str::from_utf8(body).is_err()
                || body.windows(2).any(|escape| escape == br"\u")
                || told.contains("out of range")
                || told.contains("recursion limit");
            assert!(cannot_be_built, "broken JSON is taken: {told}");
        }
        (Err(_), Err(_)) => {}
    }
});

/// An object's members in their order, repeated ones too, which a `Value` would not keep.
struct Members(Vec<(String, Value)>);

impl Members {
    fn facts(&self) -> Facts {
        let last = |name: &str| {
            let named = self.0.iter().rfind(|(key, _)| key == name);
            named.and_then(|(_, value)| text(value))
        };
        let things = ["entry", "media", "entity", "release"];
        let mut documents = self.0.iter().filter_map(|(key, value)| {
            let is_thing = things.contains(&key.as_str());
            is_thing.then(|| document(value)).flatten()
        });
        Facts {
            kind: last("event").unwrap_or_default(),
            model: last("model"),
            uid: last("uid"),
            document: documents.next_back(),
        }
    }
}

fn document(thing: &Value) -> Option<Document> {
    let member = |name: &str| text(&thing[name]);
    let document_id = member("documentId");
    Some(Document {
        is_document_id: document_id.is_some(),
        id: document_id.or_else(|| member("id"))?,
        locale: member("locale"),
    })
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        _ => None,
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        json.deserialize_map(Reader)
    }
}
