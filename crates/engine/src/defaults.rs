//! What sandboxes are made from where their makers say nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pinfold_types::api::{CreateSandboxRequest, Given};
use pinfold_types::{ByteSize, ErrorCode, MountSpec, SandboxSpec};
use serde_json::json;

use crate::error::EngineError;

/// Where a cache is inside.
const CACHE_TARGET: &str = "/cache";

/// What the settings say of every sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Defaults {
    /// What a creation without a template is put over.
    pub spec: SandboxSpec,
    /// Variables of every exec of every sandbox; whatever else names one of them wins.
    pub env: BTreeMap<String, String>,
    /// Where sandboxes keep what others may use again.
    pub cache: Cache,
}

/// Where sandboxes keep what others may use again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Cache {
    /// Each on its own disk.
    #[default]
    Own,
    /// In a directory of the host, which all of them see at `/cache`.
    Host(PathBuf),
    /// On a volume of this size.
    Volume(Option<ByteSize>),
}

impl Defaults {
    /// Returns what a creation without a template asks for.
    pub(crate) fn plain(&self, request: &CreateSandboxRequest) -> Result<SandboxSpec, EngineError> {
        // Callers in this process say only what they want, and not how it was written.
        let differences;
        let given = if request.given.is_empty() {
            differences = Given::differences(&request.spec);
            &differences
        } else {
            &request.given
        };
        given
            .over(&self.spec)
            .map_err(|error| EngineError::new(ErrorCode::InvalidArgument, error.to_string()))
    }

    /// Returns a template's spec with what holds for every sandbox put beneath it.
    pub(crate) fn beneath(&self, template: &SandboxSpec) -> SandboxSpec {
        let mut spec = template.clone();
        if spec.network.is_empty() {
            spec.network = self.spec.network.clone();
        }
        if spec.events_dir.is_none() {
            spec.events_dir.clone_from(&self.spec.events_dir);
        }
        spec
    }

    /// Shows the cache to a new sandbox, and refuses what this version cannot give.
    pub(crate) fn settle(&self, spec: &mut SandboxSpec) -> Result<(), EngineError> {
        if let Some(host) = spec.network.allowed_hosts.first() {
            return Err(EngineError::new(
                ErrorCode::Unsupported,
                format!("a sandbox cannot reach `{host}`: this version gives no network"),
            )
            .details(json!({ "field": "network.allowed_hosts" }))
            .hint("leave `allowed_hosts` out of the request and of the daemon's settings"));
        }
        match &self.cache {
            Cache::Own => {}
            Cache::Volume(_) => {
                return Err(EngineError::new(
                    ErrorCode::Unsupported,
                    "the cache cannot be on a volume: this version has none",
                )
                .details(json!({ "setting": "cache_mode" }))
                .hint("set `cache_mode` of the daemon to `emptydir` or `hostpath`"));
            }
            Cache::Host(path) => {
                let taken = |mount: &MountSpec| mount.target.trim_end_matches('/') == CACHE_TARGET;
                if !spec.mounts.iter().any(taken) {
                    spec.mounts.push(MountSpec {
                        source: path.to_string_lossy().into_owned(),
                        target: CACHE_TARGET.to_owned(),
                        writable: true,
                    });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: &str) -> CreateSandboxRequest {
        serde_json::from_str(body).unwrap()
    }

    fn defaults() -> Defaults {
        let spec = r#"{"image":"/i","resources":{"memory":268435456},"env":{"A":"1"},
            "events_dir":"/e","network":{"denied_hosts":["a.example"]}}"#;
        Defaults {
            spec: serde_json::from_str(spec).unwrap(),
            ..Defaults::default()
        }
    }

    #[test]
    fn what_is_said_wins_and_null_takes_a_default_away() {
        let defaults = defaults();
        let plain = |body| defaults.plain(&request(body)).unwrap();
        assert_eq!(plain("{}"), defaults.spec);
        assert_eq!(plain(r#"{"spec":{}}"#), defaults.spec);
        let said = plain(r#"{"spec":{"image":"host","env":{"B":"2"}}}"#);
        assert_eq!((said.image.as_str(), said.env.len()), ("host", 2));
        assert_eq!(said.resources, defaults.spec.resources);
        let less = plain(r#"{"spec":{"resources":{"memory":null},"events_dir":null}}"#);
        assert_eq!((less.resources.memory, less.events_dir), (None, None));
        let own = CreateSandboxRequest {
            spec: SandboxSpec {
                persist: true,
                ..SandboxSpec::default()
            },
            ..CreateSandboxRequest::default()
        };
        let own = defaults.plain(&own).unwrap();
        assert!(own.persist && own.image == "/i");
    }

    #[test]
    fn every_template_has_the_events_and_the_hosts() {
        let defaults = defaults();
        let template = SandboxSpec {
            image: "/t".to_owned(),
            ..SandboxSpec::default()
        };
        let spec = defaults.beneath(&template);
        assert_eq!(spec.image, "/t");
        assert_eq!(spec.events_dir.as_deref(), Some("/e"));
        assert_eq!(spec.network, defaults.spec.network);
    }

    #[test]
    fn what_cannot_be_given_is_refused_and_never_left_out() {
        let mut spec = SandboxSpec::default();
        let mut check = |defaults: &Defaults, network: &str| {
            spec.network = serde_json::from_str(network).unwrap();
            defaults
                .settle(&mut spec)
                .map_err(|error| error.code)
                .map(|()| spec.mounts.len())
        };
        let none = Defaults::default();
        assert_eq!(check(&none, "{}"), Ok(0));
        // It reaches nothing, so it does not reach that either.
        assert_eq!(check(&none, r#"{"denied_hosts":["a.example"]}"#), Ok(0));
        let allowed = r#"{"allowed_hosts":["a.example"]}"#;
        assert_eq!(check(&none, allowed), Err(ErrorCode::Unsupported));
        let cache = |cache| Defaults {
            cache,
            ..Defaults::default()
        };
        let volume = cache(Cache::Volume(None));
        assert_eq!(check(&volume, "{}"), Err(ErrorCode::Unsupported));
        let host = cache(Cache::Host("/var/cache/x".into()));
        assert_eq!(check(&host, "{}"), Ok(1));
        // Once is enough.
        assert_eq!(check(&host, "{}"), Ok(1));
    }
}
