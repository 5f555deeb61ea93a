//! A destination in which facts of the event are filled in.

use super::RouteError;
use crate::destination::{
    self, DeliveryOptions, Destination, DestinationError, OptionError, Target, decode, encode,
    is_name_char, is_url, split_queue,
};
use crate::event::Facts;

/// A destination in which facts of the event are filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pub(super) queue: Option<Vec<Part>>,
    pub(super) target: Vec<Part>,
    is_url: bool,
    options: DeliveryOptions,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    Fact(Fact),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fact {
    Event,
    Action,
    Model,
    Uid,
}

impl Template {
    /// Reads a DEST.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        if text.is_empty() {
            return Err(DestinationError::Empty.into());
        }
        let (place, query) = text
            .split_once('?')
            .map_or((text, None), |(place, query)| (place, Some(query)));
        let (queue, target) = split_queue(place)?;
        let is_url = is_url(target);
        let mut options = DeliveryOptions::default();
        let mut kept = Vec::new();
        for pair in query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if is_url && !DeliveryOptions::NAMES.contains(&name) {
                kept.push(pair); // the endpoint's own
            } else {
                options.set(&decode(name), &decode(value))?;
            }
        }
        if queue.is_some() && options.delay.is_some() {
            return Err(OptionError::DelayInQueue.into());
        }
        let mut target = target.to_owned();
        if !kept.is_empty() {
            target = format!("{target}?{}", kept.join("&"));
        }
        let template = Self {
            queue: queue.map(parts).transpose()?,
            target: parts(&target)?,
            is_url,
            options,
        };
        // With something filled in, all of it must be a destination.
        let sample = Facts {
            kind: "entry.create".to_owned(),
            model: Some("article".to_owned()),
            uid: Some("api::article.article".to_owned()),
            document: None,
        };
        if let Some(destination) = template.fill(&sample) {
            destination.to_string().parse::<Destination>()?;
        }
        Ok(template)
    }

    pub(super) fn fill(&self, facts: &Facts) -> Option<Destination> {
        let queue = match &self.queue {
            Some(parts) => Some(fill(parts, facts, false)?),
            None => None,
        };
        let target = fill(&self.target, facts, self.is_url)?;
        let target = if self.is_url {
            Target::Url(target)
        } else {
            Target::Group(target)
        };
        Some(Destination {
            queue,
            target,
            options: self.options.clone(),
        })
    }

    /// As it was typed, without what may be secret: a URL's own parameters, and the values of
    /// headers.
    pub(super) fn for_log(&self) -> String {
        let text = |parts: &[Part]| -> String {
            let part = |part: &Part| match part {
                Part::Text(text) => text.clone(),
                Part::Fact(fact) => format!("{{{}}}", fact.name()),
            };
            parts.iter().map(part).collect()
        };
        let queue = self.queue.as_deref().map(text);
        let queue = queue.map_or_else(String::new, |queue| format!("queue:{queue}/"));
        let options = self.options.for_log().into_iter();
        let options: Vec<String> = options
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let options = match options.join("&") {
            none if none.is_empty() => none,
            options => format!("?{options}"),
        };
        format!(
            "{queue}{}{options}",
            destination::for_log(&text(&self.target))
        )
    }

    pub(super) fn always_fills(&self) -> bool {
        let needs_none = |part: &Part| !matches!(part, Part::Fact(Fact::Model | Fact::Uid));
        self.target
            .iter()
            .chain(self.queue.iter().flatten())
            .all(needs_none)
    }
}

impl Fact {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Action => "action",
            Self::Model => "model",
            Self::Uid => "uid",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "event" => Self::Event,
            "action" => Self::Action,
            "model" => Self::Model,
            "uid" => Self::Uid,
            _ => return None,
        })
    }

    pub(super) fn of(self, facts: &Facts) -> Option<&str> {
        match self {
            Self::Event => Some(&facts.kind),
            Self::Action => Some(facts.action()),
            Self::Model => facts.model.as_deref(),
            Self::Uid => facts.uid.as_deref(),
        }
    }
}

fn parts(text: &str) -> Result<Vec<Part>, RouteError> {
    let broken = || RouteError::Brace(text.to_owned());
    let (mut parts, mut rest) = (Vec::new(), text);
    while let Some((before, behind)) = rest.split_once('{') {
        let (name, after) = behind.split_once('}').ok_or_else(broken)?;
        if !before.is_empty() {
            parts.push(Part::Text(before.to_owned()));
        }
        parts.push(Part::Fact(
            Fact::named(name).ok_or_else(|| RouteError::UnknownFact(name.to_owned()))?,
        ));
        rest = after;
    }
    if rest.contains('}') {
        return Err(broken());
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(parts)
}

/// In a URL facts are percent-encoded; in a name each character that no name can hold
/// becomes `-` (`api::article.article` gives `api--article.article`).
fn fill(parts: &[Part], facts: &Facts, is_url: bool) -> Option<String> {
    let mut filled = String::new();
    for part in parts {
        match part {
            Part::Text(text) => filled.push_str(text),
            Part::Fact(fact) => {
                let value = fact.of(facts).filter(|value| !value.is_empty())?;
                if is_url {
                    filled.push_str(&encode(value));
                } else {
                    filled.extend(value.chars().map(|c| if is_name_char(c) { c } else { '-' }));
                }
            }
        }
    }
    Some(filled)
}
