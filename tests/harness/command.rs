use std::net::SocketAddr;
use std::path::Path;
use std::process::{Output, Stdio};

use strapi_qstash::dev_server::DEVELOPMENT_TOKEN;
use tokio::process::Command;

use super::{QStash, TestApp, binary};

/// What a command said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// It ended well; its lines.
    pub(crate) fn lines(&self) -> Vec<&str> {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out.lines().collect()
    }

    /// It ended well; each of its lines as JSON.
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        let json = |line: &&str| serde_json::from_str(line);
        let lines = self.lines();
        lines.iter().map(json).collect::<Result<_, _>>().unwrap()
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A command on the buffer in `dir`, with no terminal.
pub(crate) fn command(
    dir: &Path,
    qstash: &str,
    admin: Option<SocketAddr>,
    words: &[&str],
) -> Command {
    let mut command = Command::new(binary());
    command
        .args(words)
        .env_clear()
        .env("QSTASH_TOKEN", DEVELOPMENT_TOKEN)
        .env("QSTASH_URL", qstash)
        .env("STRAPI_QSTASH_DATA_DIR", dir)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Some(admin) = admin {
        command.env("STRAPI_QSTASH_ADMIN_LISTEN", admin.to_string());
    }
    command
}

/// Runs one beside no sidecar.
pub(crate) async fn run_on(dir: &Path, qstash: &QStash, words: &[&str]) -> Said {
    let mut command = command(dir, &qstash.server.url(), None, words);
    command.output().await.unwrap().into()
}

impl TestApp {
    /// Runs a command beside the sidecar.
    pub(crate) async fn run(&self, words: &[&str]) -> Said {
        let admin = self.sidecar.admin_address();
        let mut command = command(self.dir.path(), &self.qstash.server.url(), admin, words);
        command.output().await.unwrap().into()
    }
}
