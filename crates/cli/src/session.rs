//! One program inside with its output, input and signals connected to ours.
//!
//! A daemon that goes away meanwhile is looked for again, and the output goes on after the last
//! event that was seen: without a gap and without a duplicate.

mod explain;
mod input;

use std::time::Duration;

use bytes::Bytes;
use pinfold_client::{ClientError, FrameReceiver, FrameSender};
use pinfold_types::api::{Exec, SignalRequest};
use pinfold_types::frame::InputFrame;
use pinfold_types::{ErrorCode, EventKind, ExecExit};
use tokio::sync::mpsc;

pub(crate) use explain::explain;
pub(crate) use input::standard_input;

use crate::context::{Context, api_error};
use crate::error::CliError;
use crate::output::{Kept, Sink};
use crate::signals::{Heard, INTERRUPT, KILL, PIPE, Signals};
use crate::terminal;

/// How often a lost daemon is looked for before we give up.
const RECONNECT_TRIES: u32 = 20;

/// Longest time between two looks; with the tries it makes about fifteen seconds.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(1);

/// A program that is attached to.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    /// The daemon.
    pub(crate) context: &'a Context,
    /// The program.
    pub(crate) exec: Exec,
    /// Where its output goes.
    pub(crate) sink: Sink,
    /// What it reads, when it reads ours.
    pub(crate) input: Option<mpsc::Receiver<Bytes>>,
    /// Signals to us.
    pub(crate) signals: Signals,
    /// Whether it has a terminal.
    pub(crate) terminal: bool,
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The program ended.
    Exit {
        /// How.
        exit: ExecExit,
        /// The end of its standard error.
        tail: String,
        /// What was kept of its output.
        kept: Kept,
        /// Milliseconds since the Unix epoch.
        time_ms: i64,
    },
    /// A signal asked us to leave; the program may still run.
    Left(i32),
}

/// Why the connection is no longer used.
enum Pumped {
    Exit(ExecExit, i64),
    Left(i32),
    Lost(ClientError),
}

/// What is remembered from one connection to the next.
struct Progress {
    last_seq: u64,
    heard: Heard,
    unsent: Option<InputFrame>,
    lost: u32,
}

impl Session<'_> {
    /// Connects everything until the program ends or we are asked to leave.
    ///
    /// # Errors
    ///
    /// Fails when the daemon is lost for good, or our output cannot be written.
    pub(crate) async fn run(mut self) -> Result<Ended, CliError> {
        let mut progress = Progress {
            last_seq: 0,
            heard: Heard {
                resizes: self.signals.heard().resizes,
                ..Heard::default()
            },
            unsent: None,
            lost: 0,
        };
        loop {
            let pumped = match self.attach(progress.last_seq + 1).await {
                Ok((sender, receiver)) => self.pump(sender, receiver, &mut progress).await?,
                Err(error) => Pumped::Lost(error),
            };
            match pumped {
                Pumped::Exit(exit, time_ms) => {
                    let tail = self.sink.tail();
                    let kept = self.sink.finish().await?;
                    return Ok(Ended::Exit {
                        exit,
                        tail,
                        kept,
                        time_ms,
                    });
                }
                Pumped::Left(signal) => return Ok(Ended::Left(signal)),
                Pumped::Lost(error) => {
                    if let Some(signal) = self.look_again(error, &mut progress).await? {
                        return Ok(Ended::Left(signal));
                    }
                }
            }
        }
    }

    async fn attach(&self, from_seq: u64) -> Result<(FrameSender, FrameReceiver), ClientError> {
        let sandbox = self.exec.sandbox_id.as_str();
        let client = &self.context.client;
        client.attach(sandbox, &self.exec.exec_id, from_seq).await
    }

    /// Waits until the daemon may be there again; a signal ends the waiting.
    async fn look_again(
        &mut self,
        error: ClientError,
        progress: &mut Progress,
    ) -> Result<Option<i32>, CliError> {
        progress.lost += 1;
        if !is_passing(&error) || progress.lost > RECONNECT_TRIES {
            return Err(api_error(error));
        }
        let delay = Duration::from_millis(20 << progress.lost.min(6)).min(RECONNECT_DELAY_MAX);
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            signal = self.signals.asked_to_end() => return Ok(Some(signal)),
        }
        // Whether it worked is seen by attaching.
        match self.context.reconnect().await {
            Err(error) if progress.lost == RECONNECT_TRIES => Err(error),
            _ => Ok(None),
        }
    }

    async fn pump(
        &mut self,
        mut sender: FrameSender,
        mut receiver: FrameReceiver,
        progress: &mut Progress,
    ) -> Result<Pumped, CliError> {
        let Progress {
            last_seq,
            heard,
            unsent,
            lost,
        } = progress;
        let Self {
            context,
            exec,
            sink,
            input,
            signals,
            terminal,
        } = self;
        let control = Control {
            context,
            exec,
            terminal: *terminal,
        };
        // Input has a future of its own: a program that does not read must still be able to write.
        let feed = input::feed(&mut sender, input.as_mut(), unsent);
        tokio::pin!(feed);
        loop {
            let next = async {
                tokio::select! {
                    frame = receiver.next() => frame,
                    () = &mut feed => None,
                }
            };
            let event = match control.during(next, signals, heard).await {
                Err(signal) => return Ok(Pumped::Left(signal)),
                Ok(Some(Ok(event))) => event,
                // Input was refused: the program has closed it or has just ended.
                Ok(Some(Err(error))) if !is_passing(&error) => continue,
                Ok(Some(Err(error))) => return Ok(Pumped::Lost(error)),
                Ok(None) => return Ok(Pumped::Lost(connection_ended())),
            };
            if event.seq <= *last_seq {
                continue;
            }
            *lost = 0;
            *last_seq = event.seq;
            match event.kind {
                EventKind::Start { .. } => {}
                EventKind::Output { stream, data } => {
                    // A reader that does not read must not keep us from hearing signals.
                    let taken = sink.take(stream, data);
                    let taken = match control.during(taken, signals, heard).await {
                        Err(signal) => return Ok(Pumped::Left(signal)),
                        Ok(taken) => taken,
                    };
                    if let Err(error) = taken {
                        control.signal(PIPE, true).await;
                        return Err(error);
                    }
                }
                EventKind::Exit(exit) => return Ok(Pumped::Exit(exit, event.time_ms)),
                EventKind::Dropped { first_kept } => {
                    *last_seq = first_kept.saturating_sub(1).max(*last_seq);
                    context.printer.warn(&format!(
                        "output was left out up to event {first_kept}: its journal was full"
                    ));
                }
            }
        }
    }
}

/// Passes our signals on.
struct Control<'a> {
    context: &'a Context,
    exec: &'a Exec,
    terminal: bool,
}

impl Control<'_> {
    /// Does something, and reacts to signals meanwhile; fails with the one that makes us leave.
    ///
    /// A reaction is never cut short: a program that prints without a pause must still hear it.
    async fn during<T>(
        &self,
        work: impl Future<Output = T>,
        signals: &mut Signals,
        heard: &mut Heard,
    ) -> Result<T, i32> {
        tokio::pin!(work);
        loop {
            let now = tokio::select! {
                done = &mut work => return Ok(done),
                now = signals.beyond(*heard) => now,
            };
            let before = std::mem::replace(heard, now);
            if let Some(signal) = self.react(before, now).await {
                return Err(signal);
            }
        }
    }

    /// Reacts to what was heard; answers the signal that makes us leave.
    async fn react(&self, before: Heard, now: Heard) -> Option<i32> {
        if let Some(signal) = now.ended_by {
            self.signal(signal, false).await;
            return Some(signal);
        }
        if now.interrupts != before.interrupts {
            // The second one means it.
            let signal = if now.interrupts == 1 { INTERRUPT } else { KILL };
            self.signal(signal, signal == KILL).await;
        }
        if self.terminal && now.resizes != before.resizes {
            let (sandbox, client) = (self.exec.sandbox_id.as_str(), &self.context.client);
            let size = terminal::size();
            // A program that has just ended needs no size.
            let _ended = client.exec_resize(sandbox, &self.exec.exec_id, size).await;
        }
        None
    }

    async fn signal(&self, signal: i32, tree: bool) {
        let (sandbox, client) = (self.exec.sandbox_id.as_str(), &self.context.client);
        let request = SignalRequest { signal, tree };
        // A program that has just ended needs no signal.
        let _ended = client
            .exec_signal(sandbox, &self.exec.exec_id, request)
            .await;
    }
}

/// Returns whether the daemon may be back in a moment.
fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Api(detail) => detail.code == ErrorCode::Unavailable,
        ClientError::NoDaemon { .. }
        | ClientError::Socket { .. }
        | ClientError::Unreachable { .. }
        | ClientError::TimedOut { .. }
        | ClientError::Transport { .. } => true,
        _ => false,
    }
}

fn connection_ended() -> ClientError {
    ClientError::Transport {
        source: "the daemon closed the connection".into(),
    }
}
