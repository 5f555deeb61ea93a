//! strapi-qstash: a sidecar beside Strapi. It takes Strapi's webhooks on localhost, makes each
//! one durable on disk, and publishes it to Upstash QStash, which delivers it with retries.
//!
//! Strapi sends a webhook once: 10 seconds, no retry, no log line. QStash retries, but only
//! what reaches it. Between the two, **an event that Strapi handed over is never lost,
//! whatever QStash, the network, the disk or this process does next.**
//!
//! # An event's way
//!
//! ```text
//! Strapi ──POST──▶ inbound ──▶ router ──▶ buffer (one fdatasync for all that wait) ──▶ 202
//!                                           │
//!                   QStash ◀── qstash::Client ◀── forwarder ◀──┘    outcome ──▶ buffer
//! ```
//!
//! 1. [`inbound`] authorises, reads the body, and takes the few fields that it needs from it
//!    ([`event`]). The body is never written anew: QStash gets Strapi's bytes.
//! 2. [`router`] decides where the event goes: the first rule that matches, else the default.
//!    No rule: a dead letter, never a refusal.
//! 3. [`buffer`] commits it to SQLite. While one commit waits for the disk, the next gathers;
//!    the answer goes out after the commit. This is the line that the promise stands on.
//! 4. [`forwarder`] claims what is pending in order of arrival and publishes it: one alone as
//!    itself, a backlog in batches. Events of one document go out in the order received.
//! 5. [`qstash`] says what an answer means ([`qstash::Outcome`]), and the outcome is committed.
//!    An event leaves the queue by an outcome only: delivered, or a dead letter with a reason.
//!
//! # What happens when
//!
//! | | where the event is | what ends it |
//! |---|---|---|
//! | QStash unreachable, or answering nonsense | pending on disk | one trial at a time, with growing waits up to a minute |
//! | the token refused | pending | the same, and a changed token file at once |
//! | the day's quota used up, or a burst limit | pending | the instant that QStash names |
//! | the URL group missing | pending, others flow | one trial a minute |
//! | the message refused, or too large | dead letter with QStash's words | a person |
//! | the answer lost | pending | a repeat, which QStash drops by its deduplication id |
//! | the process killed, the power gone | pending | the next start |
//! | the disk full, the buffer at its limit | in the request | it is published before the answer; only when that fails too, 503. What waits drains, by a reserve that is given up |
//! | the disk failing (EIO), the buffer read-only | those that are stored: on disk; new ones: in the request | the buffer is opened again until it works; at a start too |
//! | the buffer's file damaged, a page of its log bad | what can be read is carried over into a new file | the damaged one is put aside, with the time in its name, for a person |
//! | the buffer's file deleted or replaced in use | in the file that is still open | it is written anew before the next answer |
//!
//! # Layers
//!
//! Imports go down only:
//! `main` → [`commands`], [`cli`] → [`sidecar`] (builds all parts, owns all tasks, knows the
//! order in which they stop) → [`config`] → [`inbound`], [`admin`], [`forwarder`] → [`buffer`],
//! [`qstash`], [`router`] → [`destination`], [`event`], `describe`, `page`, `http`, [`sockets`],
//! [`metrics`], [`clock`], [`secret`].
//! [`inbound`] does not know the forwarder: the buffer is all they share. [`receiver`] (the other
//! end, for `verify`) shares with it how bodies are read. [`dev_server`] (a
//! QStash on this machine, for `dev` and for the tests) is used by nothing else.
//!
//! # For receivers
//!
//! [`signature`] checks that a delivery is QStash's; `examples/receiver` is an API that does.
//! [`receiver`] is a program of its own (`verify`) that stands before an API and does it for it.

pub mod admin;
pub mod buffer;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
mod describe;
pub mod destination;
pub mod dev_server;
pub mod event;
pub mod forwarder;
mod http;
pub mod inbound;
pub mod metrics;
mod page;
pub mod qstash;
pub mod receiver;
pub mod router;
pub mod secret;
pub mod sidecar;
pub mod sockets;
mod spans;
mod when;

pub use self::qstash::signature;
