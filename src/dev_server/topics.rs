//! `/v2/topics`: URL groups over HTTP.

use std::collections::BTreeMap;

use http_body_util::Full;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{error, json_answer, method_not_allowed};
use super::groups::{Endpoint, Group, GroupError, Groups};
use super::target::{Call, check_name, decode};
use crate::clock::Timestamp;
use crate::http::Answer;

#[derive(Deserialize)]
struct EndpointsBody {
    endpoints: Vec<EndpointBody>,
}

#[derive(Deserialize)]
struct EndpointBody {
    name: Option<String>,
    url: Option<String>,
}

#[derive(Deserialize)]
struct HeadersBody {
    headers: BTreeMap<String, OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error("invalid request body: {0}")]
    Body(#[from] serde_json::Error),
    #[error("invalid header {name:?}")]
    Header { name: String },
}

/// Answers a call about URL groups.
pub(super) fn answer(
    groups: &mut Groups,
    method: &str,
    call: Call<'_>,
    body: &[u8],
    now: Timestamp,
) -> Answer {
    let done = match (method, call) {
        ("GET", Call::Topics) => {
            let all = groups.iter().map(|(name, group)| describe(name, group));
            Ok(Some(Value::Array(all.collect())))
        }
        ("GET", Call::Topic { name }) => get(groups, &decode(name)).map(Some),
        ("DELETE", Call::Topic { name }) => {
            // No error when there is none: clients delete first and ask never.
            groups.remove(&decode(name));
            Ok(None)
        }
        ("PATCH", Call::Topic { name }) => {
            set_headers(groups, &decode(name), body, now).map(|()| None)
        }
        ("POST", Call::TopicEndpoints { name }) => {
            upsert(groups, &decode(name), body, now).map(|()| None)
        }
        ("DELETE", Call::TopicEndpoints { name }) => {
            remove(groups, &decode(name), body, now).map(|()| None)
        }
        _ => return method_not_allowed(),
    };
    match done {
        Ok(Some(value)) => json_answer(StatusCode::OK, &value),
        Ok(None) => Response::new(Full::default()),
        Err(failure) => error(status_of(&failure), &failure.to_string()),
    }
}

fn status_of(failure: &Failure) -> StatusCode {
    match failure {
        Failure::Group(GroupError::Unknown { .. }) => StatusCode::NOT_FOUND,
        Failure::Group(GroupError::Quota { .. }) => StatusCode::PRECONDITION_FAILED,
        Failure::Group(GroupError::Name(_)) | Failure::Body(_) | Failure::Header { .. } => {
            StatusCode::BAD_REQUEST
        }
    }
}

fn get(groups: &Groups, name: &str) -> Result<Value, Failure> {
    Ok(describe(name, groups.get(name)?))
}

fn upsert(groups: &mut Groups, name: &str, body: &[u8], now: Timestamp) -> Result<(), Failure> {
    let body: EndpointsBody = serde_json::from_slice(body)?;
    let endpoints = body.endpoints.into_iter().map(|endpoint| Endpoint {
        name: endpoint.name.filter(|name| !name.is_empty()),
        url: endpoint.url.unwrap_or_default(),
    });
    let endpoints: Vec<_> = endpoints.collect();
    groups.check_room(name, &endpoints)?;
    let done = groups.upsert(name, endpoints, now);
    Ok(done.map_err(GroupError::from)?)
}

fn remove(groups: &mut Groups, name: &str, body: &[u8], now: Timestamp) -> Result<(), Failure> {
    let body: EndpointsBody = serde_json::from_slice(body)?;
    let endpoints = body.endpoints.into_iter();
    let names_and_urls: Vec<_> = endpoints
        .filter_map(|endpoint| endpoint.name.or(endpoint.url))
        .collect();
    Ok(groups.remove_endpoints(name, &names_and_urls, now)?)
}

fn set_headers(
    groups: &mut Groups,
    name: &str,
    body: &[u8],
    now: Timestamp,
) -> Result<(), Failure> {
    check_name(name).map_err(GroupError::from)?;
    let body: HeadersBody = serde_json::from_slice(body)?;
    let mut headers = HeaderMap::new();
    for (name, values) in body.headers {
        let values = match values {
            OneOrMany::One(value) => vec![value],
            OneOrMany::Many(values) => values,
        };
        for value in values {
            let header = HeaderName::from_bytes(name.as_bytes()).ok();
            let value = HeaderValue::from_bytes(value.as_bytes()).ok();
            let (header, value) = header
                .zip(value)
                .ok_or_else(|| Failure::Header { name: name.clone() })?;
            headers
                .try_append(header, value)
                .map_err(|_too_many| Failure::Header { name: name.clone() })?;
        }
    }
    Ok(groups.set_headers(name, headers, now)?)
}

fn describe(name: &str, group: &Group) -> Value {
    let endpoints = group.endpoints.iter().map(|endpoint| match &endpoint.name {
        Some(name) => json!({ "name": name, "url": endpoint.url }),
        None => json!({ "url": endpoint.url }),
    });
    json!({
        "name": name,
        "createdAt": group.created_at.as_millis(),
        "updatedAt": group.updated_at.as_millis(),
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}
