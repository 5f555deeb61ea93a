//! What the sidecar costs, beside what is possible on the same machine in the same minute.
//!
//! ```sh
//! cargo bench --bench sidecar                        # all lines, about five minutes
//! cargo bench --bench sidecar -- --quick             # a look, in one
//! cargo bench --bench sidecar -- ack drain --events 1000000
//! STRAPI_QSTASH_BIN=$(packaging/build-static) cargo bench --bench sidecar  # the binary that ships
//! ```
//!
//! The release binary runs as it runs for its users, publishing switched on, with 2 KB events
//! of different documents. Times alone say more of the machine than of the program, so each
//! line is a ratio to something bare that runs in the same run under the same client, or a
//! bound that any machine should keep:
//!
//! - the bare server: hyper with the sidecar's settings, that reads the body and answers 202;
//! - the bare log: 2 KB appended to a file and one fdatasync, by one thread in a loop;
//! - the bare QStash: a hyper server that takes publishes and batches and answers as QStash
//!   does. It is what the sidecar publishes to, and what Strapi would post to without one.
//!
//! Each server is a process of its own; the client is one thread. Everything is on loopback,
//! and ends with the run.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a bench may panic"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a bench has no sidecar whose tracker could own its tasks"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "figures are for whoever runs it"
)]

/// The bare server and the bare log.
mod bare;
/// The client: connections that post one event after the other.
mod client;
#[path = "../events/mod.rs"]
mod events;
/// What is measured.
mod lines;
/// The processes that are measured, and what the kernel says of them.
mod process;
/// The bare QStash.
mod sink;
/// The result.
mod table;

use clap::{Parser, ValueEnum};
use tokio::runtime::Builder;

use crate::lines::Bench;

/// Measures the release binary beside what is bare.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure [default: all]
    lines: Vec<Line>,
    /// Events that wait at the start of a drain [default: 200000; with --quick 20000]
    #[arg(long)]
    events: Option<u64>,
    /// Shorter, for a look: the bounds need the long form
    #[arg(long)]
    quick: bool,
    /// Be one of the bare servers
    #[arg(long, hide = true)]
    role: Option<Role>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Line {
    /// The time of an answer, at Strapi's five connections and at one
    Ack,
    /// Requests a second at 64 connections
    Connections,
    /// Draining a backlog: speed, memory, new events meanwhile, and starting with it
    Drain,
    /// Memory and CPU without events
    Idle,
    /// The size of the binary
    Size,
    /// A bulk publish as Strapi sends it, with and without the sidecar
    Strapi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    Server,
    Sink,
}

fn main() {
    let args = Args::parse();
    // The client and the sink are one thread each, so that they leave the other core to what
    // they measure; the bare server has the sidecar's runtime.
    let mut runtime = match args.role {
        Some(Role::Server) => Builder::new_multi_thread(),
        Some(Role::Sink) | None => Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build().unwrap();
    match args.role {
        Some(Role::Server) => runtime.block_on(bare::serve()),
        Some(Role::Sink) => runtime.block_on(sink::serve()),
        None => {
            let table = runtime.block_on(Bench::new(args.events, args.quick).run(&args.lines));
            println!("\n{table}");
        }
    }
}
