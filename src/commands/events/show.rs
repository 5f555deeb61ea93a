//! `events show`: the whole story of one event, here and at QStash.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{find, observe};
use crate::buffer::{EventState, Listed, Step, StepKind};
use crate::cli::ShowArgs;
use crate::clock::{self, Timestamp};
use crate::commands::running::Running;
use crate::commands::terminal::{say, say_paragraph};
use crate::config;
use crate::describe;
use crate::qstash::{Account, AccountError, LogEntry};
use crate::when;

/// Behind a time.
const INDENT: usize = 26;

/// Messages whose log is asked for: one for each endpoint of a group.
const MOST_MESSAGES: usize = 20;

pub(super) async fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let observer = observe(&args.serve)?;
    let event = find(&observer, &args.id)?;
    let steps = observer.steps(event.seq)?;
    let headers = observer.payload(event.seq);
    let headers = headers.ok().flatten().map(|payload| payload.headers);
    let messages = messages(&event, &steps);
    let asked = match (messages.is_empty(), args.offline) {
        (true, _) => Asked::Nothing,
        (_, true) => Asked::Not("--offline".to_owned()),
        _ => ask(args, &messages).await,
    };
    if args.json {
        let mut fields = describe::event(&event);
        fields.insert("steps".to_owned(), describe::steps(&steps));
        fields.insert("qstash".to_owned(), asked.to_json());
        say(Value::Object(fields).to_string())?;
        return Ok(());
    }
    let trace = headers.and_then(|headers| {
        let value = String::from_utf8_lossy(headers.values("traceparent").next()?);
        value.split('-').nth(1).map(str::to_owned)
    });
    let waits = match event.state {
        EventState::Pending => waits(args, &event).await,
        EventState::Delivered | EventState::Dead => None,
    };
    for line in lines(&event, &steps, &asked, trace.as_deref(), waits) {
        line.say()?;
    }
    Ok(())
}

/// A line of the story. What is in it comes from outside, and must not move the cursor.
enum Line {
    Empty,
    /// Names and what they stand for.
    Fact(String),
    /// What happened at some time.
    At(Timestamp, String),
    Text(String),
    /// Whole, so that it can be copied.
    Command(String),
}

impl Line {
    fn say(&self) -> std::io::Result<()> {
        let printable = |text: &str| -> String {
            let printable = |c: char| if c.is_control() { ' ' } else { c };
            text.chars().map(printable).collect()
        };
        match self {
            Self::Empty => say(""),
            Self::Fact(text) => say(printable(text)),
            Self::At(at, text) => say_paragraph(&format!("{at}  {}", printable(text)), INDENT),
            Self::Text(text) => say_paragraph(&printable(text), 0),
            Self::Command(text) => say(format!("-> {}", printable(text))),
        }
    }
}

/// Why it waits, as far as the running sidecar can tell.
async fn waits(args: &ShowArgs, event: &Listed) -> Option<Waits> {
    let running = Running::new(args.admin.as_deref(), &args.serve).ok()?;
    let Some(status) = running.status().await else {
        return (!args.serve.no_admin).then(|| Waits::NobodyAnswers(running.address()));
    };
    if status
        .held
        .iter()
        .any(|held| event.destination.as_ref() == Some(held))
    {
        return Some(Waits::ForDestination);
    }
    let (reason, since) = (status.qstash.reason?, status.qstash.since);
    Some(Waits::ForQStash(format!(
        "QStash has taken nothing since {since}: {reason}. It goes out when that is over. What can be done:"
    )))
}

enum Waits {
    /// Its destination does not exist.
    ForDestination,
    /// QStash takes nothing, since when and why.
    ForQStash(String),
    /// There may be no sidecar.
    NobodyAnswers(SocketAddr),
}

/// QStash's names for the event, in this life and in those before it.
fn messages(event: &Listed, steps: &[Step]) -> Vec<String> {
    let earlier = steps
        .iter()
        .filter(|step| step.kind == StepKind::Delivered)
        .flat_map(|step| step.words.lines().map(str::to_owned));
    let mut all: Vec<String> = earlier.chain(event.message_ids.iter().cloned()).collect();
    // The last are those that somebody asks about.
    let too_many = all.len().saturating_sub(MOST_MESSAGES);
    all.drain(..too_many);
    all
}

/// What QStash told.
enum Asked {
    /// It has nothing of this event.
    Nothing,
    /// It was not asked, or did not answer.
    Not(String),
    /// Of each message.
    Told(Vec<Told>),
}

struct Told {
    message_id: String,
    log: Vec<LogEntry>,
    dead_letter: Option<String>,
}

async fn ask(args: &ShowArgs, messages: &[String]) -> Asked {
    let account = match config::qstash(&args.serve) {
        Ok(settings) => Account::new(&settings).map_err(|error| error.to_string()),
        Err(mistakes) => Err(mistakes.to_string()),
    };
    let account = match account {
        Ok(account) => account,
        Err(why) => return Asked::Not(why),
    };
    match ask_account(&account, messages).await {
        Ok(told) => Asked::Told(told),
        Err(error) => Asked::Not(error.to_string()),
    }
}

async fn ask_account(account: &Account, messages: &[String]) -> Result<Vec<Told>, AccountError> {
    let mut told = Vec::new();
    for message_id in messages {
        let log = account.log(message_id).await?;
        let has_failed = log.iter().any(|entry| entry.state == "FAILED");
        let dead_letter = match has_failed {
            // It may have been replayed or removed there since; the log stands either way.
            true => account.dead_letter(message_id).await.unwrap_or(None),
            false => None,
        };
        told.push(Told {
            message_id: message_id.clone(),
            log,
            dead_letter,
        });
    }
    Ok(told)
}

impl Asked {
    /// Whether QStash has given up on a message.
    fn has_failed(&self) -> bool {
        match self {
            Self::Told(told) => {
                let mut entries = told.iter().flat_map(|told| &told.log);
                entries.any(|entry| entry.state == "FAILED")
            }
            Self::Nothing | Self::Not(_) => false,
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Nothing => Value::Null,
            Self::Not(why) => json!({ "not_asked": why }),
            Self::Told(told) => told
                .iter()
                .map(|told| {
                    let log = told.log.iter().map(|entry| {
                        json!({
                            "at": Timestamp::from_millis(entry.time).to_string(),
                            "state": entry.state,
                            "url": entry.url,
                            "endpoint": entry.endpoint_name,
                            "status": entry.response_status,
                            "error": entry.error,
                            "next_at": entry.next_delivery_time.map(|at| Timestamp::from_millis(at).to_string()),
                        })
                    });
                    json!({
                        "message_id": told.message_id,
                        "log": log.collect::<Value>(),
                        "dead_letter": told.dead_letter,
                    })
                })
                .collect(),
        }
    }
}

fn lines(
    event: &Listed,
    steps: &[Step],
    asked: &Asked,
    trace: Option<&str>,
    waits: Option<Waits>,
) -> Vec<Line> {
    let mut lines = head(event, trace);
    lines.push(Line::Empty);
    lines.extend(life(event, steps));
    match asked {
        Asked::Nothing => {}
        Asked::Not(why) => {
            lines.push(Line::Empty);
            lines.push(Line::Text(format!(
                "What became of it at QStash is not known: {why}"
            )));
        }
        Asked::Told(told) => {
            for told in told {
                lines.push(Line::Empty);
                lines.extend(at_qstash(told));
            }
        }
    }
    if let Some((text, command)) = advice(event, asked, waits) {
        lines.extend([Line::Empty, Line::Text(text), Line::Command(command)]);
    }
    lines
}

fn head(event: &Listed, trace: Option<&str>) -> Vec<Line> {
    let facts = &event.facts;
    let mut lines = Vec::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            lines.push(Line::Fact(format!("{name:<10}{value}")));
        }
    };
    line("id", &event.id.to_string());
    line("state", event.state.as_str());
    line("event", &facts.kind);
    let uid = facts.uid.as_ref().or(facts.model.as_ref());
    line("type", uid.map_or("", String::as_str));
    if let Some(document) = &facts.document {
        let locale = document.locale.as_ref();
        let locale = locale.map_or_else(String::new, |locale| format!(" ({locale})"));
        line("document", &format!("{}{locale}", document.id));
    }
    line("size", &format!("{} bytes", event.size));
    line("goes to", event.destination.as_deref().unwrap_or("nowhere"));
    line("options", &event.options);
    line("trace", trace.unwrap_or_default());
    lines
}

fn life(event: &Listed, steps: &[Step]) -> Vec<Line> {
    let mut lines = vec![
        at(event.received_at, "received from Strapi"),
        at(event.stored_at, "made durable, and then answered"),
    ];
    for step in steps {
        match (step.kind, step.count) {
            (StepKind::Failed, 1) => {
                lines.push(at(step.last_at, format!("attempt failed: {}", step.words)));
            }
            (StepKind::Failed, count) => {
                lines.push(at(step.first_at, format!("attempt failed: {}", step.words)));
                let text = format!("the same, for the {count}th time");
                lines.push(at(step.last_at, &text));
            }
            (StepKind::Delivered, _) => lines.push(delivered(step.last_at, step.words.lines())),
            (StepKind::Dead, _) => {
                lines.push(at(step.last_at, format!("dead letter: {}", step.words)));
            }
            (StepKind::Replayed, _) => lines.push(at(step.last_at, "replayed by hand")),
        }
    }
    let settled_at = event.settled_at.unwrap_or(event.received_at);
    match event.state {
        EventState::Delivered => {
            let ids = event.message_ids.iter().map(String::as_str);
            lines.push(delivered(settled_at, ids));
        }
        EventState::Dead => {
            let reason = event.reason.as_deref().unwrap_or("no reason was kept");
            lines.push(at(settled_at, format!("dead letter: {reason}")));
        }
        EventState::Pending => {
            let waits = when::short(clock::now().since(event.received_at));
            let tries = match event.attempts {
                0 => "not tried yet".to_owned(),
                1 => "tried once".to_owned(),
                attempts => format!("tried {attempts} times"),
            };
            lines.push(at(clock::now(), format!("pending for {waits}, {tries}")));
        }
    }
    lines
}

fn delivered<'a>(at: Timestamp, ids: impl Iterator<Item = &'a str>) -> Line {
    let ids: Vec<&str> = ids.collect();
    Line::At(at, format!("QStash has it: {}", ids.join(", ")))
}

fn at(at: Timestamp, text: impl Into<String>) -> Line {
    Line::At(at, text.into())
}

/// What QStash did with a message.
fn at_qstash(message: &Told) -> Vec<Line> {
    let first = message.log.iter().find(|entry| entry.url.is_some());
    let endpoint = first.map_or_else(String::new, |entry| {
        let url = entry.url.as_deref().unwrap_or_default();
        match &entry.endpoint_name {
            Some(name) => format!(" to {url} ({name})"),
            None => format!(" to {url}"),
        }
    });
    let mut lines = vec![Line::Fact(format!("{}{endpoint}", message.message_id))];
    if message.log.is_empty() {
        lines.push(Line::Text(
            "QStash's log has nothing of it (any more)".to_owned(),
        ));
    }
    for entry in &message.log {
        let status = entry
            .response_status
            .map_or_else(String::new, |status| format!(" with {status}"));
        let error = entry
            .error
            .as_ref()
            .map_or_else(String::new, |error| format!(": {error}"));
        let text = match entry.state.as_str() {
            "CREATED" => "taken by QStash".to_owned(),
            "ACTIVE" => "delivery begins".to_owned(),
            // QStash logs a status with an error only.
            "DELIVERED" => format!("delivered, the endpoint took it{status}"),
            "ERROR" => format!("the endpoint failed{status}{error}"),
            "RETRY" => match entry.next_delivery_time {
                Some(next) => format!("will be tried again at {}", Timestamp::from_millis(next)),
                None => "will be tried again".to_owned(),
            },
            "FAILED" => {
                let letter = message
                    .dead_letter
                    .as_ref()
                    .map_or_else(String::new, |id| format!(" as {id}"));
                format!(
                    "given up after the last retry, it is in QStash's own dead letter queue{letter}"
                )
            }
            other => format!("{}{error}", other.to_lowercase()),
        };
        lines.push(at(Timestamp::from_millis(entry.time), text));
    }
    lines
}

/// What a person can do now, and the command for it.
fn advice(event: &Listed, asked: &Asked, waits: Option<Waits>) -> Option<(String, String)> {
    let reason = event.reason.as_deref().unwrap_or_default();
    let replay = format!("strapi-qstash events replay {}", event.id);
    let check = "strapi-qstash check".to_owned();
    match event.state {
        EventState::Delivered if asked.has_failed() => Some((
            "Once the endpoint works, retry it in QStash's dead letter queue, or send it anew:"
                .to_owned(),
            replay,
        )),
        EventState::Delivered => None,
        EventState::Pending => match waits {
            Some(Waits::NobodyAnswers(address)) => Some((
                format!(
                    "It goes out while a sidecar runs, and none answers at the admin address {address}. What else is wrong:"
                ),
                check,
            )),
            Some(Waits::ForQStash(text)) => Some((text, check)),
            Some(Waits::ForDestination) => Some(missing(event)),
            None if is_missing(reason) => Some(missing(event)),
            None if event.attempts == 0 => None,
            None => Some((
                "It is tried again and again, and loses nothing by waiting. Whether something is to be done:"
                    .to_owned(),
                check,
            )),
        },
        EventState::Dead if reason == "no route" => Some((
            "No route took it. Once the sidecar has --topic NAME or a --route for it:".to_owned(),
            replay,
        )),
        EventState::Dead if reason.starts_with("too large") => Some((
            "Once the QStash plan takes messages of this size:".to_owned(),
            replay,
        )),
        EventState::Dead => Some(("Once the cause is gone:".to_owned(), replay)),
    }
}

/// Whether these words of QStash mean that the URL group does not exist.
fn is_missing(words: &str) -> bool {
    let lower = words.to_lowercase();
    lower.contains("topic") && lower.contains("not found")
}

fn missing(event: &Listed) -> (String, String) {
    let destination = event.destination.as_deref().unwrap_or("NAME");
    let group = destination.rsplit('/').next().unwrap_or(destination);
    (
        format!("It waits for the URL group {group}, and goes out when that is there:"),
        format!("strapi-qstash topics create {group} https://YOUR-RECEIVER"),
    )
}
