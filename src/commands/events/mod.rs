//! `events`: where is my webhook? Reads the buffer from beside, whether a sidecar runs or not;
//! changes go through the running sidecar, or, where none runs, into the file.

mod change;
mod export;
mod list;
mod show;

use anyhow::{Context, bail};

use self::change::Verb;
use crate::buffer::{EventState, Filter, ListFrom, Listed, Observer, Seq};
use crate::cli::{EventsCommand, FilterArgs, ServeArgs};
use crate::config::{self, Mistakes};
use crate::event::EventId;
use crate::when;

/// Events read at a time.
const PAGE: usize = 500;

/// Runs one of its commands.
pub async fn run(command: &EventsCommand) -> anyhow::Result<()> {
    match command {
        EventsCommand::List(args) => list::run(args).await,
        EventsCommand::Show(args) => show::run(args).await,
        EventsCommand::Replay(args) => change::run(args, Verb::Replay).await,
        EventsCommand::Discard(args) => change::run(args, Verb::Discard).await,
        EventsCommand::Export(args) => export::run(args),
    }
}

fn observe(args: &ServeArgs) -> anyhow::Result<Observer> {
    Ok(Observer::open(&config::buffer_path(args))?)
}

fn filter(args: &FilterArgs) -> Result<Filter, Mistakes> {
    let mut mistakes = Mistakes::default();
    let state = args.state.as_deref();
    let state = state.and_then(|text| mistakes.check("--state", text.parse::<EventState>()));
    let since = args.since.as_deref();
    let since = since.and_then(|text| mistakes.check("--since", when::since(text)));
    let filter = Filter {
        state,
        kind: args.event.clone(),
        uid: args.uid.clone(),
        document: args.document.clone(),
        since,
    };
    if mistakes.is_empty() {
        Ok(filter)
    } else {
        Err(mistakes)
    }
}

/// The one event whose id begins so.
fn find(observer: &Observer, prefix: &str) -> anyhow::Result<Listed> {
    let range = EventId::range(prefix.trim().trim_end_matches('…'));
    let range =
        range.with_context(|| format!("{prefix:?} is not the beginning of an event's id"))?;
    let mut found = observer.between(range, 3)?;
    match (found.pop(), found.len()) {
        (Some(event), 0) => Ok(event),
        (None, _) => bail!(
            "there is no event {prefix}: it was never here, was discarded, or is older than delivered events are kept"
        ),
        (Some(_), _) => bail!("several events begin with {prefix}: write more of the id"),
    }
}

/// Those that are named, or else all that pass the filter, in the order of arrival.
fn select(observer: &Observer, ids: &[String], args: &FilterArgs) -> anyhow::Result<Vec<Listed>> {
    let filter = filter(args)?;
    if !ids.is_empty() {
        let mut events = Vec::new();
        for id in ids {
            events.push(find(observer, id)?);
        }
        events.sort_by_key(|event| event.seq);
        events.dedup_by_key(|event| event.seq);
        return Ok(events);
    }
    if args.is_empty() {
        bail!("say which events: an id, or a filter such as --state dead or --since 1h");
    }
    let (mut events, mut after) = (Vec::new(), Seq::START);
    loop {
        let page = observer.list(&filter, ListFrom::Oldest(after), PAGE)?;
        events.extend(page.events);
        match page.next {
            Some(next) => after = next,
            None => return Ok(events),
        }
    }
}

/// `3 events`, `1 event`.
fn count(number: usize) -> String {
    match number {
        1 => "1 event".to_owned(),
        number => format!("{number} events"),
    }
}
