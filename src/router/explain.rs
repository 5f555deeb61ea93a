//! Why an event goes where it goes, and where events can go at all: for people.

use super::template::{Part, Template};
use super::{Action, Route, Router, glob, matches_uid};
use crate::destination::Destination;
use crate::event::{Facts, STRAPI_EVENTS};

/// What a rule says of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// The rule as it was typed.
    pub rule: String,
    /// What it says.
    pub verdict: Verdict,
}

/// What a rule says of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there are as many as there are rules"
)]
pub enum Verdict {
    /// It is for other events.
    OtherEvent,
    /// It is for other content types.
    OtherType,
    /// It matches, but its destination needs something that the event does not have.
    Lacks(&'static str),
    /// It drops the event.
    Drops,
    /// It sends the event there.
    Sends(Destination),
}

/// Where events can go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// Destinations that are known beforehand.
    pub known: Vec<Destination>,
    /// Rules whose destination depends on the content type.
    pub open: Vec<String>,
}

impl Router {
    /// What each rule says, up to the one that decides; the default is the last of them.
    pub fn explain(&self, facts: &Facts) -> Vec<Ruling> {
        let mut rulings = Vec::new();
        for route in &self.routes {
            let verdict = route.judge(facts);
            let decides = matches!(verdict, Verdict::Drops | Verdict::Sends(_));
            rulings.push(Ruling {
                rule: route.text.clone(),
                verdict,
            });
            if decides {
                return rulings;
            }
        }
        if let Some(default) = &self.default {
            rulings.push(Ruling {
                rule: "--topic".to_owned(),
                verdict: default.judge(facts),
            });
        }
        rulings
    }

    /// Where the events that Strapi sends can go.
    pub fn reach(&self) -> Reach {
        let mut reach = Reach::default();
        for route in &self.routes {
            if let Action::To(template) = &route.action {
                let mut kinds: Vec<&str> = STRAPI_EVENTS
                    .into_iter()
                    .filter(|kind| glob(&route.event, kind))
                    .collect();
                if !route.event.contains(['*', '?']) {
                    kinds.push(&route.event);
                }
                template.add_to(&mut reach, &route.text, &kinds);
            }
        }
        if let Some(default) = &self.default {
            default.add_to(&mut reach, "--topic", &STRAPI_EVENTS);
        }
        reach
    }
}

impl Route {
    pub(super) fn judge(&self, facts: &Facts) -> Verdict {
        if !glob(&self.event, &facts.kind) {
            return Verdict::OtherEvent;
        }
        if !self.uid.as_ref().is_none_or(|uid| matches_uid(uid, facts)) {
            return Verdict::OtherType;
        }
        match &self.action {
            Action::Drop => Verdict::Drops,
            Action::To(template) => template.judge(facts),
        }
    }
}

impl Template {
    fn judge(&self, facts: &Facts) -> Verdict {
        match self.fill(facts) {
            Some(destination) => Verdict::Sends(destination),
            None => Verdict::Lacks(self.lacks(facts)),
        }
    }

    fn lacks(&self, facts: &Facts) -> &'static str {
        let parts = self.queue.iter().flatten().chain(&self.target);
        let missing = |part: &Part| match part {
            Part::Fact(fact) if fact.of(facts).is_none_or(str::is_empty) => Some(fact.name()),
            _ => None,
        };
        parts.filter_map(missing).next().unwrap_or_default()
    }

    fn add_to(&self, reach: &mut Reach, rule: &str, kinds: &[&str]) {
        for kind in kinds {
            let facts = Facts {
                kind: (*kind).to_owned(),
                ..Facts::default()
            };
            match self.fill(&facts) {
                Some(destination) if reach.known.contains(&destination) => {}
                Some(destination) => reach.known.push(destination),
                None if reach.open.iter().any(|open| open == rule) => {}
                None => reach.open.push(rule.to_owned()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(rules: &[&str], default: Option<&str>) -> Router {
        let routes = rules.iter().map(|rule| Route::parse(rule).unwrap());
        let default = default.map(|text| Template::parse(text).unwrap());
        Router::new(routes.collect(), default)
    }

    #[test]
    fn each_rule_says_why_up_to_the_one_that_decides() {
        let rules = [
            "media.*=files",
            "entry.publish:page=pages",
            "entry.*={model}-{action}",
            "entry.publish=never",
        ];
        let router = router(&rules, Some("rest"));
        let facts = |model: Option<&str>| Facts {
            kind: "entry.publish".into(),
            model: model.map(str::to_owned),
            ..Facts::default()
        };
        let verdicts = |facts: &Facts| {
            let rulings = router.explain(facts).into_iter();
            rulings.map(|ruling| ruling.verdict).collect::<Vec<_>>()
        };
        let sends = |text: &str| Verdict::Sends(text.parse().unwrap());
        assert_eq!(
            verdicts(&facts(Some("article"))),
            [
                Verdict::OtherEvent,
                Verdict::OtherType,
                sends("article-publish")
            ]
        );
        assert_eq!(
            verdicts(&facts(None)),
            [
                Verdict::OtherEvent,
                Verdict::OtherType,
                Verdict::Lacks("model"),
                sends("never")
            ]
        );
    }

    #[test]
    fn what_can_be_reached_is_known_but_for_content_types() {
        let rules = [
            "media.*=files",
            "entry.*=strapi.{action}",
            "user.create=people",
            "*=by.{model}",
            "*=drop",
        ];
        let reach = router(&rules, Some("https://example.com/all")).reach();
        let known: Vec<String> = reach.known.iter().map(ToString::to_string).collect();
        for name in ["files", "strapi.publish", "strapi.create", "people"] {
            assert!(
                known.iter().any(|known| known == name),
                "{name} in {known:?}"
            );
        }
        assert_eq!(known.last().unwrap(), "https://example.com/all");
        assert_eq!(reach.open, ["*=by.{model}"]);
    }
}
