//! [`TestApp`]: a folder, the development server, the catcher, and the sidecar in this
//! process; [`Process`]: the sidecar as a process of its own, to be killed. And a client that
//! sends bytes as they are.

mod client;
pub(crate) mod command;
pub(crate) mod fixtures;
mod process;
mod sink;

use std::net::SocketAddr;
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
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use client::{Answer, Client};
pub(crate) use command::{Said, run_on};
pub(crate) use process::{Process, binary};
pub(crate) use sink::{Ledger, Sink};

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
            .send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
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
    try_number(body).unwrap()
}

/// The number of what may be an [`update`].
pub(crate) fn try_number(body: &[u8]) -> Option<usize> {
    #[derive(serde::Deserialize)]
    struct Update {
        entry: Entry,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        n: usize,
    }
    let update: Update = serde_json::from_slice(body).ok()?;
    Some(update.entry.n)
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
