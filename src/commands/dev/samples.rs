//! Webhooks captured from Strapi 5.54, byte for byte, and how they are sent to the sidecar.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::secret::Secret;

/// One captured request.
pub(super) struct Sample(&'static [u8]);

macro_rules! captured {
    ($file:literal) => {
        Sample(include_bytes!(concat!(
            "../../../tests/fixtures/strapi/",
            $file
        )))
    };
}

/// The first is the one that `--send-sample` sends.
pub(super) const SAMPLES: [Sample; 6] = [
    captured!("entry.publish.http"),
    captured!("entry.create.minimal.http"),
    captured!("entry.update.http"),
    captured!("media.create.http"),
    captured!("entry.unpublish.http"),
    captured!("entry.delete.published-row.http"),
];

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the sidecar answered.
pub(super) struct Accepted {
    /// The first line.
    pub(super) head: String,
    /// The name that it gave to the event.
    pub(super) event_id: String,
}

impl Sample {
    /// The body as Strapi sent it.
    pub(super) fn body(&self) -> &'static [u8] {
        let end = self.0.windows(4).position(|four| four == b"\r\n\r\n");
        end.and_then(|end| self.0.get(end + 4..))
            .unwrap_or_default()
    }

    /// Sends it on a connection of its own.
    pub(super) async fn send(
        &self,
        webhook: SocketAddr,
        secret: Option<&Secret>,
    ) -> anyhow::Result<Accepted> {
        let exchange = exchange(webhook, self.request(webhook, secret));
        let answer = tokio::time::timeout(TIMEOUT, exchange).await;
        let answer = answer
            .context("it took too long")
            .and_then(|answer| answer)
            .context("the sidecar did not answer")?;
        let mut lines = answer.lines();
        let head = lines.next().unwrap_or_default().to_owned();
        let id = lines.find_map(|line| line.strip_prefix("x-event-id: "));
        Ok(Accepted {
            head,
            event_id: id.unwrap_or_default().to_owned(),
        })
    }

    /// The captured request, for this sidecar: its path, and the secret where one is wanted.
    fn request(&self, webhook: SocketAddr, secret: Option<&Secret>) -> Vec<u8> {
        let text = String::from_utf8_lossy(self.0);
        let (head, _) = text.split_once("\r\n\r\n").unwrap_or_default();
        let mut lines = vec![
            "POST /webhook HTTP/1.1".to_owned(),
            format!("host: {webhook}"),
        ];
        let bearer = secret.map(|secret| format!("Authorization: Bearer {}", secret.expose()));
        lines.extend(bearer);
        for line in head.lines().skip(1) {
            let name = line.split_once(':').map(|(name, _)| name);
            match name.map(str::to_ascii_lowercase).as_deref() {
                Some("host" | "connection" | "authorization") => {}
                _ => lines.push(line.to_owned()),
            }
        }
        lines.push("connection: close".to_owned());
        let mut request = lines.join("\r\n").into_bytes();
        request.extend_from_slice(b"\r\n\r\n");
        request.extend_from_slice(self.body());
        request
    }
}

async fn exchange(address: SocketAddr, request: Vec<u8>) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&request).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_as_captured_but_for_its_path_and_its_secret() {
        let webhook = "127.0.0.1:1".parse().unwrap();
        let secret = Secret::trimmed("word");
        for sample in &SAMPLES {
            let request = sample.request(webhook, secret.as_ref());
            let text = String::from_utf8_lossy(&request).into_owned();
            assert!(text.starts_with("POST /webhook HTTP/1.1\r\n"));
            assert_eq!(text.matches("Authorization: Bearer word").count(), 1);
            let length = format!("ontent-length: {}", sample.body().len());
            assert!(text.to_lowercase().contains(&length), "{text}");
            assert!(request.ends_with(sample.body()));
            assert!(serde_json::from_slice::<serde_json::Value>(sample.body()).is_ok());
        }
    }
}
