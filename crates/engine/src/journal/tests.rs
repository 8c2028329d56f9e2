use std::sync::Arc;
use std::time::Duration;

use pinfold_types::OutputStream;
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::Clock;
use crate::reader::{EventReader, Reading};

fn output(seq: u64, size: usize) -> Arc<ExecEvent> {
    let byte = u8::try_from(seq % 251).unwrap();
    Arc::new(ExecEvent {
        seq,
        time_ms: i64::try_from(seq).unwrap(),
        kind: EventKind::Output {
            stream: OutputStream::Stdout,
            data: vec![byte; size],
        },
    })
}

fn exit(seq: u64) -> Arc<ExecEvent> {
    Arc::new(ExecEvent {
        seq,
        time_ms: 0,
        kind: EventKind::Exit(ExecExit::default()),
    })
}

fn reader(journal: &Arc<Journal>, from_seq: u64, follow: bool) -> EventReader {
    let reading = Reading {
        from_seq,
        follow,
        lease: None,
    };
    EventReader::new(
        Arc::clone(journal),
        reading,
        CancellationToken::new(),
        Clock::default(),
    )
}

async fn all(journal: &Arc<Journal>, from_seq: u64) -> Vec<ExecEvent> {
    let mut reader = reader(journal, from_seq, false);
    let mut events = Vec::new();
    while let Some(event) = reader.next().await {
        events.push(event.unwrap());
    }
    events
}

/// Checks that events follow each other without a gap that a `dropped` event does not name.
fn check_no_gap(events: &[ExecEvent], first: u64) -> u64 {
    events.iter().fold(first, |next, event| {
        assert_eq!(event.seq, next);
        after(event)
    })
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_journal_cut_at_any_byte_holds_a_prefix_and_goes_on(
        batches in proptest::collection::vec(
            proptest::collection::vec(0usize..6000, 1..5), 1..12),
        cut in any::<prop::sample::Index>(),
        from in 1u64..30,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits::new(1 << 20);
        let (_, mut writer) = Journal::open(dir.path(), limits, false).unwrap();
        let mut next = 1;
        for batch in &batches {
            let events: Vec<_> = batch
                .iter()
                .map(|size| { next += 1; output(next - 1, *size) })
                .collect();
            writer.append(&events).unwrap();
        }
        drop(writer);
        let last = files(dir.path()).pop().unwrap();
        let length = std::fs::metadata(&last).unwrap().len();
        let keep = cut.index(usize::try_from(length).unwrap() + 1);
        File::options().write(true).open(&last).unwrap().set_len(keep as u64).unwrap();

        let (journal, mut writer) = Journal::open(dir.path(), limits, false).unwrap();
        let kept = journal.next_seq();
        prop_assert!(kept <= next);
        runtime().block_on(async {
            let events = all(&journal, 1).await;
            assert_eq!(check_no_gap(&events, 1), kept);
            for event in &events {
                let EventKind::Output { data, .. } = &event.kind else { panic!("{event:?}") };
                assert_eq!(*event, *output(event.seq, data.len()));
            }
            writer.append(&[output(kept, 10), exit(kept + 1)]).unwrap();
            let events = all(&journal, from).await;
            let start = from.min(kept + 2);
            assert_eq!(check_no_gap(&events, start), (kept + 2).max(start));
        });
        let (again, _) = Journal::open(dir.path(), limits, false).unwrap();
        prop_assert_eq!(again.next_seq(), kept + 2);
        prop_assert!(again.exit().is_some());
    }
}

#[tokio::test]
async fn the_oldest_part_goes_and_readers_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits::new(64 << 10);
    let (journal, mut writer) = Journal::open(dir.path(), limits, false).unwrap();
    let mut slow = reader(&journal, 1, true);
    for seq in 1..=1000 {
        writer.append(&[output(seq, 1000)]).unwrap();
    }
    writer.append(&[exit(1001)]).unwrap();
    let size: u64 = files(dir.path())
        .iter()
        .map(|file| std::fs::metadata(file).unwrap().len())
        .sum();
    assert!(size <= limits.total + limits.segment + 2000, "{size}");

    let mut events = Vec::new();
    while let Some(event) = slow.next().await {
        events.push(event.unwrap());
    }
    assert!(matches!(events[0].kind, EventKind::Dropped { first_kept } if first_kept > 900));
    assert_eq!(check_no_gap(&events, 1), 1002);
    assert_eq!(events, {
        let mut again = all(&journal, 1).await;
        again[0].time_ms = events[0].time_ms;
        again
    });
}

#[tokio::test]
async fn a_lossless_journal_waits_for_its_slowest_reader() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits::new(64 << 10);
    let (journal, mut writer) = Journal::open(dir.path(), limits, true).unwrap();
    let mut slow = reader(&journal, 1, true);
    let mut fast = reader(&journal, 1, true);
    let total = 2000u64;
    let write = async {
        let mut behind = 0;
        for seq in 1..=total {
            journal.room().await;
            writer.append(&[output(seq, 1000)]).unwrap();
            let state = journal.lock();
            behind = behind.max(state.end - state.wanted_from());
        }
        writer.append(&[exit(total + 1)]).unwrap();
        behind
    };
    let read = async |reader: &mut EventReader, turns: usize| {
        let mut next = 1;
        while let Some(event) = reader.next().await {
            let event = event.unwrap();
            assert_eq!(event.seq, next);
            next = after(&event);
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
        }
        next
    };
    let (behind, slow, fast) = tokio::join!(write, read(&mut slow, 5), read(&mut fast, 0));
    assert_eq!((slow, fast), (total + 2, total + 2));
    assert!(behind <= limits.window + 2000, "{behind}");
}

#[tokio::test]
async fn a_lossless_journal_without_readers_waits_when_it_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits::new(64 << 10);
    let (journal, mut writer) = Journal::open(dir.path(), limits, true).unwrap();
    let mut seq = 0;
    while tokio::time::timeout(Duration::from_millis(50), journal.room())
        .await
        .is_ok()
    {
        seq += 1;
        writer.append(&[output(seq, 1000)]).unwrap();
    }
    assert!((60..=66).contains(&seq), "{seq}");
    // A reader that came late misses nothing, and what it has read makes room even when it goes.
    let mut late = reader(&journal, 1, true);
    for expected in 1..=40 {
        assert_eq!(late.next().await.unwrap().unwrap().seq, expected);
    }
    drop(late);
    journal.room().await;
    let mut writer_next = seq;
    for _ in 0..20 {
        writer_next += 1;
        writer.append(&[output(writer_next, 1000)]).unwrap();
    }
    let rest = all(&journal, 41).await;
    assert_eq!(check_no_gap(&rest, 41), writer_next + 1);
    assert!(
        rest.iter()
            .all(|e| matches!(e.kind, EventKind::Output { .. }))
    );
}

#[tokio::test]
async fn a_full_disk_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits::new(64 << 10);
    let (journal, mut writer) = Journal::open(dir.path(), limits, false).unwrap();
    writer.append(&[output(1, 1000), output(2, 9000)]).unwrap();
    // The next file is on a disk that is always full.
    let next = writer::segment_path(dir.path(), 3);
    std::os::unix::fs::symlink("/dev/full", &next).unwrap();
    let error = writer.append(&[output(3, 1000)]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    journal.set_fault(Some(&error));
    assert_eq!(journal.next_seq(), 3);

    let mut following = reader(&journal, 2, true);
    assert_eq!(following.next().await.unwrap().unwrap().seq, 2);
    let told = following.next().await.unwrap().unwrap_err();
    assert_eq!(told.code, pinfold_types::ErrorCode::ResourceExhausted);
    assert!(told.hint.is_some());

    // The failed try removed the link, so there is room now.
    assert!(!next.exists());
    writer.append(&[output(3, 1000)]).unwrap();
    journal.set_fault(None);
    assert_eq!(following.next().await.unwrap().unwrap().seq, 3);
}

#[tokio::test]
async fn a_damaged_file_costs_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits::new(64 << 10);
    let (_, mut writer) = Journal::open(dir.path(), limits, false).unwrap();
    for seq in 1..=30 {
        writer.append(&[output(seq, 1000)]).unwrap();
    }
    let second = files(dir.path()).remove(1);
    let mut bytes = std::fs::read(&second).unwrap();
    bytes[1500] ^= 0xff;
    std::fs::write(&second, bytes).unwrap();
    let (journal, _) = Journal::open(dir.path(), limits, false).unwrap();
    let events = all(&journal, 1).await;
    assert_eq!(check_no_gap(&events, 1), 31);
    let dropped = events
        .iter()
        .filter(|event| matches!(event.kind, EventKind::Dropped { .. }))
        .count();
    assert_eq!(dropped, 1);
}

#[tokio::test]
async fn a_reader_that_is_cancelled_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, mut writer) = Journal::open(dir.path(), Limits::new(8 << 20), false).unwrap();
    let mut reader = reader(&journal, 1, true);
    let mut seen = Vec::new();
    for seq in 1..=600 {
        writer.append(&[output(seq, 3000)]).unwrap();
        if let Ok(event) = tokio::time::timeout(Duration::ZERO, reader.next()).await {
            seen.push(event.unwrap().unwrap());
        }
    }
    writer.append(&[exit(601)]).unwrap();
    while let Some(event) = reader.next().await {
        seen.push(event.unwrap());
    }
    assert_eq!(check_no_gap(&seen, 1), 602);
}
