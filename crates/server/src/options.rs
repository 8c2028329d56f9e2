//! What a server is started with.

use std::path::PathBuf;
use std::time::Duration;

use crate::audit::AuditLog;

/// Default for [`ServerOptions::drain_max`]: requests take milliseconds, and whoever stops the
/// daemon by hand should not wait long for a stream that nobody reads.
const DRAIN_MAX_DEFAULT: Duration = Duration::from_secs(5);

/// Default for [`ServerOptions::connections_max`]: a quarter of the descriptors that a process may
/// usually have without asking.
const CONNECTIONS_MAX_DEFAULT: usize = 1024;

/// Default for [`ServerOptions::connections_per_user_max`]: so that one user's connections leave
/// room for three others'.
const CONNECTIONS_PER_USER_MAX_DEFAULT: usize = 256;

/// Default for [`ServerOptions::tcp_connections_max`]: ten thousand idle ones and room for work. An
/// idle one costs a descriptor and some KiB.
const TCP_CONNECTIONS_MAX_DEFAULT: usize = 16_384;

/// Default for [`ServerOptions::tcp_connections_per_address_max`]: three quarters, since an address
/// may be a proxy with thousands of callers, and yet must leave room for others.
const TCP_CONNECTIONS_PER_ADDRESS_MAX_DEFAULT: usize = 12_288;

/// Default for [`ServerOptions::header_read_max`]: also how long an idle connection is kept.
const HEADER_READ_MAX_DEFAULT: Duration = Duration::from_secs(10);

/// Default for [`ServerOptions::body_read_max`]: a few MiB over a socket of the same machine.
const BODY_READ_MAX_DEFAULT: Duration = Duration::from_secs(30);

/// Default for [`ServerOptions::heartbeat`]: shorter than the minute after which what stands in
/// between closes a silent stream.
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(15);

/// Default for [`ServerOptions::silence_max`]: a reader whose own output is stopped, in a pager for
/// instance, answers no ping; one that is silent for longer is taken for gone.
const SILENCE_MAX_DEFAULT: Duration = Duration::from_mins(10);

/// What a server is started with, and its limits.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The state directory, as `GET /v1/version` tells it.
    pub state_dir: PathBuf,
    /// Uid of the daemon. Root's serves every user whom the socket lets in and takes only root for
    /// an admin; a user's serves that user, as admin of what it made, and nobody else.
    pub own_uid: u32,
    /// Main group of the daemon.
    pub own_gid: u32,
    /// Where it is written who changed what; nowhere when absent.
    pub audit: Option<AuditLog>,
    /// Origins whose web pages may ask at the port; none by default.
    pub cors_origins: Vec<String>,
    /// Whether programs of this machine may read `GET /metrics` at the port without a key.
    pub metrics_open: bool,
    /// Most connections of the port at once; further ones wait to be accepted. The Unix socket has
    /// places of its own.
    pub tcp_connections_max: usize,
    /// Most connections of the port at once of one address; further ones are closed at once.
    pub tcp_connections_per_address_max: usize,
    /// Longest time that running requests get when the server ends.
    pub drain_max: Duration,
    /// Most connections at once; further ones wait to be accepted.
    pub connections_max: usize,
    /// Most connections at once of one user; requests on further ones are refused.
    pub connections_per_user_max: usize,
    /// Longest time until a request's head has arrived.
    pub header_read_max: Duration,
    /// Longest time until a request's JSON has arrived.
    pub body_read_max: Duration,
    /// Time between the signs of life on a stream that is silent: pings, or comments.
    pub heartbeat: Duration,
    /// Longest time that the other end of a WebSocket may leave pings unanswered.
    pub silence_max: Duration,
    /// Whether an exec is asynchronous that does not say.
    pub async_default: bool,
}

impl ServerOptions {
    /// Returns the defaults for a state directory, served by this process's user.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            own_uid: rustix::process::geteuid().as_raw(),
            own_gid: rustix::process::getegid().as_raw(),
            audit: None,
            cors_origins: Vec::new(),
            metrics_open: false,
            tcp_connections_max: TCP_CONNECTIONS_MAX_DEFAULT,
            tcp_connections_per_address_max: TCP_CONNECTIONS_PER_ADDRESS_MAX_DEFAULT,
            drain_max: DRAIN_MAX_DEFAULT,
            connections_max: CONNECTIONS_MAX_DEFAULT,
            connections_per_user_max: CONNECTIONS_PER_USER_MAX_DEFAULT,
            header_read_max: HEADER_READ_MAX_DEFAULT,
            body_read_max: BODY_READ_MAX_DEFAULT,
            heartbeat: HEARTBEAT_DEFAULT,
            silence_max: SILENCE_MAX_DEFAULT,
            async_default: false,
        }
    }
}
