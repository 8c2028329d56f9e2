//! Execs: one process started through the agent, and the ordered journal of what it did.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{ExecId, SandboxId};
use crate::spec::{ENVIRONMENT_BYTES_MAX, SpecError, check_environment, check_guest_path};

/// What a caller asks to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Added to the sandbox's environment; wins over it.
    pub env: BTreeMap<String, String>,
    /// Directory to start in; the sandbox's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// User to run as; the sandbox's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Size of the terminal; absent is no terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// Keep standard input open for input.
    pub stdin: bool,
    /// Milliseconds until the process tree is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Slow the process to its attached reader instead of dropping what the reader missed.
    pub back_pressure: bool,
}

impl ExecSpec {
    /// Checks everything that can be checked without the sandbox.
    ///
    /// # Errors
    ///
    /// Returns the first thing that is wrong.
    pub fn check(&self) -> Result<(), SpecError> {
        check_environment(&self.env)?;
        let size: usize = self.command.iter().map(|argument| argument.len() + 1).sum();
        if size > ENVIRONMENT_BYTES_MAX {
            return Err(SpecError::TooLarge {
                what: "the command in bytes",
                size,
                limit: ENVIRONMENT_BYTES_MAX,
            });
        }
        let unusable = |reason| SpecError::Path {
            path: self
                .command
                .first()
                .map(|c| c.chars().take(64).collect())
                .unwrap_or_default(),
            reason,
        };
        if self.command.first().is_none_or(String::is_empty) {
            return Err(unusable("the command is empty"));
        }
        if self.command.iter().any(|argument| argument.contains('\0')) {
            return Err(unusable("an argument holds a zero byte"));
        }
        if let Some(workdir) = &self.workdir {
            check_guest_path(workdir).map_err(|reason| SpecError::Path {
                path: workdir.chars().take(256).collect(),
                reason,
            })?;
        }
        Ok(())
    }
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TerminalSize {
    /// Width.
    #[cfg_attr(feature = "openapi", schema(maximum = 65_535))]
    pub columns: u16,
    /// Height.
    #[cfg_attr(feature = "openapi", schema(maximum = 65_535))]
    pub rows: u16,
}

/// Where output came from. A terminal has only standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OutputStream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl OutputStream {
    /// Returns the stream as the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Joins the name of a file and an event from it, as a journal's output holds the two.
pub fn join_event(name: &str, data: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(name.len() + 1 + data.len());
    // No file's name holds a zero byte.
    joined.extend(name.bytes().filter(|byte| *byte != 0));
    joined.push(0);
    joined.extend_from_slice(data);
    joined
}

/// Parts what [`join_event`] joined.
fn split_event(joined: &[u8]) -> (String, &[u8]) {
    let end = joined.iter().position(|byte| *byte == 0);
    let (name, rest) = joined.split_at(end.unwrap_or(0));
    let data = if end.is_some() {
        rest.get(1..).unwrap_or_default()
    } else {
        rest
    };
    (String::from_utf8_lossy(name).into_owned(), data)
}

/// One entry of an exec's journal. Sequence numbers start at 1 and have no gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecEvent {
    /// Position in the journal.
    pub seq: u64,
    /// Milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// What happened.
    pub kind: EventKind,
}

/// What an event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// The process was started.
    Start {
        /// Its id inside the sandbox.
        pid: i32,
    },
    /// It wrote something.
    Output {
        /// Where to.
        stream: OutputStream,
        /// What; any bytes.
        data: Vec<u8>,
    },
    /// It ended; nothing follows.
    Exit(ExecExit),
    /// The events from here up to (not including) `first_kept` are no longer kept.
    Dropped {
        /// The next event's sequence number.
        first_kept: u64,
    },
}

/// How an exec ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ExecExit {
    /// Exit code, when it exited by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Its time-out ended it.
    pub timed_out: bool,
    /// The sandbox's memory limit ended it.
    pub out_of_memory: bool,
    /// The sandbox ended or was lost before the exec did.
    pub lost: bool,
    /// CPU time in user mode, microseconds.
    pub user_time_us: u64,
    /// CPU time in the kernel, microseconds.
    pub system_time_us: u64,
    /// Largest resident size, bytes.
    pub memory_max_bytes: u64,
}

impl ExecExit {
    /// Exit code for a time-out, as `timeout(1)` has it.
    pub const CODE_TIMEOUT: i32 = 124;
    /// Exit code when we, not the program, failed.
    pub const CODE_FAILURE: i32 = 125;
    /// Exit code when the command cannot be executed.
    pub const CODE_NOT_EXECUTABLE: i32 = 126;
    /// Exit code when the command was not found.
    pub const CODE_NOT_FOUND: i32 = 127;

    /// Returns the exit code that a shell would show: the code, `128+n` for a signal, `124` for a
    /// time-out, `125` when it is unknown.
    pub fn shell_code(&self) -> i32 {
        if self.timed_out {
            return Self::CODE_TIMEOUT;
        }
        match (self.code, self.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => Self::CODE_FAILURE,
        }
    }
}

/// A journal event as the API writes it, one JSON object each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventMessage {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// The exec.
    pub exec_id: ExecId,
    /// Position in the journal.
    pub seq: u64,
    /// `start`, `output`, `exit`, `dropped`, or `event` for what a program dropped.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where output came from, `stdout` or `stderr`; of an `event` the file's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Output; text when it is UTF-8, else base64 as `encoding` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// `base64` when `data` is not plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// Exit code as a shell shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// How it ended, in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExecExit>,
    /// First sequence number kept, of a `dropped` event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_kept: Option<u64>,
    /// RFC 3339.
    pub time: String,
}

impl EventMessage {
    /// Writes an event for the API.
    pub fn new(sandbox_id: &SandboxId, exec_id: &ExecId, event: &ExecEvent) -> Self {
        let mut message = Self {
            sandbox_id: sandbox_id.clone(),
            exec_id: exec_id.clone(),
            seq: event.seq,
            kind: String::new(),
            stream: None,
            data: None,
            encoding: None,
            exit_code: None,
            exit: None,
            first_kept: None,
            time: crate::api::format_time_ms(event.time_ms),
        };
        match &event.kind {
            EventKind::Start { .. } => "start".clone_into(&mut message.kind),
            EventKind::Output { stream, data } => {
                let (kind, name, data) = if exec_id.is_events() {
                    let (name, data) = split_event(data);
                    ("event", name, data)
                } else {
                    ("output", stream.as_str().to_owned(), data.as_slice())
                };
                kind.clone_into(&mut message.kind);
                message.stream = Some(name);
                let (text, encoding) = encode_output(data);
                message.data = Some(text);
                message.encoding = encoding;
            }
            EventKind::Exit(exit) => {
                "exit".clone_into(&mut message.kind);
                message.exit_code = Some(exit.shell_code());
                message.exit = Some(exit.clone());
            }
            EventKind::Dropped { first_kept } => {
                "dropped".clone_into(&mut message.kind);
                message.first_kept = Some(*first_kept);
            }
        }
        message
    }
}

/// Writes output for JSON: as text when it is UTF-8, else as base64 with the encoding's name.
pub fn encode_output(data: &[u8]) -> (String, Option<String>) {
    use base64::Engine as _;
    match std::str::from_utf8(data) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (
            base64::engine::general_purpose::STANDARD.encode(data),
            Some("base64".to_owned()),
        ),
    }
}

/// Reads output as [`encode_output`] wrote it; `None` when it is not that.
pub fn decode_output(text: &str, encoding: Option<&str>) -> Option<Vec<u8>> {
    use base64::Engine as _;
    match encoding {
        None => Some(text.as_bytes().to_vec()),
        Some("base64") => base64::engine::general_purpose::STANDARD.decode(text).ok(),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_output_survives_json() {
        let event = ExecEvent {
            seq: 2,
            time_ms: 0,
            kind: EventKind::Output {
                stream: OutputStream::Stdout,
                data: vec![0xff, 0, 1],
            },
        };
        let message = EventMessage::new(&SandboxId::new(), &ExecId::new(), &event);
        assert_eq!(message.encoding.as_deref(), Some("base64"));
        assert_eq!(message.data.as_deref(), Some("/wAB"));
        let (text, encoding) = encode_output(&[0xff, 0, 1]);
        assert_eq!(
            decode_output(&text, encoding.as_deref()),
            Some(vec![0xff, 0, 1])
        );
        assert_eq!(decode_output("a", None), Some(b"a".to_vec()));
        assert_eq!(decode_output("?", Some("base64")), None);
    }

    #[test]
    fn a_dropped_event_shows_its_file_and_its_content() {
        let event = |data| ExecEvent {
            seq: 1,
            time_ms: 0,
            kind: EventKind::Output {
                stream: OutputStream::Stdout,
                data,
            },
        };
        let joined = event(join_event("a\0b.log", b"x\0y"));
        let message = EventMessage::new(&SandboxId::new(), &ExecId::events(), &joined);
        assert_eq!(message.kind, "event");
        assert_eq!(message.stream.as_deref(), Some("ab.log"));
        assert_eq!(message.data.as_deref(), Some("x\0y"));
        // Of an exec the same bytes are output.
        let message = EventMessage::new(&SandboxId::new(), &ExecId::new(), &joined);
        assert_eq!(message.stream.as_deref(), Some("stdout"));
        let torn = event(b"none".to_vec());
        let message = EventMessage::new(&SandboxId::new(), &ExecId::events(), &torn);
        assert_eq!(message.data.as_deref(), Some("none"));
        assert_eq!(ExecId::of_stream("events"), Ok(ExecId::events()));
    }

    #[test]
    fn shell_codes() {
        let exit = |code, signal, timed_out| ExecExit {
            code,
            signal,
            timed_out,
            ..ExecExit::default()
        };
        assert_eq!(exit(Some(3), None, false).shell_code(), 3);
        assert_eq!(exit(None, Some(9), false).shell_code(), 137);
        assert_eq!(exit(None, Some(9), true).shell_code(), 124);
        assert_eq!(exit(None, None, false).shell_code(), 125);
    }

    #[test]
    fn commands_are_checked() {
        let spec = |command: &[&str]| ExecSpec {
            command: command.iter().map(|c| (*c).to_owned()).collect(),
            ..ExecSpec::default()
        };
        assert!(spec(&["true"]).check().is_ok());
        for bad in [&[][..], &[""], &["a\0b"]] {
            assert!(spec(bad).check().is_err());
        }
        assert!(spec(&["echo", &"x".repeat(10 << 20)]).check().is_err());
    }
}
