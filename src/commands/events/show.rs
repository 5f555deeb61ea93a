//! `events show`: the whole story of one event, here and at QStash.

use serde_json::{Value, json};

use super::{find, observe};
use crate::buffer::{EventState, Listed, Step, StepKind};
use crate::cli::ShowArgs;
use crate::clock::{self, Timestamp};
use crate::commands::terminal::say;
use crate::config;
use crate::describe;
use crate::qstash::{Account, AccountError, LogEntry};
use crate::when;

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
    let trace = headers.iter().flatten().find_map(|(name, value)| {
        let value = String::from_utf8_lossy(value);
        (name == "traceparent").then(|| value.split('-').nth(1).map(str::to_owned))?
    });
    say(text(&event, &steps, &asked, trace.as_deref()))?;
    Ok(())
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

fn text(event: &Listed, steps: &[Step], asked: &Asked, trace: Option<&str>) -> String {
    let mut lines = head(event, trace);
    lines.push(String::new());
    lines.extend(life(event, steps));
    match asked {
        Asked::Nothing => {}
        Asked::Not(why) => {
            lines.push(String::new());
            lines.push(format!("What became of it at QStash is not known: {why}"));
        }
        Asked::Told(told) => {
            for told in told {
                lines.push(String::new());
                lines.extend(at_qstash(told, event));
            }
        }
    }
    if let Some(advice) = advice(event) {
        lines.push(String::new());
        lines.push(advice);
    }
    // Names, words and log entries come from outside: they must not move the cursor.
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let lines = lines.iter();
    let lines: Vec<String> = lines
        .map(|line| line.chars().map(printable).collect())
        .collect();
    lines.join("\n")
}

fn head(event: &Listed, trace: Option<&str>) -> Vec<String> {
    let facts = &event.facts;
    let mut lines = Vec::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            lines.push(format!("{name:<10}{value}"));
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

fn life(event: &Listed, steps: &[Step]) -> Vec<String> {
    let mut lines = vec![
        told(event.received_at, "received from Strapi"),
        told(event.stored_at, "made durable, and then answered"),
    ];
    for step in steps {
        match (step.kind, step.count) {
            (StepKind::Failed, 1) => {
                lines.push(told(
                    step.last_at,
                    &format!("attempt failed: {}", step.words),
                ));
            }
            (StepKind::Failed, count) => {
                lines.push(told(
                    step.first_at,
                    &format!("attempt failed: {}", step.words),
                ));
                let text = format!("the same, for the {count}th time");
                lines.push(told(step.last_at, &text));
            }
            (StepKind::Delivered, _) => lines.push(delivered(step.last_at, step.words.lines())),
            (StepKind::Dead, _) => {
                lines.push(told(step.last_at, &format!("dead letter: {}", step.words)));
            }
            (StepKind::Replayed, _) => lines.push(told(step.last_at, "replayed by hand")),
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
            lines.push(told(settled_at, &format!("dead letter: {reason}")));
        }
        EventState::Pending => {
            let waits = when::short(clock::now().since(event.received_at));
            let tries = match event.attempts {
                0 => "not tried yet".to_owned(),
                1 => "tried once".to_owned(),
                attempts => format!("tried {attempts} times"),
            };
            lines.push(told(clock::now(), &format!("pending for {waits}, {tries}")));
        }
    }
    lines
}

fn delivered<'a>(at: Timestamp, ids: impl Iterator<Item = &'a str>) -> String {
    let ids: Vec<&str> = ids.collect();
    told(at, &format!("QStash has it: {}", ids.join(", ")))
}

fn told(at: Timestamp, text: &str) -> String {
    format!("{at}  {text}")
}

/// What QStash did with a message.
fn at_qstash(message: &Told, event: &Listed) -> Vec<String> {
    let first = message.log.iter().find(|entry| entry.url.is_some());
    let endpoint = first.map_or_else(String::new, |entry| {
        let url = entry.url.as_deref().unwrap_or_default();
        match &entry.endpoint_name {
            Some(name) => format!(" to {url} ({name})"),
            None => format!(" to {url}"),
        }
    });
    let mut lines = vec![format!("{}{endpoint}", message.message_id)];
    if message.log.is_empty() {
        lines.push("QStash's log has nothing of it (any more)".to_owned());
    }
    for entry in &message.log {
        let at = Timestamp::from_millis(entry.time);
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
                    "given up after the last retry, it is in QStash's own dead letter queue{letter}; once the endpoint \
                     works, retry it there, or send it anew: strapi-qstash events replay {}",
                    event.id
                )
            }
            other => format!("{}{error}", other.to_lowercase()),
        };
        lines.push(told(at, &text));
    }
    lines
}

/// What a person can do now.
fn advice(event: &Listed) -> Option<String> {
    let reason = event.reason.as_deref().unwrap_or_default();
    let lower = reason.to_lowercase();
    let replay = format!("strapi-qstash events replay {}", event.id);
    match event.state {
        EventState::Delivered => None,
        EventState::Pending if lower.contains("topic") && lower.contains("not found") => {
            let destination = event.destination.as_deref().unwrap_or("NAME");
            let group = destination.rsplit('/').next().unwrap_or(destination);
            Some(format!(
                "It waits for the URL group {group}, and goes out when that is there: strapi-qstash topics create {group} https://YOUR-RECEIVER"
            ))
        }
        EventState::Pending if event.attempts == 0 => None,
        EventState::Pending => Some(
            "It is tried again and again, and loses nothing by waiting. strapi-qstash check says whether something is to be done."
                .to_owned(),
        ),
        EventState::Dead if reason == "no route" => Some(format!(
            "No route took it: start the sidecar with --topic NAME or a --route for it, then: {replay}"
        )),
        EventState::Dead if reason.starts_with("too large") => Some(format!(
            "Once the QStash plan takes messages of this size: {replay}"
        )),
        EventState::Dead => Some(format!("Once the cause is gone: {replay}")),
    }
}
