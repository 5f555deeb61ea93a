mod tls;

use std::time::{Duration, Instant};

use strapi_qstash::dev_server::{DEVELOPMENT_TOKEN, DevServer};

use crate::harness::{LONG, Process, QStash, number, wait_until};
use crate::load::{Load, Sent};
use crate::proxy::{Proxy, Way};
use crate::report::{Report, Scale};
use crate::shim::Shim;
use crate::stored::{Check, Stored};

use tls::{Impostor, Server};

/// Between the events of a connection: some hundred events a second in all.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a sidecar may take to notice that QStash is back, and to publish what waits: it
/// may be within a wait of a third of the outage, and that within a request without answer.
const LONGEST_RECOVERY: Duration = Duration::from_secs(60);

pub(crate) fn refused(scale: Scale) -> Report {
    crate::block_on(through(Way::Refused, scale.pick(3, 60)))
}

pub(crate) fn reset_in_the_request(scale: Scale) -> Report {
    crate::block_on(through(Way::CutRequest, scale.pick(3, 60)))
}

pub(crate) fn reset_in_the_answer(scale: Scale) -> Report {
    crate::block_on(through(Way::CutAnswer, scale.pick(3, 60)))
}

/// With more events, so that some meet five resets in a row.
pub(crate) fn most_requests_reset(scale: Scale) -> Report {
    let pause = Duration::from_millis(5);
    crate::block_on(through_at(pause, Way::ByChance, scale.pick(6, 120)))
}

pub(crate) fn no_answer(scale: Scale) -> Report {
    crate::block_on(through(Way::Hang, scale.pick(5, 60)))
}

/// First answers that the sidecar waits for, then some that it does not wait for at once.
pub(crate) fn late_answers(scale: Scale) -> Report {
    let seconds = scale.pick(2, 7);
    let way = Way::Late(Duration::from_secs(seconds));
    crate::block_on(through(way, scale.pick(5, 120)))
}

pub(crate) fn answers_one_byte_a_second(scale: Scale) -> Report {
    crate::block_on(through(Way::Trickle, scale.pick(5, 60)))
}

pub(crate) fn requests_sent_twice(scale: Scale) -> Report {
    crate::block_on(through(Way::Twice, scale.pick(2, 30)))
}

/// One way for so many seconds, between two times in which all is well.
async fn through(way: Way, seconds: u64) -> Report {
    through_at(PAUSE, way, seconds).await
}

async fn through_at(pause: Duration, way: Way, seconds: u64) -> Report {
    let stand = Stand::start().await;
    let load = stand.load(pause).await;
    stand.proxy.set(way).await;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    stand.proxy.set(Way::Open).await;
    stand.judge(load).await
}

/// There and away every second.
pub(crate) fn flapping(scale: Scale) -> Report {
    crate::block_on(async {
        let stand = Stand::start().await;
        // In ten minutes fewer events than the development server remembers, which is 100,000.
        let load = stand.load(scale.pick(PAUSE, 2 * PAUSE)).await;
        let mut worst = Duration::ZERO;
        for _ in 0..scale.pick(5, 300) {
            stand.proxy.set(Way::Refused).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            stand.proxy.set(Way::Open).await;
            let opened = Instant::now();
            stand.flows(Duration::from_secs(1)).await;
            worst = worst.max(opened.elapsed());
            tokio::time::sleep_until((opened + Duration::from_secs(1)).into()).await;
        }
        let mut report = stand.judge(load).await;
        report.recovered_in(worst);
        report
    })
}

/// A certificate that cannot be verified is named, and neither it nor a server without TLS
/// ever gets to see the token.
pub(crate) fn untrusted(_: Scale) -> Report {
    crate::block_on(async {
        let mut report = Report::default();
        for (impostor, word) in [
            (Impostor::with_certificate_for("localhost"), "certificate"),
            (Impostor::with_certificate_for("example.com"), "certificate"),
            (Impostor::Plain, "corrupt message"),
        ] {
            misled(&mut report, impostor, word).await;
        }
        report
    })
}

pub(crate) fn handshake_cut(_: Scale) -> Report {
    crate::block_on(async {
        let mut report = Report::default();
        misled(&mut report, Impostor::CutHandshake, "no connection").await;
        misled(&mut report, Impostor::HalfHandshake, "no connection").await;
        report
    })
}

async fn misled(report: &mut Report, impostor: Impostor, word: &str) {
    let server = Server::start(impostor).await;
    misdirected(report, &server.url(), word).await;
    let received = server.received();
    let token = DEVELOPMENT_TOKEN.as_bytes();
    if received.windows(token.len()).any(|part| part == token) {
        let text = "the token was sent to a server that is not QStash";
        report.wrong.push(text.to_owned());
    }
}

/// A name that no server knows. It is mended by a start with the right one.
pub(crate) fn unknown_name(_: Scale) -> Report {
    crate::block_on(async {
        let mut report = Report::default();
        misdirected(&mut report, "https://qstash.invalid", "no connection").await;
        report
    })
}

/// A name that does not resolve for a while.
pub(crate) fn resolver_away(scale: Scale) -> Report {
    crate::block_on(async {
        let (qstash, shim) = (QStash::start().await, Shim::new().await);
        let dir = tempfile::tempdir().unwrap();
        let url = format!("http://localhost:{}", qstash.server.addr().port());
        let mut command = Process::command_to(&dir, &url, &["--listen", "127.0.0.1:0"]);
        shim.preload(&mut command);
        shim.fail_names(true);
        let process = Process::spawn(command).await;
        let load = Load::start(process.webhook, 0, PAUSE);
        tokio::time::sleep(Duration::from_secs(scale.pick(3, 60))).await;
        let mut report = Report {
            tries: 1,
            ..Report::default()
        };
        if qstash.server.counts().accepted > 0
            || !process.log().contains("failed to lookup address")
        {
            let text = format!("the name did resolve: {}", process.log());
            report.wrong.push(text);
        }
        shim.fail_names(false);
        let back = Instant::now();
        let flows = |server: &DevServer| server.counts().accepted > 0;
        qstash.server.wait_until(LONGEST_RECOVERY, flows).await;
        report.recovered_in(back.elapsed());
        let sent = load.stop().await;
        sent.check(&mut report);
        qstash.wait_for(sent.accepted.len(), LONG).await;
        judge(&mut report, &qstash, &dir, &sent);
        report
    })
}

/// The sidecar is told a URL where QStash is not, says so with this word, and takes events
/// all the same. Started again with the right URL, it publishes them.
async fn misdirected(report: &mut Report, url: &str, word: &str) {
    report.tries += 1;
    let qstash = QStash::start().await;
    let dir = tempfile::tempdir().unwrap();
    let listen = ["--listen", "127.0.0.1:0"];
    let mut process = Process::spawn(Process::command_to(&dir, url, &listen)).await;
    let load = Load::start(process.webhook, 0, PAUSE);
    let told = wait_until(LONG, || {
        let log = process.log();
        let told = log
            .lines()
            .find(|line| line.contains("QStash is unreachable"));
        load.accepted() >= 100 && told.is_some_and(|line| line.contains(word))
    });
    if !told.await {
        report
            .wrong
            .push(format!("{url}: no word of {word:?} in\n{}", process.log()));
    }
    let sent = load.stop().await;
    sent.check(report);
    process.signal("TERM");
    assert_eq!(process.exit_code().await, Some(0));
    let pending = Stored::read(dir.path(), Check::Quick).pending;
    if pending != sent.accepted {
        report
            .wrong
            .push(format!("{url}: an event left the buffer"));
    }

    let started = Instant::now();
    let _process = Process::start(&dir, &qstash, None, &[]).await;
    let flows = |server: &DevServer| server.counts().accepted > 0;
    qstash.server.wait_until(LONG, flows).await;
    report.recovered_in(started.elapsed());
    qstash.wait_for(sent.accepted.len(), LONG).await;
    judge(report, &qstash, &dir, &sent);
}

/// A sidecar whose way to QStash leads through a proxy.
struct Stand {
    qstash: QStash,
    proxy: Proxy,
    dir: tempfile::TempDir,
    process: Process,
}

impl Stand {
    async fn start() -> Self {
        let qstash = QStash::start().await;
        let proxy = Proxy::start(qstash.server.addr()).await;
        let dir = tempfile::tempdir().unwrap();
        let command = Process::command_to(&dir, &proxy.url(), &["--listen", "127.0.0.1:0"]);
        let process = Process::spawn(command).await;
        Self {
            qstash,
            proxy,
            dir,
            process,
        }
    }

    /// Events come, and the first ones go out.
    async fn load(&self, pause: Duration) -> Load {
        let load = Load::start(self.process.webhook, 0, pause);
        self.qstash.wait_for(50, LONG).await;
        load
    }

    /// The fault is over: all that was answered 202 has to arrive, once and in order.
    async fn judge(self, load: Load) -> Report {
        let mut report = Report {
            tries: 1,
            ..Report::default()
        };
        let back = Instant::now();
        let flows = self.flows(LONGEST_RECOVERY).await;
        report.recovered_in(back.elapsed());
        let sent = load.stop().await;
        sent.check(&mut report);
        let count = sent.accepted.len() as u64;
        let all = |server: &DevServer| server.counts().accepted >= count;
        let all = self.qstash.server.wait_until(LONGEST_RECOVERY, all).await;
        if !(flows && all) {
            report
                .wrong
                .push("not everything arrived after the fault".to_owned());
        }
        judge(&mut report, &self.qstash, &self.dir, &sent);
        report.notes.push(format!(
            "slowest answer to Strapi {} ms, QStash dropped {} repeats",
            sent.slowest.as_millis(),
            self.qstash.server.counts().deduplicated
        ));
        report
    }

    /// Waits until one more event has arrived.
    async fn flows(&self, timeout: Duration) -> bool {
        let before = self.qstash.server.counts().accepted;
        let flows = |server: &DevServer| server.counts().accepted > before;
        self.qstash.server.wait_until(timeout, flows).await
    }
}

fn judge(report: &mut Report, qstash: &QStash, dir: &tempfile::TempDir, sent: &Sent) {
    let messages = qstash.accepted();
    let arrived: Vec<usize> = messages
        .iter()
        .map(|message| number(&message.body))
        .collect();
    let stored = Stored::read(dir.path(), Check::Quick);
    report.judge(&sent.accepted, &arrived, &stored);
    report.no_dead_letters(&stored);
}
