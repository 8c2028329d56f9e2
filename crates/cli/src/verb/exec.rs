//! `exec`, and what `run` shares with it: a program started, connected and explained.

use futures::StreamExt as _;
use futures::stream;
use pinfold_client::WriteOptions;
use pinfold_types::SandboxState;
use pinfold_types::api::{Exec, ExecRequest, ExecResult, Sandbox, format_time_ms};
use pinfold_types::exec::{ExecSpec, encode_output};
use serde_json::Value;

use crate::arguments::{ExecArguments, PlaceOptions, ProgramOptions};
use crate::context::{Context, api_error};
use crate::error::{CliError, exit_byte, exit_of};
use crate::output::{Sink, Writer};
use crate::program::{self, Upload, WORKSPACE};
use crate::session::{Ended, Session, explain, standard_input};
use crate::signals::Signals;
use crate::tarball;
use crate::terminal::{self, RawTerminal};

/// Sandboxes that a program runs in at once; each costs two connections.
const CONCURRENT: usize = 64;

/// `exec`. With several targets it ends with the first code that is not 0, in the order of targets.
pub(super) async fn exec(context: &Context, arguments: &ExecArguments) -> Result<u8, CliError> {
    let program = &arguments.program;
    if program.tty {
        terminal::require()?;
    }
    let targets = if arguments.all {
        let states = [SandboxState::Running, SandboxState::Paused];
        context.all(&states).await?
    } else {
        named(context, &arguments.names).await?
    };
    let several = targets.len() > 1;
    if several && (program.tty || program.interactive) {
        return Err(CliError::new("only one program can read standard input")
            .hint("leave out -i and -t, or name one sandbox")
            .exit(2));
    }
    let place = Place::of(program, &arguments.place)?;
    let signals = Signals::listen()?;
    let (writer, written) = Writer::start();
    let width = targets
        .iter()
        .map(|target| target.name.as_str().len())
        .max();
    let runs = targets.iter().map(|sandbox| {
        let sink = if context.printer.json {
            Sink::kept()
        } else if several {
            Sink::named(writer.clone(), sandbox.name.as_str(), width.unwrap_or(0))
        } else {
            Sink::plain(writer.clone())
        };
        let place = &place;
        let signals = &signals;
        async move {
            let command = program::command(
                &arguments.command,
                program,
                &place.uploads,
                sandbox.spec.language,
            )?;
            let request = place.request(program, command);
            let start = Start {
                context,
                sandbox,
                place,
                signals,
            };
            if arguments.detach {
                return start.detached(request).await.map(Outcome::Detached);
            }
            start.attached(request, program.interactive, sink).await
        }
    });
    let outcomes: Vec<Result<Outcome, CliError>> =
        stream::iter(runs).buffered(CONCURRENT).collect().await;
    drop(writer);
    let finished = if signals.heard().ended_by.is_some() {
        written.finish_soon().await
    } else {
        written.finish().await
    };
    let code = conclude_all(context, &targets, outcomes, program.timeout)?;
    finished.map(|()| code)
}

async fn named(context: &Context, names: &[String]) -> Result<Vec<Sandbox>, CliError> {
    let mut sandboxes = Vec::new();
    for name in names {
        sandboxes.push(context.client.get(name).await.map_err(api_error)?);
    }
    Ok(sandboxes)
}

fn conclude_all(
    context: &Context,
    targets: &[Sandbox],
    outcomes: Vec<Result<Outcome, CliError>>,
    timeout_ms: Option<u64>,
) -> Result<u8, CliError> {
    let several = targets.len() > 1;
    let mut codes = Vec::new();
    let mut values = Vec::new();
    for (sandbox, outcome) in targets.iter().zip(outcomes) {
        match outcome {
            Ok(outcome) => {
                if context.printer.json {
                    values.push(outcome.value(sandbox));
                } else if let Outcome::Detached(exec) = &outcome {
                    context.printer.line(exec.exec_id.as_str())?;
                }
                let (code, told) = outcome.conclude(sandbox, timeout_ms);
                codes.push(code);
                if let Some(told) = told {
                    let told = if several {
                        told.within(sandbox.name.as_str())
                    } else {
                        told
                    };
                    context.printer.error(&told);
                }
            }
            Err(error) if several => {
                codes.push(error.exit_code());
                context.printer.error(&error.within(sandbox.name.as_str()));
            }
            Err(error) => return Err(error),
        }
    }
    if context.printer.json {
        match values.as_slice() {
            [one] if !several => context.printer.value(one)?,
            all => context.printer.value(&all)?,
        }
    }
    Ok(codes.into_iter().find(|code| *code != 0).unwrap_or(0))
}

/// Where and with what a program runs.
#[derive(Debug)]
pub(super) struct Place {
    /// Files to copy in first.
    pub(super) uploads: Vec<Upload>,
    env: std::collections::BTreeMap<String, String>,
    workdir: Option<String>,
    user: Option<String>,
}

impl Place {
    /// Checks the options.
    ///
    /// # Errors
    ///
    /// Names the file or variable that is not usable.
    pub(super) fn of(program: &ProgramOptions, place: &PlaceOptions) -> Result<Self, CliError> {
        let directory = place
            .workdir
            .clone()
            .unwrap_or_else(|| WORKSPACE.to_owned());
        let uploads = program::uploads(&program.file, &directory)?;
        Ok(Self {
            // A program next to its files is where their names are short.
            workdir: place
                .workdir
                .clone()
                .or_else(|| (!uploads.is_empty()).then(|| WORKSPACE.to_owned())),
            uploads,
            env: program::environment(place)?,
            user: place.user.clone(),
        })
    }

    /// Puts the request together.
    pub(super) fn request(&self, program: &ProgramOptions, command: Vec<String>) -> ExecRequest {
        let mut env = self.env.clone();
        if program.tty
            && let Ok(terminal) = std::env::var("TERM")
        {
            env.entry("TERM".to_owned()).or_insert(terminal);
        }
        ExecRequest {
            command,
            env,
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            terminal: program.tty.then(terminal::size),
            stdin: program.interactive,
            timeout_ms: program.timeout,
            // Somebody reads all of it: rather a slow program than a gap.
            back_pressure: true,
            asynchronous: Some(true),
        }
    }
}

/// A program about to be started.
#[derive(Debug)]
pub(super) struct Start<'a> {
    /// The daemon.
    pub(super) context: &'a Context,
    /// Where it runs.
    pub(super) sandbox: &'a Sandbox,
    /// With what.
    pub(super) place: &'a Place,
    /// Signals to us.
    pub(super) signals: &'a Signals,
}

/// What became of a program.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It runs without us.
    Detached(Exec),
    /// We were connected to it.
    Ended(Exec, Ended),
}

impl Start<'_> {
    /// Starts the program and leaves it running.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be started.
    pub(super) async fn detached(&self, request: ExecRequest) -> Result<Exec, CliError> {
        let request = ExecRequest {
            back_pressure: false,
            ..request
        };
        self.started(&request).await
    }

    /// Starts the program and connects it until it ends.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be started, or the daemon is lost.
    pub(super) async fn attached(
        &self,
        request: ExecRequest,
        interactive: bool,
        sink: Sink,
    ) -> Result<Outcome, CliError> {
        let exec = self.started(&request).await?;
        let terminal = request.terminal.is_some();
        let raw = if terminal && interactive {
            Some(RawTerminal::enter()?)
        } else {
            None
        };
        let session = Session {
            context: self.context,
            exec: exec.clone(),
            sink,
            input: interactive.then(standard_input),
            signals: self.signals.clone(),
            terminal,
        };
        let ended = session.run().await;
        drop(raw);
        Ok(Outcome::Ended(exec, ended?))
    }

    async fn started(&self, request: &ExecRequest) -> Result<Exec, CliError> {
        ExecSpec::from(request.clone()).check().map_err(|error| {
            CliError::new(error.to_string()).hint("pass large data as a file, with --file or --in")
        })?;
        for upload in &self.place.uploads {
            self.upload(upload).await?;
        }
        let client = &self.context.client;
        client
            .exec_start(self.sandbox.id.as_str(), request)
            .await
            .map_err(api_error)
    }

    async fn upload(&self, upload: &Upload) -> Result<(), CliError> {
        let failed = || CliError::new(format!("failed to copy {} in", upload.source.display()));
        let file =
            std::fs::File::open(&upload.source).map_err(|error| failed().caused_by(&error))?;
        let options = WriteOptions {
            mode: Some(upload.mode),
            user: self
                .place
                .user
                .clone()
                .or_else(|| self.sandbox.spec.user.clone()),
            parents: true,
        };
        let content = tarball::stream_of(file);
        self.context
            .client
            .write_file(self.sandbox.id.as_str(), &upload.target, &options, content)
            .await
            .map(drop)
            .map_err(|error| {
                let told = api_error(error);
                failed()
                    .caused_by(&told)
                    .maybe_hint(told.hint_text().map(str::to_owned))
            })
    }
}

impl Outcome {
    /// Returns the exit code, and what to say about the end.
    pub(super) fn conclude(
        &self,
        sandbox: &Sandbox,
        timeout_ms: Option<u64>,
    ) -> (u8, Option<CliError>) {
        match self {
            Self::Detached(_) => (0, None),
            Self::Ended(_, Ended::Left(signal)) => (exit_byte(128 + signal), None),
            Self::Ended(_, Ended::Exit { exit, tail, .. }) => {
                (exit_of(exit), explain(exit, sandbox, timeout_ms, tail))
            }
        }
    }

    /// Returns the outcome for `--json`: the API's exec or exec result, and the sandbox's name.
    pub(super) fn value(&self, sandbox: &Sandbox) -> Value {
        let mut value = match self {
            Self::Detached(exec) | Self::Ended(exec, Ended::Left(_)) => serde_json::json!(exec),
            Self::Ended(
                exec,
                Ended::Exit {
                    exit,
                    kept,
                    time_ms,
                    ..
                },
            ) => {
                let (stdout, stdout_encoding) = encode_output(&kept.stdout);
                let (stderr, stderr_encoding) = encode_output(&kept.stderr);
                serde_json::json!(ExecResult {
                    exec_id: exec.exec_id.clone(),
                    exit_code: exit.shell_code(),
                    exit: exit.clone(),
                    stdout,
                    stdout_encoding,
                    stderr,
                    stderr_encoding,
                    truncated: kept.truncated,
                    started_at: exec.started_at.clone(),
                    ended_at: format_time_ms(*time_ms),
                })
            }
        };
        if let Some(fields) = value.as_object_mut() {
            fields.insert("sandbox_id".to_owned(), sandbox.id.as_str().into());
            fields.insert("name".to_owned(), sandbox.name.as_str().into());
        }
        value
    }
}
