//! Webhooks from several connections, as long as a fault lasts, and the account at its end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::harness::{Client, LONG, QStash, number, update, wait_until};
use crate::report::Report;

/// As many as Strapi has in flight.
const SENDERS: usize = 5;

/// One event in so many is large.
const LARGE_EVERY: usize = 100;

/// Bytes of a large one.
const LARGE: usize = 300_000;

/// An event that was answered.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    pub(crate) n: usize,
    pub(crate) status: u16,
    /// The sidecar's name for it.
    pub(crate) id: String,
    pub(crate) at: Instant,
    /// What the clock said that the load was given, once the answer was there.
    pub(crate) position: usize,
}

impl Answered {
    pub(crate) fn is_durable(&self) -> bool {
        self.status == 202
    }

    pub(crate) fn is_success(&self) -> bool {
        matches!(self.status, 200 | 202)
    }
}

/// Senders at work.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Answered>>>,
    senders: Vec<JoinHandle<()>>,
}

/// How the load is made.
pub(crate) struct Shape {
    /// The number of the first event.
    pub(crate) first: usize,
    /// Between two events of one connection.
    pub(crate) pause: Duration,
    /// What is noted with each answer.
    pub(crate) clock: Arc<dyn Fn() -> usize + Send + Sync>,
}

impl Shape {
    /// Some hundred events a second, from this number on.
    pub(crate) fn steady(first: usize) -> Self {
        Self {
            first,
            pause: Duration::from_millis(10),
            clock: Arc::new(|| 0),
        }
    }
}

impl Load {
    /// Sends until it is stopped or the connections break.
    pub(crate) fn start(address: SocketAddr, shape: Shape) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(Mutex::new(Vec::new()));
        let senders = (0..SENDERS)
            .map(|sender| {
                let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
                let (clock, first, pause) = (Arc::clone(&shape.clock), shape.first, shape.pause);
                tokio::spawn(async move {
                    let mut client = Client::connect(address).await;
                    for n in (first + sender..).step_by(SENDERS) {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let Some(answer) = post(&mut client, n).await else {
                            return; // it was killed
                        };
                        let position = clock();
                        answers
                            .lock()
                            .unwrap()
                            .push(Answered { position, ..answer });
                        tokio::time::sleep(pause).await;
                    }
                })
            })
            .collect();
        Self {
            stop,
            answers,
            senders,
        }
    }

    /// Waits for an answer that came after `since` and is like this.
    pub(crate) async fn answer_after(
        &self,
        since: Instant,
        is_meant: impl Fn(&Answered) -> bool,
    ) -> Option<Answered> {
        let find = || {
            let answers = self.answers.lock().unwrap();
            let mut found = answers.iter().filter(|answer| answer.at > since);
            found.find(|answer| is_meant(answer)).cloned()
        };
        wait_until(LONG, || find().is_some()).await;
        find()
    }

    /// Whether there was an answer like this.
    pub(crate) fn any(&self, is_meant: impl Fn(&Answered) -> bool) -> bool {
        self.answers.lock().unwrap().iter().any(is_meant)
    }

    /// Ends it; all that was answered.
    pub(crate) async fn stop(self) -> Vec<Answered> {
        self.stop.store(true, Ordering::Relaxed);
        for sender in self.senders {
            sender.await.unwrap();
        }
        std::mem::take(&mut self.answers.lock().unwrap())
    }
}

/// Posts one event; `None` when the connection broke.
pub(crate) async fn post(client: &mut Client, n: usize) -> Option<Answered> {
    let headers = ["Content-Type: application/json"];
    let body = event(n);
    let answer = client.try_post("/webhook", &headers, body.as_bytes()).await;
    answer.ok().map(|answer| Answered {
        n,
        status: answer.status,
        id: answer.header("x-event-id").unwrap_or_default().to_owned(),
        at: Instant::now(),
        position: 0,
    })
}

/// Event number `n`: an [`update`], large now and then.
pub(crate) fn event(n: usize) -> String {
    let mut text = update(n);
    if n % LARGE_EVERY == LARGE_EVERY - 1 {
        text.pop();
        text.push_str(&format!(r#","text":"{}"}}"#, "x".repeat(LARGE)));
    }
    text
}

/// The numbers of what QStash has, in the order in which it came.
pub(crate) fn arrived(qstash: &QStash) -> Vec<usize> {
    let accepted = qstash.accepted();
    accepted
        .iter()
        .map(|message| number(&message.body))
        .collect()
}

/// Waits until all that was answered with success is at QStash, and counts what is not.
pub(crate) async fn settle(report: &mut Report, qstash: &QStash, answers: &[Answered]) {
    let promised: BTreeSet<usize> = answers
        .iter()
        .filter(|answer| answer.is_success())
        .map(|answer| answer.n)
        .collect();
    settle_with(report, qstash, &promised, LONG).await;
}

/// The same for these events, with patience.
pub(crate) async fn settle_with(
    report: &mut Report,
    qstash: &QStash,
    promised: &BTreeSet<usize>,
    patience: Duration,
) {
    let missing = || {
        let arrived: BTreeSet<usize> = arrived(qstash).into_iter().collect();
        promised.difference(&arrived).copied().collect::<Vec<_>>()
    };
    // Counted first, since looking at each body takes its time.
    let enough = |server: &strapi_qstash::dev_server::DevServer| {
        server.counts().accepted >= promised.len() as u64 && missing().is_empty()
    };
    qstash.server.wait_until(patience, enough).await;
    let missing = missing();
    report.accepted += promised.len();
    report.lost += missing.len();
    if !missing.is_empty() {
        report.wrong.push(format!("missing: {}", ranges(&missing)));
    }
    let arrived = arrived(qstash);
    report.duplicated += arrived.len() - arrived.iter().collect::<BTreeSet<_>>().len();
}

/// Numbers in order, as `1-3 7`.
pub(crate) fn ranges(numbers: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for n in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *n => *last = *n,
            _ => parts.push((*n, *n)),
        }
    }
    let shown = parts
        .iter()
        .take(10)
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
    let mut text = shown.collect::<Vec<_>>().join(" ");
    if parts.len() > 10 {
        text.push_str(" …");
    }
    text
}
