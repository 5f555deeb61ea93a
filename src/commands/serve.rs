//! `serve`: runs the sidecar until it is told to stop, or hands its sockets to a successor.

use std::time::Duration;

use anyhow::Context;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::successor::{self, Role};
use super::{logging, supervise};
use crate::cli::ServeArgs;
use crate::config::Config;
use crate::sidecar::Sidecar;
use crate::sockets::{Inherited, Sockets};

/// How long a stop may take whose sockets stay open, whatever the grace: Strapi's connections
/// wait meanwhile, and it gives up after 10 s. What is out at QStash then is repeated by the
/// next process, and dropped there by its deduplication id.
const SHORT_GRACE: Duration = Duration::from_secs(3);

/// How often a stop that takes long is told.
const TELL_STOP: Duration = Duration::from_secs(2);

/// How long a predecessor may take to let go of the buffer.
const WAIT_FOR_PREDECESSOR: Duration = Duration::from_secs(30);

/// Runs until SIGTERM or SIGINT, then drains within the grace; a second signal ends it at
/// once. SIGUSR2 starts the binary anew with the sockets, then drains.
pub async fn run(args: &ServeArgs, inherited: Inherited) -> anyhow::Result<()> {
    let (mut config, warnings) = Config::from_args(args)?;
    logging::start(&config.log);
    for warning in warnings {
        warn!("{warning}");
    }
    let was_given_sockets = inherited.is_some();
    let admin = config.admin.as_ref().map(|admin| admin.listen);
    let sockets = Sockets::open(inherited, &config.inbound.listen, admin)?;
    if was_given_sockets && !args.dangerous_no_auth {
        config.check_open_sockets(&sockets.webhook_addresses())?;
    }
    if args.supervise && !args.worker {
        return supervise::run(&config, &sockets).await;
    }
    if args.successor {
        config.buffer.wait_for_lock = WAIT_FOR_PREDECESSOR;
        successor::say_ready()?;
    }

    let mut signals = Signals::listen()?;
    let mut hand_over =
        signal(SignalKind::user_defined2()).context("could not listen for SIGUSR2")?;
    let (grace, summary) = (config.shutdown_grace, config.summary());
    let sidecar = Sidecar::start(config, &sockets).await?;
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

    let handed_over = loop {
        tokio::select! {
            () = signals.wait() => break false,
            () = stdin_closed(), if args.worker => break false,
            _ = hand_over.recv() => match successor::start(&sockets, Role::Successor).await {
                Ok(process) => {
                    info!(pid = process.pid(), "Successor is ready, handing over");
                    break true;
                }
                Err(error) => error!(error = format!("{error:#}"), "No successor, going on as before"),
            },
        }
    };
    let shared = handed_over || sockets.are_shared();
    let grace = if shared {
        grace.min(SHORT_GRACE)
    } else {
        grace
    };
    info!(
        grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        "Stopping"
    );
    if !shared {
        // Nobody else accepts: whoever connects now is better refused at once than left waiting.
        drop(sockets);
    }
    let buffer = sidecar.buffer().clone();
    let mut ticks = tokio::time::interval_at(Instant::now() + TELL_STOP, TELL_STOP);
    let telling = async {
        loop {
            ticks.tick().await;
            info!(
                pending = buffer.tally().pending,
                "Still stopping, what is out at QStash is waited for"
            );
        }
    };
    tokio::select! {
        () = sidecar.drain(grace) => Ok(()),
        () = telling => Ok(()),
        () = signals.wait() => anyhow::bail!("stopped at once by a second signal; the buffer holds what is left"),
    }
}

/// A supervisor keeps a pipe to its worker's stdin: it is closed to stop it, and by the kernel
/// when the supervisor dies.
async fn stdin_closed() {
    let mut byte = [0];
    while matches!(tokio::io::stdin().read(&mut byte).await, Ok(1..)) {}
}

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
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
