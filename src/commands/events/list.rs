//! `events list`: what came, and where it is now.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::{PAGE, filter, observe};
use crate::buffer::{EventState, Filter, ListFrom, Listed, Observer, Seq};
use crate::cli::ListArgs;
use crate::clock::{self, Timestamp};
use crate::commands::table::{Column, Layout};
use crate::commands::terminal::{hint, say, width};
use crate::describe;

/// How often `--follow` looks.
const LOOK: Duration = Duration::from_millis(500);

/// Pending events whose end `--follow` waits for.
const MOST_WAITED_FOR: usize = 500;

const COLUMNS: [Column; 9] = [
    // Down to a quarter of a microsecond of the time that it begins with.
    column("ID", 19, 9),
    column("UTC", 0, 5),
    column("STATE", 0, 9),
    column("EVENT", 12, 7),
    column("UID", 10, 4),
    column("DOCUMENT", 8, 1),
    column("TRIES", 0, 2),
    column("TO", 8, 3),
    column("WHY", 12, 6),
];

const fn column(title: &'static str, shortest: usize, rank: u8) -> Column {
    Column {
        title,
        shortest,
        rank,
    }
}

pub(super) async fn run(args: &ListArgs) -> anyhow::Result<()> {
    let (filter, observer) = (filter(&args.filter)?, observe(&args.serve)?);
    let last = newest(&observer, &Filter::default(), 1)?.pop();
    let mut events = newest(&observer, &filter, args.limit)?;
    if args.follow {
        events.reverse();
    }
    let today = clock::now();
    let rows: Vec<Vec<String>> = events.iter().map(|event| row(event, today)).collect();
    let layout = Layout::new(&COLUMNS, &rows, args.width.or_else(width));
    if !args.json && (args.follow || !rows.is_empty()) {
        say(layout.header())?;
    }
    for (event, row) in events.iter().zip(&rows) {
        print(event, row, &layout, args.json)?;
    }
    if args.follow {
        let last = events
            .last()
            .or(last.as_ref())
            .map_or(Seq::START, |event| event.seq);
        return follow(&observer, &filter, last, &layout, args.json).await;
    }
    if !args.json {
        let tally = observer.tally()?;
        let shown = match events.len() {
            0 => " No such event.",
            shown if shown == args.limit => " There may be more: --limit.",
            _ => "",
        };
        hint(format!(
            "In the buffer: {} pending, {} delivered, {} dead.{shown}",
            tally.pending, tally.delivered, tally.dead
        ));
    }
    Ok(())
}

fn newest(observer: &Observer, filter: &Filter, limit: usize) -> anyhow::Result<Vec<Listed>> {
    let (mut events, mut before) = (Vec::new(), None);
    while events.len() < limit {
        let room = (limit - events.len()).min(PAGE);
        let page = observer.list(filter, ListFrom::Newest(before), room)?;
        events.extend(page.events);
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    Ok(events)
}

/// What comes, and what becomes of what was pending.
async fn follow(
    observer: &Observer,
    filter: &Filter,
    mut last: Seq,
    layout: &Layout,
    json: bool,
) -> anyhow::Result<()> {
    // The state of an event may be what lets it pass, so all are followed and then filtered.
    let all = Filter {
        state: None,
        ..filter.clone()
    };
    let pending = Filter {
        state: Some(EventState::Pending),
        ..filter.clone()
    };
    let mut waited_for: BTreeMap<Seq, Listed> = newest(observer, &pending, MOST_WAITED_FOR)?
        .into_iter()
        .filter(|event| event.seq <= last)
        .map(|event| (event.seq, event))
        .collect();
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        ticks.tick().await;
        let mut changed = Vec::new();
        let seqs: Vec<Seq> = waited_for.keys().copied().collect();
        for event in observer.events(&seqs)? {
            let before = waited_for.insert(event.seq, event.clone());
            let is_news = |before: &Listed| {
                (before.state, before.attempts, &before.reason)
                    != (event.state, event.attempts, &event.reason)
            };
            if before.as_ref().is_none_or(is_news) {
                changed.push(event);
            }
        }
        loop {
            let page = observer.list(&all, ListFrom::Oldest(last), PAGE)?;
            last = page.events.last().map_or(last, |event| event.seq);
            for event in page.events {
                waited_for.insert(event.seq, event.clone());
                changed.push(event);
            }
            match page.next {
                Some(next) => last = next.max(last),
                None => break,
            }
        }
        waited_for.retain(|_, event| event.state == EventState::Pending);
        while waited_for.len() > MOST_WAITED_FOR {
            waited_for.pop_first();
        }
        let today = clock::now();
        for event in changed {
            if filter.state.is_none_or(|state| state == event.state) {
                print(&event, &row(&event, today), layout, json)?;
            }
        }
    }
}

fn print(event: &Listed, row: &[String], layout: &Layout, json: bool) -> std::io::Result<()> {
    match json {
        true => say(Value::Object(describe::event(event)).to_string()),
        false => say(layout.line(row)),
    }
}

fn row(event: &Listed, today: Timestamp) -> Vec<String> {
    let facts = &event.facts;
    let uid = facts.uid.as_ref().or(facts.model.as_ref());
    let document = facts.document.as_ref();
    let why = match event.state {
        EventState::Delivered => "",
        _ => event.reason.as_deref().unwrap_or_default(),
    };
    // Nearly all of them begin so, and there is little room.
    let why = why.strip_prefix("QStash answered ").unwrap_or(why);
    vec![
        event.id.to_string(),
        time(event.received_at, today),
        event.state.as_str().to_owned(),
        facts.kind.clone(),
        uid.cloned().unwrap_or_default(),
        document.map_or_else(String::new, |document| document.id.clone()),
        event.attempts.to_string(),
        event.destination.clone().unwrap_or_default(),
        why.to_owned(),
    ]
}

/// Without the day where that is today.
fn time(at: Timestamp, today: Timestamp) -> String {
    let (at, today) = (at.to_string(), today.to_string());
    let part = |range: std::ops::Range<usize>| at.get(range).unwrap_or_default();
    match at.get(..10) == today.get(..10) {
        true => part(11..19).to_owned(),
        false => format!("{} {}", part(0..10), part(11..19)),
    }
}
