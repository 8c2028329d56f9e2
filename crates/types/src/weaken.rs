//! Defences that a test build can leave out one by one, to show that attacks need them.
//!
//! Without the feature `test-weaken` nothing is ever off, and a build without debug assertions
//! refuses the feature.

#[cfg(all(feature = "test-weaken", not(debug_assertions)))]
compile_error!("the feature `test-weaken` switches defences off; no release build may have it");

/// Variable that names what is off, with commas between.
pub const VARIABLE: &str = "PINFOLD_WEAKEN";

/// A defence that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defence {
    /// The system call filter.
    Seccomp,
    /// That programs inside hold few capabilities.
    Capabilities,
    /// The capability that only the agent has.
    AgentMark,
    /// That the agent is not dumpable.
    Dumpable,
    /// The masks of `/proc` and `/sys`.
    ProcHidden,
    /// The read-only parts of `/proc`.
    ProcReadOnly,
    /// The IPC namespace.
    IpcNamespace,
    /// The namespace of the host's name.
    UtsNamespace,
    /// The network namespace.
    NetworkNamespace,
    /// The cgroup namespace.
    CgroupNamespace,
    /// That descriptors are closed.
    Descriptors,
    /// Every limit that a control group or the process namespace holds.
    ProcessLimit,
    /// The bound of each tmpfs.
    TmpfsBounds,
    /// `nodev` of binds.
    BindNodev,
    /// That binds are read-only.
    BindReadOnly,
    /// `nosuid` of binds.
    BindNosuid,
    /// That `/sys` is read-only.
    SysReadOnly,
    /// The user namespace of each sandbox.
    UserNamespace,
    /// The process namespace.
    PidNamespace,
    /// That a sandbox's mounts begin with nothing of the host's.
    MountNamespace,
    /// That the root is changed by `pivot_root` and the old one taken off, not by `chroot`.
    PivotRoot,
    /// That `/tmp` and `/dev/shm` are each sandbox's own.
    OwnTmpfs,
    /// That few devices of the host are there.
    DeviceList,
    /// That image `host` shows named parts of the host alone.
    ImageList,
    /// That each sandbox of root's has host ids of its own.
    IdRange,
    /// That the agent heeds signals from outside alone.
    AgentSignals,
    /// That the agent's socket has no name inside.
    AgentSocket,
    /// That no link is followed and no path leads out where the product makes and reads files.
    Beneath,
    /// That names in archives are checked.
    ArchiveNames,
    /// That a copy makes files, directories and links alone.
    ArchiveKinds,
    /// That a copy takes nine permission bits alone.
    ArchiveModes,
    /// The bounds of what is remembered of an archive.
    ArchiveBounds,
    /// That a file is cut at the size that its archive tells.
    ExactLength,
    /// That only files are opened as files, and without waiting.
    FileKinds,
    /// That control characters are shown and not sent to a terminal.
    Printable,
    /// The bound of what is kept of a program's output.
    JournalBounds,
    /// That a sandbox has a disk of its own.
    DiskLimit,
    /// That a sandbox has a bound of its own on watches of files.
    WatchBounds,
    /// The bound of what is read of a request's JSON.
    RequestBounds,
    /// That trees are removed from inside, whatever their depth.
    TreeBounds,
    /// The bound of links that one name may lead through.
    LinkBounds,
    /// That directories are listed in pages.
    ListPages,
    /// The bound of what is kept in memory of a program's output.
    FloodBounds,
    /// `nodev` of the root filesystem.
    StackNodev,
    /// That archives with sparse files are refused.
    ArchiveSparse,
    /// That work which takes long has threads of its own.
    BlockingThreads,
    /// The longest time of each call of the agent.
    AgentPatience,
    /// The largest size of each answer of the agent.
    AnswerBounds,
    /// That each event of the agent is checked to follow the one before.
    EventChecks,
    /// That the agent's metrics are checked.
    MetricChecks,
    /// That texts of the agent's errors are made plain.
    AgentTexts,
    /// That what comes of a file is counted, and not more than its size passed on.
    ByteCounts,
    /// That what masks are made of is not the image's.
    MaskSource,
    /// That `/dev` is not the image's.
    OwnDev,
    /// That the system's own mounts go through no link of the image.
    MountTargets,
    /// That others than its users cannot connect to the daemon's socket.
    SocketMode,
    /// That host paths are reached with the rights of who names them.
    CallerMounts,
}

#[cfg(feature = "test-weaken")]
impl Defence {
    fn name(self) -> &'static str {
        match self {
            Self::Seccomp => "seccomp",
            Self::Capabilities => "capabilities",
            Self::AgentMark => "agent_mark",
            Self::Dumpable => "dumpable",
            Self::ProcHidden => "proc_hidden",
            Self::ProcReadOnly => "proc_read_only",
            Self::IpcNamespace => "ipc_namespace",
            Self::UtsNamespace => "uts_namespace",
            Self::NetworkNamespace => "network_namespace",
            Self::CgroupNamespace => "cgroup_namespace",
            Self::Descriptors => "descriptors",
            Self::ProcessLimit => "process_limit",
            Self::TmpfsBounds => "tmpfs_bounds",
            Self::BindNodev => "bind_nodev",
            Self::BindReadOnly => "bind_read_only",
            Self::BindNosuid => "bind_nosuid",
            Self::SysReadOnly => "sys_read_only",
            Self::UserNamespace => "user_namespace",
            Self::PidNamespace => "pid_namespace",
            Self::MountNamespace => "mount_namespace",
            Self::PivotRoot => "pivot_root",
            Self::OwnTmpfs => "own_tmpfs",
            Self::DeviceList => "device_list",
            Self::ImageList => "image_list",
            Self::IdRange => "id_range",
            Self::AgentSignals => "agent_signals",
            Self::AgentSocket => "agent_socket",
            Self::Beneath => "beneath",
            Self::ArchiveNames => "archive_names",
            Self::ArchiveKinds => "archive_kinds",
            Self::ArchiveModes => "archive_modes",
            Self::ArchiveBounds => "archive_bounds",
            Self::ExactLength => "exact_length",
            Self::FileKinds => "file_kinds",
            Self::Printable => "printable",
            Self::JournalBounds => "journal_bounds",
            Self::DiskLimit => "disk_limit",
            Self::WatchBounds => "watch_bounds",
            Self::RequestBounds => "request_bounds",
            Self::TreeBounds => "tree_bounds",
            Self::LinkBounds => "link_bounds",
            Self::ListPages => "list_pages",
            Self::FloodBounds => "flood_bounds",
            Self::StackNodev => "stack_nodev",
            Self::ArchiveSparse => "archive_sparse",
            Self::BlockingThreads => "blocking_threads",
            Self::AgentPatience => "agent_patience",
            Self::AnswerBounds => "answer_bounds",
            Self::EventChecks => "event_checks",
            Self::MetricChecks => "metric_checks",
            Self::AgentTexts => "agent_texts",
            Self::ByteCounts => "byte_counts",
            Self::MaskSource => "mask_source",
            Self::OwnDev => "own_dev",
            Self::MountTargets => "mount_targets",
            Self::SocketMode => "socket_mode",
            Self::CallerMounts => "caller_mounts",
        }
    }
}

/// Returns whether a defence is to be left out.
#[cfg(feature = "test-weaken")]
pub fn is_off(defence: Defence) -> bool {
    std::env::var(VARIABLE).is_ok_and(|names| names.split(',').any(|name| name == defence.name()))
}

/// Returns whether a defence is to be left out: never.
#[cfg(not(feature = "test-weaken"))]
pub const fn is_off(_defence: Defence) -> bool {
    false
}
