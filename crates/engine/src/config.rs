//! What an engine is opened with.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use pinfold_types::api::keys::Quotas;

use crate::admission::Capacity;
use crate::defaults::Defaults;
use crate::mounts::{MountsAllowed, Rules};

/// Default for [`EngineConfig::journal_bytes_max`]: the output of a long build several times over,
/// and small enough that a hundred runaway execs do not fill a laptop's disk.
const JOURNAL_BYTES_MAX_DEFAULT: u64 = 64 << 20;

/// Default for [`EngineConfig::agent_answer_max`]: an agent answers within milliseconds; a loaded
/// host with a cold image may need seconds.
const AGENT_ANSWER_MAX_DEFAULT: Duration = Duration::from_secs(15);

/// Default for [`EngineConfig::report_answer_max`]: what one dead agent may cost a report.
const REPORT_ANSWER_MAX_DEFAULT: Duration = Duration::from_secs(2);

/// Default for [`EngineConfig::sandboxes_max`]: a thousand is the design's goal; four times that
/// leaves room and still bounds memory.
const SANDBOXES_MAX_DEFAULT: usize = 4096;

/// Default for [`EngineConfig::execs_per_sandbox_max`]: ended ones count until they are forgotten,
/// the oldest first, so this bounds what `logs` can show.
const EXECS_PER_SANDBOX_MAX_DEFAULT: usize = 1024;

/// Default for [`EngineConfig::idle_default`]: longer than a person looks away, and short enough
/// that forgotten sandboxes do not hold CPUs overnight.
const IDLE_DEFAULT: Duration = Duration::from_mins(15);

/// Where an engine keeps its state, and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Directory of the database, the journals and the persist directories.
    pub state_dir: PathBuf,
    /// Most bytes that one exec's journal keeps on disk; the oldest part goes first.
    pub journal_bytes_max: u64,
    /// Longest time that a new instance's agent may take to answer.
    pub agent_answer_max: Duration,
    /// Longest time that one agent may hold up a report.
    pub report_answer_max: Duration,
    /// Most sandboxes of this engine.
    pub sandboxes_max: usize,
    /// Most execs of one sandbox, ended ones included.
    pub execs_per_sandbox_max: usize,
    /// Idle time of a sandbox whose maker named none; none is for ever.
    pub idle_default: Option<Duration>,
    /// Which host paths callers may show in sandboxes and start them from.
    pub mounts_allowed: MountsAllowed,
    /// The daemon is root's: it can read more than its callers, and takes their rights instead.
    pub as_root: bool,
    /// What a principal may have that asks with a key which says nothing else; not for admins.
    pub quotas: Quotas,
    /// Whether these hold for users of the host too, who need no key.
    pub quotas_of_users: bool,
    /// What sandboxes are made from where their makers say nothing.
    pub defaults: Defaults,
    /// Whether events are kept until a collector has taken them.
    pub push: bool,
    /// What the host has for sandboxes' requests.
    pub capacity: Capacity,
}

impl EngineConfig {
    /// Returns the defaults for a state directory.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            journal_bytes_max: JOURNAL_BYTES_MAX_DEFAULT,
            agent_answer_max: AGENT_ANSWER_MAX_DEFAULT,
            report_answer_max: REPORT_ANSWER_MAX_DEFAULT,
            sandboxes_max: SANDBOXES_MAX_DEFAULT,
            execs_per_sandbox_max: EXECS_PER_SANDBOX_MAX_DEFAULT,
            idle_default: Some(IDLE_DEFAULT),
            mounts_allowed: MountsAllowed::default(),
            as_root: runs_as_root(),
            quotas: Quotas::NONE,
            quotas_of_users: false,
            defaults: Defaults::default(),
            push: false,
            capacity: Capacity::default(),
        }
    }

    /// Returns what callers may do with host paths.
    pub(crate) const fn host_paths(&self) -> Rules<'_> {
        Rules {
            allowed: &self.mounts_allowed,
            as_root: self.as_root,
        }
    }
}

/// Returns whether this process is root's; one that cannot tell counts as root's.
fn runs_as_root() -> bool {
    std::fs::metadata("/proc/self").map_or(true, |process| process.uid() == 0)
}
