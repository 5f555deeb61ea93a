//! Tries to break the one promise: that an event which was answered 202 is delivered.
//!
//! `cargo test` runs every fault for a short while. The long form prints a table:
//!
//! ```sh
//! STRAPI_QSTASH_FAULTS=long cargo test --release --test faults
//! ```
//!
//! A word after `--` picks faults by name, such as `-- kill`. Each fault is a function that
//! takes a [`Scale`] and gives a [`Report`]; it fails when an event is lost or is there twice.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a test has no sidecar whose tracker could own its tasks"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "figures are for whoever reads the test's output"
)]

/// A buffer that is damaged when the sidecar starts.
mod damage;
mod disk;
mod errors;
/// A disk that forgets what was not synced, and fails where it is told to.
mod forgetful;
mod full;
#[path = "../harness/mod.rs"]
#[allow(dead_code, reason = "shared with the other tests, which use the rest")]
mod harness;
/// Process death: the sidecar killed at any moment.
mod kill;
mod load;
mod pages;
mod power;
mod report;
mod taken;

use std::sync::{Arc, Mutex};

use libtest_mimic::{Arguments, Trial};

use report::{Report, Scale, Table};

/// A fault by its name, as the table shows it.
type Fault = (&'static str, fn(Scale) -> Report);

const FAULTS: &[Fault] = &[
    ("kill -9 under mixed load", kill::under_mixed_load),
    ("power loss", |scale| run(power::loss(scale))),
    ("power loss after fsyncs that failed", |scale| {
        run(power::after_failed_syncs(scale))
    }),
    ("EIO on write", |scale| run(errors::on_write(scale))),
    ("EIO on fsync", |scale| run(errors::on_sync(scale))),
    ("EIO on read", |scale| run(errors::on_read(scale))),
    ("a bad sector under one event", |scale| {
        run(errors::bad_sector(scale))
    }),
    ("read-only disk", |scale| run(errors::read_only(scale))),
    ("read-only disk at the start", |scale| {
        run(errors::read_only_at_start(scale))
    }),
    ("full disk at the start", |scale| run(full::at_start(scale))),
    ("full disk at the start, no reserve", |scale| {
        run(full::without_reserve(scale))
    }),
    ("full disk under load", |scale| run(full::under_load(scale))),
    ("buffer deleted", |scale| run(taken::deleted(scale))),
    ("buffer replaced by an older copy", |scale| {
        run(taken::replaced(scale))
    }),
    ("-wal deleted", |scale| run(taken::log_deleted(scale))),
    ("buffer taken away, kill -9 after the next 202", |scale| {
        run(taken::killed_at_next_answer(scale))
    }),
    ("damaged: header", |scale| run(damage::header(scale))),
    ("damaged: a page of events or of an index", |scale| {
        run(damage::event_page(scale))
    }),
    ("damaged: a page of bodies", |scale| {
        run(damage::payload_page(scale))
    }),
    ("damaged: half of the file", |scale| {
        run(damage::half(scale))
    }),
    ("damaged: -wal", |scale| run(damage::log(scale))),
    ("a file of another program", |scale| {
        run(damage::foreign(scale))
    }),
];

fn run(fault: impl Future<Output = Report>) -> Report {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(fault)
}

fn main() -> std::process::ExitCode {
    let scale = Scale::from_environment();
    let mut arguments = Arguments::from_args();
    if scale == Scale::Long {
        // One after the other, so that no fault's load slows down another's recovery.
        arguments.test_threads = Some(1);
    }
    let table = Arc::new(Mutex::new(Table::default()));
    let trials = FAULTS.iter().map(|(name, run)| {
        let table = Arc::clone(&table);
        Trial::test(*name, move || {
            let report = run(scale);
            println!("{name}: {report}");
            table.lock().unwrap().add(name, &report);
            report.verdict().map_err(Into::into)
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let table = table.lock().unwrap();
    if !arguments.list && !table.is_empty() {
        println!("{table}");
    }
    conclusion.exit_code()
}
