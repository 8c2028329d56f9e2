//! Programs that write as fast as they can to readers that have stopped.

use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::held::status_kib;
use crate::yard::{Yard, until, wait};
use crate::{Flood, say};

/// Most memory that the daemon may gain from one program and its reader; the daemon's own sum of
/// what it holds of them, see `FLOOD_BYTES_MAX` of the engine.
const FLOOD_KIB_MAX: u64 = 19_712;

/// Most bytes of one journal: its limit, a file that is begun before the oldest goes, and a batch.
const JOURNAL_BYTES_MAX: u64 = (64 << 20) + (4 << 20) + (2 << 20);

/// What floods: writes of a MiB of zeros, which cost the program least.
const PROGRAM: [&str; 3] = ["dd", "if=/dev/zero", "bs=1M"];

/// How much goes through a bare pipe inside to learn what one can.
const PIPE_MIB: u64 = 4096;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Floods the daemon with and without back-pressure and tells the figures.
pub(crate) fn run(flood: &Flood) -> Result<()> {
    let yard = Yard::new(&flood.product, flood.as_user.as_deref())?;
    say(&format!(
        "as {}",
        flood.as_user.as_deref().unwrap_or("root")
    ));
    yard.run(&["create", "--name", "flood"])?;
    tell_pipe(&yard)?;
    for back_pressure in [false, true] {
        one(&yard, flood, back_pressure)?;
    }
    Ok(())
}

/// Tells what a pipe between two programs inside can do, with nobody of ours between.
fn tell_pipe(yard: &Yard) -> Result<()> {
    let script = format!("dd if=/dev/zero bs=1M count={PIPE_MIB} 2>/dev/null | cat >/dev/null");
    let began = Instant::now();
    yard.run(&["exec", "flood", "--", "sh", "-c", &script])?;
    let rate = rate(PIPE_MIB << 20, began.elapsed());
    say(&format!("a bare pipe inside: {rate:.2} GB/s"));
    Ok(())
}

fn one(yard: &Yard, flood: &Flood, back_pressure: bool) -> Result<()> {
    let daemon = yard.daemon().context("no daemon")?;
    let resident = || status_kib(daemon, "VmRSS:");
    let before = resident()?;
    let mut readers = Vec::new();
    for _ in 0..flood.programs {
        readers.push(begin(yard, back_pressure)?);
    }
    let began = Instant::now();
    let (mut most, mut disk, mut written) = (before, 0, 0);
    while began.elapsed() < Duration::from_secs(flood.seconds) {
        most = most.max(resident()?);
        disk = disk.max(yard.part_bytes("journals")?);
        written = written.max(written_by_programs());
        wait(LOOK_EVERY);
    }
    let took = began.elapsed();
    for reader in &mut readers {
        ensure!(reader.try_wait()?.is_none(), "a reader ended by itself");
        reader.kill()?;
        reader.wait()?;
    }
    let programs = u64::try_from(flood.programs)?;
    let gained = most.saturating_sub(before);
    let kind = if back_pressure { "with" } else { "without" };
    say(&format!(
        "{programs} programs, {kind} back-pressure, {:.0} s: {} MiB written, {:.2} GB/s; daemon {before} \
         KiB before, {gained} KiB gained at most of {} allowed; journals {disk} bytes at most",
        took.as_secs_f64(),
        written >> 20,
        rate(written, took),
        FLOOD_KIB_MAX * programs
    ));
    ensure!(written > 0, "nothing was written");
    ensure!(gained < FLOOD_KIB_MAX * programs, "the daemon grew");
    ensure!(disk <= JOURNAL_BYTES_MAX * programs, "the journals grew");
    let said = yard.run(&["exec", "flood", "--", "echo", "ok"])?;
    ensure!(said == "ok\n", "the sandbox does not answer any more");
    yard.run(&["stop", "flood"])?;
    yard.run(&["start", "flood"])?;
    let ended = until(|| Ok(written_by_programs() == 0))?;
    ensure!(ended, "a program floods on");
    Ok(())
}

/// Starts a program and somebody who asks for its output and never reads it.
fn begin(yard: &Yard, back_pressure: bool) -> Result<Child> {
    let words: Vec<&str> = if back_pressure {
        ["exec", "flood", "--"].into_iter().chain(PROGRAM).collect()
    } else {
        let detached = ["--json", "exec", "--detach", "flood", "--"];
        let words: Vec<&str> = detached.into_iter().chain(PROGRAM).collect();
        let value: serde_json::Value = serde_json::from_str(&yard.run(&words)?)?;
        let exec = value["exec_id"].as_str().context("no exec id")?.to_owned();
        let words = ["logs", "--follow", "flood", "--exec", &exec];
        return Ok(yard.command(&words).spawn()?);
    };
    Ok(yard.command(&words).spawn()?)
}

/// Returns what all programs have written, as the kernel counts it.
fn written_by_programs() -> u64 {
    let line: Vec<u8> = PROGRAM.join("\0").into_bytes();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let found = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.strip_suffix(b"\0").unwrap_or(&found) == line
        })
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.path().join("io")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("wchar: "))?;
            line.parse::<u64>().ok()
        })
        .sum()
}

fn rate(bytes: u64, time: Duration) -> f64 {
    let mib = f64::from(u32::try_from(bytes >> 20).unwrap_or(u32::MAX));
    mib * 1.048_576 / 1000.0 / time.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_the_daemons_own() {
        let bytes = usize::try_from(FLOOD_KIB_MAX << 10).unwrap();
        assert_eq!(bytes, pinfold_engine::FLOOD_BYTES_MAX);
    }
}
