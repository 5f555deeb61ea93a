//! What the pages of this program share: their look, a few helpers for their scripts, and who
//! may ask for them.
//!
//! A page is HTML with its own script, both part of the binary, served at `/`; it finds the
//! shared style at `/page.css`, the helpers at `/page.js` (an ES module) and the icon at
//! `/icon.svg`. Nothing comes from elsewhere, and the policy says so to the browser. Values from
//! outside are set as text, never as markup.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Method, Response, StatusCode};

use crate::http::{self, Answer, plain};

/// Own scripts, styles and requests; no frame, no form, no markup made by a script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'";

/// The parts that all pages have.
pub(crate) fn shared(path: &str) -> Option<Answer> {
    match path {
        "/page.css" => Some(asset("text/css", include_str!("page.css"))),
        "/page.js" => Some(asset("text/javascript", include_str!("page.js"))),
        "/icon.svg" => Some(asset("image/svg+xml", include_str!("icon.svg"))),
        _ => None,
    }
}

/// A text that is part of the program.
pub(crate) fn asset(kind: &'static str, text: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    let kind = HeaderValue::try_from(format!("{kind}; charset=utf-8"));
    if let Ok(kind) = kind {
        answer.headers_mut().insert(CONTENT_TYPE, kind);
    }
    answer
}

/// Sets what protects a page, on whatever is answered at its address.
pub(crate) fn protect(headers: &mut HeaderMap) {
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Refuses what a browser sends for another site: anything under a name that is not this
/// machine's (DNS rebinding), and a change that was not asked for by a page of this address.
pub(crate) fn refuse(method: &Method, headers: &HeaderMap, listen: SocketAddr) -> Option<Answer> {
    if !is_own_host(headers, listen.ip()) {
        return Some(plain(
            StatusCode::MISDIRECTED_REQUEST,
            "open this page at localhost, or at the address that it listens on\n",
        ));
    }
    let is_change = !matches!(*method, Method::GET | Method::HEAD);
    let site = headers.get("sec-fetch-site");
    let is_own_site = site.is_none_or(|site| site == "same-origin" || site == "none");
    if is_change && (!is_own_site || http::is_from_another_site(headers)) {
        return Some(plain(
            StatusCode::FORBIDDEN,
            "only this page may change something here\n",
        ));
    }
    None
}

/// Whether the host that was asked for is loopback, or the address that is listened on: any
/// address where that is all of them, since a name is what another site can point here.
fn is_own_host(headers: &HeaderMap, listen: IpAddr) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let Some(host) = host else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let bare = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    match bare.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback() || ip == listen || listen.is_unspecified(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: Method, headers: &[(&'static str, &'static str)], listen: &str) -> u16 {
        let headers = headers.iter();
        let headers = headers.map(|(name, value)| {
            let name = HeaderName::from_static(name);
            (name, HeaderValue::from_static(value))
        });
        let headers: HeaderMap = headers.collect();
        let refused = refuse(&method, &headers, listen.parse().unwrap());
        refused.map_or(200, |refused| refused.status().as_u16())
    }

    #[test]
    fn a_page_is_for_this_machine_under_its_own_names() {
        for (host, listen, expected) in [
            ("127.0.0.1:8790", "127.0.0.1:8790", 200),
            ("127.5.0.1", "127.0.0.1:8790", 200),
            ("localhost:8790", "127.0.0.1:8790", 200),
            ("LocalHost", "127.0.0.1:8790", 200),
            ("[::1]:8790", "[::1]:8790", 200),
            ("192.168.1.2:8790", "192.168.1.2:8790", 200),
            ("192.168.1.2:8790", "0.0.0.0:8790", 200),
            ("192.168.1.2:8790", "127.0.0.1:8790", 421),
            ("rebound.example:8790", "127.0.0.1:8790", 421),
            ("rebound.example", "0.0.0.0:8790", 421),
            ("localhost.example", "127.0.0.1:8790", 421),
            ("", "127.0.0.1:8790", 421),
        ] {
            let answered = status(Method::GET, &[("host", host)], listen);
            assert_eq!(answered, expected, "{host} at {listen}");
        }
        assert_eq!(status(Method::GET, &[], "127.0.0.1:8790"), 421);
    }

    #[test]
    fn only_the_page_itself_changes_something() {
        let host = ("host", "127.0.0.1:8790");
        let own = ("origin", "http://127.0.0.1:8790");
        for (headers, expected) in [
            (vec![host], 200),
            (vec![host, own], 200),
            (vec![host, own, ("sec-fetch-site", "same-origin")], 200),
            (vec![host, ("sec-fetch-site", "none")], 200),
            (vec![host, ("sec-fetch-site", "same-site")], 403),
            (vec![host, own, ("sec-fetch-site", "cross-site")], 403),
            (vec![host, ("origin", "http://127.0.0.1:3000")], 403),
            (vec![host, ("origin", "https://evil.example")], 403),
            (vec![host, ("origin", "null")], 403),
        ] {
            let listen = "127.0.0.1:8790";
            assert_eq!(
                status(Method::POST, &headers, listen),
                expected,
                "{headers:?}"
            );
        }
        let link = [host, ("sec-fetch-site", "cross-site")];
        assert_eq!(status(Method::GET, &link, "127.0.0.1:8790"), 200);
    }
}
