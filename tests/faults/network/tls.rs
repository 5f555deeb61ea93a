//! Servers at an `https://` URL that is not QStash's: with a certificate that nobody vouches
//! for, or with no TLS at all.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// What a publish would be answered with.
const ACCEPTED: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 21\r\n\r\n{\"messageId\":\"msg_1\"}";

/// What the server does with a connection.
#[derive(Clone)]
pub(super) enum Impostor {
    /// TLS with a certificate that no known authority has signed.
    Tls(TlsAcceptor),
    /// HTTP without TLS.
    Plain,
    /// It reads the beginning of the handshake and resets the connection.
    CutHandshake,
    /// The same with a part of an answer.
    HalfHandshake,
}

impl Impostor {
    /// One whose certificate is for this name.
    pub(super) fn with_certificate_for(name: &str) -> Self {
        let signed = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key)
            .unwrap();
        Self::Tls(TlsAcceptor::from(Arc::new(config)))
    }
}

/// A running server; it ends when it is dropped.
pub(super) struct Server {
    address: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
    _accepting: AbortOnDropHandle<()>,
}

impl Server {
    pub(super) async fn start(impostor: Impostor) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&received);
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (impostor, kept) = (impostor.clone(), Arc::clone(&kept));
                tokio::spawn(async move {
                    // The client hangs up, or so does the server: either is an end.
                    serve(stream, impostor, &kept).await.ok();
                });
            }
        });
        Self {
            address,
            received,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    pub(super) fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// Everything that clients said to it, without the handshake of TLS.
    pub(super) fn received(&self) -> Vec<u8> {
        self.received.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, impostor: Impostor, kept: &Mutex<Vec<u8>>) -> io::Result<()> {
    let mut piece = vec![0; 16 << 10];
    match impostor {
        Impostor::Tls(acceptor) => {
            let mut stream = acceptor.accept(stream).await?;
            let read = stream.read(&mut piece).await?;
            kept.lock().unwrap().extend_from_slice(&piece[..read]);
            stream.write_all(ACCEPTED).await
        }
        Impostor::Plain => {
            let read = stream.read(&mut piece).await?;
            kept.lock().unwrap().extend_from_slice(&piece[..read]);
            stream.write_all(ACCEPTED).await
        }
        Impostor::CutHandshake | Impostor::HalfHandshake => {
            let read = stream.read(&mut piece).await?;
            kept.lock().unwrap().extend_from_slice(&piece[..read]);
            if let Impostor::HalfHandshake = impostor {
                // A record of the handshake that is said to be longer than it is.
                stream
                    .write_all(b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03")
                    .await?;
            }
            stream.set_zero_linger()
        }
    }
}
