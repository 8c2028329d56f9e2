//! What the composition root tells the driver.

use std::path::PathBuf;

use pinfold_linux::launcher::AgentBinary;

/// Where the ranges of host ids that are in use are kept, for all daemons of the host's root.
///
/// Cleared by a restart of the host, as are the sandboxes that use them.
pub const IDS_DIRECTORY: &str = "/run/pinfold-ids";

/// Settings of a [`crate::NativeDriver`].
#[derive(Debug, Clone)]
pub struct NativeConfig {
    /// The daemon's state directory; the driver uses `native` in it.
    pub state_dir: PathBuf,
    /// The daemon's directory of images.
    pub images_dir: PathBuf,
    /// The static agent.
    pub agent: AgentSource,
    /// A delegated cgroup, relative to the mount of each hierarchy.
    pub cgroup: Option<PathBuf>,
    /// This product's own program: it unpacks images where subordinate ids are mapped.
    pub unpacker: PathBuf,
    /// As [`IDS_DIRECTORY`].
    pub ids_dir: PathBuf,
    /// Besides these directories, what no caller may show in a sandbox, such as the socket.
    pub hidden: Vec<PathBuf>,
}

impl NativeConfig {
    /// Returns the settings with defaults for everything but the state directory and the agent.
    pub fn new(state_dir: impl Into<PathBuf>, agent: AgentSource) -> Self {
        let state_dir = state_dir.into();
        Self {
            images_dir: state_dir.join("images"),
            state_dir,
            agent,
            cgroup: None,
            unpacker: PathBuf::from("/proc/self/exe"),
            ids_dir: PathBuf::from(IDS_DIRECTORY),
            hidden: Vec::new(),
        }
    }
}

/// Where the static agent comes from.
#[derive(Clone)]
pub enum AgentSource {
    /// It is part of this program.
    Bytes(&'static [u8]),
    /// A file that no sandbox can write.
    Path(PathBuf),
}

impl std::fmt::Debug for AgentSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Path(path) => write!(f, "Path({})", path.display()),
        }
    }
}

impl AgentSource {
    pub(crate) fn binary(&self) -> AgentBinary {
        match self {
            Self::Bytes(bytes) => AgentBinary::Bytes(bytes),
            Self::Path(path) => AgentBinary::Path(path.clone()),
        }
    }
}
