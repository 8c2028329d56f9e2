//! Attacks that take more than the sandbox was given.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::FromRawFd as _;

use pinfold_attack::Facts;

use super::call::{any, call_with, fork, wait, wait_for_ever};
use super::{Attempt, Found};

/// Processes beyond what was given that are tried.
const MORE: u64 = 32;
/// Bytes beyond what was given that are tried.
pub(super) const MORE_BYTES: u64 = 32 << 20;
const CHUNK: usize = 1 << 20;
/// Bytes that each file of a bounded tmpfs stands for, as the product counts them.
const BYTES_PER_FILE: u64 = 4096;
/// Files that nothing in `/dev` needs.
const DEVICE_FILES: u64 = 1000;

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("fork-bomb", |facts| processes(facts, forks)),
    ("thread-bomb", |facts| processes(facts, threads)),
    ("memory", |facts| memory(facts, touch)),
    ("memory-file", |facts| {
        memory(facts, |bytes| {
            let file = File::create("/tmp/attack-fill")?;
            // It goes with whoever fills it: the next attack wants memory too.
            fs::remove_file("/tmp/attack-fill")?;
            fill(file, bytes)
        })
    }),
    ("memory-descriptor", |facts| {
        memory(facts, |bytes| {
            let made = call_with(libc::SYS_memfd_create, &[c"x".as_ptr().addr(), 0])?;
            fill(adopt(made), bytes)
        })
    }),
    ("small-files", |facts| {
        let Some(memory) = facts.memory_bytes else {
            return no_limit();
        };
        files("/tmp", memory / BYTES_PER_FILE + 1024)
    }),
    ("device-files", |_| files("/dev", DEVICE_FILES)),
    ("raise-limits", |_| {
        any([
            libc::RLIMIT_NOFILE,
            libc::RLIMIT_MEMLOCK,
            libc::RLIMIT_RTPRIO,
        ]
        .map(|resource| {
            let resource = usize::try_from(resource).unwrap_or(0);
            let mut limit = [0_u64; 2];
            let address = (&raw mut limit).addr();
            let raised =
                call_with(libc::SYS_prlimit64, &[0, resource, 0, address]).and_then(|_| {
                    let [soft, hard] = limit;
                    if hard == u64::MAX {
                        return Err(io::Error::other("there is no limit"));
                    }
                    let higher = [soft, hard + 1];
                    let address = (&raw const higher).addr();
                    call_with(libc::SYS_prlimit64, &[0, resource, address, 0])
                });
            Found::of(raised, "raised")
        }))
    }),
    ("negative-preference", |_| {
        any(["-1", "-1000"]
            .map(|score| Found::of(fs::write("/proc/self/oom_score_adj", score), "set")))
    }),
    ("real-time", |_| {
        const FIFO: usize = 1;
        let priority = 1_i32;
        let address = (&raw const priority).addr();
        let became = call_with(libc::SYS_sched_setscheduler, &[0, FIFO, address]);
        Found::of(became, "became one")
    }),
];

pub(super) fn no_limit() -> Found {
    Found::NotExpressible("this host cannot limit it for this user".to_owned())
}

fn processes(facts: &Facts, make: fn(u64) -> io::Result<()>) -> Found {
    let Some(given) = facts.processes else {
        return no_limit();
    };
    Found::of(make(given + MORE), "made more than that")
}

/// Makes that many processes that live at the same time.
fn forks(count: u64) -> io::Result<()> {
    let mut made = Vec::new();
    let result = (0..count).try_for_each(|_| {
        made.push(fork(wait_for_ever)?);
        Ok(())
    });
    for pid in made {
        let address = usize::try_from(pid).unwrap_or(0);
        let killed = call_with(libc::SYS_kill, &[address, 9]);
        killed.and_then(|_| wait(pid)).map(drop)?;
    }
    result
}

/// Makes that many threads that live at the same time, in a process that ends with them.
fn threads(count: u64) -> io::Result<()> {
    const STACK_BYTES: usize = 64 << 10;
    for _ in 0..count {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        drop(thread.spawn(wait_for_ever)?);
    }
    Ok(())
}

/// Takes memory in another process, which is the one that is ended for it.
pub(super) fn memory(facts: &Facts, take: impl FnOnce(u64) -> io::Result<()>) -> Found {
    let Some(given) = facts.memory_bytes else {
        return no_limit();
    };
    let ended = fork(|| {
        // Whoever asks for it is ended first.
        let _refused = fs::write("/proc/self/oom_score_adj", "1000");
        i32::from(take(given + MORE_BYTES).is_err())
    })
    .and_then(wait);
    match ended {
        Ok(status) if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 => {
            Found::Worked("used more than that".to_owned())
        }
        Ok(status) if libc::WIFSIGNALED(status) => {
            Found::Failed(format!("ended by signal {}", libc::WTERMSIG(status)))
        }
        Ok(_) => Found::Failed("refused".to_owned()),
        Err(error) => Found::Failed(error.to_string()),
    }
}

pub(super) fn touch(bytes: u64) -> io::Result<()> {
    let mut held = Vec::new();
    let chunk = u64::try_from(CHUNK).unwrap_or(u64::MAX);
    for _ in 0..bytes / chunk {
        held.push(vec![1_u8; CHUNK]);
    }
    // All of it is in use until here.
    if held.iter().all(|part| part.last() == Some(&1)) {
        Ok(())
    } else {
        Err(io::Error::other("memory was lost"))
    }
}

pub(super) fn fill(mut file: File, bytes: u64) -> io::Result<()> {
    let chunk = vec![1_u8; CHUNK];
    let size = u64::try_from(CHUNK).unwrap_or(u64::MAX);
    (0..bytes / size).try_for_each(|_| file.write_all(&chunk))
}

#[expect(unsafe_code, reason = "a descriptor by its number")]
pub(super) fn adopt(descriptor: usize) -> File {
    let descriptor = i32::try_from(descriptor).unwrap_or(-1);
    // SAFETY: the kernel has just made it, and nothing else owns it.
    unsafe { File::from_raw_fd(descriptor) }
}

pub(super) fn files(directory: &str, count: u64) -> Found {
    let place = format!("{directory}/attack-files");
    let made = fs::create_dir_all(&place).and_then(|()| {
        (0..count).try_for_each(|number| {
            let path = format!("{place}/{number}");
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)
                .map(drop)
        })
    });
    // Others need room too.
    let _partly = fs::remove_dir_all(&place);
    Found::of(made, &format!("made {count}"))
}
