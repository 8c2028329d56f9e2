//! Where a program's output goes: as it is, with a name before each line, or kept for JSON.
//!
//! A thread does the writing, so that a reader who does not read stops the program and nothing
//! else: signals, input and other programs go on.

use std::io::{self, Write};
use std::time::Duration;

use pinfold_types::OutputStream;
use tokio::sync::{mpsc, oneshot};

use crate::error::CliError;
use crate::printer::output_error;

/// Pieces of output on their way to the writing thread; each is at most one frame of 1 MiB.
const QUEUE_PIECES: usize = 8;

/// Most bytes of one stream that are kept for JSON; the rest is left out and said to be.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Longest line that is held back to put a name before it.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Bytes of the end of standard error that are kept to explain a failure.
const TAIL_BYTES: usize = 4 << 10;

type Piece = (OutputStream, Vec<u8>);

/// Writes pieces to our standard output and standard error, in order.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    pieces: mpsc::Sender<Piece>,
}

/// The writing thread's end.
#[derive(Debug)]
pub(crate) struct Written(oneshot::Receiver<io::Result<()>>);

impl Writer {
    /// Starts the writing thread.
    pub(crate) fn start() -> (Self, Written) {
        let (pieces, mut receiver) = mpsc::channel::<Piece>(QUEUE_PIECES);
        let (done, written) = oneshot::channel();
        std::thread::spawn(move || {
            let mut result = Ok(());
            while let Some((stream, data)) = receiver.blocking_recv() {
                result = match stream {
                    OutputStream::Stdout => write_to(io::stdout().lock(), &data),
                    OutputStream::Stderr => write_to(io::stderr().lock(), &data),
                };
                if result.is_err() {
                    break;
                }
            }
            // The waiting side may have given up.
            let _nobody_waits = done.send(result);
        });
        (Self { pieces }, Written(written))
    }

    async fn write(&self, stream: OutputStream, data: Vec<u8>) -> Result<(), CliError> {
        // What went wrong is told by `Written`.
        self.pieces
            .send((stream, data))
            .await
            .map_err(|_| CliError::broken_pipe())
    }
}

impl Written {
    /// Waits until everything is written; all [`Writer`]s must be gone.
    ///
    /// # Errors
    ///
    /// Fails when something could not be written.
    pub(crate) async fn finish(self) -> Result<(), CliError> {
        match self.0.await {
            Ok(Err(error)) => Err(output_error(&error)),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }
}

/// Longest time that output may take to be written after a signal has asked us to end.
const LAST_WRITE_MAX: Duration = Duration::from_secs(1);

impl Written {
    /// As [`Written::finish`], but does not wait for a reader who does not read.
    ///
    /// # Errors
    ///
    /// Fails when something could not be written.
    pub(crate) async fn finish_soon(self) -> Result<(), CliError> {
        let finished = tokio::time::timeout(LAST_WRITE_MAX, self.finish()).await;
        finished.unwrap_or(Ok(()))
    }
}

fn write_to(mut to: impl Write, data: &[u8]) -> io::Result<()> {
    to.write_all(data)?;
    to.flush()
}

/// What happens to one program's output.
#[derive(Debug)]
pub(crate) struct Sink {
    kind: SinkKind,
    tail: Vec<u8>,
}

#[derive(Debug)]
enum SinkKind {
    Plain(Writer),
    Named {
        writer: Writer,
        prefix: String,
        stdout: Vec<u8>,
        stderr: Vec<u8>,
    },
    Kept {
        stdout: Vec<u8>,
        stderr: Vec<u8>,
        truncated: bool,
    },
}

/// Output that was kept.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Standard output.
    pub(crate) stdout: Vec<u8>,
    /// Standard error.
    pub(crate) stderr: Vec<u8>,
    /// There was more.
    pub(crate) truncated: bool,
}

impl Sink {
    /// Passes output on as it is.
    pub(crate) fn plain(writer: Writer) -> Self {
        Self::new(SinkKind::Plain(writer))
    }

    /// Puts `name | ` before each line; `width` lines several names up.
    pub(crate) fn named(writer: Writer, name: &str, width: usize) -> Self {
        Self::new(SinkKind::Named {
            writer,
            prefix: format!("{name:width$} | "),
            stdout: Vec::new(),
            stderr: Vec::new(),
        })
    }

    /// Keeps output for [`Sink::finish`].
    pub(crate) fn kept() -> Self {
        Self::new(SinkKind::Kept {
            stdout: Vec::new(),
            stderr: Vec::new(),
            truncated: false,
        })
    }

    fn new(kind: SinkKind) -> Self {
        Self {
            kind,
            tail: Vec::new(),
        }
    }

    /// Takes output.
    ///
    /// # Errors
    ///
    /// Fails when nothing more can be written.
    pub(crate) async fn take(
        &mut self,
        stream: OutputStream,
        data: Vec<u8>,
    ) -> Result<(), CliError> {
        if stream == OutputStream::Stderr {
            self.tail.extend_from_slice(&data);
            let excess = self.tail.len().saturating_sub(TAIL_BYTES);
            self.tail.drain(..excess);
        }
        match &mut self.kind {
            SinkKind::Plain(writer) => writer.write(stream, data).await,
            SinkKind::Named {
                writer,
                prefix,
                stdout,
                stderr,
            } => {
                let held = match stream {
                    OutputStream::Stdout => stdout,
                    OutputStream::Stderr => stderr,
                };
                let lines = whole_lines(held, &data, prefix);
                if lines.is_empty() {
                    return Ok(());
                }
                writer.write(stream, lines).await
            }
            SinkKind::Kept {
                stdout,
                stderr,
                truncated,
            } => {
                let kept = match stream {
                    OutputStream::Stdout => stdout,
                    OutputStream::Stderr => stderr,
                };
                let room = KEPT_BYTES_MAX.saturating_sub(kept.len());
                *truncated |= data.len() > room;
                kept.extend(data.into_iter().take(room));
                Ok(())
            }
        }
    }

    /// Returns the end of standard error.
    pub(crate) fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }

    /// Writes what was held back and returns what was kept.
    ///
    /// # Errors
    ///
    /// Fails when nothing more can be written.
    pub(crate) async fn finish(self) -> Result<Kept, CliError> {
        match self.kind {
            SinkKind::Plain(_) => Ok(Kept::default()),
            SinkKind::Named {
                writer,
                prefix,
                stdout,
                stderr,
            } => {
                for (stream, held) in [
                    (OutputStream::Stdout, stdout),
                    (OutputStream::Stderr, stderr),
                ] {
                    if !held.is_empty() {
                        let line = [prefix.as_bytes(), &held, b"\n"].concat();
                        writer.write(stream, line).await?;
                    }
                }
                Ok(Kept::default())
            }
            SinkKind::Kept {
                stdout,
                stderr,
                truncated,
            } => Ok(Kept {
                stdout,
                stderr,
                truncated,
            }),
        }
    }
}

/// Adds data to what is held back and takes the whole lines off, each with the prefix.
fn whole_lines(held: &mut Vec<u8>, data: &[u8], prefix: &str) -> Vec<u8> {
    held.extend_from_slice(data);
    let mut lines = Vec::new();
    let mut rest = held.as_slice();
    loop {
        let end = match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => end,
            None if rest.len() >= LINE_BYTES_MAX => LINE_BYTES_MAX,
            None => break,
        };
        let (line, tail) = rest.split_at(end);
        lines.extend_from_slice(prefix.as_bytes());
        lines.extend_from_slice(line);
        lines.push(b'\n');
        rest = tail.strip_prefix(b"\n").unwrap_or(tail);
    }
    *held = rest.to_vec();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_held_until_they_are_whole() {
        let mut held = Vec::new();
        assert_eq!(whole_lines(&mut held, b"on", "a | "), b"");
        assert_eq!(
            whole_lines(&mut held, b"e\n\ntw", "a | "),
            b"a | one\na | \n"
        );
        assert_eq!(held, b"tw");
        let long = vec![b'x'; LINE_BYTES_MAX * 2];
        let lines = whole_lines(&mut held, &long, "");
        assert_eq!(lines.split(|byte| *byte == b'\n').count(), 3);
        assert_eq!(held.len(), 2);
    }

    #[tokio::test]
    async fn kept_output_is_bounded() {
        let mut sink = Sink::kept();
        for _ in 0..3 {
            let piece = vec![0; KEPT_BYTES_MAX / 2];
            sink.take(OutputStream::Stdout, piece).await.unwrap();
        }
        sink.take(OutputStream::Stderr, b"no space".to_vec())
            .await
            .unwrap();
        assert_eq!(sink.tail(), "no space");
        let kept = sink.finish().await.unwrap();
        assert_eq!(kept.stdout.len(), KEPT_BYTES_MAX);
        assert!(kept.truncated);
    }
}
