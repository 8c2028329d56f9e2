//! One exec.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use pinfold_linux::init::{self, Reaped};
use pinfold_linux::pty;
use tokio::sync::{oneshot, watch};

use super::error::ExecError;
use super::streams::End;
use crate::journal::Journal;
use crate::processes;

/// Most bytes of one input.
pub const INPUT_BYTES_MAX: usize = 1 << 20;
/// Highest number of a signal.
const SIGNAL_MAX: i32 = 64;

/// One process that was started, and everything that belongs to it.
#[derive(Debug)]
pub struct Exec {
    pub(super) id: String,
    pub(super) tag: String,
    pub(super) arguments: Vec<String>,
    pub(super) pid: i32,
    pub(super) mark: u64,
    pub(super) has_terminal: bool,
    /// Our end of its terminal; closed when it has ended, which hangs up on who still uses it.
    pub(super) terminal: Mutex<Option<Arc<End>>>,
    pub(super) input: tokio::sync::Mutex<Option<Input>>,
    pub(super) has_input: bool,
    pub(super) journal: Journal,
    /// Whether its process was not reaped yet.
    pub(super) alive: AtomicBool,
    /// Becomes true with the exit event.
    pub(super) ended: watch::Sender<bool>,
    pub(super) reaped: Mutex<Option<oneshot::Sender<Reaped>>>,
    pub(super) out_of_memory_before: u64,
}

/// Where input goes.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) end: Arc<End>,
    pub(super) terminal: bool,
    /// Whether what was last written ended a line, which decides what ends a terminal's input.
    pub(super) at_line_start: bool,
}

impl Exec {
    /// Returns the id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the label.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Returns the arguments, cut where they are long.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Returns the process id inside.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns its journal.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Returns whether there is no exit event yet.
    pub fn is_running(&self) -> bool {
        !*self.ended.borrow()
    }

    pub(super) fn ended_with(&self, reaped: Reaped) {
        self.alive.store(false, Ordering::Relaxed);
        let waiting = self
            .reaped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waiting) = waiting {
            // Its supervisor lives until it has been told.
            let _gone = waiting.send(reaped).is_err();
        }
    }

    fn terminal(&self) -> Option<Arc<End>> {
        let place = self.terminal.lock().unwrap_or_else(PoisonError::into_inner);
        place.as_ref().map(Arc::clone)
    }

    pub(super) fn hang_up(&self) {
        *self.terminal.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// Writes to standard input and answers when all of it was taken; with `end`, closes it.
    ///
    /// Inputs are written one after the other. A call that is given up may have written a part.
    ///
    /// # Errors
    /// Fails when there is no standard input or the process has closed it or ended.
    pub async fn input(&self, data: Bytes, end: bool) -> Result<(), ExecError> {
        if !self.has_input {
            return Err(ExecError::NoInput);
        }
        if data.len() > INPUT_BYTES_MAX {
            return Err(ExecError::InputTooLong);
        }
        let mut ended = self.ended.subscribe();
        let write = async {
            let mut place = self.input.lock().await;
            let input = place.as_mut().ok_or(ExecError::InputClosed)?;
            let written = input.write(&data, end).await;
            if written.is_err() || (end && !input.terminal) {
                *place = None;
            }
            written.map_err(|error| match error.raw_os_error() {
                Some(libc::EPIPE | libc::EIO) => ExecError::InputClosed,
                _ => ExecError::Kernel("write to standard input", error),
            })
        };
        tokio::select! {
            biased;
            written = write => written,
            _ = ended.wait_for(|ended| *ended) => Err(ExecError::Ended),
        }
    }

    /// Tells the terminal its size.
    ///
    /// # Errors
    /// Fails when there is no terminal or the size is none.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<(), ExecError> {
        if !self.has_terminal {
            return Err(ExecError::NoTerminal);
        }
        if columns == 0 || rows == 0 {
            return Err(ExecError::NoSize);
        }
        let terminal = self.terminal().ok_or(ExecError::Ended)?;
        pty::resize(terminal.as_fd(), columns, rows)
            .map_err(|error| ExecError::Kernel("resize the terminal", error))
    }

    /// Signals the exec's process group; on a terminal the group in its foreground, too.
    ///
    /// # Errors
    /// Fails when the process has ended or there is no such signal.
    pub fn signal(&self, signal: i32) -> Result<(), ExecError> {
        check_signal(signal)?;
        if !self.is_alive() {
            return Err(ExecError::Ended);
        }
        let pid = self.pid();
        let foreground = self
            .terminal()
            .and_then(|terminal| pty::foreground_group(terminal.as_fd()).ok())
            .filter(|group| *group > 1 && *group != pid);
        // What a terminal's keys send goes to the foreground alone, as from the keyboard.
        let by_key = matches!(signal, libc::SIGINT | libc::SIGQUIT | libc::SIGTSTP);
        let sent = match foreground {
            Some(group) if by_key => init::signal_group(group, signal),
            Some(group) => {
                // The group may just have ended; the exec itself is who was asked for.
                drop(init::signal_group(group, signal));
                init::signal_group(pid, signal)
            }
            None => init::signal_group(pid, signal),
        };
        sent.map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => ExecError::Ended,
            _ => ExecError::Kernel("signal the exec", error),
        })
    }

    /// Signals every process that descends from the exec once, and returns how many that were.
    ///
    /// # Errors
    /// Fails when there is no such signal.
    pub fn signal_tree(&self, signal: i32) -> Result<usize, ExecError> {
        check_signal(signal)?;
        let members = processes::tree(self.pid(), self.is_alive(), self.mark);
        for member in &members {
            let same =
                || processes::look(member.pid).is_some_and(|process| process.start == member.start);
            // Who has ended meanwhile needs no signal.
            drop(init::signal_if(member.pid, signal, same));
        }
        Ok(members.len())
    }
}

fn check_signal(signal: i32) -> Result<(), ExecError> {
    if (1..=SIGNAL_MAX).contains(&signal) {
        Ok(())
    } else {
        Err(ExecError::NoSignal(signal))
    }
}

impl Input {
    async fn write(&mut self, data: &[u8], end: bool) -> io::Result<()> {
        self.end.write(data).await?;
        if let Some(last) = data.last() {
            self.at_line_start = *last == b'\n' || *last == b'\r';
        }
        if end && self.terminal {
            let character = pty::end_of_file(self.end.as_fd());
            // The first one only ends a line that was begun.
            let count = if self.at_line_start { 1 } else { 2 };
            self.end.write(&vec![character; count]).await?;
            self.at_line_start = true;
        }
        Ok(())
    }
}
