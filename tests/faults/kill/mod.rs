mod operator;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use strapi_qstash::clock;
use strapi_qstash::dev_server::{Fault, Faults, Message};
use tokio_util::sync::CancellationToken;

use crate::harness::{Client, LONG, Process, QStash, number, update, wait_until};
use crate::load::Load;
use crate::report::{Report, Scale};
use crate::stored::{Check, Stored};

use operator::Done;

/// From the start of the process until a request is answered: what the sidecar is to keep to.
const START: Duration = Duration::from_millis(200);

/// What no start may take, on the busiest machine.
const LONGEST_START: Duration = Duration::from_secs(2);

/// New events while a backlog drains, history is purged, someone replays and discards, and
/// QStash fails in every way, killed at random moments.
pub(crate) fn under_mixed_load(scale: Scale) -> Report {
    crate::block_on(run(scale.pick(15, 300)))
}

async fn run(rounds: usize) -> Report {
    let qstash = QStash::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(20);
    let (mut report, mut account) = (Report::default(), Account::default());
    let mut starts = Vec::new();
    let (mut address, mut next) = (None, 0);
    for round in 0..rounds {
        report.tries += 1;
        // Now and then all is refused for the whole round, so that there is a backlog to begin
        // with, or nothing is, so that there is something to replay.
        let (faults, is_calm) = (qstash.server.faults(), round % 4 == 3);
        faults
            .set(if is_calm { Fault::None } else { Fault::Refuse })
            .await;
        let started = Instant::now();
        // What some rounds leave is replayed in the next ones, and then purged.
        let keep = if round % 5 == 4 { "1s" } else { "1h" };
        let process = Process::start(&dir, &qstash, address, &["--keep-delivered", keep]).await;
        let mut client = Client::connect(process.webhook).await;
        // One that does not wait for the disk, which is everyone's on this machine.
        let answer = client
            .send(b"GET /webhook HTTP/1.1\r\nhost: x\r\n\r\n")
            .await;
        starts.push(started.elapsed());
        assert_eq!(answer.status, 405);
        assert_eq!(client.post("/webhook", &update(next)).await.status, 202);
        account.accepted.insert(next);
        address = Some(process.webhook);

        let stop = CancellationToken::new();
        let switching = matches!(round % 4, 1 | 2).then(|| {
            let random = fastrand::Rng::with_seed(round as u64);
            tokio::spawn(switch(faults, random, stop.clone()))
        });
        let has_replayed = Arc::new(AtomicBool::new(false));
        let operating = tokio::spawn(operator::operate(
            process.admin_address().await,
            dir.path().join("strapi-qstash.db"),
            fastrand::Rng::with_seed(round as u64),
            Arc::clone(&has_replayed),
            stop.clone(),
        ));
        let load = Load::start(process.webhook, next + 10, Duration::from_millis(1));
        if is_calm && !wait_until(LONG, || has_replayed.load(Ordering::Relaxed)).await {
            report.wrong.push("no event can be replayed".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(random.u64(20..200))).await;
        process.kill().await;
        let sent = load.end().await;
        stop.cancel();
        if let Some(switching) = switching {
            switching.await.unwrap();
        }
        account.done.add(operating.await.unwrap());
        next = sent.next.max(next + 10);
        account.accepted.extend(sent.accepted);
        report.wrong.extend(sent.refused);

        account.arrived.update(&qstash);
        let stored = Stored::read(dir.path(), Check::Quick);
        let mut so_far = Report {
            tries: 1,
            ..Report::default()
        };
        account.judge(&mut so_far, &stored);
        if let Err(wrong) = so_far.verdict() {
            report.wrong.push(format!("after round {round}: {wrong}"));
        }
    }
    finish(&mut report, &qstash, &dir, address, &mut account).await;
    judge_starts(&mut report, starts);
    report
}

/// QStash works again, and everything goes out.
async fn finish(
    report: &mut Report,
    qstash: &QStash,
    dir: &tempfile::TempDir,
    address: Option<SocketAddr>,
    account: &mut Account,
) {
    qstash.server.faults().set(Fault::None).await;
    let started = Instant::now();
    let mut last = Process::start(dir, qstash, address, &[]).await;
    let deadline = started + LONG;
    while account.missing() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
        account.arrived.update(qstash);
    }
    report.recovered_in(started.elapsed());
    last.signal("TERM");
    assert_eq!(last.exit_code().await, Some(0));
    account.arrived.update(qstash);
    let stored = Stored::read(dir.path(), Check::Full);
    account.judge(report, &stored);
    report.no_dead_letters(&stored);
    let waiting = stored.pending.len();
    if waiting > 0 {
        report.wrong.push(format!("{waiting} events still wait"));
    }
    if account.missing() > 0 {
        let text = format!("{} events or replays do not arrive", account.missing());
        report.wrong.push(text);
    }
    if account.done.replayed.is_empty() || account.done.discarded.is_empty() {
        report
            .wrong
            .push("nothing was replayed or discarded".to_owned());
    }
    report.notes.push(format!(
        "QStash dropped {} repeats, {} events were replayed and {} discarded",
        qstash.server.counts().deduplicated,
        account.done.replayed.len(),
        account.done.discarded.len(),
    ));
}

/// What was promised of events, and what became of them.
#[derive(Default)]
struct Account {
    /// Answered 202.
    accepted: BTreeSet<usize>,
    done: Done,
    arrived: Arrived,
}

impl Account {
    /// Those that have to be at QStash, or still here.
    fn promised(&self) -> BTreeSet<usize> {
        let promised = |number: &&usize| !self.done.is_released(**number);
        self.accepted.iter().filter(promised).copied().collect()
    }

    fn judge(&self, report: &mut Report, stored: &Stored) {
        // A replay comes once more, and out of order: the first of each is what is judged.
        let mut times: BTreeMap<usize, usize> = BTreeMap::new();
        let mut first = Vec::new();
        for number in &self.arrived.numbers {
            let times = times.entry(*number).or_default();
            *times += 1;
            if *times == 1 {
                first.push(*number);
            }
        }
        let promised = self.promised();
        report.judge(&promised, &first, stored);
        report.accepted += self.accepted.len() - promised.len();
        let too_often =
            |(number, times): (usize, usize)| (times - 1).saturating_sub(self.done.replays(number));
        report.duplicated += times.into_iter().map(too_often).sum::<usize>();
        let back: Vec<_> = stored.pending.intersection(&self.done.discarded).collect();
        if !back.is_empty() {
            let text = format!("discarded events are back: {back:?}");
            report.wrong.push(text);
        }
    }

    /// How many events and replays have to arrive yet.
    fn missing(&self) -> usize {
        let mut times: BTreeMap<usize, usize> = BTreeMap::new();
        for number in &self.arrived.numbers {
            *times.entry(*number).or_default() += 1;
        }
        let times = |number: &usize| times.get(number).copied().unwrap_or(0);
        let promised = self.promised();
        let events = promised.iter().filter(|number| times(number) == 0).count();
        let replayed = self.done.replayed.iter();
        let replays = replayed.filter(|(number, replays)| {
            !self.done.is_released(**number) && times(number) < *replays + 1
        });
        events + replays.count()
    }
}

fn judge_starts(report: &mut Report, mut starts: Vec<Duration>) {
    starts.sort();
    let worst = starts.last().copied().unwrap_or_default();
    report.notes.push(format!(
        "from start to an answer: median {} ms, worst {} ms, {} of {} above {} ms",
        starts[starts.len() / 2].as_millis(),
        worst.as_millis(),
        starts.iter().filter(|took| **took > START).count(),
        starts.len(),
        START.as_millis(),
    ));
    if worst > LONGEST_START {
        report.wrong.push(format!("a start took {worst:?}"));
    }
}

/// Every way in which QStash can fail that is not about one message, at random moments.
async fn switch(faults: Faults, mut random: fastrand::Rng, stop: CancellationToken) {
    loop {
        let soon = clock::now().plus(Duration::from_millis(300));
        let fault = match random.u8(0..16) {
            0 => Fault::Refuse,
            1 => Fault::Hang,
            2 => Fault::Reset,
            3 | 4 => Fault::AcceptThenReset,
            5 => Fault::Garbled,
            6 => Fault::GarbledAccepted,
            7 => Fault::status(StatusCode::INTERNAL_SERVER_ERROR, "internal error"),
            8 => Fault::html(StatusCode::BAD_GATEWAY),
            9 => Fault::Unauthorized,
            10 => Fault::DailyQuota { reset: soon },
            11 => Fault::BurstLimit { reset: soon },
            _ => Fault::None,
        };
        faults.set(fault).await;
        let pause = Duration::from_millis(random.u64(1..60));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What the development server has, read bit by bit: it forgets its oldest messages.
#[derive(Default)]
struct Arrived {
    /// Without repeats.
    numbers: Vec<usize>,
    last: Option<Arc<Message>>,
}

impl Arrived {
    fn update(&mut self, qstash: &QStash) {
        let messages = qstash.server.messages();
        let is_last = |message: &Arc<Message>| {
            let last = self.last.as_ref();
            last.is_some_and(|last| Arc::ptr_eq(last, message))
        };
        let known = messages.iter().rposition(is_last).map_or(0, |at| at + 1);
        let new = messages.iter().skip(known);
        let new = new.filter(|message| !message.deduplicated);
        self.numbers
            .extend(new.map(|message| number(&message.body)));
        self.last = messages.last().cloned();
    }
}
