//! What a person asks of QStash beside publishing: URL groups, logs, dead letters, and whether
//! the token is right. Never on the way of an event: these calls have a burst limit.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};

use super::client::{connections, describe};
use super::token::Token;
use super::{BaseUrl, ClientError, Settings, tls};
use crate::clock::Timestamp;

/// A person waits for the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Log entries of one message that are asked for: five retries make some 20.
const MOST_ENTRIES: &str = "100";

/// An account at QStash, as its token opens it.
#[derive(Debug)]
pub struct Account {
    http: reqwest::Client,
    base: BaseUrl,
    token: Token,
}

/// Why QStash did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// There is no token, or one that no header can carry.
    #[error("there is no usable QStash token")]
    Token,
    /// No answer.
    #[error("QStash at {base} is unreachable: {reason}")]
    Unreachable {
        /// Where it was looked for.
        base: String,
        /// What happened.
        reason: String,
    },
    /// The token is not good here.
    #[error("QStash at {base} refuses the token ({status}): {reason}")]
    Unauthorized {
        /// Where.
        base: String,
        /// The status.
        status: u16,
        /// QStash's words.
        reason: String,
    },
    /// It answered no.
    #[error("QStash refuses this ({status}): {reason}")]
    Refused {
        /// The status.
        status: u16,
        /// QStash's words.
        reason: String,
    },
    /// It answered what QStash does not.
    #[error("{base} does not answer as QStash does")]
    Strange {
        /// Where.
        base: String,
    },
}

/// What any answer tells beside what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// QStash's clock.
    pub date: Option<Timestamp>,
    /// The day's quota, if it was told.
    pub quota: Option<Quota>,
}

/// The day's quota of messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// So many a day.
    pub limit: u64,
    /// So many are left.
    pub remaining: u64,
}

/// A URL group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its members.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
}

/// A member of a URL group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Endpoint {
    /// Its name, if it has one.
    #[serde(default)]
    pub name: Option<String>,
    /// Where it is.
    pub url: String,
}

/// A line of QStash's log of a message.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogEntry {
    /// When, in milliseconds since 1970.
    pub time: i64,
    /// `CREATED`, `ACTIVE`, `DELIVERED`, `ERROR`, `RETRY`, `FAILED`, …
    pub state: String,
    /// The endpoint.
    #[serde(default)]
    pub url: Option<String>,
    /// The endpoint's name.
    #[serde(default)]
    pub endpoint_name: Option<String>,
    /// What the endpoint answered.
    #[serde(default)]
    pub response_status: Option<u16>,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<String>,
    /// When QStash tries again.
    #[serde(default)]
    pub next_delivery_time: Option<i64>,
    /// How often it tries again.
    #[serde(default)]
    pub max_retries: Option<u32>,
}

impl Account {
    /// Sets it up; nothing is asked yet.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        Ok(Self {
            http: connections(&settings.base, tls::client_config(&settings.roots))?,
            base: settings.base.clone(),
            token: Token::new(settings.token.clone()),
        })
    }

    /// Whether QStash is there and takes the token.
    pub async fn look(&self) -> Result<Seen, AccountError> {
        let (seen, _) = self
            .ask::<IgnoredAny>(Method::GET, "v2/keys", &[], None)
            .await?;
        Ok(seen)
    }

    /// All URL groups.
    pub async fn topics(&self) -> Result<Vec<Topic>, AccountError> {
        Ok(self.ask(Method::GET, "v2/topics", &[], None).await?.1)
    }

    /// A URL group; `None` when there is none of this name.
    pub async fn topic(&self, name: &str) -> Result<Option<Topic>, AccountError> {
        let path = format!("v2/topics/{name}");
        match self.ask(Method::GET, &path, &[], None).await {
            Ok((_, topic)) => Ok(Some(topic)),
            Err(AccountError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds endpoints to a URL group, which is made if there is none.
    pub async fn add_endpoints(
        &self,
        name: &str,
        endpoints: &[Endpoint],
    ) -> Result<(), AccountError> {
        let path = format!("v2/topics/{name}/endpoints");
        let all: Vec<Value> = endpoints
            .iter()
            .map(|endpoint| match &endpoint.name {
                Some(name) => json!({ "name": name, "url": endpoint.url }),
                None => json!({ "url": endpoint.url }),
            })
            .collect();
        self.tell(Method::POST, &path, Some(json!({ "endpoints": all })))
            .await
    }

    /// Takes endpoints out of a URL group, which goes with the last of them.
    pub async fn remove_endpoints(&self, name: &str, urls: &[String]) -> Result<(), AccountError> {
        let path = format!("v2/topics/{name}/endpoints");
        let all: Vec<Value> = urls.iter().map(|url| json!({ "url": url })).collect();
        self.tell(Method::DELETE, &path, Some(json!({ "endpoints": all })))
            .await
    }

    /// Removes a URL group.
    pub async fn remove_topic(&self, name: &str) -> Result<(), AccountError> {
        self.tell(Method::DELETE, &format!("v2/topics/{name}"), None)
            .await
    }

    /// What QStash logged of a message, the oldest first.
    pub async fn log(&self, message_id: &str) -> Result<Vec<LogEntry>, AccountError> {
        // The SDKs read `events`, the description of the API `logs`.
        #[derive(Deserialize)]
        struct Log {
            #[serde(alias = "events")]
            logs: Vec<LogEntry>,
        }
        let query = [("messageId", message_id), ("count", MOST_ENTRIES)];
        let (_, Log { mut logs }) = self.ask(Method::GET, "v2/logs", &query, None).await?;
        // Within one millisecond they come in the order of the log, the newest first.
        logs.reverse();
        logs.sort_by_key(|entry| entry.time);
        Ok(logs)
    }

    /// The name of a message in QStash's own dead letter queue, if it is there.
    pub async fn dead_letter(&self, message_id: &str) -> Result<Option<String>, AccountError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Letter {
            dlq_id: String,
        }
        #[derive(Deserialize)]
        struct Letters {
            messages: Vec<Letter>,
        }
        let query = [("messageId", message_id)];
        let (_, letters): (_, Letters) = self.ask(Method::GET, "v2/dlq", &query, None).await?;
        Ok(letters
            .messages
            .into_iter()
            .next()
            .map(|letter| letter.dlq_id))
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<(Seen, T), AccountError> {
        let (seen, text) = self.send(method, path, query, body).await?;
        let strange = |_| AccountError::Strange {
            base: self.base.to_string(),
        };
        let answer = serde_json::from_slice(&text).map_err(strange)?;
        Ok((seen, answer))
    }

    /// For what is answered with a status only.
    async fn tell(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(), AccountError> {
        self.send(method, path, &[], body).await.map(|_| ())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<(Seen, Vec<u8>), AccountError> {
        let base = self.base.to_string();
        let unreachable = |reason: String| AccountError::Unreachable {
            base: base.clone(),
            reason,
        };
        let mut url = Url::parse(&format!("{base}/{path}"))
            .map_err(|error| unreachable(error.to_string()))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let token = self.token.current().ok_or(AccountError::Token)?;
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.expose()))
            .map_err(|_unusable| AccountError::Token)?;
        bearer.set_sensitive(true);
        let mut request = self
            .http
            .request(method, url)
            .header(AUTHORIZATION, bearer)
            .timeout(PATIENCE);
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body.to_string());
        }
        let answer = request
            .send()
            .await
            .map_err(|error| unreachable(describe(&error)))?;
        let (status, seen) = (answer.status(), seen(answer.headers()));
        let body = answer
            .bytes()
            .await
            .map_err(|error| unreachable(describe(&error)))?;
        let mut body = body.to_vec();
        token.redact(&mut body);
        if status.is_success() {
            return Ok((seen, body));
        }
        let reason = words(&body);
        let is_about_the_token = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            || reason.contains("in this region");
        Err(match (is_about_the_token, status) {
            (true, _) => AccountError::Unauthorized {
                base,
                status: status.as_u16(),
                reason,
            },
            _ => AccountError::Refused {
                status: status.as_u16(),
                reason,
            },
        })
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn seen(headers: &HeaderMap) -> Seen {
    Seen {
        date: text(headers, "date").and_then(Timestamp::parse_http_date),
        quota: Quota::told(headers),
    }
}

impl Quota {
    pub(super) fn told(headers: &HeaderMap) -> Option<Self> {
        let number = |name: &str| text(headers, name)?.trim().parse().ok();
        Some(Self {
            limit: number("RateLimit-Limit")?,
            remaining: number("RateLimit-Remaining")?,
        })
    }
}

/// QStash's words: the text of `{"error": …}`, or the first line of anything else.
fn words(body: &[u8]) -> String {
    const LONGEST: usize = 300;
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let text = serde_json::from_slice::<Refusal>(body).map_or_else(
        |_| {
            let text = String::from_utf8_lossy(body);
            text.lines().next().unwrap_or_default().trim().to_owned()
        },
        |refusal| refusal.error,
    );
    match text.is_empty() {
        true => "no reason given".to_owned(),
        false => text.chars().take(LONGEST).collect(),
    }
}
