use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::*;

fn entry(target: &str) -> Entry {
    Entry {
        time_ms: 1_700_000_000_000,
        principal: "uid:1".to_owned(),
        peer: "unix uid=1 pid=2".to_owned(),
        request_id: "r0000000000000000000".to_owned(),
        action: "POST /v1/sandboxes".to_owned(),
        target: target.to_owned(),
        outcome: "201".to_owned(),
        ..Entry::default()
    }
}

async fn written(directory: &Path, targets: &[&str]) {
    let log = AuditLog::open(directory).unwrap();
    for target in targets {
        log.record(entry(target)).await;
    }
    log.close().await;
}

fn only_file(directory: &Path) -> PathBuf {
    let mut files = writer::files(directory).unwrap();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn whole(directory: &Path) -> Verified {
    let verified = verify(directory, None).unwrap();
    assert_eq!(verified.problems, [], "{verified:?}");
    verified
}

fn problems(directory: &Path) -> Vec<String> {
    let verified = verify(directory, None).unwrap();
    verified
        .problems
        .into_iter()
        .map(|problem| problem.what)
        .collect()
}

#[tokio::test]
async fn the_chain_goes_on_with_the_next_daemon() {
    let place = tempfile::tempdir().unwrap();
    written(place.path(), &["/a", "/b"]).await;
    let head = whole(place.path()).head;
    written(place.path(), &["/c"]).await;
    let verified = verify(place.path(), Some(&head)).unwrap();
    assert_eq!(verified.problems, []);
    assert_eq!((verified.lines, verified.last_seq), (3, 3));
    assert_eq!(verified.beyond_expected, Some(1));
    let mut targets = Vec::new();
    lines(place.path(), |line| targets.push(line.target)).unwrap();
    assert_eq!(targets, ["/a", "/b", "/c"]);
}

#[tokio::test]
async fn a_changed_removed_moved_or_cut_off_line_is_named() {
    let place = tempfile::tempdir().unwrap();
    written(place.path(), &["/a", "/b", "/c", "/d"]).await;
    let head = whole(place.path()).head;
    let path = only_file(place.path());
    let text = std::fs::read_to_string(&path).unwrap();
    let all: Vec<&str> = text.lines().collect();
    let put = |lines: &[&str]| std::fs::write(&path, lines.join("\n") + "\n").unwrap();

    let changed = all[1].replace("uid:1", "uid:7");
    put(&[all[0], &changed, all[2], all[3]]);
    assert_eq!(
        problems(place.path()),
        ["line 2 was changed: its hash is another"]
    );

    put(&[all[0], all[2], all[3]]);
    assert_eq!(problems(place.path()), ["lines 2 to 2 are missing"]);

    put(&[all[0], all[2], all[1], all[3]]);
    assert!(problems(place.path()).contains(&"line 2 stands behind line 3".to_owned()));

    put(&[all[1], all[2], all[3]]);
    assert_eq!(problems(place.path()), ["lines 1 to 1 are missing"]);

    put(&all[..3]);
    assert_eq!(problems(place.path()), Vec::<String>::new());
    let cut = verify(place.path(), Some(&head)).unwrap();
    assert!(
        cut.problems[0].what.contains("cut off or written anew"),
        "{cut:?}"
    );

    // Whoever makes the hash anew breaks the chain behind the line.
    let written = line::Line::decode(all[1].as_bytes()).unwrap();
    let forged = line::Line {
        principal: "uid:7".to_owned(),
        ..written.line
    };
    let (forged, _) = forged.encode();
    put(&[all[0], forged.trim_end(), all[2], all[3]]);
    let found = problems(place.path());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("line 3 does not follow"), "{found:?}");

    std::fs::write(&path, &text[..text.len() - 5]).unwrap();
    let found = problems(place.path());
    assert!(found[0].starts_with("the last line is torn"), "{found:?}");
}

#[tokio::test]
async fn a_torn_line_is_taken_out_and_told_of() {
    let place = tempfile::tempdir().unwrap();
    written(place.path(), &["/a", "/b"]).await;
    let path = only_file(place.path());
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    file.write_all_at(b"{\"seq\":3,\"time\"", length).unwrap();
    drop(file);
    written(place.path(), &["/c"]).await;
    let verified = whole(place.path());
    assert_eq!(verified.last_seq, 4);
    let mut told = Vec::new();
    lines(place.path(), |line| told.push((line.action, line.detail))).unwrap();
    let (action, detail) = &told[2];
    assert_eq!(action, "audit.recovered");
    assert!(
        detail
            .as_ref()
            .unwrap()
            .ends_with("after 15 bytes: {\"seq\":3,\"time\"")
    );
}

#[tokio::test]
async fn a_damaged_end_stays_as_evidence() {
    let place = tempfile::tempdir().unwrap();
    written(place.path(), &["/a", "/b"]).await;
    let path = only_file(place.path());
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("/b", "/x")).unwrap();
    written(place.path(), &["/c"]).await;
    assert!(std::fs::read_to_string(&path).unwrap().contains("/x"));
    let verified = verify(place.path(), None).unwrap();
    let found: Vec<&str> = verified
        .problems
        .iter()
        .map(|found| found.what.as_str())
        .collect();
    assert_eq!(
        found,
        ["line 2 was changed: its hash is another"],
        "{verified:?}"
    );
    assert_eq!(verified.last_seq, 4);
}

#[tokio::test]
async fn nothing_is_lost_while_the_disk_is_full() {
    // Every write to this device fails as on a full disk.
    let place = tempfile::tempdir().unwrap();
    let mut writer = writer::Writer::open(place.path()).unwrap();
    writer.write(entry("/a"));
    assert!(!writer.is_behind());
    writer.fill_disk();
    for number in 0..3 {
        writer.write(entry(&format!("/full/{number}")));
    }
    assert!(writer.is_behind());
    writer.free_disk().unwrap();
    writer.tend();
    assert!(!writer.is_behind());
    writer.write(entry("/b"));
    let mut targets = Vec::new();
    lines(place.path(), |line| targets.push(line.target)).unwrap();
    assert_eq!(targets, ["/a", "/full/0", "/full/1", "/full/2", "/b"]);
    whole(place.path());
}

#[test]
fn a_flood_of_refusals_is_counted_and_not_written() {
    let began = Instant::now();
    let mut bucket = Bucket {
        left: REFUSALS_BURST,
        looked: began,
        kept_out: 0,
    };
    let written = (0..1000).filter(|_| bucket.take(began).is_some()).count();
    assert_eq!(written, 100);
    assert_eq!(bucket.take(began + Duration::from_secs(1)), Some(900));
}
