//! Senders as Strapi has them: five connections, one event after the other on each.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::{Client, update};
use crate::report::Report;

/// So many connections at a time fit into the queue of a listening socket.
const CONNECTING: usize = 100;

/// Strapi's own number of requests in flight.
const CONNECTIONS: usize = 5;

/// Strapi gives up on a webhook after 10 s; what takes longer than this is not far from it.
const SLOWEST_ANSWER: Duration = Duration::from_secs(5);

/// Senders at work. Each has documents of its own (of the ten of [`update`]), so that its
/// order is theirs.
pub(crate) struct Load {
    stop: CancellationToken,
    accepted: Arc<AtomicUsize>,
    senders: JoinSet<Sent>,
}

/// What came of a load.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// The numbers of the events that were answered 202.
    pub(crate) accepted: BTreeSet<usize>,
    /// A number beyond all that were sent, for the next load.
    pub(crate) next: usize,
    /// Answers that were not 202.
    pub(crate) refused: Vec<String>,
    /// Connections that broke, each with an event that had no answer.
    pub(crate) broken: Vec<String>,
    /// The longest time that an answer took.
    pub(crate) slowest: Duration,
}

impl Load {
    /// Begins to send events from number `first` on, a multiple of ten, with so much time
    /// between the events of a connection.
    pub(crate) fn start(address: SocketAddr, first: usize, pause: Duration) -> Self {
        Self::start_with(CONNECTIONS, address, first, pause)
    }

    /// The same over another number of connections, which divides ten.
    pub(crate) fn start_with(
        connections: usize,
        address: SocketAddr,
        first: usize,
        pause: Duration,
    ) -> Self {
        assert!(first.is_multiple_of(10) && 10usize.is_multiple_of(connections));
        let (stop, accepted) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let senders = (0..connections)
            .map(|sender| {
                let numbers = (first + sender..).step_by(connections);
                send(address, numbers, pause, stop.clone(), Arc::clone(&accepted))
            })
            .collect();
        Self {
            stop,
            accepted,
            senders,
        }
    }

    /// How many were answered 202 so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Lets each sender finish the event that it is at.
    pub(crate) async fn stop(self) -> Sent {
        self.stop.cancel();
        self.end().await
    }

    /// Waits until each sender has stopped by itself: its connection broke.
    pub(crate) async fn end(self) -> Sent {
        let mut sent = Sent::default();
        for one in self.senders.join_all().await {
            sent.add(one);
        }
        sent.next = sent.next.next_multiple_of(10);
        sent
    }
}

impl Sent {
    pub(crate) fn add(&mut self, other: Self) {
        self.accepted.extend(other.accepted);
        self.next = self.next.max(other.next);
        self.refused.extend(other.refused);
        self.broken.extend(other.broken);
        self.slowest = self.slowest.max(other.slowest);
    }

    /// Has every event been answered 202, and in time? What was not is noted as wrong.
    pub(crate) fn check(&self, report: &mut Report) {
        for failed in self.refused.iter().chain(&self.broken).take(5) {
            report
                .wrong
                .push(format!("an event was not taken: {failed}"));
        }
        if self.slowest > SLOWEST_ANSWER {
            report
                .wrong
                .push(format!("an answer took {:?}", self.slowest));
        }
    }
}

/// Opens many connections that say nothing yet.
pub(crate) async fn connect(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        let some = CONNECTING.min(count - streams.len());
        let connecting: JoinSet<_> = (0..some).map(|_| TcpStream::connect(address)).collect();
        streams.extend(connecting.join_all().await.into_iter().map(Result::unwrap));
    }
    streams
}

async fn send(
    address: SocketAddr,
    numbers: impl Iterator<Item = usize>,
    pause: Duration,
    stop: CancellationToken,
    accepted: Arc<AtomicUsize>,
) -> Sent {
    let mut sent = Sent::default();
    let mut client = match Client::try_connect(address).await {
        Ok(client) => client,
        Err(error) => {
            sent.broken.push(error.to_string());
            return sent;
        }
    };
    for number in numbers {
        if stop.is_cancelled() {
            break;
        }
        let started = Instant::now();
        let headers = ["Content-Type: application/json"];
        let answer = client
            .try_post("/webhook", &headers, update(number).as_bytes())
            .await;
        sent.next = number + 1;
        sent.slowest = sent.slowest.max(started.elapsed());
        match answer {
            Ok(answer) if answer.status == 202 => {
                sent.accepted.insert(number);
                accepted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => sent.refused.push(format!("event {number}: {answer:?}")),
            Err(error) => {
                sent.broken.push(format!("event {number}: {error}"));
                break;
            }
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    sent
}
