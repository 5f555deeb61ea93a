//! `healthcheck`: asks a running sidecar how it is, for images that have no curl. Exit code 0
//! is well; 1 is not, with the reason on stderr.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::cli::HealthcheckArgs;
use crate::config::{self, Mistakes};

/// How long a sidecar may take to answer. A disk that takes longer is no disk to rely on.
const PATIENCE: Duration = Duration::from_secs(5);

/// The answers are one line; whatever is longer is not the sidecar's.
const LARGEST_ANSWER: u64 = 4096;

/// Asks, and says what was answered.
pub fn run(args: &HealthcheckArgs) -> anyhow::Result<()> {
    let mut mistakes = Mistakes::default();
    let asked = mistakes.check(
        "--admin-listen",
        config::admin_address(args.admin_listen.as_deref()),
    );
    let Some(asked) = asked else {
        return Err(mistakes.into());
    };
    let address = reachable(asked);
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

/// An address that is listened on everywhere is asked on this machine.
fn reachable(listened: SocketAddr) -> SocketAddr {
    let ip = match listened.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listened.port())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_all_interfaces_is_asked_on_loopback() {
        for (listened, asked) in [
            ("0.0.0.0:8788", "127.0.0.1:8788"),
            ("[::]:8788", "[::1]:8788"),
            ("10.0.0.7:80", "10.0.0.7:80"),
        ] {
            assert_eq!(
                reachable(listened.parse().unwrap()),
                asked.parse().unwrap(),
                "{listened}"
            );
        }
    }
}
