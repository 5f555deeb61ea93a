use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use strapi_qstash::buffer::{
    Address, Buffer, Change, Fate, NewEvent, Seq, Settings, Settlement, StoredBody, Tally, Verdict,
};
use strapi_qstash::clock;
use strapi_qstash::event::{Event, EventId, Facts, Headers, Payload};

use crate::harness::LONG;
use crate::report::{Report, Scale};

/// Sequences of up to sixty operations; one that fails is made as short as it can be.
pub(crate) fn random_operations(scale: Scale) -> Report {
    let (tries, accepted) = (Cell::new(0), Cell::new(0));
    let config = ProptestConfig {
        cases: scale.pick(24, 1000),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let steps = prop::collection::vec(step(), 1..60);
    let held = TestRunner::new(config).run(&steps, |steps| {
        tries.set(tries.get() + 1);
        accepted.set(accepted.get() + crate::block_on(run(steps)));
        Ok(())
    });
    Report {
        tries: tries.get(),
        accepted: accepted.get(),
        wrong: held.err().iter().map(ToString::to_string).collect(),
        ..Report::default()
    }
}

const DESTINATIONS: [&str; 3] = ["news", "shop", "queue:q/news"];

/// One thing that happens to the buffer. An [`Index`] picks one of the events there are.
#[derive(Debug, Clone)]
enum Step {
    Append {
        destination: usize,
        is_large: bool,
    },
    AppendDead,
    Claim {
        after: Index,
        held: usize,
        limit: usize,
    },
    Deliver(Index),
    Postpone(Index),
    Bury(Index),
    Replay(Index),
    Discard(Index),
    Purge,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    prop_oneof![
        8 => (0..DESTINATIONS.len(), prop::bool::weighted(0.05))
            .prop_map(|(destination, is_large)| Step::Append { destination, is_large }),
        1 => Just(Step::AppendDead),
        4 => (index(), 0..=DESTINATIONS.len(), 1..20usize)
            .prop_map(|(after, held, limit)| Step::Claim { after, held, limit }),
        4 => index().prop_map(Step::Deliver),
        1 => index().prop_map(Step::Postpone),
        2 => index().prop_map(Step::Bury),
        2 => index().prop_map(Step::Replay),
        1 => index().prop_map(Step::Discard),
        1 => Just(Step::Purge),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pending,
    Delivered,
    Dead,
}

/// What an event should be.
#[derive(Debug, Clone)]
struct Known {
    id: EventId,
    seq: Seq,
    state: State,
    destination: Option<&'static str>,
    attempts: u32,
    replays: u32,
    body: String,
}

/// A vector in order of arrival: what the buffer should hold.
#[derive(Default)]
struct Model(Vec<Known>);

impl Model {
    fn tally(&self) -> Tally {
        let count = |state| {
            let of_state = self.0.iter().filter(|known| known.state == state);
            i64::try_from(of_state.count()).unwrap()
        };
        Tally {
            pending: count(State::Pending),
            delivered: count(State::Delivered),
            dead: count(State::Dead),
            ..Tally::default()
        }
    }

    fn pick(&mut self, index: &Index) -> Option<&mut Known> {
        let at = (!self.0.is_empty()).then(|| index.index(self.0.len()))?;
        self.0.get_mut(at)
    }
}

async fn body_of(buffer: &Buffer, seq: Seq) -> Option<String> {
    let body = match buffer.payload(seq).await.unwrap()?.body {
        StoredBody::Whole(body) => body.to_vec(),
        StoredBody::Pieces { count } => {
            let mut body = Vec::new();
            for number in 0..count {
                body.extend(buffer.piece(seq, number).await.unwrap().unwrap());
            }
            body
        }
    };
    Some(String::from_utf8(body).unwrap())
}

async fn settle(buffer: &Buffer, seq: Seq, verdict: Verdict) {
    buffer
        .settle(vec![Settlement { seq, verdict }])
        .await
        .unwrap();
}

/// How many events were appended.
async fn run(steps: Vec<Step>) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let mut buffer = Buffer::open(&settings).unwrap();
    let (mut model, mut appended) = (Model::default(), 0);
    for (n, step) in steps.into_iter().enumerate() {
        match step {
            Step::Append {
                destination,
                is_large,
            } => {
                let destination = DESTINATIONS[destination];
                let size = if is_large { 1_500_000 } else { 10 };
                let body = format!("{n} {}", "x".repeat(size));
                let new = pending(&body, destination);
                append(
                    &buffer,
                    &mut model,
                    new,
                    State::Pending,
                    Some(destination),
                    body,
                )
                .await;
                appended += 1;
            }
            Step::AppendDead => {
                let body = format!("dead {n}");
                let new = NewEvent {
                    address: None,
                    fate: Fate::Dead {
                        reason: "no route".into(),
                        attempts: 0,
                    },
                    ..pending(&body, "")
                };
                append(&buffer, &mut model, new, State::Dead, None, body).await;
                appended += 1;
            }
            Step::Claim { after, held, limit } => {
                let after = model.pick(&after).map_or(Seq::START, |known| known.seq);
                let held: Vec<String> = DESTINATIONS
                    .get(held)
                    .iter()
                    .map(|held| (**held).to_owned())
                    .collect();
                let expected: Vec<_> = model
                    .0
                    .iter()
                    .filter(|known| known.state == State::Pending && known.seq > after)
                    .filter(|known| {
                        !held
                            .iter()
                            .any(|held| Some(held.as_str()) == known.destination)
                    })
                    .take(limit)
                    .map(|known| (known.seq, known.id, known.attempts, known.replays))
                    .collect();
                let claimed = buffer.pending(after, held, limit).await.unwrap();
                let claimed: Vec<_> = claimed
                    .iter()
                    .map(|event| (event.seq, event.id, event.attempts, event.replays))
                    .collect();
                assert_eq!(claimed, expected);
            }
            Step::Deliver(index) => {
                let Some(known) = model.pick(&index) else {
                    continue;
                };
                let message_ids = vec!["msg_1".into()];
                settle(&buffer, known.seq, Verdict::Delivered { message_ids }).await;
                // What is settled stays as it is.
                if known.state == State::Pending {
                    known.state = State::Delivered;
                    known.attempts += 1;
                }
            }
            Step::Postpone(index) => {
                let Some(known) = model.pick(&index) else {
                    continue;
                };
                let (due_at, reason) = (clock::now(), "500".into());
                settle(&buffer, known.seq, Verdict::Postponed { due_at, reason }).await;
                known.attempts += u32::from(known.state == State::Pending);
            }
            Step::Bury(index) => {
                let Some(known) = model.pick(&index) else {
                    continue;
                };
                let (reason, attempted) = ("too large".into(), true);
                settle(&buffer, known.seq, Verdict::Dead { reason, attempted }).await;
                if known.state == State::Pending {
                    known.state = State::Dead;
                    known.attempts += 1;
                }
            }
            Step::Replay(index) => {
                let Some(known) = model.pick(&index) else {
                    continue;
                };
                let changed = buffer.change(Change::Replay(vec![(known.seq, None)])).await;
                let can = known.state != State::Pending && known.destination.is_some();
                assert_eq!(changed.unwrap(), u64::from(can));
                if can {
                    known.state = State::Pending;
                    known.replays += 1;
                }
            }
            Step::Discard(index) => {
                let Some(known) = model.pick(&index) else {
                    continue;
                };
                let seq = known.seq;
                let changed = buffer.change(Change::Discard(vec![seq, seq])).await;
                assert_eq!(changed.unwrap(), 1);
                model.0.retain(|known| known.seq != seq);
                assert_eq!(body_of(&buffer, seq).await, None);
            }
            Step::Purge => {
                buffer.close().await;
                let purging = Settings {
                    keep_delivered: Duration::from_nanos(1),
                    ..settings.clone()
                };
                buffer = Buffer::open(&purging).unwrap();
                while buffer.tally().delivered > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await; // it has to be past
                    buffer.tidy().await;
                }
                buffer.close().await;
                buffer = Buffer::open(&settings).unwrap();
                model.0.retain(|known| known.state != State::Delivered);
            }
            Step::Reopen => {
                buffer.close().await;
                buffer = Buffer::open(&settings).unwrap();
            }
        }
        let tally = buffer.tally();
        assert_eq!(tally.accepted, tally.sum(), "{tally:?}");
        let of_states = Tally {
            pending: tally.pending,
            delivered: tally.delivered,
            dead: tally.dead,
            ..Tally::default()
        };
        assert_eq!(of_states, model.tally());
    }
    for known in &model.0 {
        assert_eq!(
            body_of(&buffer, known.seq).await.as_ref(),
            Some(&known.body)
        );
    }
    buffer.close().await;
    let db = rusqlite::Connection::open(&settings.path).unwrap();
    let check: String = db
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
    let bodies = "SELECT (SELECT count(*) FROM event) - (SELECT count(*) FROM payload)";
    let orphans: i64 = db.query_row(bodies, [], |row| row.get(0)).unwrap();
    assert_eq!(
        orphans, 0,
        "each event has its bytes, and no other bytes are there"
    );
    appended
}

async fn append(
    buffer: &Buffer,
    model: &mut Model,
    new: NewEvent,
    state: State,
    destination: Option<&'static str>,
    body: String,
) {
    let id = new.event.id;
    buffer.append(new).await.unwrap();
    let seq = buffer.find(id).await.unwrap().unwrap().seq;
    assert!(model.0.last().is_none_or(|last| last.seq < seq));
    model.0.push(Known {
        id,
        seq,
        state,
        destination,
        attempts: 0,
        replays: 0,
        body,
    });
}

fn settings(dir: &Path) -> Settings {
    Settings {
        path: dir.join("buffer.db"),
        max_bytes: 1 << 30,
        keep_delivered: Duration::from_secs(3600),
        // Another fault's child may have the lock's file until it is another program.
        wait_for_lock: LONG,
    }
}

fn pending(body: &str, destination: &str) -> NewEvent {
    NewEvent {
        event: Arc::new(Event {
            id: EventId::new(),
            received_at: clock::now(),
            facts: Facts {
                kind: "entry.publish".into(),
                ..Facts::default()
            },
            payload: Payload {
                headers: Headers::from_iter([("x-strapi-event", b"entry.publish".as_slice())]),
                body: body.to_owned().into(),
            },
        }),
        address: Some(Address {
            destination: destination.into(),
            options: "retries=5".into(),
        }),
        fate: Fate::Pending { failed: None },
    }
}
