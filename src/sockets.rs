//! The listening sockets, which outlive a worker: Strapi never repeats a webhook that met a
//! closed port.
//!
//! They come from whoever started this process (systemd, a predecessor, a supervisor), all by
//! systemd's protocol: `LISTEN_FDS` sockets from descriptor 3 on, named in `LISTEN_FDNAMES`.
//! Where none came, they are bound. <https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html>

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use command_fds::{CommandFdExt, FdMapping};
use listenfd::ListenFd;
use tokio::process::Command;

/// The name of a socket for health, metrics and status; any other is for webhooks.
const ADMIN: &str = "admin";

/// The first descriptor behind stdin, stdout and stderr.
const FIRST_FD: i32 = 3;

/// Sockets that this process was given.
#[derive(Debug, Default)]
pub struct Inherited {
    webhook: Vec<TcpListener>,
    admin: Option<TcpListener>,
}

/// Why sockets are not usable.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// An address cannot be listened on.
    #[error(
        "could not listen on {address}; is another program there? Choose another address with {flag}"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A socket that was given is none to listen on.
    #[error("a socket that this process was given (LISTEN_FDS) is no listening TCP socket")]
    Inherited(#[source] std::io::Error),
    /// A socket could not be given on.
    #[error("could not hand over the sockets")]
    HandOver(#[source] std::io::Error),
}

impl Inherited {
    /// Takes what was given; `names` is `LISTEN_FDNAMES`. It changes the environment, so that
    /// a process started later does not take them for its own: call it before any thread is
    /// started.
    pub fn take(names: Option<&str>) -> Result<Self, SocketError> {
        let mut fds = ListenFd::from_env();
        let mut inherited = Self::default();
        let mut names = names.unwrap_or_default().split(':');
        for at in 0..fds.len() {
            let listener = fds.take_tcp_listener(at).map_err(SocketError::Inherited)?;
            match (listener, names.next()) {
                (Some(listener), Some(ADMIN)) => inherited.admin = Some(listener),
                (Some(listener), _) => inherited.webhook.push(listener),
                (None, _) => {}
            }
        }
        Ok(inherited)
    }

    /// Whether any came.
    pub fn is_some(&self) -> bool {
        !self.webhook.is_empty()
    }
}

/// The sockets of this process.
#[derive(Debug)]
pub struct Sockets {
    webhook: Vec<TcpListener>,
    admin: Option<TcpListener>,
    /// Someone else holds them too: connections wait while nobody accepts.
    shared: bool,
}

impl Sockets {
    /// Those that were given, and the others bound.
    pub fn open(
        inherited: Inherited,
        webhook: &[SocketAddr],
        admin: Option<SocketAddr>,
    ) -> Result<Self, SocketError> {
        let shared = inherited.is_some();
        let webhook = match shared {
            true => inherited.webhook,
            false => webhook
                .iter()
                .map(|address| bind(*address, "--listen"))
                .collect::<Result<_, _>>()?,
        };
        let admin = match (inherited.admin, admin) {
            (_, None) => None,
            (Some(listener), Some(_)) => Some(listener),
            (None, Some(address)) => Some(bind(address, "--admin-listen")?),
        };
        for listener in webhook.iter().chain(&admin) {
            listener
                .set_nonblocking(true)
                .map_err(SocketError::Inherited)?;
        }
        Ok(Self {
            webhook,
            admin,
            shared,
        })
    }

    /// Whether connections wait while nobody accepts, since someone else holds the sockets.
    pub fn are_shared(&self) -> bool {
        self.shared
    }

    /// Where Strapi posts.
    pub fn webhook_addresses(&self) -> Vec<SocketAddr> {
        self.webhook
            .iter()
            .filter_map(|listener| listener.local_addr().ok())
            .collect()
    }

    /// For the runtime; these stay, to be handed over.
    pub(crate) fn listeners(
        &self,
    ) -> std::io::Result<(
        Vec<tokio::net::TcpListener>,
        Option<tokio::net::TcpListener>,
    )> {
        let listener =
            |listener: &TcpListener| tokio::net::TcpListener::from_std(listener.try_clone()?);
        let webhook = self
            .webhook
            .iter()
            .map(listener)
            .collect::<Result<_, _>>()?;
        Ok((webhook, self.admin.as_ref().map(listener).transpose()?))
    }

    /// Gives them to a process that is about to be started.
    pub fn give_to(&self, command: &mut Command) -> Result<(), SocketError> {
        let (mut mappings, mut names) = (Vec::new(), Vec::new());
        let webhook = self.webhook.iter().map(|listener| (listener, "webhook"));
        let all = webhook.chain(self.admin.iter().map(|listener| (listener, ADMIN)));
        for ((listener, name), child_fd) in all.zip(FIRST_FD..) {
            let parent_fd: OwnedFd = listener.try_clone().map_err(SocketError::HandOver)?.into();
            mappings.push(FdMapping {
                parent_fd,
                child_fd,
            });
            names.push(name);
        }
        command
            .env("LISTEN_FDS", mappings.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env_remove("LISTEN_PID");
        command
            .fd_mappings(mappings)
            .map_err(|collision| SocketError::HandOver(std::io::Error::other(collision)))?;
        Ok(())
    }
}

fn bind(address: SocketAddr, flag: &'static str) -> Result<TcpListener, SocketError> {
    TcpListener::bind(address).map_err(|source| SocketError::Listen {
        address,
        flag,
        source,
    })
}
