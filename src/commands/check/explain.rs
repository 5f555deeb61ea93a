//! `check --event`: where an event would go, rule by rule.

use anyhow::bail;
use serde_json::json;

use crate::cli::CheckArgs;
use crate::commands::terminal::say;
use crate::config;
use crate::event::Facts;
use crate::router::Verdict;

pub(super) fn run(args: &CheckArgs, kind: &str) -> anyhow::Result<()> {
    let router = config::routing(&args.serve)?;
    let model_of_uid = args.uid.as_deref().and_then(|uid| uid.rsplit('.').next());
    let facts = Facts {
        kind: kind.to_owned(),
        model: args.model.as_deref().or(model_of_uid).map(str::to_owned),
        uid: args.uid.clone(),
        document: None,
    };
    let mut decided = false;
    for ruling in router.explain(&facts) {
        let (verdict, text) = match &ruling.verdict {
            Verdict::OtherEvent => ("passes", format!("it is not for {kind}")),
            Verdict::OtherType => ("passes", "it is for other content types".to_owned()),
            Verdict::Lacks(fact) => (
                "passes",
                format!("its destination needs {{{fact}}}, which this event does not have"),
            ),
            Verdict::Drops => (
                "drops",
                "the event goes nowhere, and is not kept".to_owned(),
            ),
            Verdict::Sends(destination) => {
                let options = destination.options.to_text();
                let with = if options.is_empty() { "" } else { " with " };
                ("sends", format!("to {destination}{with}{options}"))
            }
        };
        decided |= verdict != "passes";
        match args.json {
            true => {
                say(json!({ "rule": ruling.rule, "verdict": verdict, "text": text }).to_string())?
            }
            false => say(format!("{verdict:<6}  {}: {text}", ruling.rule))?,
        }
    }
    if !decided {
        bail!(
            "no rule takes {kind}: it becomes a dead letter; add --topic NAME, or a --route '{kind}=NAME'"
        );
    }
    Ok(())
}
