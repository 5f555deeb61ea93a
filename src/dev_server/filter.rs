//! Which messages, log lines or dead letters a call means, by its query.
//!
//! A filter given several times, or with commas, lets pass what equals one of its values;
//! several filters must all let it pass. A parameter that is none is an error, as QStash's
//! own SDK expects it: a typing error must not mean "all".

use std::collections::BTreeMap;

use reqwest::Url;

use super::delivery::CALLER_IP;
use super::message::{Destination, Message};
use crate::clock::Timestamp;

/// What a call of this kind may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Messages,
    Logs,
    Dlq,
}

/// Filters that were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// By name, all but those below.
    values: BTreeMap<&'static str, Vec<String>>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    pub(super) cursor: Option<String>,
    pub(super) count: Option<usize>,
    /// Names of single things: what else is asked for does not count.
    pub(super) ids: Option<Vec<String>>,
}

/// Why a query is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FilterError {
    #[error("unknown parameter {name:?}")]
    Unknown { name: String },
    #[error("invalid value {value:?} of parameter {name}: expected {expected}")]
    Value {
        name: String,
        value: String,
        expected: &'static str,
    },
}

/// What messages of all kinds can be found by.
const COMMON: [&str; 10] = [
    "messageId",
    "url",
    "host",
    "path",
    "topicName",
    "queueName",
    "scheduleId",
    "label",
    "flowControlKey",
    "callerIp",
];

const STATES: [&str; 10] = [
    "CREATED",
    "ACTIVE",
    "RETRY",
    "ERROR",
    "IN_PROGRESS",
    "DELIVERED",
    "FAILED",
    "CANCEL_REQUESTED",
    "CANCELLED",
    "CANCELED",
];

impl Filter {
    /// Reads the parameters of a call.
    pub(super) fn read(kind: Kind, parameters: &[(String, String)]) -> Result<Self, FilterError> {
        let mut filter = Self::default();
        for (name, value) in parameters {
            filter.add(kind, name, value)?;
        }
        Ok(filter)
    }

    fn add(&mut self, kind: Kind, name: &str, value: &str) -> Result<(), FilterError> {
        let invalid = |expected| FilterError::Value {
            name: name.to_owned(),
            value: value.to_owned(),
            expected,
        };
        let values = || value.split(',').map(str::to_owned);
        match (kind, name) {
            // SDKs send what was not given as well, empty.
            (_, "cursor") => self.cursor = Some(value.to_owned()).filter(|v| !v.is_empty()),
            (_, "count") => {
                let count = value.parse().ok().filter(|count| *count > 0);
                self.count = Some(count.ok_or_else(|| invalid("a number above 0"))?);
            }
            (_, "fromDate") => {
                self.from = Some(millis(value).ok_or_else(|| invalid("milliseconds since 1970"))?);
            }
            (_, "toDate") => {
                self.to = Some(millis(value).ok_or_else(|| invalid("milliseconds since 1970"))?);
            }
            (Kind::Messages | Kind::Logs, "messageIds") | (Kind::Dlq, "dlqIds") => {
                let ids = self.ids.get_or_insert_default();
                ids.extend(values().filter(|id| !id.is_empty()));
            }
            (Kind::Logs, "state") => {
                for state in values() {
                    let state = state.to_ascii_uppercase();
                    if !STATES.contains(&state.as_str()) {
                        return Err(invalid("a state such as DELIVERED"));
                    }
                    self.values.entry("state").or_default().push(state);
                }
            }
            (Kind::Dlq, "responseStatus") => {
                for status in values() {
                    status
                        .parse::<u16>()
                        .map_err(|_no_status| invalid("an HTTP status"))?;
                    self.values
                        .entry("responseStatus")
                        .or_default()
                        .push(status);
                }
            }
            _ => {
                let known = COMMON.into_iter().find(|known| match *known {
                    "callerIp" => name.eq_ignore_ascii_case(known),
                    known => name == known,
                });
                let known = known.ok_or_else(|| FilterError::Unknown {
                    name: name.to_owned(),
                })?;
                self.values.entry(known).or_default().extend(values());
            }
        }
        Ok(())
    }

    /// Whether a message passes; `at` is the instant that the dates are about.
    pub(super) fn matches(&self, message: &Message, at: Timestamp) -> bool {
        let is_in_time =
            self.from.is_none_or(|from| from <= at) && self.to.is_none_or(|to| at <= to);
        is_in_time
            && self
                .values
                .iter()
                .all(|(name, wanted)| has(message, name, wanted))
    }

    /// Whether a state passes.
    pub(super) fn matches_state(&self, state: &str) -> bool {
        let is = |wanted: &String| match wanted.as_str() {
            "IN_PROGRESS" => ["ACTIVE", "RETRY", "ERROR"].contains(&state),
            "CANCELED" => state == "CANCELLED",
            wanted => wanted == state,
        };
        let wanted = self.values.get("state");
        wanted.is_none_or(|wanted| wanted.iter().any(is))
    }

    /// Whether a status passes.
    pub(super) fn matches_status(&self, status: u16) -> bool {
        let wanted = self.values.get("responseStatus");
        let is = |wanted: &String| wanted.parse() == Ok(status);
        wanted.is_none_or(|wanted| wanted.iter().any(is))
    }
}

/// Whether a message has one of the values that are wanted of it.
fn has(message: &Message, name: &str, wanted: &[String]) -> bool {
    let is_wanted = |value: &str| wanted.iter().any(|wanted| wanted == value);
    match name {
        "messageId" => is_wanted(&message.id),
        "url" => is_wanted(&message.url),
        "host" | "path" => Url::parse(&message.url).is_ok_and(|url| match name {
            "path" => is_wanted(url.path()),
            _ => {
                let host = url.host_str().unwrap_or_default();
                let with_port = url.port().map(|port| format!("{host}:{port}"));
                is_wanted(host) || with_port.is_some_and(|host| is_wanted(&host))
            }
        }),
        "topicName" => match &message.destination {
            Destination::Group(name) => is_wanted(name),
            Destination::Url(_) => false,
        },
        "queueName" => message.queue.as_deref().is_some_and(is_wanted),
        "label" => message.options.labels.iter().any(|label| is_wanted(label)),
        "flowControlKey" => {
            let flow_control = message.options.flow_control.as_ref();
            flow_control.is_some_and(|flow_control| is_wanted(&flow_control.key))
        }
        "callerIp" => is_wanted(CALLER_IP),
        // There are no schedules.
        "scheduleId" => false,
        // Those that are not about the message itself.
        _ => true,
    }
}

fn millis(text: &str) -> Option<Timestamp> {
    text.parse().ok().map(Timestamp::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev_server::options::Options;
    use bytes::Bytes;
    use hyper::HeaderMap;

    const AT: Timestamp = Timestamp::from_millis(1_000);

    fn read(kind: Kind, parameters: &[(&str, &str)]) -> Result<Filter, FilterError> {
        let owned = parameters.iter();
        let owned = owned.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Filter::read(kind, &owned.collect::<Vec<_>>())
    }

    fn message() -> Message {
        Message {
            id: "msg_1".into(),
            destination: Destination::Group("g".into()),
            endpoint_name: None,
            queue: Some("q".into()),
            url: "http://127.0.0.1:80/a?b=c".into(),
            callback_of: None,
            headers: HeaderMap::new(),
            options: Options {
                labels: vec!["one".into(), "two".into()],
                ..Options::default()
            },
            body: Bytes::new(),
            deduplicated: false,
            created_at: AT,
        }
    }

    #[test]
    fn values_are_alternatives_and_filters_are_conditions() {
        for (parameters, passes) in [
            (vec![], true),
            (vec![("label", "two")], true),
            (vec![("label", "x,two")], true),
            (vec![("label", "x"), ("label", "one")], true),
            (vec![("label", "x")], false),
            (vec![("label", "")], false),
            (vec![("label", "one"), ("queueName", "q")], true),
            (vec![("label", "one"), ("queueName", "other")], false),
            (vec![("topicName", "g"), ("messageId", "msg_1")], true),
            (vec![("host", "127.0.0.1"), ("path", "/a")], true),
            (vec![("path", "/")], false),
            (vec![("url", "http://127.0.0.1:80/a?b=c")], true),
            (vec![("flowControlKey", "k")], false),
            (vec![("callerIP", "127.0.0.1")], true),
            (vec![("scheduleId", "scd_1")], false),
            (vec![("fromDate", "1000"), ("toDate", "1000")], true),
            (vec![("fromDate", "1001")], false),
            (vec![("toDate", "999")], false),
        ] {
            let filter = read(Kind::Messages, &parameters).unwrap();
            assert_eq!(filter.matches(&message(), AT), passes, "{parameters:?}");
        }
    }

    #[test]
    fn what_is_no_filter_is_told() {
        for (kind, name, value) in [
            (Kind::Messages, "messageid", "x"),
            (Kind::Messages, "state", "CREATED"),
            (Kind::Messages, "dlqIds", "x"),
            (Kind::Logs, "state", "LOST"),
            (Kind::Dlq, "responseStatus", "many"),
            (Kind::Dlq, "count", "0"),
            (Kind::Dlq, "count", "few"),
            (Kind::Logs, "fromDate", "today"),
        ] {
            assert!(read(kind, &[(name, value)]).is_err(), "{name}={value}");
        }
    }

    #[test]
    fn states_and_statuses_are_filters_where_there_are_any() {
        let filter = read(Kind::Logs, &[("state", "in_progress,CANCELED")]).unwrap();
        let passing = ["CREATED", "ACTIVE", "ERROR", "DELIVERED", "CANCELLED"]
            .map(|state| filter.matches_state(state));
        assert_eq!(passing, [false, true, true, false, true]);
        let filter = read(Kind::Dlq, &[("responseStatus", "500,404")]).unwrap();
        assert_eq!(
            [500, 404, 200].map(|s| filter.matches_status(s)),
            [true, true, false]
        );
    }
}
