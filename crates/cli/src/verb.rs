//! What each verb does, as a client of the public API.

mod attack;
mod audit;
mod config;
mod copy;
mod create;
mod doctor;
mod events;
mod exec;
mod key;
mod lifecycle;
mod logs;
mod pool;
mod run;
mod show;
mod update;

pub(crate) use audit::AUDIT;

use crate::arguments::Verb;
use crate::autostart;
use crate::config::Config;
use crate::context::Context;
use crate::error::{CliError, exit_code};
use crate::printer::Printer;

/// Performs a verb; answers the exit code.
///
/// # Errors
///
/// Returns what failed, to be told.
pub(crate) async fn perform(verb: Verb, config: Config, printer: Printer) -> Result<u8, CliError> {
    match &verb {
        Verb::Audit(verb) => return audit::audit(verb, &config, printer),
        Verb::Config(arguments) => return config::config(arguments, &config, printer),
        Verb::Completion(arguments) => return config::completion(arguments, printer),
        Verb::Doctor(arguments) if !arguments.attack => {
            return doctor::doctor(config, printer).await;
        }
        Verb::Status(targets) if targets.is_empty() && !may_start(&config)? => {
            return show::no_daemon(&config, printer);
        }
        _ => {}
    }
    if matches!(verb, Verb::Doctor(_)) && config.is_remote() {
        return Err(CliError::new("attacks are made on the daemon's own host")
            .hint("run `pinfold doctor --attack` there")
            .exit(2));
    }
    let context = Context::connect(config, printer).await?;
    match verb {
        Verb::Run(arguments) => run::run(&context, &arguments).await,
        Verb::Create(arguments) => create::create(&context, &arguments).await,
        Verb::Update(arguments) => update::update(&context, &arguments).await,
        Verb::Start(targets) => lifecycle::start(&context, &targets).await,
        Verb::Stop(arguments) => lifecycle::stop(&context, &arguments).await,
        Verb::Rm(arguments) => lifecycle::remove(&context, &arguments).await,
        Verb::Pause(targets) => lifecycle::pause(&context, &targets).await,
        Verb::Resume(targets) => lifecycle::resume(&context, &targets).await,
        Verb::List(arguments) => show::list(&context, &arguments).await,
        Verb::Status(targets) => show::status(&context, &targets).await,
        Verb::Report => show::report(&context).await,
        Verb::Metrics(arguments) => show::metrics(&context, &arguments).await,
        Verb::Events(arguments) => events::events(&context, &arguments).await,
        Verb::Exec(arguments) => exec::exec(&context, &arguments).await,
        Verb::Template(verb) => pool::template(&context, &verb).await,
        Verb::Pool(verb) => pool::pool(&context, &verb).await,
        Verb::Logs(arguments) => logs::logs(&context, &arguments).await,
        Verb::Cp(arguments) => copy::copy(&context, &arguments).await,
        Verb::Key(verb) => key::key(&context, &verb).await,
        Verb::Doctor(arguments) => attack::attack(&context, &arguments).await,
        Verb::Serve(_) | Verb::Audit(_) | Verb::Config(_) | Verb::Completion(_) => {
            Err(CliError::new("the verb needs no daemon").exit(exit_code::FAILURE))
        }
    }
}

/// Returns whether a daemon answers or may be started.
fn may_start(config: &Config) -> Result<bool, CliError> {
    Ok(config.host().is_some() || config.autostart() || autostart::answers(config)?)
}
