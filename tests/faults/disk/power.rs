//! Power loss: the sidecar runs on a disk that forgets, under load, and each moment of that
//! run is then looked at as the last one.
//!
//! At a crash point every event whose 202 was there before must be in the buffer, in whatever
//! state, or have reached QStash. The buffer that the crash leaves is opened as the sidecar
//! does, some by the whole binary; SQLite must find it whole, and nothing may be set aside as
//! damaged. The control shows that this can fail: the same run on a disk that answers fsync and
//! does nothing, which is what `synchronous=OFF` asks for, and without the fsync of each commit,
//! as with `synchronous=NORMAL`, loses events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use strapi_qstash::dev_server::Fault;

use super::errors::{drains, drains_what_waits};
use super::forgetful::{Faults, Forgetful, without_commit_syncs, without_syncs};
use super::load::{Answered, Load, Shape};
use super::run::Run;
use crate::harness::{Process, QStash};
use crate::report::{Report, Scale};

pub(crate) const BUFFER: &str = "strapi-qstash.db";

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

/// Fsync fails now and then, from before a start on, or always that of the file into which the
/// log is copied; then not, until the process is killed and the next one starts among failures.
/// What was answered must be there.
pub(crate) async fn after_failed_syncs(scale: Scale) -> Report {
    let mut report = Report::default();
    let Some(disk) = Forgetful::mount(&mut report) else {
        return report;
    };
    let qstash = QStash::start().await;
    // Nothing leaves: each event that was promised must be in the buffer.
    qstash.server.faults().set(Fault::Refuse).await;
    let mut answers = Vec::new();
    for _ in 0..scale.pick(3, 12) {
        let now_and_then = Faults {
            sync_percent: 30,
            ..Faults::default()
        };
        disk.set(now_and_then.clone());
        let process = Process::start(disk.path(), &qstash, None, &[]).await;
        // Slower than elsewhere: all that ever comes has to fit onto the disk.
        let pause = Duration::from_millis(3);
        let shape = Shape {
            pause,
            ..shape(&disk, next_number(&answers))
        };
        let load = Load::start(process.webhook, shape);
        let of_the_file = Faults {
            sync_percent: 100,
            sync_only: Some(BUFFER),
            ..Faults::default()
        };
        for faults in [now_and_then, of_the_file] {
            let (before, since) = (disk.failures(), Instant::now());
            disk.set(faults);
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
                }
            }
            // Some more, so that crash points lie after it.
            load.answer_after(since + Duration::from_millis(700), Answered::is_durable)
                .await;
        }
        process.kill().await;
        answers.extend(load.stop().await);
    }
    let (run, mut random) = (
        Run::new(disk.into_log(), answers, &qstash),
        Rng::with_seed(9),
    );
    let mut points = run.points(scale.pick(30, 300), &mut random);
    points.extend(run.points_after_failures(scale.pick(30, 300), &mut random));
    points.sort_unstable();
    run.check_all(&mut report, &points, scale.pick(2, 20), &mut random)
        .await;
    report
}

/// Fsync fails now and then while the buffer is made: what comes of it must be one like any other.
pub(crate) async fn for_new_buffer(scale: Scale) -> Report {
    let mut report = Report::default();
    let qstash = QStash::start().await;
    qstash.server.faults().set(Fault::Refuse).await;
    let mut random = Rng::with_seed(11);
    for _ in 0..scale.pick(20, 100) {
        let Some(disk) = Forgetful::mount(&mut report) else {
            return report;
        };
        disk.set(Faults {
            sync_percent: 10,
            ..Faults::default()
        });
        let started = Instant::now();
        let process = Process::start(disk.path(), &qstash, None, &[]).await;
        let load = Load::start(process.webhook, shape(&disk, 0));
        match load.answer_after(started, Answered::is_durable).await {
            Some(answer) => report.recovered_in(answer.at - started),
            None => report.wrong.push(format!("no 202\n{}", process.log())),
        }
        disk.set(Faults::default());
        let some = Instant::now() + Duration::from_millis(50);
        load.answer_after(some, Answered::is_durable).await;
        process.kill().await;
        let run = Run::new(disk.into_log(), load.stop().await, &qstash);
        let points = run.points(scale.pick(10, 30), &mut random);
        run.check_all(&mut report, &points, 0, &mut random).await;
    }
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
        if !drains_what_waits(&process).await {
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
    if !drains(&process).await {
        report.wrong.push("something stays without load".to_owned());
    }
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

/// Of the first event of a load that comes after these: some of those before had no answer.
fn next_number(answers: &[Answered]) -> usize {
    let numbers = answers.iter().map(|answer| answer.n / 10 * 10 + 100);
    numbers.max().unwrap_or(0)
}

/// Each round: new events while QStash is away, then while the backlog drains; a kill, then the
/// same again with the history of before to purge, and a stop.
async fn record(disk: Forgetful, rounds: usize) -> Run {
    let qstash = QStash::start().await;
    let (mut answers, mut kills) = (Vec::new(), Vec::new());
    let clock = disk.clock();
    for round in 0..rounds {
        for (keep, is_killed) in [("1s", true), ("1s", false), ("0s", true)] {
            qstash.server.faults().set(Fault::Refuse).await;
            let flags = ["--keep-delivered", keep];
            let process = Process::start(disk.path(), &qstash, None, &flags).await;
            let load = Load::start(process.webhook, shape(&disk, next_number(&answers)));
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
