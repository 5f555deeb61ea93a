//! The router: from an event's kind and uid to a destination. Pure; the first match wins.
//!
//! A rule reads `MATCH=DEST`. MATCH is `EVENT` or `EVENT:UID`, both globs (`*` any run of
//! characters, `?` any one); a UID pattern without `::` is matched against the model's name.
//! DEST may hold `{event}`, `{action}`, `{model}` and `{uid}`. A rule whose DEST needs
//! something that an event does not have (media have no model) does not match that event:
//! the next rule is tried.

mod explain;
mod glob;
mod template;

pub use self::explain::{Reach, Ruling, Verdict};
use self::glob::{covers_glob, glob};
pub use self::template::Template;
use crate::destination::{Destination, DestinationError, OptionError};
use crate::event::Facts;

/// The rules in the order given, and where all else goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Router {
    routes: Vec<Route>,
    default: Option<Template>,
}

/// Where an event goes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "it lives on the stack of one request, and most are of the large kind"
)]
pub enum Routing {
    /// To QStash.
    To(Destination),
    /// Nowhere, by a rule.
    Drop,
    /// Nowhere, for want of a rule.
    NoRoute,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    text: String,
    event: String,
    uid: Option<String>,
    action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Drop,
    To(Box<Template>),
}

/// Why a rule is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No `=`.
    #[error("{0:?} is no rule: write MATCH=DEST, such as 'entry.*:api::article.article=news'")]
    NoEquals(String),
    /// Nothing to match.
    #[error("{0:?} matches nothing: write an event in front of the =, such as entry.publish or *")]
    NoMatch(String),
    /// An unknown `{…}`.
    #[error("{{{0}}} is not known: there are {{event}}, {{action}}, {{model}} and {{uid}}")]
    UnknownFact(String),
    /// A `{` without its `}`.
    #[error("{0:?} has a brace without its other half")]
    Brace(String),
    /// `drop` has no options.
    #[error("drop has no delivery options: take off what follows the ?")]
    DropWithOptions,
    /// The destination is wrong.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// An option of the route is wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
}

impl Router {
    /// The rules in their order; `default` takes what no rule matches.
    pub fn new(routes: Vec<Route>, default: Option<Template>) -> Self {
        Self { routes, default }
    }

    /// Whether no event can go anywhere, but for those that name a group in their path.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.default.is_none()
    }

    /// Where an event goes.
    pub fn route(&self, facts: &Facts) -> Routing {
        for route in &self.routes {
            match route.judge(facts) {
                Verdict::Drops => return Routing::Drop,
                Verdict::Sends(destination) => return Routing::To(destination),
                Verdict::OtherEvent | Verdict::OtherType | Verdict::Lacks(_) => {}
            }
        }
        let default = self
            .default
            .as_ref()
            .and_then(|template| template.fill(facts));
        default.map_or(Routing::NoRoute, Routing::To)
    }

    /// The rules, and where all else goes, without what may be secret in them.
    pub(crate) fn for_log(&self) -> (Vec<String>, Option<String>) {
        let routes = self.routes.iter().map(Route::for_log);
        (
            routes.collect(),
            self.default.as_ref().map(Template::for_log),
        )
    }

    /// Rules that can never match, each with the earlier one that covers it.
    pub fn shadowed(&self) -> Vec<(&Route, &Route)> {
        let routes = self.routes.iter().enumerate();
        let shadowed = routes.filter_map(|(at, later)| {
            let mut before = self.routes.iter().take(at);
            Some((later, before.find(|earlier| earlier.covers(later))?))
        });
        shadowed.collect()
    }

    /// Whether any destination goes through a queue.
    pub fn uses_queues(&self) -> bool {
        let templates = self.routes.iter().filter_map(|route| match &route.action {
            Action::To(template) => Some(&**template),
            Action::Drop => None,
        });
        templates
            .chain(self.default.as_ref())
            .any(|template| template.queue.is_some())
    }
}

impl Route {
    /// Reads `MATCH=DEST`.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        let text = text.trim();
        let (pattern, destination) = text
            .split_once('=')
            .ok_or_else(|| RouteError::NoEquals(text.to_owned()))?;
        let (event, uid) = match pattern.split_once(':') {
            Some((event, uid)) => (event.trim(), Some(uid.trim())),
            None => (pattern.trim(), None),
        };
        if event.is_empty() || uid == Some("") {
            return Err(RouteError::NoMatch(text.to_owned()));
        }
        let destination = destination.trim();
        let action = match destination.split_once('?') {
            Some(("drop", _)) => return Err(RouteError::DropWithOptions),
            None if destination == "drop" => Action::Drop,
            _ => Action::To(Box::new(Template::parse(destination)?)),
        };
        Ok(Self {
            text: text.to_owned(),
            event: event.to_owned(),
            uid: uid.map(str::to_owned),
            action,
        })
    }

    /// The rule without what may be secret in it.
    pub(crate) fn for_log(&self) -> String {
        let destination = match &self.action {
            Action::Drop => "drop".to_owned(),
            Action::To(template) => template.for_log(),
        };
        let uid = self.uid.as_ref();
        let uid = uid.map_or_else(String::new, |uid| format!(":{uid}"));
        format!("{}{uid}={destination}", self.event)
    }

    /// Whether every event that `later` matches ends here. Sound, not complete: it may
    /// overlook a covered rule, but never names one that is not.
    fn covers(&self, later: &Self) -> bool {
        let always_fills = match &self.action {
            Action::Drop => true,
            Action::To(template) => template.always_fills(),
        };
        let covers_uid = match (&self.uid, &later.uid) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(ours), Some(theirs)) if is_model(ours) == is_model(theirs) => {
                covers_glob(ours, theirs)
            }
            // A uid ends in the name of its model: told only where the pattern spells it out,
            // since a `*` or a `?` may stand for the dot in front of the name.
            (Some(ours), Some(theirs)) if is_model(ours) => theirs
                .rsplit_once('.')
                .is_some_and(|(_, model)| !model.contains(['*', '?']) && glob(ours, model)),
            (Some(_), Some(_)) => false,
        };
        always_fills && covers_glob(&self.event, &later.event) && covers_uid
    }
}

/// A pattern without `::` is about the model's name, unless it matches anything.
fn is_model(pattern: &str) -> bool {
    !pattern.contains("::")
}

fn matches_uid(pattern: &str, facts: &Facts) -> bool {
    if !is_model(pattern) {
        return facts.uid.as_ref().is_some_and(|uid| glob(pattern, uid));
    }
    let model = facts
        .model
        .as_deref()
        .or_else(|| facts.uid.as_deref().map(model_of));
    model.is_some_and(|model| glob(pattern, model))
}

fn model_of(uid: &str) -> &str {
    uid.rsplit('.').next().unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(kind: &str, uid: Option<&str>, model: Option<&str>) -> Facts {
        Facts {
            kind: kind.into(),
            uid: uid.map(str::to_owned),
            model: model.map(str::to_owned),
            document: None,
        }
    }

    fn article(kind: &str) -> Facts {
        facts(kind, Some("api::article.article"), Some("article"))
    }

    fn router(rules: &[&str], default: Option<&str>) -> Router {
        let routes = rules
            .iter()
            .map(|rule| Route::parse(rule).unwrap())
            .collect();
        Router::new(routes, default.map(|text| Template::parse(text).unwrap()))
    }

    fn goes(router: &Router, facts: &Facts) -> String {
        match router.route(facts) {
            Routing::To(destination) => destination.to_string(),
            Routing::Drop => "(drop)".into(),
            Routing::NoRoute => "(no route)".into(),
        }
    }

    #[test]
    fn the_first_match_wins() {
        let router = router(
            &[
                "entry.publish:api::article.*=news",
                "entry.*:page=pages",
                "media.*=drop",
                "entry.delete:api::*=queue:gone/https://example.com/{model}?x=1",
                "*:category=https://example.com/{uid}",
            ],
            Some("rest"),
        );
        for (facts, expected) in [
            (article("entry.publish"), "news"),
            (article("entry.update"), "rest"),
            (
                article("entry.delete"),
                "queue:gone/https://example.com/article?x=1",
            ),
            (
                facts("entry.update", Some("api::page.page"), Some("page")),
                "pages",
            ),
            (facts("entry.publish", None, Some("page")), "pages"),
            (facts("entry.publish", Some("api::x.page"), None), "pages"),
            (facts("media.create", None, None), "(drop)"),
            (
                facts("a", Some("api::category.category"), Some("category")),
                "https://example.com/api%3A%3Acategory.category",
            ),
            (facts("trigger-test", None, None), "rest"),
        ] {
            assert_eq!(goes(&router, &facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn templates_give_names_that_qstash_takes() {
        assert_eq!(
            goes(
                &router(&["*=strapi.{action}"], None),
                &article("entry.create")
            ),
            "strapi.create"
        );
        assert_eq!(
            goes(&router(&["*={event}"], None), &article("trigger-test")),
            "trigger-test"
        );
        assert_eq!(
            goes(&router(&["*={uid}"], None), &article("entry.create")),
            "api--article.article"
        );
    }

    #[test]
    fn a_rule_that_cannot_be_filled_in_lets_the_next_one_try() {
        let media = facts("media.create", None, None);
        assert_eq!(
            goes(&router(&["*={model}", "media.*=files"], None), &media),
            "files"
        );
        assert_eq!(goes(&router(&["*={model}"], Some("rest")), &media), "rest");
        assert_eq!(goes(&router(&["*={model}"], None), &media), "(no route)");
    }

    #[test]
    fn options_are_taken_from_the_query_and_the_rest_stays_the_endpoints() {
        let router = router(
            &["*=https://example.com/a?site=1&retries=5&delay=10s&b"],
            None,
        );
        let Routing::To(destination) = router.route(&article("entry.create")) else {
            panic!()
        };
        assert_eq!(destination.to_string(), "https://example.com/a?site=1&b");
        assert_eq!(destination.options.to_text(), "retries=5&delay=10s");
    }

    #[test]
    fn wrong_rules_say_what_to_write() {
        for (rule, told) in [
            ("news", "MATCH=DEST"),
            ("=news", "an event in front of the ="),
            ("entry.*:=news", "an event in front of the ="),
            ("entry.*=", "destination is missing"),
            ("entry.*=my group", "letters, digits"),
            ("entry.*={modle}", "{model}"),
            ("entry.*={model", "brace"),
            ("entry.*=news?retrys=1", "retry-delay"),
            ("entry.*=news?delay=10", "10s"),
            ("entry.*=queue:q/news?delay=10s", "queue"),
            ("entry.*=drop?retries=1", "drop"),
            ("entry.*=https://exa mple.com", "URL"),
        ] {
            let error = Route::parse(rule).unwrap_err().to_string();
            assert!(error.contains(told), "{rule}: {error}");
        }
    }

    #[test]
    fn a_rule_that_can_never_match_is_found() {
        for (earlier, later, shadowed) in [
            ("*=a", "entry.create=b", true),
            ("entry.*=a", "entry.create:api::article.article=b", true),
            ("entry.*=a", "entry.*=b", true),
            (
                "entry.*:article=a",
                "entry.publish:api::article.article=b",
                true,
            ),
            ("entry.*:api::*=a", "entry.*:api::article.article=b", true),
            ("entry.?reate=drop", "entry.create=b", true),
            ("entry.create=a", "entry.*=b", false),
            ("entry.*:article=a", "entry.*=b", false),
            ("entry.*:article=a", "entry.*:api::article.*=b", false),
            ("entry.*:api::article.article=a", "entry.*:article=b", false),
            ("*:api*=a", "*:api::*ya=b", false),
            ("*:a?a=a", "*:api::x.a?a=b", false),
            ("entry.?=a", "entry.*=b", false),
            ("entry.*={model}", "entry.create=b", false),
            ("entry.*={action}", "entry.create=b", true),
        ] {
            assert_eq!(
                !router(&[earlier, later], None).shadowed().is_empty(),
                shadowed,
                "{earlier} {later}"
            );
        }
    }
}
