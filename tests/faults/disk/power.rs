//! Power loss: the sidecar runs on a disk that forgets, under load, and each moment of that
//! run is then looked at as the last one.
//!
//! At a crash point every event whose 202 was there before must be in the buffer, in whatever
//! state, or have reached QStash. The buffer that the crash leaves is opened as the sidecar
//! does, some by the whole binary; SQLite must find it whole, and nothing may be set aside as
//! damaged. The control shows that this can fail: the same run on a disk that answers fsync and
//! does nothing, which is what `synchronous=OFF` asks for, and without the fsync of each commit,
//! as with `synchronous=NORMAL`, loses events.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rusqlite::Connection;
use strapi_qstash::buffer::{Buffer, Health};
use strapi_qstash::config::Config;
use strapi_qstash::dev_server::{DEVELOPMENT_TOKEN, Fault};

use super::errors::{becomes, drains};
use super::forgetful::{
    Contents, Faults, Forgetful, Luck, Op, Record, Replay, without_commit_syncs, without_syncs,
    write_out,
};
use super::load::{Answered, Load, Shape, ranges};
use crate::harness::{LONG, Process, QStash, parse};
use crate::report::{Report, Scale};

pub(crate) const BUFFER: &str = "strapi-qstash.db";

/// Power losses before an fsync of a sidecar that goes on after one that was killed.
const AFTER_KILL: usize = 10;

/// At any moment of a run with kills, restarts, a backlog that drains and history that goes.
pub(crate) async fn loss(scale: Scale) -> Report {
    let mut report = Report::default();
    let Some(disk) = Forgetful::mount(&mut report) else {
        return report;
    };
    let (run, mut random) = (record(disk, scale.pick(1, 4)).await, Rng::with_seed(7));
    let points = run.points(scale.pick(50, 1000), &mut random);
    let binaries = scale.pick(5, 50);
    run.check_all(&mut report, &points, binaries, &mut random)
        .await;
    let (run_killed, points) = run.killed_before_syncs();
    let mut killed = Report::default();
    run_killed
        .check_all(&mut killed, &points, 0, &mut random)
        .await;
    report.tries += killed.tries;
    report.lost += killed.lost;
    report.wrong.extend(killed.wrong);
    // The control: what must be found is.
    let points = run.points(scale.pick(10, 100), &mut random);
    for (name, log) in [
        ("synchronous=OFF", without_syncs(&run.log)),
        ("synchronous=NORMAL", without_commit_syncs(&run.log)),
    ] {
        let mut control = Report::default();
        let broken = Run { log, ..run.clone() };
        broken
            .check_all(&mut control, &points, 0, &mut random)
            .await;
        println!(
            "control, {name}: {} of {} events lost at {} crash points, {} of them unsound",
            control.lost,
            control.accepted,
            points.len(),
            control.wrong.len()
        );
        if control.lost == 0 {
            report
                .wrong
                .push(format!("{name} loses nothing, so the model finds nothing"));
        }
    }
    report
}

/// Fsync fails now and then, then never again; what was answered after it must be there.
pub(crate) async fn after_failed_syncs(scale: Scale) -> Report {
    let mut report = Report::default();
    let Some(disk) = Forgetful::mount(&mut report) else {
        return report;
    };
    let qstash = QStash::start().await;
    // Nothing leaves: each event that was promised must be in the buffer.
    qstash.server.faults().set(Fault::Refuse).await;
    let process = Process::start(disk.path(), &qstash, None, &[]).await;
    let load = Load::start(process.webhook, shape(&disk, 0));
    let rounds = scale.pick(3, 20);
    for _ in 0..rounds {
        let (before, since) = (disk.failures(), Instant::now());
        disk.set(Faults {
            sync_percent: 30,
            ..Faults::default()
        });
        let some = || disk.failures() >= before + 3;
        if !crate::harness::wait_until(Duration::from_secs(5), some).await {
            report.wrong.push("too few fsyncs to fail".to_owned());
        }
        disk.set(Faults::default());
        let healed = Instant::now();
        match load.answer_after(healed, Answered::is_durable).await {
            Some(answer) => report.recovered_in(answer.at - healed),
            None => {
                let log = process.log();
                report
                    .wrong
                    .push(format!("no 202 after fsync works again\n{log}"));
                break;
            }
        }
        // Some more, so that crash points lie after it.
        load.answer_after(since + Duration::from_millis(700), Answered::is_durable)
            .await;
    }
    let answers = load.stop().await;
    process.kill().await;
    let (run, mut random) = (
        Run::new(disk.into_log(), answers, &qstash),
        Rng::with_seed(9),
    );
    let points = run.points(scale.pick(30, 300), &mut random);
    run.check_all(&mut report, &points, scale.pick(2, 20), &mut random)
        .await;
    report
}

/// The disk becomes full, the backlog drains on it, and there is room again.
pub(crate) async fn on_full_disk(scale: Scale) -> Report {
    let mut report = Report::default();
    let Some(disk) = Forgetful::mount(&mut report) else {
        return report;
    };
    let qstash = QStash::start().await;
    let process = Process::start(disk.path(), &qstash, None, &[]).await;
    let load = Load::start(process.webhook, shape(&disk, 0));
    for _ in 0..scale.pick(1, 6) {
        qstash.server.faults().set(Fault::Refuse).await;
        let some = Instant::now() + Duration::from_millis(300);
        load.answer_after(some, Answered::is_durable).await;
        disk.set(Faults {
            limit: Some(disk.used() + (1 << 20)),
            ..Faults::default()
        });
        let limited = Instant::now();
        let refused = load.answer_after(limited, |answer| answer.status == 503);
        if refused.await.is_none() {
            report.wrong.push("the disk does not fill".to_owned());
        }
        qstash.server.faults().set(Fault::None).await;
        if !drains(&process).await {
            report
                .wrong
                .push("the backlog stays on a full disk".to_owned());
        }
        disk.set(Faults::default());
        let healed = Instant::now();
        match load.answer_after(healed, Answered::is_durable).await {
            Some(answer) => report.recovered_in(answer.at - healed),
            None => report.wrong.push("no 202 with room again".to_owned()),
        }
    }
    let answers = load.stop().await;
    process.kill().await;
    let (run, mut random) = (
        Run::new(disk.into_log(), answers, &qstash),
        Rng::with_seed(13),
    );
    let points = run.points(scale.pick(20, 300), &mut random);
    run.check_all(&mut report, &points, scale.pick(2, 20), &mut random)
        .await;
    report
}

fn shape(disk: &Forgetful, first: usize) -> Shape {
    Shape {
        first,
        pause: Duration::from_millis(1),
        clock: Arc::new(disk.clock()),
    }
}

/// What happened in a run, and what was promised in it.
#[derive(Clone)]
struct Run {
    log: Vec<Record>,
    /// The number of each event and the position in the log at which its 202 was there, by id.
    promised: BTreeMap<String, (usize, usize)>,
    /// When QStash accepted it, by id.
    delivered: BTreeMap<String, i64>,
    /// The positions at which the sidecar was killed: the next one finds a log that may not be
    /// synced.
    kills: Vec<usize>,
}

/// Each round: new events while QStash is away, then while the backlog drains; a kill, then the
/// same again with the history of before to purge, and a stop.
async fn record(disk: Forgetful, rounds: usize) -> Run {
    let qstash = QStash::start().await;
    let (mut answers, mut kills) = (Vec::new(), Vec::new());
    let (mut next, clock) = (0, disk.clock());
    for round in 0..rounds {
        for (keep, is_killed) in [("1s", true), ("1s", false), ("0s", true)] {
            qstash.server.faults().set(Fault::Refuse).await;
            let flags = ["--keep-delivered", keep];
            let process = Process::start(disk.path(), &qstash, None, &flags).await;
            let load = Load::start(process.webhook, shape(&disk, next));
            let away = Duration::from_millis(300 + 100 * round as u64);
            load.answer_after(Instant::now() + away, |_| true).await;
            let opened = qstash.server.counts().accepted;
            qstash.server.faults().set(Fault::None).await;
            let flows = |server: &strapi_qstash::dev_server::DevServer| {
                server.counts().accepted > opened + 100
            };
            qstash
                .server
                .wait_until(Duration::from_secs(5), flows)
                .await;
            if is_killed {
                process.kill().await;
                kills.push(clock());
                answers.extend(load.stop().await);
            } else {
                answers.extend(load.stop().await);
                let mut process = process;
                process.signal("TERM");
                process.exit_code().await;
            }
            next = answers
                .iter()
                .map(|answer| answer.n + 100)
                .max()
                .unwrap_or(next);
            next -= next % 10;
        }
    }
    let mut run = Run::new(disk.into_log(), answers, &qstash);
    run.kills = kills;
    println!(
        "recorded: {} operations, {} syncs, {} events answered 202, {} delivered",
        run.log.len(),
        run.syncs().count(),
        run.promised.len(),
        run.delivered.len()
    );
    run
}

impl Run {
    fn new(log: Vec<Record>, answers: Vec<Answered>, qstash: &QStash) -> Self {
        let durable = answers.into_iter().filter(Answered::is_durable);
        let delivered = qstash.accepted().into_iter().map(|message| {
            let id = message.headers.get("webhook-id");
            let id = id.and_then(|id| id.to_str().ok()).unwrap_or_default();
            (id.to_owned(), message.created_at.as_millis())
        });
        Self {
            promised: durable
                .map(|answer| (answer.id, (answer.n, answer.position)))
                .collect(),
            delivered: delivered.collect(),
            kills: Vec::new(),
            log,
        }
    }

    fn syncs(&self) -> impl Iterator<Item = usize> {
        let is_sync = |op: &Op| matches!(op, Op::Sync { .. } | Op::FailedSync { .. });
        let log = self.log.iter().enumerate();
        log.filter_map(move |(at, record)| is_sync(&record.op).then_some(at))
    }

    /// The same run, had each kill come between a commit's last write and its fsync; and the
    /// moments before the next fsyncs of the log. What waits in memory then is of two processes.
    fn killed_before_syncs(&self) -> (Self, Vec<usize>) {
        let (mut run, mut points) = (self.clone(), Vec::new());
        let is_log = |record: &Record| match &record.op {
            Op::Create { name, ino } if name.ends_with("-wal") => Some(*ino),
            _ => None,
        };
        let logs: BTreeSet<u64> = self.log.iter().filter_map(is_log).collect();
        let is_sync =
            |at: &usize| matches!(self.log[*at].op, Op::Sync { ino } if logs.contains(&ino));
        for kill in &self.kills {
            let Some(last) = (0..*kill).rev().find(is_sync) else {
                continue;
            };
            run.log[last].op = Op::NoSync;
            run.promised
                .retain(|_, (_, position)| !(last..=*kill).contains(position));
            let next = (*kill..self.log.len()).filter(is_sync).take(3);
            points.extend(next.flat_map(|at| [at; AFTER_KILL]));
        }
        (run, points)
    }

    /// Moments to look at, in order: just before and just after some fsyncs, the first steps of
    /// a new buffer, and any others.
    fn points(&self, count: usize, random: &mut Rng) -> Vec<usize> {
        let syncs: Vec<usize> = self.syncs().collect();
        let mut points: Vec<usize> = (0..count)
            .map(|at| match at % 10 {
                0..5 => random.choice(&syncs).unwrap() + random.usize(0..=1),
                5 => random.usize(0..200.min(self.log.len())),
                _ => random.usize(0..=self.log.len()),
            })
            .collect();
        points.sort_unstable();
        points
    }

    /// Looks at these crash points; the first `binaries` of an even choice among them with the
    /// sidecar as a process, the others through the library.
    async fn check_all(
        &self,
        report: &mut Report,
        points: &[usize],
        binaries: usize,
        random: &mut Rng,
    ) {
        let qstash = QStash::start().await;
        qstash.server.faults().set(Fault::Refuse).await;
        let every = points.len() / binaries.max(1);
        let mut replay = Replay::new(&self.log);
        let mut lost = BTreeSet::new();
        for (count, point) in points.iter().enumerate() {
            replay.advance(*point);
            let luck = Luck::any(random);
            let disk = replay.lose_power(luck, random);
            let with_binary = binaries > 0 && count % every == 0;
            report.tries += 1;
            match self
                .check(&disk, *point, with_binary.then_some(&qstash), report)
                .await
            {
                Ok(missing) => lost.extend(missing),
                Err(error) => {
                    let sizes: Vec<_> = disk
                        .iter()
                        .map(|(name, bytes)| (name, bytes.len()))
                        .collect();
                    report.wrong.push(format!(
                        "power lost after operation {point} ({luck:?}; {sizes:?}): {error}"
                    ));
                }
            }
        }
        report.accepted += self.promised.len();
        report.lost += lost.len();
        if !lost.is_empty() {
            let lost: Vec<usize> = lost.into_iter().collect();
            report.wrong.push(format!("missing: {}", ranges(&lost)));
        }
    }

    /// The numbers of the events that are missing after a power loss, and an error when the
    /// buffer is not sound.
    async fn check(
        &self,
        disk: &Contents,
        point: usize,
        with_binary: Option<&QStash>,
        report: &mut Report,
    ) -> Result<Vec<usize>, String> {
        // In memory where that is possible: these fsyncs prove nothing, and cost the most.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.unwrap();
        write_out(disk, dir.path());
        match with_binary {
            Some(qstash) => {
                let started = Instant::now();
                let process = Process::try_start(dir.path(), qstash, None, &[]).await?;
                let is_ready = becomes(&process, 200).await;
                report.recovered_in(started.elapsed());
                let log = process.log();
                process.kill().await;
                if !is_ready {
                    return Err(log);
                }
            }
            None => open_and_close(dir.path()).await?,
        }
        let kept = ids(dir.path())?;
        let aside = |name: &str| name.contains(".damaged-");
        let names = std::fs::read_dir(dir.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        if let Some(name) = names.into_iter().find(|name| aside(name)) {
            return Err(format!("{name} was set aside"));
        }
        let now = self
            .log
            .get(point.saturating_sub(1))
            .map_or(0, |record| record.at);
        let is_delivered = |id: &String| self.delivered.get(id).is_some_and(|at| *at <= now);
        let promised = self.promised.iter();
        Ok(promised
            .filter(|(_, (_, position))| *position <= point)
            .filter(|(id, _)| !kept.contains(*id) && !is_delivered(id))
            .map(|(_, (n, _))| *n)
            .collect())
    }
}

/// Opens the buffer as the sidecar does at its start.
async fn open_and_close(folder: &Path) -> Result<(), String> {
    let flags = ["--topic", "news", "--qstash-token", DEVELOPMENT_TOKEN];
    let mut flags: Vec<String> = flags.map(str::to_owned).into();
    flags.extend(["--data-dir".to_owned(), folder.to_str().unwrap().to_owned()]);
    let (config, _) = Config::from_args(&parse(&flags)).unwrap();
    let buffer = Buffer::open(&config.buffer).map_err(|error| {
        let cause = std::error::Error::source(&error);
        format!(
            "{error}: {}",
            cause.map(ToString::to_string).unwrap_or_default()
        )
    })?;
    let deadline = Instant::now() + LONG / 10;
    let health = loop {
        let health = buffer.health().await;
        if health == Health::Writable || Instant::now() > deadline {
            break health;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    buffer.close().await;
    match health {
        Health::Writable => Ok(()),
        health => Err(format!("it opens, and is {health:?}")),
    }
}

/// The ids of all events in a buffer that must be sound.
fn ids(folder: &Path) -> Result<BTreeSet<String>, String> {
    let failed = |error: rusqlite::Error| error.to_string();
    let db = Connection::open(folder.join(BUFFER)).map_err(failed)?;
    let check: String = db
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .map_err(failed)?;
    if check != "ok" {
        return Err(check);
    }
    let mut statement = db
        .prepare(
            "SELECT lower(hex(id)) FROM event JOIN payload USING (seq) WHERE size = length(body)",
        )
        .map_err(failed)?;
    let ids = statement.query_map([], |row| row.get(0)).map_err(failed)?;
    let with_dashes = |id: rusqlite::Result<String>| id.map(|id| dashed(&id));
    ids.map(with_dashes)
        .collect::<Result<_, _>>()
        .map_err(failed)
}

/// `0123…` as a UUID is written.
fn dashed(id: &str) -> String {
    let parts = [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]];
    parts.join("-")
}
