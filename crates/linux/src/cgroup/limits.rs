//! What a group may use, and how each version is told.

use std::fs;
use std::io;
use std::path::Path;

use super::{CgroupError, Controller, Version, step};

/// Length of the span in which a CPU quota is counted, microseconds; the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Shares that one CPU's worth of request is; the kernel's default for a group.
const SHARES_PER_CPU: u64 = 1024;
/// Smallest and largest shares that v1 takes.
const SHARES: (u64, u64) = (2, 262_144);

/// Limits and weights of a group; what is absent is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Most CPU time, thousandths of a CPU.
    pub cpu_milli: Option<u32>,
    /// Most memory and swap together, bytes.
    pub memory_bytes: Option<u64>,
    /// Most processes and threads.
    pub pids: Option<u32>,
    /// Relative share of CPU when there is too little, thousandths of a CPU.
    pub cpu_request_milli: Option<u32>,
    /// Memory that is reclaimed last, bytes.
    pub memory_request_bytes: Option<u64>,
}

impl Limits {
    /// Returns the controllers without which these limits would not be held.
    pub fn controllers(&self) -> Vec<Controller> {
        [
            (Controller::Cpu, self.cpu_milli.is_some()),
            (Controller::Cpu, self.cpu_request_milli.is_some()),
            (Controller::Memory, self.memory_bytes.is_some()),
            (Controller::Memory, self.memory_request_bytes.is_some()),
            (Controller::Pids, self.pids.is_some()),
        ]
        .into_iter()
        .filter_map(|(controller, wanted)| wanted.then_some(controller))
        .collect()
    }

    /// Writes the limits that one controller holds.
    pub(super) fn write(
        &self,
        version: Version,
        controller: Controller,
        directory: &Path,
    ) -> Result<(), CgroupError> {
        match (version, controller) {
            (Version::V1, Controller::Cpu) => self.write_cpu_v1(directory),
            (Version::V2, Controller::Cpu) => self.write_cpu_v2(directory),
            (Version::V1, Controller::Memory) => self.write_memory_v1(directory),
            (Version::V2, Controller::Memory) => self.write_memory_v2(directory),
            (_, Controller::Pids) => set(directory, "pids.max", &or_max(self.pids)),
            (_, Controller::CpuAccount | Controller::Freezer) => Ok(()),
        }
    }

    fn write_cpu_v1(&self, directory: &Path) -> Result<(), CgroupError> {
        set(directory, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
        let quota = self.quota_us().map_or("-1".to_owned(), |us| us.to_string());
        set(directory, "cpu.cfs_quota_us", &quota)?;
        set(directory, "cpu.shares", &self.shares().to_string())
    }

    fn write_cpu_v2(&self, directory: &Path) -> Result<(), CgroupError> {
        let max = format!("{} {CPU_PERIOD_US}", or_max(self.quota_us()));
        set(directory, "cpu.max", &max)?;
        // The range of shares laid over the range of weights; default to default.
        let (low, high) = SHARES;
        let weight = if self.cpu_request_milli.is_some() {
            1 + (self.shares() - low) * 9999 / (high - low)
        } else {
            100
        };
        set(directory, "cpu.weight", &weight.to_string())
    }

    fn quota_us(&self) -> Option<u64> {
        self.cpu_milli
            .map(|milli| u64::from(milli) * CPU_PERIOD_US / 1000)
    }

    fn shares(&self) -> u64 {
        let shares = self.cpu_request_milli.map_or(SHARES_PER_CPU, |milli| {
            u64::from(milli) * SHARES_PER_CPU / 1000
        });
        shares.clamp(SHARES.0, SHARES.1)
    }

    fn write_memory_v1(&self, directory: &Path) -> Result<(), CgroupError> {
        let unlimited = || "-1".to_owned();
        let max = self
            .memory_bytes
            .map_or_else(unlimited, |size| size.to_string());
        // With swap included the limit may never be below that without, so a raise needs the one
        // order and a cut the other; the first write may fail, the last two may not.
        let with_swap = "memory.memsw.limit_in_bytes";
        let counts_swap = directory.join(with_swap).exists();
        if counts_swap {
            let _lowered_below_memory = set(directory, with_swap, &max);
        }
        set(directory, "memory.limit_in_bytes", &max)?;
        if counts_swap {
            set(directory, with_swap, &max)?;
        } else if self.memory_bytes.is_some() {
            // The kernel counts no swap here, so none may be used.
            set(directory, "memory.swappiness", "0")?;
        }
        let low = self
            .memory_request_bytes
            .map_or_else(unlimited, |size| size.to_string());
        match set(directory, "memory.soft_limit_in_bytes", &low) {
            // Not there on kernels for real-time; asked for, it is an error.
            Err(CgroupError::Step { source, .. })
                if self.memory_request_bytes.is_none()
                    && source.kind() != io::ErrorKind::PermissionDenied =>
            {
                Ok(())
            }
            done => done,
        }
    }

    fn write_memory_v2(&self, directory: &Path) -> Result<(), CgroupError> {
        set(directory, "memory.max", &or_max(self.memory_bytes))?;
        if directory.join("memory.swap.max").exists() {
            let swap = self.memory_bytes.map(|_| 0_u64);
            set(directory, "memory.swap.max", &or_max(swap))?;
        }
        let low = self.memory_request_bytes.unwrap_or(0);
        set(directory, "memory.low", &low.to_string())
    }
}

fn or_max<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "max".to_owned(), |value| value.to_string())
}

fn set(directory: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let path = directory.join(file);
    // Opened without creating: where a control file is missing, a limit would silently not hold.
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|source| step("write the limit", &path, source))
}
