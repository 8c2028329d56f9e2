//! Settings, layered: defaults, the configuration file, `PINFOLD_*` variables, flags.
//!
//! Everything is read and checked before anything is done.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pinfold_engine::MountsAllowed;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::defaults;
use crate::environment::{self, CONFIG_VARIABLE, Kind, SETTINGS, Setting};
use crate::error::CliError;

/// Most bytes of a configuration file: far more than every setting with a page of comments.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Variable(&'static str),
    /// A flag.
    Flag,
    /// The place of the other settings, the user and the machine.
    Default,
}

impl Origin {
    /// Which of two wins.
    const fn right(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File(_) => 1,
            Self::Variable(_) => 2,
            Self::Flag => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag => f.write_str("flag"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// What the settings are read from besides the file.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// `--config`.
    pub(crate) config: Option<PathBuf>,
    /// Settings given as flags.
    pub(crate) flags: Vec<(&'static str, String)>,
    /// The process's environment.
    pub(crate) variables: Vec<(OsString, OsString)>,
    /// Whether we are root, which decides the standard places.
    pub(crate) root: bool,
}

impl Sources {
    /// Takes the environment of this process.
    pub(crate) fn of_process(config: Option<PathBuf>, flags: Vec<(&'static str, String)>) -> Self {
        Self {
            config,
            flags,
            variables: std::env::vars_os().collect(),
            root: rustix::process::geteuid().is_root(),
        }
    }

    fn variable(&self, name: &str) -> Option<&OsString> {
        self.variables
            .iter()
            .find(|(known, value)| known == name && !value.is_empty())
            .map(|(_, value)| value)
    }

    fn directory(&self, variable: &str, beneath_home: &str) -> Option<PathBuf> {
        let named = self
            .variable(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        named.or_else(|| {
            self.variable("HOME")
                .map(|home| Path::new(home).join(beneath_home))
        })
    }

    fn config_file(&self) -> Option<PathBuf> {
        if self.root {
            return Some(PathBuf::from("/etc/pinfold/config.yaml"));
        }
        self.directory("XDG_CONFIG_HOME", ".config")
            .map(|directory| directory.join("pinfold/config.yaml"))
    }
}

/// Every setting that was given, checked.
#[derive(Debug)]
pub(crate) struct Config {
    values: BTreeMap<&'static str, (String, Origin)>,
    /// Variables of ours that mean nothing.
    pub(crate) unknown_variables: Vec<String>,
    /// The file, when there is one.
    pub(crate) file: Option<PathBuf>,
}

impl Config {
    /// Reads everything.
    ///
    /// # Errors
    ///
    /// Names the file, line and column, the variable or the flag that is wrong.
    pub(crate) fn load(sources: &Sources) -> Result<Self, CliError> {
        let mut config = Self {
            values: BTreeMap::new(),
            unknown_variables: Vec::new(),
            file: None,
        };
        config.add_defaults(sources)?;
        config.add_file(sources)?;
        config.add_variables(sources)?;
        for (key, value) in &sources.flags {
            let setting = environment::setting(key)
                .ok_or_else(|| CliError::new(format!("`{key}` is not a setting")))?;
            setting.kind.check(value).map_err(|reason| {
                CliError::new(format!("the flag {} is not usable", setting.flag))
                    .caused_by(&CliError::new(reason))
            })?;
            config.set(setting, absolute(setting, value, None), Origin::Flag);
        }
        config.add_socket(sources);
        Ok(config)
    }

    fn set(&mut self, setting: &Setting, value: String, origin: Origin) {
        let known = environment::setting(setting.key).map(|setting| setting.key);
        if let Some(key) = known {
            self.values.insert(key, (value, origin));
        }
    }

    fn add_defaults(&mut self, sources: &Sources) -> Result<(), CliError> {
        let state = if sources.root {
            Some(PathBuf::from("/var/lib/pinfold"))
        } else {
            sources
                .directory("XDG_STATE_HOME", ".local/state")
                .map(|directory| directory.join("pinfold"))
        };
        let named = sources.variable("PINFOLD_STATE_DIR").is_some()
            || sources
                .flags
                .iter()
                .any(|(key, _)| *key == environment::STATE_DIR);
        let Some(state) = state else {
            if named {
                return Ok(());
            }
            return Err(CliError::new("no place for the state: HOME is not set")
                .hint("set HOME, or name a directory with --state-dir"));
        };
        let mut default = |key, value: &str| {
            self.values.insert(key, (value.to_owned(), Origin::Default));
        };
        default(environment::STATE_DIR, &state.to_string_lossy());
        default(environment::AUTOSTART, "true");
        default(environment::START_TIMEOUT, "30s");
        default(environment::LOG, "info");
        default(environment::LOG_FORMAT, "text");
        default(environment::LOG_FILE_SIZE, "16m");
        default(environment::JOURNAL_SIZE, "64m");
        default(environment::MOUNTS_ALLOWED, "own");
        default(environment::ALLOW_PLAIN_TCP, "false");
        default(environment::METRICS_OPEN, "false");
        default(environment::INSECURE_HTTP, "false");
        default(environment::QUOTA_USERS, "false");
        default(environment::COLOR, "auto");
        default(environment::IMAGE, "host");
        default(environment::ISOLATION, "namespace");
        default(environment::VOLUME_MODE, "emptydir");
        default(environment::CACHE_MODE, "emptydir");
        default(environment::ASYNC_DEFAULT, "false");
        default(environment::EVENTS, "false");
        default(environment::STREAM_MODE, "control-plane");
        default(environment::STREAM_BUFFER, "200");
        default(environment::EVENTS_DIR, crate::defaults::EVENTS_DIR);
        Ok(())
    }

    fn add_file(&mut self, sources: &Sources) -> Result<(), CliError> {
        let named = sources
            .config
            .clone()
            .or_else(|| sources.variable(CONFIG_VARIABLE).map(PathBuf::from));
        let Some(path) = named.clone().or_else(|| sources.config_file()) else {
            return Ok(());
        };
        let failed = || {
            CliError::new(format!(
                "failed to read the configuration {}",
                path.display()
            ))
        };
        let mut text = String::new();
        let opened = std::fs::File::open(&path);
        let file = match opened {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
                return Ok(());
            }
            // Another user's directory on the way is not a reason to fail when nobody asked for it.
            Err(error)
                if error.kind() == std::io::ErrorKind::PermissionDenied && named.is_none() =>
            {
                return Ok(());
            }
            other => other.map_err(|error| failed().caused_by(&error))?,
        };
        file.take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(|error| failed().caused_by(&error))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(failed().caused_by(&CliError::new("it is larger than 1 MiB")));
        }
        let values = parse_file(&text).map_err(|error| {
            let place = error.location().map_or_else(String::new, |place| {
                format!(":{}:{}", place.line(), place.column())
            });
            let message = error.to_string();
            let reason = message
                .rsplit_once(" at line ")
                .map_or(message.as_str(), |(reason, _)| reason);
            CliError::new(format!("{}{place}: {reason}", path.display()))
                .hint("`pinfold config reference` lists every key and the form of its value")
        })?;
        for (setting, value) in values {
            let value = absolute(setting, &value, path.parent());
            self.set(setting, value, Origin::File(path.clone()));
        }
        self.file = Some(path);
        Ok(())
    }

    fn add_variables(&mut self, sources: &Sources) -> Result<(), CliError> {
        let mut more = Vec::new();
        for (name, value) in &sources.variables {
            let Some(name) = name.to_str().filter(|name| name.starts_with("PINFOLD_")) else {
                continue;
            };
            if let Some(added) = name.strip_prefix(environment::ENV_PREFIX) {
                more.push((name, added, value));
                continue;
            }
            let known = SETTINGS.iter().find(|setting| setting.variable == name);
            let Some(setting) = known else {
                if !environment::is_known_variable(name) {
                    self.unknown_variables.push(name.to_owned());
                }
                continue;
            };
            if value.is_empty() {
                continue;
            }
            let wrong = |reason: String| {
                CliError::new(format!("the variable {name} is not usable"))
                    .caused_by(&CliError::new(reason))
            };
            let value = value
                .to_str()
                .ok_or_else(|| wrong("it is not UTF-8".to_owned()))?;
            setting.kind.check(value).map_err(wrong)?;
            let value = absolute(setting, value, None);
            self.set(setting, value, Origin::Variable(setting.variable));
        }
        for (name, added, value) in more {
            self.add_env(added, value).map_err(|reason| {
                CliError::new(format!("the variable {name} is not usable"))
                    .caused_by(&CliError::new(reason))
            })?;
        }
        Ok(())
    }

    /// Adds one variable to the setting `env`; here an empty value is one.
    fn add_env(&mut self, name: &str, value: &OsString) -> Result<(), String> {
        let value = value.to_str().ok_or("it is not UTF-8")?;
        let mut variables = self.env();
        variables.insert(name.to_owned(), value.to_owned());
        let text = serde_json::to_string(&variables).map_err(|error| error.to_string())?;
        defaults::parse_variables(&text)?;
        if let Some(setting) = environment::setting(environment::ENV) {
            self.set(setting, text, Origin::Variable("PINFOLD_ENV_*"));
        }
        Ok(())
    }

    /// Returns the variables of every exec; they were checked when they were read.
    pub(crate) fn env(&self) -> BTreeMap<String, String> {
        self.text(environment::ENV)
            .and_then(|text| defaults::parse_variables(text).ok())
            .unwrap_or_default()
    }

    /// The socket's place depends on the others.
    fn add_socket(&mut self, sources: &Sources) {
        if self.values.contains_key(environment::SOCKET) {
            return;
        }
        let state_is_default = self
            .values
            .get(environment::STATE_DIR)
            .is_none_or(|(_, origin)| *origin == Origin::Default);
        let runtime = sources
            .variable("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        // A state directory of one's own is another daemon, so it gets a socket of its own.
        let socket = if !state_is_default {
            self.state_dir().join("pinfold.sock")
        } else if sources.root {
            PathBuf::from("/run/pinfold/pinfold.sock")
        } else {
            runtime.map_or_else(
                || self.state_dir().join("pinfold.sock"),
                |directory| directory.join("pinfold/pinfold.sock"),
            )
        };
        let value = socket.to_string_lossy().into_owned();
        self.values
            .insert(environment::SOCKET, (value, Origin::Default));
    }

    /// Returns a value as text.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(|(value, _)| value.as_str())
    }

    /// Returns a value as what it parses to; it was checked when it was read.
    pub(crate) fn parsed<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.text(key).and_then(|text| text.parse().ok())
    }

    /// Returns a value as a duration in milliseconds.
    pub(crate) fn duration_ms(&self, key: &str) -> Option<u64> {
        self.text(key)
            .and_then(|text| pinfold_types::spec::parse_duration_ms(text).ok())
    }

    /// Returns which host paths callers may use; it was checked when it was read.
    pub(crate) fn mounts_allowed(&self) -> MountsAllowed {
        let text = self.text(environment::MOUNTS_ALLOWED).unwrap_or_default();
        // What cannot be read allows nothing.
        environment::parse_allow_list(text).unwrap_or(MountsAllowed {
            own: false,
            directories: Vec::new(),
        })
    }

    /// Returns the daemon's state directory.
    pub(crate) fn state_dir(&self) -> PathBuf {
        PathBuf::from(self.text(environment::STATE_DIR).unwrap_or_default())
    }

    /// Returns the daemon's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        PathBuf::from(self.text(environment::SOCKET).unwrap_or_default())
    }

    /// Returns where a value comes from, when there is one.
    pub(crate) fn origin(&self, key: &str) -> Option<&Origin> {
        self.values.get(key).map(|(_, origin)| origin)
    }

    /// Returns the daemon that commands are for when it is not the one at the socket.
    ///
    /// A socket or a state directory that is named with more right than the host wins.
    pub(crate) fn host(&self) -> Option<pinfold_client::Endpoint> {
        let endpoint = self.parsed(environment::HOST)?;
        let right = |key| self.origin(key).map_or(0, Origin::right);
        let of_host = right(environment::HOST);
        let local = [environment::SOCKET, environment::STATE_DIR];
        local
            .iter()
            .all(|key| right(key) <= of_host)
            .then_some(endpoint)
    }

    /// Returns whether commands are for a daemon that may see other files than we do.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.host(), Some(pinfold_client::Endpoint::Tcp(_)))
    }

    /// Returns whether a daemon is started when none answers.
    pub(crate) fn autostart(&self) -> bool {
        self.text(environment::AUTOSTART) != Some("false")
    }

    /// Returns how long a daemon may take to start.
    pub(crate) fn start_timeout(&self) -> Duration {
        Duration::from_millis(
            self.duration_ms(environment::START_TIMEOUT)
                .unwrap_or(30_000),
        )
    }

    /// Lists every setting with its value, if any, and where it comes from.
    pub(crate) fn show(&self) -> impl Iterator<Item = (&'static Setting, Option<&str>, Origin)> {
        SETTINGS.iter().map(|setting| {
            self.values
                .get(setting.key)
                .map_or((setting, None, Origin::Default), |(value, origin)| {
                    (setting, Some(value.as_str()), origin.clone())
                })
        })
    }
}

/// A relative path is beneath where it was written; elsewhere it would change its meaning.
fn absolute(setting: &Setting, value: &str, base: Option<&Path>) -> String {
    if setting.kind != Kind::Path {
        return value.to_owned();
    }
    let path = base.map_or_else(|| PathBuf::from(value), |base| base.join(value));
    std::path::absolute(&path)
        .unwrap_or(path)
        .to_string_lossy()
        .into_owned()
}

type FileValues = Vec<(&'static Setting, String)>;

fn parse_file(text: &str) -> Result<FileValues, serde_yaml_ng::Error> {
    let only_comments = text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    if only_comments {
        return Ok(Vec::new());
    }
    serde_yaml_ng::Deserializer::from_str(text).deserialize_map(FileVisitor)
}

struct FileVisitor;

impl<'de> Visitor<'de> for FileVisitor {
    type Value = FileValues;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping of keys to values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FileValues, A::Error> {
        let mut values: FileValues = Vec::new();
        while let Some(setting) = map.next_key_seed(KeySeed)? {
            let value = map.next_value_seed(ValueSeed(setting))?;
            if values.iter().any(|(known, _)| known.key == setting.key) {
                return Err(de::Error::custom(format!(
                    "`{}` is given twice",
                    setting.key
                )));
            }
            values.push((setting, value));
        }
        Ok(values)
    }
}

struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = &'static Setting;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = &'static Setting;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Self::Value, E> {
        environment::setting(key).ok_or_else(|| {
            let short: String = key.chars().take(64).collect();
            E::custom(format!("unknown key `{short}`"))
        })
    }
}

struct ValueSeed(&'static Setting);

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl ValueSeed {
    fn checked<E: de::Error>(&self, text: String) -> Result<String, E> {
        self.0.kind.check(&text).map_err(E::custom)?;
        Ok(text)
    }
}

impl ValueSeed {
    fn pools<'de, A: SeqAccess<'de>>(&self, mut list: A) -> Result<String, A::Error> {
        let mut entries: Vec<serde_json::Value> = Vec::new();
        while let Some(entry) = list.next_element()? {
            entries.push(entry);
        }
        self.checked(serde_json::Value::Array(entries).to_string())
    }

    fn allow_list<'de, A: SeqAccess<'de>>(&self, mut list: A) -> Result<String, A::Error> {
        let mut entries: Vec<String> = Vec::new();
        while let Some(entry) = list.next_element::<String>()? {
            if entry.contains(',') {
                let reason = format!("`{entry}` holds a comma, which ends an entry");
                return Err(de::Error::custom(reason));
            }
            entries.push(entry);
        }
        if entries.is_empty() {
            return self.checked(environment::EMPTY_LIST.to_owned());
        }
        self.checked(entries.join(","))
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a plain value for `{}`", self.0.key)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        self.checked(text.to_owned())
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<String, E> {
        self.checked(value.to_string())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<String, E> {
        self.checked(value.to_string())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<String, E> {
        self.checked(value.to_string())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<String, E> {
        self.checked(value.to_string())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<String, A::Error> {
        if self.0.kind != Kind::Variables {
            return Err(de::Error::invalid_type(de::Unexpected::Map, &self));
        }
        let values: BTreeMap<String, serde_json::Value> =
            serde::Deserialize::deserialize(de::value::MapAccessDeserializer::new(map))?;
        let text = serde_json::to_string(&values).map_err(de::Error::custom)?;
        self.checked(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<String, A::Error> {
        if self.0.kind == Kind::Pools {
            return self.pools(list);
        }
        if !matches!(self.0.kind, Kind::AllowList | Kind::Hosts) {
            return Err(de::Error::invalid_type(de::Unexpected::Seq, &self));
        }
        self.allow_list(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(variables: &[(&str, &str)]) -> Sources {
        Sources {
            variables: variables
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            ..Sources::default()
        }
    }

    #[test]
    fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        std::fs::write(&file, "memory: 1g\npids: 64\ncpus: 0.5\n").unwrap();
        let mut sources = sources(&[
            ("HOME", "/home/a"),
            ("PINFOLD_MEMORY", "2g"),
            ("PINFOLD_PIDS", "65"),
        ]);
        sources.config = Some(file.clone());
        sources.flags = vec![("memory", "3g".to_owned())];
        let config = Config::load(&sources).unwrap();
        let origin = |key| {
            config
                .show()
                .find(|(setting, _, _)| setting.key == key)
                .map(|(_, value, origin)| (value.map(str::to_owned), origin))
                .unwrap()
        };
        assert_eq!(origin("memory"), (Some("3g".to_owned()), Origin::Flag));
        assert_eq!(
            origin("pids"),
            (Some("65".to_owned()), Origin::Variable("PINFOLD_PIDS"))
        );
        assert_eq!(origin("cpus"), (Some("0.5".to_owned()), Origin::File(file)));
        assert_eq!(origin("image"), (Some("host".to_owned()), Origin::Default));
    }

    #[test]
    fn places_follow_the_user_and_the_environment() {
        let place = |root, variables: &[(&str, &str)]| {
            let mut sources = sources(variables);
            sources.root = root;
            let config = Config::load(&sources).unwrap();
            (
                config.state_dir().display().to_string(),
                config.socket().display().to_string(),
            )
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            place(true, &[("HOME", "/root")]),
            pair("/var/lib/pinfold", "/run/pinfold/pinfold.sock")
        );
        assert_eq!(
            place(false, &[("HOME", "/h")]),
            pair(
                "/h/.local/state/pinfold",
                "/h/.local/state/pinfold/pinfold.sock"
            )
        );
        assert_eq!(
            place(
                false,
                &[
                    ("HOME", "/h"),
                    ("XDG_RUNTIME_DIR", "/run/u"),
                    ("XDG_STATE_HOME", "/s")
                ]
            ),
            pair("/s/pinfold", "/run/u/pinfold/pinfold.sock")
        );
        assert_eq!(
            place(
                false,
                &[
                    ("HOME", "/h"),
                    ("PINFOLD_STATE_DIR", "/x"),
                    ("XDG_RUNTIME_DIR", "/run/u")
                ]
            ),
            pair("/x", "/x/pinfold.sock")
        );
        assert!(Config::load(&sources(&[])).is_err());
    }

    #[test]
    fn a_wrong_file_is_named_with_line_and_column() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        for (text, expected) in [
            ("memory: 1g\nmemroy: 2g\n", ":2:1: unknown key `memroy`"),
            (
                "# note\npids: many\n",
                ":2:7: pids: `many` is not a whole number",
            ),
            ("pids: [1]\n", "`pids`"),
            ("pids: 1\npids: 2\n", "given twice"),
            ("mounts_allowed: [own, x]\n", "`x` is neither `own`"),
            ("mounts_allowed: [\"/a,/b\"]\n", "a comma"),
            ("- a\n", "a mapping of keys to values"),
            ("a: b: c\n", ":1:"),
            ("\"", ":1:"),
        ] {
            std::fs::write(&file, text).unwrap();
            let mut sources = sources(&[("HOME", "/h")]);
            sources.config = Some(file.clone());
            let error = Config::load(&sources).unwrap_err();
            assert!(error.message().contains(expected), "{text:?}: {error}");
        }
        for text in ["", "# nothing\n\n", "image: host\n"] {
            std::fs::write(&file, text).unwrap();
            let mut sources = sources(&[("HOME", "/h")]);
            sources.config = Some(file.clone());
            assert!(Config::load(&sources).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn a_list_is_the_same_from_a_file_and_a_variable() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        for (text, variable) in [
            ("[own, /srv/data:ro]", "own, /srv/data:ro"),
            ("[]", "none"),
            ("/srv", "/srv"),
        ] {
            std::fs::write(&file, format!("mounts_allowed: {text}\n")).unwrap();
            let mut from_file = sources(&[("HOME", "/h")]);
            from_file.config = Some(file.clone());
            let from_variable = sources(&[("HOME", "/h"), ("PINFOLD_MOUNTS_ALLOWED", variable)]);
            let read = |sources| Config::load(sources).unwrap().mounts_allowed();
            assert_eq!(read(&from_file), read(&from_variable), "{text}");
        }
        let default = Config::load(&sources(&[("HOME", "/h")])).unwrap();
        assert_eq!(default.mounts_allowed(), MountsAllowed::default());
    }

    #[test]
    fn the_daemon_is_the_one_that_was_named_with_most_right() {
        let host = |variables: &[(&str, &str)], flags: &[(&'static str, &str)]| {
            let mut sources = sources(variables);
            let owned = flags.iter().map(|(key, value)| (*key, (*value).to_owned()));
            sources.flags = owned.collect();
            Config::load(&sources).unwrap().host()
        };
        let home = ("HOME", "/h");
        let variable = ("PINFOLD_HOST", "https://a.example");
        assert!(host(&[home], &[]).is_none());
        assert!(host(&[home, variable], &[]).is_some());
        assert!(host(&[home, variable, ("PINFOLD_SOCKET", "/s")], &[]).is_some());
        assert!(host(&[home, variable], &[("socket", "/s")]).is_none());
        assert!(host(&[home, variable], &[("state_dir", "/s")]).is_none());
        let named = [("host", "http://[::1]:80")];
        assert!(host(&[home, ("PINFOLD_SOCKET", "/s")], &named).is_some());
    }

    #[test]
    fn variables_of_execs_come_from_a_mapping_and_from_a_prefix() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        std::fs::write(&file, "env:\n  A: one\n  B: 2\n  C: true\n").unwrap();
        let mut with_file = sources(&[("HOME", "/h"), ("PINFOLD_ENV_B", "two=2")]);
        with_file.config = Some(file.clone());
        let config = Config::load(&with_file).unwrap();
        let pairs: Vec<_> = config.env().into_iter().collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            pairs,
            [pair("A", "one"), pair("B", "two=2"), pair("C", "true")]
        );
        assert!(config.unknown_variables.is_empty());
        for bad in ["env: [A]\n", "env:\n  A: [1]\n", "memory: {a: b}\n"] {
            std::fs::write(&file, bad).unwrap();
            assert!(Config::load(&with_file).is_err(), "{bad}");
        }
        let unnamed = Config::load(&sources(&[("HOME", "/h"), ("PINFOLD_ENV_", "x")]));
        assert!(unnamed.is_err());
    }

    #[test]
    fn unknown_variables_are_found() {
        let config = Config::load(&sources(&[("HOME", "/h"), ("PINFOLD_MEMROY", "1")])).unwrap();
        assert_eq!(config.unknown_variables, ["PINFOLD_MEMROY"]);
        assert!(Config::load(&sources(&[("HOME", "/h"), ("PINFOLD_MEMORY", "x")])).is_err());
    }
}
