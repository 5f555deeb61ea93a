//! The headers that go on to the receiver.

use std::fmt;

/// Headers for the receiver, by lower-case name: Content-Type, X-Strapi-Event and the hook's own.
/// Values may be Latin-1.
///
/// They are the one piece of text that the buffer stores, `name: value` with CRLF behind each: from
/// the request to the disk and from there to QStash none of them needs memory of its own.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Headers(Vec<u8>);

/// Room for what comes with an event of Strapi's.
const USUAL: usize = 256;

impl Headers {
    /// Those of a text as [`Self::as_text`] gives it.
    pub fn from_text(text: Vec<u8>) -> Self {
        Self(text)
    }

    /// The text.
    pub fn as_text(&self) -> &[u8] {
        &self.0
    }

    /// Adds one. As in HTTP, there is no colon in a name and no line break in either.
    pub fn push(&mut self, name: &str, value: &[u8]) {
        if self.0.is_empty() {
            self.0.reserve(USUAL);
        }
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            self.0.extend_from_slice(part);
        }
    }

    /// Names and values in their order. A name may come more than once.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let lines = self.0.split_inclusive(|byte| *byte == b'\n');
        lines.filter_map(|line| {
            let line = line.strip_suffix(b"\r\n")?;
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = line.split_at_checked(colon)?;
            Some((
                std::str::from_utf8(name).ok()?,
                value.strip_prefix(b": ").unwrap_or_default(),
            ))
        })
    }

    /// The values of this name.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let of_name = self.iter().filter(move |(other, _)| *other == name);
        of_name.map(|(_, value)| value)
    }

    /// Takes out what has one of these names.
    pub fn remove(&mut self, names: &[&str]) {
        if self.iter().any(|(name, _)| names.contains(&name)) {
            *self = self
                .iter()
                .filter(|(name, _)| !names.contains(name))
                .collect();
        }
    }
}

impl<'a> FromIterator<(&'a str, &'a [u8])> for Headers {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a [u8])>>(headers: I) -> Self {
        let mut all = Self::default();
        for (name, value) in headers {
            all.push(name, value);
        }
        all
    }
}

/// Their names: a value may be a secret between the hook and its receiver.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(|(name, _)| name))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: [(&str, &[u8]); 4] = [
        ("content-type", b"application/json"),
        ("x-latin", b"Gr\xfc\xdfe: \xe9"),
        ("x-empty", b""),
        ("x-latin", b"again"),
    ];

    #[test]
    fn they_come_back_byte_for_byte() {
        let headers: Headers = GIVEN.into_iter().collect();
        let read = Headers::from_text(headers.as_text().to_vec());
        assert_eq!(read.iter().collect::<Vec<_>>(), GIVEN);
        let values: Vec<&[u8]> = read.values("x-latin").collect();
        assert_eq!(values, [GIVEN[1].1, GIVEN[3].1]);
    }

    #[test]
    fn all_of_a_name_are_taken_out() {
        let mut headers: Headers = GIVEN.into_iter().collect();
        headers.remove(&["x-latin", "x-none"]);
        assert_eq!(headers.iter().collect::<Vec<_>>(), [GIVEN[0], GIVEN[2]]);
    }

    #[test]
    fn values_are_not_shown() {
        let headers: Headers = GIVEN.into_iter().collect();
        assert!(!format!("{headers:?}").contains("again"));
    }
}
