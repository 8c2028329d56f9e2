//! Signals to this process while a program runs inside.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::CliError;

/// Number of SIGHUP.
pub(crate) const HANGUP: i32 = 1;
/// Number of SIGINT.
pub(crate) const INTERRUPT: i32 = 2;
/// Number of SIGKILL.
pub(crate) const KILL: i32 = 9;
/// Number of SIGPIPE.
pub(crate) const PIPE: i32 = 13;
/// Number of SIGTERM.
pub(crate) const TERMINATE: i32 = 15;

/// What was heard so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// How many SIGINT.
    pub(crate) interrupts: u32,
    /// The signal that asked us to end.
    pub(crate) ended_by: Option<i32>,
    /// How many changes of the terminal's size.
    pub(crate) resizes: u32,
}

/// Hears signals from its making on; they do not end the process any more.
#[derive(Debug, Clone)]
pub(crate) struct Signals {
    heard: watch::Receiver<Heard>,
}

impl Signals {
    /// Starts to hear.
    ///
    /// # Errors
    ///
    /// Fails when the kernel refuses.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let hear = |kind| {
            signal(kind).map_err(|error| CliError::new("failed to hear signals").caused_by(&error))
        };
        let mut interrupt = hear(SignalKind::interrupt())?;
        let mut terminate = hear(SignalKind::terminate())?;
        let mut hangup = hear(SignalKind::hangup())?;
        let mut resized = hear(SignalKind::window_change())?;
        let (sender, heard) = watch::channel(Heard::default());
        tokio::spawn(async move {
            loop {
                let note: fn(&mut Heard) = tokio::select! {
                    _ = interrupt.recv() => |heard| heard.interrupts += 1,
                    _ = terminate.recv() => |heard| heard.ended_by = Some(TERMINATE),
                    _ = hangup.recv() => |heard| heard.ended_by = Some(HANGUP),
                    _ = resized.recv() => |heard| heard.resizes += 1,
                    () = sender.closed() => break,
                };
                sender.send_modify(note);
            }
        });
        Ok(Self { heard })
    }

    /// Returns what was heard so far.
    pub(crate) fn heard(&self) -> Heard {
        *self.heard.borrow()
    }

    /// Waits until something that differs from `known` was heard. Cancel-safe.
    pub(crate) async fn beyond(&mut self, known: Heard) -> Heard {
        match self.heard.wait_for(|heard| *heard != known).await {
            Ok(heard) => *heard,
            // The hearing task lives as long as anybody listens.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until we were asked to end, or interrupted. Cancel-safe.
    pub(crate) async fn asked_to_end(&mut self) -> i32 {
        let wanted = |heard: &Heard| heard.ended_by.is_some() || heard.interrupts > 0;
        match self.heard.wait_for(wanted).await {
            Ok(heard) => heard.ended_by.unwrap_or(INTERRUPT),
            Err(_) => std::future::pending().await,
        }
    }
}

/// Returns the name of a signal that ends programs.
pub(crate) fn name(signal: i32) -> Option<&'static str> {
    let names = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (5, "SIGTRAP"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (13, "SIGPIPE"),
        (14, "SIGALRM"),
        (15, "SIGTERM"),
        (24, "SIGXCPU"),
        (25, "SIGXFSZ"),
        (31, "SIGSYS"),
    ];
    names
        .into_iter()
        .find(|(number, _)| *number == signal)
        .map(|(_, name)| name)
}
