//! Where QStash is: what people paste as QSTASH_URL, made into a base.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

/// An origin with an optional path, without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl(Url);

/// Why a text is no base URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{url:?} is not the address of QStash: {why}; write an origin such as https://qstash.upstash.io"
)]
pub struct BaseUrlError {
    url: String,
    why: String,
}

/// What people paste behind the origin, since Upstash's console and old tutorials show it.
const PASTED_PATHS: [&str; 4] = ["/v2/publish", "/v1/publish", "/v2", "/v1"];

impl BaseUrl {
    /// QStash's own address, in Europe.
    pub const DEFAULT: &str = "https://qstash.upstash.io";

    /// Reads what a person pasted.
    pub fn parse(pasted: &str) -> Result<Self, BaseUrlError> {
        let mut text = pasted
            .trim()
            .trim_matches(['"', '\''])
            .trim()
            .trim_end_matches('/');
        if let Some(origin) = PASTED_PATHS.iter().find_map(|path| text.strip_suffix(path)) {
            text = origin.trim_end_matches('/');
        }
        // What was pasted may hold a password: it is shown without.
        let wrong = |why: &str| BaseUrlError {
            url: text.rsplit('@').next().unwrap_or_default().to_owned(),
            why: why.to_owned(),
        };
        let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("it begins with neither https:// nor http://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong(
                "it holds a user name; the token goes into QSTASH_TOKEN",
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it goes on behind a ? or #"));
        }
        Ok(Self(url))
    }

    /// Whether QStash is on this machine: a development server.
    pub fn is_loopback(&self) -> bool {
        let host = self
            .0
            .host_str()
            .unwrap_or_default()
            .trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Whether the token travels unencrypted.
    pub fn is_plain_http(&self) -> bool {
        self.0.scheme() == "http"
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_paste_is_understood() {
        for pasted in [
            "https://qstash.upstash.io",
            "https://qstash.upstash.io/",
            " \"https://qstash.upstash.io/v2/publish/\"\n",
            "https://qstash.upstash.io/v2",
            "https://qstash.upstash.io/v1/publish",
        ] {
            assert_eq!(
                BaseUrl::parse(pasted).unwrap().to_string(),
                "https://qstash.upstash.io",
                "{pasted}"
            );
        }
        assert_eq!(
            BaseUrl::parse("http://proxy:8080/qstash/")
                .unwrap()
                .to_string(),
            "http://proxy:8080/qstash"
        );
    }

    #[test]
    fn what_is_no_address_is_told() {
        for wrong in [
            "",
            "qstash.upstash.io",
            "ftp://qstash",
            "https://",
            "https://h/?a=1",
            "https://h/#a",
        ] {
            assert!(BaseUrl::parse(wrong).is_err(), "{wrong}");
        }
        let told = BaseUrl::parse("https://user:s3cret@host/")
            .unwrap_err()
            .to_string();
        assert!(!told.contains("s3cret"), "{told}");
    }

    #[test]
    fn loopback_and_plain_http_are_told_apart() {
        for (url, loopback, plain) in [
            ("http://127.0.0.1:8080", true, true),
            ("http://localhost:8080", true, true),
            ("http://[::1]:8080", true, true),
            ("http://qstash:8080", false, true),
            ("https://qstash.upstash.io", false, false),
        ] {
            let base = BaseUrl::parse(url).unwrap();
            assert_eq!(
                (base.is_loopback(), base.is_plain_http()),
                (loopback, plain),
                "{url}"
            );
        }
    }
}
