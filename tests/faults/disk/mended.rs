//! Power loss while a damaged buffer is carried over into a new file. Whatever moment it is, what
//! can be read is in the old file or in the new one, and the next start finds it.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use fastrand::Rng;
use strapi_qstash::dev_server::Fault;

use super::damage::end_of_log;
use super::errors::{becomes, post_all};
use super::forgetful::Forgetful;
use super::power::BUFFER;
use super::run::{Run, ids, open_and_close};
use crate::harness::{Process, QStash};
use crate::report::{Report, Scale};

const EVENTS: usize = 100;

/// Those of them that the damage may cost.
const MOST_MISSING: usize = 3;

/// What is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// The first hundred bytes of the file.
    Header,
    /// A page in the middle of the write-ahead log.
    LogPage,
}

pub(crate) async fn power_loss(scale: Scale) -> Report {
    let (mut report, mut random) = (Report::default(), Rng::with_seed(17));
    for damage in [Damage::Header, Damage::LogPage] {
        let Some(disk) = Forgetful::mount(&mut report) else {
            return report;
        };
        let (run, points) = record(&mut report, disk, damage).await;
        let points: Vec<usize> = (0..scale.pick(20, 200))
            .map(|_| random.choice(&points).unwrap() + random.usize(0..=1))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        run.check_all(&mut report, &points, scale.pick(1, 10), &mut random)
            .await;
    }
    report
}

/// A start on a damaged buffer; the run, and the moments of that start.
async fn record(report: &mut Report, disk: Forgetful, damage: Damage) -> (Run, Vec<usize>) {
    let qstash = QStash::start().await;
    qstash.server.faults().set(Fault::Refuse).await;
    let mut process = Process::start(disk.path(), &qstash, None, &[]).await;
    let answers = post_all(&process, 0..EVENTS).await;
    match damage {
        Damage::Header => {
            process.signal("TERM");
            process.exit_code().await;
        }
        Damage::LogPage => process.kill().await,
    }
    inflict(damage, disk.path());

    // What is carried over where the power stays.
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(disk.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let opened = open_and_close(copy.path()).await;
    let kept = opened.and_then(|()| ids(copy.path())).unwrap_or_default();
    if kept.len() + MOST_MISSING < EVENTS {
        let text = format!("{damage:?}: only {} events are kept", kept.len());
        report.wrong.push(text);
    }

    let clock = disk.clock();
    let began = clock();
    let process = Process::start(disk.path(), &qstash, None, &[]).await;
    if !becomes(&process, 200).await {
        report.wrong.push(process.log());
    }
    let ended = clock();
    process.kill().await;
    let mut run = Run::new(disk.into_log(), answers, &qstash);
    run.promised.retain(|id, _| kept.contains(id));
    run.is_damaged = true;
    (run, (began..ended).collect())
}

fn inflict(damage: Damage, folder: &Path) {
    let (name, at, length) = match damage {
        Damage::Header => (BUFFER.to_owned(), 0, 100),
        Damage::LogPage => {
            let name = format!("{BUFFER}-wal");
            let log = std::fs::read(folder.join(&name)).unwrap();
            // Of one frame, and not the end of one and the beginning of the next.
            let page = u32::from_be_bytes(log[8..12].try_into().unwrap()) as usize;
            let frames = (end_of_log(&log) - 32) / (24 + page);
            (name, 32 + frames / 2 * (24 + page) + 24, page)
        }
    };
    let file = File::options().write(true).open(folder.join(name)).unwrap();
    file.write_all_at(&vec![0x55; length], at as u64).unwrap();
    file.sync_all().unwrap();
}
