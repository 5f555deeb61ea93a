use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::{Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::client::Times;
use crate::process;

/// The sidecar's, see `http`.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// The bare server: reads the body, answers 202.
pub(crate) async fn serve() {
    let mut connections = JoinSet::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    process::announce(listener.local_addr().unwrap());
    let accept = async {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            connections.spawn(connection);
        }
    };
    tokio::select! {
        () = accept => {}
        () = process::wait_for_parent() => {}
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await;
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = match body {
        Ok(_) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::BAD_REQUEST,
    };
    Ok(answer)
}

/// Where the bare log writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    /// Behind the end of the file, as a plain log does: the file's size changes too.
    Growing,
    /// Over zeros that are on the disk already: the least that any disk can be asked for.
    Preallocated,
}

/// The bare log: the times of so many appends of a record.
pub(crate) fn log(folder: &Path, kind: Log, record: &[u8], count: usize) -> Times {
    let path = folder.join("bare.log");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    if kind == Log::Preallocated {
        file.write_all(&vec![0; record.len() * count]).unwrap();
        file.sync_all().unwrap();
        file.rewind().unwrap();
    }
    let times = (0..count).map(|_| {
        let started = Instant::now();
        file.write_all(record).unwrap();
        file.sync_data().unwrap();
        started.elapsed()
    });
    let times = Times::from_iter(times);
    std::fs::remove_file(path).unwrap();
    times
}
