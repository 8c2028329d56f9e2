//! One event as a journal's file holds it: length, checksum, kind, sequence number, time, content.
//!
//! All numbers are little-endian. A file begins with [`HEADER`], whose last byte is the version.

use pinfold_types::{EventKind, ExecEvent, OutputStream};

/// First bytes of every file of a journal.
pub(crate) const HEADER: &[u8; 8] = b"pfjrnl\0\x01";

/// Length and checksum.
const FRAME_BYTES: usize = 8;
/// Kind, sequence number and time.
const HEAD_BYTES: usize = 17;

/// Most bytes of one event's content; the agent's own are far smaller.
pub(crate) const CONTENT_BYTES_MAX: usize = 1 << 20;

const KIND_START: u8 = 1;
const KIND_STDOUT: u8 = 2;
const KIND_STDERR: u8 = 3;
const KIND_EXIT: u8 = 4;
const KIND_DROPPED: u8 = 5;

/// What the bytes at a place of a file are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// An event and the bytes that it takes.
    Event(ExecEvent, usize),
    /// Nothing whole: the end, a torn record or a damaged one.
    Torn,
}

/// Appends an event's record.
pub(crate) fn encode(event: &ExecEvent, to: &mut Vec<u8>) {
    let exit_text;
    let number;
    let (kind, content): (u8, &[u8]) = match &event.kind {
        EventKind::Start { pid } => {
            number = u64::from(pid.cast_unsigned()).to_le_bytes();
            (KIND_START, number.get(..4).unwrap_or_default())
        }
        EventKind::Output { stream, data } => match stream {
            OutputStream::Stdout => (KIND_STDOUT, data),
            OutputStream::Stderr => (KIND_STDERR, data),
        },
        EventKind::Exit(exit) => {
            exit_text = serde_json::to_vec(exit).unwrap_or_else(|_| b"{}".to_vec());
            (KIND_EXIT, &exit_text)
        }
        EventKind::Dropped { first_kept } => {
            number = first_kept.to_le_bytes();
            (KIND_DROPPED, &number)
        }
    };
    let start = to.len();
    let length = u32::try_from(HEAD_BYTES + content.len()).unwrap_or(u32::MAX);
    to.reserve(FRAME_BYTES + HEAD_BYTES + content.len());
    to.extend_from_slice(&length.to_le_bytes());
    to.extend_from_slice(&[0; 4]);
    to.push(kind);
    to.extend_from_slice(&event.seq.to_le_bytes());
    to.extend_from_slice(&event.time_ms.to_le_bytes());
    to.extend_from_slice(content);
    let sum = crc32fast::hash(to.get(start + FRAME_BYTES..).unwrap_or_default());
    if let Some(place) = to.get_mut(start + 4..start + FRAME_BYTES) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
}

/// Reads the record at the start of some bytes.
pub(super) fn decode(bytes: &[u8]) -> Decoded {
    whole(bytes).unwrap_or(Decoded::Torn)
}

fn whole(bytes: &[u8]) -> Option<Decoded> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if !(HEAD_BYTES..=HEAD_BYTES + CONTENT_BYTES_MAX).contains(&length) {
        return None;
    }
    let payload = rest.get(..length)?;
    if crc32fast::hash(payload) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (kind, rest) = payload.split_first()?;
    let (seq, rest) = rest.split_first_chunk::<8>()?;
    let (time_ms, content) = rest.split_first_chunk::<8>()?;
    let seq = u64::from_le_bytes(*seq);
    let kind = kind_of(*kind, content)?;
    // One that drops nothing would make a reader stand still.
    if matches!(kind, EventKind::Dropped { first_kept } if first_kept <= seq) {
        return None;
    }
    let event = ExecEvent {
        seq,
        time_ms: i64::from_le_bytes(*time_ms),
        kind,
    };
    Some(Decoded::Event(event, FRAME_BYTES + length))
}

fn kind_of(kind: u8, content: &[u8]) -> Option<EventKind> {
    let output = |stream| EventKind::Output {
        stream,
        data: content.to_vec(),
    };
    Some(match kind {
        KIND_START => EventKind::Start {
            pid: i32::from_le_bytes(content.try_into().ok()?),
        },
        KIND_STDOUT => output(OutputStream::Stdout),
        KIND_STDERR => output(OutputStream::Stderr),
        KIND_EXIT => EventKind::Exit(serde_json::from_slice(content).ok()?),
        KIND_DROPPED => EventKind::Dropped {
            first_kept: u64::from_le_bytes(content.try_into().ok()?),
        },
        _ => return None,
    })
}

/// Returns the sequence number that follows an event.
pub(crate) fn after(event: &ExecEvent) -> u64 {
    match event.kind {
        EventKind::Dropped { first_kept } => first_kept.max(event.seq),
        EventKind::Start { .. } | EventKind::Output { .. } | EventKind::Exit(_) => {
            event.seq.saturating_add(1)
        }
    }
}

/// Returns roughly how many bytes an event takes in memory.
pub(crate) fn weight(event: &ExecEvent) -> usize {
    std::mem::size_of::<ExecEvent>()
        + match &event.kind {
            EventKind::Output { data, .. } => data.len(),
            EventKind::Start { .. } | EventKind::Exit(_) | EventKind::Dropped { .. } => 0,
        }
}

#[cfg(test)]
mod tests {
    use pinfold_types::ExecExit;

    use super::*;

    #[test]
    fn every_kind_survives_and_every_torn_or_changed_record_is_seen() {
        let kinds = [
            EventKind::Start { pid: -3 },
            EventKind::Output {
                stream: OutputStream::Stdout,
                data: vec![0, 255, 10],
            },
            EventKind::Output {
                stream: OutputStream::Stderr,
                data: Vec::new(),
            },
            EventKind::Exit(ExecExit {
                code: Some(3),
                ..ExecExit::default()
            }),
            EventKind::Dropped { first_kept: 99 },
        ];
        for kind in kinds {
            let event = ExecEvent {
                seq: 7,
                time_ms: -1,
                kind,
            };
            let mut bytes = Vec::new();
            encode(&event, &mut bytes);
            assert_eq!(decode(&bytes), Decoded::Event(event, bytes.len()));
            for cut in 0..bytes.len() {
                assert_eq!(decode(&bytes[..cut]), Decoded::Torn);
                let mut changed = bytes.clone();
                changed[cut] ^= 1;
                assert_eq!(decode(&changed), Decoded::Torn, "byte {cut}");
            }
        }
    }
}
