//! Attacks by an agent that the guest has taken over.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::{Attempt, Facts, Found};
use super::agent::{Answer, Message, chunk, exited, listen, metrics, output, started};
use super::archive::{
    Archive, BLOCK, DEVICE, DIRECTORY, HARD_LINK, HOLES, LINK, LONG_NAME, header, hole,
};
use super::copy::{ESCAPE, worked_if};
use super::product::{Product, Sandbox, calm_kib, peak_kib, run};
use super::with;

/// Longest time in which the product gives up on an agent that says nothing.
const PATIENCE: Duration = Duration::from_secs(80);
/// Most memory by which what believes an agent may grow.
const GROWTH_KIB_MAX: u64 = 128 << 10;
/// Most memory of `cp`.
const COPY_KIB_MAX: i64 = 128 << 10;

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("liar-silent", |facts| lying(facts, silent)),
    ("liar-endless", |facts| lying(facts, endless)),
    ("liar-journal", |facts| lying(facts, journal)),
    ("liar-identity", |facts| lying(facts, identity)),
    ("liar-metrics", |facts| lying(facts, numbers)),
    ("liar-texts", |facts| lying(facts, texts)),
    ("liar-sizes", |facts| lying(facts, sizes)),
    ("liar-archive-absolute", |facts| {
        lying(facts, |product| {
            let name = product.scratch("victim/pwned").display().to_string();
            written(product, Archive::default().file(&name, b"pwned"))
        })
    }),
    ("liar-archive-parent", |facts| {
        lying(facts, |product| {
            let archive = Archive::default()
                .entry("x/", DIRECTORY, "")
                .file("x/../victim/pwned", b"pwned");
            written(product, archive)
        })
    }),
    ("liar-archive-link", |facts| {
        lying(facts, |product| {
            let victim = product.scratch("victim").display().to_string();
            let archive = Archive::default()
                .entry("x/", DIRECTORY, "")
                .entry("x/link", LINK, &victim)
                .file("x/link/pwned", b"pwned");
            written(product, archive)
        })
    }),
    ("liar-archive-hard-link", |facts| lying(facts, hard_link)),
    ("liar-archive-device", |facts| {
        lying(facts, |product| {
            let archive = Archive::default()
                .entry("x/", DIRECTORY, "")
                .entry("x/device", DEVICE, "");
            let (ran, to) = copied(product, Answers::Whole(archive.end()))?;
            let made = fs::symlink_metadata(to.join("device"));
            let made = made.is_ok_and(|file| {
                file.file_type().is_char_device() || file.file_type().is_block_device()
            });
            Ok(worked_if(made, "made a device", &ran.word()))
        })
    }),
    ("liar-archive-sparse", |facts| lying(facts, sparse)),
    ("liar-archive-record", |facts| {
        lying(facts, |product| {
            const PART: usize = 1 << 20;
            const PARTS: usize = 400;
            let name = header("././@LongLink", LONG_NAME, "", (PART * PARTS) as u64);
            let answers = Answers::Long(name.to_vec(), vec![b'x'; PART], PARTS);
            let (ran, _) = copied(product, answers)?;
            Ok(bounded(&ran))
        })
    }),
    ("liar-archive-many", |facts| {
        lying(facts, |product| {
            // Each twenty entries of names as long as a path may almost be: few entries, much memory.
            const PARTS: usize = 2500;
            const ENTRIES: usize = 20;
            let deep = format!("x/{}", format!("{}/", "d".repeat(249)).repeat(12));
            let entries = (0..ENTRIES).flat_map(|number| {
                let name = format!("{deep}{number:02}/");
                let mut record = header("././@LongLink", LONG_NAME, "", name.len() as u64).to_vec();
                record.extend_from_slice(name.as_bytes());
                record.resize(record.len().next_multiple_of(BLOCK), 0);
                record.extend(header("x/", DIRECTORY, "", 0));
                record
            });
            let first = header("x/", DIRECTORY, "", 0);
            let answers = Answers::Long(first.to_vec(), entries.collect(), PARTS);
            let (ran, _) = copied(product, answers)?;
            Ok(bounded(&ran))
        })
    }),
];

/// What `Pack` answers.
enum Answers {
    Whole(Vec<u8>),
    Long(Vec<u8>, Vec<u8>, usize),
}

fn lying(facts: &Facts, attack: impl FnOnce(&Product) -> io::Result<Found>) -> Found {
    with(facts, |product| {
        product.directory("victim")?;
        attack(product)
    })
}

/// Listens as an agent, and makes a sandbox that it stands for.
fn sandbox(
    product: &Product,
    lies: impl Fn(&str) -> Option<Answer> + Send + Sync + 'static,
) -> io::Result<Sandbox<'_>> {
    let path = product.given.agent.as_deref();
    let path = path.ok_or_else(|| io::Error::other("there is nobody who believes us"))?;
    listen(Path::new(path), Arc::new(lies))?;
    product.sandbox(&[])
}

/// Copies out of a sandbox whose agent sends this archive.
fn copied(
    product: &Product,
    archive: Answers,
) -> io::Result<(super::product::Ran, std::path::PathBuf)> {
    let sandbox = sandbox(product, move |call| {
        (call == "Pack").then(|| match &archive {
            Answers::Whole(bytes) => Answer::Archive(bytes.clone()),
            Answers::Long(first, again, times) => {
                Answer::LongArchive(first.clone(), again.clone(), *times)
            }
        })
    })?;
    let to = product.scratch("copy");
    let ran = sandbox.copy_out("/x", &to)?;
    Ok((ran, to))
}

/// Has worked when a copy writes beside where it should.
fn written(product: &Product, archive: Archive) -> io::Result<Found> {
    let (ran, _) = copied(product, Answers::Whole(archive.end()))?;
    Ok(worked_if(
        product.scratch("victim/pwned").exists(),
        "wrote to the host",
        &ran.word(),
    ))
}

fn hard_link(product: &Product) -> io::Result<Found> {
    let secret = product.scratch("victim/secret");
    fs::write(&secret, pinfold_attack::SECRET)?;
    let mut last = String::new();
    for target in [
        secret.display().to_string(),
        "x/../victim/secret".to_owned(),
    ] {
        let archive = Archive::default()
            .entry("x/", DIRECTORY, "")
            .entry("x/stolen", HARD_LINK, &target);
        let (ran, _) = copied(product, Answers::Whole(archive.end()))?;
        if fs::metadata(&secret)?.nlink() > 1 {
            return Ok(Found::Worked("it has a second name".to_owned()));
        }
        last = ran.word();
    }
    Ok(Found::Failed(last))
}

fn sparse(product: &Product) -> io::Result<Found> {
    let mut last = String::new();
    for bytes in HOLES {
        let archive = Archive::default().block(&hole("x", bytes)).block(&[0; 512]);
        let (ran, to) = copied(product, Answers::Whole(archive.end()))?;
        let size = fs::metadata(&to).map_or(0, |file| file.blocks() * 512);
        if ran.late || size > 1 << 20 {
            return Ok(Found::Worked(format!("wrote {} MiB of holes", size >> 20)));
        }
        last = ran.word();
    }
    Ok(Found::Failed(last))
}

fn bounded(ran: &super::product::Ran) -> Found {
    let had = ran.memory_kib >> 10;
    let word = ran.word();
    worked_if(
        ran.memory_kib > COPY_KIB_MAX,
        &format!("`cp` had {had} MiB"),
        &format!("{word}; `cp` had {had} MiB"),
    )
}

/// Has worked when what believes the agent is gone or has grown.
fn survived(product: &Product, before: u64, word: String) -> io::Result<Found> {
    if !product.answers() {
        return Ok(Found::Worked("the daemon does not answer".to_owned()));
    }
    let grown = peak_kib(product.daemon()?)?.saturating_sub(before);
    Ok(if grown > GROWTH_KIB_MAX {
        Found::Worked(format!("the daemon grew by {} MiB", grown >> 10))
    } else {
        Found::Failed(word)
    })
}

fn silent(product: &Product) -> io::Result<Found> {
    let sandbox = sandbox(product, |call| (call != "Ready").then_some(Answer::Silence))?;
    let begun = Instant::now();
    let copy = sandbox.path("/x");
    let to = product.scratch("copy").display().to_string();
    let commands: [&[&str]; 4] = [
        &["exec", &sandbox.id, "--", "true"],
        &["cp", &copy, &to],
        &["report"],
        &["metrics", &sandbox.id],
    ];
    // All at once: each waits for as long as it may.
    std::thread::scope(|scope| {
        let running: Vec<_> = commands
            .iter()
            .map(|words| scope.spawn(|| run(product.command(*words), PATIENCE)))
            .collect();
        for (running, words) in running.into_iter().zip(commands) {
            let ran = running.join().map_err(|_| io::Error::other("no end"))??;
            if ran.late {
                let word = words.first().unwrap_or(&"");
                return Ok(Found::Worked(format!("`{word}` did not end")));
            }
        }
        let word = format!("given up within {} s", begun.elapsed().as_secs());
        Ok(worked_if(
            !product.answers(),
            "the daemon does not answer",
            &word,
        ))
    })
}

fn endless(product: &Product) -> io::Result<Found> {
    const PART: &[u8] = &[0x0a; 16 << 10];
    let before = calm_kib(product.daemon()?)?;
    let sandbox = sandbox(product, |call| match call {
        "Ready" | "Start" => None,
        "Read" => Some(Answer::Endless(output(1, "x"))),
        _ => Some(Answer::Bytes(PART)),
    })?;
    let copy = sandbox.path("/x");
    let to = product.scratch("copy").display().to_string();
    let commands: [&[&str]; 4] = [
        &["metrics", &sandbox.id],
        &["report"],
        &["cp", &copy, &to],
        &["exec", &sandbox.id, "--", "true"],
    ];
    let mut word = String::new();
    for words in commands {
        let ran = product.run(words)?;
        if ran.late {
            return Ok(Found::Worked(format!("{words:?} did not end")));
        }
        word = ran.word();
        if let found @ Found::Worked(_) = survived(product, before, String::new())? {
            return Ok(found);
        }
    }
    survived(product, before, word)
}

fn journal(product: &Product) -> io::Result<Found> {
    let before = calm_kib(product.daemon()?)?;
    let dropped = |first: u64| {
        let dropped = Message::default().number(1, first);
        Message::default().number(1, 2).message(6, &dropped)
    };
    let journals = [
        // A gap, a repetition, one out of order, something after the end, a lie about what is
        // lost, and no end at all.
        vec![started(1), output(3, "pwned"), exited(4)],
        vec![started(1), started(1), output(1, "pwned"), exited(2)],
        vec![started(1), output(u64::MAX, "pwned"), exited(2)],
        vec![started(1), dropped(u64::MAX), output(2, "pwned"), exited(3)],
        vec![started(1), dropped(0), output(0, "pwned"), exited(3)],
        vec![
            Message::default().number(1, 1),
            output(2, "pwned"),
            exited(3),
        ],
    ];
    let mut word = String::new();
    for journal in journals {
        let sandbox = sandbox(product, move |call| {
            (call == "Read").then(|| Answer::Stream(journal.clone()))
        })?;
        let ran = sandbox.exec(&["true"])?;
        if ran.late || ran.said("pwned") {
            return Ok(Found::Worked(format!("believed it: {}", ran.word())));
        }
        word = ran.word();
    }
    survived(product, before, word)
}

/// Lists execs that nobody started, and some with ids that are none.
fn identity(product: &Product) -> io::Result<Found> {
    let before = calm_kib(product.daemon()?)?;
    let honest = sandbox(product, |_| None)?;
    honest.exec(&["true"])?;
    let listed = product.must(["--json", "logs", &honest.id])?;
    let known = String::from_utf8_lossy(&listed.out).into_owned();
    let ids = ["../../x", "", "x0000000000000000000", "\u{1b}]0;pwned\u{7}"];
    let mut word = String::new();
    for id in ids {
        let list = Message::default()
            .text(1, id)
            .text(2, "pwned")
            .number(4, 1)
            .number(6, 9);
        let list = Message::default().message(1, &list);
        let path = product.given.agent.as_deref().unwrap_or_default();
        let lie = move |call: &str| (call == "List").then(|| Answer::Message(list.clone()));
        listen(Path::new(path), Arc::new(lie))?;
        let liar = product.sandbox(&[])?;
        let ran = liar.exec(&["true"])?;
        let shown = product.run(["--json", "logs", &liar.id])?;
        if shown.said("pwned") || shown.said(ESCAPE) {
            return Ok(Found::Worked("it is shown".to_owned()));
        }
        word = ran.word();
    }
    let listed = product.must(["--json", "logs", &honest.id])?;
    if String::from_utf8_lossy(&listed.out) != known {
        return Ok(Found::Worked("another sandbox's log changed".to_owned()));
    }
    survived(product, before, word)
}

fn numbers(product: &Product) -> io::Result<Found> {
    let before = calm_kib(product.daemon()?)?;
    let huge = Message::default()
        .text(1, "1m")
        .number(2, u64::MAX)
        .double(3, 1e308)
        .number(4, u64::MAX)
        .double(5, 1e308)
        .number(6, u64::MAX)
        .double(7, 1e308)
        .text(8, "2026-01-01T00:00:00Z")
        .number(9, u64::MAX);
    let time = "2026-01-01T00:00:00Z";
    let mut word = String::new();
    for lie in [
        huge,
        metrics("1m", time, f64::NAN),
        metrics("1m", time, f64::INFINITY),
        metrics("1m", time, -1.0),
        metrics(&"1".repeat(1 << 20), time, 1.0),
    ] {
        let sandbox = sandbox(product, move |call| {
            (call == "Metrics").then(|| Answer::Message(lie.clone()))
        })?;
        for words in [
            &["metrics", &sandbox.id][..],
            &["report"],
            &["--json", "report"],
        ] {
            let ran = product.run(words)?;
            let long = ran.out.len() + ran.err.len() > 64 << 10;
            if ran.late || long || ran.said("panicked") {
                return Ok(Found::Worked(format!("{words:?}: {}", ran.word())));
            }
            word = ran.word();
        }
    }
    survived(product, before, word)
}

fn texts(product: &Product) -> io::Result<Found> {
    let before = calm_kib(product.daemon()?)?;
    let told = format!("no{ESCAPE}\u{9b}31m\u{202e}\nhint: run me");
    let steers = |ran: &super::product::Ran| {
        [ESCAPE, "\u{9b}", "\u{202e}", "\nhint: run me"]
            .iter()
            .any(|text| ran.said(text))
    };
    let errors = [
        Answer::Error("internal", told.clone()),
        Answer::Error("not_found", format!("code=command_not_found; {told}")),
        Answer::Message(metrics(&told, &told, 1.0)),
        Answer::Message(
            Message::default().message(
                1,
                &Message::default()
                    .text(1, &told)
                    .number(2, 3)
                    .text(8, &told),
            ),
        ),
    ];
    let mut word = String::new();
    for lie in errors {
        let lie = std::sync::Mutex::new(lie);
        let sandbox = sandbox(product, move |call| {
            let lie = lie.lock().ok()?;
            match (&*lie, call) {
                (_, "Ready") => None,
                (Answer::Error(code, text), _) => Some(Answer::Error(code, text.clone())),
                (Answer::Message(message), "Metrics" | "Stat") => {
                    Some(Answer::Message(message.clone()))
                }
                _ => None,
            }
        })?;
        let copy = sandbox.path("/x");
        let to = product.scratch("copy").display().to_string();
        let commands: [&[&str]; 5] = [
            &["exec", &sandbox.id, "--", "true"],
            &["metrics", &sandbox.id],
            &["report"],
            &["cp", &copy, &to],
            &["status", &sandbox.id],
        ];
        for words in commands {
            let ran = product.run(words)?;
            if steers(&ran) {
                return Ok(Found::Worked(format!("{words:?} passes it on")));
            }
            word = ran.word();
        }
    }
    survived(product, before, word)
}

fn sizes(product: &Product) -> io::Result<Found> {
    const MIB: usize = 1 << 20;
    const ANSWER: Duration = Duration::from_secs(10);
    let before = calm_kib(product.daemon()?)?;
    let sandbox = sandbox(product, |call| match call {
        // A file of a hundred bytes.
        "Stat" => Some(Answer::Message(Message::default().message(
            1,
            &Message::default().text(1, "x").number(2, 1).number(3, 100),
        ))),
        "ReadFile" => Some(Answer::Endless(chunk(MIB))),
        _ => None,
    })?;
    let target = format!("/v1/sandboxes/{}/files?path=/x", sandbox.id);
    // A range of ten bytes.
    let request = format!(
        "GET {target} HTTP/1.1\r\nhost: x\r\nrange: bytes=0-9\r\nconnection: close\r\n\r\n"
    );
    let answer = product.ask(request.as_bytes(), ANSWER)?;
    if answer.bytes.len() > 64 << 10 {
        return Ok(Found::Worked(format!("{} bytes came", answer.bytes.len())));
    }
    survived(product, before, format!("answered {:?}", answer.status()))
}
