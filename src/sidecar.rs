//! The composition root: builds every part, owns all tasks, and knows the order in which
//! they stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::{self, Admin};
use crate::buffer::{Buffer, OpenError};
use crate::clock;
use crate::config::Config;
use crate::forwarder::{Flow, Forwarder};
use crate::inbound::{self, Admission, Inbound};
use crate::metrics::Metrics;
use crate::qstash::{Client, ClientError};
use crate::sockets::Sockets;
use crate::spans::Spans;

/// How often history that is older than it is kept is looked for.
const TIDY: Duration = Duration::from_secs(60);

/// A running sidecar.
pub struct Sidecar {
    inbound: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    buffer: Buffer,
    metrics: Arc<Metrics>,
    spans: Arc<Spans>,
    draining: Arc<AtomicBool>,
    /// Inbound: the accept loops and their connections.
    accepting: Part,
    /// The forwarder and its requests.
    forwarding: Part,
    /// Admin and housekeeping: to the end.
    attending: Part,
}

/// Tasks that stop together.
#[derive(Default)]
struct Part {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Part {
    async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Why a sidecar did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The sockets cannot be used.
    #[error("could not use the listening sockets")]
    Sockets(#[source] std::io::Error),
    /// The buffer cannot be opened.
    #[error(transparent)]
    Buffer(#[from] OpenError),
    /// The client cannot be built.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Sidecar {
    /// Starts all parts; when it returns, events are taken.
    pub async fn start(config: Config, sockets: &Sockets) -> Result<Self, StartError> {
        let (listeners, admin_listener) = sockets.listeners().map_err(StartError::Sockets)?;
        let effective = config.effective();
        let spans = Arc::new(Spans::from_environment(&config.qstash.roots).await);
        let buffer = Buffer::open(&config.buffer)?;
        let client = Arc::new(Client::new(config.qstash)?);
        let metrics = Arc::new(Metrics::default());
        let draining = Arc::new(AtomicBool::new(false));
        let (flow, flow_seen) = watch::channel(Flow {
            since: clock::now(),
            ..Flow::default()
        });
        let retry_held = Arc::new(Notify::new());
        let (accepting, forwarding, attending) =
            (Part::default(), Part::default(), Part::default());

        let forwarder = Forwarder {
            settings: config.forwarder,
            buffer: buffer.clone(),
            client: Arc::clone(&client),
            metrics: Arc::clone(&metrics),
            spans: Arc::clone(&spans),
            flow,
            retry_held: Arc::clone(&retry_held),
            tasks: forwarding.tasks.clone(),
            stop: forwarding.stop.clone(),
        };
        forwarding.tasks.spawn(forwarder.run());

        let router = Arc::new(config.router);
        let inbound = Arc::new(Inbound {
            admission: Admission::new(config.inbound.max_body),
            settings: config.inbound,
            router: Arc::clone(&router),
            buffer: buffer.clone(),
            client: Arc::clone(&client),
            metrics: Arc::clone(&metrics),
            spans: Arc::clone(&spans),
        });
        let mut addresses = Vec::new();
        for listener in listeners {
            addresses.push(listener.local_addr().map_err(StartError::Sockets)?);
            let serving = inbound::serve(
                Arc::clone(&inbound),
                listener,
                accepting.stop.clone(),
                accepting.tasks.clone(),
            );
            accepting.tasks.spawn(serving);
        }
        let mut admin_address = None;
        if let (Some(settings), Some(listener)) = (config.admin, admin_listener) {
            admin_address = Some(listener.local_addr().map_err(StartError::Sockets)?);
            let admin = Arc::new(Admin {
                settings,
                buffer: buffer.clone(),
                router,
                metrics: Arc::clone(&metrics),
                client,
                flow: flow_seen,
                effective,
                retry_held,
                is_local: listener
                    .local_addr()
                    .is_ok_and(|address| address.ip().is_loopback()),
                draining: Arc::clone(&draining),
            });
            attending.tasks.spawn(admin::serve(
                admin,
                listener,
                attending.stop.clone(),
                attending.tasks.clone(),
            ));
        }
        attending
            .tasks
            .spawn(tidy(buffer.clone(), attending.stop.clone()));
        Ok(Self {
            inbound: addresses,
            admin: admin_address,
            buffer,
            metrics,
            spans,
            draining,
            accepting,
            forwarding,
            attending,
        })
    }

    /// Where Strapi posts.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.inbound
    }

    /// Where health, metrics and status are.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// The buffer, to be looked at.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Stops: not ready → stop accepting → finish requests → stop claiming → settle what is
    /// out → close the buffer. One deadline covers it all; passing it loses nothing, since the
    /// buffer holds what is left.
    pub async fn drain(self, grace: Duration) {
        let drain = async {
            self.draining.store(true, Ordering::Relaxed);
            self.accepting.stop().await;
            self.forwarding.stop().await;
            self.attending.stop().await;
            self.buffer.clone().close().await;
            self.spans.end().await;
        };
        match tokio::time::timeout(grace, drain).await {
            Ok(()) => info!(pending = self.buffer.tally().pending, "Stopped"),
            Err(_elapsed) => warn!(
                pending = self.buffer.tally().pending,
                "Stopped at the end of the grace; the buffer holds what is left"
            ),
        }
    }
}

async fn tidy(buffer: Buffer, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(TIDY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        buffer.tidy().await;
    }
}
