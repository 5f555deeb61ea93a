//! A full disk: to the last byte, on a real file system. The sidecar starts on it and drains
//! its backlog to the end without any space (it has a reserve to give up), events are published
//! before the answer, and when space returns it all heals without a restart.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use strapi_qstash::dev_server::Fault;

use super::errors::{becomes, drains, post_all};
use super::load::{Answered, Load, Shape, settle};
use super::mount::Disk;
use super::power::BUFFER;
use crate::harness::{LONG, Process, QStash, wait_until};
use crate::report::{Report, Scale};

/// What the sidecar gives up when the disk is full.
fn reserve(folder: &Path) -> PathBuf {
    folder.join(format!("{BUFFER}.reserve"))
}

fn has_reserve(folder: &Path) -> bool {
    reserve(folder).metadata().is_ok_and(|file| file.len() > 0)
}

/// A backlog from before, and a disk that is full when the sidecar starts: after a stop, and
/// after a kill, which leaves the write-ahead log.
pub(crate) async fn at_start(scale: Scale) -> Report {
    let mut report = Report::default();
    for round in 0..scale.pick(2, 10) {
        let Some(disk) = Disk::mount(&mut report) else {
            return report;
        };
        report.tries += 1;
        start_on(&mut report, &disk, round % 2 == 0, true).await;
    }
    report
}

/// The same when there is no reserve either, as after an older version: what waits may wait
/// longer, but the sidecar starts, publishes, and heals.
pub(crate) async fn without_reserve(scale: Scale) -> Report {
    let mut report = Report::default();
    for round in 0..scale.pick(2, 6) {
        let Some(disk) = Disk::mount(&mut report) else {
            return report;
        };
        report.tries += 1;
        start_on(&mut report, &disk, round % 2 == 0, false).await;
    }
    report
}

async fn start_on(report: &mut Report, disk: &Disk, is_killed: bool, with_reserve: bool) {
    let qstash = QStash::start().await;
    qstash.server.faults().set(Fault::Refuse).await;
    let mut process = Process::start(disk.path(), &qstash, None, &[]).await;
    let mut answers = post_all(&process, 0..200).await;
    if is_killed {
        process.kill().await;
    } else {
        process.signal("TERM");
        process.exit_code().await;
    }
    if !with_reserve {
        std::fs::remove_file(reserve(&disk.path())).ok();
    }
    disk.fill();
    qstash.server.faults().set(Fault::None).await;
    let process = match Process::try_start(disk.path(), &qstash, None, &[]).await {
        Ok(process) => process,
        Err(log) => return report.wrong.push(format!("it did not start: {log}")),
    };
    let direct = post_all(&process, 1000..1010).await;
    if direct.iter().any(|answer| !answer.is_success()) {
        report.wrong.push(format!("refused: {direct:?}"));
    }
    answers.extend(direct);
    if with_reserve && !drains(&process).await {
        report.wrong.push("the backlog stays".to_owned());
    }
    heal(report, disk, &process, &mut answers, 2000).await;
    if !drains(&process).await {
        report
            .wrong
            .push("the backlog stays, with space".to_owned());
    }
    process.kill().await;
    let _process = Process::start(disk.path(), &qstash, None, &[]).await;
    settle(report, &qstash, &answers).await;
}

/// Gives the space back; all must be as before, without a restart.
async fn heal(
    report: &mut Report,
    disk: &Disk,
    process: &Process,
    answers: &mut Vec<Answered>,
    first: usize,
) {
    disk.free();
    let healed = Instant::now();
    if !becomes(process, 200).await {
        report
            .wrong
            .push(format!("/readyz stays 503: {}", process.log()));
        return;
    }
    let durable = post_all(process, first..first + 10).await;
    report.recovered_in(healed.elapsed());
    if !durable.iter().all(Answered::is_durable) {
        report
            .wrong
            .push(format!("not durable with space: {durable:?}"));
    }
    answers.extend(durable);
    if !wait_until(LONG / 3, || has_reserve(&disk.path())).await {
        report
            .wrong
            .push("the reserve is not taken back".to_owned());
    }
}

/// A disk that becomes full under load, while QStash is away.
pub(crate) async fn under_load(scale: Scale) -> Report {
    let mut report = Report::default();
    let Some(disk) = Disk::mount(&mut report) else {
        return report;
    };
    let qstash = QStash::start().await;
    let process = Process::start(disk.path(), &qstash, None, &[]).await;
    let load = Load::start(process.webhook, Shape::steady(0));
    let mut extra = Vec::new();
    for round in 0..scale.pick(1, 10) {
        report.tries += 1;
        qstash.server.faults().set(Fault::Refuse).await;
        load.answer_after(Instant::now() + Duration::from_millis(500), |_| true)
            .await;
        if !has_reserve(&disk.path()) {
            report.wrong.push("there is no reserve".to_owned());
        }
        disk.fill();
        // Neither durable nor published: the only time that an event is refused.
        let filled = Instant::now();
        if load
            .answer_after(filled, |answer| answer.status == 503)
            .await
            .is_none()
        {
            report
                .wrong
                .push("the disk is full, and events are durable".to_owned());
            break;
        }
        if !becomes(&process, 503).await {
            report.wrong.push("/readyz stays 200".to_owned());
        }
        qstash.server.faults().set(Fault::None).await;
        let opened = Instant::now();
        if load
            .answer_after(opened, |answer| answer.status == 200)
            .await
            .is_none()
        {
            report
                .wrong
                .push("none is published before its answer".to_owned());
        }
        // The sidecar's own trial may still come first, so a 503 is right until the first 200.
        let published = Instant::now();
        if !drains(&process).await {
            let log = process.log();
            report
                .wrong
                .push(format!("the backlog stays on a full disk: {log}"));
        }
        let refused = |answer: &Answered| answer.at > published && !answer.is_success();
        let later = Instant::now();
        load.answer_after(later, |_| true).await;
        if load.any(refused) {
            report
                .wrong
                .push("an event is refused though QStash is there".to_owned());
        }
        heal(
            &mut report,
            &disk,
            &process,
            &mut extra,
            100_000 + round * 100,
        )
        .await;
    }
    extra.extend(load.stop().await);
    process.kill().await;
    qstash.server.faults().set(Fault::None).await;
    let _process = Process::start(disk.path(), &qstash, None, &[]).await;
    settle(&mut report, &qstash, &extra).await;
    report
}
