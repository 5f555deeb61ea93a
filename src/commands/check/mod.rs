//! `check`: what is wrong, and the command that mends it, before an event has to wait for it.

mod explain;
mod local;
mod qstash;

use anyhow::bail;
use serde_json::json;

use crate::cli::CheckArgs;
use crate::commands::terminal::{say, say_paragraph};
use crate::config::{self, Config};

/// Where the text of a finding begins.
const INDENT: usize = 17;

/// Looks at everything that can be looked at from here; fails if anything is wrong.
pub async fn run(args: &CheckArgs) -> anyhow::Result<()> {
    if let Some(kind) = &args.event {
        return explain::run(args, kind);
    }
    let mut findings = Findings::default();
    match Config::from_args(&args.serve) {
        Ok((config, warnings)) => {
            findings.right("settings", "they make sense");
            for warning in warnings {
                findings.note("settings", warning);
            }
            local::strapi(&config, &mut findings);
        }
        Err(mistakes) => {
            for mistake in mistakes.to_string().lines() {
                let (flag, text) = mistake.split_once(": ").unwrap_or(("", mistake));
                findings.wrong("settings", format!("{flag}: {text}"), "");
            }
        }
    }
    // What is wrong with one part does not keep from looking at the others.
    if let Ok(settings) = config::qstash(&args.serve) {
        let router = config::routing(&args.serve).ok();
        qstash::check(&settings, router.as_ref(), &mut findings).await;
    }
    if let Ok(settings) = config::buffer(&args.serve) {
        local::buffer(&settings, &mut findings);
        local::sidecar(args, &mut findings).await;
    }
    findings.tell(args.json)
}

/// What was found.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

#[derive(Debug)]
struct Finding {
    grade: Grade,
    about: &'static str,
    text: String,
    /// What to do; empty where the text says it.
    mend: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grade {
    Right,
    /// Nothing is wrong, but it is worth knowing.
    Note,
    Wrong,
}

impl Grade {
    fn as_str(self) -> &'static str {
        match self {
            Self::Right => "ok",
            Self::Note => "note",
            Self::Wrong => "wrong",
        }
    }
}

impl Findings {
    fn right(&mut self, about: &'static str, text: impl Into<String>) {
        self.add(Grade::Right, about, text.into(), String::new());
    }

    fn note(&mut self, about: &'static str, text: impl Into<String>) {
        self.note_with(about, text, "");
    }

    fn note_with(&mut self, about: &'static str, text: impl Into<String>, mend: impl Into<String>) {
        self.add(Grade::Note, about, text.into(), mend.into());
    }

    fn wrong(&mut self, about: &'static str, text: impl Into<String>, mend: impl Into<String>) {
        self.add(Grade::Wrong, about, text.into(), mend.into());
    }

    fn add(&mut self, grade: Grade, about: &'static str, text: String, mend: String) {
        self.0.push(Finding {
            grade,
            about,
            text,
            mend,
        });
    }

    fn tell(&self, json: bool) -> anyhow::Result<()> {
        for finding in &self.0 {
            let Finding {
                grade,
                about,
                text,
                mend,
            } = finding;
            if json {
                let mend = (!mend.is_empty()).then_some(mend);
                say(
                    json!({ "grade": grade.as_str(), "about": about, "text": text, "mend": mend })
                        .to_string(),
                )?;
                continue;
            }
            let grade = match grade {
                Grade::Wrong => "WRONG",
                grade => grade.as_str(),
            };
            say_paragraph(&format!("{grade:<6} {about:<9} {text}"), INDENT)?;
            if !mend.is_empty() {
                // Whole, so that it can be copied.
                say(format!("{:INDENT$}-> {mend}", ""))?;
            }
        }
        let wrong = self
            .0
            .iter()
            .filter(|finding| finding.grade == Grade::Wrong);
        match wrong.count() {
            0 => Ok(()),
            1 => bail!("one thing is wrong"),
            many => bail!("{many} things are wrong"),
        }
    }
}
