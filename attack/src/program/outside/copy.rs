//! Attacks on `cp`, made by a sandbox whose agent is honest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::call::call_with;
use super::super::limits::adopt;
use super::super::{Attempt, Found};
use super::act::exchange;
use super::archive::Archive;
use super::product::{COMMAND, Product, run};
use super::with;

/// What takes over a terminal: a title of a window.
pub(super) const ESCAPE: &str = "\x1b]0;pwned\x07";
/// Longest time that a copy of nothing may take.
const SOON: Duration = Duration::from_secs(20);
/// Most bytes by which a file grows.
const GROWTH_BYTES_MAX: usize = 64 << 20;

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("copy-in-pipe", |facts| {
        with(facts, |product| {
            let sandbox = product.sandbox(&[])?;
            let tree = product.directory("tree")?;
            make_pipe(&tree.join("pipe"))?;
            let from = tree.display().to_string();
            let copy = product.command(["cp", &from, &sandbox.path("/tmp/tree")]);
            let ran = run(copy, SOON)?;
            Ok(worked_if(ran.late, "it waits", &ran.word()))
        })
    }),
    ("copy-in-growing", |facts| with(facts, copy_in_growing)),
    ("copy-out-growing", |facts| with(facts, copy_out_growing)),
    ("copy-out-setuid", |facts| {
        with(facts, |product| {
            let sandbox = product.sandbox(&[])?;
            sandbox.script("mkdir /tmp/t && echo x >/tmp/t/f && chmod 6755 /tmp/t/f")?;
            let to = product.scratch("out");
            let ran = sandbox.copy_out("/tmp/t", &to)?;
            let mode = fs::metadata(to.join("f")).map_or(0, |file| file.mode());
            Ok(worked_if(mode & 0o6000 != 0, "it is setuid", &ran.word()))
        })
    }),
    ("copy-out-pipe", |facts| {
        with(facts, |product| {
            let sandbox = product.sandbox(&[])?;
            sandbox.script("mkdir /tmp/t && mkfifo /tmp/t/p")?;
            let to = product.scratch("out");
            let ran = sandbox.copy_out("/tmp/t", &to)?;
            let made = fs::symlink_metadata(to.join("p"));
            let made = made.is_ok_and(|file| file.file_type().is_fifo());
            Ok(worked_if(made, "made a pipe", &ran.word()))
        })
    }),
    ("copy-out-names", |facts| {
        with(facts, |product| {
            let sandbox = product.sandbox(&[])?;
            // Special files are told of.
            sandbox.script(
                r#"mkdir /tmp/t && cd /tmp/t && mkfifo "$(printf '\033]0;pwned\007')" &&
                mkfifo "$(printf 'a\nhint: run me')" && mkfifo "$(printf '\342\200\256txt')""#,
            )?;
            let ran = sandbox.copy_out("/tmp/t", &product.scratch("out"))?;
            let steered = [ESCAPE, "\nhint: run me", "\u{202e}"]
                .iter()
                .any(|text| ran.said(text));
            Ok(worked_if(steered, "the terminal hears it", &ran.word()))
        })
    }),
    ("logs-escapes", |facts| {
        with(facts, |product| {
            let sandbox = product.sandbox(&[])?;
            sandbox.script(r"printf '\033]0;pwned\007\033[31mred\033[0m\n'")?;
            let mut command = product.command(["logs", &sandbox.id]);
            let terminal = terminal(&mut command)?;
            let mut ran = run(command, COMMAND)?;
            ran.out = read_some(terminal);
            if !ran.said("red") {
                return Err(io::Error::other("the terminal shows no log"));
            }
            Ok(worked_if(
                ran.said(ESCAPE),
                "the terminal hears it",
                "it is shown",
            ))
        })
    }),
];

pub(super) fn worked_if(worked: bool, yes: &str, no: &str) -> Found {
    if worked {
        Found::Worked(yes.to_owned())
    } else {
        Found::Failed(no.to_owned())
    }
}

pub(super) fn make_pipe(path: &Path) -> io::Result<()> {
    const PIPE: usize = 0o010_666;
    let path = super::super::call::text(&path.to_string_lossy());
    call_with(libc::SYS_mknod, &[path.as_ptr().addr(), PIPE, 0]).map(drop)
}

/// A file and a growth that, read as an archive, is a further file.
fn further(name: &str) -> Vec<u8> {
    Archive::default().file(name, b"pwned").open()
}

fn copy_in_growing(product: &Product) -> io::Result<Found> {
    const BEGINNING: usize = 1 << 20;
    let sandbox = product.sandbox(&[])?;
    let tree = product.directory("tree")?;
    let file = tree.join("grows");
    fs::write(&file, vec![0; BEGINNING])?;
    let growth = further("tree/pwned");
    let done = AtomicBool::new(false);
    let ran = std::thread::scope(|scope| {
        let grower = scope.spawn(|| -> io::Result<()> {
            let mut file = OpenOptions::new().append(true).open(&file)?;
            let mut grown = 0;
            while grown < GROWTH_BYTES_MAX && !done.load(Ordering::Relaxed) {
                file.write_all(&growth)?;
                grown += growth.len();
            }
            Ok(())
        });
        let ran = sandbox.copy_in(&tree, "/var/tmp/tree");
        done.store(true, Ordering::Relaxed);
        let grown = grower
            .join()
            .map_err(|_| io::Error::other("nothing grew"))?;
        grown.and(ran)
    })?;
    // Names are beneath the name of the copy.
    let found = sandbox.exec(&["test", "-e", "/var/tmp/tree/pwned"])?;
    Ok(worked_if(found.ok, "a further file is there", &ran.word()))
}

fn copy_out_growing(product: &Product) -> io::Result<Found> {
    /// Copies, of which one has to meet the growth.
    const TRIES: u32 = 4;
    let sandbox = product.sandbox(&[])?;
    let block = product.scratch("block");
    fs::write(&block, further("t/pwned"))?;
    let sent = sandbox.copy_in(&block, "/var/tmp/block")?;
    if !sent.ok {
        return Err(io::Error::other(sent.word()));
    }
    sandbox.script(
        "mkdir /var/tmp/t && head -c 16777216 /dev/zero >/var/tmp/t/grows && \
         for i in 1 2 3 4 5 6 7 8 9; do cat /var/tmp/block /var/tmp/block >/var/tmp/two && \
         mv /var/tmp/two /var/tmp/block; done",
    )?;
    let to = product.scratch("out");
    let mut last = String::new();
    for _ in 0..TRIES {
        // Slow, so that it goes on while the file is read; bounded in time and size, also when
        // nobody ends it.
        sandbox.leave(&[
            "timeout",
            "20",
            "sh",
            "-c",
            "i=0; while [ $i -lt 60 ]; do cat /var/tmp/block; sleep 0.03; i=$((i+1)); done \
             >>/var/tmp/t/grows",
        ])?;
        let ran = sandbox.copy_out("/var/tmp/t", &to)?;
        if to.join("pwned").exists() {
            return Ok(Found::Worked("a further file is there".to_owned()));
        }
        last = ran.word();
    }
    Ok(Found::Failed(last))
}

/// Swaps a directory for a link while `cp` copies what is beside it, and looks for what the link
/// leads to.
pub(super) fn swapped_directory(product: &Product) -> io::Result<Found> {
    const FILES: u32 = 1000;
    const TRIES: u32 = 4;
    let sandbox = product.sandbox(&[])?;
    let tree = product.directory("tree")?;
    for (name, content) in [("tree/d", "plain"), ("secret", pinfold_attack::SECRET)] {
        let directory = product.directory(name)?;
        for number in 0..FILES {
            fs::write(directory.join(number.to_string()), content)?;
        }
    }
    let (one, other) = (tree.join("d"), tree.join("l"));
    symlink(product.scratch("secret"), &other)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // It may fail once, at the very end of everything.
                let _gone = exchange(&one, &other);
            }
        });
        let found = (|| {
            let mut last = String::new();
            for number in 0..TRIES {
                let to = format!("/var/tmp/tree{number}");
                last = sandbox.copy_in(&tree, &to)?.word();
                let found = sandbox.exec(&["grep", "-rqs", pinfold_attack::SECRET, &to])?;
                if found.ok {
                    return Ok(Found::Worked("the secret was copied".to_owned()));
                }
            }
            Ok(Found::Failed(last))
        })();
        done.store(true, Ordering::Relaxed);
        drop(swapper.join());
        found
    })
}

/// Brings a link to the host with one copy, and writes through it with the next.
pub(super) fn planted_link(product: &Product) -> io::Result<Found> {
    let sandbox = product.sandbox(&[])?;
    let victim = product.directory("victim")?;
    let to = product.scratch("out");
    sandbox.script(&format!(
        "mkdir /tmp/t && ln -s {} /tmp/t/d",
        victim.display()
    ))?;
    let first = sandbox.copy_out("/tmp/t", &to)?;
    if !to.join("d").is_symlink() {
        return Ok(Found::Failed(first.word()));
    }
    sandbox.script("rm /tmp/t/d && mkdir /tmp/t/d && echo x >/tmp/t/d/pwned")?;
    // The same place, not one beneath it.
    fs::create_dir_all(product.scratch("again"))?;
    fs::rename(&to, product.scratch("again/t"))?;
    let second = sandbox.copy_out("/tmp/t", &product.scratch("again"))?;
    Ok(worked_if(
        victim.join("pwned").exists(),
        "wrote through it",
        &second.word(),
    ))
}

/// Gives a command a terminal as its standard output, and answers the other end.
fn terminal(command: &mut Command) -> io::Result<File> {
    let master = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/ptmx")?;
    let descriptor = {
        use std::os::fd::AsRawFd as _;
        usize::try_from(master.as_raw_fd()).map_err(io::Error::other)?
    };
    let request = |request: u64, value: usize| {
        let request = usize::try_from(request).map_err(io::Error::other)?;
        call_with(libc::SYS_ioctl, &[descriptor, request, value])
    };
    let unlocked = 0_i32;
    request(libc::TIOCSPTLCK, (&raw const unlocked).addr())?;
    // Without becoming our own terminal.
    let flags = usize::try_from(libc::O_RDWR | libc::O_NOCTTY).map_err(io::Error::other)?;
    let other = request(libc::TIOCGPTPEER, flags)?;
    command.stdout(adopt(other));
    Ok(master)
}

/// Reads what a terminal shows whose other end is closed.
fn read_some(mut terminal: File) -> Vec<u8> {
    use std::io::Read as _;
    let mut shown = Vec::new();
    // Ends with an error when nobody holds the other end any more.
    let _closed = terminal.read_to_end(&mut shown);
    shown
}
