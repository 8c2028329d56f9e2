//! Templates and pools, as the layers above see them.

use std::sync::Arc;
use std::time::Duration;

use pinfold_types::api::{
    CreatePoolRequest, Pool as ShownPool, PoolList, PoolSize, ScalePoolRequest, Template,
    TemplateList, TemplateRequest,
};
use pinfold_types::{ErrorCode, Principal, SandboxName, SandboxSpec};
use serde_json::json;

use crate::caller::Caller;
use crate::engine::{Engine, default_idle};
use crate::error::{EngineError, chain};
use crate::pool::{self, Key, Pool, Pools};
use crate::store::{PoolRow, TemplateRow};

type Result<T, E = EngineError> = std::result::Result<T, E>;

/// Most templates of one owner: each may hold a megabyte of environment.
const TEMPLATES_PER_OWNER_MAX: usize = 64;

/// Most pools of one engine: each has a task of its own.
const POOLS_MAX: usize = 64;

/// Longest wait for a removed pool's last sandbox; after that it goes on by itself.
const DRAIN_TIME_MAX: Duration = Duration::from_mins(1);

/// A pool that the configuration names.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfiguredPool {
    /// Its name.
    pub name: SandboxName,
    /// The template that its sandboxes are made from.
    pub template: SandboxName,
    /// What the template is, when the configuration says it too.
    pub spec: Option<SandboxSpec>,
    /// How many sandboxes it keeps warm.
    pub size: PoolSize,
}

impl Engine {
    /// Makes a template of the caller's, or a new version of it.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn put_template(
        &self,
        caller: &Caller,
        name: &SandboxName,
        request: TemplateRequest,
    ) -> Result<Template> {
        let core = &self.core;
        core.check_open()?;
        check_change(caller)?;
        // An idle time of 0 is kept as that: it is for ever in every sandbox of the template.
        let mut wanted = request.spec.clone();
        default_idle(&mut wanted.deadlines, core);
        self.check_wanted(caller, &wanted).await?;
        if request.shared && !caller.is_admin() {
            return Err(EngineError::new(
                ErrorCode::PermissionDenied,
                "only an admin may share a template with everybody",
            ));
        }
        let key = (caller.principal.clone(), name.clone());
        let _changing = core.pools.changing.lock().await;
        let former = core.pools.template(&key);
        self.check_template_room(&key, request.shared)?;
        let now_ms = core.clock.now_ms();
        let version = former.as_ref().map_or(1, |former| {
            // What is made from it is the same, so what is warm stays.
            former.version + u32::from(former.spec != request.spec)
        });
        let row = TemplateRow {
            owner: key.0,
            name: key.1,
            shared: request.shared,
            version,
            spec: request.spec,
            created_ms: former.map_or(now_ms, |former| former.created_ms),
            changed_ms: now_ms,
        };
        core.store.save_template(&row).await?;
        Ok(core.pools.put_template(row).shown())
    }

    fn check_template_room(&self, key: &Key, shared: bool) -> Result<()> {
        let all = self.core.pools.all_templates();
        let same = |row: &&Arc<TemplateRow>| row.shared && row.name == key.1 && row.owner != key.0;
        if shared && all.iter().any(|row| same(&row)) {
            return Err(EngineError::new(
                ErrorCode::AlreadyExists,
                format!("another owner shares a template `{}` already", key.1),
            )
            .hint("choose another name"));
        }
        let own = all.iter().filter(|row| row.owner == key.0);
        let others = own.filter(|row| row.name != key.1).count();
        if others >= TEMPLATES_PER_OWNER_MAX {
            return Err(EngineError::new(
                ErrorCode::LimitExceeded,
                format!("there are {others} templates already, which is the limit"),
            )
            .details(json!({ "limit": TEMPLATES_PER_OWNER_MAX }))
            .hint("remove one with `pinfold template rm NAME`"));
        }
        Ok(())
    }

    /// Returns a template that the caller may use: its own, else one that is shared.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] when there is none.
    #[expect(clippy::unused_async, reason = "every call of the facade is one")]
    pub async fn template(&self, caller: &Caller, name: &str) -> Result<Template> {
        Ok(self.find_template(caller, name)?.shown())
    }

    pub(crate) fn find_template(&self, caller: &Caller, name: &str) -> Result<Arc<TemplateRow>> {
        let all = self.core.pools.all_templates();
        let usable =
            |row: &&Arc<TemplateRow>| row.name.as_str() == name && Pools::may_use(caller, row);
        let mut found: Vec<_> = all.iter().filter(usable).collect();
        // One's own comes first, then what is shared, then what only an admin sees.
        found.sort_by_key(|row| (row.owner != caller.principal, !row.shared));
        let first = found.first().copied().cloned();
        first.ok_or_else(|| EngineError::not_found("template", name))
    }

    /// Lists the templates that the caller may use.
    #[expect(clippy::unused_async, reason = "every call of the facade is one")]
    pub async fn templates(&self, caller: &Caller) -> TemplateList {
        let all = self.core.pools.all_templates();
        let usable = all.iter().filter(|row| Pools::may_use(caller, row));
        let mut templates: Vec<Template> = usable.map(|row| row.shown()).collect();
        templates.sort_by(|one, other| (&one.name, &one.owner).cmp(&(&other.name, &other.owner)));
        TemplateList { templates }
    }

    /// Removes a template of the caller's that no pool is of.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn remove_template(&self, caller: &Caller, name: &str) -> Result<()> {
        let core = &self.core;
        core.check_open()?;
        check_change(caller)?;
        let _changing = core.pools.changing.lock().await;
        let template = self.find_template(caller, name)?;
        check_own(caller, &template.owner)?;
        let key = template.key();
        if let Some(pool) = core.pools.of_template(&key).first() {
            let pool = pool.row().name;
            return Err(EngineError::new(
                ErrorCode::IllegalState,
                format!("pool `{pool}` keeps sandboxes of template `{name}` warm"),
            )
            .details(json!({ "pool": pool }))
            .hint(format!(
                "remove the pool first, with `pinfold pool rm {pool}`"
            )));
        }
        core.store.delete_template(&key).await?;
        core.pools.drop_template(&key);
        Ok(())
    }

    /// Makes a pool and begins to fill it.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn create_pool(
        &self,
        caller: &Caller,
        request: CreatePoolRequest,
    ) -> Result<ShownPool> {
        let core = &self.core;
        core.check_open()?;
        check_change(caller)?;
        let size = read_size(request.size, request.min, request.max)?;
        let _changing = core.pools.changing.lock().await;
        let template = self.find_template(caller, request.template.as_str())?;
        // Whoever may use the template takes from the pool, so only who shares it fills it.
        check_own(caller, &template.owner)?;
        check_poolable(&template, core.driver.capabilities())?;
        let key = (caller.principal.clone(), request.name);
        if core.pools.pool(&key).is_some() {
            return Err(EngineError::new(
                ErrorCode::AlreadyExists,
                format!("there is a pool `{}` already", key.1),
            )
            .hint(format!("change it with `pinfold pool scale {}`", key.1)));
        }
        self.check_quotas(caller, (&key, size), &template)?;
        let pools = core.pools.all().len();
        if pools >= POOLS_MAX {
            return Err(EngineError::new(
                ErrorCode::LimitExceeded,
                format!("there are {pools} pools already, which is the limit"),
            )
            .details(json!({ "limit": POOLS_MAX }))
            .hint("remove one with `pinfold pool rm NAME`"));
        }
        let row = PoolRow {
            owner: key.0,
            name: key.1,
            template: template.key(),
            size,
            draining: false,
            configured: false,
            created_ms: core.clock.now_ms(),
        };
        core.store.save_pool(&row).await?;
        let pool = core.pools.add(row);
        pool::start(core, &pool);
        Ok(pool.shown(template.version))
    }

    /// Refuses a pool that could hold more than its owner may have.
    fn check_quotas(
        &self,
        caller: &Caller,
        (key, size): (&Key, PoolSize),
        template: &TemplateRow,
    ) -> Result<()> {
        let quotas = self.core.quotas(caller);
        let pools = self.core.pools.all();
        let others = pools.iter().map(|pool| pool.row());
        let others = others.filter(|row| row.owner == key.0 && row.key() != *key);
        let all = others
            .map(|row| u64::from(row.size.bounds().1))
            .sum::<u64>()
            + u64::from(size.bounds().1);
        let one = &template.spec.resources;
        let limits = [
            ("sandboxes", quotas.sandboxes.map(u64::from), 1),
            (
                "cpus",
                quotas.cpus.map(|cpus| u64::from(cpus.0)),
                one.cpus.map_or(0, |cpus| u64::from(cpus.0)),
            ),
            (
                "memory",
                quotas.memory.map(|memory| memory.0),
                one.memory.map_or(0, |memory| memory.0),
            ),
        ];
        for (quota, most, one) in limits {
            if most.is_some_and(|most| all.saturating_mul(one) > most) {
                return Err(EngineError::new(
                    ErrorCode::QuotaExceeded,
                    format!("the pool could hold more than the quota of {quota} allows"),
                )
                .details(json!({ "quota": quota, "limit": most }))
                .hint("make the pool smaller, or ask an admin for a larger quota"));
            }
        }
        Ok(())
    }

    /// Lists the pools that the caller may claim from.
    #[expect(clippy::unused_async, reason = "every call of the facade is one")]
    pub async fn pools(&self, caller: &Caller) -> PoolList {
        let mut pools: Vec<ShownPool> = self
            .usable_pools(caller)
            .map(|(pool, version)| pool.shown(version))
            .collect();
        pools.sort_by(|one, other| (&one.name, &one.owner).cmp(&(&other.name, &other.owner)));
        PoolList { pools }
    }

    /// Returns every pool, for who measures the daemon.
    pub fn pool_metrics(&self) -> Vec<ShownPool> {
        self.usable_pools(&Caller::daemon())
            .map(|(pool, version)| pool.shown(version))
            .collect()
    }

    fn usable_pools(&self, caller: &Caller) -> impl Iterator<Item = (Arc<Pool>, u32)> {
        self.core.pools.all().into_iter().filter_map(|pool| {
            let template = self.core.pools.template(&pool.row().template)?;
            Pools::may_use(caller, &template).then_some((pool, template.version))
        })
    }

    /// Returns a pool that the caller may claim from.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] when there is none.
    #[expect(clippy::unused_async, reason = "every call of the facade is one")]
    pub async fn pool(&self, caller: &Caller, name: &str) -> Result<ShownPool> {
        let (pool, version) = self.find_pool(caller, name)?;
        Ok(pool.shown(version))
    }

    pub(crate) fn find_pool(&self, caller: &Caller, name: &str) -> Result<(Arc<Pool>, u32)> {
        let mut found: Vec<_> = self
            .usable_pools(caller)
            .filter(|(pool, _)| pool.row().name.as_str() == name)
            .collect();
        found.sort_by_key(|(pool, _)| pool.row().owner != caller.principal);
        let first = found.into_iter().next();
        first.ok_or_else(|| EngineError::not_found("pool", name))
    }

    /// Changes the size of a pool.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn scale_pool(
        &self,
        caller: &Caller,
        name: &str,
        request: ScalePoolRequest,
    ) -> Result<ShownPool> {
        let core = &self.core;
        core.check_open()?;
        check_change(caller)?;
        let size = read_size(request.size, request.min, request.max)?;
        let _changing = core.pools.changing.lock().await;
        let (pool, version) = self.find_pool(caller, name)?;
        let row = pool.row();
        check_own(caller, &row.owner)?;
        if row.draining {
            return Err(EngineError::new(
                ErrorCode::IllegalState,
                format!("pool `{name}` is being removed"),
            ));
        }
        if let Some(template) = core.pools.template(&row.template) {
            self.check_quotas(caller, (&row.key(), size), &template)?;
        }
        let row = PoolRow { size, ..row };
        core.store.save_pool(&row).await?;
        pool.change(row);
        Ok(pool.shown(version))
    }

    /// Removes a pool with its warm sandboxes. Claimed ones stay.
    ///
    /// It serves nobody from now on; the call returns when the last sandbox is gone, or after a
    /// minute, when the rest goes by itself.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError`] with the code that says why.
    pub async fn remove_pool(&self, caller: &Caller, name: &str) -> Result<()> {
        let core = &self.core;
        core.check_open()?;
        check_change(caller)?;
        let pool = {
            let _changing = core.pools.changing.lock().await;
            let (pool, _) = self.find_pool(caller, name)?;
            let row = pool.row();
            check_own(caller, &row.owner)?;
            self.drain(&pool).await?;
            pool
        };
        tokio::select! {
            () = pool.gone.cancelled() => {}
            () = core.closing.cancelled() => {}
            () = tokio::time::sleep(DRAIN_TIME_MAX) => {}
        }
        Ok(())
    }

    async fn drain(&self, pool: &Pool) -> Result<()> {
        let row = PoolRow {
            draining: true,
            ..pool.row()
        };
        self.core.store.save_pool(&row).await?;
        pool.change(row);
        Ok(())
    }

    /// Makes the pools that the configuration names what it says, and removes those that it named
    /// once. They are the daemon's own, and everybody may claim from them.
    ///
    /// One that cannot be made is told in the log: the daemon serves without it.
    pub async fn configure_pools(&self, caller: &Caller, configured: Vec<ConfiguredPool>) {
        let core = &self.core;
        for pool in core.pools.all() {
            let row = pool.row();
            let named = configured.iter().any(|wanted| wanted.name == row.name);
            if row.configured
                && row.owner == caller.principal
                && !named
                && let Err(error) = self.drain(&pool).await
            {
                tracing::error!(pool = %row.name, error = %chain(&error), "pool not removed");
            }
        }
        for wanted in configured {
            let name = wanted.name.clone();
            if let Err(error) = self.configure_pool(caller, wanted).await {
                tracing::error!(pool = %name, error = %chain(&error), "pool not set up");
            }
        }
    }

    async fn configure_pool(&self, caller: &Caller, wanted: ConfiguredPool) -> Result<()> {
        let core = &self.core;
        if let Some(spec) = wanted.spec {
            let request = TemplateRequest { spec, shared: true };
            self.put_template(caller, &wanted.template, request).await?;
        }
        let _changing = core.pools.changing.lock().await;
        let template = self.find_template(caller, wanted.template.as_str())?;
        check_poolable(&template, core.driver.capabilities())?;
        let key = (caller.principal.clone(), wanted.name);
        let former = core.pools.pool(&key);
        let row = PoolRow {
            owner: key.0,
            name: key.1,
            template: template.key(),
            size: wanted.size,
            draining: false,
            configured: true,
            created_ms: former
                .as_ref()
                .map_or_else(|| core.clock.now_ms(), |former| former.row().created_ms),
        };
        core.store.save_pool(&row).await?;
        if let Some(former) = former {
            former.change(row);
        } else {
            let pool = core.pools.add(row);
            pool::start(core, &pool);
        }
        Ok(())
    }
}

fn check_change(caller: &Caller) -> Result<()> {
    if caller.may_change() {
        return Ok(());
    }
    Err(EngineError::new(
        ErrorCode::PermissionDenied,
        "a viewer may change nothing",
    ))
}

fn check_own(caller: &Caller, owner: &Principal) -> Result<()> {
    if caller.may_see(owner) {
        return Ok(());
    }
    Err(EngineError::new(
        ErrorCode::PermissionDenied,
        "it is shared by another owner, who alone may change it",
    )
    .hint("make a template of your own, with `pinfold template create NAME`"))
}

/// Refuses what every claim would have to start cold.
fn check_poolable(template: &TemplateRow, can: pinfold_driver::Capabilities) -> Result<()> {
    let spec = &template.spec;
    if spec.persist || !(spec.mounts.is_empty() || can.live_mounts) {
        return Err(EngineError::new(
            ErrorCode::Unsupported,
            "a running sandbox cannot be given the mounts or the /persist of the template",
        )
        .hint("leave them out of the template"));
    }
    Ok(())
}

fn read_size(size: Option<u32>, min: Option<u32>, max: Option<u32>) -> Result<PoolSize> {
    PoolSize::read(size, min, max).map_err(|error| {
        EngineError::new(ErrorCode::InvalidArgument, error.to_string())
            .hint("give `size`, or `max` and perhaps `min`")
    })
}
