//! From the engine's word on how far a caller reaches to what the kernel layer opens.

use std::fs;
use std::path::{Path, PathBuf};

use pinfold_driver::{DriverError, DriverErrorKind, HostMount, HostReach};
use pinfold_linux::launcher::plan::Bind;
use pinfold_linux::reach::{Reach, ReachError, User};

use crate::driver::Inner;

/// Says how far a caller reaches, with their rights as the host's lists give them now.
pub(crate) fn reach_of(inner: &Inner, reach: &HostReach) -> Result<Reach, DriverError> {
    let user = reach.user.map(|uid| {
        User::of(uid).map_err(|error| {
            let message = format!("failed to look up the groups of user {uid}");
            DriverError::new(DriverErrorKind::Internal, message).caused_by(error)
        })
    });
    Ok(Reach {
        user: user.transpose()?,
        own: reach.own,
        beneath: reach.beneath.clone(),
        hidden: inner.hidden.clone(),
    })
}

/// Returns a mount as the launcher takes it; its source is opened there.
pub(crate) fn bind_of(inner: &Inner, shown: &HostMount, mapped: bool) -> Result<Bind, DriverError> {
    let mount = &shown.mount;
    let source = Path::new(&mount.source);
    if shown.reach.is_unlimited()
        && let Err(error) = fs::metadata(source)
    {
        let message = format!("failed to use `{}` as a mount", mount.source);
        return Err(DriverError::new(DriverErrorKind::InvalidMount, message).caused_by(error));
    }
    Ok(Bind {
        source: source.to_path_buf(),
        target: PathBuf::from(&mount.target),
        writable: mount.writable,
        setuid: false,
        mapped,
        reach: Some(reach_of(inner, &shown.reach)?),
    })
}

/// Says why an image is out of its caller's reach.
pub(crate) fn image_out_of_reach(path: &str, error: ReachError) -> DriverError {
    let kind = if error.is_missing() || matches!(error, ReachError::Kind) {
        DriverErrorKind::InvalidImage
    } else if matches!(error, ReachError::Step { .. }) {
        DriverErrorKind::Internal
    } else {
        DriverErrorKind::Forbidden
    };
    DriverError::new(kind, format!("`{path}` cannot be used as an image"))
        .hint("name `host`, or a directory or archive that you own and may read")
        .caused_by(error)
}
