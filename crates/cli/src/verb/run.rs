//! `run`: a sandbox for one program, which goes when the program has ended, however it ended.

use pinfold_types::ErrorCode;
use pinfold_types::api::Sandbox;

use super::create;
use super::exec::{Outcome, Place, Start};
use super::lifecycle::tell_where;
use crate::arguments::RunArguments;
use crate::context::{Context, api_error};
use crate::error::{CliError, exit_byte};
use crate::output::{Sink, Writer};
use crate::program;
use crate::request;
use crate::session::Ended;
use crate::signals::Signals;
use crate::terminal;

/// `run`.
pub(super) async fn run(context: &Context, arguments: &RunArguments) -> Result<u8, CliError> {
    let options = &arguments.program;
    if options.tty {
        terminal::require()?;
    }
    // Everything is checked before anything is made.
    let place = Place::of(options, &arguments.place)?;
    let command = program::command(
        &arguments.command,
        options,
        &place.uploads,
        options.language,
    )?;
    let language = options.language.or_else(|| {
        let file = place.uploads.first()?;
        pinfold_types::spec::Language::of_file(&file.target)
    });
    let mut request = request::of_template(
        &context.config,
        arguments.template.as_ref(),
        &arguments.sandbox,
        (&arguments.place, language),
    )?;
    request.spec.volatile = !arguments.keep && !arguments.sandbox.persist;
    request.given = request.given.with("volatile", request.spec.volatile);
    let mut signals = Signals::listen()?;
    let sandbox = {
        let creation = create::one(context, &request);
        tokio::select! {
            created = creation => created?,
            // Once is patience: what is being made is removed when it is there.
            () = insisted(&mut signals) => return Err(abandoned(context, &signals)),
        }
    };
    let (writer, written) = Writer::start();
    let sink = if context.printer.json {
        Sink::kept()
    } else {
        Sink::plain(writer.clone())
    };
    drop(writer);
    let start = Start {
        context,
        sandbox: &sandbox,
        place: &place,
        signals: &signals,
    };
    let heard = signals.heard();
    let asked = heard
        .ended_by
        .or((heard.interrupts > 0).then_some(crate::signals::INTERRUPT));
    let outcome = if let Some(signal) = asked {
        Err(CliError::told(exit_byte(128 + signal)))
    } else {
        let request = place.request(options, command);
        start.attached(request, options.interactive, sink).await
    };
    let left = matches!(outcome, Ok(Outcome::Ended(_, Ended::Left(_))));
    let finishing = async {
        if left {
            written.finish_soon().await
        } else {
            written.finish().await
        }
    };
    // A reader who takes its time does not keep the sandbox alive.
    let (finished, removed) = tokio::join!(finishing, leave(context, &sandbox, arguments));
    let code = conclude(context, &sandbox, outcome, options.timeout)?;
    finished?;
    removed.map(|()| code)
}

/// Waits for the second signal that asks us to end.
async fn insisted(signals: &mut Signals) {
    let mut heard = signals.heard();
    while heard.interrupts + u32::from(heard.ended_by.is_some()) < 2 {
        heard = signals.beyond(heard).await;
    }
}

fn abandoned(context: &Context, signals: &Signals) -> CliError {
    context.printer.warn(
        "the sandbox was still being made and may stay; `pinfold list` shows it, `pinfold rm` \
         removes it",
    );
    let signal = signals
        .heard()
        .ended_by
        .unwrap_or(crate::signals::INTERRUPT);
    CliError::told(exit_byte(128 + signal))
}

fn conclude(
    context: &Context,
    sandbox: &Sandbox,
    outcome: Result<Outcome, CliError>,
    timeout_ms: Option<u64>,
) -> Result<u8, CliError> {
    let outcome = outcome?;
    if context.printer.json {
        context.printer.value(&outcome.value(sandbox))?;
    }
    let (code, told) = outcome.conclude(sandbox, timeout_ms);
    if let Some(told) = told {
        context.printer.error(&told);
    }
    Ok(code)
}

/// Removes the sandbox, or says that it stays.
async fn leave(
    context: &Context,
    sandbox: &Sandbox,
    arguments: &RunArguments,
) -> Result<(), CliError> {
    if arguments.keep {
        context.printer.note(&format!(
            "the sandbox {} stays; `pinfold rm {}` removes it",
            sandbox.name, sandbox.name
        ));
        return Ok(());
    }
    let persist = arguments.sandbox.persist;
    match context.client.remove(sandbox.id.as_str(), persist).await {
        // A deadline may have removed it before us.
        Err(error) if error.code() == ErrorCode::NotFound => Ok(()),
        Err(error) => Err(api_error(error)
            .within(&format!("failed to remove {}", sandbox.name))
            .hint(format!("try `pinfold rm {}`", sandbox.name))),
        Ok(removed) => {
            tell_where(context, sandbox.name.as_str(), &removed);
            Ok(())
        }
    }
}
