//! A damaged buffer at the start. The sidecar sets it aside, says so, carries over what can be
//! read, and runs. Events may only be missing when one of their pages is among the damaged; how
//! many those are is told, and how many of them were missing.
//!
//! A file that is some other program's is not a damaged buffer: the sidecar does not touch it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rusqlite::Connection;
use strapi_qstash::dev_server::Fault;

use super::errors::{drains, empty_log, post_all};
use super::load::{Answered, arrived, ranges, settle, settle_with};
use super::pages::{Page, page_size, rows};
use super::power::BUFFER;
use crate::harness::{Client, LONG, Process, QStash, update};
use crate::report::{Report, Scale};

/// Events in the buffer that is damaged: of each table there are several pages, and the log
/// holds all of them.
const EVENTS: usize = 200;

/// A page of the log and what is of the same commit: each event has a commit of its own here.
const MOST_ON_LOG_PAGE: usize = 3;

/// What is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// The first hundred bytes, which make it an SQLite file.
    Header,
    /// A page in the middle of what is known of events.
    EventPage,
    /// A page of the index of what is pending, from which all could be read again.
    IndexPage,
    /// A page in the middle of the bodies.
    PayloadPage,
    /// The second half is not there.
    Half,
    /// One page of the write-ahead log. SQLite takes it for the torn end of what
    /// was being written, and reads no further; but at most one commit can be torn, and behind
    /// this page there are many.
    LogPage,
    /// The log is garbage from its middle on.
    LogEnd,
    /// All of it is.
    Log,
}

impl Damage {
    /// Whether events can be missing after it.
    fn hits_events(self) -> bool {
        !matches!(self, Self::Header | Self::IndexPage)
    }

    fn is_of_log(self) -> bool {
        matches!(self, Self::LogPage | Self::LogEnd | Self::Log)
    }
}

pub(crate) async fn header(scale: Scale) -> Report {
    each(scale, &[Damage::Header]).await
}

pub(crate) async fn event_page(scale: Scale) -> Report {
    each(scale, &[Damage::EventPage, Damage::IndexPage]).await
}

pub(crate) async fn payload_page(scale: Scale) -> Report {
    each(scale, &[Damage::PayloadPage]).await
}

pub(crate) async fn half(scale: Scale) -> Report {
    each(scale, &[Damage::Half]).await
}

pub(crate) async fn log(scale: Scale) -> Report {
    each(scale, &[Damage::LogEnd, Damage::Log]).await
}

pub(crate) async fn log_page(scale: Scale) -> Report {
    each(scale, &[Damage::LogPage]).await
}

async fn each(scale: Scale, damages: &[Damage]) -> Report {
    let mut report = Report::default();
    let mut random = fastrand::Rng::with_seed(11);
    for damage in damages {
        for _ in 0..scale.pick(1, 10) {
            report.tries += 1;
            let before = report.wrong.len();
            start_on(&mut report, *damage, &mut random).await;
            for wrong in &mut report.wrong[before..] {
                wrong.insert_str(0, &format!("{damage:?}: "));
            }
        }
    }
    report
}

async fn start_on(report: &mut Report, damage: Damage, random: &mut fastrand::Rng) {
    let (qstash, dir) = (QStash::start().await, tempfile::tempdir().unwrap());
    qstash.server.faults().set(Fault::Refuse).await;
    let process = Process::start(&dir, &qstash, None, &[]).await;
    post_bodies(&process).await;
    process.kill().await;
    if !damage.is_of_log() {
        empty_log(dir.path());
    }
    let endangered = inflict(damage, &dir.path().join(BUFFER), random);
    if endangered.is_empty() == damage.hits_events() {
        let count = endangered.len();
        report.wrong.push(format!("{count} events are endangered"));
    }

    qstash.server.faults().set(Fault::None).await;
    let started = Instant::now();
    let mut process = match Process::try_start(&dir, &qstash, None, &[]).await {
        Ok(process) => process,
        Err(log) => return report.wrong.push(format!("it did not start: {log}")),
    };
    let new = post_all(&process, 1000..1005).await;
    report.recovered_in(started.elapsed());
    if !new.iter().all(Answered::is_durable) {
        report.wrong.push(format!("new events: {new:?}"));
    }
    let mut safe: BTreeSet<usize> = (0..EVENTS).filter(|n| !endangered.contains(n)).collect();
    safe.extend(new.iter().map(|answer| answer.n));
    settle_with(report, &qstash, &safe, LONG).await;
    if !drains(&process).await {
        report.wrong.push("the backlog stays".to_owned());
    }
    // The end of a log that is garbage looks like a commit that was cut short.
    if !matches!(damage, Damage::LogEnd | Damage::Log) {
        if !is_set_aside(dir.path()) {
            let names = std::fs::read_dir(&dir).unwrap();
            let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
            report.wrong.push(format!("not set aside: {names:?}"));
        }
        if !process.log().to_lowercase().contains("damaged") {
            report.wrong.push("the log does not say it".to_owned());
        }
    }
    process.signal("TERM");
    if process.exit_code().await != Some(0) {
        report
            .wrong
            .push(format!("it did not stop: {}", process.log()));
    }
    let db = Connection::open(dir.path().join(BUFFER)).unwrap();
    let check = db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    if check.as_deref() != Ok("ok") {
        report.wrong.push(format!("the new buffer: {check:?}"));
    }
    let arrived = arrived(&qstash);
    for document in 0..10 {
        let of_document = arrived.iter().filter(|n| **n % 10 == document);
        if !of_document.is_sorted() {
            report
                .wrong
                .push(format!("document {document} is out of order"));
        }
    }
    let arrived: BTreeSet<usize> = arrived.into_iter().collect();
    let missing: Vec<usize> = endangered.difference(&arrived).copied().collect();
    // What was known of an event, or its bytes, lay on another page.
    let dead = "SELECT count(*) FROM event WHERE state = 2";
    let dead: u32 = db.query_row(dead, [], |row| row.get(0)).unwrap();
    if matches!(damage, Damage::EventPage | Damage::PayloadPage) && dead as usize != missing.len() {
        let missing = missing.len();
        report.wrong.push(format!(
            "{missing} are missing, {dead} of them dead letters"
        ));
    }
    if damage == Damage::LogPage && missing.len() > MOST_ON_LOG_PAGE {
        report.lost += missing.len();
    }
    println!(
        "{damage:?}: {} events on damaged pages, {} of them missing: {}",
        endangered.len(),
        missing.len(),
        ranges(&missing)
    );
}

/// Two kilobytes each.
async fn post_bodies(process: &Process) {
    let mut client = Client::connect(process.webhook).await;
    for n in 0..EVENTS {
        let mut body = update(n);
        body.pop();
        body.push_str(&format!(r#","text":"{}"}}"#, "x".repeat(2000)));
        assert_eq!(client.post("/webhook", &body).await.status, 202);
    }
}

/// Damages the files; the events whose bytes it hit.
fn inflict(damage: Damage, path: &Path, random: &mut fastrand::Rng) -> BTreeSet<usize> {
    if damage.is_of_log() {
        return inflict_on_log(damage, path, random);
    }
    let roots = roots(path);
    let mut file = std::fs::read(path).unwrap();
    let size = page_size(&file);
    let (events, payloads) = (rows(&file, roots["event"]), rows(&file, roots["payload"]));
    let middle = |rows: &BTreeMap<i64, Vec<Page>>| rows.values().nth(rows.len() / 2).unwrap()[0];
    // What the damage makes unreadable.
    let is_hit: Box<dyn Fn(Page) -> bool> = match damage {
        Damage::Header => {
            random.fill(&mut file[..100]);
            Box::new(|_| false)
        }
        Damage::Half => {
            file.truncate(file.len() / 2);
            let left = file.len() / size;
            Box::new(move |page| page as usize > left)
        }
        _ => {
            let page = match damage {
                Damage::EventPage => middle(&events),
                Damage::PayloadPage => middle(&payloads),
                _ => roots["event_pending"],
            };
            random.fill(&mut file[(page as usize - 1) * size..][..size]);
            Box::new(move |hit| hit == page)
        }
    };
    std::fs::write(path, &file).unwrap();
    let pages = |seq: i64| events[&seq].iter().chain(&payloads[&seq]);
    // The first event has seq 1 and number 0.
    let hit = (1..)
        .take(EVENTS)
        .filter(|seq| pages(*seq).any(|page| is_hit(*page)));
    hit.map(|seq| usize::try_from(seq - 1).unwrap()).collect()
}

/// What SQLite itself finds in the rest of the log is not endangered.
fn inflict_on_log(damage: Damage, path: &Path, random: &mut fastrand::Rng) -> BTreeSet<usize> {
    let log_path = suffixed(path, "-wal");
    let mut log = std::fs::read(&log_path).unwrap();
    let end = end_of_log(&log);
    let middle = end / 2;
    let damaged = match damage {
        Damage::Log => 0..log.len(),
        Damage::LogEnd => middle..log.len(),
        _ => {
            // Any of them, that of the log's header too, but those of the last few commits.
            let page = random.usize(0..end * 9 / 10 / 8192);
            page * 8192..(page + 1) * 8192
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join(BUFFER);
    std::fs::copy(path, &copy).unwrap();
    std::fs::write(suffixed(&copy, "-wal"), &log[..damaged.start]).unwrap();
    let db = Connection::open(&copy).unwrap();
    let safe = db.query_row("SELECT count(*) FROM event", [], |row| row.get::<_, u32>(0));
    random.fill(&mut log[damaged]);
    std::fs::write(&log_path, &log).unwrap();
    // Without its log there may be no table yet.
    (safe.unwrap_or(0) as usize..EVENTS).collect()
}

/// Where the frames end that are of the log's last beginning: they have the salt of its header.
/// <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>
pub(super) fn end_of_log(log: &[u8]) -> usize {
    let page_size = u32::from_be_bytes(log[8..12].try_into().unwrap());
    let frames = log[32..].chunks_exact(24 + page_size as usize);
    let valid = frames.take_while(|frame| frame[8..16] == log[16..24]);
    32 + valid.map(<[u8]>::len).sum::<usize>()
}

fn roots(path: &Path) -> BTreeMap<String, Page> {
    let db = Connection::open(path).unwrap();
    let mut statement = db
        .prepare("SELECT name, rootpage FROM sqlite_schema")
        .unwrap();
    let roots = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    roots.unwrap().map(Result::unwrap).collect()
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// Whether there is a file such as `strapi-qstash.db.damaged-20261125T192233Z`.
fn is_set_aside(folder: &Path) -> bool {
    let names = std::fs::read_dir(folder).unwrap();
    let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.any(|name| {
        let time = name.strip_prefix(&format!("{BUFFER}.damaged-"));
        time.is_some_and(|time| {
            let shape: String = time
                .chars()
                .map(|c| if c.is_ascii_digit() { '0' } else { c })
                .collect();
            shape == "00000000T000000Z"
        })
    })
}

/// A file named by mistake: it stays as it is, and the sidecar says what to do.
pub(crate) async fn foreign(_: Scale) -> Report {
    let mut report = Report::default();
    let (qstash, dir) = (QStash::start().await, tempfile::tempdir().unwrap());
    let text = dir.path().join("notes.txt");
    std::fs::write(&text, "Not a database, but some text.\n".repeat(500)).unwrap();
    let short = dir.path().join("short.txt");
    std::fs::write(&short, "hello\n").unwrap();
    let other = dir.path().join("data.db");
    let db = Connection::open(&other).unwrap();
    db.execute_batch("CREATE TABLE event (a); INSERT INTO event VALUES (1)")
        .unwrap();
    drop(db);
    for path in [&text, &short, &other] {
        report.tries += 1;
        let before = std::fs::read(path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let flags = [
            "--listen",
            "127.0.0.1:0",
            "--buffer",
            path.to_str().unwrap(),
        ];
        let mut command = Process::command(&dir, &qstash, &flags);
        let output = tokio::time::timeout(LONG, command.kill_on_drop(true).output()).await;
        match output {
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                if output.status.code() != Some(1) || !said.contains(name) {
                    report
                        .wrong
                        .push(format!("{name}: {:?} {said}", output.status));
                }
            }
            Ok(Err(error)) => report.wrong.push(error.to_string()),
            Err(_) => report.wrong.push(format!("{name}: the sidecar runs")),
        }
        if std::fs::read(path).ok() != Some(before) {
            report.wrong.push(format!("{name} was changed"));
        }
        let names = std::fs::read_dir(&dir).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let others: Vec<String> = names
            .filter(|other| other.starts_with(name) && other != name && !other.ends_with(".lock"))
            .collect();
        if !others.is_empty() {
            report.wrong.push(format!("beside {name}: {others:?}"));
        }
    }
    // With a buffer of its own all is well.
    let process = Process::start(&dir, &qstash, None, &[]).await;
    let answers = post_all(&process, 0..10).await;
    settle(&mut report, &qstash, &answers).await;
    report
}
