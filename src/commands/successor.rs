//! Starting the same program once more with the listening sockets: a successor, or the worker
//! of a supervisor.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::sockets::Sockets;

/// What a process says on its stdout when it holds the sockets and its flags are right.
const READY: &str = "ready";

/// How long it may take to say so.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// What the new process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It takes the place of this one.
    Successor,
    /// It works while this one only holds the sockets.
    Worker,
}

/// The new process. It goes on when this is dropped, but a worker stops then.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// Apart from the child: waiting for that would close it, and so stop the worker.
    stdin: Option<ChildStdin>,
}

impl Process {
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Tells a worker to stop.
    pub(super) fn stop(&mut self) {
        self.stdin = None;
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self) {
        self.child.start_kill().ok(); // it may have ended by itself
    }

    pub(super) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }
}

/// Why a new process is not there.
#[derive(Debug, thiserror::Error)]
#[error("the new process ended before it was ready ({0}); its last words are on stderr")]
pub(super) struct Ended(pub(super) ExitStatus);

/// Starts one with the flags of this process, from the file that this process was started
/// from: a new binary, if it was replaced. It is ready when this returns.
pub(super) async fn start(sockets: &Sockets, role: Role) -> anyhow::Result<Process> {
    let program = program()?;
    let mut command = Command::new(&program);
    command
        .args(std::env::args_os().skip(1))
        .env("STRAPI_QSTASH_SUCCESSOR", "true")
        .stdout(Stdio::piped());
    match role {
        Role::Worker => command
            .env("STRAPI_QSTASH_WORKER", "true")
            .stdin(Stdio::piped()),
        Role::Successor => command.stdin(Stdio::null()),
    };
    sockets.give_to(&mut command)?;
    let mut child = command
        .spawn()
        .with_context(|| format!("could not start {}", program.display()))?;
    let stdout = child
        .stdout
        .take()
        .context("the new process has no stdout")?;
    let mut line = String::new();
    let read = timeout(READY_TIMEOUT, BufReader::new(stdout).read_line(&mut line)).await;
    if line.trim_end() == READY {
        let stdin = child.stdin.take();
        return Ok(Process { child, stdin });
    }
    if read.is_err() {
        child.kill().await.ok(); // it hangs: whatever it does, it must not take over later
        bail!("the new process was not ready within {READY_TIMEOUT:?}");
    }
    let status = child
        .wait()
        .await
        .context("the new process cannot be waited for")?;
    Err(Ended(status).into())
}

/// Tells whoever started this process that it can take over.
pub(super) fn say_ready() -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{READY}").context("the starting process is gone")
}

/// Where the binary of this process is, or the one that has taken its place.
fn program() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("could not find the program's own file")?;
    // What Linux appends when the file was replaced.
    let bytes = path.as_os_str().as_bytes();
    let replaced = bytes.strip_suffix(b" (deleted)").map(<[u8]>::to_vec);
    Ok(replaced.map_or(path, |bytes| PathBuf::from(OsString::from_vec(bytes))))
}
