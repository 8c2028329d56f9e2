//! `logs`: what the programs of a sandbox wrote, one after the other, or as it comes.

use std::io::IsTerminal;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::select_all;
use pinfold_client::{ClientError, EventRange, EventStream};
use pinfold_linux::weaken::{Defence, is_off};
use pinfold_types::api::{Exec, parse_time_ms};
use pinfold_types::exec::{EventMessage, decode_output};
use pinfold_types::{OutputStream, SandboxState};

use crate::arguments::LogsArguments;
use crate::context::{Context, api_error};
use crate::error::CliError;
use crate::output::{Sink, Writer};
use crate::shown::Shown;
use crate::view;

/// Time between two looks for the first program: nobody sees it, and the daemon hardly feels it.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// `logs`. Programs that are started while we follow are not shown.
pub(super) async fn logs(context: &Context, arguments: &LogsArguments) -> Result<u8, CliError> {
    let execs = match chosen(context, arguments).await? {
        none if none.is_empty() && arguments.follow => first(context, arguments).await?,
        execs => execs,
    };
    let (writer, written) = Writer::start();
    let mut printing = Printing {
        context,
        arguments,
        sink: Sink::plain(writer),
        stdout: guarded(&std::io::stdout(), arguments),
        stderr: guarded(&std::io::stderr(), arguments),
    };
    let mut result = Ok(());
    // What has ended comes first and in order; what still runs is mixed as it comes.
    let (live, ended): (Vec<Exec>, Vec<Exec>) = execs
        .into_iter()
        .partition(|exec| arguments.follow && exec.ended_at.is_none());
    for exec in &ended {
        let events = open(context, exec, false).await.map_err(api_error)?;
        result = printing.all(events).await;
        if result.is_err() {
            break;
        }
    }
    if result.is_ok() && !live.is_empty() {
        let opened = live.iter().map(|exec| open(context, exec, true));
        let streams = futures::future::try_join_all(opened).await;
        result = printing.all(select_all(streams.map_err(api_error)?)).await;
    }
    printing.end().await?;
    // What the writing thread met says more than that it ended.
    written.finish().await?;
    result.map(|()| 0)
}

/// Waits for the first program of a sandbox, for as long as one could come.
async fn first(context: &Context, arguments: &LogsArguments) -> Result<Vec<Exec>, CliError> {
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let sandbox = context.client.get(&arguments.target).await;
        let state = sandbox.map_err(api_error)?.state;
        // Looked for after the state: what ended with the sandbox is there by now.
        let execs = chosen(context, arguments).await?;
        let over = matches!(state, SandboxState::Stopped | SandboxState::Failed);
        if over || !execs.is_empty() {
            return Ok(execs);
        }
    }
}

async fn chosen(context: &Context, arguments: &LogsArguments) -> Result<Vec<Exec>, CliError> {
    let target = &arguments.target;
    let execs = match &arguments.exec {
        Some(id) => vec![
            context
                .client
                .exec_get(target, id)
                .await
                .map_err(api_error)?,
        ],
        None => context.client.execs(target).await.map_err(api_error)?.execs,
    };
    let is_recent = |exec: &Exec| {
        let ended = exec.ended_at.as_deref().and_then(parse_time_ms);
        arguments
            .since
            .zip(ended)
            .is_none_or(|(since, ended)| ended >= since)
    };
    Ok(execs.into_iter().filter(is_recent).collect())
}

async fn open(context: &Context, exec: &Exec, follow: bool) -> Result<EventStream, ClientError> {
    let range = if follow {
        EventRange::ALL
    } else {
        EventRange::PRESENT
    };
    let sandbox = exec.sandbox_id.as_str();
    context
        .client
        .stream_events(sandbox, &exec.exec_id, range)
        .await
}

/// Returns what stands between a program and a terminal; nothing where nobody looks.
fn guarded(stream: &impl IsTerminal, arguments: &LogsArguments) -> Option<Shown> {
    let guard = stream.is_terminal() && !arguments.raw && !is_off(Defence::Printable);
    guard.then(Shown::default)
}

struct Printing<'a> {
    context: &'a Context,
    arguments: &'a LogsArguments,
    sink: Sink,
    stdout: Option<Shown>,
    stderr: Option<Shown>,
}

impl Printing<'_> {
    async fn all(
        &mut self,
        mut events: impl futures::Stream<Item = Result<EventMessage, ClientError>> + Unpin,
    ) -> Result<(), CliError> {
        while let Some(event) = events.next().await {
            self.one(event.map_err(api_error)?).await?;
        }
        Ok(())
    }

    async fn one(&mut self, event: EventMessage) -> Result<(), CliError> {
        let time_ms = parse_time_ms(&event.time).unwrap_or(0);
        if self.arguments.since.is_some_and(|since| time_ms < since) {
            return Ok(());
        }
        if self.context.printer.json {
            let mut line = serde_json::to_vec(&event)
                .map_err(|error| CliError::new("failed to write JSON").caused_by(&error))?;
            line.push(b'\n');
            return self.sink.take(OutputStream::Stdout, line).await;
        }
        if let Some(first_kept) = event.first_kept {
            self.context.printer.warn(&format!(
                "output before event {first_kept} is no longer kept"
            ));
        }
        let (Some(stream), Some(data)) = (event.stream, event.data) else {
            return Ok(());
        };
        let data = decode_output(&data, event.encoding.as_deref())
            .ok_or_else(|| CliError::new("the daemon sent output that cannot be read"))?;
        let data = if self.arguments.timestamps {
            stamped(&data, time_ms)
        } else {
            data
        };
        let stream = if stream == OutputStream::Stderr.as_str() {
            OutputStream::Stderr
        } else {
            OutputStream::Stdout
        };
        let guard = match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        let data = match guard {
            Some(shown) => shown.take(&data),
            None => data,
        };
        self.sink.take(stream, data).await
    }

    async fn end(self) -> Result<(), CliError> {
        let mut sink = self.sink;
        for (stream, shown) in [
            (OutputStream::Stdout, self.stdout),
            (OutputStream::Stderr, self.stderr),
        ] {
            let last = shown.map(Shown::end).unwrap_or_default();
            if !last.is_empty() {
                sink.take(stream, last).await?;
            }
        }
        sink.finish().await.map(drop)
    }
}

/// Puts the time before each line; a line that comes in pieces gets one for each piece.
fn stamped(data: &[u8], time_ms: i64) -> Vec<u8> {
    let stamp = view::timestamp(time_ms);
    let mut lines = Vec::new();
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        lines.extend_from_slice(stamp.as_bytes());
        lines.push(b' ');
        lines.extend_from_slice(line);
        if !line.ends_with(b"\n") {
            lines.push(b'\n');
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_gets_its_time() {
        let text = stamped(b"a\nb", 0);
        assert_eq!(text, b"1970-01-01T00:00:00Z a\n1970-01-01T00:00:00Z b\n");
    }
}
