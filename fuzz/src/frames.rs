//! Frames of an attached exec, both ways, and the JSON of the same events.

use pinfold_types::exec::{EventMessage, decode_output};
use pinfold_types::frame::{FRAME_BYTES_MAX, InputFrame, OutputFrame};
use pinfold_types::{EventKind, ExecEvent, ExecId, SandboxId};

/// What is read is written again, byte for byte, and no frame means two things.
pub fn run(data: &[u8]) {
    let output = OutputFrame::decode(data);
    let input = InputFrame::decode(data);
    assert!(output.is_err() || input.is_err(), "a frame of both ways");
    if let Ok(frame) = output {
        let again = frame.encode();
        // The end is JSON, which may be written in many ways.
        if !matches!(frame.0.kind, EventKind::Exit(_)) {
            assert_eq!(again, data);
        }
        assert_eq!(OutputFrame::decode(&again).as_ref(), Ok(&frame));
        message(&frame.0);
    }
    if let Ok(frame) = input {
        assert!(!matches!(&frame, InputFrame::Data(data) if data.len() > FRAME_BYTES_MAX));
        assert_eq!(frame.encode(), data);
    }
    if let Ok(message) = serde_json::from_slice::<EventMessage>(data) {
        let again = serde_json::to_vec(&message).expect("a message can be written");
        let read = serde_json::from_slice(&again);
        assert_eq!(read.ok().as_ref(), Some(&message));
        let text = message.data.unwrap_or_default();
        drop(decode_output(&text, message.encoding.as_deref()));
    }
}

/// An event survives the API's JSON.
fn message(event: &ExecEvent) {
    let id = |text: &str| text.parse::<SandboxId>().expect("it is an id");
    let exec_id: ExecId = "x0000000000000000000".parse().expect("it is an id");
    let message = EventMessage::new(&id("s0000000000000000000"), &exec_id, event);
    let text = serde_json::to_string(&message).expect("a message can be written");
    let read: EventMessage = serde_json::from_str(&text).expect("what was written can be read");
    assert_eq!(read, message);
    match &event.kind {
        EventKind::Output { data, .. } => {
            let text = read.data.unwrap_or_default();
            assert_eq!(
                decode_output(&text, read.encoding.as_deref()).as_ref(),
                Some(data)
            );
        }
        EventKind::Exit(exit) => {
            let code = exit.shell_code();
            assert_eq!(read.exit_code, Some(code));
            assert_eq!(read.exit.as_ref(), Some(exit));
        }
        EventKind::Dropped { first_kept } => assert_eq!(read.first_kept, Some(*first_kept)),
        EventKind::Start { .. } => {}
    }
}
