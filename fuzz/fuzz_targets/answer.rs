//! A status, the size of a batch, headers, an empty line and a body: what QStash's answer means.
//!
//! An event leaves the buffer when it is accepted, so success is what must not be made up.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use strapi_qstash::qstash::fuzzing::Given;
use strapi_qstash::qstash::{BatchOutcome, Outcome};

const LONGEST_WAIT: Duration = Duration::from_secs(25 * 3600);

fuzz_target!(|input: &[u8]| {
    let end = input.windows(2).position(|two| two == b"\n\n");
    let (head, body) = input.split_at(end.unwrap_or(input.len()));
    let body = body.get(2..).unwrap_or_default();
    let Ok(head) = std::str::from_utf8(head) else {
        return;
    };
    let mut lines = head.lines();
    let Some((status, count)) = lines.next().and_then(|line| line.split_once(' ')) else {
        return;
    };
    let (Ok(status), Ok(count)) = (status.parse(), count.parse()) else {
        return;
    };
    let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(": ")).collect();
    let Some(answer) = Given::new(status, &headers, body) else {
        return;
    };

    let spoken = serde_json::from_slice(body).ok();
    let spoken = spoken.filter(|_: &Value| (200..300).contains(&status));
    check(&answer.to_message(), spoken.as_ref());
    match (answer.to_batch(count), spoken) {
        (BatchOutcome::Each(outcomes), Some(Value::Array(elements))) => {
            assert_eq!(outcomes.len(), count);
            assert_eq!(elements.len(), count);
            for (outcome, element) in outcomes.iter().zip(&elements) {
                check(outcome, Some(element));
            }
        }
        (BatchOutcome::Each(_), spoken) => panic!("read message by message: {spoken:?}"),
        (BatchOutcome::Whole(outcome), _) => {
            assert!(
                !matches!(outcome, Outcome::Accepted { .. }),
                "a whole batch is accepted"
            );
            check(&outcome, None);
        }
    }
});

/// `spoken` is what QStash says of the message, if anything.
fn check(outcome: &Outcome, spoken: Option<&Value>) {
    match outcome {
        Outcome::Accepted {
            message_ids,
            duplicate,
        } => {
            let spoken = spoken.expect("accepted though QStash has said nothing");
            let accepted: Vec<&Value> = endpoints(spoken)
                .into_iter()
                .filter(|endpoint| endpoint["error"].is_null())
                .collect();
            let ids: Vec<&str> = accepted
                .iter()
                .map(|endpoint| {
                    endpoint["messageId"]
                        .as_str()
                        .expect("accepted without a message id")
                })
                .collect();
            assert_eq!(message_ids, &ids);
            assert_eq!(
                *duplicate,
                accepted
                    .iter()
                    .any(|endpoint| endpoint["deduplicated"] == true)
            );
            // A group without endpoints; else someone must have got it.
            assert!(
                !ids.is_empty() || endpoints(spoken).is_empty(),
                "all endpoints refused it"
            );
        }
        Outcome::Limited { wait, reason, .. } | Outcome::Unreachable { wait, reason, .. } => {
            let bounds = Duration::from_secs(1)..=LONGEST_WAIT;
            assert!(wait.is_none_or(|wait| bounds.contains(&wait)), "{wait:?}");
            check_words(reason);
        }
        Outcome::Rejected { reason }
        | Outcome::TooLarge { reason }
        | Outcome::UnknownDestination { reason }
        | Outcome::Unauthorized { reason, .. } => check_words(reason),
    }
}

/// What is said of each endpoint: an object of a URL, an array or `messages` of a group.
fn endpoints(spoken: &Value) -> Vec<&Value> {
    match spoken["messages"].as_array().or(spoken.as_array()) {
        Some(endpoints) => endpoints.iter().collect(),
        None => vec![spoken],
    }
}

/// They go into a log line.
fn check_words(reason: &str) {
    assert!(!reason.contains(char::is_control), "{reason:?}");
    assert!(reason.chars().count() < 1000, "{reason}");
}
