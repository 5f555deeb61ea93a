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

/// QStash's answers: every status, and everything that is no answer.
mod answers;
/// The disk: full, failing, read-only, without power; the buffer damaged or taken away.
mod disk;
#[path = "../harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "shared with the other tests, which use the rest"
)]
mod harness;
/// The way in: senders that are slow, many, endless, or no HTTP at all.
mod inbound;
/// Process death: the sidecar killed at any moment.
mod kill;
mod load;
/// Memory: many events, many connections, large bodies.
mod memory;
/// The buffer against a simple model of it.
mod model;
/// The way to QStash fails: proxies, TLS, names.
mod network;
mod proxy;
mod report;
mod shim;
mod stand;
mod stored;
/// The wall clock jumps.
mod time;
mod usage;
mod wire;

use std::sync::{Arc, Mutex};

use libtest_mimic::{Arguments, Trial};

use report::{Report, Scale, Table};

/// A fault by its name, as the table shows it.
type Fault = (&'static str, fn(Scale) -> Report);

/// Runs a fault on threads of its own.
fn block_on<F: Future>(fault: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(fault)
}

const FAULTS: &[Fault] = &[
    ("kill -9 under mixed load", kill::under_mixed_load),
    ("random operations on the buffer", model::random_operations),
    ("connections refused", network::refused),
    ("reset in the request", network::reset_in_the_request),
    ("reset in the answer", network::reset_in_the_answer),
    ("two of three requests reset", network::most_requests_reset),
    ("no answer", network::no_answer),
    ("answers late by seconds", network::late_answers),
    (
        "answers at one byte a second",
        network::answers_one_byte_a_second,
    ),
    ("requests sent twice", network::requests_sent_twice),
    ("QStash there and away every second", network::flapping),
    ("TLS handshake cut", network::handshake_cut),
    ("certificate that does not verify", network::untrusted),
    ("name that does not resolve", network::unknown_name),
    ("every status", answers::statuses),
    ("malformed answers", answers::malformed),
    ("redirects", answers::redirects),
];

/// Those that look into `/proc`, or preload a library. So do those of the disk, which mount one.
const LINUX_FAULTS: &[Fault] = &[
    ("resolver away for a while", network::resolver_away),
    ("clock jumps", time::clock_jumps),
    ("limits told to a wrong clock", time::wrong_clock_and_limits),
    (
        "clock jumps while a group is missing",
        time::held_destination,
    ),
    ("malformed requests", inbound::malformed),
    ("hang-ups at every byte", inbound::hang_ups),
    ("slow senders", inbound::slow_senders),
    ("bodies of 2 GB", inbound::endless_bodies),
    ("10,000 idle connections", memory::idle_connections),
    ("a backlog of a million events", memory::large_backlog),
    ("bodies of 30 MB at once", memory::large_bodies),
];

fn main() -> std::process::ExitCode {
    let scale = Scale::from_environment();
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(match scale {
        // Most of the time they wait.
        Scale::Short => arguments.test_threads.unwrap_or(6),
        // One after the other, so that no fault's load slows down another's recovery.
        Scale::Long => 1,
    });
    let table = Arc::new(Mutex::new(Table::default()));
    let trial = |(name, run): &Fault, is_possible: bool| {
        let (name, run, table) = (*name, *run, Arc::clone(&table));
        Trial::test(name, move || {
            let report = run(scale);
            println!("{name}: {report}");
            table.lock().unwrap().add(name, &report);
            report.verdict().map_err(Into::into)
        })
        .with_ignored_flag(!is_possible)
    };
    let is_linux = cfg!(target_os = "linux");
    let anywhere = FAULTS.iter().map(|fault| trial(fault, true));
    let on_linux = LINUX_FAULTS
        .iter()
        .chain(disk::FAULTS)
        .map(|fault| trial(fault, is_linux));
    let conclusion = libtest_mimic::run(&arguments, anywhere.chain(on_linux).collect());
    let table = table.lock().unwrap();
    if !arguments.list && !table.is_empty() {
        println!("{table}");
    }
    conclusion.exit_code()
}
