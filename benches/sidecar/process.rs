use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::Role;
use crate::client::get;

/// The binary that is measured: the one that STRAPI_QSTASH_BIN names, or the one of this build.
/// Benches are built in the profile of a release.
pub(crate) fn binary() -> PathBuf {
    let built = || env!("CARGO_BIN_EXE_strapi-qstash").into();
    std::env::var_os("STRAPI_QSTASH_BIN").map_or_else(built, PathBuf::from)
}

/// Longer than any start or stop takes.
const LONG: Duration = Duration::from_secs(60);

/// How often a start looks whether it is over.
const LOOK: Duration = Duration::from_micros(500);

/// The unit of CPU times in /proc, on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// A bare server: this binary in another role.
pub(crate) struct Bare {
    pub(crate) address: SocketAddr,
    _child: Child,
}

impl Bare {
    pub(crate) async fn start(role: Role) -> Self {
        let role = match role {
            Role::Server => "server",
            Role::Sink => "sink",
        };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--role", role])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(LONG, lines.next_line()).await.unwrap();
        Self {
            address: line.unwrap().unwrap().parse().unwrap(),
            _child: child,
        }
    }
}

/// Tells the parent where this bare server listens.
pub(crate) fn announce(address: SocketAddr) {
    println!("{address}");
    std::io::stdout().flush().unwrap();
}

/// The parent keeps a pipe to a bare server's stdin, which the kernel closes when it dies.
pub(crate) async fn wait_for_parent() {
    tokio::io::stdin().read_to_end(&mut Vec::new()).await.ok();
}

/// A running sidecar.
pub(crate) struct Sidecar {
    pub(crate) webhook: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// From its start to the first answer that it is ready.
    pub(crate) ready_after: Duration,
    child: Child,
}

impl Sidecar {
    pub(crate) async fn start(folder: &Path, qstash: SocketAddr, flags: &[&str]) -> Self {
        let (webhook, admin) = (free_address(), free_address());
        let log = std::fs::File::create(folder.join("sidecar.log")).unwrap();
        let mut command = Command::new(binary());
        command
            .args(["--listen", &webhook.to_string()])
            .args(["--admin-listen", &admin.to_string()])
            .args(["--qstash-url", &format!("http://{qstash}")])
            .args(["--topic", "news", "--data-dir", folder.to_str().unwrap()])
            .args(flags)
            .env("QSTASH_TOKEN", "bench")
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        let started = Instant::now();
        let child = command.spawn().unwrap();
        loop {
            match get(admin, "/readyz").await {
                Ok((200, _)) => break,
                _ => tokio::time::sleep(LOOK).await,
            }
            assert!(
                started.elapsed() < LONG,
                "the sidecar did not start: see {}",
                folder.display()
            );
        }
        Self {
            webhook,
            admin,
            ready_after: started.elapsed(),
            child,
        }
    }

    /// Ends it as its users do.
    pub(crate) async fn stop(mut self) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill")
            .args(["-s", "TERM", &pid])
            .status()
            .await;
        assert!(sent.unwrap().success());
        let ended = timeout(LONG, self.child.wait()).await.unwrap();
        assert!(ended.unwrap().success(), "it stops with success");
    }

    fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// The value of a metric.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let (_, text) = get(self.admin, "/metrics").await.unwrap();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap().parse().unwrap()
    }

    /// Events that QStash has, since the start.
    pub(crate) async fn delivered(&self) -> u64 {
        self.metric("strapi_qstash_delivered_events_total").await
    }

    /// Waits until the metric fulfils a condition.
    pub(crate) async fn wait_until(&self, name: &str, condition: impl Fn(u64) -> bool) {
        while !condition(self.metric(name).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until nothing is pending.
    pub(crate) async fn drained(&self) {
        self.wait_until(
            "strapi_qstash_buffer_events{state=\"pending\"}",
            |pending| pending == 0,
        )
        .await;
    }

    /// Resident memory, in MB.
    pub(crate) fn memory(&self) -> f64 {
        self.kilobytes("VmRSS")
    }

    /// The most memory that was resident since the start, in MB.
    pub(crate) fn peak_memory(&self) -> f64 {
        self.kilobytes("VmHWM")
    }

    fn kilobytes(&self, name: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        status_number(&status, name) as f64 * 1024.0 / 1e6
    }

    /// CPU time used so far.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // Behind the name, which may hold anything: utime and stime are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let mut ticks = fields.split(' ').skip(11);
        let mut next = || ticks.next().unwrap().parse::<u32>().unwrap();
        TICK * (next() + next())
    }

    /// How often its threads went to sleep, so woke up, so far.
    pub(crate) fn wakeups(&self) -> u64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        threads
            .map(|thread| {
                let status = std::fs::read_to_string(thread.unwrap().path().join("status"));
                status_number(&status.unwrap(), "voluntary_ctxt_switches")
            })
            .sum()
    }
}

fn status_number(status: &str, name: &str) -> u64 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.unwrap().split_whitespace().next();
    number.unwrap().parse().unwrap()
}

/// An address that nobody listens on.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}
