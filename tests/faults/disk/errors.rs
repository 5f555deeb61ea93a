//! A disk that fails: on write, on fsync, on read, in one sector, and one that turns read-only.
//!
//! While QStash is there no event may be refused, whatever the disk does: what cannot be made
//! durable is published before the answer. When the disk is well again, so is the sidecar,
//! without a restart. At the end it is killed, and all that was answered must arrive.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use strapi_qstash::dev_server::{DevServer, Fault};

use super::forgetful::{Faults, Forgetful};
use super::load::{Answered, Load, Shape, arrived, post, settle, settle_with};
use super::power::BUFFER;
use crate::harness::{Client, LONG, Process, QStash, update};
use crate::report::{Report, Scale};

/// How long a fault lasts.
const LASTS: Duration = Duration::from_millis(1000);

/// Whether events can be made durable meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durable {
    /// Not: `/readyz` says so.
    Not,
    /// Some are, some are not.
    Perhaps,
}

/// EIO on each write.
pub(crate) async fn on_write(scale: Scale) -> Report {
    let faults = Faults {
        write: true,
        ..Faults::default()
    };
    passing(scale, faults, Durable::Not).await
}

/// EIO on half of the fsyncs.
pub(crate) async fn on_sync(scale: Scale) -> Report {
    let faults = Faults {
        sync_percent: 50,
        ..Faults::default()
    };
    passing(scale, faults, Durable::Perhaps).await
}

/// EIO on each read.
pub(crate) async fn on_read(scale: Scale) -> Report {
    let faults = Faults {
        read: true,
        ..Faults::default()
    };
    passing(scale, faults, Durable::Perhaps).await
}

/// EROFS on whatever changes something.
pub(crate) async fn read_only(scale: Scale) -> Report {
    let faults = Faults {
        read_only: true,
        ..Faults::default()
    };
    passing(scale, faults, Durable::Not).await
}

/// A fault that comes under load, with a backlog, and goes.
async fn passing(scale: Scale, faults: Faults, durable: Durable) -> Report {
    let mut report = Report::default();
    let Some(disk) = Forgetful::mount(&mut report) else {
        return report;
    };
    let qstash = QStash::start().await;
    let process = Process::start(disk.path(), &qstash, None, &[]).await;
    let load = Load::start(process.webhook, Shape::steady(0));
    for _ in 0..scale.pick(1, 10) {
        report.tries += 1;
        qstash.server.faults().set(Fault::Refuse).await;
        load.answer_after(Instant::now() + LASTS / 2, |_| true)
            .await;
        qstash.server.faults().set(Fault::None).await;
        let (failures, began) = (disk.failures(), Instant::now());
        disk.set(faults.clone());
        if durable == Durable::Not && !becomes(&process, 503).await {
            report.wrong.push("/readyz stays 200".to_owned());
        }
        load.answer_after(began + LASTS, |_| true).await;
        disk.set(Faults::default());
        if disk.failures() == failures {
            report.wrong.push("nothing failed".to_owned());
        }
        let healed = Instant::now();
        let Some(answer) = load.answer_after(healed, Answered::is_durable).await else {
            report.wrong.push("no 202 after the fault".to_owned());
            break;
        };
        report.recovered_in(answer.at - healed);
        if !becomes(&process, 200).await {
            report.wrong.push("/readyz stays 503".to_owned());
        }
        if !drains(&process).await {
            report
                .wrong
                .push("the backlog stays after the fault".to_owned());
            break;
        }
    }
    qstash.server.faults().set(Fault::Refuse).await;
    load.answer_after(Instant::now() + LASTS / 4, |_| true)
        .await;
    let answers = load.stop().await;
    let refused = answers.iter().filter(|answer| !answer.is_success()).count();
    if refused > 0 {
        report.wrong.push(format!("{refused} events were refused"));
    }
    if durable == Durable::Not && !answers.iter().any(|answer| answer.status == 200) {
        report
            .wrong
            .push("none was published before its answer".to_owned());
    }
    if !report.wrong.is_empty() {
        report.wrong.push(process.log());
    }
    process.kill().await;
    qstash.server.faults().set(Fault::None).await;
    let _process = Process::start(disk.path(), &qstash, None, &[]).await;
    settle(&mut report, &qstash, &answers).await;
    report
}

/// Read-only from the start, with events that wait from before: the sidecar runs, and takes
/// its place when the disk can be written.
pub(crate) async fn read_only_at_start(scale: Scale) -> Report {
    let mut report = Report::default();
    let Some(disk) = Forgetful::mount(&mut report) else {
        return report;
    };
    let qstash = QStash::start().await;
    let mut answers = Vec::new();
    for round in 0..scale.pick(2, 10) {
        report.tries += 1;
        // The first time there is no buffer yet; then one with its log, or without.
        qstash.server.faults().set(Fault::Refuse).await;
        if round > 0 {
            let mut process = Process::start(disk.path(), &qstash, None, &[]).await;
            answers.extend(post_all(&process, round * 1000..round * 1000 + 10).await);
            if round % 2 == 0 {
                process.signal("TERM");
                process.exit_code().await;
            } else {
                process.kill().await;
            }
        }
        disk.set(Faults {
            read_only: true,
            ..Faults::default()
        });
        qstash.server.faults().set(Fault::None).await;
        let process = match Process::try_start(disk.path(), &qstash, None, &[]).await {
            Ok(process) => process,
            Err(log) => {
                report.wrong.push(format!("it did not start: {log}"));
                break;
            }
        };
        if !becomes(&process, 503).await {
            report.wrong.push("/readyz stays 200".to_owned());
        }
        let published = post_all(&process, round * 1000 + 100..round * 1000 + 110).await;
        if published.iter().any(|answer| answer.status != 200) {
            report.wrong.push(format!("not published: {published:?}"));
        }
        answers.extend(published);
        disk.set(Faults::default());
        let healed = Instant::now();
        if !becomes(&process, 200).await {
            report
                .wrong
                .push(format!("it does not heal: {}", process.log()));
            break;
        }
        report.recovered_in(healed.elapsed());
        let durable = post_all(&process, round * 1000 + 200..round * 1000 + 210).await;
        if !durable.iter().all(Answered::is_durable) {
            report.wrong.push(format!("not durable: {durable:?}"));
        }
        answers.extend(durable);
        if !drains(&process).await {
            report.wrong.push("the backlog stays".to_owned());
        }
        process.kill().await;
    }
    disk.set(Faults::default());
    let _process = Process::start(disk.path(), &qstash, None, &[]).await;
    settle(&mut report, &qstash, &answers).await;
    report
}

/// One sector under the body of one event cannot be read: it waits, the others flow.
pub(crate) async fn bad_sector(scale: Scale) -> Report {
    let mut report = Report::default();
    for victim in 0..scale.pick(1, 10) {
        let Some(disk) = Forgetful::mount(&mut report) else {
            return report;
        };
        report.tries += 1;
        under(&mut report, &disk, victim).await;
    }
    report
}

async fn under(report: &mut Report, disk: &Forgetful, victim: usize) {
    const MARK: &str = "this sector cannot be read";
    let qstash = QStash::start().await;
    qstash.server.faults().set(Fault::Refuse).await;
    let mut process = Process::start(disk.path(), &qstash, None, &[]).await;
    let mut client = Client::connect(process.webhook).await;
    // One of each document: none waits for another.
    for n in 0..10 {
        let (mut body, filler) = (update(n), "x".repeat(15_000));
        body.pop();
        let mark = if n == victim { MARK } else { "" };
        body.push_str(&format!(r#","text":"{filler}{mark}{filler}"}}"#));
        assert_eq!(client.post("/webhook", &body).await.status, 202);
    }
    process.signal("TERM");
    process.exit_code().await;
    empty_log(disk.path());
    let bad_sectors = disk.sectors_of(MARK);
    assert!(
        bad_sectors.iter().any(|(name, _)| name == BUFFER),
        "{bad_sectors:?}"
    );
    let before = disk.failures();
    disk.set(Faults {
        bad_sectors,
        ..Faults::default()
    });
    // Bad before the start, or the event would be in some cache.
    let process = Process::start(disk.path(), &qstash, None, &[]).await;
    qstash.server.faults().set(Fault::None).await;
    let mut client = Client::connect(process.webhook).await;
    let more = post(&mut client, 20 + (victim + 1) % 10).await.unwrap();
    if !more.is_durable() {
        report
            .wrong
            .push(format!("a new event is answered {}", more.status));
    }
    let mut others: BTreeSet<usize> = (0..10).chain([more.n]).collect();
    others.remove(&victim);
    let flow = |_: &DevServer| others.is_subset(&arrived(&qstash).into_iter().collect());
    if !qstash.server.wait_until(LONG / 3, flow).await {
        report.wrong.push("the others wait too".to_owned());
    }
    if disk.failures() == before || arrived(&qstash).contains(&victim) {
        report
            .wrong
            .push("the sector was read all the same".to_owned());
    }
    disk.set(Faults::default());
    let healed = Instant::now();
    others.insert(victim);
    settle_with(report, &qstash, &others, LONG).await;
    report.recovered_in(healed.elapsed());
    if !report.wrong.is_empty() {
        report.wrong.push(process.log());
    }
    process.kill().await;
}

/// Copies the log of a buffer that nobody has open into the file, and removes it.
pub(crate) fn empty_log(folder: &std::path::Path) {
    let db = rusqlite::Connection::open(folder.join(BUFFER)).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
}

/// Posts these events one after the other.
pub(crate) async fn post_all(process: &Process, numbers: std::ops::Range<usize>) -> Vec<Answered> {
    let mut client = Client::connect(process.webhook).await;
    let mut answers = Vec::new();
    for n in numbers {
        answers.extend(post(&mut client, n).await);
    }
    answers
}

/// Waits until `/readyz` answers with this status.
pub(crate) async fn becomes(process: &Process, status: u16) -> bool {
    let deadline = Instant::now() + LONG / 2;
    while process.admin("/readyz").await.status != status {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// Waits until nothing is pending.
pub(crate) async fn drains(process: &Process) -> bool {
    let deadline = Instant::now() + LONG;
    while pending(process).await != 0 {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// Waits until nothing is pending of what is now. Under load something always waits for its turn.
pub(crate) async fn drains_what_waits(process: &Process) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < LONG {
        // Asked first, so that at worst it looks once more.
        let since = begun.elapsed();
        if oldest_age(process).await < since {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

async fn oldest_age(process: &Process) -> Duration {
    let metrics = process.admin("/metrics").await.body;
    let name = "strapi_qstash_buffer_oldest_age_seconds ";
    let age = metrics.lines().find_map(|line| line.strip_prefix(name));
    Duration::from_secs_f64(age.unwrap().parse().unwrap())
}

pub(crate) async fn pending(process: &Process) -> i64 {
    let status = process.admin("/api/status").await.body;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status["events"]["pending"].as_i64().unwrap()
}
