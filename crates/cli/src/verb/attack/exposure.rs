//! What is known not to be stopped, by isolation tier and by whose ids a sandbox has.
//!
//! Said in every report, so that nobody takes attacks that held for more than they are.

use pinfold_types::api::Sandbox;
use pinfold_types::spec::{IsolationTier, Resources};

/// What a report is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) tier: IsolationTier,
    /// As in [`pinfold_types::api::Granted`].
    pub(super) ids: &'a str,
    pub(super) image: &'a str,
    pub(super) resources: &'a Resources,
}

impl<'a> Seen<'a> {
    /// Takes it from a sandbox, and from what that one really got.
    pub(super) fn of(sandbox: &'a Sandbox) -> Self {
        let granted = sandbox.granted.as_ref();
        Self {
            tier: granted.map_or(IsolationTier::None, |granted| granted.isolation),
            ids: granted.map_or("", |granted| granted.ids.as_str()),
            image: &sandbox.spec.image,
            resources: &sandbox.spec.resources,
        }
    }

    fn shares_kernel(&self) -> bool {
        self.tier == IsolationTier::Namespace
    }

    fn ids_are(&self, kind: &str) -> bool {
        self.tier != IsolationTier::None && self.ids.split(' ').next() == Some(kind)
    }
}

/// Where a line holds, and the line.
type Exposure = (fn(&Seen<'_>) -> bool, &'static str);

const EXPOSURES: &[Exposure] = &[
    (
        |seen| seen.tier == IsolationTier::None,
        "nothing is isolated: this driver is for tests",
    ),
    (
        |seen| seen.shares_kernel(),
        "the kernel itself is shared: a hole in what the call filter lets through is a way out",
    ),
    (
        |seen| seen.tier == IsolationTier::Gvisor,
        "the kernel in user space calls the host's: a hole in both is a way out",
    ),
    (
        |seen| seen.tier == IsolationTier::Vm,
        "a hole in the virtual machine's monitor or in the host's KVM is a way out",
    ),
    (
        |_| true,
        "side channels of the CPU and of shared caches are not closed",
    ),
    (
        |seen| seen.ids_are("range"),
        "what gets out of the namespaces has an id of the host's that owns nothing, and reads what \
         everybody may",
    ),
    (
        |seen| seen.ids_are("shared"),
        "sandboxes of one ordinary user share host ids: only namespaces separate them, and what \
         gets out of these is that user or one of its subordinate ids",
    ),
    (
        |seen| seen.ids_are("single"),
        "sandboxes have the caller's own id: only namespaces separate them, and what gets out of \
         these is the caller, with all of its files",
    ),
    (
        |seen| seen.image == "host",
        "every file beneath the host's /usr but /usr/local and /usr/src that everybody may read \
         can be read (image `host`)",
    ),
    (
        |seen| seen.shares_kernel(),
        "setuid programs of the image work inside, within the sandbox's own user namespace",
    ),
    (
        |seen| seen.shares_kernel(),
        "a second thread of the agent lives for moments, and root inside that meets it can have \
         the kernel end the agent, and so this sandbox, first when memory is short",
    ),
    (
        |_| true,
        "a background process that leaves its session, loses its parent and lowers its limit \
         RLIMIT_RTTIME outlives the time-out of its exec; it ends with its sandbox",
    ),
    (
        |_| true,
        "a sandbox can use up its own limits and end or starve its own programs",
    ),
    (
        |seen| seen.resources.memory.is_none(),
        "memory is not limited here: a sandbox can use the host's",
    ),
    (
        |seen| seen.resources.pids.is_none(),
        "processes are limited by a default alone",
    ),
    (
        |_| true,
        "limits that nobody names are not set: CPU time and disk are then the host's",
    ),
];

/// Returns every line that holds.
pub(super) fn exposure(seen: &Seen<'_>) -> Vec<String> {
    EXPOSURES
        .iter()
        .filter(|(holds, _)| holds(seen))
        .map(|(_, line)| (*line).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(tier: IsolationTier, ids: &str) -> Vec<String> {
        exposure(&Seen {
            tier,
            ids,
            image: "host",
            resources: &Resources::default(),
        })
    }

    #[test]
    fn every_tier_and_every_kind_of_ids_has_an_exposure_of_its_own() {
        let tiers = [
            (IsolationTier::None, "nothing is isolated"),
            (IsolationTier::Namespace, "the kernel itself is shared"),
            (IsolationTier::Gvisor, "the kernel in user space"),
            (IsolationTier::Vm, "the virtual machine's monitor"),
        ];
        let kinds = [
            ("range 1879048192+65536", "owns nothing"),
            ("shared", "share host ids"),
            ("single", "the caller's own id"),
        ];
        for (tier, of_tier) in tiers {
            for (ids, of_ids) in kinds {
                let said = lines(tier, ids).join("\n");
                for (_, other) in tiers {
                    assert_eq!(said.contains(other), other == of_tier, "{tier:?} {other}");
                }
                for (_, other) in kinds {
                    let expected = other == of_ids && tier != IsolationTier::None;
                    assert_eq!(said.contains(other), expected, "{tier:?} {ids} {other}");
                }
                for always in ["side channels", "image `host`", "memory is not limited"] {
                    assert!(said.contains(always), "{tier:?} {ids} {always}");
                }
            }
        }
    }
}
