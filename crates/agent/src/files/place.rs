//! A path taken apart: its parent, which is looked up, and its last name, which is not.

use std::io;
use std::os::fd::OwnedFd;

use pinfold_linux::weaken::{Defence, is_off};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::error::invalid;
use crate::root::{PATH_BYTES_MAX, Root};

/// Most links that a name may lead through, as the kernel has it.
const LINKS_MAX: usize = 40;

/// A path that was checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    parent: &'a str,
    name: &'a str,
}

/// Checks a path of a request.
pub(crate) fn check(path: &str) -> io::Result<Place<'_>> {
    if !path.starts_with('/') {
        return Err(invalid("the path is not absolute"));
    }
    if path.len() >= PATH_BYTES_MAX || path.contains('\0') {
        return Err(invalid("the path is too long or holds a zero byte"));
    }
    let trimmed = path.trim_end_matches('/');
    let (parent, name) = trimmed.rsplit_once('/').unwrap_or(("/", ""));
    Ok(Place { parent, name })
}

impl<'a> Place<'a> {
    /// Returns the last name for people; the root has none.
    pub(crate) fn name(&self) -> &'a str {
        self.name
    }

    /// Returns the path of the directory that it is in.
    pub(crate) fn parent(&self) -> &'a str {
        self.parent
    }

    /// Returns the last name, where there is one that can be made, renamed or removed.
    pub(crate) fn last(&self) -> io::Result<&'a str> {
        match self.name {
            "" | "." | ".." => Err(invalid("the path names the root, `.` or `..`")),
            name => Ok(name),
        }
    }

    pub(crate) fn open_parent(&self, root: &Root) -> io::Result<OwnedFd> {
        root.resolve(self.parent, OFlags::PATH | OFlags::DIRECTORY)
    }
}

/// Follows the links that a path's last name may be, and returns the directory and name that a
/// file would be made under.
pub(crate) fn follow(root: &Root, path: &str) -> io::Result<(OwnedFd, String)> {
    let mut path = path.to_owned();
    let most = if is_off(Defence::LinkBounds) {
        usize::MAX
    } else {
        LINKS_MAX
    };
    for _ in 0..most {
        let place = check(&path)?;
        let name = place.last()?;
        let parent = place.open_parent(root)?;
        let Ok(target) = rustix::fs::readlinkat(&parent, name, Vec::new()) else {
            return Ok((parent, name.to_owned()));
        };
        let target = target
            .to_str()
            .map_err(|_| invalid("a link leads to a path that is not UTF-8"))?;
        path = if target.starts_with('/') {
            target.to_owned()
        } else {
            format!("{}/{target}", place.parent())
        };
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// Opens what a directory holds, without following a link.
pub(crate) fn open_in(directory: &OwnedFd, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let rules = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat2(
        directory,
        name,
        flags,
        Mode::empty(),
        rules,
    )?)
}
