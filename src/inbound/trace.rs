//! `traceparent` (<https://www.w3.org/TR/trace-context/>): taken from the request, or begun here.
//! It is kept with the event's other headers and goes to the receiver with them, so that what
//! Strapi did and what the receiver does are one trace.

use crate::event::{EventId, Headers};

const TRACEPARENT: &str = "traceparent";

/// What belongs to it, and means nothing without it.
const TRACESTATE: &str = "tracestate";

/// A trace that begins here is named as the event is, and so can be found from either. It is
/// marked as recorded: a receiver that goes by its parent would never record it otherwise.
pub(super) fn ensure(headers: &mut Headers, id: EventId) {
    let mut given = headers.values(TRACEPARENT);
    let is_one = matches!((given.next(), given.next()), (Some(value), None) if is_valid(value));
    if is_one {
        return;
    }
    drop(given);
    headers.remove(&[TRACEPARENT, TRACESTATE]);
    let trace = u128::from_be_bytes(*id.as_bytes());
    let span = fastrand::u64(1..);
    let value = format!("00-{trace:032x}-{span:016x}-01");
    headers.push(TRACEPARENT, value.as_bytes());
}

/// Version, trace, span and flags; a later version may have more behind them.
fn is_valid(value: &[u8]) -> bool {
    let mut parts = value.split(|byte| *byte == b'-');
    let is_hex = |part: &[u8], length: usize| {
        part.len() == length
            && part
                .iter()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_set = |part: &[u8]| part.iter().any(|byte| *byte != b'0');
    let (Some(version), Some(trace), Some(span), Some(flags)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let may_have_more = version != b"00";
    is_hex(version, 2)
        && version != b"ff"
        && is_hex(trace, 32)
        && is_set(trace)
        && is_hex(span, 16)
        && is_set(span)
        && is_hex(flags, 2)
        && (may_have_more || parts.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn ensured(given: &[(&str, &str)]) -> Vec<(String, String)> {
        let given = given.iter().map(|(name, value)| (*name, value.as_bytes()));
        let mut headers: Headers = given.collect();
        ensure(&mut headers, EventId::new());
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        let headers = headers.iter();
        headers
            .map(|(name, value)| (name.to_owned(), text(value)))
            .collect()
    }

    #[test]
    fn a_trace_that_was_begun_goes_on_as_it_is() {
        let given = [("traceparent", GOOD), ("tracestate", "a=1")];
        let kept = ensured(&given);
        assert_eq!(kept[0].1, GOOD);
        assert_eq!(kept[1].1, "a=1");
    }

    #[test]
    fn what_is_no_trace_is_replaced_by_one() {
        for bad in [
            "",
            "x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            let replaced = ensured(&[("traceparent", bad), ("tracestate", "a=1")]);
            assert_eq!(replaced.len(), 1, "{bad}: {replaced:?}");
            assert!(is_valid(replaced[0].1.as_bytes()), "{replaced:?}");
        }
        assert!(is_valid(
            b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"
        ));
        let twice = ensured(&[("traceparent", GOOD), ("traceparent", GOOD)]);
        assert_eq!(twice.len(), 1);
    }

    #[test]
    fn a_trace_that_begins_here_is_named_as_the_event() {
        let mut headers = Headers::default();
        let id = EventId::new();
        ensure(&mut headers, id);
        let begun = format!("00-{}-", id.to_string().replace('-', ""));
        let values: Vec<&[u8]> = headers.values(TRACEPARENT).collect();
        assert!(values[0].starts_with(begun.as_bytes()) && values.len() == 1);
    }
}
