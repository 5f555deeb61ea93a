//! The status page: whether everything flows, what came, what became of it, and the dead letters
//! with what can be done about them. It is drawn by its script from `/api/status` and
//! `/api/events`, and changes events by the same POSTs as a script would.

use hyper::HeaderMap;
use hyper::header::{ACCEPT, HeaderValue, VARY};

use crate::http::Answer;
use crate::page::{asset, shared};

/// A part of the page; at `/` only for who wants a page, so that `curl` is told in a sentence.
pub(super) fn part(path: &str, headers: &HeaderMap) -> Option<Answer> {
    match path {
        "/" if wants_page(headers) => {
            let mut page = asset("text/html", include_str!("page.html"));
            page.headers_mut()
                .insert(VARY, HeaderValue::from_static("accept"));
            Some(page)
        }
        "/status.js" => Some(asset("text/javascript", include_str!("page.js"))),
        "/status.css" => Some(asset("text/css", include_str!("page.css"))),
        path => shared(path),
    }
}

fn wants_page(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter();
    accepted.any(|kinds| {
        kinds
            .to_str()
            .is_ok_and(|kinds| kinds.contains("text/html"))
    })
}
