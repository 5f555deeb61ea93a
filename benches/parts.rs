//! The parts of an event's way, each for itself: `cargo bench --bench parts`.
//!
//! What they cost together, beside what is possible on the machine, is `--bench sidecar`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench may panic"
)]
#![allow(missing_docs, reason = "criterion's macros make functions without")]

mod events;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use strapi_qstash::buffer::{self, Buffer, Seq, Settlement, Verdict};
use strapi_qstash::destination::Destination;
use strapi_qstash::event::Facts;
use strapi_qstash::qstash::{Message, parts};
use strapi_qstash::router::{Route, Router, Template};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::events::{body, fill, waiting};

criterion_group!(pure, read_body, route, batch);
criterion_group! {
    name = disk;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(4));
    targets = append, claim_and_settle
}
criterion_main!(pure, disk);

/// What one request may hold.
const BATCH: usize = 100;

fn read_body(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("read a body");
    let small = body(1);
    let large = large_body();
    for (name, body) in [("2 KB", &small), ("1 MB", &large)] {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| Facts::read(black_box(body)).unwrap())
        });
    }
}

/// An entry with as many relations as make a megabyte, as deep population gives.
fn large_body() -> Vec<u8> {
    let body: serde_json::Value = serde_json::from_slice(&body(1)).unwrap();
    let related = body["entry"].clone();
    let mut large = body;
    large["entry"]["related"] = vec![related; 500].into();
    let large = large.to_string().into_bytes();
    assert!(
        (900_000..1_100_000).contains(&large.len()),
        "{}",
        large.len()
    );
    large
}

fn route(bench: &mut Criterion) {
    let facts = Facts::read(&body(1)).unwrap();
    let mut group = bench.benchmark_group("route");
    for rules in [1, 50] {
        // The last one matches.
        let others = (1..rules).map(|n| format!("entry.*:api::page-{n}.*=pages"));
        let texts = others.chain(["entry.publish:api::article.*=strapi.{action}".to_owned()]);
        let routes = texts.map(|text| Route::parse(&text).unwrap()).collect();
        let router = Router::new(routes, Some(Template::parse("news").unwrap()));
        group.bench_function(BenchmarkId::new("rules", rules), |bencher| {
            bencher.iter(|| router.route(black_box(&facts)));
        });
    }
}

fn batch(bench: &mut Criterion) {
    let destination: Destination = "news".parse().unwrap();
    let events: Vec<_> = (0..BATCH as u64)
        .map(|number| waiting(number).event)
        .collect();
    let messages: Vec<_> = events
        .iter()
        .map(|event| Message {
            id: event.id,
            replays: 0,
            destination: &destination,
            payload: &event.payload,
        })
        .collect();
    let answer =
        r#"[{"messageId":"msg_7YoJxFpwkEy5zBp378JgvD6YtRg1","url":"https://example.com/hook"}]"#;
    let answer = format!("[{}]", [answer; BATCH].join(","));

    let mut group = bench.benchmark_group("batch of 100");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("build", |bencher| {
        bencher.iter(|| parts::batch_body(black_box(&messages)))
    });
    group.bench_function("read the answer", |bencher| {
        bencher.iter(|| parts::read_batch(black_box(answer.as_bytes()), BATCH));
    });
}

/// So many callers at a time: what gathers while one commit waits for the disk is the next.
fn append(bench: &mut Criterion) {
    let runtime = runtime();
    let mut group = bench.benchmark_group("append");
    for callers in [1, 5, 64] {
        group.throughput(Throughput::Elements(callers));
        group.bench_function(BenchmarkId::new("waiting", callers), |bencher| {
            bencher.iter_custom(|rounds| runtime.block_on(append_rounds(callers, rounds)));
        });
    }
}

async fn append_rounds(callers: u64, rounds: u64) -> Duration {
    let folder = folder();
    let buffer = open(&folder);
    let mut took = Duration::ZERO;
    for round in 0..rounds {
        let events: Vec<_> = (0..callers)
            .map(|caller| waiting(round * callers + caller))
            .collect();
        let started = Instant::now();
        let mut appending = JoinSet::new();
        for event in events {
            let buffer = buffer.clone();
            appending.spawn(async move { buffer.append(event).await.unwrap() });
        }
        appending.join_all().await;
        took += started.elapsed();
    }
    buffer.close().await;
    took
}

/// What a batch costs the buffer: rows, bytes, and the outcomes in one commit.
fn claim_and_settle(bench: &mut Criterion) {
    let runtime = runtime();
    let mut group = bench.benchmark_group("claim and settle");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("100", |bencher| {
        bencher.iter_custom(|rounds| runtime.block_on(settle_rounds(rounds)));
    });
}

async fn settle_rounds(rounds: u64) -> Duration {
    let folder = folder();
    fill(folder.path(), rounds * BATCH as u64).await;
    let buffer = open(&folder);
    let mut last = Seq::START;
    let started = Instant::now();
    for _ in 0..rounds {
        let pending = buffer.pending(last, Vec::new(), BATCH).await.unwrap();
        let seqs: Vec<_> = pending.iter().map(|pending| pending.seq).collect();
        last = seqs.last().copied().unwrap();
        let payloads = buffer.payloads(seqs).await.unwrap();
        assert_eq!(payloads.len(), BATCH);
        let delivered = |(seq, _): &(Seq, _)| Settlement {
            seq: *seq,
            verdict: Verdict::Delivered {
                message_ids: vec!["msg_7YoJxFpwkEy5zBp378JgvD6YtRg1".to_owned()],
            },
        };
        let settlements = payloads.iter().map(delivered).collect();
        buffer.settle(settlements).await.unwrap();
    }
    let took = started.elapsed();
    buffer.close().await;
    took
}

fn open(folder: &TempDir) -> Buffer {
    Buffer::open(&buffer::Settings {
        path: folder.path().join("strapi-qstash.db"),
        max_bytes: u64::MAX,
        keep_delivered: Duration::from_secs(24 * 3600),
        wait_for_lock: Duration::ZERO,
    })
    .unwrap()
}

/// A folder on the disk that the project is on: memory would make fdatasync free.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}
