//! What a request asks for, read from its raw target.
//!
//! The target is taken as it was sent: a destination URL stands in the path unescaped, so
//! nothing may be decoded, collapsed (`//`) or cleaned (`..`) before it is cut out.

use reqwest::Url;

/// What a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call<'a> {
    Publish {
        destination: &'a str,
    },
    Enqueue {
        queue: &'a str,
        destination: &'a str,
    },
    Batch,
    Keys,
    RotateKeys,
    Topics,
    Topic {
        name: &'a str,
    },
    TopicEndpoints {
        name: &'a str,
    },
    Messages,
    Message {
        id: &'a str,
    },
    Queues,
    Queue {
        name: &'a str,
    },
    /// Pauses a queue or resumes it.
    QueueSwitch {
        name: &'a str,
        paused: bool,
    },
    Dlq,
    DlqEntry {
        id: &'a str,
    },
    /// Retries the entry, or those that the query names.
    DlqRetry {
        id: Option<&'a str>,
    },
    FlowKeys,
    FlowKey {
        key: &'a str,
    },
    FlowChange {
        key: &'a str,
        change: FlowChange,
    },
    GlobalParallelism,
    Logs,
    Events,
    /// Something that QStash may have and this server has not.
    Missing,
    /// Nothing of QStash's.
    Unknown,
}

/// What can be done to a flow-control key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlowChange {
    Pause,
    Resume,
    Pin,
    Unpin,
    ResetRate,
}

impl<'a> Call<'a> {
    /// Reads a path. Fixed segments may be in any case.
    pub(super) fn read(path: &'a str) -> Self {
        let Some(path) = path.strip_prefix('/') else {
            return Self::Unknown;
        };
        let (version, path) = cut(path);
        let (resource, rest) = cut(path.unwrap_or_default());
        let resource = resource.to_ascii_lowercase();
        match (version.to_ascii_lowercase().as_str(), resource.as_str()) {
            ("v1" | "v2", "publish") => Self::Publish {
                destination: rest.unwrap_or_default(),
            },
            ("v1" | "v2", "") => Self::Unknown,
            ("v2", resource) => Self::read_v2(resource, rest),
            // The rest of the first version, and the older way to call language models.
            ("v1" | "llm", _) => Self::Missing,
            _ => Self::Unknown,
        }
    }

    fn read_v2(resource: &str, rest: Option<&'a str>) -> Self {
        match (resource, rest) {
            ("enqueue", rest) => {
                let (queue, destination) = cut(rest.unwrap_or_default());
                Self::Enqueue {
                    queue,
                    destination: destination.unwrap_or_default(),
                }
            }
            ("batch", None) => Self::Batch,
            ("keys", None) => Self::Keys,
            ("keys", Some(rest)) if rest.eq_ignore_ascii_case("rotate") => Self::RotateKeys,
            ("topics", None | Some("")) => Self::Topics,
            ("topics", Some(rest)) => match cut(rest) {
                (name, None) => Self::Topic { name },
                (name, Some(rest)) if rest.eq_ignore_ascii_case("endpoints") => {
                    Self::TopicEndpoints { name }
                }
                _ => Self::Missing,
            },
            // An empty id is no id: clients are warned of what that does to a DELETE.
            ("messages", None | Some("")) => Self::Messages,
            ("messages", Some(id)) if !id.contains('/') => Self::Message { id },
            ("queues", rest) => Self::read_queues(rest),
            ("dlq", rest) => Self::read_dlq(rest),
            ("flowcontrol", rest) => Self::read_flow_control(rest),
            ("globalparallelism", None) => Self::GlobalParallelism,
            ("logs", None) => Self::Logs,
            ("events", None) => Self::Events,
            _ => Self::Missing,
        }
    }

    fn read_queues(rest: Option<&'a str>) -> Self {
        let (name, action) = match rest {
            None | Some("") => return Self::Queues,
            Some(rest) => cut(rest),
        };
        match action.map(str::to_ascii_lowercase).as_deref() {
            None => Self::Queue { name },
            Some("pause") => Self::QueueSwitch { name, paused: true },
            Some("resume") => Self::QueueSwitch {
                name,
                paused: false,
            },
            Some(_) => Self::Missing,
        }
    }

    fn read_dlq(rest: Option<&'a str>) -> Self {
        let (id, after) = match rest {
            None | Some("") => return Self::Dlq,
            Some(rest) => cut(rest),
        };
        match after {
            None if id.eq_ignore_ascii_case("retry") => Self::DlqRetry { id: None },
            None => Self::DlqEntry { id },
            Some(after) if id.eq_ignore_ascii_case("retry") && !after.contains('/') => {
                let id = Some(after).filter(|id| !id.is_empty());
                Self::DlqRetry { id }
            }
            Some(_) => Self::Missing,
        }
    }

    fn read_flow_control(rest: Option<&'a str>) -> Self {
        let (key, action) = match rest {
            None | Some("") => return Self::FlowKeys,
            Some(rest) => cut(rest),
        };
        let change = match action.map(str::to_ascii_lowercase).as_deref() {
            None => return Self::FlowKey { key },
            Some("pause") => FlowChange::Pause,
            Some("resume") => FlowChange::Resume,
            Some("pin") => FlowChange::Pin,
            Some("unpin") => FlowChange::Unpin,
            Some("resetrate") => FlowChange::ResetRate,
            Some(_) => return Self::Missing,
        };
        Self::FlowChange { key, change }
    }
}

fn cut(path: &str) -> (&str, Option<&str>) {
    path.split_once('/')
        .map_or((path, None), |(first, rest)| (first, Some(rest)))
}

/// A query string, taken apart: what is meant for QStash, and the rest, which belongs to
/// the destination.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    /// `qstash_token`.
    pub(super) token: Option<String>,
    /// `upstash-…`: options as headers, decoded.
    pub(super) options: Vec<(String, String)>,
    /// Everything else, as it was sent.
    pub(super) rest: String,
}

impl Query {
    pub(super) fn read(query: &str) -> Self {
        let mut read = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).to_ascii_lowercase();
            if name == "qstash_token" {
                read.token = Some(decode(value));
            } else if name.starts_with("upstash-") {
                read.options.push((name, decode(value)));
            } else {
                if !read.rest.is_empty() {
                    read.rest.push('&');
                }
                read.rest.push_str(pair);
            }
        }
        read
    }

    /// All parameters of a call that has no destination, decoded.
    pub(super) fn parameters(&self) -> Vec<(String, String)> {
        self.rest
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decode_form(name), decode_form(value)))
            .collect()
    }
}

/// Undoes the encoding of a form, in which `+` is a space: so do all SDKs encode parameters.
fn decode_form(text: &str) -> String {
    decode(&text.replace('+', " "))
}

/// Undoes percent-encoding; what is not an escape stays.
pub(super) fn decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                decoded.push(high << 4 | low);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

/// Where a publisher wants a message to go, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// One endpoint.
    Url(String),
    /// A URL group, by its name.
    Group(String),
}

/// Why a text is no destination, or no name. The texts are QStash's own where they are known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is none.
    #[error("a non-empty destination must be provided")]
    Empty,
    /// It looks like a URL but begins like none: percent-encoding is the usual reason.
    #[error("invalid destination url: endpoint has invalid scheme, add http:// or https://")]
    Scheme,
    /// It is the name of one of QStash's own integrations, such as `api/llm`.
    #[error("{name} is not part of this development server")]
    Api {
        /// The name.
        name: String,
    },
    /// It begins like a URL and goes on like none.
    #[error("invalid destination url: {reason}")]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// A name has a character that no name has.
    #[error("invalid name {name:?}: only letters, digits, '-', '_' and '.' are allowed")]
    Name {
        /// The name.
        name: String,
    },
}

impl Destination {
    /// Reads a destination.
    pub(super) fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if is_url(text) {
            return check_url(text).map(|()| Self::Url(text.to_owned()));
        }
        if text.starts_with("api/") {
            let name = text.to_owned();
            return Err(NameError::Api { name });
        }
        if text.contains([':', '%', '/']) {
            return Err(NameError::Scheme);
        }
        check_name(text).map(|()| Self::Group(text.to_owned()))
    }
}

fn is_url(text: &str) -> bool {
    ["http://", "https://"].into_iter().any(|scheme| {
        text.get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    })
}

/// Checks the URL of an endpoint.
pub(super) fn check_url(url: &str) -> Result<(), NameError> {
    if url.is_empty() {
        return Err(NameError::Empty);
    }
    if !is_url(url) {
        return Err(NameError::Scheme);
    }
    Url::parse(url).map(drop).map_err(|error| NameError::Url {
        reason: error.to_string(),
    })
}

/// Checks the name of a URL group, an endpoint or a queue.
pub(super) fn check_name(name: &str) -> Result<(), NameError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(allowed) {
        return Err(NameError::Name {
            name: name.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cut_and_not_cleaned() {
        let publish = |destination| Call::Publish { destination };
        for (path, call) in [
            ("/v2/publish/strapi.create", publish("strapi.create")),
            ("/v1/publish/strapi.create", publish("strapi.create")),
            (
                "/v2/publish/https://h//a/../b",
                publish("https://h//a/../b"),
            ),
            ("/V2/Publish/https%3A%2F%2Fh", publish("https%3A%2F%2Fh")),
            ("/v2/publish/", publish("")),
            ("/v2/publish", publish("")),
            (
                "/v2/enqueue/q/https://h/a",
                Call::Enqueue {
                    queue: "q",
                    destination: "https://h/a",
                },
            ),
            ("/v2/BATCH", Call::Batch),
            ("/v2/keys/rotate", Call::RotateKeys),
            ("/v2/topics", Call::Topics),
            ("/v2/topics/a.b", Call::Topic { name: "a.b" }),
            ("/v2/Topics/a/Endpoints", Call::TopicEndpoints { name: "a" }),
            ("/v2/messages/msg_1", Call::Message { id: "msg_1" }),
            ("/v2/messages", Call::Messages),
            ("/v2/messages/", Call::Messages),
            ("/v2/messages/a/b", Call::Missing),
            ("/v2/queues", Call::Queues),
            ("/v2/queues/q", Call::Queue { name: "q" }),
            (
                "/v2/queues/q/Pause",
                Call::QueueSwitch {
                    name: "q",
                    paused: true,
                },
            ),
            (
                "/v2/queues/q/resume",
                Call::QueueSwitch {
                    name: "q",
                    paused: false,
                },
            ),
            ("/v2/queues/q/x", Call::Missing),
            ("/v2/dlq/", Call::Dlq),
            ("/v2/dlq/1-0", Call::DlqEntry { id: "1-0" }),
            ("/v2/dlq/retry", Call::DlqRetry { id: None }),
            ("/v2/dlq/retry/", Call::DlqRetry { id: None }),
            ("/v2/dlq/retry/1-0", Call::DlqRetry { id: Some("1-0") }),
            ("/v2/dlq/1-0/x", Call::Missing),
            ("/v2/flowControl", Call::FlowKeys),
            ("/v2/flowControl/k", Call::FlowKey { key: "k" }),
            (
                "/v2/flowControl/k/resetRate",
                Call::FlowChange {
                    key: "k",
                    change: FlowChange::ResetRate,
                },
            ),
            ("/v2/flowControl/k/x", Call::Missing),
            ("/v2/globalParallelism", Call::GlobalParallelism),
            ("/v2/schedules/x", Call::Missing),
            ("/v1/topics", Call::Missing),
            ("/llm/v1/chat/completions", Call::Missing),
            ("/v2", Call::Unknown),
            ("/", Call::Unknown),
            ("*", Call::Unknown),
        ] {
            assert_eq!(Call::read(path), call, "{path}");
        }
    }

    #[test]
    fn the_destination_keeps_its_own_query() {
        let query = Query::read("a=1&qstash_token=t%3D&Upstash-Delay=10s&b=%20&c");
        assert_eq!(query.token.as_deref(), Some("t="));
        assert_eq!(query.options, [("upstash-delay".into(), "10s".into())]);
        assert_eq!(query.rest, "a=1&b=%20&c");
        assert_eq!(Query::read(""), Query::default());
    }

    #[test]
    fn escapes_are_undone_and_the_rest_stays() {
        for (text, decoded) in [
            ("a%20b", "a b"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz%41", "%zzA"),
        ] {
            assert_eq!(decode(text), decoded);
        }
    }

    #[test]
    fn a_destination_is_a_url_or_a_name() {
        let name = "strapi.create-v2_x".to_owned();
        assert_eq!(Destination::parse(&name), Ok(Destination::Group(name)));
        for url in ["http://127.0.0.1:1/a?b=c", "HTTPS://Example.com"] {
            assert_eq!(Destination::parse(url), Ok(Destination::Url(url.into())));
        }
        assert_eq!(Destination::parse(""), Err(NameError::Empty));
        for text in [
            "https%3A%2F%2Fh",
            "ftp://h",
            "a/b",
            "https:/h",
            "localhost:3000",
        ] {
            assert_eq!(Destination::parse(text), Err(NameError::Scheme), "{text}");
        }
        assert!(matches!(
            Destination::parse("api/llm"),
            Err(NameError::Api { .. })
        ));
        assert!(matches!(
            Destination::parse("http://"),
            Err(NameError::Url { .. })
        ));
        assert!(matches!(
            Destination::parse("a b"),
            Err(NameError::Name { .. })
        ));
    }
}
