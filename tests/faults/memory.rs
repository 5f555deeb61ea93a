use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::harness::{Client, LONG, update, wait_until};
use crate::load::{self, Load, Sent};
use crate::proxy::Way;
use crate::report::{Report, Scale};
use crate::stand::Stand;
use crate::usage;

/// A backlog that builds up while QStash is away, and drains.
pub(crate) fn large_backlog(scale: Scale) -> Report {
    crate::block_on(async {
        let (stand, mut report) = (Stand::start().await, Report::default());
        report.tries = 1;
        stand.proxy.set(Way::Refused).await;
        // The fewest that keep the commits busy, with each document on one of them.
        let load = Load::start_with(10, stand.process.webhook, 0, Duration::ZERO);
        let count = scale.pick(20_000, 1_000_000);
        let started = Instant::now();
        while load.accepted() < count {
            assert!(
                started.elapsed() < Duration::from_secs(600),
                "the load stands still"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let sent = load.stop().await;
        sent.check(&mut report);
        stand.note_peak(&mut report, "while it built up");
        stand.proxy.set(Way::Open).await;
        let opened = Instant::now();
        let timeout = Duration::from_secs(scale.pick(60, 600));
        stand.sink.wait_for(1, timeout).await;
        report.recovered_in(opened.elapsed());
        stand.sink.wait_for(sent.accepted.len(), timeout).await;
        report.notes.push(format!(
            "{} events a second in, {} out",
            rate(sent.accepted.len(), opened - started),
            rate(sent.accepted.len(), opened.elapsed())
        ));
        stand.note_peak(&mut report, "while it drained");
        stand.judge(&mut report, &sent).await;
        report
    })
}

/// Connections that say nothing, while five others send events.
pub(crate) fn idle_connections(scale: Scale) -> Report {
    crate::block_on(async {
        let mut report = Report {
            tries: 1,
            ..Report::default()
        };
        let mut count = scale.pick(1_000, 10_000);
        if !usage::allow_open_files(count as u64 + 1_000) {
            count = 500;
            let note = "fewer connections: this machine does not allow so many open files";
            report.notes.push(note.to_owned());
        }
        let stand = Stand::start().await;
        let load = Load::start(stand.process.webhook, 0, Duration::from_millis(10));
        let mut idle = load::connect(stand.process.webhook, count).await;
        let pid = stand.process.pid();
        let all_accepted = || usage::open_files(pid) >= count;
        assert!(wait_until(LONG, all_accepted).await);
        let before = load.accepted();
        assert!(wait_until(LONG, || load.accepted() >= before + 200).await);
        // One that sent nothing yet is used at last.
        let mut last = Client::from(idle.pop().unwrap());
        assert_eq!(last.post("/webhook", "{}").await.status, 202);
        drop(idle);
        let all_closed = || usage::open_files(pid) < 100;
        assert!(wait_until(LONG, all_closed).await, "connections stay open");
        let sent = load.stop().await;
        sent.check(&mut report);
        let all = sent.accepted.len() + 1;
        assert!(stand.sink.wait_for(all, LONG).await);
        let note = format!(
            "slowest answer {} ms beside {count} connections",
            sent.slowest.as_millis()
        );
        report.notes.push(note);
        stand.note_peak(&mut report, "with them");
        stand.judge(&mut report, &sent).await;
        report
    })
}

/// Large bodies that come all at once, while QStash is away and when it is back.
pub(crate) fn large_bodies(scale: Scale) -> Report {
    crate::block_on(async {
        let mut report = Report {
            tries: 1,
            ..Report::default()
        };
        let stand = Stand::start().await;
        stand.proxy.set(Way::Refused).await;
        let text = "x".repeat(30 << 20);
        let senders: JoinSet<_> = (0..scale.pick(6, 50))
            .map(|n| {
                let body = update(n).replace(r#""n":"#, &format!(r#""text":"{text}","n":"#));
                let address = stand.process.webhook;
                async move {
                    (
                        n,
                        Client::connect(address).await.post("/webhook", &body).await,
                    )
                }
            })
            .collect();
        let mut sent = Sent::default();
        for (n, answer) in senders.join_all().await {
            match answer.status {
                202 => drop(sent.accepted.insert(n)),
                _ => sent.refused.push(format!("event {n}: {answer:?}")),
            }
        }
        sent.check(&mut report);
        stand.note_peak(&mut report, "while they came");
        stand.proxy.set(Way::Open).await;
        let opened = Instant::now();
        let timeout = Duration::from_secs(scale.pick(30, 300));
        stand.sink.wait_for(1, timeout).await;
        report.recovered_in(opened.elapsed());
        if !stand.sink.wait_for(sent.accepted.len(), timeout).await {
            report.wrong.push("not all of them went out".to_owned());
        }
        stand.note_peak(&mut report, "while they went out");
        stand.judge(&mut report, &sent).await;
        report
    })
}

fn rate(count: usize, took: Duration) -> u128 {
    count as u128 * 1000 / took.as_millis().max(1)
}
