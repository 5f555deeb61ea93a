//! The real app against the QStash development server, over real sockets.
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

/// Every answer of the inbound table, and every captured webhook.
mod accept;
/// Health, metrics, status.
mod admin;
/// The command line: mistakes, help, the sample of `dev`.
mod cli;
/// Process death with answers lost. Kills at random moments are in `tests/faults`.
mod crash;
/// What goes to QStash: headers, options, batches, queues, held destinations.
mod deliver;
/// `dev` and its page. In a browser: `tests/real/page`.
mod dev;
/// What the README says is so.
mod docs;
/// The way down, under load.
mod drain;
/// `events`: where is my webhook?
mod events;
/// The buffer at its limit.
mod full;
#[path = "../harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "shared with the other tests, which use the rest"
)]
mod harness;
/// The metrics, and the law that they keep.
mod metrics;
/// `check` and `topics`.
mod operate;
/// QStash away, refusing or limiting.
mod outage;
/// Restarts while events come: by successor, by supervisor, by socket activation.
mod restart;
/// No secret gets out, anywhere.
mod secrets;
/// What Upstash's SDKs say about signatures, and what we say.
mod signature;
/// Strapi's Trigger button.
mod trigger;
/// The receiving end: `verify` before an API.
mod verify;
