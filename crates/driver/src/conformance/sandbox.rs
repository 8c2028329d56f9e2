//! A started instance and what cases do with it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use pinfold_types::exec::TerminalSize;
use pinfold_types::{EventKind, ExecEvent, ExecExit, ExecId, OutputStream, SandboxId};

use super::{Setup, Stop, Verdict, ensure, eventually, soon};
use crate::agent::{AgentClient, AgentError, AgentStart, WriteFile};
use crate::contract::{
    Disk, Driver, ImageRequest, Instance, InstanceSpec, NoProgress, PreparedImage, StartSource,
};
use crate::reach::HostReach;

/// Directory inside that cases work in. Programs name files in it by relative paths, since a
/// driver without a root of its own shows them elsewhere.
pub(crate) const DIRECTORY: &str = "/yard";
/// Where programs are looked for.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a shutdown is polite.
pub(crate) const GRACE: Duration = Duration::from_secs(5);
/// How many bytes are read between two acknowledgements.
const ACKNOWLEDGE_BYTES: usize = 512 << 10;

/// What to run.
#[derive(Debug, Clone)]
pub struct Command(pub(crate) AgentStart);

impl Command {
    /// Runs a program with arguments.
    pub fn new(arguments: &[&str]) -> Self {
        Self(AgentStart {
            exec_id: ExecId::new(),
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
            environment: vec![("PATH".to_owned(), SEARCH_PATH.to_owned())],
            working_directory: DIRECTORY.to_owned(),
            user: String::new(),
            terminal: None,
            standard_input: false,
            timeout_ms: None,
            tag: String::new(),
        })
    }

    /// Runs a script.
    pub fn shell(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    /// Keeps standard input open.
    #[must_use]
    pub fn with_input(mut self) -> Self {
        self.0.standard_input = true;
        self
    }

    /// Gives it a terminal.
    #[must_use]
    pub fn with_terminal(mut self, columns: u16, rows: u16) -> Self {
        self.0.terminal = Some(TerminalSize { columns, rows });
        self
    }
}

/// What a process did.
#[derive(Debug, Clone, Default)]
pub struct Finished {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub exit: ExecExit,
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A started instance.
#[derive(Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// The instance.
    pub instance: Arc<dyn Instance>,
    /// A client of its agent.
    pub agent: AgentClient,
}

pub(crate) async fn prepare(driver: &dyn Driver, image: &str) -> Verdict<PreparedImage> {
    let request = ImageRequest {
        reference: image.to_owned(),
        reach: HostReach::DAEMON,
    };
    Ok(driver.prepare(&request, &NoProgress).await?)
}

impl Setup {
    /// Starts an instance with nothing named.
    ///
    /// # Errors
    ///
    /// Says why it does not answer.
    pub async fn sandbox(&self) -> Verdict<Sandbox> {
        let spec = InstanceSpec {
            hostname: "yard".to_owned(),
            ..InstanceSpec::default()
        };
        self.sandbox_of(&spec).await
    }

    /// Starts an instance.
    ///
    /// # Errors
    ///
    /// Says why it does not answer.
    pub async fn sandbox_of(&self, spec: &InstanceSpec) -> Verdict<Sandbox> {
        let image = prepare(&*self.driver, &self.facts.image).await?;
        let id = SandboxId::new();
        let instance = self
            .driver
            .start(&id, StartSource::Image(&image), spec)
            .await?;
        let sandbox = Sandbox::of(id, instance);
        sandbox.answers().await?;
        sandbox.agent.make_directory(DIRECTORY, 0o755, true).await?;
        Ok(sandbox)
    }

    /// Skips the case unless a capability is there.
    ///
    /// # Errors
    ///
    /// Returns the skip.
    pub fn needs(&self, there: bool, what: &str) -> Verdict {
        if there {
            return Ok(());
        }
        Err(Stop::Skipped(format!(
            "the {} driver has no {what}",
            self.driver.kind().as_str()
        )))
    }

    /// Fails when something of an instance is left on the host.
    ///
    /// # Errors
    ///
    /// Lists what is left.
    pub async fn nothing_left(&self, id: &SandboxId) -> Verdict {
        eventually("nothing is left of a removed instance", || async {
            Ok((self.facts.leftovers)(id).is_empty())
        })
        .await
        .map_err(|_| Stop::Failed(format!("left: {:?}", (self.facts.leftovers)(id))))
    }
}

impl Sandbox {
    /// Takes a started instance.
    pub fn of(id: SandboxId, instance: Arc<dyn Instance>) -> Self {
        let agent = AgentClient::new(Arc::clone(&instance));
        Self {
            id,
            instance,
            agent,
        }
    }

    /// Returns a client with a connection of its own.
    pub fn new_client(&self) -> AgentClient {
        AgentClient::new(Arc::clone(&self.instance))
    }

    /// Waits until the agent answers.
    ///
    /// # Errors
    ///
    /// Fails when it does not soon.
    pub async fn answers(&self) -> Verdict {
        eventually("the agent answers", || async {
            Ok(self.agent.ready().await.is_ok())
        })
        .await
    }

    /// Starts a process.
    ///
    /// # Errors
    ///
    /// As the agent says.
    pub async fn start(&self, command: Command) -> Verdict<ExecId> {
        let exec_id = command.0.exec_id.clone();
        self.agent.start(command.0).await?;
        Ok(exec_id)
    }

    /// Runs a process to its end.
    ///
    /// # Errors
    ///
    /// Fails when it does not start, or its journal is not whole.
    pub async fn run(&self, command: Command) -> Verdict<Finished> {
        let exec_id = self.start(command).await?;
        self.finish(&exec_id).await
    }

    /// Runs a script to its end, which must be a success.
    ///
    /// # Errors
    ///
    /// As [`Self::run`], and when the script fails.
    pub async fn script(&self, script: &str) -> Verdict<Finished> {
        let finished = self.run(Command::shell(script)).await?;
        ensure!(
            finished.exit.code == Some(0),
            "`{script}` ended with {:?}: {}",
            finished.exit,
            String::from_utf8_lossy(&finished.stderr)
        );
        Ok(finished)
    }

    /// Reads a journal from its start to the exit, acknowledging what was read.
    ///
    /// # Errors
    ///
    /// Fails when the journal is not whole.
    pub async fn finish(&self, exec_id: &ExecId) -> Verdict<Finished> {
        let mut finished = Finished::default();
        let mut events = self.agent.read(exec_id, 1, true);
        let mut unacknowledged = 0;
        while let Some(event) = soon("the next event", events.next()).await? {
            let ExecEvent { seq, kind, .. } = event?;
            match kind {
                EventKind::Start { .. } => ensure!(seq == 1, "the start is event {seq}"),
                EventKind::Output { stream, data } => {
                    unacknowledged += data.len();
                    match stream {
                        OutputStream::Stdout => finished.stdout.extend(data),
                        OutputStream::Stderr => finished.stderr.extend(data),
                    }
                }
                EventKind::Exit(exit) => {
                    finished.exit = exit;
                    return Ok(finished);
                }
                EventKind::Dropped { first_kept } => {
                    ensure!(false, "events up to {first_kept} are gone");
                }
            }
            if unacknowledged >= ACKNOWLEDGE_BYTES {
                unacknowledged = 0;
                self.agent.acknowledge(exec_id, seq).await?;
            }
        }
        Err(Stop::Failed("the journal ended without an exit".to_owned()))
    }

    /// Reads standard output until a text has come.
    ///
    /// # Errors
    ///
    /// Fails when it does not come soon.
    pub async fn says(&self, exec_id: &ExecId, text: &str) -> Verdict<String> {
        let mut events = self.agent.read(exec_id, 1, true);
        let mut said = String::new();
        while !said.contains(text) {
            let event = soon(text, events.next()).await?;
            match event.transpose()?.map(|event| event.kind) {
                Some(EventKind::Output { data, .. }) => {
                    said.push_str(&String::from_utf8_lossy(&data));
                }
                Some(EventKind::Start { .. }) => {}
                other => ensure!(false, "{text:?} did not come after {said:?}: {other:?}"),
            }
        }
        Ok(said)
    }

    /// Writes a file in the cases' directory.
    ///
    /// # Errors
    ///
    /// As the agent says.
    pub async fn write(&self, name: &str, content: &[u8]) -> Verdict {
        let file = WriteFile {
            path: path(name),
            ..WriteFile::default()
        };
        self.agent.write_file(file, whole(content)).await?;
        Ok(())
    }

    /// Reads a file in the cases' directory.
    ///
    /// # Errors
    ///
    /// As the agent says.
    pub async fn content(&self, name: &str) -> Verdict<Vec<u8>> {
        Ok(self.content_of(&path(name), 0, 0).await?)
    }

    /// Reads a part of a file.
    ///
    /// # Errors
    ///
    /// As the agent says.
    pub async fn content_of(
        &self,
        path: &str,
        offset: u64,
        length: u64,
    ) -> Result<Vec<u8>, AgentError> {
        self.agent
            .read_file(path, offset, length)
            .try_fold(Vec::new(), |mut content, chunk| async move {
                content.extend_from_slice(&chunk);
                Ok(content)
            })
            .await
    }

    /// Returns whether a file is in the cases' directory.
    ///
    /// # Errors
    ///
    /// As the agent says, but for a file that is not there.
    pub async fn exists(&self, name: &str) -> Verdict<bool> {
        match self.agent.stat(&path(name), false).await {
            Ok(_) => Ok(true),
            Err(error) if error.code == pinfold_types::ErrorCode::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the instance with its disk.
    ///
    /// # Errors
    ///
    /// As the driver says.
    pub async fn remove(&self) -> Verdict {
        Ok(self.instance.shut_down(GRACE, Disk::Remove).await?)
    }
}

/// Returns the path inside of a file in the cases' directory.
pub(crate) fn path(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

/// Returns content as a stream of parts.
pub(crate) fn whole(
    content: &[u8],
) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    const PART_BYTES: usize = 100_000;
    let parts: Vec<_> = content
        .chunks(PART_BYTES)
        .map(|part| Ok(Bytes::copy_from_slice(part)))
        .collect();
    futures::stream::iter(parts)
}

/// Returns the numbers that `seq 1 last` prints.
pub(crate) fn numbers(last: u32) -> Vec<u8> {
    (1..=last).fold(Vec::new(), |mut text, number| {
        text.extend_from_slice(number.to_string().as_bytes());
        text.push(b'\n');
        text
    })
}
