mod cases;
mod framings;
mod scripted;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::harness::{Client, LONG, TestApp, update, wait_until};
use crate::report::{Report, Scale};
use crate::stored::{Check, Stored};

use cases::Case;
use scripted::{Kind, Scripted};

/// Sidecars at work at a time, each with a QStash of its own: most of the time they wait.
const LANES: usize = 8;

/// After a wrong answer QStash is well again: how long an event may take then.
const LONGEST_RECOVERY: Duration = Duration::from_secs(10);

/// Every status, each with several bodies and hints.
pub(crate) fn statuses(scale: Scale) -> Report {
    let turns = scale.pick(1, cases::TURNS);
    let all = (200..=599).flat_map(|status| {
        // In the short form each status has one turn, and each turn its share of statuses.
        (0..turns).map(move |turn| (status, (usize::from(status) + turn) % cases::TURNS))
    });
    crate::block_on(try_all(cases::statuses(all)))
}

/// Bodies that are no answer, and answers that are no HTTP.
pub(crate) fn malformed(_: Scale) -> Report {
    crate::block_on(try_all(cases::others()))
}

/// Redirects to where the token must not go.
pub(crate) fn redirects(_: Scale) -> Report {
    crate::block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cases = cases::redirects(&listener.local_addr().unwrap().to_string());
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut report = try_all(cases).await;
        if connections.load(Ordering::Relaxed) > 0 {
            report.wrong.push("a redirect was followed".to_owned());
        }
        report
    })
}

async fn try_all(cases: Vec<Case>) -> Report {
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let share: Vec<Case> = cases.iter().skip(lane).step_by(LANES).cloned().collect();
        lanes.spawn(async move {
            let mut lane = Lane::start().await;
            for case in share {
                lane.run(&case).await;
            }
            lane.end().await
        });
    }
    let mut report = Report::default();
    for lane in lanes.join_all().await {
        report.add(lane);
    }
    report
}

/// A sidecar and its QStash, for one case after the other.
struct Lane {
    qstash: Scripted,
    app: TestApp,
    client: Client,
    accepted: BTreeSet<usize>,
    next: usize,
    report: Report,
}

impl Lane {
    async fn start() -> Self {
        let qstash = Scripted::start().await;
        let app = TestApp::builder()
            .flag("--qstash-url", &qstash.url())
            // A 404 holds the group back, by a minute otherwise.
            .hold(Duration::from_millis(100))
            .start()
            .await;
        let client = app.client().await;
        Self {
            qstash,
            app,
            client,
            accepted: BTreeSet::new(),
            next: 0,
            report: Report::default(),
        }
    }

    /// One wrong answer, and what comes of its events; then one right answer.
    async fn run(&mut self, case: &Case) {
        self.report.tries += 1;
        let (first, dead_before) = (self.next, self.dead());
        match case.kind {
            Kind::Single => {
                self.qstash.set(Arc::clone(&case.script), Kind::Single);
                self.post(1).await;
            }
            Kind::Batch => self.post_batch(case).await,
        }
        if !self.settled().await {
            let tally = self.app.sidecar.buffer().tally();
            self.note(case, &format!("events wait for ever: {tally:?}"));
        }
        if !self.qstash.take_back() {
            self.note(case, "it was not asked for");
        }
        let dead = usize::try_from(self.dead() - dead_before).unwrap();
        if dead > 0 && !case.may_bury {
            self.note(case, "an event is a dead letter");
        }
        let arrived = self.qstash.numbers();
        let of_case = self.accepted.range(first..);
        let missing = of_case.filter(|number| !arrived.contains(number)).count();
        if missing > dead {
            self.note(case, "taken for a success, and it is none");
        }
        // What is wrong with one answer is forgotten by the next event.
        let (dead_before, started) = (self.dead(), Instant::now());
        let number = self.next;
        self.post(1).await;
        let arrives = self.settled().await && self.qstash.numbers().contains(&number);
        if !arrives || self.dead() > dead_before {
            self.note(case, "the next event does not arrive");
        }
        self.report.recovered_in(started.elapsed());
    }

    /// Three events go out in one request when they come while one of their document is out.
    async fn post_batch(&mut self, case: &Case) {
        let before = self.qstash.requests();
        self.qstash.hold(true);
        self.post(1).await;
        assert!(wait_until(LONG, || self.qstash.requests() > before).await);
        self.qstash.set(Arc::clone(&case.script), Kind::Batch);
        self.post(3).await;
        self.qstash.hold(false);
    }

    /// Events of one document.
    async fn post(&mut self, count: usize) {
        for _ in 0..count {
            let answer = self.client.post("/webhook", &update(self.next)).await;
            assert_eq!(answer.status, 202, "{answer:?}");
            self.accepted.insert(self.next);
            self.next += 10;
        }
    }

    async fn settled(&self) -> bool {
        let buffer = self.app.sidecar.buffer();
        wait_until(LONGEST_RECOVERY, || buffer.tally().pending == 0).await
    }

    fn dead(&self) -> i64 {
        self.app.sidecar.buffer().tally().dead
    }

    fn note(&mut self, case: &Case, what: &str) {
        self.report.wrong.push(format!("{}: {what}", case.name));
    }

    async fn end(mut self) -> Report {
        let strange = self.qstash.strange_paths();
        if !strange.is_empty() {
            let text = format!("there were requests for {strange:?}");
            self.report.wrong.push(text);
        }
        let stored = Stored::read(self.app.dir.path(), Check::Quick);
        if stored.dead.iter().any(|(_, reason)| reason.is_empty()) {
            let text = "a dead letter has no reason";
            self.report.wrong.push(text.to_owned());
        }
        self.report
            .judge(&self.accepted, &self.qstash.numbers(), &stored);
        self.report
    }
}
