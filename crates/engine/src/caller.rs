//! Who asks, and what a list is narrowed to.

use std::collections::BTreeMap;

use pinfold_types::{SandboxId, SandboxState};

/// Who asks for something, as the transport has proved it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller {
    /// User id of the peer; the owner of what it creates.
    pub uid: u32,
    /// Group id of the peer.
    pub gid: u32,
    /// Sees and changes the sandboxes of every owner.
    pub admin: bool,
}

impl Caller {
    /// Returns whether this caller may see what `owner` owns.
    pub const fn may_see(&self, owner: u32) -> bool {
        self.admin || self.uid == owner
    }
}

/// Which sandboxes a list shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Only these states; empty means every state but `stopped`, or with `all` every state.
    pub states: Vec<SandboxState>,
    /// Stopped sandboxes too.
    pub all: bool,
    /// Only sandboxes that carry every one of these labels.
    pub labels: BTreeMap<String, String>,
    /// Only sandboxes after this one, in the order of creation.
    pub after: Option<SandboxId>,
    /// Most entries of the answer; 0 means as many as a page may hold.
    pub limit: usize,
}
