//! Turns options and settings into the request that creates a sandbox.

use std::path::{Path, PathBuf};

use pinfold_types::api::{CreateSandboxRequest, Given};
use pinfold_types::spec::{Deadlines, Language, Resources, SandboxSpec};
use pinfold_types::{ByteSize, MilliCpu, MountSpec, SandboxName};

use crate::arguments::{PlaceOptions, SandboxOptions};
use crate::config::Config;
use crate::defaults;
use crate::environment;
use crate::error::CliError;
use crate::program;

/// Builds the request of a sandbox: of a template with what the options say put over it, or of the
/// options and what is configured.
///
/// # Errors
///
/// Names the option that cannot be meant.
pub(crate) fn of_template(
    config: &Config,
    template: Option<&SandboxName>,
    options: &SandboxOptions,
    (place, language): (&PlaceOptions, Option<Language>),
) -> Result<CreateSandboxRequest, CliError> {
    check_places(config, options)?;
    // What is configured here holds where no template says otherwise.
    let configured = template.is_none().then_some(config);
    let mut request = build(configured, options, place, language)?;
    request.template = template.cloned();
    request.given = Given::differences(&request.spec);
    // It may be named because the daemon's own default is another one.
    if options.image.is_some() {
        request.given = request.given.with("image", request.spec.image.clone());
    }
    Ok(request)
}

/// Checks that the daemon can mean the places that options name.
///
/// # Errors
///
/// Names the one that is not there, or that the daemon does not see.
pub(crate) fn check_places(config: &Config, options: &SandboxOptions) -> Result<(), CliError> {
    if config.is_remote() {
        return crate::remote::check(options);
    }
    for mount in &options.mount {
        check_source(Path::new(&mount.source), &mount.target)?;
    }
    let input = options.input.as_deref();
    input.map_or(Ok(()), |directory| check_source(directory, "/in"))
}

fn check_source(source: &Path, target: &str) -> Result<(), CliError> {
    let source = absolute(source)?;
    std::fs::symlink_metadata(&source).map_err(|error| {
        CliError::new(format!("failed to show {} at {target}", source.display()))
            .caused_by(&error)
            .hint("the part before the colon is a path on this host")
    })?;
    Ok(())
}

/// Builds the request of options alone, or with what is configured.
///
/// # Errors
///
/// Names the option that cannot be meant.
pub(crate) fn build(
    config: Option<&Config>,
    options: &SandboxOptions,
    place: &PlaceOptions,
    language: Option<Language>,
) -> Result<CreateSandboxRequest, CliError> {
    let spec = SandboxSpec {
        image: image(config, options)?,
        language,
        resources: resources(config, options)?,
        env: program::environment(place)?,
        workdir: place.workdir.clone(),
        user: place.user.clone(),
        mounts: mounts(options)?,
        persist: options.persist || config.is_some_and(defaults::keeps_volumes),
        volatile: false,
        agent_tcp: options.agent_tcp,
        isolation: options
            .isolation
            .or_else(|| {
                let text = config?.text(environment::ISOLATION)?;
                environment::parse_isolation(text).ok()
            })
            .unwrap_or_default(),
        labels: options.label.iter().cloned().collect(),
        deadlines: Deadlines {
            lifetime_ms: options
                .lifetime
                .or_else(|| config?.duration_ms(environment::LIFETIME)),
            lifetime_action: options.lifetime_action,
            idle_ms: options
                .idle
                .or_else(|| config?.duration_ms(environment::IDLE)),
            idle_action: options.idle_action,
        },
        events_dir: options.events.then(|| {
            let named = config.map(defaults::events_dir);
            named.unwrap_or_else(|| defaults::EVENTS_DIR.to_owned())
        }),
        ..SandboxSpec::default()
    };
    spec.check()
        .map_err(|error| CliError::new(error.to_string()))?;
    Ok(CreateSandboxRequest {
        name: options.name.clone(),
        spec,
        ..CreateSandboxRequest::default()
    })
}

/// An image that is a path is made absolute here: the daemon's directory is another one.
fn image(config: Option<&Config>, options: &SandboxOptions) -> Result<String, CliError> {
    let reference = options
        .image
        .as_deref()
        .or_else(|| config?.text(environment::IMAGE))
        .unwrap_or("host");
    let is_path = reference.contains('/') || Path::new(reference).exists();
    if reference != "host" && is_path {
        return text_of(&absolute(Path::new(reference))?);
    }
    Ok(reference.to_owned())
}

fn resources(config: Option<&Config>, options: &SandboxOptions) -> Result<Resources, CliError> {
    let resources = Resources {
        cpus: options
            .cpus
            .or_else(|| config?.parsed::<MilliCpu>(environment::CPUS)),
        memory: options
            .memory
            .or_else(|| config?.parsed::<ByteSize>(environment::MEMORY)),
        pids: options
            .pids
            .or_else(|| config?.parsed::<u32>(environment::PIDS)),
        disk: options
            .disk
            .or_else(|| config?.parsed::<ByteSize>(environment::DISK)),
        inodes: options.inodes,
        cpu_request: options
            .cpu_request
            .or_else(|| config?.parsed::<MilliCpu>(environment::CPU_REQUEST)),
        memory_request: options
            .memory_request
            .or_else(|| config?.parsed::<ByteSize>(environment::MEMORY_REQUEST)),
        disk_request: options
            .disk_request
            .or_else(|| config?.parsed::<ByteSize>(environment::DISK_REQUEST)),
    };
    resources
        .check()
        .map_err(|error| CliError::new(error.to_string()))?;
    Ok(resources)
}

fn mounts(options: &SandboxOptions) -> Result<Vec<MountSpec>, CliError> {
    let mut mounts = Vec::new();
    for mount in &options.mount {
        mounts.push(mount_of(
            Path::new(&mount.source),
            &mount.target,
            mount.writable,
        )?);
    }
    if let Some(directory) = &options.input {
        mounts.push(mount_of(directory, "/in", false)?);
    }
    if let Some(directory) = &options.output {
        std::fs::create_dir_all(directory).map_err(|error| {
            CliError::new(format!(
                "failed to make the directory {}",
                directory.display()
            ))
            .caused_by(&error)
        })?;
        mounts.push(mount_of(directory, "/out", true)?);
    }
    Ok(mounts)
}

fn mount_of(source: &Path, target: &str, writable: bool) -> Result<MountSpec, CliError> {
    Ok(MountSpec {
        source: text_of(&absolute(source)?)?,
        target: target.to_owned(),
        writable,
    })
}

fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|error| {
        CliError::new(format!("failed to resolve the path {}", path.display())).caused_by(&error)
    })
}

fn text_of(path: &Path) -> Result<String, CliError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| CliError::new(format!("the path {} is not UTF-8", path.display())))
}
