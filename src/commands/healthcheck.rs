//! `healthcheck`: asks a running sidecar how it is, for images that have no curl. Exit code 0
//! is well; 1 is not, with the reason on stderr.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::cli::HealthcheckArgs;
use crate::config;

/// How long a sidecar may take to answer. A disk that takes longer is no disk to rely on.
const PATIENCE: Duration = Duration::from_secs(5);

/// The answers are one line; whatever is longer is not the sidecar's.
const LARGEST_ANSWER: u64 = 4096;

/// Asks, and says what was answered.
pub fn run(args: &HealthcheckArgs) -> anyhow::Result<()> {
    let address = config::admin_to_ask(None, args.admin_listen.as_deref())?;
    let path = match args.live {
        true => "/healthz",
        false => "/readyz",
    };
    let (status, body) = get(address, path).with_context(|| {
        format!(
            "no answer from http://{address}{path}; is the sidecar running, with its admin address there \
             (--admin-listen)?"
        )
    })?;
    let words = body.trim();
    if status != 200 {
        bail!("http://{address}{path} answered {status}: {words}");
    }
    writeln!(std::io::stdout(), "{words}").ok(); // the exit code is what counts
    Ok(())
}

fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.take(LARGEST_ANSWER).read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer is cut short")?;
    let status = head
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok());
    Ok((
        status.context("the answer is not HTTP/1.1")?,
        body.to_owned(),
    ))
}
