//! Attacks that have the kernel keep more than the sandbox was given: cached files, descriptors,
//! pipes, watches, swap and disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;

use pinfold_attack::Facts;

use super::call::{call_with, fork, text, wait, wait_for_ever};
use super::limits::{MORE_BYTES, adopt, fill, memory, no_limit, touch};
use super::{Attempt, Found};

/// Bytes of kernel memory that one open file takes at least: 184 from Linux 6.12 on, and some to spare.
const BYTES_PER_OPEN_FILE: u64 = 160;
/// Bytes of kernel memory that one watch takes at least, halved to be safe.
const BYTES_PER_WATCH: u64 = 64;
/// Bytes that a pipe holds when its owner has many.
const PIPE_BYTES: u64 = 4096;
/// Processes among which descriptors are spread, when one may not have enough.
const HOLDERS_MAX: u64 = 64;
const PAGE_BYTES: usize = 4096;
const CHUNK: usize = 1 << 20;

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("memory-swap", |facts| {
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        if swaps.lines().count() < 2 {
            return Found::NotExpressible("this host has no swap".to_owned());
        }
        // Twice as much: what is beyond memory can only be in swap.
        memory(facts, |bytes| touch(2 * bytes))
    }),
    ("page-cache", page_cache),
    ("open-files", |facts| {
        held(facts, BYTES_PER_OPEN_FILE, |_| {
            call_with(libc::SYS_eventfd2, &[0, 0]).map(drop)
        })
    }),
    ("pipes", |facts| {
        held(facts, PIPE_BYTES, |_| {
            let mut ends = [0_i32; 2];
            call_with(libc::SYS_pipe2, &[(&raw mut ends).addr(), 0])?;
            let [_, end] = ends;
            let end = usize::try_from(end).unwrap_or(0);
            let page = [1_u8; PAGE_BYTES];
            call_with(libc::SYS_write, &[end, page.as_ptr().addr(), PAGE_BYTES]).map(drop)
        })
    }),
    ("file-watches", |facts| {
        let mut queue = None;
        held(facts, BYTES_PER_WATCH, move |number| {
            const FILES: u64 = 1000;
            const MODIFY: usize = 2;
            if number % FILES == 0 {
                fs::create_dir_all("/tmp/attack-watched")?;
                queue = Some(call_with(libc::SYS_inotify_init1, &[0])?);
            }
            let path = format!("/tmp/attack-watched/{}", number % FILES);
            if !fs::exists(&path)? {
                File::create(&path)?;
            }
            let path = text(&path);
            let queue = queue.unwrap_or(0);
            let add = [queue, path.as_ptr().addr(), MODIFY];
            call_with(libc::SYS_inotify_add_watch, &add).map(drop)
        })
    }),
    ("disk", |facts| {
        let Some(given) = facts.disk_bytes else {
            return no_limit();
        };
        let path = "/attack-disk";
        let filled = File::create(path).and_then(|file| fill(file, given + MORE_BYTES));
        // The next attack wants room too.
        let _partly = fs::remove_file(path);
        Found::of(filled, "wrote more than that")
    }),
    ("disk-files", |facts| {
        const MORE: u64 = 1024;
        let Some(given) = facts.disk_files else {
            return no_limit();
        };
        super::limits::files("/attack-inodes", given + MORE)
    }),
];

/// Reads a file of holes, and counts how much of it stays in memory.
fn page_cache(facts: &Facts) -> Found {
    let Some(given) = facts.memory_bytes else {
        return no_limit();
    };
    let wanted = given + MORE_BYTES;
    let resident = resident_after_reading("/attack-cache", wanted);
    let _partly = fs::remove_file("/attack-cache");
    match resident {
        // Holes of a file that is kept in memory are nowhere.
        Ok(0) => Found::NotExpressible("its disk is kept in memory".to_owned()),
        Ok(resident) if resident > given => Found::Worked(format!("keeps {} MiB", resident >> 20)),
        Ok(resident) => Found::Failed(format!("keeps {} MiB", resident >> 20)),
        Err(error) => Found::Failed(error.to_string()),
    }
}

fn resident_after_reading(path: &str, bytes: u64) -> io::Result<u64> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.set_len(bytes)?;
    let mut chunk = vec![0; CHUNK];
    while file.read(&mut chunk)? > 0 {}
    let length = usize::try_from(bytes).map_err(io::Error::other)?;
    let descriptor = usize::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    // `PROT_READ`, `MAP_SHARED`.
    let mapped = call_with(libc::SYS_mmap, &[0, length, 1, 1, descriptor, 0])?;
    let mut pages = vec![0_u8; length.div_ceil(PAGE_BYTES)];
    call_with(
        libc::SYS_mincore,
        &[mapped, length, pages.as_mut_ptr().addr()],
    )?;
    let resident = pages.iter().filter(|page| **page & 1 == 1).count();
    Ok((resident * PAGE_BYTES) as u64)
}

/// Has processes hold more of something than the memory that was given stands for.
fn held(facts: &Facts, bytes_each: u64, mut take: impl FnMut(u64) -> io::Result<()>) -> Found {
    let Some(given) = facts.memory_bytes else {
        return no_limit();
    };
    let wanted = (given + MORE_BYTES) / bytes_each;
    let mut holders = Vec::new();
    let mut count = 0;
    let mut refused = String::new();
    for _ in 0..HOLDERS_MAX {
        match holder(wanted - count, &mut take) {
            Ok((pid, taken, why)) => {
                holders.push((pid, taken));
                count += taken;
                refused = why;
                // The last one took nothing: the bound is not its own.
                if taken == 0 {
                    break;
                }
            }
            Err(error) => {
                refused = error.to_string();
                break;
            }
        }
        if count >= wanted {
            break;
        }
    }
    // What one held that was ended for its memory, while others went on taking, is held no more.
    let held: u64 = holders.into_iter().filter_map(release).sum();
    if held >= wanted {
        Found::Worked(format!("holds {held}"))
    } else {
        Found::Failed(format!("no more than {held}: {refused}"))
    }
}

/// Ends a holder; answers what it held if it held it until now.
fn release((pid, taken): (i32, u64)) -> Option<u64> {
    let address = usize::try_from(pid).ok()?;
    let asked = usize::try_from(libc::SIGTERM).ok()?;
    // Of two signals that end a process the first one is told: whoever was ended for its memory
    // says so here, even if it is not gone yet.
    let status = call_with(libc::SYS_kill, &[address, asked]).and_then(|_| wait(pid));
    status
        .is_ok_and(|status| libc::WTERMSIG(status) == libc::SIGTERM)
        .then_some(taken)
}

/// Makes a process that takes as much as it can and keeps it; answers how much that was.
fn holder(
    wanted: u64,
    take: &mut impl FnMut(u64) -> io::Result<()>,
) -> io::Result<(i32, u64, String)> {
    let mut ends = [0_i32; 2];
    call_with(libc::SYS_pipe2, &[(&raw mut ends).addr(), 0])?;
    let [reading, writing] = ends.map(|end| usize::try_from(end).unwrap_or(0));
    let pid = fork(|| {
        // Whoever asks for it is ended first.
        let _refused = fs::write("/proc/self/oom_score_adj", "1000");
        raise_own_limit();
        let mut report = adopt(writing);
        let mut taken = 0;
        let mut why = String::new();
        while taken < wanted {
            match take(taken) {
                Ok(()) => taken += 1,
                Err(error) => {
                    why = error.to_string();
                    break;
                }
            }
        }
        let _nobody = report.write_all(format!("{taken} {why}").as_bytes());
        drop(report);
        wait_for_ever()
    })?;
    drop(adopt(writing));
    let mut said = String::new();
    adopt(reading).read_to_string(&mut said)?;
    let (taken, why) = said.split_once(' ').unwrap_or(("0", "ended for it"));
    Ok((pid, taken.parse().unwrap_or(0), why.to_owned()))
}

/// Takes as many descriptors as this process may have without anybody's leave.
fn raise_own_limit() {
    let files = usize::try_from(libc::RLIMIT_NOFILE).unwrap_or(0);
    let mut limit = [0_u64; 2];
    let read = call_with(libc::SYS_prlimit64, &[0, files, 0, (&raw mut limit).addr()]);
    let [_, hard] = limit;
    let highest = [hard, hard];
    // With fewer it takes more processes.
    let _kept = read.and_then(|_| {
        let address = (&raw const highest).addr();
        call_with(libc::SYS_prlimit64, &[0, files, address, 0])
    });
}
