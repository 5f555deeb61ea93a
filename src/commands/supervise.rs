//! `serve --supervise`: a process that only holds the listening sockets and keeps a worker
//! running. In a container it is process 1: when the worker dies, connections wait for the
//! next one, which is there within milliseconds.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use super::serve::Signals;
use super::successor::{self, Ended, Process, Role};
use crate::config::Config;
use crate::sockets::Sockets;

/// Between two starts of a worker that does not come up. Strapi gives up after 10 s.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// A worker that lived so long was right: when it dies, the next is started at once.
const SETTLED: Duration = Duration::from_secs(1);

/// Beyond the worker's own grace, before it is killed.
const EXTRA_GRACE: Duration = Duration::from_secs(2);

pub(super) async fn run(config: &Config, sockets: &Sockets) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let mut renew = signal(SignalKind::user_defined2()).context("could not listen for SIGUSR2")?;
    // A first worker that does not come up is a mistake of the person who started this.
    let mut worker = successor::start(sockets, Role::Worker).await?;
    let mut started = Instant::now();
    info!(pid = worker.pid(), "Worker is ready");
    loop {
        tokio::select! {
            status = worker.wait() => {
                let status = status.context("could not wait for the worker")?;
                error!(%status, "Worker ended, starting another; connections wait");
                if started.elapsed() < SETTLED {
                    tokio::time::sleep(RESTART_PAUSE).await;
                }
                worker = tokio::select! {
                    worker = restart(sockets) => worker,
                    () = signals.wait() => return Ok(()),
                };
                started = Instant::now();
                info!(pid = worker.pid(), "Worker is ready");
            }
            _ = renew.recv() => match successor::start(sockets, Role::Worker).await {
                Ok(renewed) => {
                    info!(pid = renewed.pid(), "New worker is ready, the old one stops");
                    let old = std::mem::replace(&mut worker, renewed);
                    started = Instant::now();
                    stop(old, config.shutdown_grace).await;
                }
                Err(error) => error!(error = format!("{error:#}"), "No new worker, the old one goes on"),
            },
            () = signals.wait() => {
                tokio::select! {
                    () = stop(worker, config.shutdown_grace) => return Ok(()),
                    () = signals.wait() => anyhow::bail!("stopped at once by a second signal; the buffer holds what is left"),
                }
            }
        }
    }
}

async fn restart(sockets: &Sockets) -> Process {
    loop {
        match successor::start(sockets, Role::Worker).await {
            Ok(worker) => return worker,
            Err(error) => {
                let status = error
                    .downcast_ref::<Ended>()
                    .map(|ended| ended.0.to_string());
                error!(
                    error = format!("{error:#}"),
                    status, "Worker did not come up, will try again"
                );
            }
        }
        tokio::time::sleep(RESTART_PAUSE).await;
    }
}

/// Lets a worker drain; one that does not come to an end is killed, which loses nothing that
/// was answered.
async fn stop(mut worker: Process, grace: Duration) {
    worker.stop();
    if tokio::time::timeout(grace + EXTRA_GRACE, worker.wait())
        .await
        .is_err()
    {
        warn!(pid = worker.pid(), "Worker does not stop, killing it");
        worker.kill();
        worker.wait().await.ok(); // it is gone either way
    }
}
