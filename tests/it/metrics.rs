use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use strapi_qstash::dev_server::{Fault, InBatch, Rejection};

use crate::harness::{Client, LONG, TestApp, update};

/// The values of a scrape, by name and labels.
fn values(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// accepted = pending + delivered + dead + discarded + lost.
fn assert_law(values: &BTreeMap<String, f64>) {
    let states = values
        .iter()
        .filter(|(name, _)| name.starts_with("strapi_qstash_events{"))
        .map(|(_, value)| value)
        .sum::<f64>();
    assert_eq!(
        values["strapi_qstash_accepted_events_total"], states,
        "{values:?}"
    );
}

#[tokio::test]
async fn every_accepted_event_is_somewhere_at_every_moment_of_every_fault() {
    let app = TestApp::builder()
        .flag("--keep-delivered", "1s")
        .start()
        .await;
    let stop = Arc::new(AtomicBool::new(false));
    let samples = Arc::new(AtomicU64::new(0));
    let address = app.sidecar.admin_address().unwrap();
    let sampling = {
        let (stop, samples) = (Arc::clone(&stop), Arc::clone(&samples));
        tokio::spawn(async move {
            let mut client = Client::connect(address).await;
            let mut accepted: f64 = 0.0;
            while !stop.load(Ordering::Relaxed) {
                let text = client
                    .send(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
                    .await
                    .body;
                let values = values(&text);
                assert_law(&values);
                let now = values["strapi_qstash_accepted_events_total"];
                assert!(now >= accepted, "it went back from {accepted} to {now}");
                accepted = now;
                samples.fetch_add(1, Ordering::Relaxed);
            }
            accepted
        })
    };
    let faults = app.qstash.server.faults();
    let mut client = app.client().await;
    let mut posted = 0;
    let started = Instant::now();
    for fault in [
        Fault::None,
        Fault::Refuse,
        Fault::status(hyper::StatusCode::INTERNAL_SERVER_ERROR, "oops"),
        Fault::AcceptThenReset,
        Fault::Unauthorized,
        Fault::Garbled,
        Fault::None,
    ] {
        faults.set(fault.clone()).await;
        let rejection = (fault == Fault::None).then(|| Rejection {
            containing: "\"n\":7".to_owned(),
            in_batch: InBatch::ItemAlone,
        });
        faults.reject(rejection);
        for _ in 0..40 {
            assert_eq!(client.post("/webhook", &update(posted)).await.status, 202);
            posted += 1;
        }
        // Not all faults let anything pass: some events are settled, others pile up.
        for (verb, filter) in [
            ("replay", "dead"),
            ("discard", "dead"),
            ("discard", "pending"),
        ] {
            let words = [
                "events",
                verb,
                "--state",
                filter,
                "--document",
                "d3",
                "--yes",
            ];
            app.run(&words).await;
        }
    }
    faults.reject(None);
    app.wait_until_drained().await;
    // History goes too, and stays counted.
    while app.sidecar.buffer().tally().delivered > 0 {
        assert!(
            started.elapsed() < LONG,
            "{:?}",
            app.sidecar.buffer().tally()
        );
        app.sidecar.buffer().tidy().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let accepted = sampling.await.unwrap();
    assert_eq!(accepted, posted as f64);
    let samples = samples.load(Ordering::Relaxed);
    println!(
        "{posted} events, {samples} samples, {:?}",
        app.sidecar.buffer().tally()
    );
    assert!(samples >= 20, "{samples}");
    let tally = app.sidecar.buffer().tally();
    assert!(tally.discarded > 0 && tally.forgotten > 0, "{tally:?}");

    // The numbers outlive the process.
    let tally = app.sidecar.buffer().tally();
    app.sidecar.drain(LONG).await;
    let observer = strapi_qstash::buffer::Observer::open(&app.dir.path().join("strapi-qstash.db"));
    assert_eq!(observer.unwrap().tally().unwrap(), tally);
}

#[tokio::test]
async fn the_four_signals_are_there() {
    let app = TestApp::start().await;
    app.post_updates(25).await;
    app.qstash.wait_for(25, LONG).await;
    app.wait_until_drained().await;
    let scrape = async || values(&app.admin("/metrics").await.body);
    let now = scrape().await;
    let value = |name: &str| now[&format!("strapi_qstash_{name}")];
    assert_eq!(value("ack_seconds_count"), 25.0);
    assert_eq!(value("ack_seconds_bucket{le=\"+Inf\"}"), 25.0);
    assert!(value("ack_seconds_sum") > 0.0 && value("ack_seconds_sum") < 25.0);
    assert!(value("publish_seconds_count") >= 1.0);
    assert!(value("buffer_used_bytes") > 0.0);
    assert_eq!(value("buffer_limit_bytes"), f64::from(1 << 30));
    assert!(value("disk_free_bytes") > 0.0);
    assert_eq!(value("events{state=\"delivered\"}"), 25.0);

    app.qstash.server.faults().set(Fault::Unauthorized).await;
    app.post_updates(1).await;
    let deadline = Instant::now() + LONG;
    while scrape().await["strapi_qstash_qstash_stopped{cause=\"unauthorized\"}"] < 1.0 {
        assert!(Instant::now() < deadline);
    }
    let now = scrape().await;
    assert_eq!(now["strapi_qstash_qstash_flowing"], 0.0);
    assert_eq!(now["strapi_qstash_qstash_stopped{cause=\"limited\"}"], 0.0);
    assert!(now["strapi_qstash_buffer_oldest_age_seconds"] > 0.0);
    assert!(now["strapi_qstash_publish_requests_total{outcome=\"failed\"}"] >= 1.0);
}
