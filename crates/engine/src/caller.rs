//! Who asks, and what a list is narrowed to.

use std::collections::BTreeMap;

use pinfold_types::{ExecId, KeyId, Principal, Role, SandboxId, SandboxState};

use crate::mounts::Asker;

/// Who asks for something, as the transport has proved it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The owner of what it creates.
    pub principal: Principal,
    /// What it may do.
    pub role: Role,
    /// User id of the peer, when it is a process of this host.
    pub uid: Option<u32>,
    /// Group id of the peer, when it is a process of this host.
    pub gid: Option<u32>,
    /// The API key that it showed, when it showed one.
    pub key: Option<KeyId>,
}

impl Caller {
    /// Returns a process of this host, as the kernel proves it.
    pub const fn of_host(uid: u32, gid: u32, role: Role) -> Self {
        Self {
            principal: Principal::User(uid),
            role,
            uid: Some(uid),
            gid: Some(gid),
            key: None,
        }
    }

    /// Returns whoever showed a key.
    pub const fn of_key(key: KeyId, principal: Principal, role: Role) -> Self {
        Self {
            principal,
            role,
            uid: None,
            gid: None,
            key: Some(key),
        }
    }

    /// Returns the daemon itself, which may see and change everything.
    pub(crate) const fn daemon() -> Self {
        Self::of_host(0, 0, Role::Admin)
    }

    /// Returns whether this caller sees and changes what every owner has.
    pub const fn is_admin(&self) -> bool {
        matches!(self.role, Role::Admin)
    }

    /// Returns whether this caller may change what it sees.
    pub const fn may_change(&self) -> bool {
        match self.role {
            Role::Viewer => false,
            Role::User | Role::Admin => true,
        }
    }

    /// Returns whether this caller may see what `owner` owns.
    pub fn may_see(&self, owner: &Principal) -> bool {
        self.is_admin() || self.principal == *owner
    }

    /// Returns whose right to host paths this caller's is.
    ///
    /// A key that is a user's is no proof of being that user: at the next start the sandbox would
    /// have that user's right.
    pub(crate) const fn asker(&self) -> Asker {
        match (self.uid, &self.principal) {
            (Some(uid), _) => Asker::User(uid),
            (None, Principal::Named(_)) => Asker::Remote {
                admin: self.is_admin(),
            },
            (None, Principal::User(_)) => Asker::Remote { admin: false },
        }
    }
}

/// Which sandboxes a list shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Only these states; empty means every state but `stopped`, or with `all` every state.
    pub states: Vec<SandboxState>,
    /// Stopped sandboxes too.
    pub all: bool,
    /// Instead of these, those that wait in pools; for admins.
    pub warm: bool,
    /// Only sandboxes that carry every one of these labels.
    pub labels: BTreeMap<String, String>,
    /// Only sandboxes after this one, in the order of creation.
    pub after: Option<SandboxId>,
    /// Most entries of the answer; 0 means as many as a page may hold.
    pub limit: usize,
}

/// Which execs of a sandbox a list shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecFilter {
    /// Only those that run, or only those that have ended.
    pub running: Option<bool>,
    /// Only execs after this one, in the order of their start.
    pub after: Option<ExecId>,
    /// Most entries of the answer; 0 means as many as a page may hold.
    pub limit: usize,
}
