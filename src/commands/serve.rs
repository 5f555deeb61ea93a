//! `serve`: runs the sidecar until it is told to stop.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use super::logging;
use crate::cli::ServeArgs;
use crate::config::Config;
use crate::sidecar::Sidecar;

/// Runs until SIGTERM or SIGINT, then drains within the grace. A second signal ends it at once.
pub async fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let (config, warnings) = Config::from_args(args)?;
    logging::start(&config.log);
    for warning in warnings {
        warn!("{warning}");
    }
    let mut signals = Signals::listen()?;
    let (grace, summary) = (config.shutdown_grace, config.summary());
    let sidecar = Sidecar::start(config).await?;
    let pending = sidecar.buffer().tally().pending;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        settings = summary,
        pending,
        "Sidecar is ready"
    );
    for address in sidecar.addresses() {
        info!("Webhooks go to http://{address}/webhook");
    }
    if let Some(address) = sidecar.admin_address() {
        info!("Status, health and metrics are at http://{address}/");
    }
    signals.wait().await;
    info!(grace_ms = grace.as_millis(), "Stopping");
    tokio::select! {
        () = sidecar.drain(grace) => Ok(()),
        () = signals.wait() => anyhow::bail!("stopped at once by a second signal; the buffer holds what is left"),
    }
}

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Self> {
        let context = "could not listen for signals";
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context(context)?,
            interrupt: signal(SignalKind::interrupt()).context(context)?,
        })
    }

    pub(super) async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
