//! A list that forgets its oldest items: everything here is kept in memory, and a
//! development server may run for weeks.

use std::collections::VecDeque;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::HeaderValue;

/// The last items that were pushed, bounded by their number and by their weight in bytes.
pub(super) struct Recent<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    max_items: usize,
    max_bytes: usize,
    pushed: u64,
}

impl<T> Recent<T> {
    pub(super) fn new(max_items: usize, max_bytes: usize) -> Self {
        Self {
            items: VecDeque::new(),
            bytes: 0,
            max_items,
            max_bytes,
            pushed: 0,
        }
    }

    /// Adds an item and gives back those that had to go for it. The newest item stays,
    /// whatever it weighs.
    pub(super) fn push(&mut self, item: T, bytes: usize) -> Vec<T> {
        self.items.push_back((item, bytes));
        self.bytes = self.bytes.saturating_add(bytes);
        self.pushed += 1;
        let mut gone = Vec::new();
        while self.items.len() > 1
            && (self.items.len() > self.max_items || self.bytes > self.max_bytes)
        {
            if let Some((item, bytes)) = self.items.pop_front() {
                self.bytes -= bytes;
                gone.push(item);
            }
        }
        gone
    }

    /// How many were ever pushed.
    pub(super) fn pushed(&self) -> u64 {
        self.pushed
    }

    /// The items that are left, oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.items.iter().map(|(item, _)| item)
    }
}

/// A body that holds on to nothing else: as it comes from a connection it is a piece of the
/// connection's buffer, and keeps all of that in memory.
pub(super) fn own_body(body: &Bytes) -> Bytes {
    Bytes::copy_from_slice(body)
}

/// The same for headers.
pub(super) fn own_headers(headers: &HeaderMap) -> HeaderMap {
    let mut owned = headers.clone();
    for value in owned.values_mut() {
        if let Ok(copy) = HeaderValue::from_bytes(value.as_bytes()) {
            *value = copy;
        }
    }
    owned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_a_copy_and_the_same() {
        let buffer = Bytes::from_static(b"a: b");
        let body = own_body(&buffer.slice(3..));
        assert_eq!(body, "b");
        assert!(!buffer.as_ptr_range().contains(&body.as_ptr()));
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_maybe_shared(buffer.slice(3..)).unwrap();
        headers.append("a", value.clone());
        headers.append("a", HeaderValue::from_static("c"));
        let owned = own_headers(&headers);
        assert_eq!(owned, headers);
        let pointer = owned["a"].as_bytes().as_ptr();
        assert!(!buffer.as_ptr_range().contains(&pointer));
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_or_they_weigh_too_much() {
        let mut recent = Recent::new(3, 100);
        for item in 0..3 {
            assert!(recent.push(item, 10).is_empty());
        }
        assert_eq!(recent.push(3, 10), [0]);
        assert_eq!(recent.push(4, 85), [1, 2]);
        assert_eq!(recent.push(5, 1_000), [3, 4]);
        assert_eq!(recent.iter().copied().collect::<Vec<_>>(), [5]);
        assert_eq!(recent.pushed(), 6);
    }
}
