//! A recorded run on a disk that forgets, and the look at its moments.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rusqlite::Connection;
use strapi_qstash::buffer::{Buffer, Health};
use strapi_qstash::config::Config;
use strapi_qstash::dev_server::{DEVELOPMENT_TOKEN, Fault};

use super::errors::becomes;
use super::forgetful::{Contents, Luck, Op, Record, Replay, write_out};
use super::load::{Answered, ranges};
use super::power::BUFFER;
use crate::harness::{LONG, Process, QStash, parse};
use crate::report::Report;

/// Power losses before an fsync of a sidecar that goes on after one that was killed.
const AFTER_KILL: usize = 10;

/// What happened in a run, and what was promised in it.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) log: Vec<Record>,
    /// The number of each event and the position in the log at which its 202 was there, by id.
    pub(super) promised: BTreeMap<String, (usize, usize)>,
    /// When QStash accepted it, by id.
    pub(super) delivered: BTreeMap<String, i64>,
    /// The positions at which the sidecar was killed: the next one finds a log that may not be
    /// synced.
    pub(super) kills: Vec<usize>,
    /// Whether its buffer was damaged, and may be set aside.
    pub(super) is_damaged: bool,
}

impl Run {
    pub(super) fn new(log: Vec<Record>, answers: Vec<Answered>, qstash: &QStash) -> Self {
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
            is_damaged: false,
            log,
        }
    }

    pub(super) fn syncs(&self) -> impl Iterator<Item = usize> {
        let is_sync = |op: &Op| matches!(op, Op::Sync { .. } | Op::FailedSync { .. });
        let log = self.log.iter().enumerate();
        log.filter_map(move |(at, record)| is_sync(&record.op).then_some(at))
    }

    /// The same run, had each kill come between a commit's last write and its fsync; and the
    /// moments before the next fsyncs of the log. What waits in memory then is of two processes.
    pub(super) fn killed_before_syncs(&self) -> (Self, Vec<usize>) {
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
    pub(super) fn points(&self, count: usize, random: &mut Rng) -> Vec<usize> {
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

    /// Moments soon after an fsync that failed: when the log is copied and begun anew, and events
    /// are answered again.
    pub(super) fn points_after_failures(&self, count: usize, random: &mut Rng) -> Vec<usize> {
        let is_failure = |at: &usize| matches!(self.log[*at].op, Op::FailedSync { .. });
        let failures: Vec<usize> = (0..self.log.len()).filter(is_failure).collect();
        let point = |_| {
            let failure = random.choice(&failures).copied().unwrap_or(0);
            (failure + random.usize(1..200)).min(self.log.len())
        };
        (0..count).map(point).collect()
    }

    /// Looks at these crash points; the first `binaries` of an even choice among them with the
    /// sidecar as a process, the others through the library.
    pub(super) async fn check_all(
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
        // Its commits would be lost with the power only where luck has it, so the file is asked.
        // <https://www.sqlite.org/fileformat2.html#file_format_version_numbers>
        let versions = disk.get(BUFFER).and_then(|file| file.get(18..20));
        if versions.is_some_and(|versions| versions != [2, 2]) && !self.is_damaged {
            return Err("the buffer has no write-ahead log".to_owned());
        }
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
        let aside = |name: &str| name.contains(".damaged-") && !self.is_damaged;
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
pub(super) async fn open_and_close(folder: &Path) -> Result<(), String> {
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
pub(super) fn ids(folder: &Path) -> Result<BTreeSet<String>, String> {
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
