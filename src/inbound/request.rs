//! Reading a request: who sent it, whether it is JSON, its body, and its headers for the
//! receiver.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body, Incoming, SizeHint};
use hyper::header::{CONNECTION, CONTENT_TYPE};
use memmap2::MmapMut;
use tokio::time::{Instant, timeout, timeout_at};

use super::admission::{Admission, Room, SMALL};
use crate::event::{Facts, Headers};
use crate::http::bearer;
use crate::secret::Secret;

/// How long a body may take, once there is room for it. Strapi gives up after 10 s; whoever
/// is slower keeps others waiting.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long and how much of a body that is too large is read before the answer: a sender
/// that is still writing would not read it, and a connection closed on unread bytes takes
/// the answer with it.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);
const DISCARD_BYTES: u64 = 256 << 20;

/// A body above this size has memory of its own.
const LARGE: usize = 1 << 20;

const STRAPI_EVENT: &str = "x-strapi-event";

/// Headers of the connection and of Strapi's HTTP client: not the hook's own, so they do not
/// go on to the receiver. Nor does the secret that was meant for us.
const NOT_FORWARDED: [&str; 18] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "authorization",
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "sec-fetch-mode",
];

/// Why a body was not read.
#[derive(Debug)]
pub(crate) enum Unread {
    TooLarge,
    TooSlow,
    Broken(hyper::Error),
}

pub(super) fn is_authorised(headers: &HeaderMap, secret: &Secret) -> bool {
    bearer(headers).is_some_and(|offered| secret.matches(offered))
}

/// A browser page can post anything but JSON to another origin without asking first: with
/// this, no page on the same machine can post an event.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media_type = value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    media_type == "application/json"
        || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

/// The body, if it is not larger than `limit`, and the room that it takes.
pub(crate) async fn read(
    mut body: Incoming,
    limit: u64,
    admission: &Admission,
) -> Result<(Bytes, Room), Unread> {
    let announced = body.size_hint();
    if announced.lower() > limit {
        discard(&mut body).await;
        return Err(Unread::TooLarge);
    }
    // One that comes without its length is small until it turns out not to be.
    let mut bound = announced.exact().unwrap_or(SMALL.min(limit));
    let mut room = admission.room(bound).await;
    let mut deadline = Instant::now() + BODY_TIMEOUT;
    let mut whole = Pieces::default();
    while let Some(frame) = timeout_at(deadline, body.frame())
        .await
        .map_err(|_elapsed| Unread::TooSlow)?
    {
        let Ok(piece) = frame.map_err(Unread::Broken)?.into_data() else {
            continue; // trailers
        };
        whole.push(piece, &body.size_hint());
        if whole.len() > bound && bound < limit {
            bound = limit;
            room = admission.room(bound).await;
            deadline = Instant::now() + BODY_TIMEOUT;
        }
        if whole.len() > bound {
            drop(whole);
            discard(&mut body).await;
            return Err(Unread::TooLarge);
        }
    }
    Ok((whole.into_bytes(), room))
}

/// A body as it comes in. One in one piece, which is most of them, is not copied.
#[derive(Default)]
struct Pieces {
    first: Bytes,
    whole: BytesMut,
    large: Option<Mapped>,
}

/// A large body whose length is known, in memory from the system itself: it goes back there,
/// where an allocator would keep it for the next one.
struct Mapped {
    bytes: MmapMut,
    filled: usize,
}

impl Pieces {
    fn len(&self) -> u64 {
        let filled = self.large.as_ref().map_or(0, |large| large.filled);
        (self.first.len() + self.whole.len() + filled) as u64
    }

    fn push(&mut self, piece: Bytes, left: &SizeHint) {
        if let Some(large) = &mut self.large {
            large.push(&piece);
            return;
        }
        if self.first.is_empty() && self.whole.is_empty() {
            self.first = piece;
            return;
        }
        if self.whole.is_empty() {
            let left = left.exact().and_then(|left| usize::try_from(left).ok());
            let size = self.first.len() + piece.len() + left.unwrap_or(0);
            if size > LARGE
                && let Ok(bytes) = MmapMut::map_anon(size)
            {
                let mut large = Mapped { bytes, filled: 0 };
                large.push(&std::mem::take(&mut self.first));
                large.push(&piece);
                self.large = Some(large);
                return;
            }
            self.whole.reserve(size);
            self.whole.extend_from_slice(&self.first);
            self.first.clear();
        }
        self.whole.extend_from_slice(&piece);
    }

    fn into_bytes(self) -> Bytes {
        match self.large {
            Some(large) => Bytes::from_owner(large.bytes).slice(..large.filled),
            None if self.whole.is_empty() => self.first,
            None => self.whole.freeze(),
        }
    }
}

impl Mapped {
    /// The piece fits: hyper gives no more than was announced.
    fn push(&mut self, piece: &[u8]) {
        let end = (self.filled + piece.len()).min(self.bytes.len());
        let room = self.bytes.get_mut(self.filled..end).unwrap_or_default();
        if let Some(piece) = piece.get(..room.len()) {
            room.copy_from_slice(piece);
        }
        self.filled = end;
    }
}

async fn discard(body: &mut Incoming) {
    let all = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > DISCARD_BYTES {
                break;
            }
        }
    };
    timeout(DISCARD_TIMEOUT, all).await.ok(); // then the sender has to do without the answer
}

/// The kind of an event is in its body; in its header where the body has none.
pub(super) fn with_kind(mut facts: Facts, headers: &HeaderMap) -> Facts {
    if facts.kind.is_empty() {
        let header = headers
            .get(STRAPI_EVENT)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        facts.kind = header
            .filter(|kind| !kind.is_empty())
            .unwrap_or_else(|| "unknown".to_owned());
    }
    facts
}

/// Content-Type, the hook's own headers, and X-Strapi-Event always.
pub(super) fn for_receiver(headers: &HeaderMap, kind: &str) -> Headers {
    let named_by_connection: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let mut forwarded: Headers = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .filter(|(name, _)| {
            !NOT_FORWARDED.contains(name) && !named_by_connection.iter().any(|named| named == name)
        })
        .collect();
    if !headers.contains_key(STRAPI_EVENT) {
        forwarded.push(STRAPI_EVENT, kind.as_bytes());
    }
    forwarded
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &[u8])| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_bytes(value).unwrap(),
            )
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_body_in_pieces_is_what_was_sent_whatever_its_size() {
        for size in [0, 1, 70_000, LARGE, LARGE + 1, 5 * LARGE + 3] {
            let sent: Vec<u8> = (0..=250).cycle().take(size).collect();
            for announced in [true, false] {
                let (mut pieces, mut left) = (Pieces::default(), size as u64);
                for piece in sent.chunks(60_001) {
                    left -= piece.len() as u64;
                    let hint = match announced {
                        true => SizeHint::with_exact(left),
                        false => SizeHint::new(),
                    };
                    pieces.push(Bytes::copy_from_slice(piece), &hint);
                }
                assert_eq!(pieces.len(), size as u64);
                assert!(pieces.into_bytes() == sent, "{size} {announced}");
            }
        }
    }

    #[test]
    fn only_json_is_taken() {
        for (value, taken) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/cloudevents+json", true),
            ("text/plain", false),
            ("text/plain;application/json", false),
            ("application/x-www-form-urlencoded", false),
            ("text/json", false),
            ("", false),
        ] {
            assert_eq!(
                is_json(&headers(&[("content-type", value.as_bytes())])),
                taken,
                "{value}"
            );
        }
        assert!(!is_json(&HeaderMap::new()));
    }

    #[test]
    fn the_secret_is_wanted_as_a_bearer_token() {
        let secret = Secret::trimmed("s3cret").unwrap();
        for (value, right) in [
            ("Bearer s3cret", true),
            ("bearer  s3cret ", true),
            ("Basic s3cret", false),
            ("s3cret", false),
            ("Bearer s3cret2", false),
            ("Bearer", false),
        ] {
            assert_eq!(
                is_authorised(&headers(&[("authorization", value.as_bytes())]), &secret),
                right,
                "{value}"
            );
        }
        assert!(!is_authorised(&HeaderMap::new(), &secret));
    }

    #[test]
    fn the_hooks_own_headers_go_on_and_those_of_the_connection_do_not() {
        let headers = headers(&[
            ("host", b"localhost:8787"),
            ("connection", b"keep-alive, X-Hop"),
            ("x-hop", b"1"),
            ("authorization", b"Bearer s3cret"),
            ("content-type", b"application/json"),
            ("x-latin", b"Gr\xfc\xdfe"),
            ("user-agent", b"node"),
            ("content-length", b"5"),
        ]);
        let forwarded = for_receiver(&headers, "entry.create");
        let expected: [(&str, &[u8]); 3] = [
            ("content-type", b"application/json"),
            ("x-latin", b"Gr\xfc\xdfe"),
            ("x-strapi-event", b"entry.create"),
        ];
        assert_eq!(forwarded.iter().collect::<Vec<_>>(), expected);
    }
}
