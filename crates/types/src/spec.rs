//! What a caller asks a sandbox to be.

mod network;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::network::{HOSTS_MAX, HostError, HostPattern, NetworkSpec};
use crate::units::{ByteSize, MilliCpu, QuantityError, parse_duration};

/// Most environment variables of a sandbox or an exec.
pub const ENVIRONMENT_COUNT_MAX: usize = 4096;
/// Most bytes of all names and values of an environment or of all arguments: half of what the
/// kernel's `execve` takes with an 8 MiB stack (2 MiB), so that both fit together.
pub const ENVIRONMENT_BYTES_MAX: usize = 1 << 20;
/// Most mounts of one sandbox.
pub const MOUNTS_MAX: usize = 64;
/// Most labels of one sandbox.
pub const LABELS_MAX: usize = 64;

/// How strongly a sandbox is separated from its host, weakest first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum IsolationTier {
    /// A plain child process: for tests only, nothing is isolated.
    None,
    /// Kernel namespaces, cgroups, seccomp.
    #[default]
    Namespace,
    /// A kernel in user space.
    Gvisor,
    /// A virtual machine.
    Vm,
}

/// Everything that a sandbox is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SandboxSpec {
    /// Root filesystem: `host`, a directory, or a tarball of a root filesystem.
    pub image: String,
    /// Language whose interpreter is used when no command is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<Language>,
    /// Limits and weights.
    pub resources: Resources,
    /// Environment of every exec.
    pub env: BTreeMap<String, String>,
    /// Directory that execs start in; the image's own, else `/workspace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// User that execs run as; the image's own, else root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Host paths that are visible inside.
    pub mounts: Vec<MountSpec>,
    /// Keep a directory at `/persist` that outlives stop and start, and `rm --keep-persist`.
    pub persist: bool,
    /// Nothing of the disk is wanted after the end, so writes need not reach it.
    pub volatile: bool,
    /// Serve `/ready` and `/metrics` on TCP 8888 inside.
    pub agent_tcp: bool,
    /// Weakest acceptable isolation.
    pub isolation: IsolationTier,
    /// Free text pairs for the caller's own use.
    pub labels: BTreeMap<String, String>,
    /// What ends or suspends it by itself.
    pub deadlines: Deadlines,
    /// Hosts that it may and may not reach.
    #[serde(skip_serializing_if = "NetworkSpec::is_empty")]
    pub network: NetworkSpec,
    /// Directory inside whose files are events of the sandbox's stream; absent is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_dir: Option<String>,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        Self {
            image: "host".to_owned(),
            language: None,
            resources: Resources::default(),
            env: BTreeMap::new(),
            workdir: None,
            user: None,
            mounts: Vec::new(),
            persist: false,
            volatile: false,
            agent_tcp: false,
            isolation: IsolationTier::Namespace,
            labels: BTreeMap::new(),
            deadlines: Deadlines::default(),
            network: NetworkSpec::default(),
            events_dir: None,
        }
    }
}

/// Limits that the caller named (absent: the best default that this host can give) and weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Most CPU time per time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<MilliCpu>,
    /// Most memory; swap counts to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Most processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Most bytes written to the root filesystem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<ByteSize>,
    /// Most files in the root filesystem's writable part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// Relative share of CPU when there is too little.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_request: Option<MilliCpu>,
    /// Memory that is reclaimed last when there is too little.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_request: Option<ByteSize>,
    /// Disk that is set aside for it when the host's is shared out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_request: Option<ByteSize>,
}

/// One host path made visible inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    /// Absolute path on the host.
    pub source: String,
    /// Absolute path inside.
    pub target: String,
    /// Whether the sandbox may write.
    #[serde(default)]
    pub writable: bool,
}

/// Why a text is not a mount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a mount: {reason}; write SOURCE:TARGET or SOURCE:TARGET:rw")]
pub struct MountError {
    /// The refused text.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl FromStr for MountSpec {
    type Err = MountError;

    /// Parses `SOURCE:TARGET[:ro|:rw]`; the source may still be relative, the target may not.
    fn from_str(text: &str) -> Result<Self, MountError> {
        let error = |reason| MountError {
            text: text.chars().take(256).collect(),
            reason,
        };
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, mode) = match parts.as_slice() {
            [source, target] => (*source, *target, "ro"),
            [source, target, mode] => (*source, *target, *mode),
            _ => return Err(error("it does not have two or three parts")),
        };
        let writable = match mode {
            "ro" => false,
            "rw" => true,
            _ => return Err(error("the mode is neither `ro` nor `rw`")),
        };
        if source.is_empty() {
            return Err(error("the source is empty"));
        }
        check_guest_path(target).map_err(error)?;
        if target.trim_matches('/').is_empty() {
            return Err(error("the target is the root directory"));
        }
        Ok(Self {
            source: source.to_owned(),
            target: target.to_owned(),
            writable,
        })
    }
}

/// Checks that a path inside a sandbox is absolute, plain and of bounded length.
///
/// # Errors
///
/// Returns what is wrong with it.
pub fn check_guest_path(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("the path inside is not absolute");
    }
    if path.len() > 4095 || path.contains('\0') {
        return Err("the path inside is too long or holds a zero byte");
    }
    if path.split('/').any(|part| part == "..") {
        return Err("the path inside holds `..`");
    }
    Ok(())
}

/// What ends or suspends a sandbox by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// Longest life since creation in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime_ms: Option<u64>,
    /// What happens then.
    pub lifetime_action: DeadlineAction,
    /// Longest time without activity in milliseconds; absent in a request is the daemon's default,
    /// 0 is for ever. Absent in an answer is for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// What happens then.
    pub idle_action: DeadlineAction,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            lifetime_ms: None,
            lifetime_action: DeadlineAction::Remove,
            idle_ms: None,
            idle_action: DeadlineAction::Pause,
        }
    }
}

/// What a deadline does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeadlineAction {
    /// Remove the sandbox with its disk.
    Remove,
    /// Stop it and keep the disk.
    Stop,
    /// Freeze it in memory; the next request wakes it.
    Pause,
}

impl FromStr for DeadlineAction {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        match text {
            "remove" => Ok(Self::Remove),
            "stop" => Ok(Self::Stop),
            "pause" => Ok(Self::Pause),
            _ => Err(QuantityError {
                text: text.chars().take(64).collect(),
                what: "a deadline action",
                expected: "write `remove`, `stop` or `pause`",
            }),
        }
    }
}

/// A language whose programs `--file`, `--hello` and `--language` know how to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// Python 3.
    Python,
    /// JavaScript, also called node.
    Javascript,
    /// Ruby.
    Ruby,
    /// Go.
    Golang,
}

impl Language {
    /// Every language.
    pub const ALL: [Self; 4] = [Self::Python, Self::Javascript, Self::Ruby, Self::Golang];

    /// Returns the language's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Javascript => "javascript",
            Self::Ruby => "ruby",
            Self::Golang => "golang",
        }
    }

    /// Guesses the language of a file from its extension.
    pub fn of_file(path: &str) -> Option<Self> {
        match path.rsplit_once('.')?.1 {
            "py" => Some(Self::Python),
            "js" | "mjs" | "cjs" => Some(Self::Javascript),
            "rb" => Some(Self::Ruby),
            "go" => Some(Self::Golang),
            _ => None,
        }
    }

    /// Returns the command that runs a program file.
    pub fn run_file(self, file: &str) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Python => &["python3"],
            Self::Javascript => &["node"],
            Self::Ruby => &["ruby"],
            Self::Golang => &["go", "run"],
        };
        words
            .iter()
            .map(|word| (*word).to_owned())
            .chain([file.to_owned()])
            .collect()
    }

    /// Returns a command that greets the world.
    pub fn hello(self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Python => &["python3", "-c", "print('hello world')"],
            Self::Javascript => &["node", "-e", "console.log('hello world')"],
            Self::Ruby => &["ruby", "-e", "puts 'hello world'"],
            Self::Golang => &[
                "sh",
                "-c",
                "d=$(mktemp -d) && printf 'package main\\nimport \"fmt\"\\nfunc main() { \
                 fmt.Println(\"hello world\") }\\n' > $d/main.go && go run $d/main.go",
            ],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Language {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        match text {
            "python" | "python3" => Ok(Self::Python),
            "javascript" | "node" | "js" => Ok(Self::Javascript),
            "ruby" => Ok(Self::Ruby),
            "golang" | "go" => Ok(Self::Golang),
            _ => Err(QuantityError {
                text: text.chars().take(64).collect(),
                what: "a language",
                expected: "write python, javascript, node, ruby or golang",
            }),
        }
    }
}

/// Why a spec cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// An environment variable cannot be passed to a process.
    #[error("environment variable `{name}` is not usable: {reason}")]
    Environment {
        /// Its name, cut.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A list or text is larger than its limit.
    #[error("{what} is too large: {size}, and the limit is {limit}")]
    TooLarge {
        /// The field.
        what: &'static str,
        /// What was given.
        size: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A path is not usable.
    #[error("`{path}` is not usable: {reason}")]
    Path {
        /// The path, cut.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A number is outside its range.
    #[error("{what} is {value}, which is outside {range}")]
    Range {
        /// The field.
        what: &'static str,
        /// What was given.
        value: u64,
        /// What is allowed.
        range: &'static str,
    },
}

/// Checks an environment: names, zero bytes, count and total size.
///
/// # Errors
///
/// Returns the first thing that is wrong.
pub fn check_environment(env: &BTreeMap<String, String>) -> Result<(), SpecError> {
    if env.len() > ENVIRONMENT_COUNT_MAX {
        return Err(SpecError::TooLarge {
            what: "the number of environment variables",
            size: env.len(),
            limit: ENVIRONMENT_COUNT_MAX,
        });
    }
    let mut size = 0usize;
    for (name, value) in env {
        let short = || name.chars().take(64).collect::<String>();
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(SpecError::Environment {
                name: short(),
                reason: "the name is empty or holds `=` or a zero byte",
            });
        }
        if value.contains('\0') {
            return Err(SpecError::Environment {
                name: short(),
                reason: "the value holds a zero byte",
            });
        }
        size = size.saturating_add(name.len() + value.len() + 2);
    }
    if size > ENVIRONMENT_BYTES_MAX {
        return Err(SpecError::TooLarge {
            what: "the environment in bytes",
            size,
            limit: ENVIRONMENT_BYTES_MAX,
        });
    }
    Ok(())
}

impl SandboxSpec {
    /// Checks everything that can be checked without looking at the host.
    ///
    /// # Errors
    ///
    /// Returns the first thing that is wrong.
    pub fn check(&self) -> Result<(), SpecError> {
        check_environment(&self.env)?;
        if self.mounts.len() > MOUNTS_MAX {
            return Err(SpecError::TooLarge {
                what: "the number of mounts",
                size: self.mounts.len(),
                limit: MOUNTS_MAX,
            });
        }
        if self.labels.len() > LABELS_MAX {
            return Err(SpecError::TooLarge {
                what: "the number of labels",
                size: self.labels.len(),
                limit: LABELS_MAX,
            });
        }
        let path_error = |path: &str, reason| SpecError::Path {
            path: path.chars().take(256).collect(),
            reason,
        };
        for mount in &self.mounts {
            check_guest_path(&mount.target).map_err(|reason| path_error(&mount.target, reason))?;
            if !mount.source.starts_with('/') || mount.source.contains('\0') {
                return Err(path_error(
                    &mount.source,
                    "the path on the host is not absolute",
                ));
            }
        }
        if let Some(workdir) = &self.workdir {
            check_guest_path(workdir).map_err(|reason| path_error(workdir, reason))?;
        }
        if let Some(dir) = &self.events_dir {
            check_events_dir(dir).map_err(|reason| path_error(dir, reason))?;
        }
        self.network.check()?;
        self.resources.check()
    }
}

/// Checks the directory of events: nothing else of the sandbox should be in it.
///
/// # Errors
///
/// Returns what is wrong with it.
pub fn check_events_dir(path: &str) -> Result<(), &'static str> {
    check_guest_path(path)?;
    if path.trim_matches('/').is_empty() {
        return Err("the directory of events is the root directory");
    }
    Ok(())
}

impl Resources {
    /// Checks that each named limit is one that can be meant.
    ///
    /// # Errors
    ///
    /// Returns the first that is outside its range.
    pub fn check(&self) -> Result<(), SpecError> {
        if let Some(memory) = self.memory.filter(|memory| memory.mib() < 6) {
            return Err(SpecError::Range {
                what: "the memory limit in bytes",
                value: memory.0,
                range: "6m and more",
            });
        }
        if let Some(pids) = self.pids.filter(|pids| !(8..=4_194_304).contains(pids)) {
            return Err(SpecError::Range {
                what: "the process limit",
                value: u64::from(pids),
                range: "8 to 4194304",
            });
        }
        if let Some(disk) = self.disk.filter(|disk| disk.mib() < 4) {
            return Err(SpecError::Range {
                what: "the disk limit in bytes",
                value: disk.0,
                range: "4m and more",
            });
        }
        Ok(())
    }
}

/// Parses a duration into the milliseconds that [`Deadlines`] holds.
///
/// # Errors
///
/// As [`parse_duration`].
pub fn parse_duration_ms(text: &str) -> Result<u64, QuantityError> {
    parse_duration(text).map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_parse() {
        let mount: MountSpec = "/data:/in:rw".parse().unwrap();
        assert_eq!((mount.target.as_str(), mount.writable), ("/in", true));
        for bad in [
            "",
            "/a",
            "/a:b",
            "/a:/",
            "/a:/b:xx",
            ":/b",
            "/a:/../b",
            "/a:/b:rw:z",
        ] {
            assert!(bad.parse::<MountSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_unknown_field_of_a_spec_is_an_error() {
        let error = serde_json::from_str::<SandboxSpec>(r#"{"imaeg":"host"}"#).unwrap_err();
        assert!(error.to_string().contains("imaeg"));
    }

    #[test]
    fn a_huge_environment_is_refused() {
        let env = BTreeMap::from([("A".to_owned(), "x".repeat(10 << 20))]);
        assert!(matches!(
            check_environment(&env),
            Err(SpecError::TooLarge { .. })
        ));
    }
}
