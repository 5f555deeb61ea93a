//! What can be asked of QStash: the token, its region, the clock, groups and their endpoints.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Findings;
use crate::clock::{self, Timestamp};
use crate::commands::public::unreachable_from_outside;
use crate::destination::{Destination, Target};
use crate::qstash::{Account, AccountError, BaseUrl, Seen, Settings, Topic};
use crate::router::Router;
use crate::when;

/// Nothing waits by the wall clock, but times that are shown and compared should be right.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);

/// Each region has tokens of its own.
const REGIONS: [(&str, &str); 2] = [
    ("Europe", "https://qstash.upstash.io"),
    ("the United States", "https://qstash-us-east-1.upstash.io"),
];

pub(super) async fn check(settings: &Settings, router: Option<&Router>, findings: &mut Findings) {
    let account = match Account::new(settings) {
        Ok(account) => account,
        Err(error) => return findings.wrong("qstash", error.to_string(), ""),
    };
    let (asked, asked_at) = (Instant::now(), clock::now());
    match account.look().await {
        Ok(seen) => {
            let took = asked.elapsed();
            findings.right(
                "token",
                format!(
                    "{} takes it, and answered in {}",
                    settings.base,
                    when::short(took)
                ),
            );
            told(&seen, asked_at.plus(took / 2), findings);
        }
        Err(error) => return refused(settings, &error, findings).await,
    }
    match account.topics().await {
        Ok(topics) => groups(settings, router, &topics, findings).await,
        Err(error) => findings.wrong("groups", error.to_string(), "try again in a minute"),
    }
}

fn told(seen: &Seen, now: Timestamp, findings: &mut Findings) {
    if let Some(date) = seen.date {
        let off = date.since(now).max(now.since(date));
        match off > CLOCK_TOLERANCE {
            true => findings.wrong(
                "clock",
                format!("it is {} off QStash's", when::short(off)),
                "timedatectl set-ntp true",
            ),
            false => findings.right("clock", "it agrees with QStash's"),
        }
    }
    match &seen.quota {
        Some(quota) if quota.remaining == 0 => findings.wrong(
            "quota",
            format!(
                "today's {} messages are used up: events wait for midnight UTC",
                quota.limit
            ),
            "upgrade the plan in the QStash console, if that is too long",
        ),
        Some(quota) => findings.right(
            "quota",
            format!(
                "{} of today's {} messages are left",
                quota.remaining, quota.limit
            ),
        ),
        None => {}
    }
}

async fn refused(settings: &Settings, error: &AccountError, findings: &mut Findings) {
    let mend = match error {
        AccountError::Unauthorized { .. } => match right_region(settings).await {
            Some((region, url)) => {
                let text = format!("the token is for {region}, and {} is not", settings.base);
                return findings.wrong("token", text, format!("set QSTASH_URL={url}"));
            }
            None => {
                "copy the token anew from the QStash console into QSTASH_TOKEN or the file of --qstash-token-file"
            }
        },
        AccountError::Unreachable { .. } => {
            "events are kept meanwhile; look at this machine's way out (DNS, firewall, HTTPS_PROXY) and at status.upstash.com"
        }
        _ => "look at QSTASH_URL: it must be QStash's own address",
    };
    findings.wrong("token", error.to_string(), mend);
}

/// Of a token that is refused in one region of Upstash, the one in which it is good.
async fn right_region(settings: &Settings) -> Option<(&'static str, &'static str)> {
    let here = settings.base.to_string();
    REGIONS.iter().find(|(_, url)| *url == here)?;
    for (region, url) in REGIONS.into_iter().filter(|(_, url)| *url != here) {
        let settings = Settings {
            base: BaseUrl::parse(url).ok()?,
            ..settings.clone()
        };
        if Account::new(&settings).ok()?.look().await.is_ok() {
            return Some((region, url));
        }
    }
    None
}

/// Whether what the routes name is there, and can be reached.
async fn groups(
    settings: &Settings,
    router: Option<&Router>,
    topics: &[Topic],
    findings: &mut Findings,
) {
    let Some(router) = router else { return };
    let reach = router.reach();
    let mut looked_at = BTreeSet::new();
    for Destination { target, .. } in &reach.known {
        let (Target::Group(name) | Target::Url(name)) = target;
        if !looked_at.insert(name.clone()) {
            continue;
        }
        match target {
            Target::Url(url) => endpoint("endpoint", url, settings, findings, String::new()).await,
            Target::Group(name) => match topics.iter().find(|topic| topic.name == *name) {
                Some(topic) if !topic.endpoints.is_empty() => {
                    let count = topic.endpoints.len();
                    let s = if count == 1 { "" } else { "s" };
                    findings.right("group", format!("{name} has {count} endpoint{s}"));
                    for crate::qstash::Endpoint { url, .. } in &topic.endpoints {
                        let mend = format!(
                            "strapi-qstash topics add {name} https://YOUR-RECEIVER && strapi-qstash topics remove {name} '{url}'"
                        );
                        endpoint("group", url, settings, findings, mend).await;
                    }
                }
                Some(_) => findings.wrong(
                    "group",
                    format!("{name} has no endpoints, so its events go nowhere"),
                    format!("strapi-qstash topics add {name} https://YOUR-RECEIVER"),
                ),
                None => findings.wrong(
                    "group",
                    format!("{name} does not exist at QStash: its events wait until it does"),
                    format!("strapi-qstash topics create {name} https://YOUR-RECEIVER"),
                ),
            },
        }
    }
    for rule in reach.open {
        findings.note(
            "group",
            format!(
                "where {rule:?} sends depends on the content type; look at one with check --event entry.publish --uid api::…"
            ),
        );
    }
}

async fn endpoint(
    about: &'static str,
    url: &str,
    settings: &Settings,
    findings: &mut Findings,
    mend: String,
) {
    if settings.base.is_loopback() {
        return; // a development server reaches what this machine reaches
    }
    if let Some(why) = unreachable_from_outside(url).await {
        let mend = match mend.is_empty() {
            true => "write a public URL into --route".to_owned(),
            false => mend,
        };
        findings.wrong(about, format!("QStash cannot reach {url}: {why}"), mend);
    }
}
