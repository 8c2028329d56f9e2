//! What the settings say of every sandbox, and of the host that they share.

use std::collections::BTreeMap;
use std::path::Path;

use pinfold_engine::{Cache, Capacity, Defaults};
use pinfold_server::{Collector, CollectorOptions};
use pinfold_types::spec::{
    Deadlines, HOSTS_MAX, HostPattern, NetworkSpec, Resources, check_environment,
};
use pinfold_types::{ByteSize, MilliCpu, SandboxSpec};

use crate::config::Config;
use crate::environment::{self, EMPTY_LIST, parse_isolation};
use crate::error::CliError;

/// Name of the cache's directory in the state directory.
const CACHE: &str = "cache";

/// Reads variables with their values: a JSON or YAML mapping.
///
/// # Errors
///
/// Returns what is wrong with it.
pub(crate) fn parse_variables(text: &str) -> Result<BTreeMap<String, String>, String> {
    let values: BTreeMap<String, serde_json::Value> =
        serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
    let mut variables = BTreeMap::new();
    for (name, value) in values {
        let value = match value {
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            serde_json::Value::Bool(value) => value.to_string(),
            _ => return Err(format!("the value of `{name}` is no plain one")),
        };
        variables.insert(name, value);
    }
    check_environment(&variables).map_err(|error| error.to_string())?;
    Ok(variables)
}

/// Reads hosts with commas between.
///
/// # Errors
///
/// Returns the first that is none.
pub(crate) fn parse_hosts(text: &str) -> Result<Vec<HostPattern>, String> {
    let hosts: Vec<HostPattern> = text
        .split(',')
        .map(str::trim)
        .filter(|host| text != EMPTY_LIST && !host.is_empty())
        .map(|host| host.parse().map_err(|error| format!("{error}")))
        .collect::<Result<_, String>>()?;
    if hosts.len() > HOSTS_MAX {
        return Err(format!("there are more than {HOSTS_MAX} hosts"));
    }
    Ok(hosts)
}

/// Returns what sandboxes are made from whose makers say no more.
pub(crate) fn spec(config: &Config) -> SandboxSpec {
    let hosts = |key| {
        let text = config.text(key).unwrap_or(EMPTY_LIST);
        parse_hosts(text).unwrap_or_default()
    };
    SandboxSpec {
        image: config.text(environment::IMAGE).unwrap_or("host").to_owned(),
        resources: Resources {
            cpus: config.parsed::<MilliCpu>(environment::CPUS),
            memory: config.parsed::<ByteSize>(environment::MEMORY),
            pids: config.parsed::<u32>(environment::PIDS),
            disk: config.parsed::<ByteSize>(environment::DISK),
            cpu_request: config.parsed::<MilliCpu>(environment::CPU_REQUEST),
            memory_request: config.parsed::<ByteSize>(environment::MEMORY_REQUEST),
            disk_request: config.parsed::<ByteSize>(environment::DISK_REQUEST),
            ..Resources::default()
        },
        isolation: config
            .text(environment::ISOLATION)
            .and_then(|text| parse_isolation(text).ok())
            .unwrap_or_default(),
        deadlines: Deadlines {
            lifetime_ms: config.duration_ms(environment::LIFETIME),
            idle_ms: config.duration_ms(environment::IDLE),
            ..Deadlines::default()
        },
        persist: keeps_volumes(config),
        network: NetworkSpec {
            allowed_hosts: hosts(environment::ALLOWED_HOSTS),
            denied_hosts: hosts(environment::DENIED_HOSTS),
        },
        events_dir: has_events(config).then(|| events_dir(config)),
        ..SandboxSpec::default()
    }
}

/// Returns whether programs may drop events: who pushes streams pushes those too.
fn has_events(config: &Config) -> bool {
    config.text(environment::EVENTS) == Some("true") || pushes(config)
}

/// Returns whether events are pushed to a collector.
pub(crate) fn pushes(config: &Config) -> bool {
    matches!(
        config.text(environment::STREAM_MODE),
        Some("push" | "sidecar")
    )
}

/// Returns where events are pushed to.
///
/// # Errors
///
/// Says which setting is missing or cannot be used.
pub(crate) fn collector(config: &Config) -> Result<Option<Collector>, CliError> {
    if !pushes(config) {
        return Ok(None);
    }
    let path = |key| config.text(key).map(std::path::PathBuf::from);
    let endpoint = config
        .text(environment::STREAM_ENDPOINT)
        .ok_or_else(|| {
            CliError::new("`stream_mode: push` needs to know where to push")
                .hint("set `stream_endpoint` to the collector's URL")
        })?
        .to_owned();
    let events_max = config.parsed(environment::STREAM_BUFFER);
    let options = CollectorOptions {
        endpoint,
        token_file: path(environment::STREAM_TOKEN_FILE),
        authorities: path(environment::STREAM_CA_FILE),
        events_max: events_max.unwrap_or(200),
    };
    let collector = Collector::new(&options)
        .map_err(|error| CliError::new("the collector cannot be used").caused_by(&error))?;
    Ok(Some(collector))
}

/// Where programs drop events when nothing else is named.
pub(crate) const EVENTS_DIR: &str = "/sbx-events";

/// Returns where programs drop events that may.
pub(crate) fn events_dir(config: &Config) -> String {
    let named = config.text(environment::EVENTS_DIR);
    named.unwrap_or(EVENTS_DIR).to_owned()
}

/// Returns whether new sandboxes keep a directory.
pub(crate) fn keeps_volumes(config: &Config) -> bool {
    matches!(
        config.text(environment::VOLUME_MODE),
        Some("persist" | "pvc")
    )
}

/// Returns what holds for all sandboxes.
pub(crate) fn all(config: &Config) -> Defaults {
    let path = config.text(environment::CACHE_PATH).map_or_else(
        || config.state_dir().join(CACHE),
        |path| Path::new(path).to_owned(),
    );
    Defaults {
        spec: spec(config),
        env: config.env(),
        cache: match config.text(environment::CACHE_MODE) {
            Some("hostpath") => Cache::Host(path),
            Some("pvc") => Cache::Volume(config.parsed::<ByteSize>(environment::CACHE_SIZE)),
            _ => Cache::Own,
        },
    }
}

/// Returns what the host has for sandboxes' requests. What cannot be found out is not counted.
pub(crate) fn capacity(config: &Config) -> Capacity {
    let milli = |cpus: usize| u32::try_from(cpus).ok()?.checked_mul(1000).map(MilliCpu);
    let disk = || {
        let filesystem = rustix::fs::statvfs(config.state_dir()).ok()?;
        let size = filesystem.f_blocks.checked_mul(filesystem.f_frsize)?;
        Some(ByteSize(size)).filter(|size| size.0 > 0)
    };
    Capacity {
        cpus: config.parsed(environment::CAPACITY_CPUS).or_else(|| {
            let cpus = std::thread::available_parallelism().ok()?;
            milli(cpus.get())
        }),
        memory: config.parsed(environment::CAPACITY_MEMORY).or_else(|| {
            let system = rustix::system::sysinfo();
            let total = system.totalram.checked_mul(u64::from(system.mem_unit))?;
            Some(ByteSize(total)).filter(|total| total.0 > 0)
        }),
        disk: config.parsed(environment::CAPACITY_DISK).or_else(disk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn config(variables: &[(&str, &str)]) -> Config {
        let named = [("HOME", "/h"), ("PINFOLD_STATE_DIR", "/tmp")];
        let variables = named.iter().chain(variables);
        let sources = Sources {
            variables: variables
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            ..Sources::default()
        };
        Config::load(&sources).unwrap()
    }

    #[test]
    fn settings_become_the_spec_of_sandboxes() {
        let spec = spec(&config(&[
            ("PINFOLD_IMAGE", "/images/a"),
            ("PINFOLD_DISK_REQUEST", "1g"),
            ("PINFOLD_DENIED_HOSTS", "a.example,b.example"),
            ("PINFOLD_VOLUME_MODE", "pvc"),
        ]));
        assert_eq!(spec.image, "/images/a");
        assert_eq!(spec.resources.disk_request, Some(ByteSize(1 << 30)));
        assert_eq!(spec.network.denied_hosts.len(), 2);
        assert!(spec.persist);
        let nothing = all(&config(&[]));
        assert_eq!(nothing.spec, SandboxSpec::default());
        assert_eq!(nothing.cache, Cache::Own);
    }

    #[test]
    fn the_cache_is_where_it_was_said() {
        let cache = |variables: &[(&str, &str)]| all(&config(variables)).cache;
        assert_eq!(
            cache(&[("PINFOLD_CACHE_MODE", "hostpath")]),
            Cache::Host("/tmp/cache".into())
        );
        assert_eq!(
            cache(&[
                ("PINFOLD_CACHE_MODE", "hostpath"),
                ("PINFOLD_CACHE_PATH", "/var/cache/x")
            ]),
            Cache::Host("/var/cache/x".into())
        );
        assert_eq!(
            cache(&[("PINFOLD_CACHE_MODE", "pvc"), ("PINFOLD_CACHE_SIZE", "5g")]),
            Cache::Volume(Some(ByteSize(5 << 30)))
        );
    }

    #[test]
    fn the_hosts_own_capacity_counts_unless_another_is_said() {
        let own = capacity(&config(&[]));
        assert!(own.cpus.is_some() && own.memory.is_some() && own.disk.is_some());
        let said = capacity(&config(&[
            ("PINFOLD_CAPACITY_CPUS", "3"),
            ("PINFOLD_CAPACITY_MEMORY", "1g"),
            ("PINFOLD_CAPACITY_DISK", "2g"),
        ]));
        assert_eq!(said.cpus, Some(MilliCpu(3000)));
        assert_eq!(said.memory, Some(ByteSize(1 << 30)));
        assert_eq!(said.disk, Some(ByteSize(2 << 30)));
    }
}
