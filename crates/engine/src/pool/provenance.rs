//! Where a sandbox comes from, as its row keeps it.

use pinfold_types::Principal;
use pinfold_types::SandboxName;
use pinfold_types::api::{Origin, TemplateUse};
use serde::{Deserialize, Serialize};

use super::Key;

/// Where a sandbox comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Provenance {
    pub(crate) origin: Origin,
    /// The template, when it was made from one.
    pub(crate) template: Option<TemplateUse>,
    /// Why it was started cold, when a warm one was looked for.
    pub(crate) cold_reason: Option<String>,
    /// It is warm and nobody's yet: nobody but its pool may see or use it.
    pub(crate) waiting: Option<Waiting>,
}

/// What belongs to a warm sandbox that nobody has claimed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Waiting {
    /// The owner of its pool.
    pub(crate) pool_owner: Principal,
    /// It is being given away, and may hold already what its caller asked for. After a crash it is
    /// neither warm nor anybody's, and goes.
    #[serde(default)]
    pub(crate) leaving: bool,
}

impl Provenance {
    /// Returns that of a sandbox that a pool makes.
    pub(crate) fn warm(template: TemplateUse, pool_owner: Principal) -> Self {
        Self {
            origin: Origin::Warm,
            template: Some(template),
            cold_reason: None,
            waiting: Some(Waiting {
                pool_owner,
                leaving: false,
            }),
        }
    }

    /// Returns whether nobody has claimed it.
    pub(crate) const fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Returns whether it was being given away.
    pub(crate) fn is_leaving(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| waiting.leaving)
    }

    /// Returns the pool that it waits in.
    pub(crate) fn pool(&self) -> Option<Key> {
        let waiting = self.waiting.as_ref()?;
        let name: SandboxName = self.template.as_ref()?.pool.clone()?;
        Some((waiting.pool_owner.clone(), name))
    }

    /// Returns the version of its template; 0 when it has none.
    pub(crate) fn version(&self) -> u32 {
        self.template
            .as_ref()
            .map_or(0, |template| template.version)
    }

    /// Returns the same once somebody has it.
    pub(crate) fn claimed(&self) -> Self {
        Self {
            waiting: None,
            ..self.clone()
        }
    }

    /// Returns the same while it is being given away.
    pub(crate) fn leaving(&self) -> Self {
        let mut leaving = self.clone();
        if let Some(waiting) = &mut leaving.waiting {
            waiting.leaving = true;
        }
        leaving
    }
}
