use std::process::{Command, Output};

use strapi_qstash::dev_server::DEVELOPMENT_TOKEN;

use crate::harness::{Process, QStash, binary};

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .current_dir(std::env::temp_dir());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_mistake_is_reported_in_one_run_with_its_flag() {
    let output = run(&[
        "--listen",
        "0.0.0.0:8787",
        "--admin-listen",
        "here",
        "--max-body",
        "32",
        "--buffer-max",
        "lots",
        "--keep-delivered",
        "24",
        "--max-age",
        "0",
        "--qstash-url",
        "qstash.upstash.io",
        "--qstash-api",
        "v3",
        "--ca-file",
        "/nowhere/ca.pem",
        "--route",
        "news",
        "--route",
        "entry.*={modle}",
        "--retries",
        "many",
        "--delay",
        "10",
        "--log-format",
        "xml",
        "--shutdown-grace",
        "soon",
    ]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    for flag in [
        "--listen",
        "--admin-listen",
        "--max-body",
        "--buffer-max",
        "--keep-delivered",
        "--max-age",
        "QSTASH_TOKEN",
        "--qstash-url",
        "--qstash-api",
        "--ca-file",
        "--retries",
        "--delay",
        "--log-format",
        "--shutdown-grace",
    ] {
        assert!(
            told.lines()
                .any(|line| line.starts_with(&format!("{flag}:"))),
            "{flag} is missing in\n{told}"
        );
    }
    assert_eq!(
        told.lines()
            .filter(|line| line.starts_with("--route:"))
            .count(),
        2,
        "{told}"
    );
    assert!(
        told.contains("32MiB") && told.contains("24h"),
        "it says what to write:\n{told}"
    );
}

#[test]
fn a_typed_flag_wins_over_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "from-a-file").unwrap();
    // With both from the environment it cannot be told which is meant.
    let try_with = |typed: &[&str]| {
        let mut command = Command::new(binary());
        command
            .env("QSTASH_TOKEN", "x")
            .env("STRAPI_QSTASH_QSTASH_TOKEN_FILE", &file)
            .env("STRAPI_QSTASH_RETRIES", "no");
        text(&command.args(typed).output().unwrap().stderr)
    };
    assert!(try_with(&[]).contains("--qstash-token: there is a --qstash-token-file too"));
    assert!(!try_with(&["--qstash-token-file", file.to_str().unwrap()]).contains("--qstash-token"));
    assert!(!try_with(&["--qstash-token", "y"]).contains("leave one of them out"));
}

#[test]
fn wrong_usage_is_2_and_help_is_0() {
    assert_eq!(run(&["--no-such-flag"]).status.code(), Some(2));
    assert_eq!(run(&["nonsense"]).status.code(), Some(2));
    for args in [
        &["--help"][..],
        &["serve", "--help"],
        &["dev", "--help"],
        &["strapi-bootstrap", "--help"],
        &["healthcheck", "--help"],
        &["verify", "--help"],
        &["--version"],
    ] {
        assert_eq!(run(args).status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn help_shows_every_flag_and_no_secret() {
    let mut command = Command::new(binary());
    for (name, value) in [
        ("QSTASH_TOKEN", "tok3n-value"),
        ("STRAPI_QSTASH_WEBHOOK_SECRET", "hook-secret-value"),
        ("STRAPI_QSTASH_ADMIN_TOKEN", "admin-token-value"),
    ] {
        command.env(name, value);
    }
    let help = text(&command.arg("--help").output().unwrap().stdout);
    assert!(!help.contains("-value"), "{help}");
    for flag in [
        "listen",
        "webhook-secret",
        "webhook-secret-file",
        "max-body",
        "dangerous-no-auth",
        "qstash-token",
        "qstash-token-file",
        "qstash-url",
        "qstash-api",
        "ca-file",
        "topic",
        "route",
        "retries",
        "retry-delay",
        "delay",
        "timeout",
        "callback",
        "failure-callback",
        "method",
        "label",
        "flow-control",
        "forward-header",
        "redact",
        "buffer",
        "data-dir",
        "buffer-max",
        "keep-delivered",
        "max-age",
        "admin-listen",
        "no-admin",
        "admin-token",
        "shutdown-grace",
        "log-format",
        "log",
    ] {
        assert!(
            help.contains(&format!("--{flag} ")) || help.contains(&format!("--{flag}\n")),
            "--{flag}\n{help}"
        );
    }
}

#[tokio::test]
async fn the_environment_sets_flags_and_secrets_are_in_no_log() {
    let qstash = QStash::start().await;
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--webhook-secret", "hook-secret-value", "--log", "trace"];
    let mut process = Process::start(&dir, &qstash, None, &flags).await;
    let mut client = crate::harness::Client::connect(process.webhook).await;
    let headers = [
        "Content-Type: application/json",
        "Authorization: Bearer hook-secret-value",
    ];
    assert_eq!(
        client.post_with("/webhook", &headers, b"{}").await.status,
        202
    );
    qstash.wait_for(1, crate::harness::LONG).await;
    process.signal("TERM");
    assert_eq!(process.exit_code().await, Some(0));
    let log = process.log();
    assert!(
        log.contains("Delivered") && log.contains("--webhook-secret"),
        "{log}"
    );
    for secret in [DEVELOPMENT_TOKEN, "hook-secret-value"] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn a_second_sidecar_on_the_same_buffer_is_refused_and_the_first_goes_on() {
    let qstash = QStash::start().await;
    let dir = tempfile::tempdir().unwrap();
    let first = Process::start(&dir, &qstash, None, &[]).await;
    let second = run(&[
        "--listen",
        "127.0.0.1:0",
        "--no-admin",
        "--topic",
        "news",
        "--qstash-token",
        "x",
        "--data-dir",
        dir.path().to_str().unwrap(),
    ]);
    assert_eq!(second.status.code(), Some(1));
    let told = text(&second.stderr);
    assert!(
        told.contains("another strapi-qstash") && told.contains("--buffer"),
        "{told}"
    );

    // And anyone may read beside it.
    let db = rusqlite::Connection::open(dir.path().join("strapi-qstash.db")).unwrap();
    let mut client = crate::harness::Client::connect(first.webhook).await;
    assert_eq!(client.post("/webhook", "{}").await.status, 202);
    let count: i64 = db
        .query_row("SELECT count(*) FROM event", [], |row| row.get(0))
        .unwrap();
    assert_eq!(count, 1);
}

#[test]
fn a_buffer_that_cannot_be_used_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let notes = dir.path().join("notes.txt");
    std::fs::write(&notes, "this is no buffer").unwrap();
    let notes = notes.to_str().unwrap();
    for (flag, path) in [
        ("--buffer", notes.to_owned()),
        ("--data-dir", format!("{notes}/below")),
        ("--buffer", "/proc/strapi-qstash.db".to_owned()),
    ] {
        let output = run(&[
            "--listen",
            "127.0.0.1:0",
            "--no-admin",
            "--qstash-token",
            "x",
            "--topic",
            "a",
            flag,
            &path,
        ]);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        let last = told.lines().last().unwrap();
        assert!(
            last.contains(&path) && last.contains("choose another with --"),
            "{told}"
        );
    }
    assert_eq!(std::fs::read_to_string(notes).unwrap(), "this is no buffer");
}

#[test]
fn a_port_in_use_is_named_with_its_flag() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&[
        "--listen",
        &address,
        "--qstash-token",
        "x",
        "--topic",
        "news",
    ]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains(&address) && told.contains("--listen"),
        "{told}"
    );
}

#[test]
fn a_route_that_can_never_match_is_a_warning_at_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let routes = ["--route", "entry.*=a", "--route", "entry.create=b"];
    let output = run(&[&["--listen", &address, "--qstash-token", "x"], &routes[..]].concat());
    let told = text(&output.stderr);
    assert!(
        told.contains("can never match") && told.contains("entry.create=b"),
        "{told}"
    );
}

#[test]
fn dev_sends_the_sample_through_the_whole_chain() {
    let output = run(&[
        "dev",
        "--send-sample",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--qstash-listen",
        "127.0.0.1:0",
        "--catcher-listen",
        "127.0.0.1:0",
    ]);
    let told = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{told}{}",
        text(&output.stderr)
    );
    assert!(
        told.contains("signature verified, body identical"),
        "{told}"
    );
}

#[test]
fn strapi_bootstrap_prints_the_file_and_nothing_else() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/commands/strapi_bootstrap");
    for (args, file) in [
        (&["strapi-bootstrap"][..], "bootstrap.js"),
        (&["strapi-bootstrap", "--typescript"], "bootstrap.ts"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(
            text(&output.stdout),
            std::fs::read_to_string(format!("{folder}/{file}")).unwrap()
        );
        assert_eq!(text(&output.stderr), "", "the hint is for a terminal");
    }
    let output = run(&["strapi-bootstrap", "--listen", "nowhere"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("--listen: "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn healthcheck_tells_by_its_exit_code_and_says_why() {
    let qstash = QStash::start().await;
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(&dir, &qstash, None, &[]).await;
    let admin = process.admin_address().await.to_string();
    let ask = |admin: &str| run(&["healthcheck", "--admin-listen", admin]);
    let well = ask(&admin);
    assert_eq!(
        (well.status.code(), text(&well.stdout)),
        (Some(0), "ready\n".into())
    );
    let alive = run(&["healthcheck", "--live", "--admin-listen", &admin]);
    assert_eq!(
        (alive.status.code(), text(&alive.stdout)),
        (Some(0), "ok\n".into())
    );

    // Not the sidecar, but something that answers.
    let wrong = ask(&qstash.server.url().replace("http://", ""));
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("answered 4"), "{wrong:?}");

    process.kill().await;
    let dead = ask(&admin);
    assert_eq!(dead.status.code(), Some(1));
    assert!(
        text(&dead.stderr).contains(&format!("no answer from http://{admin}/readyz")),
        "{dead:?}"
    );
    assert_eq!(ask("here").status.code(), Some(2));
}

#[test]
fn completions_know_every_command_and_the_man_page_every_flag() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        let printed = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        for word in ["events", "topics", "check", "replay", "qstash-token-file"] {
            assert!(printed.contains(word), "{shell} {word}");
        }
    }
    let output = run(&["completions", "cmd"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("zsh"));

    let page = text(&run(&["man"]).stdout);
    assert!(page.starts_with(".ie") || page.starts_with(".TH") || page.contains(".TH "));
    for flag in ["buffer\\-max", "keep\\-delivered", "admin\\-listen"] {
        assert!(page.contains(flag), "{flag} in\n{page}");
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man");
    let output = run(&["man", "--out", out.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(out.join("strapi-qstash-events-show.1").is_file());
}
