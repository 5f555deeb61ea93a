use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strapi_qstash::dev_server::DEVELOPMENT_TOKEN;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{Answer, Client, LONG, QStash, wait_until};

/// The sidecar as a process.
pub(crate) struct Process {
    child: Child,
    pub(crate) webhook: SocketAddr,
    log: Arc<std::sync::Mutex<Vec<String>>>,
}

pub(crate) fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_strapi-qstash"))
}

impl Process {
    /// Starts it on the buffer in `dir`, and waits until it takes webhooks.
    pub(crate) async fn start(
        dir: impl AsRef<Path>,
        qstash: &QStash,
        listen: Option<SocketAddr>,
        flags: &[&str],
    ) -> Self {
        Self::try_start(dir, qstash, listen, flags)
            .await
            .unwrap_or_else(|log| panic!("it did not start: {log}"))
    }

    /// The same; what it logged, when it ends before it takes webhooks.
    pub(crate) async fn try_start(
        dir: impl AsRef<Path>,
        qstash: &QStash,
        listen: Option<SocketAddr>,
        flags: &[&str],
    ) -> Result<Self, String> {
        let listen = listen.map_or_else(|| "127.0.0.1:0".to_owned(), |address| address.to_string());
        let mut command = Self::command(dir, qstash, &["--listen", &listen]);
        command.args(flags);
        Self::try_spawn(command).await
    }

    pub(crate) fn command(dir: impl AsRef<Path>, qstash: &QStash, flags: &[&str]) -> Command {
        Self::command_to(dir, &qstash.server.url(), flags)
    }

    /// The same, with its QStash at any URL.
    pub(crate) fn command_to(dir: impl AsRef<Path>, qstash: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args([
                "--admin-listen",
                "127.0.0.1:0",
                "--topic",
                "news",
                "--log-format",
                "json",
            ])
            .args([
                "--data-dir",
                dir.as_ref().to_str().unwrap(),
                "--qstash-url",
                qstash,
            ])
            .args(flags)
            .env("QSTASH_TOKEN", DEVELOPMENT_TOKEN);
        command
    }

    pub(crate) async fn spawn(command: Command) -> Self {
        Self::try_spawn(command)
            .await
            .unwrap_or_else(|log| panic!("it did not start: {log}"))
    }

    /// A command that says in another way where it listens.
    pub(crate) async fn spawn_saying(command: Command, before_address: &str) -> Self {
        Self::try_spawn_saying(command, before_address)
            .await
            .unwrap_or_else(|log| panic!("it did not start: {log}"))
    }

    pub(crate) async fn try_spawn(command: Command) -> Result<Self, String> {
        Self::try_spawn_saying(command, "Webhooks go to http://").await
    }

    async fn try_spawn_saying(mut command: Command, before_address: &str) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = Arc::clone(&log);
        let logging = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                kept.lock().unwrap().push(line);
            }
        });
        let mut process = Self {
            child,
            webhook: "127.0.0.1:0".parse().unwrap(),
            log,
        };
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(address) = process.address(before_address) {
                process.webhook = address;
                return Ok(process);
            }
            if process.child.try_wait().unwrap().is_some() {
                logging.await.ok(); // to the end of what it wrote
                return Err(process.log());
            }
            if Instant::now() > deadline {
                return Err(process.log());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn admin_address(&self) -> SocketAddr {
        let address = || self.address("health and metrics are at http://");
        assert!(wait_until(LONG, || address().is_some()).await);
        address().unwrap()
    }

    /// Asks admin.
    pub(crate) async fn admin(&self, path: &str) -> Answer {
        let mut client = Client::connect(self.admin_address().await).await;
        client
            .send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
            .await
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    fn address(&self, after: &str) -> Option<SocketAddr> {
        let log = self.log.lock().unwrap();
        let line = log.iter().find_map(|line| line.split_once(after))?;
        line.1.split('/').next()?.parse().ok()
    }

    /// The process ids that wrote a line with this text, in order.
    pub(crate) fn pids(&self, text: &str) -> Vec<u32> {
        let log = self.log.lock().unwrap();
        let lines = log.iter().filter(|line| line.contains(text));
        let json = lines.filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        json.filter_map(|line| line["pid"].as_u64()?.try_into().ok())
            .collect()
    }

    /// `kill -9`.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        assert!(
            std::process::Command::new("kill")
                .args(["-s", signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        tokio::time::timeout(LONG, self.child.wait())
            .await
            .unwrap()
            .unwrap()
            .code()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }
}
