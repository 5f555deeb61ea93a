use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hyper::{HeaderMap, StatusCode};
use strapi_qstash::clock;
use strapi_qstash::dev_server::Fault;
use tokio::task::JoinSet;

use crate::harness::{LONG, Process, QStash, number};
use crate::load::{Load, Sent};
use crate::report::{Report, Scale};
use crate::shim::Shim;
use crate::stored::{Check, Stored};

const HOUR: i64 = 3600;
const YEAR: i64 = 365 * 24 * HOUR;

/// Between the events of a connection, where it is not the backlog that matters.
const PAUSE: Duration = Duration::from_millis(20);

/// How long all events may take once nothing but the clock is wrong. Waits of seconds are in
/// it, those of a minute are not.
const LONGEST_RECOVERY: Duration = Duration::from_secs(15);

/// A jump of the clock while events wait.
#[derive(Clone)]
struct Scene {
    name: &'static str,
    /// How far the clock is from the right time, before and after the jump, in seconds.
    clock: (i64, i64),
    /// Why they wait.
    fault: Fault,
    /// How many of them wait before the jump.
    backlog: usize,
    /// Between the events of a connection.
    pause: Duration,
    /// Whether the sidecar is killed and started anew after the jump.
    restart: bool,
    flags: &'static [&'static str],
}

/// The clock jumps by hours and by years, back and forward.
pub(crate) fn clock_jumps(_: Scale) -> Report {
    let failing = || Fault::status(StatusCode::INTERNAL_SERVER_ERROR, "internal error");
    let scene = Scene {
        name: "hours back",
        clock: (0, -6 * HOUR),
        fault: failing(),
        backlog: 100,
        pause: PAUSE,
        restart: false,
        flags: &[],
    };
    let with = |name, clock| Scene {
        name,
        clock,
        ..scene.clone()
    };
    let keeping = &["--keep-delivered", "1h"];
    let aging = &["--max-age", "1h"];
    play(vec![
        scene.clone(),
        with("hours forward", (0, 6 * HOUR)),
        Scene {
            restart: true,
            ..with("hours back, then a restart", (0, -6 * HOUR))
        },
        Scene {
            restart: true,
            flags: keeping,
            ..with("hours forward, then a restart", (0, 6 * HOUR))
        },
        Scene {
            // More than the sidecar has in memory.
            backlog: 3_000,
            pause: Duration::from_millis(1),
            fault: Fault::Refuse,
            ..with("hours back with a backlog", (0, -6 * HOUR))
        },
        Scene {
            fault: Fault::AcceptThenReset,
            ..with("hours back while answers are lost", (0, -6 * HOUR))
        },
        Scene {
            fault: Fault::AcceptThenReset,
            restart: true,
            ..with(
                "hours forward while answers are lost, then a restart",
                (0, 6 * HOUR),
            )
        },
        Scene {
            flags: aging,
            ..with("hours back with --max-age", (0, -6 * HOUR))
        },
        Scene {
            flags: aging,
            ..with("hours forward with --max-age", (0, 6 * HOUR))
        },
        with("from 1970 to now", (-56 * YEAR, 0)),
        Scene {
            restart: true,
            ..with("from now to 1970, then a restart", (0, -56 * YEAR))
        },
        with("to the end of the century", (0, 74 * YEAR)),
    ])
}

/// Limits that end at an instant, told to a sidecar whose clock is wrong.
pub(crate) fn wrong_clock_and_limits(_: Scale) -> Report {
    crate::block_on(async {
        let mut scenes = JoinSet::new();
        for clock in [-6 * HOUR, 6 * HOUR] {
            for limit in [Limit::Daily, Limit::Burst, Limit::RetryAfter] {
                scenes.spawn(limited(clock, limit));
            }
        }
        sum(scenes).await
    })
}

/// A group that does not exist is tried once a minute, whatever the clock does.
pub(crate) fn held_destination(scale: Scale) -> Report {
    crate::block_on(async {
        let mut scenes = JoinSet::new();
        for clock in [-6 * HOUR, 6 * HOUR] {
            // A restart tries at once, and spares a minute.
            scenes.spawn(held(clock, true));
            if scale == Scale::Long {
                scenes.spawn(held(clock, false));
            }
        }
        sum(scenes).await
    })
}

fn play(scenes: Vec<Scene>) -> Report {
    crate::block_on(async { sum(scenes.into_iter().map(jump).collect()).await })
}

async fn sum(scenes: JoinSet<Report>) -> Report {
    let mut report = Report::default();
    for scene in scenes.join_all().await {
        report.add(scene);
    }
    report
}

async fn jump(scene: Scene) -> Report {
    let mut stage = Stage::start(scene.clock.0, scene.flags).await;
    let load = stage.load(scene.pause).await;
    stage.qstash.server.faults().set(scene.fault).await;
    stage.wait_for(&load, scene.backlog).await;
    stage.shim.set_clock(scene.clock.1);
    stage.wait_for(&load, 50).await;
    let mut sent = load.stop().await;
    if scene.restart {
        stage.restart().await;
        let load = Load::start(stage.address, sent.next, PAUSE);
        stage.wait_for(&load, 50).await;
        sent.add(load.stop().await);
    }
    stage.qstash.server.faults().set(Fault::None).await;
    stage.judge(scene.name, sent, LONGEST_RECOVERY).await
}

#[derive(Debug, Clone, Copy)]
enum Limit {
    Daily,
    Burst,
    RetryAfter,
}

impl Limit {
    fn until(self, reset: clock::Timestamp) -> Fault {
        match self {
            Self::Daily => Fault::DailyQuota { reset },
            Self::Burst => Fault::BurstLimit { reset },
            Self::RetryAfter => {
                let at =
                    std::time::UNIX_EPOCH + Duration::from_secs(reset.as_secs().unsigned_abs());
                let date = httpdate::fmt_http_date(at);
                let mut headers = HeaderMap::new();
                headers.insert("retry-after", date.parse().unwrap());
                Fault::Status {
                    code: StatusCode::SERVICE_UNAVAILABLE,
                    body: bytes::Bytes::new(),
                    content_type: "text/plain".to_owned(),
                    headers,
                }
            }
        }
    }
}

async fn limited(clock: i64, limit: Limit) -> Report {
    let stage = Stage::start(clock, &[]).await;
    let load = stage.load(PAUSE).await;
    let reset = clock::Timestamp::from_millis((clock::now().as_secs() + 4) * 1000);
    let faults = stage.qstash.server.faults();
    faults.set(limit.until(reset)).await;
    let is_told = |server: &strapi_qstash::dev_server::DevServer| {
        server.seen().iter().any(|seen| seen.faulted)
    };
    assert!(stage.qstash.server.wait_until(LONG, is_told).await);
    stage.wait_for(&load, 50).await;
    faults.set(Fault::None).await;
    let before = stage.qstash.server.counts().accepted;
    let mut early = false;
    while clock::now() < reset {
        early |= stage.qstash.server.counts().accepted > before;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let sent = load.stop().await;
    let name = format!(
        "{limit:?} with a clock {} h from the right one",
        clock / HOUR
    );
    let mut report = stage.judge(&name, sent, LONGEST_RECOVERY).await;
    if early {
        report
            .wrong
            .push(format!("{name}: a request before the reset"));
    }
    report
}

async fn held(clock: i64, restart: bool) -> Report {
    let mut stage = Stage::start(0, &[]).await;
    let load = stage.load(PAUSE).await;
    stage.qstash.server.remove_group("news");
    stage.wait_for(&load, 100).await;
    let log = "Destination does not exist";
    assert!(crate::harness::wait_until(LONG, || stage.process.log().contains(log)).await);
    stage.shim.set_clock(clock);
    stage.wait_for(&load, 50).await;
    let sent = load.stop().await;
    stage.qstash.add_group("news");
    if restart {
        stage.restart().await;
    }
    let name = format!("held, and {} h", clock / HOUR);
    let longest = match restart {
        true => LONGEST_RECOVERY,
        false => Duration::from_secs(60) + LONGEST_RECOVERY,
    };
    stage.judge(&name, sent, longest).await
}

/// A sidecar whose clock can be moved, and its QStash, whose clock is right.
struct Stage {
    qstash: QStash,
    shim: Shim,
    dir: tempfile::TempDir,
    process: Process,
    address: SocketAddr,
    flags: &'static [&'static str],
}

impl Stage {
    async fn start(clock: i64, flags: &'static [&'static str]) -> Self {
        let (qstash, shim) = (QStash::start().await, Shim::new().await);
        let dir = tempfile::tempdir().unwrap();
        shim.set_clock(clock);
        let process = spawn(&dir, &qstash, &shim, "127.0.0.1:0", flags).await;
        Self {
            qstash,
            shim,
            dir,
            address: process.webhook,
            process,
            flags,
        }
    }

    /// Events come, and the first ones go out.
    async fn load(&self, pause: Duration) -> Load {
        let load = Load::start(self.address, 0, pause);
        self.qstash.wait_for(20, LONG).await;
        load
    }

    /// So many more events are taken.
    async fn wait_for(&self, load: &Load, count: usize) {
        let wanted = load.accepted() + count;
        assert!(crate::harness::wait_until(LONG, || load.accepted() >= wanted).await);
    }

    /// `kill -9`, and a start.
    async fn restart(&mut self) {
        let listen = self.address.to_string();
        self.process.signal("KILL");
        assert_eq!(self.process.exit_code().await, None);
        self.process = spawn(&self.dir, &self.qstash, &self.shim, &listen, self.flags).await;
    }

    /// Nothing but the clock is wrong now: everything has to arrive.
    async fn judge(mut self, name: &str, sent: Sent, longest: Duration) -> Report {
        let mut report = Report {
            tries: 1,
            ..Report::default()
        };
        let started = Instant::now();
        let accepted = sent.accepted.len() as u64;
        let tally = || Stored::read(self.dir.path(), Check::Quick);
        while self.qstash.server.counts().accepted + (tally().dead.len() as u64) < accepted {
            if started.elapsed() > longest {
                let waiting = tally().pending.len();
                let text = format!("{name}: {waiting} events wait after {longest:?}");
                report.wrong.push(text);
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        report.recovered_in(started.elapsed());
        sent.check(&mut report);
        self.process.signal("TERM");
        assert_eq!(self.process.exit_code().await, Some(0));
        let stored = tally();
        let messages = self.qstash.accepted();
        let arrived: Vec<usize> = messages
            .iter()
            .map(|message| number(&message.body))
            .collect();
        report.judge(&sent.accepted, &arrived, &stored);
        let is_expired = |(_, reason): &&(_, String)| reason.contains("--max-age");
        let expired = stored.dead.iter().filter(is_expired).count();
        if expired < stored.dead.len() {
            report.no_dead_letters(&stored);
        }
        if expired > 0 {
            report
                .notes
                .push(format!("{name}: {expired} events were given up"));
        }
        report
    }
}

async fn spawn(
    dir: &tempfile::TempDir,
    qstash: &QStash,
    shim: &Shim,
    listen: &str,
    flags: &[&str],
) -> Process {
    let mut command = Process::command(dir, qstash, &["--listen", listen]);
    shim.preload(&mut command);
    command.args(flags);
    Process::spawn(command).await
}
