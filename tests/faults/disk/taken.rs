//! The buffer's files taken away while the sidecar runs: deleted, replaced by an older copy, or
//! without the write-ahead log. The sidecar still has them open and could go on for days, but
//! what it writes is gone with its process.
//!
//! It must notice and put all that it has where the next start finds it. What it can promise
//! then: once it answers another 202, all 202s before it are safe too. So the sidecar is killed
//! right after that answer, and the next one must deliver everything.

use std::collections::BTreeSet;
use std::time::Instant;

use strapi_qstash::dev_server::Fault;

use super::errors::{empty_log, post_all};
use super::load::{Answered, arrived, post, settle};
use super::power::BUFFER;
use crate::harness::{Client, LONG, Process, QStash};
use crate::report::{Report, Scale};

/// What happens to the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// The buffer is deleted.
    Buffer,
    /// All that belongs to it is, as by someone who wants to begin anew.
    Everything,
    /// An older copy is put in its place.
    OlderCopy,
    /// Its log is deleted.
    Log,
}

/// When the sidecar is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    /// Some time after it had to notice.
    Later,
    /// As soon as it has answered one more event.
    AtNextAnswer,
}

pub(crate) async fn deleted(scale: Scale) -> Report {
    each(scale, &[Loss::Buffer, Loss::Everything], Kill::Later).await
}

pub(crate) async fn replaced(scale: Scale) -> Report {
    each(scale, &[Loss::OlderCopy], Kill::Later).await
}

pub(crate) async fn log_deleted(scale: Scale) -> Report {
    each(scale, &[Loss::Log], Kill::Later).await
}

/// All of these, with no time to notice but that of one commit.
pub(crate) async fn killed_at_next_answer(scale: Scale) -> Report {
    let all = [Loss::Buffer, Loss::Everything, Loss::OlderCopy, Loss::Log];
    each(scale, &all, Kill::AtNextAnswer).await
}

async fn each(scale: Scale, losses: &[Loss], kill: Kill) -> Report {
    let mut report = Report::default();
    for loss in losses {
        for _ in 0..scale.pick(1, 5) {
            report.tries += 1;
            let before = report.wrong.len();
            take(&mut report, *loss, kill).await;
            for wrong in &mut report.wrong[before..] {
                wrong.insert_str(0, &format!("{loss:?}: "));
            }
        }
    }
    report
}

async fn take(report: &mut Report, loss: Loss, kill: Kill) {
    let (qstash, dir) = (QStash::start().await, tempfile::tempdir().unwrap());
    let (buffer, copy) = (dir.path().join(BUFFER), dir.path().join("copy"));
    qstash.server.faults().set(Fault::Refuse).await;
    let mut process = Process::start(&dir, &qstash, None, &[]).await;
    let mut answers = post_all(&process, 0..30).await;
    // What the older copy holds: the first thirty.
    process.signal("TERM");
    process.exit_code().await;
    empty_log(dir.path());
    std::fs::copy(&buffer, &copy).unwrap();
    let process = Process::start(&dir, &qstash, None, &[]).await;
    answers.extend(post_all(&process, 30..60).await);

    match loss {
        Loss::Buffer => std::fs::remove_file(&buffer).unwrap(),
        Loss::Everything => {
            for suffix in ["", "-wal", "-shm"] {
                std::fs::remove_file(dir.path().join(format!("{BUFFER}{suffix}"))).unwrap();
            }
        }
        Loss::OlderCopy => std::fs::rename(&copy, &buffer).unwrap(),
        Loss::Log => std::fs::remove_file(dir.path().join(format!("{BUFFER}-wal"))).unwrap(),
    }
    let taken = Instant::now();
    let mut client = Client::connect(process.webhook).await;
    match kill {
        Kill::AtNextAnswer => {
            let mut numbers = 60..;
            // While it repairs itself an event may be refused: QStash is away.
            while taken.elapsed() < LONG / 3 {
                let answer = post(&mut client, numbers.next().unwrap()).await.unwrap();
                let is_durable = answer.is_durable();
                answers.push(answer);
                if is_durable {
                    report.recovered_in(taken.elapsed());
                    break;
                }
            }
        }
        Kill::Later => {
            let repaired = || !holds_deleted(process.pid());
            let mut numbers = 60..;
            while !repaired() && taken.elapsed() < LONG / 3 {
                answers.extend(post(&mut client, numbers.next().unwrap()).await);
            }
            if !repaired() {
                report.wrong.push(format!("not noticed: {}", process.log()));
            }
            report.recovered_in(taken.elapsed());
            answers.extend(post_all(&process, 100_000..100_010).await);
        }
    }
    let after = answers.iter().filter(|answer| answer.n >= 60);
    if !after.clone().any(Answered::is_durable) {
        report.wrong.push("no 202 after it".to_owned());
    }
    process.kill().await;
    qstash.server.faults().set(Fault::None).await;
    match Process::try_start(&dir, &qstash, None, &[]).await {
        Ok(_process) => settle(report, &qstash, &answers).await,
        Err(log) => report.wrong.push(format!("it did not start again: {log}")),
    }
    let arrived: BTreeSet<usize> = arrived(&qstash).into_iter().collect();
    let refused = answers.iter().filter(|answer| !answer.is_success());
    let kept = refused.filter(|answer| arrived.contains(&answer.n)).count();
    if kept > 0 {
        // Harmless, but then the answer was not the truth.
        report.wrong.push(format!("{kept} refused events arrived"));
    }
}

/// Whether the process has a file of the buffer open that nobody else can find.
fn holds_deleted(pid: u32) -> bool {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let names = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .any(|name| name.contains(BUFFER) && name.ends_with(" (deleted)"))
}
