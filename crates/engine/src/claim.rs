//! Sandboxes from templates: a warm one when there is one, else one that is started for the caller.

use std::sync::Arc;

use pinfold_driver::Capabilities;
use pinfold_types::api::{Claim, ClaimRequest, Origin, Sandbox, TemplateUse};
use pinfold_types::{ErrorCode, SandboxId, SandboxName, SandboxSpec};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::caller::Caller;
use crate::engine::{Engine, default_idle};
use crate::entry::Message;
use crate::error::EngineError;
use crate::pool::{Pool, Provenance};
use crate::sandbox::{Binding, Taken};
use crate::store::{Once, TemplateRow};

type Result<T, E = EngineError> = std::result::Result<T, E>;

/// Name of the template, and of its pool, that serve creations that name none.
pub(crate) const DEFAULT_TEMPLATE: &str = "default";

/// What a caller wants.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) name: Option<SandboxName>,
    pub(crate) spec: SandboxSpec,
    /// The template that the spec is of.
    pub(crate) template: Option<Arc<TemplateRow>>,
    /// The pools that may serve.
    pub(crate) pools: Vec<Arc<Pool>>,
    /// Sandboxes that are started cold say why.
    pub(crate) said: bool,
    /// The idempotency key that it is asked for with.
    pub(crate) once: Option<Once>,
}

/// A name that is kept for a sandbox until it has it.
struct KeptName<'a> {
    engine: &'a Engine,
    caller: &'a Caller,
    name: SandboxName,
    id: SandboxId,
}

impl Drop for KeptName<'_> {
    fn drop(&mut self) {
        let core = &self.engine.core;
        core.free_kept_name(&self.caller.principal, &self.name, &self.id);
    }
}

impl Engine {
    /// Gives the caller a sandbox of a template: a warm one, or one that is started for it.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why; then nothing is left of it.
    pub async fn claim(&self, caller: &Caller, request: ClaimRequest) -> Result<Claim> {
        let began = Instant::now();
        self.core.check_open()?;
        let (template, pools) = match (&request.template, &request.pool) {
            (Some(name), None) => {
                let template = self.find_template(caller, name.as_str())?;
                let pools = self.core.pools.of_template(&template.key());
                (template, pools)
            }
            (None, Some(name)) => {
                let (pool, _) = self.find_pool(caller, name.as_str())?;
                let template = self.core.pools.template(&pool.row().template);
                let template =
                    template.ok_or_else(|| EngineError::not_found("pool", name.as_str()))?;
                (template, vec![pool])
            }
            _ => {
                return Err(EngineError::new(
                    ErrorCode::InvalidArgument,
                    "a claim names either a template or a pool",
                ));
            }
        };
        let wanted = Wanted {
            name: request.name.clone(),
            spec: request.over(&self.core.config.defaults.beneath(&template.spec)),
            template: Some(template),
            pools,
            said: true,
            once: None,
        };
        let sandbox = self.provide(caller, wanted, None).await?;
        Ok(Claim {
            warm: sandbox.origin == Origin::Warm,
            cold_reason: sandbox.cold_reason.clone(),
            waited_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            sandbox,
        })
    }

    /// Gives the caller what it wants, warm where it can be.
    pub(crate) async fn provide(
        &self,
        caller: &Caller,
        mut wanted: Wanted,
        progress: Option<mpsc::Sender<String>>,
    ) -> Result<Sandbox> {
        self.core.config.defaults.settle(&mut wanted.spec)?;
        default_idle(&mut wanted.spec.deadlines, &self.core);
        self.check_wanted(caller, &wanted.spec).await?;
        let kept = match &wanted.name {
            Some(name) if wanted.template.is_some() => Some(KeptName {
                engine: self,
                caller,
                id: self.core.keep_name(&caller.principal, name)?,
                name: name.clone(),
            }),
            _ => None,
        };
        let cold_reason = match &wanted.template {
            None => None,
            Some(template) => {
                let warm = self.warm(caller, &wanted, template, kept.as_ref());
                match warm.await? {
                    Ok(sandbox) => return Ok(*sandbox),
                    Err(reason) => Some(reason).filter(|_| wanted.said),
                }
            }
        };
        let provenance = Provenance {
            origin: Origin::Cold,
            template: wanted
                .template
                .as_ref()
                .filter(|_| wanted.said)
                .map(|template| TemplateUse {
                    name: template.name.clone(),
                    version: template.version,
                    pool: None,
                }),
            cold_reason,
            waiting: None,
        };
        let id = kept.as_ref().map(|kept| &kept.id);
        let entry = self.admit(caller, &wanted, id, &provenance)?;
        let create = |reply| Message::Create {
            progress,
            once: wanted.once,
            reply,
        };
        entry.ask(create).await
    }

    /// Claims a warm sandbox, or says why there is none.
    async fn warm(
        &self,
        caller: &Caller,
        wanted: &Wanted,
        template: &TemplateRow,
        kept: Option<&KeptName<'_>>,
    ) -> Result<Result<Box<Sandbox>, String>> {
        let Some(first) = wanted.pools.first() else {
            return Ok(Err(
                "no pool keeps sandboxes of the template warm".to_owned()
            ));
        };
        let can = self.core.driver.capabilities();
        if let Some(reason) = cannot_change(&template.spec, &wanted.spec, can) {
            first.served(false);
            self.core.meters.claimed(false);
            return Ok(Err(reason));
        }
        first.wanted(self.core.clock.now_ms());
        let mut unfit = None;
        for pool in &wanted.pools {
            // What could not be changed once cannot be the next time.
            while unfit.is_none()
                && let Some(entry) = pool.take(template.version)
            {
                let binding = Box::new(Binding {
                    owner: caller.principal.clone(),
                    name: kept.map(|kept| (kept.name.clone(), kept.id.clone())),
                    spec: wanted.spec.clone(),
                    version: template.version,
                    quotas: self.core.quotas(caller),
                    once: wanted.once.clone(),
                });
                match entry.ask(|reply| Message::Claim { binding, reply }).await {
                    Ok(Taken::Bound(sandbox)) => {
                        pool.served(true);
                        self.core.meters.claimed(true);
                        return Ok(Ok(sandbox));
                    }
                    Err(error)
                        if matches!(
                            error.code,
                            ErrorCode::QuotaExceeded | ErrorCode::CapacityExceeded
                        ) =>
                    {
                        pool.put_back(entry);
                        return Err(error);
                    }
                    Ok(Taken::Unfit(reason)) => unfit = Some(reason),
                    Ok(Taken::Gone) | Err(_) => pool.discard(entry),
                }
            }
        }
        first.served(false);
        self.core.meters.claimed(false);
        Ok(Err(unfit.map_or_else(
            || "the pool had no warm sandbox left".to_owned(),
            |reason| format!("the warm sandbox could not be changed: {reason}"),
        )))
    }
}

/// Says what of a spec a running sandbox of a template cannot be given.
fn cannot_change(
    template: &SandboxSpec,
    wanted: &SandboxSpec,
    can: Capabilities,
) -> Option<String> {
    let (own, asked) = (template.resources, wanted.resources);
    let reasons = [
        (wanted.image != template.image, "another image"),
        (
            wanted.agent_tcp != template.agent_tcp,
            "another setting of `agent_tcp`",
        ),
        // What was written to a volatile disk may never reach it.
        (
            template.volatile && !wanted.volatile,
            "a disk that outlives the sandbox",
        ),
        (
            (asked.disk, asked.inodes) != (own.disk, own.inodes),
            "another limit of the disk",
        ),
        (asked != own && !can.live_resources, "other limits"),
        // It is the daemon's own, which no live mount reaches.
        (wanted.persist, "a directory at /persist"),
        (!wanted.mounts.is_empty() && !can.live_mounts, "mounts"),
    ];
    let reason = reasons.into_iter().find(|(cannot, _)| *cannot)?.1;
    Some(format!("a running sandbox cannot be given {reason}"))
}

#[cfg(test)]
mod tests {
    use pinfold_types::{ByteSize, MountSpec};

    use super::*;

    #[test]
    fn what_cannot_come_late_is_named() {
        let all = Capabilities {
            live_mounts: true,
            live_resources: true,
            ..Capabilities::default()
        };
        let none = Capabilities::default();
        let template = SandboxSpec::default();
        let check = |can, change: fn(&mut SandboxSpec), expected: Option<&str>| {
            let mut wanted = SandboxSpec::default();
            change(&mut wanted);
            let reason = cannot_change(&template, &wanted, can);
            let expected = expected.map(|what| format!("a running sandbox cannot be given {what}"));
            assert_eq!(reason, expected);
        };
        check(none, |_| {}, None);
        check(none, |wanted| wanted.volatile = true, None);
        check(
            none,
            |wanted| drop(wanted.env.insert("A".into(), "1".into())),
            None,
        );
        check(none, |wanted| wanted.deadlines.idle_ms = Some(1000), None);
        let image = |wanted: &mut SandboxSpec| wanted.image = "/images/a".into();
        check(all, image, Some("another image"));
        let memory = |wanted: &mut SandboxSpec| wanted.resources.memory = Some(ByteSize(1 << 28));
        check(all, memory, None);
        check(none, memory, Some("other limits"));
        let disk = |wanted: &mut SandboxSpec| wanted.resources.disk = Some(ByteSize(1 << 28));
        check(all, disk, Some("another limit of the disk"));
        let mount = |wanted: &mut SandboxSpec| {
            wanted.mounts.push(MountSpec {
                source: "/a".into(),
                target: "/b".into(),
                writable: false,
            });
        };
        check(all, mount, None);
        check(none, mount, Some("mounts"));
        let persist = |wanted: &mut SandboxSpec| wanted.persist = true;
        check(all, persist, Some("a directory at /persist"));
    }
}
