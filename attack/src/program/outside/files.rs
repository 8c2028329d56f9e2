//! Attacks with files, by way of the API.

use std::io;
use std::time::{Duration, Instant};

use super::super::{Attempt, Found};
use super::copy::worked_if;
use super::product::{Product, Sandbox, calm_kib, peak_kib, run};
use super::with;

/// Longest time that an answer of the API may take here.
const SOON: Duration = Duration::from_secs(30);
/// Longest time that copying or removing a deep tree may take.
const DEEP: Duration = Duration::from_mins(1);
const PATH_BYTES: usize = 1 << 20;
/// A path that is told in a body, where there is room for more.
const LONGER_BYTES: usize = 192 << 20;
/// Most memory by which the daemon may grow for it.
const GROWTH_MIB_MAX: u64 = 64;
/// Most bytes of a page of a directory: a thousand entries of names as long as they are here.
const PAGE_BYTES_MAX: usize = 1 << 20;

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("long-path", |facts| with(facts, long_path)),
    ("deep-tree", |facts| with(facts, deep_tree)),
    ("link-loop", |facts| {
        with(facts, |product| {
            let sandbox = product.sandbox(&[])?;
            sandbox.script("ln -s b /tmp/a && ln -s a /tmp/b")?;
            match refused(product, &sandbox, "/tmp/a/x")? {
                // Reading is the kernel's; where to write, the agent looks for by itself.
                Found::Failed(_) => written(product, &sandbox, "/tmp/a"),
                found => Ok(found),
            }
        })
    }),
    ("pipe-for-file", |facts| {
        with(facts, |product| swapped_file(product, "mkfifo /tmp/other"))
    }),
    ("device-for-file", |facts| {
        with(facts, |product| {
            swapped_file(product, "ln -s /dev/zero /tmp/other")
        })
    }),
    ("large-directory", |facts| with(facts, large_directory)),
];

/// Has worked when what is no file is read or waited for.
fn refused(product: &Product, sandbox: &Sandbox<'_>, path: &str) -> io::Result<Found> {
    let target = format!("/v1/sandboxes/{}/files?path={path}", sandbox.id);
    let answer = product.get(&target, SOON)?;
    if !product.answers() {
        return Ok(Found::Worked("the daemon does not answer".to_owned()));
    }
    if !sandbox.exec(&["true"])?.ok {
        return Ok(Found::Worked("the agent does not answer".to_owned()));
    }
    Ok(match answer.status() {
        Some(status @ 400..=499) if answer.ended => Found::Failed(format!("answered {status}")),
        Some(status) => Found::Worked(format!(
            "answered {status} and {} bytes",
            answer.bytes.len()
        )),
        None => Found::Worked("no answer".to_owned()),
    })
}

/// Has worked when what leads nowhere is written to or looked for without end.
fn written(product: &Product, sandbox: &Sandbox<'_>, path: &str) -> io::Result<Found> {
    const WRITTEN: Duration = Duration::from_secs(15);
    let request = format!(
        "PUT /v1/sandboxes/{}/files?path={path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-length: 1\r\n\r\nx",
        sandbox.id
    );
    let answer = product.ask(request.as_bytes(), WRITTEN)?;
    Ok(match answer.status() {
        Some(status @ 400..=499) if answer.ended => Found::Failed(format!("answered {status}")),
        Some(status) => Found::Worked(format!("answered {status}")),
        None => Found::Worked("it is looked for without end".to_owned()),
    })
}

/// Reads an empty file that is swapped for something else all the time, also between a look at it
/// and its reading.
fn swapped_file(product: &Product, other: &str) -> io::Result<Found> {
    const READS: u32 = 60;
    const READ: Duration = Duration::from_secs(10);
    const MUCH: usize = 1 << 20;
    let sandbox = product.sandbox(&[])?;
    sandbox.bring_program()?;
    sandbox.script(&format!(": >/tmp/file && {other}"))?;
    sandbox.leave(&["/attack", "act", "swap", "/tmp/file", "/tmp/other"])?;
    let target = format!("/v1/sandboxes/{}/files?path=/tmp/file", sandbox.id);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..READS {
        let answer = product.get(&target, READ)?;
        if !answer.ended || answer.bytes.len() > MUCH {
            let bytes = answer.bytes.len();
            return Ok(Found::Worked(format!("{bytes} bytes and no end")));
        }
        seen.extend(answer.status());
    }
    if !sandbox.exec(&["true"])?.ok {
        return Ok(Found::Worked("the agent does not answer".to_owned()));
    }
    if !seen.contains(&200) || seen.len() < 2 {
        return Err(io::Error::other(format!("only {seen:?} was answered")));
    }
    Ok(Found::Failed(format!("answered {seen:?}")))
}

fn long_path(product: &Product) -> io::Result<Found> {
    let sandbox = product.sandbox(&[])?;
    let path = "/a".repeat(PATH_BYTES / 2);
    let target = format!("/v1/sandboxes/{}/files", sandbox.id);
    let make = |path: &str| {
        let body = format!(r#"{{"path":"{path}","parents":true}}"#);
        format!(
            "POST {target}/mkdir HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let daemon = product.daemon()?;
    let before = calm_kib(daemon)?;
    let mut told = Vec::new();
    for request in [
        format!("GET {target}?path={path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
        format!("GET {target}/stat?path=/ HTTP/1.1\r\nhost: x\r\nx-path: {path}\r\n\r\n"),
        make(&path),
        make(&"/a".repeat(LONGER_BYTES / 2)),
    ] {
        let answer = product.ask(request.as_bytes(), SOON)?;
        if !product.answers() {
            return Ok(Found::Worked("the daemon does not answer".to_owned()));
        }
        let grown = peak_kib(daemon)?.saturating_sub(before) >> 10;
        if grown > GROWTH_MIB_MAX {
            return Ok(Found::Worked(format!("the daemon grew by {grown} MiB")));
        }
        match answer.status() {
            Some(status) if status >= 500 => {
                return Ok(Found::Worked(format!("answered {status}")));
            }
            Some(status @ 200..=299) => {
                return Ok(Found::Worked(format!("took it with {status}")));
            }
            Some(status) => told.push(status.to_string()),
            None => told.push("closed".to_owned()),
        }
    }
    Ok(Found::Failed(format!("answered {}", told.join(", "))))
}

fn deep_tree(product: &Product) -> io::Result<Found> {
    let sandbox = product.sandbox(&[])?;
    sandbox.bring_program()?;
    let made = sandbox.exec(&["/attack", "act", "deep", "/var/tmp"])?;
    if !made.ok {
        return Err(io::Error::other(made.word()));
    }
    let from = sandbox.path("/var/tmp/deep");
    let to = product.scratch("out").display().to_string();
    let copied = run(product.command(["cp", &from, &to]), DEEP)?;
    if copied.late {
        return Ok(Found::Worked("`cp` did not end".to_owned()));
    }
    let removed = run(product.command(["rm", &sandbox.id]), DEEP)?;
    if !removed.ok {
        return Ok(Found::Worked(format!("not removed: {}", removed.word())));
    }
    let left = std::path::Path::new(&product.given.state)
        .join("native")
        .join(&sandbox.id);
    Ok(worked_if(
        left.exists(),
        "its disk is left",
        &format!("{}; removed", copied.word()),
    ))
}

fn large_directory(product: &Product) -> io::Result<Found> {
    let sandbox = product.sandbox(&[])?;
    sandbox.bring_program()?;
    let made = sandbox.exec(&["/attack", "act", "many", "/var/tmp"])?;
    if !made.ok {
        return Err(io::Error::other(made.word()));
    }
    let target = format!("/v1/sandboxes/{}/files/list?path=/var/tmp/many", sandbox.id);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let listing = scope.spawn(|| product.get(&target, SOON));
        // What others ask meanwhile.
        let other = sandbox.exec(&["true"])?;
        let listed = listing
            .join()
            .map_err(|_| io::Error::other("not listed"))??;
        let took = begun.elapsed();
        Ok(match listed.status() {
            _ if !other.ok => Found::Worked(other.word()),
            Some(200) if listed.bytes.len() > PAGE_BYTES_MAX => {
                Found::Worked(format!("{} KiB in one answer", listed.bytes.len() >> 10))
            }
            Some(200) if listed.ended => {
                Found::Failed(format!("a page within {} ms", took.as_millis()))
            }
            status => Found::Worked(format!("{status:?} after {} s", took.as_secs())),
        })
    })
}
