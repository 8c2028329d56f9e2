//! Templates, pools of warm sandboxes, and claims.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{CreateSandboxRequest, Sandbox};
use crate::name::SandboxName;
use crate::principal::Principal;
use crate::spec::{Deadlines, MountSpec, Resources, SandboxSpec};

/// Most warm sandboxes of one pool: as many as a thousand-sandbox host can keep idle for one
/// template without having nothing left for anybody else.
pub const POOL_SIZE_MAX: u32 = 512;

/// How a sandbox came to its caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It was made for the caller.
    #[default]
    Cold,
    /// It ran already, in a pool.
    Warm,
}

impl Origin {
    /// Returns the origin as the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
        }
    }
}

/// The template that a sandbox was made from, as it was then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TemplateUse {
    /// The template's name.
    pub name: SandboxName,
    /// Its version.
    pub version: u32,
    /// The pool that the sandbox is or was warm in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<SandboxName>,
}

/// What a request says of a spec, field by field: what it does not say is the template's.
///
/// It is the JSON object as it was written, so a field that was given is told from one that was
/// left out, whatever its value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given(Map<String, Value>);

impl Given {
    /// Returns every field in which a spec is not the default.
    pub fn differences(spec: &SandboxSpec) -> Self {
        let mut given = object(spec);
        let default = object(&SandboxSpec::default());
        given.retain(|field, value| default.get(field) != Some(value));
        // Of a part with fields of its own only those that differ are said.
        for (field, value) in &mut given {
            if let (Value::Object(value), Some(Value::Object(default))) =
                (value, default.get(field))
            {
                value.retain(|name, part| default.get(name) != Some(part));
            }
        }
        Self(given)
    }

    /// Says one field more.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0.insert(field.to_owned(), value.into());
        self
    }

    /// Returns whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns a template's spec with what is given put over it.
    ///
    /// Fields of `env`, `labels`, `resources` and `deadlines` are taken one by one, and `null`
    /// takes one away; other values replace the template's.
    ///
    /// # Errors
    ///
    /// Says which field is not one.
    pub fn over(&self, template: &SandboxSpec) -> Result<SandboxSpec, serde_json::Error> {
        let mut merged = serde_json::to_value(template)?;
        if let Value::Object(fields) = &mut merged {
            merge(fields, &self.0);
        }
        serde_json::from_value(merged)
    }
}

/// Puts one object over another, as RFC 7396 does.
fn merge(into: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (field, value) in from {
        match (into.get_mut(field), value) {
            (_, Value::Null) => drop(into.remove(field)),
            (Some(Value::Object(into)), Value::Object(from)) => merge(into, from),
            (_, value) => drop(into.insert(field.clone(), value.clone())),
        }
    }
}

/// The body of a creation as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CreateBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<SandboxName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<SandboxName>,
    spec: Map<String, Value>,
}

impl Default for CreateBody {
    fn default() -> Self {
        Self {
            name: None,
            template: None,
            spec: Map::new(),
        }
    }
}

impl From<CreateSandboxRequest> for CreateBody {
    fn from(request: CreateSandboxRequest) -> Self {
        // Only what was said: a default that is written down would win over the daemon's own.
        let given = if request.given.is_empty() {
            Given::differences(&request.spec)
        } else {
            request.given
        };
        Self {
            name: request.name,
            template: request.template,
            spec: given.0,
        }
    }
}

impl TryFrom<CreateBody> for CreateSandboxRequest {
    type Error = serde_json::Error;

    fn try_from(body: CreateBody) -> Result<Self, Self::Error> {
        let given = Given(body.spec);
        // With a template, `null` takes a field of it away; it is put over it later.
        let spec = if body.template.is_some() {
            given.over(&SandboxSpec::default())?
        } else {
            serde_json::from_value(Value::Object(given.0.clone()))?
        };
        Ok(Self {
            name: body.name,
            template: body.template,
            spec,
            given,
        })
    }
}

fn object(spec: &SandboxSpec) -> Map<String, Value> {
    match serde_json::to_value(spec) {
        Ok(Value::Object(fields)) => fields,
        // A spec is always an object.
        _ => Map::new(),
    }
}

/// A named, versioned description of sandboxes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Template {
    /// Its name.
    pub name: SandboxName,
    /// Who made it.
    pub owner: Principal,
    /// Everybody may use it, and not only its owner.
    pub shared: bool,
    /// 1 at first, and one more with each change.
    pub version: u32,
    /// What sandboxes of it are made from.
    pub spec: SandboxSpec,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339, of the last change.
    pub changed_at: String,
}

/// `PUT /v1/templates/{name}`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TemplateRequest {
    /// What sandboxes of it are made from.
    pub spec: SandboxSpec,
    /// Everybody may use it; only an admin may say so.
    pub shared: bool,
}

/// `GET /v1/templates`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TemplateList {
    /// By name; every one that the caller may use.
    pub templates: Vec<Template>,
}

/// How many sandboxes a pool keeps warm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolSize {
    /// Always as many.
    Fixed(u32),
    /// As many as the claims of late call for, within bounds.
    Auto {
        /// Never less.
        min: u32,
        /// Never more.
        max: u32,
    },
}

/// Why a size is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PoolSizeError {
    /// Neither form, or both.
    #[error("a pool has either `size`, or `min` and `max`")]
    Form,
    /// `min` is more than `max`.
    #[error("`min` is {min}, which is more than `max`, {max}")]
    Crossed {
        /// The smaller bound.
        min: u32,
        /// The larger bound.
        max: u32,
    },
    /// Too many.
    #[error("a pool of {asked} is larger than the limit of {POOL_SIZE_MAX}")]
    TooLarge {
        /// What was asked for.
        asked: u32,
    },
}

impl PoolSize {
    /// Reads the three fields of a request.
    ///
    /// # Errors
    ///
    /// Says what is wrong with them.
    pub const fn read(
        size: Option<u32>,
        min: Option<u32>,
        max: Option<u32>,
    ) -> Result<Self, PoolSizeError> {
        let (read, most) = match (size, min, max) {
            (Some(size), None, None) => (Self::Fixed(size), size),
            (None, min, Some(max)) => {
                let min = match min {
                    Some(min) => min,
                    None => 0,
                };
                if min > max {
                    return Err(PoolSizeError::Crossed { min, max });
                }
                (Self::Auto { min, max }, max)
            }
            _ => return Err(PoolSizeError::Form),
        };
        if most > POOL_SIZE_MAX {
            return Err(PoolSizeError::TooLarge { asked: most });
        }
        Ok(read)
    }

    /// Returns the smallest and the largest number of sandboxes.
    pub const fn bounds(self) -> (u32, u32) {
        match self {
            Self::Fixed(size) => (size, size),
            Self::Auto { min, max } => (min, max),
        }
    }
}

impl fmt::Display for PoolSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Auto { min, max } => write!(f, "{min}-{max}"),
        }
    }
}

/// `POST /v1/pools`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreatePoolRequest {
    /// Its name.
    pub name: SandboxName,
    /// The template that its sandboxes are made from.
    pub template: SandboxName,
    /// Keep as many warm; instead of `min` and `max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Keep at least as many warm; 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Keep at most as many warm, by the claims of late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

/// `PATCH /v1/pools/{name}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ScalePoolRequest {
    /// Keep as many warm; instead of `min` and `max`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Keep at least as many warm; 0 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Keep at most as many warm, by the claims of late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

/// A pool of warm sandboxes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pool {
    /// Its name.
    pub name: SandboxName,
    /// Who made it.
    pub owner: Principal,
    /// The template that its sandboxes are made from.
    pub template: SandboxName,
    /// The version of the template that is served now.
    pub template_version: u32,
    /// The fixed size, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// The lower bound, when it is sized by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// The upper bound, when it is sized by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Sandboxes that it wants to have warm now.
    pub target: u32,
    /// Sandboxes that are being made.
    pub starting: u32,
    /// It is being removed: it serves nobody and its sandboxes go.
    pub draining: bool,
    /// Why the last sandbox could not be made, until one can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it did since the daemon started.
    pub metrics: PoolMetrics,
    /// RFC 3339.
    pub created_at: String,
}

/// What a pool did since the daemon started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct PoolMetrics {
    /// Sandboxes that are warm now.
    pub depth: u32,
    /// Claims that got a warm one.
    pub claims_warm: u64,
    /// Claims that came to the pool and had to be started cold.
    pub claims_cold: u64,
    /// Warm claims of all, from 0 to 1; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hit_rate: Option<f64>,
    /// Sandboxes that were made.
    pub refills: u64,
    /// Sandboxes that could not be made.
    pub refills_failed: u64,
    /// Milliseconds that all refills took together.
    pub refill_ms_total: u64,
    /// Milliseconds that one takes, of late; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refill_ms: Option<f64>,
    /// Warm sandboxes that were replaced, because the template had changed or they had ended.
    pub replaced: u64,
}

/// `GET /v1/pools`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolList {
    /// By name; every one that the caller may claim from.
    pub pools: Vec<Pool>,
}

/// `POST /v1/claims`. Either `template` or `pool` is named.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ClaimRequest {
    /// The template; any pool of it may serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<SandboxName>,
    /// The pool; its template is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<SandboxName>,
    /// The name; one is made when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<SandboxName>,
    /// Added to the template's environment.
    pub env: BTreeMap<String, String>,
    /// Added to the template's labels.
    pub labels: BTreeMap<String, String>,
    /// Added to the template's mounts.
    pub mounts: Vec<MountSpec>,
    /// Limits and weights that are other than the template's.
    pub resources: Resources,
    /// Deadlines instead of the template's; they count from the claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadlines: Option<Deadlines>,
}

impl ClaimRequest {
    /// Returns a template's spec with what this asks for put over it.
    pub fn over(&self, template: &SandboxSpec) -> SandboxSpec {
        let mut spec = template.clone();
        spec.env.extend(self.env.clone());
        spec.labels.extend(self.labels.clone());
        spec.mounts.extend(self.mounts.iter().cloned());
        let (asked, own) = (self.resources, spec.resources);
        spec.resources = Resources {
            cpus: asked.cpus.or(own.cpus),
            memory: asked.memory.or(own.memory),
            pids: asked.pids.or(own.pids),
            disk: asked.disk.or(own.disk),
            inodes: asked.inodes.or(own.inodes),
            cpu_request: asked.cpu_request.or(own.cpu_request),
            memory_request: asked.memory_request.or(own.memory_request),
            disk_request: asked.disk_request.or(own.disk_request),
        };
        spec.deadlines = self.deadlines.unwrap_or(spec.deadlines);
        spec
    }
}

/// Answer of `POST /v1/claims`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Claim {
    /// The sandbox, which runs and is the caller's.
    pub sandbox: Sandbox,
    /// It ran already.
    pub warm: bool,
    /// Milliseconds from the request to the sandbox.
    pub waited_ms: u64,
    /// Why it was started cold, when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<CreateSandboxRequest, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn what_is_given_is_put_over_the_template() {
        let template: SandboxSpec = serde_json::from_str(
            r#"{"image":"/images/a","env":{"A":"1","B":"2"},"resources":{"memory":67108864,"pids":9},
                "deadlines":{"idle_ms":5000,"idle_action":"stop"},"persist":true}"#,
        )
        .unwrap();
        let over = |given: &str| {
            let text = format!(r#"{{"template":"t","spec":{given}}}"#);
            let request = read(&text).unwrap();
            // What the client sends is what the daemon reads.
            let again = serde_json::to_string(&request).unwrap();
            assert_eq!(read(&again).unwrap(), request);
            request.given.over(&template).unwrap()
        };
        assert_eq!(over("{}"), template);
        // A value is given also when it is the default one.
        let spec = over(r#"{"image":"host","persist":false,"env":{"B":"3","C":"4"}}"#);
        assert_eq!((spec.image.as_str(), spec.persist), ("host", false));
        let env: Vec<_> = spec.env.values().map(String::as_str).collect();
        assert_eq!(env, ["1", "3", "4"]);
        let spec = over(r#"{"resources":{"memory":null,"pids":10},"deadlines":{"idle_ms":6000}}"#);
        assert_eq!(
            (spec.resources.memory, spec.resources.pids),
            (None, Some(10))
        );
        assert_eq!(spec.deadlines.idle_ms, Some(6000));
        assert_eq!(
            spec.deadlines.idle_action,
            crate::spec::DeadlineAction::Stop
        );
    }

    #[test]
    fn only_differences_are_given() {
        let mut spec = SandboxSpec::default();
        assert!(Given::differences(&spec).is_empty());
        spec.persist = true;
        spec.deadlines.idle_ms = Some(5000);
        spec.env.insert("A".to_owned(), "1".to_owned());
        let mut template = SandboxSpec::default();
        template.deadlines.idle_action = crate::spec::DeadlineAction::Remove;
        template.image = "/images/a".to_owned();
        let merged = Given::differences(&spec).over(&template).unwrap();
        assert_eq!(merged.image, "/images/a");
        assert!(merged.persist && merged.env["A"] == "1");
        assert_eq!(merged.deadlines.idle_ms, Some(5000));
        let action = merged.deadlines.idle_action;
        assert_eq!(action, crate::spec::DeadlineAction::Remove);
        let given = Given::differences(&spec).with("image", "host");
        assert_eq!(given.over(&template).unwrap().image, "host");
    }

    #[test]
    fn a_creation_is_read_as_strictly_as_before() {
        for bad in [
            r#"{"spec":{"imaeg":"host"}}"#,
            r#"{"spec":{"image":null}}"#,
            r#"{"spec":[]}"#,
            r#"{"spec":null}"#,
            r#"{"nam":"a"}"#,
            r#"{"template":"T"}"#,
            r#"{"template":"t","spec":{"resources":{"memroy":1}}}"#,
            r#"{"template":"t","spec":{"env":{"A":1}}}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let plain = read(r#"{"name":"a","spec":{"image":"/images/a"}}"#).unwrap();
        assert_eq!(plain.spec.image, "/images/a");
        assert_eq!(read("{}").unwrap().spec, SandboxSpec::default());
    }

    #[test]
    fn sizes_are_checked() {
        use PoolSizeError::{Crossed, Form, TooLarge};
        assert_eq!(PoolSize::read(Some(3), None, None), Ok(PoolSize::Fixed(3)));
        let auto = PoolSize::Auto { min: 0, max: 9 };
        assert_eq!(PoolSize::read(None, None, Some(9)), Ok(auto));
        for (bad, error) in [
            ((None, None, None), Form),
            ((None, Some(1), None), Form),
            ((Some(1), None, Some(2)), Form),
            ((None, Some(3), Some(2)), Crossed { min: 3, max: 2 }),
            ((Some(513), None, None), TooLarge { asked: 513 }),
            ((None, None, Some(u32::MAX)), TooLarge { asked: u32::MAX }),
        ] {
            assert_eq!(PoolSize::read(bad.0, bad.1, bad.2), Err(error));
        }
    }
}
