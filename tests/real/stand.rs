//! For the tests with a real Strapi: QStash, the receiving API, and someone who holds the
//! listening socket while the sidecar is restarted, as systemd does.
//!
//! It reads a command a line on stdin, as JSON, and answers each with a line on stdout:
//! `{"fault":"refuse"}` or `"none"`, `{"group":"news"}`, `{"start":["program","--flag",…]}` (with
//! the socket as descriptor 3; answers its process id). Each delivery is a line
//! `{"arrived":…}` of its own. It ends with its stdin.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use strapi_qstash::dev_server::{Catcher, CatcherSettings, DevServer, Fault, Received, Settings};
use strapi_qstash::sockets::{Inherited, Sockets};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// As QStash's paid plan has it: Strapi's entries may be large.
const MAX_MESSAGE: u64 = 10 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Fault(String),
    Group(String),
    Start(Vec<String>),
}

struct Stand {
    server: DevServer,
    catcher: Catcher,
    sockets: Sockets,
    children: TaskTracker,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    let nowhere: SocketAddr = "127.0.0.1:0".parse()?;
    let settings = Settings {
        max_message: MAX_MESSAGE,
        time_scale: 100.0,
        ..Settings::default()
    };
    let server = DevServer::start(
        TcpListener::bind(nowhere).await?,
        settings,
        tasks.clone(),
        shutdown.clone(),
    );
    let catcher = Catcher::start(
        TcpListener::bind(nowhere).await?,
        CatcherSettings::default(),
        tasks.clone(),
        shutdown,
    );
    let sockets = Sockets::open(Inherited::default(), &[nowhere], None)?;
    let stand = Stand {
        server,
        catcher,
        sockets,
        children: TaskTracker::new(),
    };

    let mut arrivals = stand.catcher.subscribe();
    tasks.spawn(async move {
        while let Ok(received) = arrivals.recv().await {
            tell(&json!({ "arrived": arrived(&received) }));
        }
    });
    let held = stand.sockets.webhook_addresses();
    tell(
        &json!({ "qstash": stand.server.url(), "socket": held.first().map(SocketAddr::to_string) }),
    );
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let order = serde_json::from_str(&line).with_context(|| format!("no order: {line}"))?;
        tell(&stand.carry_out(order).await?);
    }
    Ok(())
}

impl Stand {
    async fn carry_out(&self, order: Order) -> anyhow::Result<Value> {
        match order {
            Order::Fault(name) => {
                let fault = match name.as_str() {
                    "none" => Fault::None,
                    "refuse" => Fault::Refuse,
                    other => bail!("no fault: {other}"),
                };
                self.server.faults().set(fault).await;
                Ok(json!({ "done": true }))
            }
            Order::Group(name) => {
                self.server
                    .upsert_endpoints(&name, &[(None, &self.catcher.url(&format!("/{name}")))])?;
                Ok(json!({ "done": true }))
            }
            Order::Start(words) => {
                let (program, args) = words.split_first().context("no program to start")?;
                let mut command = Command::new(program);
                self.sockets.give_to(command.args(args))?;
                let mut child = command.spawn()?;
                let pid = child.id();
                self.children.spawn(async move { child.wait().await });
                Ok(json!({ "pid": pid }))
            }
        }
    }
}

fn arrived(received: &Received) -> Value {
    let headers = received.headers.iter().map(|(name, value)| {
        (
            name.as_str().to_owned(),
            Value::from(String::from_utf8_lossy(value.as_bytes()).into_owned()),
        )
    });
    json!({
        "method": received.method.as_str(),
        "path": received.path,
        "headers": headers.collect::<serde_json::Map<_, _>>(),
        "body": STANDARD.encode(&received.body),
        "verified": received.verified,
    })
}

#[expect(clippy::print_stdout, reason = "the test reads it")]
fn tell(what: &Value) {
    println!("{what}");
}
