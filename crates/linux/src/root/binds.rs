//! Host paths shown inside: cloned outside as detached mounts, attached inside.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, mkdirat, openat, openat2,
};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, UnmountFlags, open_tree, unmount};

use super::{attach_to, names_of, relative};
use crate::launcher::plan::Bind;
use crate::launcher::{LaunchFailure, Refusal, refused};
use crate::mount::{Attributes, set_attributes};
use crate::reach::{Reach, ReachError, Wish};
use crate::weaken::{Defence, is_off};

/// Where the system's own mounts are; a bind there would undo what they hide.
const RESERVED: [&str; 3] = ["proc", "sys", "dev"];
/// Most names of a path inside.
const TARGET_NAMES_MAX: usize = 128;

/// Clones the mount that a descriptor is of, without what is mounted beneath it.
const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE
    .union(OpenTreeFlags::OPEN_TREE_CLOEXEC)
    .union(OpenTreeFlags::AT_EMPTY_PATH);

/// A bind whose mount exists and is attached nowhere yet.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    mount: OwnedFd,
    directory: bool,
    bind: &'a Bind,
}

/// The user namespaces that ids can be mapped by, where they can.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Users<'a> {
    /// The sandbox's: an id on disk is the same id inside.
    pub(crate) sandbox: Option<BorrowedFd<'a>>,
    /// One in which the files of the caller alone are the sandbox's root's.
    pub(crate) caller: Option<BorrowedFd<'a>>,
}

impl<'a> Users<'a> {
    /// Returns the one for what is reached so; a user's files without it would be shown as others'.
    fn of(self, reach: Option<&Reach>) -> Result<Option<BorrowedFd<'a>>, Errno> {
        match reach.and_then(|reach| reach.user.as_ref()) {
            Some(_) => self.caller.map(Some).ok_or(Errno::INVAL),
            None => Ok(self.sandbox),
        }
    }
}

/// Opens the only layer, a directory of the caller's, and gives its ids to the sandbox.
pub(crate) fn prepare_layer(
    layers: &[PathBuf],
    reach: &Reach,
    users: Users<'_>,
) -> Result<OwnedFd, Refusal> {
    let [layer] = layers else {
        return Err(refused(LaunchFailure::InvalidPlan, "use the layers")(
            Errno::INVAL,
        ));
    };
    let failed = |step: &'static str| {
        move |errno: Errno| refused(LaunchFailure::InvalidImage, step)(errno).at(layer.clone())
    };
    let source = reach
        .open_here(layer, Wish::READ)
        .map_err(|error| out_of_reach(&error, LaunchFailure::InvalidImage).at(layer.clone()))?;
    let found = fstat(&source).map_err(failed("look at the image"))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return Err(failed("use the image")(Errno::NOTDIR));
    }
    let mount = open_tree(&source, "", CLONE).map_err(failed("clone the mount of the image"))?;
    let user = users
        .of(Some(reach))
        .map_err(failed("map the ids of the image"))?;
    if let Some(user) = user {
        set_attributes(mount.as_fd(), Attributes::default().mapped_by(user)).map_err(|source| {
            Refusal::new(
                LaunchFailure::InvalidImage,
                "map the ids of the image",
                &source,
            )
            .at(layer.clone())
            .hint("its filesystem may be one whose ids cannot be mapped; use an archive")
        })?;
    }
    Ok(mount)
}

/// Says why a path is out of reach, and what to do about it.
fn out_of_reach(error: &ReachError, otherwise: LaunchFailure) -> Refusal {
    let step = "reach the host path";
    let forbidden = |errno: i32, hint: &str| {
        let source = std::io::Error::from_raw_os_error(errno);
        Refusal::new(LaunchFailure::Forbidden, step, &source).hint(hint)
    };
    match error {
        ReachError::Open(source) => match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => forbidden(
                libc::EACCES,
                "the path is opened with the rights of who asks; name one that you may read",
            ),
            Some(libc::ELOOP | libc::EXDEV) => {
                let refusal = Refusal::new(otherwise, step, source);
                refusal.hint("name the path that the link leads to")
            }
            _ => Refusal::new(otherwise, step, source),
        },
        ReachError::Step { step, source } => Refusal::new(LaunchFailure::Internal, step, source),
        ReachError::NotOwned => forbidden(
            libc::EACCES,
            "it belongs to another user: name a path of your own, copy it with `pinfold cp`, or \
             have the setting `mounts_allowed` name it",
        ),
        ReachError::Access { writable: true } => forbidden(
            libc::EACCES,
            "you may not write it yourself: leave out `:rw`, or change its mode",
        ),
        ReachError::Access { writable: false } => {
            forbidden(libc::EACCES, "you may not read it yourself")
        }
        ReachError::Kind => {
            let source = std::io::Error::from_raw_os_error(libc::EINVAL);
            let refusal = Refusal::new(otherwise, step, &source);
            refusal.hint("only files and directories can be shown, no sockets, pipes or devices")
        }
        ReachError::OfTheKernel => forbidden(
            libc::EPERM,
            "/proc, /sys and /dev of the host are never shown; a sandbox has its own",
        ),
        ReachError::OfTheDaemon => forbidden(
            libc::EPERM,
            "the daemon's own files or its socket are there; name a directory beside or beneath",
        ),
    }
}

/// Clones what a bind shows and gives the clone its attributes, before anyone inside can see it.
pub(crate) fn prepare<'a>(bind: &'a Bind, users: Users<'_>) -> Result<Prepared<'a>, Refusal> {
    let failed = |step: &'static str| {
        move |errno: Errno| {
            refused(LaunchFailure::InvalidMount, step)(errno).at(bind.source.clone())
        }
    };
    check_target(&bind.target)?;
    let reach = bind.reach.as_ref();
    let source = match reach {
        Some(reach) => reach.open_here(&bind.source, wish(bind)).map_err(|error| {
            out_of_reach(&error, LaunchFailure::InvalidMount).at(bind.source.clone())
        }),
        None => open_source(bind).map_err(|errno| {
            let refusal = failed("open the host path")(errno);
            match errno {
                Errno::LOOP => refusal.hint("name the path that the link leads to"),
                _ => refusal,
            }
        }),
    }?;
    let found = fstat(&source).map_err(failed("look at the host path"))?;
    let kind = FileType::from_raw_mode(found.st_mode);
    let user = users.of(reach).map_err(failed("map the host path's ids"))?;
    let mount = clone(&source, reach).map_err(failed("clone the mount of the host path"))?;
    let mut attributes = Attributes::default().recursive();
    if !is_off(Defence::BindNodev) {
        attributes = attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV);
    }
    if !bind.writable && !is_off(Defence::BindReadOnly) {
        attributes = attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY);
    }
    if !bind.setuid && !is_off(Defence::BindNosuid) {
        attributes = attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID);
    }
    // A user's files are never shown with the ids that they have on disk.
    let of_user = reach.is_some_and(|reach| reach.user.is_some());
    if let Some(user) = user.filter(|_| bind.mapped || of_user) {
        attributes = attributes.mapped_by(user);
    }
    set_attributes(mount.as_fd(), attributes).map_err(|source| {
        let refusal = Refusal::new(
            LaunchFailure::InvalidMount,
            "set the attributes of the host path",
            &source,
        );
        let refusal = refusal.at(bind.source.clone());
        if bind.mapped {
            refusal.hint("its filesystem may be one whose ids cannot be mapped; copy it instead")
        } else {
            refusal
        }
    })?;
    Ok(Prepared {
        mount,
        directory: kind == FileType::Directory,
        bind,
    })
}

fn wish(bind: &Bind) -> Wish {
    Wish {
        writable: bind.writable,
        links: !(bind.writable || bind.mapped),
    }
}

/// Opens a source. What can be written, or appears with other ids, is reached through no link: its
/// owner may have been checked a moment ago, and must not be able to point it elsewhere since.
fn open_source(bind: &Bind) -> Result<OwnedFd, Errno> {
    let rules = if wish(bind).links {
        ResolveFlags::NO_MAGICLINKS
    } else {
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(CWD, &bind.source, flags, Mode::empty(), rules)
}

fn clone(source: &OwnedFd, reach: Option<&Reach>) -> Result<OwnedFd, Errno> {
    // What is mounted beneath a user's directory is not what was checked.
    let alone = reach.is_some_and(|reach| reach.user.is_some());
    match open_tree(source, "", CLONE) {
        // In a namespace of a user's own, mounts that were made outside come only together.
        Err(Errno::INVAL) if !alone => open_tree(source, "", CLONE | OpenTreeFlags::AT_RECURSIVE),
        cloned => cloned,
    }
}

fn check_target(target: &Path) -> Result<(), Refusal> {
    let invalid = |hint: &str| {
        let source = std::io::Error::from_raw_os_error(libc::EINVAL);
        Refusal::new(LaunchFailure::InvalidMount, "use the path inside", &source)
            .at(target)
            .hint(hint)
    };
    let names = names_of(target).map_err(|_| invalid("it must be absolute and without `..`"))?;
    let Some(first) = names.first() else {
        return Err(invalid("the root itself cannot be mounted over"));
    };
    if RESERVED.iter().any(|reserved| first == reserved) {
        return Err(invalid("/proc, /sys and /dev are the sandbox's own"));
    }
    if names.len() > TARGET_NAMES_MAX {
        return Err(invalid("it has too many parts"));
    }
    Ok(())
}

/// Attaches a prepared bind beneath a root, making what is missing on the way.
///
/// Links of the image are followed as they are inside, never out of the root.
pub(crate) fn place(root: &OwnedFd, prepared: &Prepared<'_>) -> Result<(), Refusal> {
    let failed = |step: &'static str| {
        let path = prepared.bind.target.clone();
        move |errno: Errno| refused(LaunchFailure::InvalidMount, step)(errno).at(path.clone())
    };
    let target = open_target(root, prepared).map_err(failed("make the path inside"))?;
    if is_of_the_kernel(&target).map_err(failed("look at the path inside"))? {
        return Err(failed("use the path inside")(Errno::PERM)
            .hint("it leads into /proc or /sys, which are the sandbox's own"));
    }
    attach_to(prepared.mount.as_fd(), target.as_fd()).map_err(failed("mount on the path inside"))
}

/// Takes away what lies on a path inside.
pub(crate) fn take_away(root: &OwnedFd, target: &Path) -> Result<(), Refusal> {
    let failed = |errno: Errno| {
        let failure = match errno {
            Errno::NOENT | Errno::INVAL => LaunchFailure::NotFound,
            _ => LaunchFailure::InvalidMount,
        };
        refused(failure, "unmount")(errno).at(target)
    };
    check_target(target)?;
    let parent = target.parent().unwrap_or(target);
    let name = target.file_name().ok_or_else(|| failed(Errno::INVAL))?;
    let names = names_of(parent).map_err(|_| failed(Errno::INVAL))?;
    let parent = open_inside(root, &Path::new(".").join(relative(&names))).map_err(failed)?;
    // A link of the guest's must not lead to where a mount hides something.
    if is_of_the_kernel(&parent).map_err(failed)? {
        return Err(failed(Errno::PERM));
    }
    rustix::process::fchdir(&parent).map_err(failed)?;
    unmount(name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(failed)
}

fn is_of_the_kernel(file: &OwnedFd) -> Result<bool, Errno> {
    let kind = fstatfs(file)?.f_type;
    Ok([libc::PROC_SUPER_MAGIC, libc::SYSFS_MAGIC].contains(&kind))
}

fn open_target(root: &OwnedFd, prepared: &Prepared<'_>) -> Result<OwnedFd, Errno> {
    let names = names_of(&prepared.bind.target).map_err(|_| Errno::INVAL)?;
    match open_inside(root, &relative(&names)) {
        Err(Errno::NOENT) => {}
        opened => return opened.and_then(|target| of_the_same_kind(target, prepared.directory)),
    }
    let mut parent = open_inside(root, Path::new("."))?;
    for (index, name) in names.iter().enumerate() {
        let path = relative(&names[..=index]);
        let next = match open_inside(root, &path) {
            Err(Errno::NOENT) => {
                let last = index + 1 == names.len();
                make(&parent, name, prepared.directory || !last)?;
                open_inside(root, &path)?
            }
            opened => opened?,
        };
        parent = next;
    }
    of_the_same_kind(parent, prepared.directory)
}

fn make(parent: &OwnedFd, name: &std::ffi::OsStr, directory: bool) -> Result<(), Errno> {
    if directory {
        return mkdirat(parent, name, Mode::from_raw_mode(0o755));
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::WRONLY;
    openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

fn of_the_same_kind(target: OwnedFd, directory: bool) -> Result<OwnedFd, Errno> {
    let kind = FileType::from_raw_mode(fstat(&target)?.st_mode);
    match (kind == FileType::Directory, directory) {
        (true, false) => Err(Errno::ISDIR),
        (false, true) => Err(Errno::NOTDIR),
        _ => Ok(target),
    }
}

fn open_inside(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}
