//! Answers that QStash, or whatever stands between, could give.

use std::sync::Arc;

use serde_json::{Value, json};
use strapi_qstash::clock;

use super::framings;
use super::scripted::{Answer, Asked, Kind, Script, Then};

/// One answer to one request.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) script: Script,
    /// Whether it says that the message is wrong, so that it may be a dead letter.
    pub(super) may_bury: bool,
}

pub(super) const HTML: &str =
    "<html><head><title>Oh</title></head><body><h1>Something</h1></body></html>";

/// Every status with this body; with `lines` chosen by the status.
pub(super) fn statuses(which: impl Iterator<Item = (u16, usize)>) -> Vec<Case> {
    which
        .map(|(status, turn)| status_case(status, turn))
        .collect()
}

/// How many turns [`statuses`] knows.
pub(super) const TURNS: usize = BODIES * 2;

const BODIES: usize = 8;

fn status_case(status: u16, turn: usize) -> Case {
    let kind = match turn / BODIES {
        0 => Kind::Single,
        _ => Kind::Batch,
    };
    let body = turn % BODIES;
    let words = [
        Some(r#"{"error":"no such thing"}"#),
        Some(HTML),
        Some(""),
        None, // the right answer
        Some(r#"{"error":"topic news not found"}"#),
        Some(r#"{"error":"quota maxMessageSize exceeded, current limit: 1048576"}"#),
        Some(r#"{"error":"user not found in this region"}"#),
        Some(r#"[{"messageId":"#),
    ][body];
    let lines = hint(status, turn);
    let is_refusal = words.is_some_and(|words| {
        let plain =
            matches!(status, 400..=499) && ![401, 403, 404, 407, 408, 425, 429].contains(&status);
        let quota = matches!(status, 500..=599) && words.contains("quota ");
        let told = matches!(status, 200..=299) && words.contains("\"error\"");
        plain || quota || told
    });
    // Without a body of its own a 4xx is one all the same.
    let is_refusal = is_refusal || (words.is_none() && matches!(status, 400..=499));
    Case {
        name: format!("{kind:?} {status} {:?} {words:?}", lines.trim()),
        kind,
        script: Arc::new(move |asked| {
            let body = match words {
                Some(words) => words.to_owned(),
                None if matches!(status, 200..=299) => asked.accept().to_string(),
                None => fake(asked.count).to_string(),
            };
            match status {
                // These have no body, whatever their length says.
                204 | 205 | 304 => Answer {
                    then: Then::Close,
                    ..Answer::new(status, &lines, body.as_bytes())
                },
                _ => Answer::new(status, &lines, body.as_bytes()),
            }
        }),
        may_bury: is_refusal,
    }
}

/// A header that says when to come again, or that says nonsense.
fn hint(status: u16, turn: usize) -> String {
    let soon = clock::now()
        .plus(std::time::Duration::from_secs(1))
        .as_secs();
    match (usize::from(status) + turn) % 12 {
        0 => "retry-after: 1\r\n".to_owned(),
        1 => "retry-after: soon\r\n".to_owned(),
        2 => "retry-after: -5\r\n".to_owned(),
        3 => "retry-after: Mon, 01 Jan 1990 00:00:00 GMT\r\n".to_owned(),
        4 => format!(
            "ratelimit-limit: 1000\r\nratelimit-remaining: 0\r\nratelimit-reset: {soon}\r\n"
        ),
        5 => format!("burst-ratelimit-limit: 1\r\nburst-ratelimit-reset: {soon}\r\n"),
        6 => "ratelimit-limit: many\r\nratelimit-reset: \r\n".to_owned(),
        7 => "ratelimit-reset: -99999999999999999999\r\n".to_owned(),
        8 => "date: yesterday\r\nburst-ratelimit-reset: 1\r\n".to_owned(),
        _ => String::new(),
    }
}

/// What looks like a right answer and is none: nothing was taken.
pub(super) fn fake(count: usize) -> Value {
    json!(vec![json!([{ "messageId": "msg_fake" }]); count])
}

/// Everything else, some of it for single publishes and batches alike.
pub(super) fn others() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [Kind::Single, Kind::Batch] {
        bodies(&mut cases, kind);
        framings::wrong(&mut cases, kind);
        framings::right(&mut cases, kind);
    }
    singles(&mut cases);
    batches(&mut cases);
    cases
}

pub(super) fn add(
    cases: &mut Vec<Case>,
    kind: Kind,
    name: &str,
    script: impl Fn(&mut Asked<'_>) -> Answer + Send + Sync + 'static,
) {
    cases.push(Case {
        name: format!("{kind:?} {name}"),
        kind,
        script: Arc::new(script),
        may_bury: false,
    });
}

/// Answers to a publish that are JSON, and do not say that QStash has it.
fn singles(cases: &mut Vec<Case>) {
    for body in [
        "null",
        "true",
        "200",
        r#""accepted""#,
        "[null]",
        r#"["accepted"]"#,
        r#"[[{"messageId":"msg_fake"}]]"#,
        r#"{"error":{"code":5}}"#,
        r#"[{"error":17}]"#,
        r#"{"messages":[null]}"#,
    ] {
        add(cases, Kind::Single, body, move |_| {
            Answer::new(200, "", body.as_bytes())
        });
    }
}

/// Answers to batches that are no array with an element for each message, or whose elements
/// tell nothing.
fn batches(cases: &mut Vec<Case>) {
    let mut add_json = |name: &str, shape: fn(usize) -> Value| {
        add(cases, Kind::Batch, name, move |asked| {
            Answer::new(200, "", shape(asked.count).to_string().as_bytes())
        });
    };
    add_json("one too few", |count| fake(count - 1));
    add_json("one too many", |count| fake(count + 1));
    add_json("none", |_| json!([]));
    add_json("in one more array", |count| json!([fake(count)]));
    add_json("an object", |_| json!({ "messageId": "msg_fake" }));
    add_json(
        "an object of messages",
        |count| json!({ "messages": fake(count) }),
    );
    add_json("by number", |count| {
        (0..count).map(|n| (n.to_string(), json!({}))).collect()
    });
    add_json("a text", |_| json!("accepted"));
    add_json("a number", |count| json!(count));
    add_json("nothings", |count| json!(vec![Value::Null; count]));
    add_json("texts", |count| json!(vec!["accepted"; count]));
    add_json("numbers", |count| json!(vec![200; count]));
    add_json("truths", |count| json!(vec![true; count]));
    add_json("arrays of nothings", |count| {
        json!(vec![json!([null]); count])
    });
    add_json("errors that are objects", |count| {
        json!(vec![json!({"error": {"code": 5}}); count])
    });
    add_json("errors that are numbers", |count| {
        json!(vec![json!({"error": 17}); count])
    });
    add_json("arrays of errors that are objects", |count| {
        json!(vec![json!([{"error": {"message": "no"}}]); count])
    });
    cases.push(Case {
        name: "Batch errors".to_owned(),
        kind: Kind::Batch,
        script: Arc::new(|asked| {
            let answers: Value = (0..asked.count).map(|at| asked.refuse_one(at)).collect();
            Answer::new(200, "", answers.to_string().as_bytes())
        }),
        may_bury: true,
    });
    cases.push(Case {
        name: "Batch one error among the others".to_owned(),
        kind: Kind::Batch,
        script: Arc::new(|asked| {
            let answers = (0..asked.count).map(|at| match at {
                1 => asked.refuse_one(at),
                _ => asked.accept_one(at),
            });
            let answers: Value = answers.collect();
            Answer::new(200, "", answers.to_string().as_bytes())
        }),
        may_bury: true,
    });
}

/// Bodies that are no JSON, or hard to read.
fn bodies(cases: &mut Vec<Case>, kind: Kind) {
    let mut add_body = |name: &str, status: u16, lines: &'static str, body: Vec<u8>| {
        add(cases, kind, name, move |_| {
            Answer::new(status, lines, &body)
        });
    };
    let page = HTML.repeat(200_000);
    add_body(
        "200 with megabytes of HTML",
        200,
        "",
        page.clone().into_bytes(),
    );
    add_body("502 with megabytes of HTML", 502, "", page.into_bytes());
    add_body(
        "200 with bytes that are no UTF-8",
        200,
        "",
        b"[{\"messageId\":\"\xff\xfe\"}]".to_vec(),
    );
    add_body(
        "200 with half of a text",
        200,
        "",
        b"[{\"messageId\":\"msg_".to_vec(),
    );
    add_body(
        "200 with two values",
        200,
        "",
        br#"[{"messageId":"a"}] [{"messageId":"b"}]"#.to_vec(),
    );
    add_body(
        "200 with a comma too many",
        200,
        "",
        br#"[{"messageId":"a"},]"#.to_vec(),
    );
    add_body("200 with deep arrays", 200, "", [b'['].repeat(100_000));
    add_body("200 with a zero byte", 200, "", b"\0".to_vec());
    add_body("200 with NaN", 200, "", b"NaN".to_vec());
    add_body(
        "200 with gzip",
        200,
        "content-encoding: gzip\r\n",
        vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3],
    );
    // These are the right answer in a strange dress: whether it is understood or the request is
    // repeated, nothing is lost and nothing there twice.
    let mut add_right = |name: &str, lines: &'static str, dress: fn(String) -> Vec<u8>| {
        add(cases, kind, name, move |asked| {
            Answer::new(200, lines, &dress(asked.accept().to_string()))
        });
    };
    add_right(
        "right, said to be gzip",
        "content-encoding: gzip\r\n",
        String::into_bytes,
    );
    add_right(
        "right, said to be HTML",
        "content-type: text/html\r\n",
        String::into_bytes,
    );
    add_right("right, with a mark of its byte order", "", |json| {
        format!("\u{feff}{json}").into_bytes()
    });
    add_right("right, in nine megabytes", "", |json| {
        format!("{}{json}", " ".repeat(9 << 20)).into_bytes()
    });
    add_right(
        "right, in UTF-16",
        "content-type: application/json; charset=utf-16\r\n",
        |json| json.encode_utf16().flat_map(u16::to_le_bytes).collect(),
    );
}

/// Every redirect, to an address that is not QStash's and to a path that is not the group's.
pub(super) fn redirects(elsewhere: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [Kind::Single, Kind::Batch] {
        for status in [300, 301, 302, 303, 305, 307, 308] {
            for to in [
                format!("http://{elsewhere}/v2/publish/news"),
                format!("//{elsewhere}/"),
                "/v2/publish/elsewhere".to_owned(),
            ] {
                let lines = format!("location: {to}\r\nrefresh: 0;url={to}\r\n");
                add(
                    &mut cases,
                    kind,
                    &format!("{status} to {to}"),
                    move |asked| {
                        Answer::new(status, &lines, fake(asked.count).to_string().as_bytes())
                    },
                );
            }
        }
    }
    cases
}
