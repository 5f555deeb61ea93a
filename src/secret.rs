//! Values that must never be shown: the QStash token, the webhook secret, the admin token.
//!
//! A [`Secret`] has no `Display`, its `Debug` is redacted, and comparing it takes the
//! same time whatever was offered. Reading it is spelled [`Secret::expose`], so that each
//! place that does can be found.

use std::fmt;

use ring::digest;
use subtle::ConstantTimeEq;

/// A secret text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text as pasted by a person: spaces, line ends, quotes around it and a
    /// leading `Bearer ` do not belong to a secret, and QStash answers 401 to each of them.
    /// `None` when nothing is left.
    pub fn trimmed(pasted: &str) -> Option<Self> {
        let mut text = pasted.trim();
        for quote in ['"', '\''] {
            if let Some(inner) = text
                .strip_prefix(quote)
                .and_then(|rest| rest.strip_suffix(quote))
            {
                text = inner.trim();
            }
        }
        let text = match text.split_at_checked(7) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer ") => rest.trim(),
            _ => text,
        };
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The secret itself, for the one header that carries it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Takes this secret out of what somebody else wrote: a proxy that answers with the request
    /// that it got must not bring it into logs and the buffer.
    pub(crate) fn redact(&self, text: &mut Vec<u8>) {
        const MARK: &[u8] = b"[redacted]";
        let secret = self.0.as_bytes();
        let mut from = 0;
        while let Some(at) = text
            .get(from..)
            .and_then(|rest| rest.windows(secret.len()).position(|part| part == secret))
        {
            let at = from + at;
            text.splice(at..at + secret.len(), MARK.iter().copied());
            from = at + MARK.len();
        }
    }

    /// Whether `offered` is this secret, in a time that depends on neither: digests of equal
    /// length are compared, so that not even the secret's length can be measured.
    pub fn matches(&self, offered: &[u8]) -> bool {
        let ours = digest::digest(&digest::SHA256, self.0.as_bytes());
        let theirs = digest::digest(&digest::SHA256, offered);
        ours.as_ref().ct_eq(theirs.as_ref()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_taken_out_of_what_others_wrote() {
        let secret = Secret::trimmed("s3cret").unwrap();
        for (given, left) in [
            ("nothing", "nothing"),
            ("s3cret", "[redacted]"),
            (
                "a s3cret, s3crets3cret",
                "a [redacted], [redacted][redacted]",
            ),
            ("s3cre", "s3cre"),
            ("", ""),
        ] {
            let mut text = given.as_bytes().to_vec();
            secret.redact(&mut text);
            assert_eq!(text, left.as_bytes());
        }
    }

    #[test]
    fn what_a_person_pastes_around_a_secret_is_taken_off() {
        for pasted in [
            "s3cret",
            " s3cret\n",
            "\"s3cret\"",
            "'s3cret'",
            "Bearer s3cret",
            "bearer  s3cret\r\n",
        ] {
            assert_eq!(
                Secret::trimmed(pasted).unwrap().expose(),
                "s3cret",
                "{pasted:?}"
            );
        }
        assert!(Secret::trimmed(" \n").is_none());
        assert!(Secret::trimmed("\"\"").is_none());
    }

    #[test]
    fn a_secret_is_matched_but_never_shown() {
        let secret = Secret::trimmed("s3cret").unwrap();
        assert!(secret.matches(b"s3cret"));
        for wrong in [&b""[..], b"s3cre", b"s3cret ", b"S3CRET"] {
            assert!(!secret.matches(wrong));
        }
        assert_eq!(format!("{secret:?}"), "[redacted]");
    }
}
