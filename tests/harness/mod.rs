//! [`TestApp`]: a folder, the development server, the catcher, and the sidecar in this
//! process; [`Process`]: the sidecar as a process of its own, to be killed. And a client that
//! sends bytes as they are.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strapi_qstash::cli::{Cli, ServeArgs};
use strapi_qstash::config::Config;
use strapi_qstash::dev_server::{
    self, Catcher, CatcherSettings, DEVELOPMENT_TOKEN, DevServer, Message,
};
use strapi_qstash::sidecar::Sidecar;
use strapi_qstash::sockets::{Inherited, Sockets};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longer than anything here takes, even on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// The QStash of a test, with one group for the events of no other.
pub(crate) struct QStash {
    pub(crate) server: DevServer,
    pub(crate) catcher: Catcher,
    shutdown: CancellationToken,
}

impl QStash {
    pub(crate) async fn start() -> Self {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = dev_server::Settings {
            time_scale: 1000.0,
            ..dev_server::Settings::default()
        };
        let server = DevServer::start(listener, settings, tasks.clone(), shutdown.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let catcher = Catcher::start(
            listener,
            CatcherSettings::default(),
            tasks,
            shutdown.clone(),
        );
        let qstash = Self {
            server,
            catcher,
            shutdown,
        };
        qstash.add_group("news");
        qstash
    }

    pub(crate) fn add_group(&self, name: &str) {
        let url = self.catcher.url(&format!("/{name}"));
        self.server.upsert_endpoints(name, &[(None, &url)]).unwrap();
    }

    /// What was accepted, without repeats.
    pub(crate) fn accepted(&self) -> Vec<Arc<Message>> {
        self.server
            .messages()
            .into_iter()
            .filter(|message| !message.deduplicated)
            .collect()
    }

    /// Waits until so many messages were accepted, without repeats.
    pub(crate) async fn wait_for(&self, count: usize, timeout: Duration) {
        let enough = |server: &DevServer| server.counts().accepted >= count as u64;
        let arrived = self.server.wait_until(timeout, enough).await;
        assert!(
            arrived,
            "{} of {count} arrived within {timeout:?}",
            self.server.counts().accepted
        );
    }
}

impl Drop for QStash {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(crate) struct Builder {
    flags: Vec<String>,
    hold: Option<Duration>,
    topic: bool,
}

impl Builder {
    pub(crate) fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.extend([name.to_owned(), value.to_owned()]);
        self
    }

    pub(crate) fn no_topic(mut self) -> Self {
        self.topic = false;
        self
    }

    /// Between two tries of a destination that does not exist.
    pub(crate) fn hold(mut self, hold: Duration) -> Self {
        self.hold = Some(hold);
        self
    }

    pub(crate) async fn start(self) -> TestApp {
        TestApp::start_with(QStash::start().await, tempfile::tempdir().unwrap(), self).await
    }
}

/// The sidecar in this process, with its QStash.
pub(crate) struct TestApp {
    pub(crate) qstash: QStash,
    pub(crate) dir: TempDir,
    pub(crate) sidecar: Sidecar,
    pub(crate) webhook: SocketAddr,
}

impl TestApp {
    pub(crate) fn builder() -> Builder {
        Builder {
            flags: Vec::new(),
            hold: None,
            topic: true,
        }
    }

    pub(crate) async fn start() -> Self {
        Self::builder().start().await
    }

    async fn start_with(qstash: QStash, dir: TempDir, builder: Builder) -> Self {
        let mut flags: Vec<String> = base_flags(&dir, &qstash).into();
        if builder.topic {
            flags.extend(["--topic".to_owned(), "news".to_owned()]);
        }
        let typed = |name: &str| builder.flags.iter().any(|flag| flag == name);
        if !typed("--qstash-token-file") {
            flags.extend(["--qstash-token".to_owned(), DEVELOPMENT_TOKEN.to_owned()]);
        }
        if let Some(at) = flags.iter().position(|flag| typed(flag)) {
            flags.drain(at..at + 2); // another one is given
        }
        flags.extend(builder.flags.clone());
        let (mut config, _) = Config::from_args(&parse(&flags)).unwrap();
        if let Some(hold) = builder.hold {
            config.forwarder.hold = hold;
        }
        let admin = config.admin.as_ref().map(|admin| admin.listen);
        let sockets = Sockets::open(Inherited::default(), &config.inbound.listen, admin).unwrap();
        let sidecar = Sidecar::start(config, &sockets).await.unwrap();
        let webhook = sidecar.addresses()[0];
        Self {
            qstash,
            dir,
            sidecar,
            webhook,
        }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.webhook).await
    }

    /// Posts so many events of ten documents, one after the other, each answered 202; the
    /// median time of an answer.
    pub(crate) async fn post_updates(&self, count: usize) -> Duration {
        post_updates(&mut self.client().await, 0..count).await
    }

    /// Waits until nothing is pending.
    pub(crate) async fn wait_until_drained(&self) {
        let drained = wait_until(LONG, || self.sidecar.buffer().tally().pending == 0).await;
        assert!(drained, "{:?}", self.sidecar.buffer().tally());
    }

    pub(crate) async fn admin(&self, path: &str) -> Answer {
        let mut client = Client::connect(self.sidecar.admin_address().unwrap()).await;
        client
            .send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .await
    }

    /// The value of a metric.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.admin("/metrics").await.body;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .unwrap_or_else(|| {
                panic!("no {name} in\n{text}");
            });
        line.parse().unwrap()
    }
}

fn base_flags(dir: &TempDir, qstash: &QStash) -> [String; 8] {
    [
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--data-dir",
        dir.path().to_str().unwrap(),
        "--qstash-url",
        &qstash.server.url(),
    ]
    .map(str::to_owned)
}

pub(crate) fn parse(flags: &[String]) -> ServeArgs {
    use clap::Parser;
    let words = std::iter::once("strapi-qstash").chain(flags.iter().map(String::as_str));
    Cli::try_parse_from(words).unwrap().serve
}

pub(crate) async fn post_updates(client: &mut Client, numbers: std::ops::Range<usize>) -> Duration {
    let mut times = Vec::new();
    for n in numbers {
        let started = Instant::now();
        let answer = client.post("/webhook", &update(n)).await;
        times.push(started.elapsed());
        assert_eq!(answer.status, 202, "{answer:?}");
        assert_eq!(answer.body, "");
    }
    times.sort();
    times[times.len() / 2]
}

/// Event number `n`, of one of ten documents.
pub(crate) fn update(n: usize) -> String {
    format!(
        r#"{{"event":"entry.update","model":"article","uid":"api::article.article","entry":{{"documentId":"d{}","n":{n}}}}}"#,
        n % 10
    )
}

/// The number of an [`update`].
pub(crate) fn number(body: &[u8]) -> usize {
    serde_json::from_slice::<serde_json::Value>(body).unwrap()["entry"]["n"]
        .as_u64()
        .and_then(|n| n.try_into().ok())
        .unwrap()
}

/// Every number once, and those of each document in order.
pub(crate) fn assert_once_and_in_order(messages: &[Arc<Message>], count: usize) {
    let numbers: Vec<usize> = messages
        .iter()
        .map(|message| number(&message.body))
        .collect();
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        (0..count).collect::<Vec<_>>(),
        "each event arrives once"
    );
    for document in 0..10 {
        let of_document: Vec<usize> = numbers
            .iter()
            .copied()
            .filter(|n| n % 10 == document)
            .collect();
        assert!(
            of_document.is_sorted(),
            "document {document} is out of order: {of_document:?}"
        );
    }
}

pub(crate) async fn wait_until(timeout: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

/// A connection that sends bytes as they are.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    pub(crate) async fn post(&mut self, path: &str, body: &str) -> Answer {
        self.post_with(path, &["Content-Type: application/json"], body.as_bytes())
            .await
    }

    pub(crate) async fn post_with(&mut self, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        self.try_post(path, headers, body).await.unwrap()
    }

    pub(crate) async fn try_post(
        &mut self,
        path: &str,
        headers: &[&str],
        body: &[u8],
    ) -> std::io::Result<Answer> {
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n",
            body.len()
        );
        for header in headers {
            request.push_str(header);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(body);
        self.try_send(&bytes).await
    }

    pub(crate) async fn send(&mut self, request: &[u8]) -> Answer {
        self.try_send(request).await.unwrap()
    }

    pub(crate) async fn try_send(&mut self, request: &[u8]) -> std::io::Result<Answer> {
        self.stream.get_mut().write_all(request).await?;
        tokio::time::timeout(LONG, self.read_answer()).await?
    }

    async fn read_answer(&mut self) -> std::io::Result<Answer> {
        let closed = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or_else(closed)?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line).await?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.push((name.to_lowercase(), value.to_owned())),
                None => break,
            }
        }
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length = length.map_or(0, |(_, value)| value.parse().unwrap());
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok(Answer {
            status,
            headers,
            body: String::from_utf8(body).unwrap(),
        })
    }
}

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
                &qstash.server.url(),
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

    pub(crate) async fn try_spawn(mut command: Command) -> Result<Self, String> {
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
            if let Some(address) = process.address("Webhooks go to http://") {
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

    fn address(&self, after: &str) -> Option<SocketAddr> {
        let log = self.log.lock().unwrap();
        let line = log.iter().find_map(|line| line.split_once(after))?;
        line.1.split('/').next()?.parse().ok()
    }

    /// Asks admin.
    pub(crate) async fn admin(&self, path: &str) -> Answer {
        let address = || self.address("health and metrics are at http://");
        assert!(wait_until(LONG, || address().is_some()).await);
        let mut client = Client::connect(address().unwrap()).await;
        client
            .send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .await
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

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
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
