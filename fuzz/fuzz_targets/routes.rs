//! Rules, one a line, an empty line, and a webhook's body: where its event goes.
//!
//! A line that begins with `>` is the destination of what no rule matches.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strapi_qstash::destination::{DeliveryOptions, Destination, Target};
use strapi_qstash::event::Facts;
use strapi_qstash::router::{Route, Router, Routing, Template};

fuzz_target!(|input: &[u8]| {
    let Ok(input) = std::str::from_utf8(input) else {
        return;
    };
    let (rules, body) = input.split_once("\n\n").unwrap_or((input, ""));
    let mut facts = Facts::read(body.as_bytes()).unwrap_or_default();
    if facts.kind.is_empty() {
        facts.kind = "unknown".to_owned(); // as the way in does
    }
    let (mut routes, mut default) = (Vec::new(), None);
    for line in rules.lines() {
        if let Some(destination) = line.strip_prefix('>') {
            default = Template::parse(destination).ok().or(default);
        } else if let Ok(route) = Route::parse(line) {
            assert_eq!(Route::parse(&format!(" {line}\t")).as_ref(), Ok(&route));
            check_match(line, &route, &facts);
            routes.push(route);
        }
    }

    let alone = |route: &Route| Router::new(vec![route.clone()], None).route(&facts);
    let by_default = Router::new(Vec::new(), default.clone()).route(&facts);
    let router = Router::new(routes.clone(), default);
    let first = routes
        .iter()
        .map(alone)
        .find(|routing| *routing != Routing::NoRoute);
    let routing = router.route(&facts);
    assert_eq!(routing, first.unwrap_or(by_default), "the first match wins");

    if is_like_strapis(&facts) {
        for (shadowed, earlier) in router.shadowed() {
            let routed = |rule: &Route| alone(rule) != Routing::NoRoute;
            assert!(
                !routed(shadowed) || routed(earlier),
                "{shadowed:?} is said to be covered by {earlier:?}, but takes {facts:?}"
            );
        }
    }

    if let Routing::To(destination) = routing {
        check_stored(&destination);
    }
});

/// A rule matches what its globs match, and nothing else.
fn check_match(line: &str, route: &Route, facts: &Facts) {
    let (pattern, _) = line.split_once('=').expect("it is a rule");
    let (kind, uid) = match pattern.split_once(':') {
        Some((kind, uid)) => (kind.trim(), Some(uid.trim())),
        None => (pattern.trim(), None),
    };
    let model = || {
        let of_uid = || {
            facts
                .uid
                .as_ref()
                .and_then(|uid| uid.split('.').next_back())
        };
        facts.model.as_deref().or_else(of_uid)
    };
    let name_matches = match uid {
        None => true,
        Some(uid) if uid.contains("::") => facts.uid.as_ref().is_some_and(|is| glob(uid, is)),
        Some(name) => model().is_some_and(|is| glob(name, is)),
    };
    let expected = glob(kind, &facts.kind) && name_matches;
    let dropping = Route::parse(&format!("{pattern}=drop")).expect("the match is a good one");
    let dropped = Router::new(vec![dropping], None).route(facts) == Routing::Drop;
    assert_eq!(dropped, expected, "{pattern:?} on {facts:?}");
    let routed = Router::new(vec![route.clone()], None).route(facts) != Routing::NoRoute;
    assert!(expected || !routed, "{line:?} takes {facts:?}");
}

/// Glob by the table of all beginnings: slow and plain.
fn glob(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    // Whether the pattern so far matches the first n characters.
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    for p in pattern.chars() {
        if p == '*' {
            for n in 1..row.len() {
                row[n] |= row[n - 1];
            }
        } else {
            for n in (1..row.len()).rev() {
                row[n] = row[n - 1] && (p == '?' || p == text[n - 1]);
            }
            row[0] = false;
        }
    }
    row[text.len()]
}

/// As Strapi's events are, which the covering of rules relies on: a uid ends in its model's name,
/// which has no dots or colons, and no kind ends in its dot.
fn is_like_strapis(facts: &Facts) -> bool {
    if facts.action().is_empty() {
        return false;
    }
    let is_name = |model: &str| !model.is_empty() && !model.contains(['.', ':']);
    match (&facts.uid, &facts.model) {
        (Some(uid), Some(model)) => {
            is_name(model)
                && uid
                    .strip_suffix(model.as_str())
                    .is_some_and(|rest| rest.ends_with('.'))
        }
        (_, model) => model.as_deref().is_none_or(is_name),
    }
}

/// A destination is stored as text and read again to publish: to the same place, or nowhere.
fn check_stored(destination: &Destination) {
    match destination.to_string().parse::<Destination>() {
        Ok(again) => {
            assert_eq!(again.queue, destination.queue);
            assert_eq!(again.target, destination.target);
        }
        // A URL may have become wrong by what was filled in; such an event is a dead letter.
        Err(error) => assert!(
            matches!(destination.target, Target::Url(_)),
            "{destination}: {error}"
        ),
    }
    let options = destination.options.to_text();
    assert_eq!(
        DeliveryOptions::parse(&options).as_ref(),
        Ok(&destination.options),
        "{options}"
    );
}
