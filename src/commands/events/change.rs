//! `events replay` and `events discard`: by the running sidecar, or, where none runs, in the file.

use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use super::{count, observe, select};
use crate::buffer::{
    Address, Buffer, Change, EventState, Listed, LockError, OpenError, Settings, StoreError,
};
use crate::cli::ChangeArgs;
use crate::commands::running::Running;
use crate::commands::terminal::{Progress, confirm, hint, say};
use crate::config;
use crate::router::Routing;

/// Events in one commit: a few milliseconds, which is all that webhooks wait meanwhile.
const AT_ONCE: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Replay,
    Discard,
}

impl Verb {
    fn path(self) -> &'static str {
        match self {
            Self::Replay => "/api/events/replay",
            Self::Discard => "/api/events/discard",
        }
    }

    /// As a command, as what goes on, and as what was done.
    fn words(self) -> [&'static str; 3] {
        match self {
            Self::Replay => ["Replay", "Replaying", "Replayed"],
            Self::Discard => ["Discard", "Discarding", "Discarded"],
        }
    }
}

pub(super) async fn run(args: &ChangeArgs, verb: Verb) -> anyhow::Result<()> {
    let observer = observe(&args.serve)?;
    let mut events = select(&observer, &args.ids, &args.filter)?;
    let selected = events.len();
    if verb == Verb::Replay {
        events.retain(|event| event.state != EventState::Pending);
    }
    let [command, doing, done] = verb.words();
    if events.is_empty() {
        let why = match selected {
            0 => "no event is meant by that",
            _ => "all of them are pending: they go out by themselves",
        };
        anyhow::bail!("nothing to do: {why}");
    }
    // What one names is what one means; but what is discarded does not come back.
    if !args.yes && (verb == Verb::Discard || args.ids.is_empty()) {
        confirm(&format!("{command} {}?", counted(&events)))?;
    }
    let mut progress = Progress::new(doing, events.len());
    let mut changed = 0;
    let owner = Owner::find(args).await?;
    for events in events.chunks(AT_ONCE) {
        changed += owner.change(args, verb, events).await?;
        progress.add(events.len());
    }
    let is_running = matches!(owner, Owner::Sidecar(_));
    owner.close().await;
    progress.end();
    let total = events.len() as u64;
    if args.json {
        say(json!({ "changed": changed, "unchanged": total - changed }).to_string())?;
    } else {
        say(format!(
            "{done} {}.",
            count(usize::try_from(changed).unwrap_or(usize::MAX))
        ))?;
        if changed < total {
            hint(format!(
                "{} not: pending again already, gone meanwhile, or without a route or bytes.",
                total - changed
            ));
        }
        if verb == Verb::Replay && changed > 0 && !is_running {
            hint("No sidecar runs on this buffer: they go out when it is started.");
        }
    }
    Ok(())
}

/// `12 events (10 dead, 2 delivered)`.
fn counted(events: &[Listed]) -> String {
    let states = EventState::ALL.into_iter().filter_map(|state| {
        let of_state = events.iter().filter(|event| event.state == state).count();
        (of_state > 0).then(|| format!("{of_state} {}", state.as_str()))
    });
    let states: Vec<String> = states.collect();
    format!("{} ({})", count(events.len()), states.join(", "))
}

/// Whoever may change the buffer.
enum Owner {
    /// The sidecar that runs on it.
    Sidecar(Running),
    /// This process, for as long as it holds the lock.
    File(Buffer),
}

impl Owner {
    async fn find(args: &ChangeArgs) -> anyhow::Result<Self> {
        let settings = Settings {
            // Only what was asked for may go.
            keep_delivered: Duration::from_secs(u64::from(u32::MAX)),
            ..config::buffer(&args.serve)?
        };
        match Buffer::open(&settings) {
            Ok(buffer) => Ok(Self::File(buffer)),
            Err(OpenError::Lock(LockError::Held { .. })) => Ok(Self::Sidecar(Running::new(
                args.admin.as_deref(),
                &args.serve,
            )?)),
            Err(error) => Err(error.into()),
        }
    }

    /// How many were changed.
    async fn change(
        &self,
        args: &ChangeArgs,
        verb: Verb,
        events: &[Listed],
    ) -> anyhow::Result<u64> {
        match self {
            Self::Sidecar(running) => {
                let ids: Vec<String> = events.iter().map(|event| event.id.to_string()).collect();
                let answer = running.post(verb.path(), &json!({ "ids": ids })).await?;
                let number = |name: &str| answer.get(name).and_then(|value| value.as_u64());
                if number("known") == Some(0) {
                    anyhow::bail!(
                        "the sidecar at {} knows none of these events, so it uses another buffer than {}; name the right one with --admin",
                        running.address(),
                        config::buffer_path(&args.serve).display()
                    );
                }
                number("changed").context("the sidecar's answer has no number")
            }
            Self::File(buffer) => {
                let change = match verb {
                    Verb::Discard => {
                        Change::Discard(events.iter().map(|event| event.seq).collect())
                    }
                    Verb::Replay => Change::Replay(with_addresses(args, events)?),
                };
                buffer.change(change).await.map_err(|error| match error {
                    crate::buffer::AppendError::Commit(source) => match &*source {
                        StoreError::DiskFull => {
                            anyhow::anyhow!("the disk is full: make room, then try again")
                        }
                        _ => anyhow::Error::from(source).context("could not change the buffer"),
                    },
                    error => error.into(),
                })
            }
        }
    }

    async fn close(self) {
        if let Self::File(buffer) = self {
            buffer.close().await;
        }
    }
}

/// A dead letter that no route took goes where the routes that are given now say.
fn with_addresses(
    args: &ChangeArgs,
    events: &[Listed],
) -> anyhow::Result<Vec<(crate::buffer::Seq, Option<Address>)>> {
    let router = config::routing(&args.serve)?;
    let addressed = events.iter().map(|event| {
        let address = match (&event.destination, router.route(&event.facts)) {
            (None, Routing::To(destination)) => Some((&destination).into()),
            _ => None,
        };
        (event.seq, address)
    });
    Ok(addressed.collect())
}
