//! Where QStash sends an event, and how: a URL group, a URL, or one of them through a queue,
//! with delivery options.
//!
//! Both have a text form that is stored with each event, so that what was decided when the
//! event came still holds after a restart with other flags.

mod options;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::Url;

pub use self::options::{DeliveryOptions, OptionError};

/// Where QStash sends an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The FIFO queue it goes through.
    pub queue: Option<String>,
    /// Where it ends.
    pub target: Target,
    /// How it is delivered, as far as its route says.
    pub options: DeliveryOptions,
}

/// Where a delivery ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A URL group (a topic) by its name.
    Group(String),
    /// One endpoint.
    Url(String),
}

/// Why a text is no destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    /// It is empty.
    #[error(
        "a destination is missing: write a URL group's name, https://…, queue:NAME/DEST or drop"
    )]
    Empty,
    /// A name has other characters than QStash takes.
    #[error("{name:?} is no name that QStash takes: letters, digits, '_', '-' and '.' only")]
    Name {
        /// The name.
        name: String,
    },
    /// Not a usable URL.
    #[error("{url:?} is no usable URL: {why}")]
    Url {
        /// What was typed.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// `queue:NAME` without a destination.
    #[error("{text:?} names no destination behind the queue: write queue:NAME/DEST")]
    Queue {
        /// What was typed.
        text: String,
    },
    /// A delivery option is wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
}

impl Destination {
    /// A URL group.
    pub fn group(name: &str) -> Result<Self, DestinationError> {
        check_name(name)?;
        Ok(Self {
            queue: None,
            target: Target::Group(name.to_owned()),
            options: DeliveryOptions::default(),
        })
    }
}

/// Without the options, which are stored apart.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(queue) = &self.queue {
            write!(f, "queue:{queue}/")?;
        }
        match &self.target {
            Target::Group(text) | Target::Url(text) => f.write_str(text),
        }
    }
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (queue, target) = split_queue(text)?;
        if let Some(queue) = queue {
            check_name(queue)?;
        }
        let target = if is_url(target) {
            check_url(target)?;
            Target::Url(target.to_owned())
        } else {
            check_name(target)?;
            Target::Group(target.to_owned())
        };
        Ok(Self {
            queue: queue.map(str::to_owned),
            target,
            options: DeliveryOptions::default(),
        })
    }
}

/// A destination as a log may tell it: a URL without its parameters, and without user and
/// password, since secrets of the endpoint often stand there.
pub(crate) fn for_log(destination: &str) -> Cow<'_, str> {
    let (place, _parameters) = destination.split_once('?').unwrap_or((destination, ""));
    let Some((scheme, rest)) = place.split_once("://") else {
        return Cow::Borrowed(place);
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_user, host)) => Cow::Owned(format!("{scheme}://{host}{path}")),
        None => Cow::Borrowed(place),
    }
}

/// `queue:NAME/DEST` into its two parts.
pub(crate) fn split_queue(text: &str) -> Result<(Option<&str>, &str), DestinationError> {
    let Some(rest) = text.strip_prefix("queue:") else {
        return Ok((None, text));
    };
    match rest.split_once('/') {
        Some((queue, target)) if !target.is_empty() => Ok((Some(queue), target)),
        _ => Err(DestinationError::Queue {
            text: text.to_owned(),
        }),
    }
}

/// Whether a destination is one endpoint; all else is a group's name. As QStash decides it.
pub(crate) fn is_url(text: &str) -> bool {
    ["https://", "http://"].iter().any(|scheme| {
        text.get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    })
}

/// Whether QStash takes a character in the name of a group or a queue.
pub(crate) const fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

pub(crate) fn check_name(name: &str) -> Result<(), DestinationError> {
    match name {
        "" => Err(DestinationError::Empty),
        name if name.chars().all(is_name_char) => Ok(()),
        name => Err(DestinationError::Name {
            name: name.to_owned(),
        }),
    }
}

fn check_url(text: &str) -> Result<(), DestinationError> {
    let wrong = |why: &str| DestinationError::Url {
        url: text.to_owned(),
        why: why.to_owned(),
    };
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if url.fragment().is_some() {
        return Err(wrong("a part behind # is never sent; take it off"));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(wrong("it has spaces in it"));
    }
    Ok(())
}

/// All but letters, digits and `-_.~` (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Percent-encodes what has a meaning in a query.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Percent-decodes; a `%` that begins no code stays. `+` is itself, not a space: retry
/// delays are sums.
pub(crate) fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_sign_that_begins_no_code_stays() {
        for (text, decoded) in [
            ("50%+5", "50%+5"),
            ("100%", "100%"),
            ("%zz%4", "%zz%4"),
            ("a%20b+c", "a b+c"),
        ] {
            assert_eq!(decode(text), decoded);
        }
        assert_eq!(decode(&encode("a b/ü~%?")), "a b/ü~%?");
    }

    #[test]
    fn destinations_round_trip_as_text() {
        for text in [
            "news",
            "strapi.create",
            "https://example.com/a?b=1&c",
            "queue:fifo/news",
            "queue:q/http://h:8/x",
        ] {
            let destination: Destination = text.parse().unwrap();
            assert_eq!(destination.to_string(), text);
        }
    }

    #[test]
    fn wrong_destinations_say_what_to_write() {
        for (text, told) in [
            ("", "missing"),
            ("my group", "letters, digits"),
            ("queue:q", "queue:NAME/DEST"),
            ("queue:q/", "queue:NAME/DEST"),
            ("queue:a b/news", "letters, digits"),
            ("https://", "usable URL"),
            ("https://h/#part", "#"),
            ("ftp://h/", "letters, digits"),
        ] {
            let error = text.parse::<Destination>().unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
