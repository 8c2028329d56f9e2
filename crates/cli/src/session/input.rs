//! Our standard input on its way to a program inside.

use std::io::Read as _;

use bytes::Bytes;
use pinfold_client::FrameSender;
use pinfold_types::frame::InputFrame;
use tokio::sync::mpsc;

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Chunks that are read ahead.
const QUEUE_CHUNKS: usize = 4;

/// Reads standard input on a thread of its own, which nobody waits for at the end.
pub(crate) fn standard_input() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(QUEUE_CHUNKS);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0u8; CHUNK_BYTES];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    let chunk = Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default());
                    if sender.blocking_send(chunk).is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    });
    receiver
}

/// Sends input as long as the connection takes it; never ends, so that whoever reads decides.
///
/// A frame that was not sent whole stays in `unsent` for the next connection. The end stays there
/// too: telling it again after a reconnection is harmless.
pub(super) async fn feed(
    sender: &mut FrameSender,
    input: Option<&mut mpsc::Receiver<Bytes>>,
    unsent: &mut Option<InputFrame>,
) {
    let Some(input) = input else {
        return std::future::pending().await;
    };
    loop {
        let frame = match unsent.take() {
            Some(frame) => frame,
            None => match input.recv().await {
                Some(data) => InputFrame::Data(data.to_vec()),
                None => InputFrame::End,
            },
        };
        let sending = unsent.insert(frame);
        let is_end = *sending == InputFrame::End;
        if sender.send(sending).await.is_err() || is_end {
            return std::future::pending().await;
        }
        *unsent = None;
    }
}
