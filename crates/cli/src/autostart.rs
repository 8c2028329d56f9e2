//! Finds the daemon, and starts one when none answers.
//!
//! Everything here blocks and is bounded; it is done before anything else.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::allocator;
use crate::config::Config;
use crate::daemon::LastWords;
use crate::environment;
use crate::error::CliError;

/// Longest path that a Unix socket's address holds, with its final zero byte taken off.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Most bytes that a starting daemon may say.
const READY_BYTES_MAX: usize = 16 << 10;

/// What a daemon writes to its standard output when it serves requests.
pub(crate) const READY: &str = "ready\n";

/// Time between two looks at a lock that another caller holds.
const LOCK_LOOK: Duration = Duration::from_millis(10);

/// Sees to it that a daemon accepts connections at the socket.
///
/// # Errors
///
/// Fails when the socket belongs to somebody else, or no daemon answers and none may or can be
/// started.
pub(crate) fn ensure(config: &Config) -> Result<(), CliError> {
    let socket = config.socket();
    check_socket(&socket)?;
    let Err(error) = UnixStream::connect(&socket) else {
        return Ok(());
    };
    if !is_absent(&error) {
        return Err(CliError::new(format!(
            "failed to reach the daemon at {}",
            socket.display()
        ))
        .caused_by(&error)
        .maybe_hint(access_hint(&error)));
    }
    if !config.autostart() {
        return Err(not_running(&socket));
    }
    start(config, &socket)
}

/// Tells that no daemon answers and none may be started.
fn not_running(socket: &Path) -> CliError {
    CliError::new(format!("no daemon answers at {}", socket.display()))
        .hint("start it with `pinfold serve`, or leave out --no-start")
}

/// Returns whether a daemon accepts connections.
///
/// # Errors
///
/// Fails when the socket belongs to somebody else.
pub(crate) fn answers(config: &Config) -> Result<bool, CliError> {
    let socket = config.socket();
    check_socket(&socket)?;
    Ok(UnixStream::connect(&socket).is_ok())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn access_hint(error: &io::Error) -> Option<String> {
    (error.kind() == io::ErrorKind::PermissionDenied).then(|| {
        "join the group that owns the socket, or use a daemon of your own by leaving out --socket"
            .to_owned()
    })
}

/// Refuses a socket that another user could have put there: they would read everything we send.
pub(crate) fn check_socket(socket: &Path) -> Result<(), CliError> {
    if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(CliError::new(format!(
            "the socket's path {} is longer than {SOCKET_PATH_BYTES_MAX} bytes",
            socket.display()
        ))
        .hint("name a shorter one with --socket or PINFOLD_SOCKET"));
    }
    let Ok(metadata) = std::fs::symlink_metadata(socket) else {
        return Ok(());
    };
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user && metadata.uid() != 0 {
        return Err(CliError::new(format!(
            "the socket {} belongs to user {}, not to you or root",
            socket.display(),
            metadata.uid()
        ))
        .hint("name another socket with --socket or PINFOLD_SOCKET"));
    }
    Ok(())
}

/// Makes a directory that only its owner may enter, and those above it.
pub(crate) fn make_private(directory: &Path) -> Result<(), CliError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| {
            CliError::new(format!(
                "failed to make the directory {}",
                directory.display()
            ))
            .caused_by(&error)
            .hint("name another state directory with --state-dir or PINFOLD_STATE_DIR")
        })
}

/// Starts a daemon. Of many callers at once one does, and the others find it answering.
fn start(config: &Config, socket: &Path) -> Result<(), CliError> {
    let state = config.state_dir();
    let deadline = Instant::now() + config.start_timeout();
    make_private(&state)?;
    let _lock = lock(&state.join("start.lock"), deadline)?;
    if UnixStream::connect(socket).is_ok() {
        return Ok(());
    }
    let log_path = state.join("daemon.log");
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log_path)
        .map_err(|error| {
            CliError::new(format!(
                "failed to open the daemon's log {}",
                log_path.display()
            ))
            .caused_by(&error)
        })?;
    let failed = || {
        CliError::new("failed to start the daemon").hint(format!(
            "run `pinfold serve` to see it fail, or read {}",
            log_path.display()
        ))
    };
    let said = spawn(config, log, deadline).map_err(|error| failed().caused_by(&error))?;
    if said == READY {
        return Ok(());
    }
    Err(match LastWords::decode(&said) {
        Some(words) => words.behind(failed()),
        None => failed().caused_by(&CliError::new("it ended, or did not answer in time")),
    })
}

/// Takes the lock, or gives up at the deadline.
fn lock(path: &Path, deadline: Instant) -> Result<File, CliError> {
    let failed = || CliError::new(format!("failed to lock {}", path.display()));
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| failed().caused_by(&error))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::Error(error)) => return Err(failed().caused_by(&error)),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(failed().caused_by(&CliError::new(
                    "another caller is starting the daemon and does not get done",
                )));
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                let _interrupted = poll(&mut [], Some(&timespec(LOCK_LOOK)));
            }
        }
    }
}

/// Starts the daemon and returns what it says before it closes its standard output.
fn spawn(config: &Config, log: File, deadline: Instant) -> io::Result<String> {
    pinfold_linux::descriptors::close_on_exec_from(3)?;
    let kept = std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_some_and(|name| {
            environment::DAEMON_VARIABLES.contains(&name)
                || (environment::is_known_variable(name) && name != environment::API_KEY_VARIABLE)
        })
    });
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    let mut child = Command::new(program.unwrap_or_else(|| "/proc/self/exe".into()))
        .args(["serve", "--detached", "--state-dir"])
        .arg(config.state_dir())
        .arg("--socket")
        .arg(config.socket())
        .env_clear()
        .envs(kept)
        .env(allocator::VARIABLE, allocator::VALUE)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    let Some(mut output) = child.stdout.take() else {
        return Ok(String::new());
    };
    let mut said = Vec::new();
    let mut chunk = [0u8; 4096];
    let end = u8::try_from(LastWords::END).unwrap_or(0);
    while said.len() < READY_BYTES_MAX && said != READY.as_bytes() && !said.ends_with(&[end]) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let mut waited = [PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN)];
        match poll(&mut waited, Some(&timespec(left))) {
            Ok(0) => break,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let count = output.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        said.extend(chunk.iter().take(count));
    }
    if said != READY.as_bytes() {
        // It is ours and did not get ready: leave nothing behind.
        let _may_be_gone = child.kill();
        let _reaped = child.wait();
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_no_address_holds_is_refused() {
        let error = check_socket(Path::new(&format!("/{}", "x".repeat(120)))).unwrap_err();
        assert!(error.hint_text().is_some());
        assert!(check_socket(Path::new("/run/there/is/none")).is_ok());
    }

    #[test]
    fn one_caller_holds_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let soon = || Instant::now() + Duration::from_millis(20);
        let held = lock(&path, soon()).unwrap();
        assert!(lock(&path, soon()).is_err());
        drop(held);
        assert!(lock(&path, soon()).is_ok());
    }
}
