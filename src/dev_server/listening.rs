//! The port: open, or closed by [`Fault::Refuse`](super::Fault::Refuse) and opened again.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::{Shared, api};
use crate::http;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1_024;

/// The pause before the port is bound again after that failed.
const BIND_PAUSE: Duration = Duration::from_millis(20);

/// Serves until shutdown; while the port is to be refused, keeps it closed and ours.
pub(super) async fn listen(
    shared: Arc<Shared>,
    mut listener: TcpListener,
    open: watch::Sender<bool>,
) {
    let mut refuse = shared.faults.watch_refuse();
    loop {
        open.send_replace(true);
        let period = shared.shutdown.child_token();
        let service = {
            let (shared, period) = (Arc::clone(&shared), period.clone());
            service_fn(move |request| api::answer(Arc::clone(&shared), period.clone(), request))
        };
        {
            let serving = http::serve(
                listener,
                period.clone(),
                Duration::ZERO,
                shared.tasks.clone(),
                service,
            );
            let mut serving = std::pin::pin!(serving);
            tokio::select! {
                () = serving.as_mut() => return,
                () = becomes(&mut refuse, true) => {}
            }
            // Ends the connections too: whoever is in a request gets no answer.
            period.cancel();
            serving.await;
        }
        let Some(reserved) = reserve(&shared).await else {
            return;
        };
        open.send_replace(false);
        info!(addr = %shared.addr, "Port closed");
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = becomes(&mut refuse, false) => {}
        }
        let Some(reopened) = reopen(&shared, reserved).await else {
            return;
        };
        listener = reopened;
        info!(addr = %shared.addr, "Port opened");
    }
}

async fn becomes(watched: &mut watch::Receiver<bool>, wanted: bool) {
    // It cannot end: the sender lives in what the caller holds.
    watched.wait_for(|value| *value == wanted).await.ok();
}

/// Binds the port without listening on it: whoever connects is refused, and the kernel
/// gives the port to nobody else, not even as the source of a connection. Only a server
/// that asks for this very port could still get it. `None` on shutdown.
async fn reserve(shared: &Shared) -> Option<TcpSocket> {
    let mut is_told = false;
    loop {
        match bind(shared.addr) {
            Ok(socket) => return Some(socket),
            Err(error) if is_told => debug!(%error, "Bind failed again"),
            Err(error) => {
                warn!(%error, addr = %shared.addr, "Bind failed, will try again");
                is_told = true;
            }
        }
        pause(shared).await?;
    }
}

/// Listens on the port again, waiting until whoever took it lets go. `None` on shutdown.
async fn reopen(shared: &Shared, reserved: TcpSocket) -> Option<TcpListener> {
    let mut socket = reserved;
    loop {
        match socket.listen(BACKLOG) {
            Ok(listener) => return Some(listener),
            Err(error) => warn!(%error, addr = %shared.addr, "Listen failed, will try again"),
        }
        pause(shared).await?;
        socket = reserve(shared).await?;
    }
}

async fn pause(shared: &Shared) -> Option<()> {
    tokio::select! {
        () = shared.shutdown.cancelled() => None,
        () = tokio::time::sleep(BIND_PAUSE) => Some(()),
    }
}

fn bind(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // The connections that were just closed still hold the address.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}
