use std::collections::BTreeSet;
use std::path::Path;

use super::*;

fn names(dir: &Path) -> BTreeSet<String> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

async fn settle(buffer: &Buffer, seq: Seq, verdict: Verdict) {
    let settlement = Settlement { seq, verdict };
    buffer.settle(vec![settlement]).await.unwrap();
}

fn postponed(reason: &str) -> Verdict {
    Verdict::Postponed {
        due_at: clock::now(),
        reason: reason.to_owned(),
    }
}

#[tokio::test]
async fn observing_creates_nothing_on_a_running_and_on_a_closed_buffer() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let missing = Observer::open(&settings.path).unwrap_err();
    assert!(matches!(missing, ObserveError::Missing(_)));
    assert_eq!(names(dir.path()), BTreeSet::new());

    let buffer = Buffer::open(&settings).unwrap();
    buffer.append(pending("1", "news")).await.unwrap();
    let running = names(dir.path());
    let observer = Observer::open(&settings.path).unwrap();
    assert_eq!(observer.tally().unwrap().pending, 1);
    assert_eq!(names(dir.path()), running);

    buffer.append(pending("2", "news")).await.unwrap();
    assert_eq!(observer.tally().unwrap().pending, 2, "it sees what is new");
    buffer.close().await;
    let closed = names(dir.path());
    assert!(!closed.contains("buffer.db-wal"), "{closed:?}");
    let bytes = std::fs::read(&settings.path).unwrap();
    assert_eq!(observer.tally().unwrap().pending, 2);
    let page = observer
        .list(&Filter::default(), ListFrom::Newest(None), 10)
        .unwrap();
    assert_eq!(page.events.len(), 2);
    let payload = observer.payload(page.events[0].seq).unwrap().unwrap();
    assert_eq!(payload.body, b"2");
    assert_eq!(names(dir.path()), closed);
    assert_eq!(std::fs::read(&settings.path).unwrap(), bytes);
}

#[tokio::test]
async fn another_programs_file_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes % # ?.txt");
    std::fs::write(&path, "no database, but longer than its header\n".repeat(9)).unwrap();
    assert!(matches!(
        Observer::open(&path),
        Err(ObserveError::Store {
            source: StoreError::NotABuffer,
            ..
        })
    ));
}

#[tokio::test]
async fn what_an_event_went_through_is_kept_in_few_words() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    buffer.append(pending("1", "news")).await.unwrap();
    let first = all_pending(&buffer).await.remove(0);
    for reason in ["away", "away", "away", "401"] {
        settle(&buffer, first.seq, postponed(reason)).await;
    }
    let dead = Verdict::Dead {
        reason: "refused".into(),
        attempted: true,
    };
    settle(&buffer, first.seq, dead).await;
    let replay = Change::Replay(vec![(first.seq, None)]);
    buffer.change(replay).await.unwrap();
    let delivered = Verdict::Delivered {
        message_ids: vec!["msg_1".into()],
    };
    settle(&buffer, first.seq, delivered).await;

    let (event, steps) = buffer.story(first.id).await.unwrap().unwrap();
    assert_eq!(event.state, EventState::Delivered);
    assert_eq!((event.attempts, event.replays), (6, 1));
    assert_eq!(event.message_ids, ["msg_1"]);
    let told: Vec<_> = steps
        .iter()
        .map(|step| (step.kind, step.count, step.words.as_str()))
        .collect();
    let expected = [
        (StepKind::Failed, 3, "away"),
        (StepKind::Failed, 1, "401"),
        (StepKind::Dead, 1, "refused"),
        (StepKind::Replayed, 1, ""),
    ];
    assert_eq!(told, expected);

    // However long it takes, it is bounded, and the last is kept.
    buffer.append(pending("2", "news")).await.unwrap();
    let second = all_pending(&buffer).await.remove(0);
    for n in 0..100 {
        settle(&buffer, second.seq, postponed(&n.to_string())).await;
    }
    let (_, steps) = buffer.story(second.id).await.unwrap().unwrap();
    assert_eq!(steps.len(), 16);
    assert_eq!(steps[15].words, "99");
    let discard = Change::Discard(vec![second.seq]);
    assert_eq!(buffer.change(discard).await.unwrap(), 1);
    let observer = Observer::open(&settings(dir.path()).path).unwrap();
    assert_eq!(observer.steps(second.seq).unwrap(), []);
}

#[tokio::test]
async fn a_list_is_read_in_pages_either_way_by_every_filter() {
    let dir = tempfile::tempdir().unwrap();
    let buffer = Buffer::open(&settings(dir.path())).unwrap();
    let kinds = ["entry.publish", "entry.update", "media.create"];
    for n in 0..30 {
        let mut new = pending(&n.to_string(), "news");
        let event = std::sync::Arc::make_mut(&mut new.event);
        event.facts.kind = kinds[n % 3].to_owned();
        if n % 3 < 2 {
            event.facts.model = Some("article".to_owned());
            event.facts.uid = Some("api::article.article".to_owned());
        }
        event.received_at = Timestamp::from_millis(1_000 * n as i64);
        if n % 10 == 0 {
            new.fate = Fate::Dead {
                reason: "no route".into(),
                attempts: 0,
            };
        }
        buffer.append(new).await.unwrap();
    }
    let all = |filter: Filter, newest: bool| {
        let buffer = buffer.clone();
        async move {
            let (mut found, mut from) = (Vec::new(), None);
            loop {
                let way = match newest {
                    true => ListFrom::Newest(from),
                    false => ListFrom::Oldest(from.unwrap_or(Seq::START)),
                };
                let page = buffer.list(filter.clone(), way, 4).await.unwrap();
                found.extend(page.events.iter().map(|event| event.seq.raw()));
                from = page.next;
                if from.is_none() {
                    return found;
                }
            }
        }
    };
    let newest = all(Filter::default(), true).await;
    assert_eq!(newest, (1..=30).rev().collect::<Vec<_>>());
    assert_eq!(
        all(Filter::default(), false).await,
        (1..=30).collect::<Vec<_>>()
    );
    let some = |set: fn(&mut Filter)| {
        let mut filter = Filter::default();
        set(&mut filter);
        all(filter, false)
    };
    assert_eq!(
        some(|filter| filter.state = Some(EventState::Dead)).await,
        [1, 11, 21]
    );
    assert_eq!(
        some(|filter| filter.state = Some(EventState::Pending))
            .await
            .len(),
        27
    );
    assert_eq!(
        some(|filter| filter.kind = Some("entry.*".into()))
            .await
            .len(),
        20
    );
    assert_eq!(
        some(|filter| filter.kind = Some("media.creat[e]".into())).await,
        [0; 0]
    );
    assert_eq!(
        some(|filter| filter.uid = Some("article".into()))
            .await
            .len(),
        20
    );
    assert_eq!(
        some(|filter| filter.uid = Some("api::*".into()))
            .await
            .len(),
        20
    );
    assert_eq!(
        some(|filter| filter.since = Some(Timestamp::from_millis(27_000))).await,
        [28, 29, 30]
    );
}
