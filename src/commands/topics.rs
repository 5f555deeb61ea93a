//! `topics`: QStash's URL groups, so that the console is not needed.

use anyhow::{Context, bail};
use serde_json::json;

use super::public::unreachable_from_outside;
use super::running::Running;
use super::table::{Column, Layout};
use super::terminal::{confirm, hint, say, width};
use crate::cli::{ChangeTopicArgs, ListTopicsArgs, TopicsCommand};
use crate::config;
use crate::destination::Destination;
use crate::qstash::{Account, Endpoint};

const COLUMNS: [Column; 3] = [
    Column {
        title: "GROUP",
        shortest: 8,
        rank: 3,
    },
    Column {
        title: "ENDPOINT",
        shortest: 12,
        rank: 2,
    },
    Column {
        title: "NAME",
        shortest: 4,
        rank: 1,
    },
];

/// Runs one of its commands.
pub async fn run(command: &TopicsCommand) -> anyhow::Result<()> {
    match command {
        TopicsCommand::List(args) => list(args).await,
        TopicsCommand::Create(args) => create(args).await,
        TopicsCommand::Add(args) => add(args).await,
        TopicsCommand::Remove(args) => remove(args).await,
    }
}

async fn list(args: &ListTopicsArgs) -> anyhow::Result<()> {
    let account = Account::new(&config::qstash(&args.serve)?)?;
    let mut topics = account.topics().await?;
    topics.sort_by(|one, other| one.name.cmp(&other.name));
    if args.json {
        for topic in topics {
            let endpoints: Vec<_> = topic
                .endpoints
                .iter()
                .map(|endpoint| json!({ "url": endpoint.url, "name": endpoint.name }))
                .collect();
            say(json!({ "name": topic.name, "endpoints": endpoints }).to_string())?;
        }
        return Ok(());
    }
    if topics.is_empty() {
        hint("There is no URL group yet: strapi-qstash topics create NAME https://YOUR-RECEIVER");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = topics
        .iter()
        .flat_map(|topic| {
            topic.endpoints.iter().enumerate().map(|(at, endpoint)| {
                let name = if at == 0 { topic.name.as_str() } else { "" };
                vec![
                    name.to_owned(),
                    endpoint.url.clone(),
                    endpoint.name.clone().unwrap_or_default(),
                ]
            })
        })
        .collect();
    let layout = Layout::new(&COLUMNS, &rows, width());
    say(layout.header())?;
    for row in &rows {
        say(layout.line(row))?;
    }
    Ok(())
}

async fn create(args: &ChangeTopicArgs) -> anyhow::Result<()> {
    let (account, endpoints) = prepare(args).await?;
    if endpoints.is_empty() {
        bail!("a URL group is made with its first endpoint: name its URL, https://…");
    }
    let name = &args.name;
    if account.topic(name).await?.is_some() {
        bail!("the URL group {name} is there already: strapi-qstash topics add {name} https://…");
    }
    account.add_endpoints(name, &endpoints).await?;
    say(format!("Created the URL group {name}."))?;
    tell_sidecar(args).await;
    Ok(())
}

async fn add(args: &ChangeTopicArgs) -> anyhow::Result<()> {
    let (account, endpoints) = prepare(args).await?;
    if endpoints.is_empty() {
        bail!("name the URLs to add, https://…");
    }
    let name = &args.name;
    if account.topic(name).await?.is_none() {
        bail!("there is no URL group {name}: strapi-qstash topics create {name} https://…");
    }
    account.add_endpoints(name, &endpoints).await?;
    say(format!("Added to the URL group {name}."))?;
    tell_sidecar(args).await;
    Ok(())
}

async fn remove(args: &ChangeTopicArgs) -> anyhow::Result<()> {
    let name = &args.name;
    Destination::group(name)?;
    let account = Account::new(&config::qstash(&args.serve)?)?;
    let topic = account.topic(name).await?;
    let topic = topic.with_context(|| format!("there is no URL group {name}"))?;
    let mut urls = Vec::new();
    for wanted in &args.endpoints {
        let known = topic.endpoints.iter().find(|endpoint| {
            endpoint.url == *wanted || endpoint.name.as_deref() == Some(wanted.as_str())
        });
        let known = known.with_context(|| format!("{wanted} is no endpoint of {name}"))?;
        urls.push(known.url.clone());
    }
    let is_all = urls.is_empty()
        || topic
            .endpoints
            .iter()
            .all(|known| urls.contains(&known.url));
    if is_all && !args.yes {
        confirm(&format!(
            "Remove the URL group {name} with {} endpoints? Events for it then wait in the sidecar.",
            topic.endpoints.len()
        ))?;
    }
    match is_all {
        true => account.remove_topic(name).await?,
        false => account.remove_endpoints(name, &urls).await?,
    }
    let what = if is_all { "Removed" } else { "Removed from" };
    say(format!("{what} the URL group {name}."))?;
    Ok(())
}

/// The account, and the endpoints that were named, which QStash must be able to reach.
async fn prepare(args: &ChangeTopicArgs) -> anyhow::Result<(Account, Vec<Endpoint>)> {
    Destination::group(&args.name)?;
    let settings = config::qstash(&args.serve)?;
    let mut endpoints = Vec::new();
    for text in &args.endpoints {
        let (name, url) = match text.split_once('=') {
            Some((name, url)) if !name.contains("://") => (Some(name.to_owned()), url),
            _ => (None, text.as_str()),
        };
        if !(url.starts_with("https://") || url.starts_with("http://")) {
            bail!("{url:?} is no URL: write https://… or NAME=https://…");
        }
        if !settings.base.is_loopback()
            && let Some(why) = unreachable_from_outside(url).await
        {
            bail!("QStash cannot reach {url}: {why}; name a public URL");
        }
        endpoints.push(Endpoint {
            name,
            url: url.to_owned(),
        });
    }
    Ok((Account::new(&settings)?, endpoints))
}

/// Events that wait for the group go out at once, and not within a minute.
async fn tell_sidecar(args: &ChangeTopicArgs) {
    let Ok(running) = Running::new(args.admin.as_deref(), &args.serve) else {
        return;
    };
    match running.post("/api/destinations/retry", &json!({})).await {
        Ok(_) => hint(format!(
            "The sidecar at {} publishes what waited for it.",
            running.address()
        )),
        Err(_) => hint(format!(
            "No sidecar was told (none answers at {}); one that runs tries by itself within a minute.",
            running.address()
        )),
    }
}
