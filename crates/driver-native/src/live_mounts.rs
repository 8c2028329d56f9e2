//! Host paths that come to a live sandbox and go from it again.

use std::os::fd::AsFd as _;
use std::path::Path;

use pinfold_driver::{DriverError, DriverErrorKind, HostMount, RECORD_BYTES_MAX};

use crate::claims::Ids;
use crate::instance::Live;
use crate::reach::bind_of;

impl Live {
    /// Shows a host path inside; one that is shown already stays as it is. Blocks.
    pub(crate) fn attach(&self, shown: &HostMount) -> Result<(), DriverError> {
        let mount = &shown.mount;
        if self.has_ended() {
            return Err(self.gone());
        }
        let mut claims = self.claims();
        let mapped = matches!(claims.ids, Ids::Range { .. });
        let there = claims.mounts.iter().find(|old| old.target == mount.target);
        match there {
            Some(old) if old == mount => return Ok(()),
            Some(old) => {
                let message = format!("`{}` shows another host path already", old.target);
                return Err(invalid(message).hint("detach that one first"));
            }
            None => {}
        }
        let bind = bind_of(&self.inner, shown, mapped)?;
        claims.mounts.push(mount.clone());
        let size = serde_json::to_vec(&claims).map_or(usize::MAX, |text| text.len());
        if size > RECORD_BYTES_MAX {
            let kind = DriverErrorKind::ResourceExhausted;
            return Err(DriverError::new(
                kind,
                "the sandbox has too many mounts to be written down",
            )
            .hint("mount a directory above them instead"));
        }
        let launchers = &self.inner.launchers;
        launchers.ask(|launcher| launcher.attach(self.process.as_fd(), &bind))?;
        if let Err(error) = self.home.store(&claims) {
            // What is not written down must not be there.
            let undone = launchers.ask(|launcher| {
                let target = Path::new(&bind.target);
                launcher.detach(self.process.as_fd(), target)
            });
            return Err(match undone {
                Ok(()) => error,
                Err(_) => error.leaving(format!("mount at {} inside", bind.target.display())),
            });
        }
        self.set_claims(claims);
        Ok(())
    }

    /// Takes away what [`Live::attach`] showed; what is not there is gone already. Blocks.
    pub(crate) fn detach(&self, target: &str) -> Result<(), DriverError> {
        if self.has_ended() {
            return Err(self.gone());
        }
        let mut claims = self.claims();
        let Some(index) = claims.mounts.iter().position(|old| old.target == target) else {
            return Ok(());
        };
        let path = Path::new(target);
        let launchers = &self.inner.launchers;
        let taken = launchers.ask(|launcher| launcher.detach(self.process.as_fd(), path));
        match taken {
            // Root inside may have moved or unmounted it; then it is gone from this path too.
            Err(error) if error.kind == DriverErrorKind::Gone && !self.has_ended() => {}
            taken => taken?,
        }
        claims.mounts.remove(index);
        self.home.store(&claims)?;
        self.set_claims(claims);
        Ok(())
    }
}

fn invalid(message: String) -> DriverError {
    DriverError::new(DriverErrorKind::InvalidMount, message)
}
