use std::collections::BTreeSet;
use std::process::Command;

use crate::harness::binary;

fn readme() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap()
}

fn help(args: &[&str]) -> String {
    String::from_utf8(
        Command::new(binary())
            .args(args)
            .arg("--help")
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap()
}

/// The words that begin with `--`, without what follows them.
fn flags(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|word| word.len() > 2 && word.starts_with("--") && !word.starts_with("---"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_flag_in_the_readme_exists() {
    let of_others = [
        "--release",
        "--locked",
        "--path",
        "--read-only",
        "--rm",
        "--cap-drop",
        "--bench",
        "--events",
        "--features",
        "--test",
    ];
    let mut known: BTreeSet<String> = [
        &[][..],
        &["dev"],
        &["strapi-bootstrap"],
        &["healthcheck"],
        &["verify"],
        &["check"],
        &["topics", "remove"],
        &["events", "list"],
        &["events", "show"],
        &["events", "replay"],
        &["events", "export"],
    ]
    .iter()
    .flat_map(|command| flags(&help(command)))
    .collect();
    known.extend(of_others.map(str::to_owned));
    let unknown: Vec<String> = flags(&readme())
        .into_iter()
        .filter(|flag| !known.contains(flag))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn every_metric_in_the_readme_exists() {
    let usage = strapi_qstash::buffer::Usage {
        used_bytes: 1,
        limit_bytes: 2,
        free_bytes: Some(3),
    };
    let gauges = strapi_qstash::metrics::Gauges {
        usage: Some(usage),
        ..Default::default()
    };
    let text = strapi_qstash::metrics::Metrics::default().render(&gauges);
    for word in readme().split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
        if word.starts_with("strapi_qstash_") {
            assert!(text.contains(word), "{word}");
        }
    }
}

#[test]
fn every_route_in_the_readme_is_one() {
    let readme = readme();
    let section = readme
        .split("## Routes")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    let routes: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `'")?.split_once("'` |"))
        .map(|(route, _)| route)
        .collect();
    assert!(routes.len() >= 6, "{routes:?}");
    for route in routes {
        strapi_qstash::router::Route::parse(route)
            .unwrap_or_else(|error| panic!("{route}: {error}"));
    }
}

#[test]
fn the_start_command_of_the_readme_is_accepted() {
    let readme = readme();
    let line = readme
        .lines()
        .find(|line| line.contains("strapi-qstash --topic"))
        .unwrap();
    let words: Vec<String> = line.split_whitespace().skip(1).map(str::to_owned).collect();
    assert_eq!(words[0], "strapi-qstash");
    let args = crate::harness::parse(&words[1..]);
    assert!(args.topic.is_some() && args.data_dir.is_some());
}

#[tokio::test]
async fn the_example_receiver_verifies_what_qstash_delivers() {
    use crate::harness::{LONG, QStash};
    use tokio::io::{AsyncBufReadExt, BufReader};

    // A plain `cargo test` has built it; `cargo test --test it` has not.
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--example", "receiver"])
        .status();
    assert!(built.unwrap().success());
    let receiver = binary().parent().unwrap().join("examples/receiver");
    let mut process = tokio::process::Command::new(receiver)
        .env("LISTEN", "127.0.0.1:0")
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let url = lines.next_line().await.unwrap().unwrap();
    let url = url.strip_prefix("Receiving at ").unwrap();

    let qstash = QStash::start().await;
    qstash
        .server
        .upsert_endpoints("example", &[(None, url)])
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let process =
        crate::harness::Process::start(&dir, &qstash, None, &["--route", "*=example"]).await;
    let mut client = crate::harness::Client::connect(process.webhook).await;
    let answer = client
        .post("/webhook", r#"{"event":"entry.publish"}"#)
        .await;
    let line = tokio::time::timeout(LONG, lines.next_line())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let id = answer.header("x-event-id").unwrap();
    assert_eq!(
        line,
        format!("entry.publish {id}: 25 bytes, signature verified")
    );

    // A stranger is refused.
    let address = url
        .strip_prefix("http://")
        .unwrap()
        .trim_end_matches('/')
        .parse()
        .unwrap();
    let answer = crate::harness::Client::connect(address)
        .await
        .post("/", "{}")
        .await;
    assert_eq!(answer.status, 401);
}
