//! The running sidecar, as a command on the same machine asks it: at its admin address.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::cli::ServeArgs;
use crate::config;
use crate::qstash::tls;
use crate::secret::Secret;

/// It is on this machine, and may have a full disk to wait for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is read of `/api/status`.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    /// Destinations that do not exist.
    pub(super) held: Vec<String>,
    pub(super) qstash: Flow,
}

/// Whether QStash takes events.
#[derive(Debug, Deserialize)]
pub(super) struct Flow {
    /// Why not; `None` while it does.
    pub(super) reason: Option<String>,
    /// A time, RFC 3339.
    pub(super) since: String,
}

pub(super) struct Running {
    http: reqwest::Client,
    address: SocketAddr,
    token: Option<Secret>,
}

impl Running {
    /// Where `--admin` says, or else where the sidecar is told to listen. Nothing is asked yet.
    pub(super) fn new(admin: Option<&str>, args: &ServeArgs) -> anyhow::Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder()
                .tls_backend_preconfigured(tls::client_config(&tls::ExtraRoots::default()))
                .no_proxy()
                .timeout(PATIENCE)
                .build()
                .context("could not set up a connection")?,
            address: config::admin_to_ask(admin, args.admin_listen.as_deref())?,
            token: config::admin_token(args),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What `/readyz` says, with its status; `None` when nobody answers.
    pub(super) async fn ready(&self) -> Option<(u16, String)> {
        let url = format!("http://{}/readyz", self.address);
        let answer = self.http.get(url).send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.text().await.unwrap_or_default()))
    }

    /// What `/api/status` says; `None` when nobody answers, or not to us.
    pub(super) async fn status(&self) -> Option<Status> {
        let request = self.http.get(format!("http://{}/api/status", self.address));
        let answer = self.authorized(request).send().await.ok()?;
        serde_json::from_str(&answer.text().await.ok()?).ok()
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {}", token.expose())),
            None => request,
        }
    }

    /// Posts JSON and gives the answer.
    pub(super) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self
            .http
            .post(format!("http://{}{path}", self.address))
            .header("content-type", "application/json")
            .body(body.to_string());
        let answer = self.authorized(request).send().await.map_err(|_unreachable| {
            anyhow::anyhow!(
                "no sidecar answers at the admin address {}; name it with --admin, or as the sidecar has it with --admin-listen",
                self.address
            )
        })?;
        let status = answer.status();
        let text = answer
            .text()
            .await
            .context("the sidecar's answer broke off")?;
        match status.as_u16() {
            200 => serde_json::from_str(&text).context("the sidecar's answer is no JSON"),
            401 => bail!(
                "the sidecar at {} wants the token of its --admin-token: set STRAPI_QSTASH_ADMIN_TOKEN",
                self.address
            ),
            404 => bail!(
                "what answers at {} is no sidecar of this version; name its admin address with --admin",
                self.address
            ),
            _ => bail!("the sidecar at {} says: {}", self.address, text.trim()),
        }
    }
}
