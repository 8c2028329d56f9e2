//! The launcher process: started when it is first needed, and again when it ended.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pinfold_driver::{DriverError, DriverErrorKind};
use pinfold_linux::launcher::{
    LaunchError, LaunchFailure, Launcher, LauncherConfig, LauncherIdentity,
};

use crate::claims::{Home, Ids, failed, make_private};
use crate::config::AgentSource;

/// Most bytes of what earlier launchers said that the next one adds to; a launcher says a line when
/// its daemon has gone.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// How often a launcher that ended is replaced for one request.
const REPLACEMENTS: u32 = 1;

/// Starts launchers, one at a time.
#[derive(Debug)]
pub(crate) struct Launchers {
    agent: AgentSource,
    identity: LauncherIdentity,
    native: PathBuf,
    current: Mutex<Option<Arc<Launcher>>>,
}

impl Launchers {
    pub(crate) fn new(agent: AgentSource, identity: LauncherIdentity, native: PathBuf) -> Self {
        Self {
            agent,
            identity,
            native,
            current: Mutex::new(None),
        }
    }

    pub(crate) fn identity(&self) -> &LauncherIdentity {
        &self.identity
    }

    /// Asks the launcher for something; once more from a new one if it had ended. Blocks.
    pub(crate) fn ask<T>(
        &self,
        what: impl Fn(&Launcher) -> Result<T, LaunchError>,
    ) -> Result<T, DriverError> {
        let mut replaced = 0;
        loop {
            let launcher = self.get()?;
            match what(&launcher) {
                Err(LaunchError::Gone { .. }) if replaced < REPLACEMENTS => {
                    replaced += 1;
                    tracing::warn!("the launcher ended, starting another");
                    self.forget(&launcher);
                }
                done => return done.map_err(describe),
            }
        }
    }

    fn get(&self) -> Result<Arc<Launcher>, DriverError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(launcher) = current.as_ref() {
            return Ok(Arc::clone(launcher));
        }
        let config = LauncherConfig {
            agent: self.agent.binary(),
            identity: self.identity.clone(),
            join: self.older_sandbox(),
            log: self.log()?,
        };
        let launcher = Arc::new(Launcher::spawn(config).map_err(describe)?);
        *current = Some(Arc::clone(&launcher));
        Ok(launcher)
    }

    fn forget(&self, ended: &Arc<Launcher>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|one| Arc::ptr_eq(one, ended)) {
            *current = None;
        }
    }

    fn log(&self) -> Result<OwnedFd, DriverError> {
        make_private(&self.native)?;
        let path = self.native.join("launcher.log");
        let opened = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .and_then(|log| {
                if log.metadata()?.len() > LOG_BYTES_MAX {
                    log.set_len(0)?;
                }
                Ok(OwnedFd::from(log))
            });
        opened.map_err(|source| failed("open", &path, source))
    }

    /// Returns process 1 of a live sandbox, whose outer namespace the new launcher has to enter.
    fn older_sandbox(&self) -> Option<i32> {
        if self.identity == LauncherIdentity::Root {
            return None;
        }
        fs::read_dir(&self.native)
            .ok()?
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(|id| Home::new(&self.native, &id).load())
            .filter(|claims| !matches!(claims.ids, Ids::Range { .. }))
            .filter_map(|claims| claims.process)
            .find(|process| process.open().is_some())
            .map(|process| process.pid)
    }
}

/// Says an error of the launcher in the driver's words.
pub(crate) fn describe(error: LaunchError) -> DriverError {
    let kind = match error.failure() {
        LaunchFailure::HostUnsupported => DriverErrorKind::HostUnsupported,
        LaunchFailure::InvalidImage => DriverErrorKind::InvalidImage,
        LaunchFailure::InvalidMount => DriverErrorKind::InvalidMount,
        LaunchFailure::Forbidden => DriverErrorKind::Forbidden,
        LaunchFailure::NeedsSubids => DriverErrorKind::NeedsSubids,
        LaunchFailure::ResourceExhausted => DriverErrorKind::ResourceExhausted,
        LaunchFailure::NotFound => DriverErrorKind::Gone,
        LaunchFailure::ConnectionRefused => DriverErrorKind::ConnectionRefused,
        LaunchFailure::InvalidPlan | LaunchFailure::LauncherGone | LaunchFailure::Internal => {
            DriverErrorKind::Internal
        }
    };
    let hint = error.hint().map(str::to_owned);
    let message = match kind {
        DriverErrorKind::Forbidden => "a host path is not for this caller to use",
        _ => "failed to use the launcher",
    };
    let mut described = DriverError::new(kind, message).caused_by(error);
    described.hint = hint;
    described
}

/// Runs this product with the caller's subordinate ids mapped, for the store of images.
#[derive(Debug)]
pub(crate) struct MappedSelf {
    pub(crate) launchers: Arc<Launchers>,
    pub(crate) program: PathBuf,
}

impl pinfold_image::Mapped for MappedSelf {
    fn run(
        &self,
        arguments: &[std::ffi::OsString],
        standard_input: OwnedFd,
        standard_output: OwnedFd,
    ) -> std::io::Result<i32> {
        use pinfold_linux::launcher::Exit;
        let program = fs::File::open(&self.program)?;
        let words: Vec<std::ffi::OsString> = std::iter::once("pinfold".into())
            .chain(arguments.iter().cloned())
            .collect();
        let log = self.launchers.log().map_err(std::io::Error::other)?;
        let exit = self.launchers.ask(|launcher| {
            let descriptors = [standard_input.as_fd(), standard_output.as_fd(), log.as_fd()];
            launcher.run_mapped(program.as_fd(), &words, &descriptors)
        });
        Ok(match exit.map_err(std::io::Error::other)? {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        })
    }
}
