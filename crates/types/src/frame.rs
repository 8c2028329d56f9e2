//! Binary frames of an attached exec, one per WebSocket message: a kind byte and a payload.
//!
//! Output goes one way, input, size and signals the other. JSON would cost a third more bytes and
//! could not carry bytes as they are.

use crate::exec::{EventKind, ExecEvent, ExecExit, OutputStream, TerminalSize};

/// Largest payload of one frame in bytes; a larger one is refused before it is read.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// From the daemon to a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFrame(pub ExecEvent);

/// From a caller to the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputFrame {
    /// Bytes for standard input.
    Data(Vec<u8>),
    /// Standard input ends.
    End,
    /// The terminal has a new size.
    Resize(TerminalSize),
    /// Send a signal to the process group.
    Signal(i32),
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first byte is not a known kind.
    #[error("unknown frame kind {kind}")]
    Kind {
        /// The byte.
        kind: u8,
    },
    /// The payload is too short, too long or not what the kind wants.
    #[error("malformed frame of kind {kind}")]
    Malformed {
        /// The kind byte, 0 for an empty frame.
        kind: u8,
    },
}

const KIND_START: u8 = 1;
const KIND_STDOUT: u8 = 2;
const KIND_STDERR: u8 = 3;
const KIND_EXIT: u8 = 4;
const KIND_DROPPED: u8 = 5;
const KIND_DATA: u8 = 16;
const KIND_END: u8 = 17;
const KIND_RESIZE: u8 = 18;
const KIND_SIGNAL: u8 = 19;

/// Kind byte, sequence number and time come before every output payload.
const OUTPUT_HEADER_BYTES: usize = 17;

impl OutputFrame {
    /// Writes the frame.
    pub fn encode(&self) -> Vec<u8> {
        let event = &self.0;
        let (kind, payload) = match &event.kind {
            EventKind::Start { pid } => (KIND_START, pid.to_be_bytes().to_vec()),
            EventKind::Output {
                stream: OutputStream::Stdout,
                data,
            } => (KIND_STDOUT, data.clone()),
            EventKind::Output {
                stream: OutputStream::Stderr,
                data,
            } => (KIND_STDERR, data.clone()),
            EventKind::Exit(exit) => (
                KIND_EXIT,
                serde_json::to_vec(exit).unwrap_or_else(|_| b"{}".to_vec()),
            ),
            EventKind::Dropped { first_kept } => (KIND_DROPPED, first_kept.to_be_bytes().to_vec()),
        };
        let mut bytes = Vec::with_capacity(OUTPUT_HEADER_BYTES + payload.len());
        bytes.push(kind);
        bytes.extend_from_slice(&event.seq.to_be_bytes());
        bytes.extend_from_slice(&event.time_ms.to_be_bytes());
        bytes.extend_from_slice(&payload);
        bytes
    }

    /// Reads a frame.
    ///
    /// # Errors
    ///
    /// Returns [`FrameError`] on anything that [`OutputFrame::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let kind = bytes.first().copied().unwrap_or(0);
        let malformed = FrameError::Malformed { kind };
        let (header, payload) = bytes
            .split_at_checked(OUTPUT_HEADER_BYTES)
            .ok_or_else(|| malformed.clone())?;
        if payload.len() > FRAME_BYTES_MAX {
            return Err(malformed);
        }
        let number = |at: usize| -> Option<[u8; 8]> { header.get(at..at + 8)?.try_into().ok() };
        let seq = u64::from_be_bytes(number(1).ok_or_else(|| malformed.clone())?);
        let time_ms = i64::from_be_bytes(number(9).ok_or_else(|| malformed.clone())?);
        let output = |stream| EventKind::Output {
            stream,
            data: payload.to_vec(),
        };
        let kind = match kind {
            KIND_START => EventKind::Start {
                pid: i32::from_be_bytes(payload.try_into().map_err(|_| malformed)?),
            },
            KIND_STDOUT => output(OutputStream::Stdout),
            KIND_STDERR => output(OutputStream::Stderr),
            KIND_EXIT => {
                EventKind::Exit(serde_json::from_slice::<ExecExit>(payload).map_err(|_| malformed)?)
            }
            KIND_DROPPED => EventKind::Dropped {
                first_kept: u64::from_be_bytes(payload.try_into().map_err(|_| malformed)?),
            },
            kind => return Err(FrameError::Kind { kind }),
        };
        Ok(Self(ExecEvent { seq, time_ms, kind }))
    }
}

impl InputFrame {
    /// Writes the frame.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Data(data) => [&[KIND_DATA], data.as_slice()].concat(),
            Self::End => vec![KIND_END],
            Self::Resize(size) => [
                &[KIND_RESIZE][..],
                &size.columns.to_be_bytes(),
                &size.rows.to_be_bytes(),
            ]
            .concat(),
            Self::Signal(signal) => [&[KIND_SIGNAL][..], &signal.to_be_bytes()].concat(),
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    ///
    /// Returns [`FrameError`] on anything that [`InputFrame::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let (kind, payload) = bytes
            .split_first()
            .ok_or(FrameError::Malformed { kind: 0 })?;
        let malformed = || FrameError::Malformed { kind: *kind };
        match (*kind, payload) {
            (KIND_DATA, data) if data.len() <= FRAME_BYTES_MAX => Ok(Self::Data(data.to_vec())),
            (KIND_END, []) => Ok(Self::End),
            (KIND_RESIZE, [c0, c1, r0, r1]) => Ok(Self::Resize(TerminalSize {
                columns: u16::from_be_bytes([*c0, *c1]),
                rows: u16::from_be_bytes([*r0, *r1]),
            })),
            (KIND_SIGNAL, payload) => {
                let number = payload.try_into().map_err(|_| malformed())?;
                Ok(Self::Signal(i32::from_be_bytes(number)))
            }
            (KIND_DATA | KIND_END | KIND_RESIZE, _) => Err(malformed()),
            (kind, _) => Err(FrameError::Kind { kind }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip() {
        let kinds = [
            EventKind::Start { pid: 7 },
            EventKind::Output {
                stream: OutputStream::Stderr,
                data: vec![0, 255],
            },
            EventKind::Exit(ExecExit {
                code: Some(3),
                ..ExecExit::default()
            }),
            EventKind::Dropped { first_kept: 9 },
        ];
        for kind in kinds {
            let frame = OutputFrame(ExecEvent {
                seq: 5,
                time_ms: -1,
                kind,
            });
            assert_eq!(OutputFrame::decode(&frame.encode()), Ok(frame));
        }
        let size = TerminalSize {
            columns: 80,
            rows: 24,
        };
        for frame in [
            InputFrame::Data(vec![1]),
            InputFrame::End,
            InputFrame::Resize(size),
            InputFrame::Signal(2),
        ] {
            assert_eq!(InputFrame::decode(&frame.encode()), Ok(frame));
        }
    }

    #[test]
    fn every_short_input_is_refused_or_read_without_panic() {
        for kind in 0..=255u8 {
            for length in 0..40 {
                let bytes = vec![kind; length];
                let read = (
                    OutputFrame::decode(&bytes).is_ok(),
                    InputFrame::decode(&bytes).is_ok(),
                );
                assert!(!(read.0 && read.1), "kind {kind} means two things");
            }
        }
    }
}
