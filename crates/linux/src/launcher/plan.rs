//! What the daemon asks the launcher to make, and what the agent is told when it starts.
//!
//! Everything here is plain data. Descriptors travel beside a plan by `SCM_RIGHTS`, in the order
//! that [`Plan`] documents.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::reach::Reach;

/// Version of [`Plan`] and [`Boot`]; the launcher refuses another one.
pub const PLAN_VERSION: u32 = 1;
/// Most bytes of a plan on the wire.
pub const PLAN_BYTES_MAX: usize = 512 << 10;
/// Most descriptors that travel with a plan.
pub const PLAN_DESCRIPTORS_MAX: usize = 24;

/// One sandbox to be made.
///
/// Descriptors beside it, in this order: the listening Unix socket of the agent; a file for the
/// agent's own standard error; then one for each entry of `attach`, then one for each entry of
/// `boot.usage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// Id of the sandbox; marks its processes so that a sweep finds them.
    pub id: String,
    /// Whose ids its processes have.
    pub identity: Identity,
    /// The root filesystem.
    pub root: RootPlan,
    /// Bytes that `/tmp` may hold, and `/dev/shm`; kept in memory and charged to its limit.
    pub tmpfs_bytes: u64,
    /// Host name inside.
    pub hostname: String,
    /// How each descriptor of a cgroup is joined.
    pub attach: Vec<Attach>,
    /// Most processes and threads, held by the pid namespace itself where no cgroup does it.
    pub pid_max: Option<u32>,
    /// What the agent is told.
    pub boot: Boot,
}

/// Whose ids a sandbox's processes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// A range of host ids of its own; the launcher is root and layers are mapped mounts.
    Range {
        /// The host id that 0 inside is.
        base: u32,
    },
    /// Every id that the launcher's outer user namespace holds; layers are stored shifted.
    Shared,
    /// The caller's id alone, as 0 inside.
    Single,
}

/// How a root filesystem is put together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootPlan {
    /// Read-only layers, topmost first, as host paths.
    pub layers: Vec<PathBuf>,
    /// Host directory that holds the private directories `upper` and `work`; or, for the host's root,
    /// a file with an ext4 filesystem that does, which is mounted nowhere but here.
    pub private: PathBuf,
    /// Writes need not reach the disk.
    pub volatile: bool,
    /// A bounded tmpfs instead of `private` for what is written.
    pub tmpfs_upper: Option<TmpfsLimit>,
    /// Host paths over the stack: image `host` first, then the caller's, in this order.
    pub binds: Vec<Bind>,
    /// Whose right it must be to use the only layer, a directory that the caller named. A user who
    /// owns it appears as 0 inside. Without it the layers are the daemon's own.
    #[serde(default)]
    pub layer_reach: Option<Reach>,
}

/// Limits of a tmpfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TmpfsLimit {
    /// Bytes.
    pub bytes: u64,
    /// Files.
    pub inodes: u64,
}

/// One host path made visible inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Host path. What is writable or mapped is reached through no link, so that its owner cannot
    /// point it elsewhere after it was checked: resolve it first.
    pub source: PathBuf,
    /// Absolute path inside, not in `/proc`, `/sys` or `/dev`; missing directories, or an empty file,
    /// are made in the private layer. Links are followed as they are inside.
    pub target: PathBuf,
    /// Whether the sandbox may write.
    pub writable: bool,
    /// Whether setuid programs and file capabilities count.
    pub setuid: bool,
    /// Whether ids on disk appear mapped to the sandbox's own (0 on disk is 0 inside).
    pub mapped: bool,
    /// Whose right it must be to show it. With a user, and `mapped`, that user's id on disk is 0
    /// inside, and no other id is anyone. Without it, it is the daemon's own.
    #[serde(default)]
    pub reach: Option<Reach>,
}

impl Plan {
    /// Returns the user and group whose files are shown as the sandbox's root's.
    pub(crate) fn caller(&self) -> Option<(u32, u32)> {
        let binds = self.root.binds.iter().map(|bind| &bind.reach);
        binds
            .chain([&self.root.layer_reach])
            .find_map(|reach| reach.as_ref()?.user.as_ref())
            .map(|user| (user.uid, user.gid))
    }
}

/// How one cgroup descriptor is joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attach {
    /// A v1 `tasks` file, opened for writing: the child writes `0`.
    Tasks,
    /// A v2 directory: `CLONE_INTO_CGROUP`, or `cgroup.procs` where a delegation forbids that.
    Into,
}

/// What the agent reads, as JSON, from descriptor [`Boot::DESCRIPTOR`] before it does anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Boot {
    /// Version of this record.
    pub version: u32,
    /// Serve `/ready` and `/metrics` on TCP 8888 of the sandbox's loopback.
    pub tcp: bool,
    /// A plain child process of the fake driver: not process 1, no capability to give up, and
    /// paths are beneath this directory.
    pub plain: Option<PathBuf>,
    /// CPU limit that percentages are of, thousandths of a CPU.
    pub cpu_limit_milli: u32,
    /// Memory limit that percentages are of, bytes.
    pub memory_limit_bytes: u64,
    /// What each usage descriptor is, from [`Boot::USAGE_DESCRIPTOR`] upwards.
    pub usage: Vec<UsageFile>,
}

impl Boot {
    /// Descriptor of the listening socket in the agent.
    pub const LISTENER_DESCRIPTOR: i32 = 3;
    /// Descriptor of the boot record in the agent.
    pub const DESCRIPTOR: i32 = 4;
    /// First usage descriptor in the agent.
    pub const USAGE_DESCRIPTOR: i32 = 5;
}

/// What a usage descriptor counts and how it is written. Each is read from offset 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageFile {
    /// v1 `cpuacct.usage`: nanoseconds.
    CpuNanoseconds,
    /// v2 `cpu.stat`: the line `usage_usec`.
    CpuStat,
    /// v1 `memory.usage_in_bytes` or v2 `memory.current`.
    MemoryBytes,
    /// `memory.stat` of v1 (`total_inactive_file`) or v2 (`inactive_file`), taken off the former.
    MemoryStat,
    /// v1 `memory.oom_control`: the line `oom_kill`.
    OomControl,
    /// v2 `memory.events`: the line `oom_kill`.
    MemoryEvents,
}
