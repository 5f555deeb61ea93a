//! What stands between the sidecar and QStash, and fails.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::wire::Whole;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is passed on, and its answer passed back.
    Open,
    /// The port is closed, and all connections with it.
    Refused,
    /// Half of it is passed on, then both connections are reset.
    CutRequest,
    /// It is passed on, and half of its answer passed back before the reset.
    CutAnswer,
    /// It is read, and never answered.
    Hang,
    /// Its answer is passed back so much later.
    Late(Duration),
    /// Its answer is passed back at one byte a second.
    Trickle,
    /// It is passed on twice.
    Twice,
    /// By chance, it or its answer is cut in two of three cases.
    ByChance,
}

/// A running proxy; it ends when it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    way: watch::Sender<Way>,
    open: watch::Receiver<bool>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = bound("127.0.0.1:0".parse().unwrap())
            .listen(BACKLOG)
            .unwrap();
        let address = listener.local_addr().unwrap();
        let (way, followed) = watch::channel(Way::Open);
        let (opened, open) = watch::channel(true);
        let accepting = tokio::spawn(accept(listener, server, followed, opened));
        Self {
            address,
            way,
            open,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request from now on goes this way. Returns once the port is closed or open.
    pub(crate) async fn set(&self, way: Way) {
        self.way.send_replace(way);
        let wanted = way != Way::Refused;
        let mut open = self.open.clone();
        open.wait_for(|open| *open == wanted).await.unwrap();
    }
}

async fn accept(
    mut listener: TcpListener,
    server: SocketAddr,
    mut way: watch::Receiver<Way>,
    open: watch::Sender<bool>,
) {
    let address = listener.local_addr().unwrap();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = refuses(&mut way, true) => {
                // Bound and not listening: whoever connects is refused, and the port stays ours.
                let reserved = bound(address);
                drop(listener);
                open.send_replace(false);
                refuses(&mut way, false).await;
                listener = reserved.listen(BACKLOG).unwrap();
                open.send_replace(true);
                continue;
            }
        };
        tokio::spawn(serve(accepted.unwrap().0, server, way.clone()));
    }
}

/// A socket at this address, where another of ours may be still: were the port free for a moment,
/// some other process would get it now and then.
fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

/// Waits until the port is to be closed, or open.
async fn refuses(way: &mut watch::Receiver<Way>, refuses: bool) {
    let is_so = |way: &Way| (*way == Way::Refused) == refuses;
    way.wait_for(is_so).await.ok(); // without its sender the proxy has ended
}

/// Serves a connection until it ends or the port is closed; an error ends it too.
async fn serve(mut client: TcpStream, server: SocketAddr, way: watch::Receiver<Way>) {
    let mut closing = way.clone();
    tokio::select! {
        () = refuses(&mut closing, true) => {}
        ended = pass(&mut client, server, way) => if ended.is_ok() {
            return;
        }
    }
    client.set_zero_linger().ok(); // it may be gone
}

/// Passes requests on; an error is passed on as a reset.
async fn pass(
    client: &mut TcpStream,
    server: SocketAddr,
    way: watch::Receiver<Way>,
) -> io::Result<()> {
    let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
    let mut server = TcpStream::connect(server).await?;
    server.set_zero_linger()?;
    while let Some(request) = Whole::read(client).await? {
        let chosen = *way.borrow();
        match by_chance(chosen) {
            Way::Refused => return Err(reset()),
            Way::Hang => std::future::pending().await,
            Way::CutRequest => {
                server.write_all(half(&request.bytes)).await?;
                return Err(reset());
            }
            Way::CutAnswer => {
                let answer = ask(&mut server, &request).await?;
                client.write_all(half(&answer.bytes)).await?;
                return Err(reset());
            }
            Way::Late(wait) => {
                let answer = ask(&mut server, &request).await?;
                tokio::time::sleep(wait).await;
                client.write_all(&answer.bytes).await?;
            }
            Way::Trickle => {
                let answer = ask(&mut server, &request).await?;
                for byte in answer.bytes {
                    client.write_all(&[byte]).await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            Way::Twice => {
                ask(&mut server, &request).await?;
                let answer = ask(&mut server, &request).await?;
                client.write_all(&answer.bytes).await?;
            }
            Way::Open | Way::ByChance => {
                let answer = ask(&mut server, &request).await?;
                client.write_all(&answer.bytes).await?;
            }
        }
    }
    Ok(())
}

fn by_chance(way: Way) -> Way {
    match way {
        Way::ByChance => match fastrand::u8(0..3) {
            0 => Way::CutRequest,
            1 => Way::CutAnswer,
            _ => Way::Open,
        },
        way => way,
    }
}

async fn ask(server: &mut TcpStream, request: &Whole) -> io::Result<Whole> {
    server.write_all(&request.bytes).await?;
    let answer = Whole::read(server).await?;
    answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn half(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len() / 2]
}
