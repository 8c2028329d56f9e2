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
