use std::time::Duration;

use strapi_qstash::dev_server::{DEVELOPMENT_TOKEN, Fault};

use crate::harness::{LONG, QStash, Said, TestApp, binary, command, run_on, update, wait_until};

fn grades<'a>(said: &'a Said, grade: &str) -> Vec<&'a str> {
    said.out
        .lines()
        .filter(|line| line.starts_with(grade))
        .collect()
}

#[tokio::test]
async fn a_missing_group_is_told_by_check_made_by_topics_and_its_events_go_out_at_once() {
    let app = TestApp::builder()
        .no_topic()
        .flag("--topic", "fresh")
        .hold(Duration::from_secs(3600))
        .start()
        .await;
    app.post_updates(20).await;
    let held = || async {
        app.admin("/api/status")
            .await
            .body
            .contains(r#""held":["fresh"]"#)
    };
    let deadline = std::time::Instant::now() + LONG;
    while !held().await {
        assert!(std::time::Instant::now() < deadline);
    }
    let check = ["check", "--topic", "fresh"];
    let said = app.run(&check).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    let wrong = grades(&said, "WRONG");
    assert_eq!(wrong.len(), 1, "{said:?}");
    assert!(
        wrong[0].contains("fresh does not exist at QStash"),
        "{said:?}"
    );
    let mend = "-> strapi-qstash topics create fresh https://YOUR-RECEIVER";
    assert!(said.out.contains(mend), "{said:?}");
    assert!(said.out.contains("20 wait for QStash"), "{said:?}");

    let url = app.qstash.catcher.url("/fresh");
    let named = format!("site={url}");
    let said = app.run(&["topics", "create", "fresh", &named]).await;
    assert_eq!(said.lines(), ["Created the URL group fresh."]);
    assert!(said.err.contains("publishes what waited"), "{said:?}");
    app.qstash.wait_for(20, LONG).await;
    app.wait_until_drained().await;
    let said = app.run(&check).await;
    assert_eq!(grades(&said, "WRONG").len(), 0, "{said:?}");
    assert_eq!(said.code, Some(0));
    assert!(said.out.contains("fresh has 1 endpoint"), "{said:?}");
    assert!(wait_until(LONG, || app.qstash.catcher.received().len() == 20).await);

    // All of it, and back.
    let said = app.run(&["topics", "create", "fresh", &url]).await;
    assert!(
        said.code == Some(1) && said.err.contains("topics add fresh"),
        "{said:?}"
    );
    let second = app.qstash.catcher.url("/second");
    app.run(&["topics", "add", "fresh", &second]).await.lines();
    let said = app.run(&["topics", "list", "--json"]).await.json();
    let fresh = said.iter().find(|topic| topic["name"] == "fresh").unwrap();
    assert_eq!(fresh["endpoints"][0]["name"], "site");
    assert_eq!(fresh["endpoints"][1]["url"], second.as_str());
    let said = app.run(&["topics", "list"]).await;
    assert!(
        said.lines()[1..].iter().any(|line| line.contains(&second)),
        "{said:?}"
    );
    app.run(&["topics", "remove", "fresh", "site"])
        .await
        .lines();
    let said = app.run(&["topics", "remove", "fresh", &second]).await;
    assert!(
        said.code == Some(1) && said.err.contains("--yes"),
        "the last: {said:?}"
    );
    app.run(&["topics", "remove", "fresh", "--yes"])
        .await
        .lines();
    let said = app.run(&["topics", "add", "fresh", &url]).await;
    assert!(
        said.code == Some(1) && said.err.contains("topics create fresh"),
        "{said:?}"
    );
}

#[tokio::test]
async fn check_tells_each_thing_that_is_wrong_and_never_the_token() {
    let qstash = QStash::start().await;
    let dir = tempfile::tempdir().unwrap();
    let check = ["check", "--topic", "news"];
    let said = run_on(dir.path(), &qstash, &check).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.out.contains("will be made at the first start"),
        "{said:?}"
    );
    assert!(said.out.contains("strapi-bootstrap"), "{said:?}");
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "it makes nothing"
    );

    for (words, part) in [
        (&["--qstash-token", "wr0ng"][..], "refuses the token (401)"),
        (&["--qstash-url", "http://127.0.0.1:1"], "is unreachable"),
        (&["--max-body", "32"], "--max-body: "),
        (
            &["--route", "media.*=nowhere"],
            "nowhere does not exist at QStash",
        ),
        (&["--data-dir", "/etc/hostname/none"], "cannot be made"),
        (&["--buffer", "/etc/hostname"], "not a strapi-qstash buffer"),
        (&["--listen", "[::1]:8787"], "no IPv6 address"),
    ] {
        let said = run_on(dir.path(), &qstash, &[&check[..], words].concat()).await;
        assert_eq!(said.code, Some(1), "{words:?} {said:?}");
        assert!(
            grades(&said, "WRONG")
                .iter()
                .any(|line| line.contains(part)),
            "{words:?} {said:?}"
        );
        let all = format!("{}{}", said.out, said.err);
        assert!(!all.contains("wr0ng") && !all.contains(DEVELOPMENT_TOKEN));
    }
    let said = run_on(dir.path(), &qstash, &[&check[..], &["--json"]].concat()).await;
    assert!(
        said.json()
            .iter()
            .all(|finding| finding["grade"] != "wrong"),
        "{said:?}"
    );
    qstash.server.faults().set(Fault::Refuse).await;
    let said = run_on(dir.path(), &qstash, &check).await;
    assert!(said.out.contains("events are kept meanwhile"), "{said:?}");
}

#[tokio::test]
async fn endpoints_that_the_cloud_cannot_reach_are_refused_before_it_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    // Not loopback, so it counts as the cloud; nobody is there, and nobody is asked.
    let cloud = "http://192.0.2.1:9";
    for url in [
        "http://localhost:3000/hook",
        "https://10.0.0.7/hook",
        "http://site/hook",
    ] {
        let words = ["topics", "create", "news", url];
        let said: Said = command::command(dir.path(), cloud, None, &words)
            .output()
            .await
            .unwrap()
            .into();
        assert_eq!(said.code, Some(1));
        assert!(said.err.contains("QStash cannot reach"), "{said:?}");
    }
}

#[tokio::test]
async fn a_routing_decision_is_explained_rule_by_rule() {
    let explain = async |words: &[&str]| -> Said {
        let output = tokio::process::Command::new(binary())
            .args([
                "check",
                "--route",
                "media.*=files",
                "--route",
                "entry.*:page=drop",
            ])
            .args(["--route", "entry.publish=by-{model}?retries=5"])
            .args(words)
            .env_clear()
            .output();
        output.await.unwrap().into()
    };
    let article = ["--event", "entry.publish", "--uid", "api::article.article"];
    assert_eq!(
        explain(&article).await.lines(),
        [
            "passes  media.*=files: it is not for entry.publish",
            "passes  entry.*:page=drop: it is for other content types",
            "sends   entry.publish=by-{model}?retries=5: to by-article with retries=5",
        ]
    );
    let page = ["--event", "entry.publish", "--uid", "api::page.page"];
    assert!(explain(&page).await.lines()[1].starts_with("drops   entry.*:page=drop"));
    let bare = explain(&["--event", "entry.publish"]).await;
    assert_eq!(bare.code, Some(1), "{bare:?}");
    assert!(bare.out.contains("needs {model}"), "{bare:?}");
    assert!(
        bare.err.contains("dead letter") && bare.err.contains("--topic"),
        "{bare:?}"
    );
    let with_topic = explain(&["--event", "entry.publish", "--topic", "rest"]).await;
    assert_eq!(with_topic.lines()[3], "sends   --topic: to rest");
}

#[tokio::test]
async fn an_event_that_waits_is_told_by_check() {
    let app = TestApp::start().await;
    app.qstash.server.faults().set(Fault::Refuse).await;
    app.client().await.post("/webhook", &update(1)).await;
    let said = app.run(&["check", "--topic", "news"]).await;
    assert_eq!(said.code, Some(1));
    assert!(said.out.contains("1 wait for QStash"), "{said:?}");
    assert!(
        said.out.contains("one runs") && said.out.contains("takes events"),
        "{said:?}"
    );
}
