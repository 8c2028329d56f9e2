//! Starts an exec.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pinfold_linux::spawn::{self, Credentials, Directory, Limit, Spawn, Streams};
use pinfold_linux::{capability, pty};
use pinfold_types::crash_point;
use pinfold_types::exec::OutputStream;
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use tokio::io::Interest;
use tokio::sync::{oneshot, watch};

use super::error::StartError;
use super::exec::{Exec, Input};
use super::streams::{End, Output};
use super::supervise::supervise;
use super::{ENDED_MAX, StartRequest, Table};
use crate::journal::{EventKind, Journal};
use crate::processes;
use crate::users::{self, UserError};

/// Where programs are looked for when the exec has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much sooner than the agent an exec is ended when memory is short.
const OOM_SCORE_ADJUSTMENT: i16 = 500;
/// Longest id and tag.
const ID_BYTES_MAX: usize = 128;
/// How much of the arguments is kept for lists.
const KEPT_ARGUMENTS_BYTES: usize = 1 << 10;
/// Most directories of a `PATH` that are searched.
const PATH_ENTRIES_MAX: usize = 256;
/// Longest time-out; beyond it a clock would overflow.
const TIMEOUT_MAX: Duration = Duration::from_hours(24 * 365);

/// The ends of an exec's streams.
struct Ends {
    /// What the process gets.
    theirs: Theirs,
    terminal: Option<Arc<End>>,
    input: Option<Input>,
    outputs: Vec<Output>,
}

enum Theirs {
    Terminal(OwnedFd),
    Separate(Option<OwnedFd>, OwnedFd, OwnedFd),
}

impl Table {
    /// Starts an exec and returns its process id inside. A known id is answered, not started again.
    ///
    /// # Errors
    /// Fails when the process does not run in the end; nothing is left of it then.
    pub fn start(&self, request: StartRequest) -> Result<i32, StartError> {
        check(&request)?;
        let serial = {
            let mut entries = self.entries();
            if let Some(exec) = entries.execs.get(&request.id) {
                return Ok(exec.pid());
            }
            if entries.running() >= self.running_max {
                return Err(StartError::running());
            }
            if entries.ended() >= ENDED_MAX {
                return Err(StartError::ended());
            }
            entries.serial = entries.serial.wrapping_add(1);
            entries.serial
        };
        let mark = processes::mark(std::process::id(), serial);
        let credentials = self.credentials(&request.user)?;
        let owner = credentials.as_ref().map_or_else(own_user, |ids| ids.user);
        let ends = Self::ends(&request, owner).map_err(StartError::Streams)?;
        let before = self.usage.out_of_memory_kills();
        let pid = self.spawn(&request, mark, credentials.as_ref(), &ends.theirs)?;
        crash_point!("agent.exec_spawned");
        self.enter(request, (pid, mark, before), ends);
        crash_point!("agent.exec_entered");
        Ok(pid)
    }

    fn credentials(&self, user: &str) -> Result<Option<Credentials>, StartError> {
        if self.plain && user.is_empty() {
            return Ok(None);
        }
        let failed = |error: UserError| StartError::User(crate::shorten(user), error);
        let credentials = users::resolve(&self.root, user).map_err(failed)?;
        // A plain agent of an ordinary user can only be that user.
        let itself = self.plain && credentials.user == own_user();
        Ok((!itself).then_some(credentials))
    }

    fn ends(request: &StartRequest, owner: u32) -> io::Result<Ends> {
        if let Some(size) = request.terminal {
            let terminal = pty::open(size.columns, size.rows, owner)?;
            let end = Arc::new(End::new(
                terminal.ours,
                Interest::READABLE | Interest::WRITABLE,
            )?);
            return Ok(Ends {
                theirs: Theirs::Terminal(terminal.theirs),
                input: Some(Input {
                    end: Arc::clone(&end),
                    terminal: true,
                    at_line_start: true,
                }),
                outputs: vec![Output::new(Arc::clone(&end), OutputStream::Stdout)],
                terminal: Some(end),
            });
        }
        let output = |stream| {
            let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            let end = Arc::new(End::new(ours, Interest::READABLE)?);
            Ok::<_, io::Error>((Output::new(end, stream), theirs))
        };
        let (stdout, their_stdout) = output(OutputStream::Stdout)?;
        let (stderr, their_stderr) = output(OutputStream::Stderr)?;
        let (input, their_input) = if request.input {
            let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            let input = Input {
                end: Arc::new(End::new(ours, Interest::WRITABLE)?),
                terminal: false,
                at_line_start: true,
            };
            (Some(input), Some(theirs))
        } else {
            (None, None)
        };
        Ok(Ends {
            theirs: Theirs::Separate(their_input, their_stdout, their_stderr),
            terminal: None,
            input,
            outputs: vec![stdout, stderr],
        })
    }

    fn spawn(
        &self,
        request: &StartRequest,
        mark: u64,
        credentials: Option<&Credentials>,
        theirs: &Theirs,
    ) -> Result<i32, StartError> {
        let command = request.arguments.first().map_or("", String::as_str);
        let directory = match request.directory.as_str() {
            "" => "/",
            directory => directory,
        };
        let failed = |source| StartError::Directory {
            path: crate::shorten(directory),
            source,
        };
        let arguments = strings(&request.arguments)?;
        let path = string(directory)?;
        let handle = if self.plain {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            Some(self.root.resolve(directory, flags).map_err(failed)?)
        } else {
            None
        };
        let variables: Vec<String> = request
            .environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        spawn::spawn(&Spawn {
            candidates: &candidates(command, &request.environment)?,
            arguments: &arguments,
            environment: &strings(&variables)?,
            directory: match &handle {
                Some(handle) => Directory::Open(handle.as_fd()),
                None => Directory::Path(&path),
            },
            credentials,
            streams: match theirs {
                Theirs::Terminal(terminal) => Streams::Terminal(terminal.as_fd()),
                Theirs::Separate(input, output, error) => Streams::Separate([
                    input.as_ref().unwrap_or(&self.null).as_fd(),
                    output.as_fd(),
                    error.as_fd(),
                ]),
            },
            limits: &self.limits(request, mark)?,
            oom_score_adjustment: Some(OOM_SCORE_ADJUSTMENT),
            capabilities: (!self.plain).then(|| capability::exec_set().bits()),
        })
        .map_err(|error| {
            let user = credentials.map_or_else(own_user, |ids| ids.user);
            StartError::of(error, command, directory, user)
        })
    }

    fn limits(&self, request: &StartRequest, mark: u64) -> Result<Vec<Limit>, StartError> {
        let known = |name: &str| spawn::resource_by_name(name).filter(|_| name != "rttime");
        let (soft, hard) = self.open_files;
        let mut limits = vec![
            Limit {
                resource: libc::RLIMIT_NOFILE,
                soft,
                hard,
            },
            Limit {
                resource: libc::RLIMIT_RTTIME,
                soft: mark,
                hard: mark,
            },
        ];
        for (name, soft, hard) in &request.limits {
            let resource = known(name).ok_or_else(|| {
                StartError::Invalid(format!("there is no limit `{}`", crate::shorten(name)))
            })?;
            limits.push(Limit {
                resource,
                soft: *soft,
                hard: *hard,
            });
        }
        Ok(limits)
    }

    fn enter(&self, request: StartRequest, (pid, mark, before): (i32, u64, u64), ends: Ends) {
        let (told, reaped) = oneshot::channel();
        let exec = Arc::new(Exec {
            arguments: keep(&request.arguments),
            id: request.id,
            tag: request.tag,
            pid,
            mark,
            has_terminal: ends.terminal.is_some(),
            terminal: Mutex::new(ends.terminal),
            has_input: ends.input.is_some(),
            input: tokio::sync::Mutex::new(ends.input),
            journal: Journal::new(Arc::clone(&self.budget)),
            alive: AtomicBool::new(true),
            ended: watch::Sender::new(false),
            reaped: Mutex::new(Some(told)),
            out_of_memory_before: before,
        });
        exec.journal.append(EventKind::Started(pid));
        let mut entries = self.entries();
        entries.execs.insert(exec.id.clone(), Arc::clone(&exec));
        entries.by_pid.insert(pid, Arc::clone(&exec));
        drop(entries);
        let timeout = (request.timeout_ms > 0)
            .then(|| Duration::from_millis(request.timeout_ms).min(TIMEOUT_MAX));
        let usage = Arc::clone(&self.usage);
        tokio::spawn(supervise(exec, ends.outputs, reaped, (timeout, usage)));
    }
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn check(request: &StartRequest) -> Result<(), StartError> {
    let invalid = |reason: &str| Err(StartError::Invalid(reason.to_owned()));
    if request.id.is_empty() || request.id.len() > ID_BYTES_MAX || request.tag.len() > ID_BYTES_MAX
    {
        return invalid("an exec's id has 1 to 128 bytes, and its tag at most 128");
    }
    if request.arguments.first().is_none_or(String::is_empty) {
        return invalid("the command is empty");
    }
    if !request.directory.is_empty() && !request.directory.starts_with('/') {
        return invalid("the working directory is not an absolute path");
    }
    let bad_name = |name: &String| name.is_empty() || name.contains('=');
    if request.environment.iter().any(|(name, _)| bad_name(name)) {
        return invalid("a variable's name is empty or holds `=`");
    }
    if request
        .terminal
        .is_some_and(|size| size.columns == 0 || size.rows == 0)
    {
        return invalid("a terminal has at least one column and one row");
    }
    Ok(())
}

fn string(text: &str) -> Result<CString, StartError> {
    CString::new(text).map_err(|_| {
        StartError::Invalid("an argument, variable or path holds a zero byte".to_owned())
    })
}

fn strings(list: &[String]) -> Result<Vec<CString>, StartError> {
    list.iter().map(|text| string(text)).collect()
}

/// Lists where a command may be, as execvp(3) looks for it, with the exec's own `PATH`.
fn candidates(command: &str, environment: &[(String, String)]) -> Result<Vec<CString>, StartError> {
    if command.contains('/') {
        return Ok(vec![string(command)?]);
    }
    let path = environment
        .iter()
        .rev()
        .find_map(|(name, value)| (name == "PATH").then_some(value.as_str()))
        .unwrap_or(DEFAULT_PATH);
    path.split(':')
        .take(PATH_ENTRIES_MAX)
        .map(|directory| match directory {
            "" => string(&format!("./{command}")),
            directory => string(&format!("{directory}/{command}")),
        })
        .collect()
}

fn keep(arguments: &[String]) -> Vec<String> {
    let mut left = KEPT_ARGUMENTS_BYTES;
    let mut kept = Vec::new();
    for argument in arguments {
        let cost = argument.len().saturating_add(size_of::<String>());
        if cost > left {
            let end = argument.floor_char_boundary(left.min(argument.len()));
            kept.push(format!("{}…", argument.get(..end).unwrap_or_default()));
            break;
        }
        left -= cost;
        kept.push(argument.clone());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_looked_for_in_the_execs_own_path() {
        let environment = |path: &str| vec![("PATH".to_owned(), path.to_owned())];
        let found = |command, environment: &[_]| {
            candidates(command, environment)
                .unwrap()
                .iter()
                .map(|path| path.to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            found("ls", &environment("/a::/b")),
            ["/a/ls", "./ls", "/b/ls"]
        );
        assert_eq!(found("./ls", &environment("/a")), ["./ls"]);
        assert_eq!(found("ls", &[]).len(), 6);
    }

    #[test]
    fn long_arguments_are_cut_for_lists() {
        let kept = keep(&["a".to_owned(), "ü".repeat(10_000), "b".to_owned()]);
        assert_eq!(kept.len(), 2);
        let last = kept.last().unwrap();
        assert!(last.len() <= KEPT_ARGUMENTS_BYTES + 3 && last.ends_with('…'));
    }
}
