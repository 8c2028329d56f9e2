//! Changes to a sandbox that is there already.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec::{DeadlineAction, Deadlines, Resources, SandboxSpec};

/// `PATCH /v1/sandboxes/{id}`. What is not named stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct UpdateSandboxRequest {
    /// Labels to set; `null` takes one away.
    pub labels: BTreeMap<String, Option<String>>,
    /// Variables of later execs to set; `null` takes one away.
    pub env: BTreeMap<String, Option<String>>,
    /// Deadlines to change.
    pub deadlines: DeadlinesUpdate,
    /// Limits to change.
    pub resources: Resources,
}

/// Deadlines to change. What is not named stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct DeadlinesUpdate {
    /// Longest life since creation in milliseconds; 0 is without an end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime_ms: Option<u64>,
    /// What happens then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime_action: Option<DeadlineAction>,
    /// Longest time without activity in milliseconds; 0 is for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// What happens then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_action: Option<DeadlineAction>,
}

impl UpdateSandboxRequest {
    /// Returns what a spec becomes.
    pub fn apply(&self, spec: &SandboxSpec) -> SandboxSpec {
        let mut changed = spec.clone();
        merge(&mut changed.labels, &self.labels);
        merge(&mut changed.env, &self.env);
        self.deadlines.apply(&mut changed.deadlines);
        changed.resources = merged(spec.resources, self.resources);
        changed
    }
}

impl DeadlinesUpdate {
    fn apply(self, deadlines: &mut Deadlines) {
        let named = |length_ms: u64| Some(length_ms).filter(|length_ms| *length_ms > 0);
        if let Some(length_ms) = self.lifetime_ms {
            deadlines.lifetime_ms = named(length_ms);
        }
        if let Some(length_ms) = self.idle_ms {
            deadlines.idle_ms = named(length_ms);
        }
        deadlines.lifetime_action = self.lifetime_action.unwrap_or(deadlines.lifetime_action);
        deadlines.idle_action = self.idle_action.unwrap_or(deadlines.idle_action);
    }
}

fn merge(into: &mut BTreeMap<String, String>, changes: &BTreeMap<String, Option<String>>) {
    for (name, value) in changes {
        match value {
            Some(value) => into.insert(name.clone(), value.clone()),
            None => into.remove(name),
        };
    }
}

fn merged(old: Resources, new: Resources) -> Resources {
    Resources {
        cpus: new.cpus.or(old.cpus),
        memory: new.memory.or(old.memory),
        pids: new.pids.or(old.pids),
        disk: new.disk.or(old.disk),
        inodes: new.inodes.or(old.inodes),
        cpu_request: new.cpu_request.or(old.cpu_request),
        memory_request: new.memory_request.or(old.memory_request),
        disk_request: new.disk_request.or(old.disk_request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ByteSize;

    #[test]
    fn what_is_not_named_stays_and_null_takes_away() {
        let spec = SandboxSpec {
            labels: BTreeMap::from([("a".to_owned(), "1".to_owned())]),
            env: BTreeMap::from([("B".to_owned(), "2".to_owned())]),
            resources: Resources {
                memory: Some(ByteSize::from_mib(64)),
                ..Resources::default()
            },
            deadlines: Deadlines {
                lifetime_ms: Some(1),
                ..Deadlines::default()
            },
            ..SandboxSpec::default()
        };
        assert_eq!(UpdateSandboxRequest::default().apply(&spec), spec);
        let text = r#"{"labels": {"a": null, "c": "3"}, "deadlines": {"lifetime_ms": 0,
            "idle_ms": 500, "idle_action": "stop"}, "resources": {"pids": 9}}"#;
        let request: UpdateSandboxRequest = serde_json::from_str(text).unwrap();
        let changed = request.apply(&spec);
        assert_eq!(changed.labels.keys().collect::<Vec<_>>(), ["c"]);
        assert_eq!(changed.env, spec.env);
        assert_eq!(changed.deadlines.lifetime_ms, None);
        assert_eq!(changed.deadlines.idle_ms, Some(500));
        assert_eq!(changed.deadlines.idle_action, DeadlineAction::Stop);
        assert_eq!(changed.resources.pids, Some(9));
        assert_eq!(changed.resources.memory, spec.resources.memory);
        for bad in [r#"{"lables": {}}"#, r#"{"deadlines": {"idle": 1}}"#] {
            assert!(serde_json::from_str::<UpdateSandboxRequest>(bad).is_err());
        }
    }
}
