use std::time::Duration;

use serde::Deserialize;
use strapi_qstash::clock::Timestamp;
use strapi_qstash::signature::{self, Keys};

/// A signature, and what Upstash's SDKs say about it: `tests/real/signatures` made it and
/// checks that they still do.
#[derive(Deserialize)]
struct Vector {
    name: String,
    keys: KeyPair,
    /// In seconds since 1970.
    at: i64,
    /// In seconds.
    tolerance: u64,
    url: Option<String>,
    body: String,
    token: String,
    javascript: bool,
    python: bool,
}

#[derive(Deserialize)]
struct KeyPair {
    current: String,
    next: String,
}

fn vectors() -> Vec<Vector> {
    let text = include_str!("../fixtures/signatures.json");
    serde_json::from_str(text).unwrap()
}

impl Vector {
    fn is_accepted(&self) -> bool {
        let keys = Keys {
            current: self.keys.current.clone(),
            next: self.keys.next.clone(),
        };
        let (now, tolerance) = (
            Timestamp::from_millis(self.at * 1000),
            Duration::from_secs(self.tolerance),
        );
        let (body, url) = (self.body.as_bytes(), self.url.as_deref());
        signature::verify(&keys, &self.token, body, url, now, tolerance).is_ok()
    }
}

#[test]
fn what_both_sdks_say_is_what_we_say() {
    let agreed: Vec<_> = vectors()
        .into_iter()
        .filter(|vector| vector.javascript == vector.python)
        .collect();
    assert!(agreed.iter().filter(|vector| vector.python).count() >= 9);
    assert!(agreed.iter().filter(|vector| !vector.python).count() >= 18);
    for vector in agreed {
        assert_eq!(vector.is_accepted(), vector.python, "{}", vector.name);
    }
}

#[test]
fn where_the_sdks_differ_the_tolerance_counts_and_the_stricter_one_is_right() {
    let mut differing: Vec<(String, bool)> = vectors()
        .into_iter()
        .filter(|vector| vector.javascript != vector.python)
        .map(|vector| (vector.name.clone(), vector.is_accepted()))
        .collect();
    differing.sort();
    let expected = [
        ("expired, within the tolerance", true),
        ("made with HS512", false),
        ("valid soon, within the tolerance", true),
        ("without a time to begin", false),
        ("without an end", false),
    ];
    assert_eq!(
        differing,
        expected.map(|(name, accepted)| (name.to_owned(), accepted))
    );
}

#[test]
fn a_changed_letter_anywhere_in_a_signature_is_refused() {
    let vectors = vectors();
    let vector = vectors.first().unwrap();
    assert!(vector.is_accepted());
    for at in 0..vector.token.len() {
        let mut token = vector.token.clone().into_bytes();
        // The last letter of a part has bits that base64 does not use: another one may mean
        // the same, so it is changed in a bit that counts.
        token[at] = match token[at] {
            b'.' => b'-',
            b'A'..=b'Z' => token[at] + 32,
            b'a'..=b'z' => token[at] - 32,
            _ => b'A',
        };
        let changed = Vector {
            token: String::from_utf8(token).unwrap(),
            keys: KeyPair {
                current: vector.keys.current.clone(),
                next: String::new(),
            },
            name: String::new(),
            url: vector.url.clone(),
            body: vector.body.clone(),
            ..*vector
        };
        assert!(!changed.is_accepted(), "at {at}");
    }
}
