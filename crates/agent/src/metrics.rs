//! What the sandbox uses of its own limits.
//!
//! The numbers come from descriptors that were passed in; nothing inside can change what those
//! say. Without them `/proc` is asked, which counts what is there now.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pinfold_linux::launcher::plan::{Boot, UsageFile};
use pinfold_types::api::{Metrics, format_time_ms, now_ms};
use tokio::time::Instant;

use crate::processes;
use crate::root::Root;

/// How much of a usage file is looked at.
const USAGE_BYTES_MAX: usize = 8 << 10;
/// How far apart background samples are.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// How long after the last question samples are still taken.
const SAMPLE_FOR: Duration = Duration::from_secs(30);
/// The shortest time over which a share of a CPU means something.
const SAMPLE_APART_MIN: Duration = Duration::from_millis(100);
/// Clock ticks of a second in `/proc/PID/stat`; the kernel's interface has had no other.
const TICKS_PER_SECOND: u64 = 100;
/// Size of a page, for the processes that `/proc` counts in pages.
const PAGE_BYTES: u64 = 4096;
const MIB: u64 = 1 << 20;

/// One reading of the CPU time that the sandbox has used.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    cpu_ns: u64,
}

#[derive(Debug, Default)]
struct Samples {
    /// The last two of the background, the older first.
    last: [Option<Sample>; 2],
    /// Until when the background takes more; absent when it does not run.
    until: Option<Instant>,
}

/// Answers what the sandbox uses.
#[derive(Debug)]
pub struct Usage {
    started: Instant,
    root: Arc<Root>,
    files: Vec<(UsageFile, File)>,
    cpu_limit_milli: u64,
    memory_limit: u64,
    samples: Mutex<Samples>,
}

impl Usage {
    pub(crate) fn new(boot: &Boot, files: Vec<OwnedFd>, root: Arc<Root>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            started: Instant::now(),
            root,
            files: boot
                .usage
                .iter()
                .copied()
                .zip(files.into_iter().map(File::from))
                .collect(),
            cpu_limit_milli: match boot.cpu_limit_milli {
                0 => u64::try_from(cpus).unwrap_or(1) * 1000,
                limit => limit.into(),
            },
            memory_limit: boot.memory_limit_bytes,
            samples: Mutex::default(),
        }
    }

    fn number(&self, wanted: UsageFile) -> Option<u64> {
        let (_, file) = self.files.iter().find(|(kind, _)| *kind == wanted)?;
        let mut buffer = [0; USAGE_BYTES_MAX];
        let length = file.read_at(&mut buffer, 0).ok()?;
        let text = std::str::from_utf8(buffer.get(..length)?).ok()?;
        match wanted {
            UsageFile::CpuNanoseconds | UsageFile::MemoryBytes => text.trim().parse().ok(),
            UsageFile::CpuStat => field(text, "usage_usec"),
            UsageFile::MemoryStat => {
                field(text, "total_inactive_file").or_else(|| field(text, "inactive_file"))
            }
            UsageFile::OomControl | UsageFile::MemoryEvents => field(text, "oom_kill"),
        }
    }

    fn cpu_ns(&self) -> u64 {
        self.number(UsageFile::CpuNanoseconds)
            .or_else(|| Some(self.number(UsageFile::CpuStat)?.saturating_mul(1000)))
            .unwrap_or_else(|| {
                let ticks: u64 = processes::ours().iter().map(|process| process.ticks).sum();
                ticks.saturating_mul(1_000_000_000 / TICKS_PER_SECOND)
            })
    }

    fn memory(&self) -> u64 {
        match self.number(UsageFile::MemoryBytes) {
            Some(used) => used.saturating_sub(self.number(UsageFile::MemoryStat).unwrap_or(0)),
            None => processes::ours()
                .iter()
                .map(|process| process.resident.saturating_mul(PAGE_BYTES))
                .sum(),
        }
    }

    /// Returns how many processes the memory limit has ended.
    pub(crate) fn out_of_memory_kills(&self) -> u64 {
        self.number(UsageFile::MemoryEvents)
            .or_else(|| self.number(UsageFile::OomControl))
            .unwrap_or(0)
    }

    fn sample(&self) -> Sample {
        Sample {
            at: Instant::now(),
            cpu_ns: self.cpu_ns(),
        }
    }

    /// Gathers everything. The first call in a while takes a tenth of a second.
    pub async fn metrics(self: &Arc<Self>) -> Metrics {
        let before = if let Some(sample) = self.earlier_sample() {
            sample
        } else {
            let first = self.sample();
            tokio::time::sleep(SAMPLE_APART_MIN).await;
            first
        };
        let now = self.sample();
        self.sample_for_a_while(now);
        let memory = self.memory();
        let disk = rustix::fs::fstatvfs(&self.root).ok();
        let uptime = self.started.elapsed().as_secs();
        let free = disk
            .as_ref()
            .map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        let used = disk.as_ref().map_or(0, |disk| {
            disk.f_blocks
                .saturating_sub(disk.f_bfree)
                .saturating_mul(disk.f_frsize)
        });
        Metrics {
            uptime: format_uptime(uptime),
            uptime_seconds: uptime,
            cpu_percent: cpu_percent(before, now, self.cpu_limit_milli),
            memory_mb: memory / MIB,
            memory_percent: percent(memory, self.memory_limit),
            disk_free_mb: free / MIB,
            disk_percent: percent(used, used.saturating_add(free)),
            timestamp: format_time_ms(now_ms()),
            memory_limit_mb: self.memory_limit / MIB,
        }
    }

    /// Returns the youngest background sample that is old enough to compare with.
    fn earlier_sample(&self) -> Option<Sample> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.until?;
        let old_enough = |sample: &Sample| sample.at.elapsed() >= SAMPLE_APART_MIN;
        let [older, newer] = samples.last;
        newer.filter(old_enough).or(older.filter(old_enough))
    }

    fn sample_for_a_while(self: &Arc<Self>, first: Sample) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let running = samples.until.replace(Instant::now() + SAMPLE_FOR).is_some();
        if running {
            return;
        }
        samples.last = [None, Some(first)];
        drop(samples);
        let usage = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SAMPLE_EVERY).await;
                let sample = usage.sample();
                let mut samples = usage.samples.lock().unwrap_or_else(PoisonError::into_inner);
                if samples.until.is_none_or(|until| until < sample.at) {
                    *samples = Samples::default();
                    return;
                }
                let [_, newer] = samples.last;
                samples.last = [newer, Some(sample)];
            }
        });
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

#[expect(
    clippy::cast_precision_loss,
    reason = "percentages need no more than 52 bits"
)]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    round(part as f64 * 100.0 / whole as f64)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "percentages need no more than 52 bits"
)]
fn cpu_percent(before: Sample, now: Sample, limit_milli: u64) -> f64 {
    let wall = now.at.saturating_duration_since(before.at).as_nanos() as f64;
    let used = now.cpu_ns.saturating_sub(before.cpu_ns) as f64;
    if wall <= 0.0 || limit_milli == 0 {
        return 0.0;
    }
    round(used / wall * 100_000.0 / limit_milli as f64)
}

/// Two places after the point.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Writes a duration for people: the two largest units.
fn format_uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if days > 0 {
        format!("{days}d {}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h {}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m {}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_for_people() {
        for (seconds, text) in [
            (0, "0s"),
            (154, "2m 34s"),
            (3661, "1h 1m"),
            (90_000, "1d 1h"),
        ] {
            assert_eq!(format_uptime(seconds), text);
        }
    }

    fn usage(boot: &Boot, contents: &[&str]) -> Arc<Usage> {
        let files = contents
            .iter()
            .map(|content| {
                let mut file = tempfile::tempfile().unwrap();
                std::io::Write::write_all(&mut file, content.as_bytes()).unwrap();
                file.into()
            })
            .collect();
        let root = Arc::new(Root::open(std::path::Path::new("/")).unwrap());
        Arc::new(Usage::new(boot, files, root))
    }

    #[tokio::test]
    async fn usage_files_of_both_cgroup_versions_are_read() {
        for (kinds, contents) in [
            (
                [
                    UsageFile::CpuNanoseconds,
                    UsageFile::MemoryBytes,
                    UsageFile::MemoryStat,
                    UsageFile::OomControl,
                ],
                [
                    "5000000\n",
                    "104857600\n",
                    "inactive_file 1\ntotal_inactive_file 52428800\n",
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
                ],
            ),
            (
                [
                    UsageFile::CpuStat,
                    UsageFile::MemoryBytes,
                    UsageFile::MemoryStat,
                    UsageFile::MemoryEvents,
                ],
                [
                    "usage_usec 5000\nuser_usec 1\n",
                    "104857600\n",
                    "anon 5\ninactive_file 52428800\n",
                    "oom 9\noom_kill 3\n",
                ],
            ),
        ] {
            let usage = usage(
                &Boot {
                    usage: kinds.to_vec(),
                    cpu_limit_milli: 500,
                    memory_limit_bytes: 200 << 20,
                    ..Boot::default()
                },
                &contents,
            );
            assert_eq!(usage.cpu_ns(), 5_000_000);
            assert_eq!(usage.out_of_memory_kills(), 3);
            let metrics = usage.metrics().await;
            assert_eq!(metrics.memory_mb, 50);
            assert!((metrics.memory_percent - 25.0).abs() < 0.01);
            assert_eq!(metrics.memory_limit_mb, 200);
            assert!(metrics.cpu_percent.abs() < 0.01);
            assert!(metrics.disk_percent > 0.0 && metrics.disk_percent < 100.0);
        }
    }

    #[test]
    fn half_a_cpu_of_half_a_cpu_is_all_of_it() {
        let before = Sample {
            at: Instant::now(),
            cpu_ns: 7,
        };
        let now = Sample {
            at: before.at + Duration::from_secs(2),
            cpu_ns: 1_000_000_007,
        };
        assert!((cpu_percent(before, now, 500) - 100.0).abs() < 0.01);
        assert!((cpu_percent(before, now, 2000) - 25.0).abs() < 0.01);
    }

    #[tokio::test]
    async fn without_usage_files_proc_is_asked() {
        let metrics = usage(&Boot::default(), &[]).metrics().await;
        assert!(metrics.memory_mb > 0);
        assert_eq!((metrics.memory_limit_mb, metrics.memory_percent), (0, 0.0));
    }
}
