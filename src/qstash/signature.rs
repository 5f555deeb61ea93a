//! `Upstash-Signature`: how QStash proves to a receiver that a delivery is its own.
//!
//! The header is a JWT signed with HS256. Its claims name the URL and the digest of the
//! body, so that a signature serves for one delivery only. There are two keys: QStash
//! signs with the current one; a receiver that also takes the next one goes on working
//! while the keys are rotated.
//! See <https://upstash.com/docs/qstash/features/security>.
//!
//! ```
//! use std::time::Duration;
//!
//! use strapi_qstash::clock;
//! use strapi_qstash::signature::{self, Keys, SignatureError};
//!
//! # let now = clock::now();
//! # let header = signature::sign("sig_current", "https://example.com/hook", b"{}", now);
//! # let body = b"{}";
//! let keys = Keys { current: "sig_current".into(), next: "sig_next".into() };
//! let (url, tolerance) = (Some("https://example.com/hook"), Duration::from_secs(5));
//! // The bytes as they came in: JSON that was read and written anew has another digest.
//! let claims = signature::verify(&keys, &header, body, url, clock::now(), tolerance)?;
//! assert_eq!(claims.iss, "Upstash");
//! # Ok::<_, SignatureError>(())
//! ```
//!
//! It is as strict as Upstash's SDKs together: what either refuses is refused (a signature
//! without `nbf` or `exp`, or made with another algorithm than HS256, as Python does). Only
//! the tolerance is that of JavaScript, since Python's does not reach its JWT library.
//!
//! A signature says nothing about the headers beside it, and it can be shown again until it
//! expires: whoever must not act twice remembers `Upstash-Message-Id` or the `Webhook-Id` that
//! the sidecar gives each event.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use ring::{digest, hmac};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::clock::Timestamp;

/// The header that carries the signature.
pub const HEADER: &str = "upstash-signature";

/// Who signs, as the claims name it.
pub const ISSUER: &str = "Upstash";

/// How long a signature is valid.
pub const VALIDITY: Duration = Duration::from_secs(300);

/// The two signing keys of an account, from the QStash console. Its `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// The key that QStash signs with.
    pub current: String,
    /// The key that QStash will sign with after the next rotation.
    pub next: String,
}

/// What a signature says. Unknown claims are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who signed: `Upstash`.
    pub iss: String,
    /// The URL that the message was delivered to, exactly as the publisher gave it.
    pub sub: String,
    /// When it was signed, in seconds since 1970.
    #[serde(default)]
    pub iat: i64,
    /// From when it is valid, in seconds since 1970.
    pub nbf: i64,
    /// From when it is no longer valid, in seconds since 1970.
    pub exp: i64,
    /// A name for this signature.
    #[serde(default)]
    pub jti: String,
    /// SHA-256 of the body in base64url, with or without padding.
    pub body: String,
}

/// Why a signature was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// It is not a JWT with the claims that QStash sets.
    #[error("signature is not a JWT of QStash: {part} cannot be read")]
    Malformed {
        /// The part that could not be read.
        part: &'static str,
    },
    /// It was made in another way than QStash's: `none` is the usual forgery.
    #[error("signature algorithm is {algorithm:?}, not HS256")]
    Algorithm {
        /// The algorithm that the header names.
        algorithm: String,
    },
    /// Neither key made it.
    #[error("signature was made with neither the current nor the next key")]
    Key,
    /// Someone else signed.
    #[error("issuer is {issuer:?}, not \"Upstash\"")]
    Issuer {
        /// The issuer that the claims name.
        issuer: String,
    },
    /// It is not valid yet.
    #[error("signature is not valid before {from} (seconds since 1970)")]
    Early {
        /// The claim `nbf`.
        from: i64,
    },
    /// It is no longer valid.
    #[error("signature expired at {until} (seconds since 1970)")]
    Expired {
        /// The claim `exp`.
        until: i64,
    },
    /// It was made for another URL.
    #[error("signature is for {signed:?}")]
    Url {
        /// The URL that the claims name.
        signed: String,
    },
    /// It was made for another body.
    #[error("signature is for another body")]
    Body,
}

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    alg: &'a str,
    #[serde(default)]
    typ: &'a str,
}

/// The signature of a delivery of `body` to `url`, made at `now` with `key`.
///
/// It is valid at once on any clock (`nbf` is 0): a receiver whose clock is slow must not
/// refuse it. See <https://upstash.com/docs/qstash/overall/changelog>, September 2024.
pub fn sign(key: &str, url: &str, body: &[u8], now: Timestamp) -> String {
    let validity = i64::try_from(VALIDITY.as_secs()).unwrap_or(i64::MAX);
    let claims = Claims {
        iss: ISSUER.to_owned(),
        sub: url.to_owned(),
        iat: now.as_secs(),
        nbf: 0,
        exp: now.as_secs().saturating_add(validity),
        jti: format!("jwt_{}", Uuid::now_v7().simple()),
        body: URL_SAFE.encode(digest::digest(&digest::SHA256, body)),
    };
    sign_claims(key, &claims)
}

fn sign_claims(key: &str, claims: &Claims) -> String {
    let header = serde_json::to_vec(&Header {
        alg: "HS256",
        typ: "JWT",
    });
    let mut token = String::new();
    for part in [header, serde_json::to_vec(claims)] {
        let part = part.expect("texts and numbers always have a JSON form");
        URL_SAFE_NO_PAD.encode_string(part, &mut token);
        token.push('.');
    }
    token.pop();
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    let signature = hmac::sign(&key, token.as_bytes());
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    token
}

/// Checks a signature: made by one of `keys`, by Upstash, for this body, for `url` where
/// that is given, and valid at `now` give or take `tolerance` (in whole seconds).
///
/// `signature` is the value of the header [`HEADER`], `body` what came with it, byte for byte,
/// and `url` the endpoint's URL exactly as the publisher gave it: without it, a signature made
/// for another endpoint of the same account is accepted.
///
/// Codes and digests are compared in constant time, and nothing in the token is believed
/// before its code is. An empty key never verifies anything.
///
/// # Errors
///
/// The first thing that is wrong, in this order: the form, the algorithm, the key, the issuer,
/// the time, the URL, the body.
pub fn verify(
    keys: &Keys,
    signature: &str,
    body: &[u8],
    url: Option<&str>,
    now: Timestamp,
    tolerance: Duration,
) -> Result<Claims, SignatureError> {
    let claims = verify_claims(keys, signature, url, now, tolerance)?;
    claims.verify_body(body)?;
    Ok(claims)
}

/// The same as [`verify`] before the body is there, so that no body has to be read whose
/// signature is wrong; [`Claims::verify_body`] is the rest.
///
/// # Errors
///
/// Those of [`verify`] but for [`SignatureError::Body`].
pub fn verify_claims(
    keys: &Keys,
    signature: &str,
    url: Option<&str>,
    now: Timestamp,
    tolerance: Duration,
) -> Result<Claims, SignatureError> {
    let claims = authentic_claims(keys, signature)?;
    if claims.iss != ISSUER {
        return Err(SignatureError::Issuer { issuer: claims.iss });
    }
    let tolerance = i64::try_from(tolerance.as_secs()).unwrap_or(i64::MAX);
    if now.as_secs().saturating_add(tolerance) < claims.nbf {
        return Err(SignatureError::Early { from: claims.nbf });
    }
    if now.as_secs().saturating_sub(tolerance) >= claims.exp {
        return Err(SignatureError::Expired { until: claims.exp });
    }
    if url.is_some_and(|url| url != claims.sub) {
        return Err(SignatureError::Url { signed: claims.sub });
    }
    Ok(claims)
}

impl Claims {
    /// Whether they were made for this body, byte for byte.
    ///
    /// # Errors
    ///
    /// [`SignatureError::Body`] if not.
    pub fn verify_body(&self, body: &[u8]) -> Result<(), SignatureError> {
        let ours = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, body));
        let theirs = self.body.trim_end_matches('=');
        match bool::from(ours.as_bytes().ct_eq(theirs.as_bytes())) {
            true => Ok(()),
            false => Err(SignatureError::Body),
        }
    }
}

/// The claims, once one of the keys is known to have signed them.
fn authentic_claims(keys: &Keys, signature: &str) -> Result<Claims, SignatureError> {
    let malformed = |part| SignatureError::Malformed { part };
    let (signed, code) = signature.rsplit_once('.').ok_or(malformed("the form"))?;
    let (header, claims) = signed.split_once('.').ok_or(malformed("the form"))?;
    let header = decode(header).ok_or(malformed("the header"))?;
    let header: Header<'_> =
        serde_json::from_slice(&header).map_err(|_unreadable| malformed("the header"))?;
    if header.alg != "HS256" {
        return Err(SignatureError::Algorithm {
            algorithm: header.alg.to_owned(),
        });
    }
    let code = decode(code).ok_or(malformed("the code"))?;
    let made_by = |key: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
        hmac::verify(&key, signed.as_bytes(), &code).is_ok()
    };
    let authentic = [&keys.current, &keys.next]
        .into_iter()
        .any(|key| !key.is_empty() && made_by(key));
    if !authentic {
        return Err(SignatureError::Key);
    }
    let claims = decode(claims).ok_or(malformed("the claims"))?;
    serde_json::from_slice(&claims).map_err(|_unreadable| malformed("the claims"))
}

fn decode(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok()
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://example.com/hook?a=1";
    const NOW: Timestamp = Timestamp::from_millis(1_763_900_000_000);

    fn keys() -> Keys {
        Keys {
            current: "sig_current".into(),
            next: "sig_next".into(),
        }
    }

    fn check(signature: &str, body: &[u8]) -> Result<Claims, SignatureError> {
        verify(&keys(), signature, body, Some(URL), NOW, Duration::ZERO)
    }

    #[test]
    fn what_either_key_signed_is_verified() {
        for key in ["sig_current", "sig_next"] {
            let signature = sign(key, URL, b"body", NOW);
            let claims = check(&signature, b"body").unwrap();
            assert_eq!(claims.sub, URL);
            assert_eq!(claims.exp - claims.iat, 300);
            assert!(claims.jti.starts_with("jwt_"));
        }
        assert!(check(&sign("sig_current", URL, b"", NOW), b"").is_ok());
    }

    #[test]
    fn what_no_key_of_ours_signed_is_refused() {
        let keys = Keys {
            current: "sig_current".into(),
            next: String::new(),
        };
        for key in ["sig_other", "", "SIG_CURRENT"] {
            let signature = sign(key, URL, b"body", NOW);
            let verdict = verify(&keys, &signature, b"body", None, NOW, Duration::ZERO);
            assert_eq!(verdict, Err(SignatureError::Key), "{key:?}");
        }
    }

    #[test]
    fn a_signature_serves_for_one_body_and_one_url() {
        let signature = sign("sig_current", URL, b"body", NOW);
        assert_eq!(check(&signature, b"Body"), Err(SignatureError::Body));
        let elsewhere = sign("sig_current", "https://other.example", b"body", NOW);
        assert!(matches!(
            check(&elsewhere, b"body"),
            Err(SignatureError::Url { .. })
        ));
        assert!(verify(&keys(), &elsewhere, b"body", None, NOW, Duration::ZERO).is_ok());
    }

    #[test]
    fn a_signature_ends_after_five_minutes_and_the_tolerance() {
        let signature = sign("sig_current", URL, b"body", NOW);
        let at = |millis: u64, tolerance: u64| {
            let later = NOW.plus(Duration::from_millis(millis));
            verify(
                &keys(),
                &signature,
                b"body",
                None,
                later,
                Duration::from_secs(tolerance),
            )
        };
        assert!(at(299_999, 0).is_ok());
        assert!(matches!(
            at(300_000, 0),
            Err(SignatureError::Expired { .. })
        ));
        assert!(at(300_000, 1).is_ok());
    }

    #[test]
    fn a_signature_of_tomorrow_is_not_valid_today() {
        let mut claims = check(&sign("sig_current", URL, b"body", NOW), b"body").unwrap();
        claims.nbf = NOW.as_secs() + 10;
        let early = sign_claims("sig_current", &claims);
        assert!(matches!(
            check(&early, b"body"),
            Err(SignatureError::Early { .. })
        ));
        let late = verify(&keys(), &early, b"body", None, NOW, Duration::from_secs(10));
        assert!(late.is_ok());
        claims.nbf = 0;
        claims.iss = "Someone".into();
        assert!(matches!(
            check(&sign_claims("sig_current", &claims), b"body"),
            Err(SignatureError::Issuer { .. })
        ));
    }

    #[test]
    fn padding_of_the_digest_does_not_matter() {
        let mut claims = check(&sign("sig_current", URL, b"body", NOW), b"body").unwrap();
        assert!(claims.body.ends_with('='));
        claims.body = claims.body.trim_end_matches('=').to_owned();
        assert!(check(&sign_claims("sig_current", &claims), b"body").is_ok());
    }

    #[test]
    fn whatever_is_no_signature_is_told_and_never_panics() {
        let good = sign("sig_current", URL, b"body", NOW);
        let none = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(br#"{"alg":"none"}"#),
            good.split_once('.').unwrap().1
        );
        assert!(matches!(
            check(&none, b"body"),
            Err(SignatureError::Algorithm { .. })
        ));
        for text in [
            "",
            ".",
            "..",
            "a.b",
            "a.b.c",
            "....",
            "\u{e9}.x.y",
            &good[1..],
        ] {
            assert!(
                matches!(check(text, b"body"), Err(SignatureError::Malformed { .. })),
                "{text:?}"
            );
        }
    }
}
