//! The pools that the configuration names.

use pinfold_engine::ConfiguredPool;
use pinfold_types::api::{POOL_SIZE_MAX, PoolSize};
use pinfold_types::{SandboxName, SandboxSpec};
use serde::Deserialize;

use crate::config::Config;
use crate::defaults;
use crate::environment;
use crate::error::CliError;

/// Most pools that a configuration names.
const POOLS_MAX: usize = 64;

/// Name of the pool and the template that serve creations which name none.
const DEFAULT: &str = "default";

/// One entry of the setting `pools`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: SandboxName,
    template: SandboxName,
    spec: Option<SandboxSpec>,
    size: Option<u32>,
    min: Option<u32>,
    max: Option<u32>,
}

/// Checks the setting `pools`: a JSON or YAML list.
///
/// # Errors
///
/// Returns what is wrong with it.
pub(crate) fn check(text: &str) -> Result<(), String> {
    read(text).map(drop)
}

fn read(text: &str) -> Result<Vec<ConfiguredPool>, String> {
    let entries: Vec<Entry> = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
    if entries.len() > POOLS_MAX {
        return Err(format!("there are more than {POOLS_MAX} pools"));
    }
    let mut pools: Vec<ConfiguredPool> = Vec::new();
    for entry in entries {
        if pools.iter().any(|pool| pool.name == entry.name) {
            return Err(format!("pool `{}` is given twice", entry.name));
        }
        if let Some(spec) = &entry.spec {
            spec.check()
                .map_err(|error| format!("pool `{}`: {error}", entry.name))?;
        }
        let size = PoolSize::read(entry.size, entry.min, entry.max)
            .map_err(|error| format!("pool `{}`: {error}", entry.name))?;
        pools.push(ConfiguredPool {
            name: entry.name,
            template: entry.template,
            spec: entry.spec,
            size,
        });
    }
    Ok(pools)
}

/// Returns every pool that is configured.
///
/// # Errors
///
/// Says which setting contradicts another.
pub(crate) fn configured(config: &Config) -> Result<Vec<ConfiguredPool>, CliError> {
    let mut pools = match config.text(environment::POOLS) {
        None => Vec::new(),
        Some(text) => read(text).map_err(|error| {
            CliError::new("the setting `pools` is not usable").caused_by(&CliError::new(error))
        })?,
    };
    if let Some(size) = default_size(config)? {
        let name: SandboxName = DEFAULT
            .parse()
            .map_err(|_| CliError::new("the default pool has no name"))?;
        if pools.iter().any(|pool| pool.name == name) {
            return Err(CliError::new("pool `default` is configured twice")
                .hint("leave either `warm_pool_size` or that entry of `pools` out"));
        }
        pools.push(ConfiguredPool {
            template: name.clone(),
            name,
            spec: Some(defaults::spec(config)),
            size,
        });
    }
    Ok(pools)
}

/// The size of the default pool, when there is to be one.
fn default_size(config: &Config) -> Result<Option<PoolSize>, CliError> {
    let count = |key| config.parsed::<u32>(key);
    let size = count(environment::WARM_POOL_SIZE);
    let auto = config.text(environment::WARM_POOL_AUTOSIZE) == Some("true");
    let (min, max) = (
        count(environment::WARM_POOL_MIN),
        count(environment::WARM_POOL_MAX),
    );
    let read = match (size.unwrap_or(0), auto) {
        (0, false) => return Ok(None),
        (size, false) => PoolSize::read(Some(size), None, None),
        // Without bounds it may grow to what it was told to be, or to ten.
        (size, true) => {
            let most = max.unwrap_or(if size == 0 { 10 } else { size });
            PoolSize::read(None, Some(min.unwrap_or(0)), Some(most))
        }
    };
    read.map(Some).map_err(|error| {
        CliError::new("the settings of the default pool contradict each other")
            .caused_by(&error)
            .hint(format!("a pool keeps at most {POOL_SIZE_MAX} sandboxes"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_pools_is_checked() {
        let good = "[{\"name\":\"a\",\"template\":\"t\",\"size\":3}]";
        assert_eq!(read(good).unwrap()[0].size, PoolSize::Fixed(3));
        for bad in [
            "a",
            "[{name: a, template: t}]",
            "[{name: a, template: t, size: 1, max: 2}]",
            "[{name: a, template: t, size: 100000}]",
            "[{name: A, template: t, size: 1}]",
            "[{name: a, template: t, size: 1, other: 2}]",
            "[{name: a, template: t, size: 1, spec: {imaeg: host}}]",
            "[{name: a, template: t, size: 1}, {name: a, template: u, size: 1}]",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
