//! Every setting: its key in the configuration file, its environment variable and its flag.
//!
//! This is the only list. The file, the variables, `config show` and the reference page are made
//! from it, and a test keeps the page true.

use std::fmt::Write as _;

use pinfold_engine::MountsAllowed;
use pinfold_types::spec::{IsolationTier, check_events_dir, parse_duration_ms};
use pinfold_types::{ByteSize, MilliCpu};

/// What a setting's value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A path; a relative one in a file is beneath that file's directory.
    Path,
    /// `true` or `false`.
    Switch,
    /// A number of bytes.
    Size,
    /// A number of CPUs.
    Cpus,
    /// A whole number.
    Count,
    /// A duration.
    Duration,
    /// An address and a port.
    Address,
    /// Where a daemon is.
    Endpoint,
    /// Origins of web pages, separated by commas.
    Origins,
    /// An isolation tier.
    Isolation,
    /// A filter for log lines.
    Filter,
    /// One of a few words.
    Word(&'static [&'static str]),
    /// Host paths that callers may use; a list, in one text with commas between.
    AllowList,
    /// Any text.
    Text,
    /// A list of pools.
    Pools,
    /// Address of a collector of spans.
    SpanCollector,
    /// Variables with their values; a mapping, in one text as JSON.
    Variables,
    /// Hosts; a list, in one text with commas between.
    Hosts,
    /// A URL that is sent to.
    Collector,
    /// An absolute path inside a sandbox, to a directory of its own.
    GuestDirectory,
}

impl Kind {
    /// Returns how the reference names the kind.
    fn name(self) -> String {
        match self {
            Self::Path => "path".to_owned(),
            Self::Switch => "`true` or `false`".to_owned(),
            Self::Size => "size, as in `256m`".to_owned(),
            Self::Cpus => "CPUs, as in `0.5`".to_owned(),
            Self::Count => "number".to_owned(),
            Self::Duration => "duration, as in `30s`".to_owned(),
            Self::Address => "address and port, as in `127.0.0.1:8080`".to_owned(),
            Self::Endpoint => {
                "`https://host:port`, `http://host:port` or `unix:///path`".to_owned()
            }
            Self::Origins => "origins, as in `https://app.example`".to_owned(),
            Self::Isolation => "`namespace`, `gvisor` or `vm`".to_owned(),
            Self::Filter => "log level, or `module=level,…`".to_owned(),
            Self::Word(words) => format!("`{}`", words.join("`, `")),
            Self::AllowList => {
                "list of `own` and of absolute directories, each of which `:ro` makes \
                 read-only, as in `[own, /srv/data:ro]`; in a variable with commas between, \
                 `none` for an empty one"
                    .to_owned()
            }
            Self::Text => "text".to_owned(),
            Self::Collector => "URL, as in `https://collector.example/events`".to_owned(),
            Self::SpanCollector => "address, as in `http://127.0.0.1:4318`".to_owned(),
            Self::GuestDirectory => "absolute path inside".to_owned(),
            Self::Variables => "mapping of names to values; in a variable as JSON".to_owned(),
            Self::Hosts => "list of host names, `*.` wildcards, addresses and blocks; in a \
                            variable with commas between, `none` for an empty one"
                .to_owned(),
            Self::Pools => {
                "list of `{name, template, spec, size}`, or `min` and `max` for `size`".to_owned()
            }
        }
    }

    /// Checks a value.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with it.
    pub(crate) fn check(self, text: &str) -> Result<(), String> {
        match self {
            Self::Path if text.is_empty() => Err("an empty path".to_owned()),
            Self::Path | Self::Text => Ok(()),
            Self::Pools => crate::pools::check(text),
            Self::SpanCollector => text.parse::<crate::traces::Endpoint>().map(drop),
            Self::Variables => crate::defaults::parse_variables(text).map(drop),
            Self::Hosts => crate::defaults::parse_hosts(text).map(drop),
            Self::Collector => done(pinfold_server::Collector::check_endpoint(text)),
            Self::GuestDirectory => {
                check_events_dir(text).map_err(|reason| format!("`{text}` is not usable: {reason}"))
            }
            Self::Switch if matches!(text, "true" | "false") => Ok(()),
            Self::Switch => Err(format!("`{text}` is neither `true` nor `false`")),
            Self::Size => done(text.parse::<ByteSize>()),
            Self::Cpus => done(text.parse::<MilliCpu>()),
            Self::Count => text
                .parse::<u32>()
                .map(drop)
                .map_err(|_| format!("`{text}` is not a whole number")),
            Self::Duration => done(parse_duration_ms(text)),
            Self::Address => text.parse::<std::net::SocketAddr>().map(drop).map_err(|_| {
                format!("`{text}` is not an address and port such as `127.0.0.1:8080`")
            }),
            Self::Endpoint => text
                .parse::<pinfold_client::Endpoint>()
                .map(drop)
                .map_err(|error| format!("`{text}` names no daemon: {error}")),
            Self::Origins => text.split(',').try_for_each(check_origin),
            Self::Isolation => parse_isolation(text).map(drop),
            Self::Filter => text
                .parse::<tracing_subscriber::filter::Targets>()
                .map(drop)
                .map_err(|_| format!("`{text}` is not a log level such as `info` or `debug`")),
            Self::AllowList => parse_allow_list(text).map(drop),
            Self::Word(words) if words.contains(&text) => Ok(()),
            Self::Word(words) => Err(format!("`{text}` is none of {}", words.join(", "))),
        }
    }
}

/// An origin is a scheme, a host and at most a port: what a browser sends, letter by letter.
fn check_origin(text: &str) -> Result<(), String> {
    let text = text.trim();
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:[]".contains(c);
    match host {
        Some(host) if !host.is_empty() && host.chars().all(plain) => Ok(()),
        _ => Err(format!(
            "`{text}` is not an origin such as `https://app.example`"
        )),
    }
}

fn done<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<(), String> {
    result.map(drop).map_err(|error| error.to_string())
}

/// What an empty list is written as: an empty text is no value.
pub(crate) const EMPTY_LIST: &str = "none";

/// Reads which host paths callers may use.
///
/// # Errors
///
/// Returns the first entry that is wrong.
pub(crate) fn parse_allow_list(text: &str) -> Result<MountsAllowed, String> {
    let entries = text
        .split(',')
        .map(str::trim)
        .filter(|_| text != EMPTY_LIST);
    MountsAllowed::parse(entries).map_err(|error| error.to_string())
}

/// Reads the name of an isolation tier.
///
/// # Errors
///
/// Returns the names there are.
pub(crate) fn parse_isolation(text: &str) -> Result<IsolationTier, String> {
    match text {
        "namespace" => Ok(IsolationTier::Namespace),
        "gvisor" => Ok(IsolationTier::Gvisor),
        "vm" => Ok(IsolationTier::Vm),
        _ => Err(format!(
            "`{text}` is not an isolation tier: write namespace, gvisor or vm"
        )),
    }
}

/// One setting.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Its key in the configuration file.
    pub(crate) key: &'static str,
    /// Its environment variable.
    pub(crate) variable: &'static str,
    /// Its flag, and where the flag is.
    pub(crate) flag: &'static str,
    /// What a value looks like.
    pub(crate) kind: Kind,
    /// What it is when nothing is said, for people.
    pub(crate) default: &'static str,
    /// What it does, one sentence.
    pub(crate) meaning: &'static str,
}

/// Where the daemon listens.
pub(crate) const SOCKET: &str = "socket";
/// Where the daemon keeps its state.
pub(crate) const STATE_DIR: &str = "state_dir";
/// Whether a daemon is started when none answers.
pub(crate) const AUTOSTART: &str = "autostart";
/// Longest time that a daemon may take to start.
pub(crate) const START_TIMEOUT: &str = "start_timeout";
/// Control group that sandboxes are put beneath.
pub(crate) const CGROUP: &str = "cgroup";
/// What the daemon logs.
pub(crate) const LOG: &str = "log";
/// How the daemon logs.
pub(crate) const LOG_FORMAT: &str = "log_format";
/// Where the daemon logs.
pub(crate) const LOG_FILE: &str = "log_file";
/// Most bytes of one file of the log.
pub(crate) const LOG_FILE_SIZE: &str = "log_file_size";
/// Where spans are sent.
pub(crate) const OTLP_ENDPOINT: &str = "otlp_endpoint";
/// Most bytes of one exec's journal.
pub(crate) const JOURNAL_SIZE: &str = "journal_size";
/// Which host paths callers may show in sandboxes.
pub(crate) const MOUNTS_ALLOWED: &str = "mounts_allowed";
/// Address of the port.
pub(crate) const LISTEN: &str = "listen";
/// Certificates of the port.
pub(crate) const TLS_CERT: &str = "tls_cert";
/// Key of the port's certificate.
pub(crate) const TLS_KEY: &str = "tls_key";
/// Whether a port without TLS may be reached from other machines.
pub(crate) const ALLOW_PLAIN_TCP: &str = "allow_plain_tcp";
/// Origins whose web pages may ask at the port.
pub(crate) const CORS_ORIGINS: &str = "cors_origins";
/// Whether programs of this machine may read metrics at the port without a key.
pub(crate) const METRICS_OPEN: &str = "metrics_open";
/// Most sandboxes of a principal.
pub(crate) const QUOTA_SANDBOXES: &str = "quota_sandboxes";
/// Most CPUs of a principal.
pub(crate) const QUOTA_CPUS: &str = "quota_cpus";
/// Most memory of a principal.
pub(crate) const QUOTA_MEMORY: &str = "quota_memory";
/// Most execs of a principal at once.
pub(crate) const QUOTA_EXECS: &str = "quota_execs";
/// Most creations of a principal in a minute.
pub(crate) const QUOTA_CREATIONS: &str = "quota_creations";
/// Whether quotas hold for users of the host too.
pub(crate) const QUOTA_USERS: &str = "quota_users";
/// When to use colours.
pub(crate) const COLOR: &str = "color";
/// Image of new sandboxes.
pub(crate) const IMAGE: &str = "image";
/// CPU limit of new sandboxes.
pub(crate) const CPUS: &str = "cpus";
/// Memory limit of new sandboxes.
pub(crate) const MEMORY: &str = "memory";
/// Process limit of new sandboxes.
pub(crate) const PIDS: &str = "pids";
/// Disk limit of new sandboxes.
pub(crate) const DISK: &str = "disk";
/// Weakest isolation of new sandboxes.
pub(crate) const ISOLATION: &str = "isolation";
/// Longest life of new sandboxes.
pub(crate) const LIFETIME: &str = "lifetime";
/// Longest idle time of new sandboxes.
pub(crate) const IDLE: &str = "idle";

/// CPU share that new sandboxes request.
pub(crate) const CPU_REQUEST: &str = "cpu_request";
/// Memory that new sandboxes request.
pub(crate) const MEMORY_REQUEST: &str = "memory_request";
/// Disk that new sandboxes request.
pub(crate) const DISK_REQUEST: &str = "disk_request";
/// CPUs that all requests together may take.
pub(crate) const CAPACITY_CPUS: &str = "capacity_cpus";
/// Memory that all requests together may take.
pub(crate) const CAPACITY_MEMORY: &str = "capacity_memory";
/// Disk that all requests together may take.
pub(crate) const CAPACITY_DISK: &str = "capacity_disk";
/// Variables of every exec.
pub(crate) const ENV: &str = "env";
/// Hosts that sandboxes may reach.
pub(crate) const ALLOWED_HOSTS: &str = "allowed_hosts";
/// Hosts that sandboxes may not reach.
pub(crate) const DENIED_HOSTS: &str = "denied_hosts";
/// Where what sandboxes keep is.
pub(crate) const VOLUME_MODE: &str = "volume_mode";
/// Where the sandboxes' cache is.
pub(crate) const CACHE_MODE: &str = "cache_mode";
/// Directory of the cache on the host.
pub(crate) const CACHE_PATH: &str = "cache_path";
/// Size of the cache's volume.
pub(crate) const CACHE_SIZE: &str = "cache_size";
/// Whether an exec is asynchronous that does not say.
pub(crate) const ASYNC_DEFAULT: &str = "async_default";

/// Whether programs may drop events.
pub(crate) const EVENTS: &str = "events";
/// Where they drop them.
pub(crate) const EVENTS_DIR: &str = "events_dir";

/// Whether events are pushed to a collector.
pub(crate) const STREAM_MODE: &str = "stream_mode";
/// Where to.
pub(crate) const STREAM_ENDPOINT: &str = "stream_endpoint";
/// What the collector is shown.
pub(crate) const STREAM_TOKEN_FILE: &str = "stream_token_file";
/// Whose certificates the collector may have.
pub(crate) const STREAM_CA_FILE: &str = "stream_ca_file";
/// Most events of one push.
pub(crate) const STREAM_BUFFER: &str = "stream_buffer";

/// Pools of warm sandboxes.
pub(crate) const POOLS: &str = "pools";
/// Warm sandboxes of the default kind.
pub(crate) const WARM_POOL_SIZE: &str = "warm_pool_size";
/// Whether their number follows what is claimed.
pub(crate) const WARM_POOL_AUTOSIZE: &str = "warm_pool_autosize";
/// Least number of them then.
pub(crate) const WARM_POOL_MIN: &str = "warm_pool_min";
/// Largest number of them then.
pub(crate) const WARM_POOL_MAX: &str = "warm_pool_max";

/// The daemon that commands are for.
pub(crate) const HOST: &str = "host";
/// File with the API key that it is shown.
pub(crate) const KEY_FILE: &str = "key_file";
/// Certificates that it is trusted by.
pub(crate) const CA_FILE: &str = "ca_file";
/// Whether it may be spoken to in plain text wherever it is.
pub(crate) const INSECURE_HTTP: &str = "insecure_http";

/// Variable that holds the API key for [`HOST`]; no setting, since settings are shown.
pub(crate) const API_KEY_VARIABLE: &str = "PINFOLD_API_KEY";

/// Every setting, in the order of the reference.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting {
        key: SOCKET,
        variable: "PINFOLD_SOCKET",
        flag: "--socket",
        kind: Kind::Path,
        default: "root: `/run/pinfold/pinfold.sock`; others: `$XDG_RUNTIME_DIR/pinfold/pinfold.sock`, \
                  or `pinfold.sock` in the state directory",
        meaning: "Unix socket that the daemon listens on.",
    },
    Setting {
        key: STATE_DIR,
        variable: "PINFOLD_STATE_DIR",
        flag: "--state-dir",
        kind: Kind::Path,
        default: "root: `/var/lib/pinfold`; others: `$XDG_STATE_HOME/pinfold` or \
                  `~/.local/state/pinfold`",
        meaning: "Directory that holds the daemon's database, images, journals and disks.",
    },
    Setting {
        key: HOST,
        variable: "PINFOLD_HOST",
        flag: "--host",
        kind: Kind::Endpoint,
        default: "the daemon at `socket`",
        meaning: "Daemon that commands are for, instead of the one at `socket`; none is started.",
    },
    Setting {
        key: KEY_FILE,
        variable: "PINFOLD_KEY_FILE",
        flag: "--key-file",
        kind: Kind::Path,
        default: "`PINFOLD_API_KEY`, or no key",
        meaning: "File that holds the API key for `host`.",
    },
    Setting {
        key: CA_FILE,
        variable: "PINFOLD_CA_FILE",
        flag: "--ca-file",
        kind: Kind::Path,
        default: "the system's certificates",
        meaning: "Certificates in PEM, one of which has to have signed that of `host`.",
    },
    Setting {
        key: INSECURE_HTTP,
        variable: "PINFOLD_INSECURE_HTTP",
        flag: "--insecure-http",
        kind: Kind::Switch,
        default: "`false`",
        meaning: "Speak without TLS to a `host` that is another machine, although everybody on the \
                  way can then read the API key and everything else.",
    },
    Setting {
        key: AUTOSTART,
        variable: "PINFOLD_AUTOSTART",
        flag: "--no-start",
        kind: Kind::Switch,
        default: "`true`",
        meaning: "Start a daemon when none answers.",
    },
    Setting {
        key: START_TIMEOUT,
        variable: "PINFOLD_START_TIMEOUT",
        flag: "",
        kind: Kind::Duration,
        default: "`30s`",
        meaning: "Longest time that a daemon may take to start.",
    },
    Setting {
        key: CGROUP,
        variable: "PINFOLD_CGROUP",
        flag: "",
        kind: Kind::Text,
        default: "the daemon's own",
        meaning: "Delegated control group for sandboxes, relative to the mount of each hierarchy.",
    },
    Setting {
        key: LOG,
        variable: "PINFOLD_LOG",
        flag: "`serve --log`",
        kind: Kind::Filter,
        default: "`info`",
        meaning: "What the daemon logs.",
    },
    Setting {
        key: LOG_FORMAT,
        variable: "PINFOLD_LOG_FORMAT",
        flag: "`serve --log-format`",
        kind: Kind::Word(&["text", "json"]),
        default: "`text`",
        meaning: "How the daemon writes its log.",
    },
    Setting {
        key: LOG_FILE,
        variable: "PINFOLD_LOG_FILE",
        flag: "",
        kind: Kind::Path,
        default: "standard error; `daemon.log` in the state directory of a daemon that was started by \
                  itself",
        meaning: "File that the daemon logs to; it and four older ones beside it are kept.",
    },
    Setting {
        key: LOG_FILE_SIZE,
        variable: "PINFOLD_LOG_FILE_SIZE",
        flag: "",
        kind: Kind::Size,
        default: "`16m`",
        meaning: "Most bytes of `log_file`; then it becomes `log_file.1` and a new one is begun.",
    },
    Setting {
        key: OTLP_ENDPOINT,
        variable: "PINFOLD_OTLP_ENDPOINT",
        flag: "",
        kind: Kind::SpanCollector,
        default: "no traces",
        meaning: "Collector that traces are sent to by OTLP, as JSON over HTTP; without a path `/v1/traces`.",
    },
    Setting {
        key: JOURNAL_SIZE,
        variable: "PINFOLD_JOURNAL_SIZE",
        flag: "",
        kind: Kind::Size,
        default: "`64m`",
        meaning: "Most bytes of output that are kept of one exec.",
    },
    Setting {
        key: MOUNTS_ALLOWED,
        variable: "PINFOLD_MOUNTS_ALLOWED",
        flag: "",
        kind: Kind::AllowList,
        default: "`[own]`",
        meaning: "Host paths that callers may mount and use as images: `own`, over the Unix socket, is \
                  what the caller owns, and whatever the daemon reaches for root and for the \
                  daemon's own user; a directory is for everybody over the Unix socket with the \
                  rights that they have, and for admins over TCP.",
    },
    Setting {
        key: LISTEN,
        variable: "PINFOLD_LISTEN",
        flag: "`serve --listen`",
        kind: Kind::Address,
        default: "no port; `127.0.0.1:8080` with `serve --dev`",
        meaning: "Address and port that the daemon listens on beside its socket; for API keys only.",
    },
    Setting {
        key: TLS_CERT,
        variable: "PINFOLD_TLS_CERT",
        flag: "",
        kind: Kind::Path,
        default: "no TLS",
        meaning: "Chain of certificates of the port, in PEM; read again when it changes.",
    },
    Setting {
        key: TLS_KEY,
        variable: "PINFOLD_TLS_KEY",
        flag: "",
        kind: Kind::Path,
        default: "no TLS",
        meaning: "Private key of the first certificate, in PEM; read again when it changes.",
    },
    Setting {
        key: ALLOW_PLAIN_TCP,
        variable: "PINFOLD_ALLOW_PLAIN_TCP",
        flag: "",
        kind: Kind::Switch,
        default: "`false`",
        meaning: "Listen without TLS where other machines reach the port.",
    },
    Setting {
        key: CORS_ORIGINS,
        variable: "PINFOLD_CORS_ORIGINS",
        flag: "",
        kind: Kind::Origins,
        default: "none",
        meaning: "Origins whose web pages may ask at the port, separated by commas.",
    },
    Setting {
        key: METRICS_OPEN,
        variable: "PINFOLD_METRICS_OPEN",
        flag: "",
        kind: Kind::Switch,
        default: "`false`",
        meaning: "Let programs of the daemon's own machine read `GET /metrics` at the port without a \
                  key.",
    },
    Setting {
        key: QUOTA_SANDBOXES,
        variable: "PINFOLD_QUOTA_SANDBOXES",
        flag: "",
        kind: Kind::Count,
        default: "not limited",
        meaning: "Most sandboxes of one principal; a key can say otherwise.",
    },
    Setting {
        key: QUOTA_CPUS,
        variable: "PINFOLD_QUOTA_CPUS",
        flag: "",
        kind: Kind::Cpus,
        default: "not limited",
        meaning: "Most CPUs of all sandboxes of one principal together; a key can say otherwise.",
    },
    Setting {
        key: QUOTA_MEMORY,
        variable: "PINFOLD_QUOTA_MEMORY",
        flag: "",
        kind: Kind::Size,
        default: "not limited",
        meaning: "Most memory of all sandboxes of one principal together; a key can say otherwise.",
    },
    Setting {
        key: QUOTA_EXECS,
        variable: "PINFOLD_QUOTA_EXECS",
        flag: "",
        kind: Kind::Count,
        default: "not limited",
        meaning: "Most execs of one principal at once; a key can say otherwise.",
    },
    Setting {
        key: QUOTA_CREATIONS,
        variable: "PINFOLD_QUOTA_CREATIONS",
        flag: "",
        kind: Kind::Count,
        default: "not limited",
        meaning: "Most sandboxes that one principal makes in a minute; a key can say otherwise.",
    },
    Setting {
        key: QUOTA_USERS,
        variable: "PINFOLD_QUOTA_USERS",
        flag: "",
        kind: Kind::Switch,
        default: "`false`",
        meaning: "Hold users of the host to the quotas too, who need no key.",
    },
    Setting {
        key: COLOR,
        variable: "PINFOLD_COLOR",
        flag: "--color",
        kind: Kind::Word(&["auto", "always", "never"]),
        default: "`auto`: on a terminal, unless `NO_COLOR` is set",
        meaning: "When to print colours.",
    },
    Setting {
        key: IMAGE,
        variable: "PINFOLD_IMAGE",
        flag: "`run --image`",
        kind: Kind::Text,
        default: "`host`",
        meaning: "Image of new sandboxes.",
    },
    Setting {
        key: CPUS,
        variable: "PINFOLD_CPUS",
        flag: "`run --cpus`",
        kind: Kind::Cpus,
        default: "not limited",
        meaning: "CPU limit of new sandboxes.",
    },
    Setting {
        key: MEMORY,
        variable: "PINFOLD_MEMORY",
        flag: "`run --memory`",
        kind: Kind::Size,
        default: "not limited",
        meaning: "Memory limit of new sandboxes; swap counts to it.",
    },
    Setting {
        key: PIDS,
        variable: "PINFOLD_PIDS",
        flag: "`run --pids`",
        kind: Kind::Count,
        default: "4096",
        meaning: "Most processes and threads of new sandboxes.",
    },
    Setting {
        key: DISK,
        variable: "PINFOLD_DISK",
        flag: "`run --disk`",
        kind: Kind::Size,
        default: "not limited",
        meaning: "Most bytes that new sandboxes may write to their disk.",
    },
    Setting {
        key: ISOLATION,
        variable: "PINFOLD_ISOLATION",
        flag: "`run --isolation`",
        kind: Kind::Isolation,
        default: "`namespace`",
        meaning: "Weakest isolation that new sandboxes may have.",
    },
    Setting {
        key: LIFETIME,
        variable: "PINFOLD_LIFETIME",
        flag: "`run --lifetime`",
        kind: Kind::Duration,
        default: "for ever",
        meaning: "Longest life of new sandboxes.",
    },
    Setting {
        key: IDLE,
        variable: "PINFOLD_IDLE",
        flag: "`run --idle`",
        kind: Kind::Duration,
        default: "`15m`",
        meaning: "Longest time that new sandboxes may be idle; `0` is for ever.",
    },
    Setting {
        key: CPU_REQUEST,
        variable: "PINFOLD_CPU_REQUEST",
        flag: "`run --cpu-request`",
        kind: Kind::Cpus,
        default: "none",
        meaning: "CPUs that new sandboxes are promised: their share when there is too little; the \
                  sum of all requests is at most `capacity_cpus`.",
    },
    Setting {
        key: MEMORY_REQUEST,
        variable: "PINFOLD_MEMORY_REQUEST",
        flag: "`run --memory-request`",
        kind: Kind::Size,
        default: "none",
        meaning: "Memory that new sandboxes are promised: it is taken away last; the sum of all \
                  requests is at most `capacity_memory`.",
    },
    Setting {
        key: DISK_REQUEST,
        variable: "PINFOLD_DISK_REQUEST",
        flag: "`run --disk-request`",
        kind: Kind::Size,
        default: "none",
        meaning: "Disk that new sandboxes are promised; the sum of all requests is at most \
                  `capacity_disk`.",
    },
    Setting {
        key: CAPACITY_CPUS,
        variable: "PINFOLD_CAPACITY_CPUS",
        flag: "",
        kind: Kind::Cpus,
        default: "the host's CPUs",
        meaning: "CPUs that all sandboxes' requests together may take; beyond it a creation is \
                  refused with `capacity_exceeded`.",
    },
    Setting {
        key: CAPACITY_MEMORY,
        variable: "PINFOLD_CAPACITY_MEMORY",
        flag: "",
        kind: Kind::Size,
        default: "the host's memory",
        meaning: "Memory that all sandboxes' requests together may take.",
    },
    Setting {
        key: CAPACITY_DISK,
        variable: "PINFOLD_CAPACITY_DISK",
        flag: "",
        kind: Kind::Size,
        default: "the size of the filesystem of the state directory",
        meaning: "Disk that all sandboxes' requests together may take.",
    },
    Setting {
        key: ENV,
        variable: "PINFOLD_ENV",
        flag: "",
        kind: Kind::Variables,
        default: "none",
        meaning: "Variables of every exec of every sandbox; what the sandbox or the exec says of \
                  one wins. A variable `PINFOLD_ENV_NAME` of the daemon adds `NAME`.",
    },
    Setting {
        key: ALLOWED_HOSTS,
        variable: "PINFOLD_ALLOWED_HOSTS",
        flag: "",
        kind: Kind::Hosts,
        default: "none",
        meaning: "Hosts that sandboxes may reach whose makers name none. This version gives no \
                  network: with a host here every creation is refused with `unsupported`.",
    },
    Setting {
        key: DENIED_HOSTS,
        variable: "PINFOLD_DENIED_HOSTS",
        flag: "",
        kind: Kind::Hosts,
        default: "none",
        meaning: "Hosts that sandboxes may not reach whose makers name none. They reach nothing in \
                  this version.",
    },
    Setting {
        key: VOLUME_MODE,
        variable: "PINFOLD_VOLUME_MODE",
        flag: "`run --persist`",
        kind: Kind::Word(&["emptydir", "persist", "pvc"]),
        default: "`emptydir`",
        meaning: "`emptydir` keeps what new sandboxes write on their own disk; `persist`, or `pvc`, \
                  gives each a directory at /persist that outlives stop and start.",
    },
    Setting {
        key: CACHE_MODE,
        variable: "PINFOLD_CACHE_MODE",
        flag: "",
        kind: Kind::Word(&["emptydir", "hostpath", "pvc"]),
        default: "`emptydir`",
        meaning: "`emptydir` lets each sandbox cache on its own disk; `hostpath` shows `cache_path` \
                  at /cache, writable and shared, to whoever may mount it as `mounts_allowed` says; \
                  `pvc` is a volume, which this version refuses with `unsupported`.",
    },
    Setting {
        key: CACHE_PATH,
        variable: "PINFOLD_CACHE_PATH",
        flag: "",
        kind: Kind::Path,
        default: "`cache` in the state directory",
        meaning: "Directory of the host for `cache_mode: hostpath`.",
    },
    Setting {
        key: CACHE_SIZE,
        variable: "PINFOLD_CACHE_SIZE",
        flag: "",
        kind: Kind::Size,
        default: "none",
        meaning: "Size of the volume of `cache_mode: pvc`, and of nothing else.",
    },
    Setting {
        key: ASYNC_DEFAULT,
        variable: "PINFOLD_ASYNC_DEFAULT",
        flag: "",
        kind: Kind::Switch,
        default: "`false`",
        meaning: "Whether `POST …/exec` answers at once with the exec's id when the request does not \
                  say.",
    },
    Setting {
        key: EVENTS,
        variable: "PINFOLD_EVENTS",
        flag: "`run --events`",
        kind: Kind::Switch,
        default: "`false`",
        meaning: "Give each new sandbox a directory, `events_dir`, whose files are events of its \
                  stream.",
    },
    Setting {
        key: EVENTS_DIR,
        variable: "PINFOLD_EVENTS_DIR",
        flag: "",
        kind: Kind::GuestDirectory,
        default: "`/sbx-events`",
        meaning: "That directory inside.",
    },
    Setting {
        key: STREAM_MODE,
        variable: "PINFOLD_STREAM_MODE",
        flag: "",
        kind: Kind::Word(&["control-plane", "push", "sidecar"]),
        default: "`control-plane`",
        meaning: "`control-plane` lets readers come for events; with `push`, or `sidecar`, the daemon \
                  also sends every event to `stream_endpoint`, and `events` is `true`.",
    },
    Setting {
        key: STREAM_ENDPOINT,
        variable: "PINFOLD_STREAM_ENDPOINT",
        flag: "",
        kind: Kind::Collector,
        default: "none; needed by `stream_mode: push`",
        meaning: "Where events are sent: each `POST` is a JSON array, which is sent again until the \
                  answer is a success.",
    },
    Setting {
        key: STREAM_TOKEN_FILE,
        variable: "PINFOLD_STREAM_TOKEN_FILE",
        flag: "",
        kind: Kind::Path,
        default: "no token",
        meaning: "File whose content is sent to the collector as a bearer token; read for each push.",
    },
    Setting {
        key: STREAM_CA_FILE,
        variable: "PINFOLD_STREAM_CA_FILE",
        flag: "",
        kind: Kind::Path,
        default: "the system's certificates",
        meaning: "Certificates, in PEM, one of which signs the collector's.",
    },
    Setting {
        key: STREAM_BUFFER,
        variable: "PINFOLD_STREAM_BUFFER",
        flag: "",
        kind: Kind::Count,
        default: "`200`",
        meaning: "Most events of a sandbox that are in memory to be sent, which is one push; the \
                  journals hold the rest.",
    },
    Setting {
        key: POOLS,
        variable: "PINFOLD_POOLS",
        flag: "",
        kind: Kind::Pools,
        default: "none",
        meaning: "Pools of warm sandboxes that the daemon keeps; `spec` makes or changes the template, \
                  which everybody may use.",
    },
    Setting {
        key: WARM_POOL_SIZE,
        variable: "PINFOLD_WARM_POOL_SIZE",
        flag: "",
        kind: Kind::Count,
        default: "0",
        meaning: "Sandboxes that are kept warm for creations without a template, in the pool `default`.",
    },
    Setting {
        key: WARM_POOL_AUTOSIZE,
        variable: "PINFOLD_WARM_POOL_AUTOSIZE",
        flag: "",
        kind: Kind::Switch,
        default: "`false`",
        meaning: "Let that number follow what is claimed.",
    },
    Setting {
        key: WARM_POOL_MIN,
        variable: "PINFOLD_WARM_POOL_MIN",
        flag: "",
        kind: Kind::Count,
        default: "0",
        meaning: "Fewest sandboxes that are then kept warm.",
    },
    Setting {
        key: WARM_POOL_MAX,
        variable: "PINFOLD_WARM_POOL_MAX",
        flag: "",
        kind: Kind::Count,
        default: "`warm_pool_size`, or 10 without it",
        meaning: "Most sandboxes that are then kept warm.",
    },
];

/// Variable that names the configuration file.
pub(crate) const CONFIG_VARIABLE: &str = "PINFOLD_CONFIG";

/// Variables that are read but are no settings.
pub(crate) const OTHER_VARIABLES: &[(&str, &str)] = &[
    (
        CONFIG_VARIABLE,
        "The configuration file; as the flag `--config`.",
    ),
    (
        API_KEY_VARIABLE,
        "The API key for `host`; a key in a variable is in no list of processes and in no shell's \
         history.",
    ),
    (
        "PINFOLD_ATTACK_BIN",
        "The program that `doctor --attack` runs; as the flag `--attack-program`.",
    ),
    (
        "PINFOLD_AGENT_BIN",
        "Read when pinfold is built: a guest agent to embed instead of building one.",
    ),
    (
        "PINFOLD_WEAK_AGENT",
        "Read by the tests, and by test builds alone: an agent without some of its defences.",
    ),
    (
        "PINFOLD_WEAKEN",
        "Read by such an agent: the defences that are left out.",
    ),
    (
        "PINFOLD_FIXTURES",
        "Read by the tests: where their input files are.",
    ),
    (
        "PINFOLD_PYTHON",
        "Read by the tests: a Python with the packages of their clients.",
    ),
    (
        "PINFOLD_KEEP_WORLD",
        "Read by the tests: keep the files of each test.",
    ),
];

/// Begins the names of variables each of which adds one to the setting `env`.
pub(crate) const ENV_PREFIX: &str = "PINFOLD_ENV_";

/// Variables that the daemon is given when the command line starts it; it sees no others.
///
/// The first caller's environment may hold secrets, and the daemon outlives the caller.
pub(crate) const DAEMON_VARIABLES: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
];

/// Returns the setting with a key.
pub(crate) fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// Returns whether a variable of ours is known.
pub(crate) fn is_known_variable(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.variable == name)
        || OTHER_VARIABLES.iter().any(|(other, _)| *other == name)
        || name
            .strip_prefix(ENV_PREFIX)
            .is_some_and(|rest| !rest.is_empty())
}

/// Writes the reference page.
pub(crate) fn reference() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         <!-- Made by `pinfold config reference` from crates/cli/src/environment.rs. -->\n\n\
         A setting comes from, in rising precedence: its default, the configuration file, its\n\
         environment variable, its flag. `pinfold config show --origin` prints each value and where it\n\
         comes from.\n\n\
         The file is `/etc/pinfold/config.yaml` for root and `$XDG_CONFIG_HOME/pinfold/config.yaml`\n\
         (or `~/.config/pinfold/config.yaml`) for everybody else. It is a YAML mapping of keys to\n\
         values:\n\n\
         ```yaml\nimage: host\nmemory: 512m\nidle: 1h\n```\n\n\
         A key that is not listed here is an error that names the file, the line and the column. An\n\
         unknown variable that starts with `PINFOLD_` is warned about.\n\n\
         ## Settings\n",
    );
    for setting in SETTINGS {
        let flag = match setting.flag {
            "" => "none".to_owned(),
            text if text.starts_with('`') => text.to_owned(),
            text => format!("`{text}`"),
        };
        let _infallible = write!(
            page,
            "\n### `{}`\n\n{}\n\n- Value: {}\n- Default: {}\n- Variable: `{}`\n- Flag: {flag}\n",
            setting.key,
            setting.meaning,
            setting.kind.name(),
            setting.default,
            setting.variable,
        );
    }
    page.push_str("\n## Other variables\n\n");
    for (name, meaning) in OTHER_VARIABLES {
        let _infallible = writeln!(page, "- `{name}`: {meaning}");
    }
    page.push_str(
        "- `PINFOLD_ENV_NAME`, with any name: Adds the variable `NAME` to the setting `env`.\n\
         - `NO_COLOR`: Print no colours.\n\n\
         A daemon that the command line starts is given the `PINFOLD_*` variables, but for the API\n\
         key, and these, and no others: ",
    );
    let names: Vec<String> = DAEMON_VARIABLES
        .iter()
        .map(|name| format!("`{name}`"))
        .collect();
    page.push_str(&names.join(", "));
    page.push_str(".\n");
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_variables_belong_together() {
        for setting in SETTINGS {
            let expected = format!("PINFOLD_{}", setting.key.to_ascii_uppercase());
            assert_eq!(setting.variable, expected);
            assert!(is_known_variable(setting.variable));
        }
        assert!(!is_known_variable("PINFOLD_SOKCET"));
    }

    #[test]
    fn values_are_checked_by_kind() {
        for (key, good, bad) in [
            (AUTOSTART, "false", "no"),
            (MEMORY, "256m", "lots"),
            (CPUS, "0.5", "0"),
            (PIDS, "64", "-1"),
            (LIFETIME, "1h", "soon"),
            (ISOLATION, "vm", "box"),
            (COLOR, "never", "blue"),
            (SOCKET, "/run/x", ""),
            (LISTEN, "[::1]:8080", "8080"),
            (HOST, "https://a.example:8443", "a.example:8443"),
            (
                CORS_ORIGINS,
                "https://a.example, http://localhost:3000",
                "https://a.example/",
            ),
            (CORS_ORIGINS, "https://a.example", "*"),
            (LOG, "pinfold_engine=debug", "a=b=c"),
            (MOUNTS_ALLOWED, "own, /srv/data:ro", "own,srv"),
            (MOUNTS_ALLOWED, "none", "own,none"),
            (ENV, "{\"A\": \"1\"}", "{\"A=\": \"1\"}"),
            (ENV, "A: x", "A"),
            (
                DENIED_HOSTS,
                "a.example, *.b.example:443",
                "https://a.example",
            ),
            (DENIED_HOSTS, "none", "a..b"),
            (VOLUME_MODE, "pvc", "nfs"),
            (STREAM_MODE, "sidecar", "pull"),
            (STREAM_ENDPOINT, "http://127.0.0.1:9/x", "collector:9"),
        ] {
            let kind = setting(key).unwrap().kind;
            assert_eq!(kind.check(good), Ok(()), "{key}");
            assert!(kind.check(bad).is_err(), "{key}");
        }
    }
}
