//! Host paths that callers name, reached with no more rights than the callers have.
//!
//! A daemon of the host's root can open every path; most of its callers cannot. So a path is opened
//! once, by who it is opened for, everything is checked on the descriptor, and the descriptor is
//! what is used: there is no moment in which a link could take the place of what was checked.

#![expect(unsafe_code, reason = "setfsuid and faccessat2 have no safe form")]

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, openat2, readlinkat,
    statat,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use serde::{Deserialize, Serialize};

/// Most groups of a user that count; with fewer than they have, a user reaches less.
pub const GROUPS_MAX: usize = 256;
/// Most bytes of a list of users or groups: a hundred thousand of them.
const LIST_BYTES_MAX: u64 = 16 << 20;
/// The group of nobody, for users that the host's list does not hold.
const NOBODY: u32 = 65_534;

/// Rights over files that come from being root, which no caller has.
const OVER_FILES: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FSETID);

/// Filesystems that show the kernel rather than files; only the sandbox's own are for it.
const OF_THE_KERNEL: [i64; 14] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x1cd1,      // devpts
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0xf97c_ff8c, // selinux
    0xde5e_81e4, // efivarfs
    0x6e73_6673, // nsfs
    0x6165_676c, // pstore
    0x4249_4e4d, // binfmt_misc
];

/// An ordinary user of the host, as far as files are concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group of the files that they make.
    pub gid: u32,
    /// Their other groups.
    pub groups: Vec<u32>,
}

impl User {
    /// Looks a user up in `/etc/passwd` and `/etc/group`.
    ///
    /// One that is not there has the group of nobody, and no others.
    ///
    /// # Errors
    ///
    /// Fails if a list exists and cannot be read.
    pub fn of(uid: u32) -> io::Result<Self> {
        Ok(Self::listed(
            uid,
            &list("/etc/passwd")?,
            &list("/etc/group")?,
        ))
    }

    fn listed(uid: u32, users: &str, groups: &str) -> Self {
        let own = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let found: u32 = fields.nth(1)?.parse().ok()?;
            let gid: u32 = fields.next()?.parse().ok()?;
            (found == uid).then_some((name, gid))
        });
        let Some((name, gid)) = own else {
            return Self {
                uid,
                gid: NOBODY,
                groups: Vec::new(),
            };
        };
        let groups = groups.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let gid: u32 = fields.nth(2)?.parse().ok()?;
            let mut members = fields.next()?.split(',');
            members.any(|member| member == name).then_some(gid)
        });
        Self {
            uid,
            gid,
            groups: groups.take(GROUPS_MAX).collect(),
        }
    }

    /// Does something with this user's rights over files, on a thread of its own.
    ///
    /// Needs root.
    ///
    /// # Errors
    ///
    /// Fails if the rights cannot be taken; then nothing was done.
    pub fn act<T: Send>(&self, what: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let acting = std::thread::Builder::new()
                .name("as-a-caller".to_owned())
                .spawn_scoped(scope, || {
                    self.become_it()?;
                    Ok(what())
                })?;
            acting
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("what was done as the user panicked")))
        })
    }

    /// As [`User::act`], on the calling thread, which has its own rights again afterwards.
    ///
    /// # Errors
    ///
    /// Also fails if those cannot be taken back; then the calling process must end.
    pub(crate) fn act_here<T>(&self, what: impl FnOnce() -> T) -> io::Result<T> {
        let groups = rustix::process::getgroups()?;
        let held = capabilities(None)?;
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        self.become_it()?;
        let done = what();
        take_ids(uid.as_raw(), gid.as_raw())?;
        rustix::thread::set_thread_groups(&groups)?;
        set_capabilities(None, held)?;
        Ok(done)
    }

    fn become_it(&self) -> io::Result<()> {
        let gid = |raw: &u32| rustix::process::Gid::from_raw(*raw);
        let groups: Vec<_> = self.groups.iter().map(gid).collect();
        rustix::thread::set_thread_groups(&groups)?;
        take_ids(self.uid, self.gid)?;
        // Leaving uid 0 takes them away by itself, unless the process was told otherwise.
        let held = capabilities(None)?;
        let rest = CapabilitySets {
            effective: held.effective.difference(OVER_FILES),
            ..held
        };
        Ok(set_capabilities(None, rest)?)
    }
}

/// Takes filesystem ids for the calling thread and makes sure that it has them.
fn take_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: a plain call; the ids are those of the calling thread alone.
    unsafe { libc::setfsgid(gid) };
    // SAFETY: as above.
    unsafe { libc::setfsuid(uid) };
    // SAFETY: an id that nobody can have changes nothing; the answer is the present one.
    let group = unsafe { libc::setfsgid(u32::MAX) };
    // SAFETY: as above.
    let user = unsafe { libc::setfsuid(u32::MAX) };
    if user.cast_unsigned() == uid && group.cast_unsigned() == gid {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

fn list(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    match std::fs::File::open(path) {
        Ok(file) => drop(file.take(LIST_BYTES_MAX).read_to_end(&mut bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How far a caller reaches among the host's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// Whose rights count; without one, those of this process.
    pub user: Option<User>,
    /// What that user owns may be reached; without a user, everything.
    pub own: bool,
    /// What is beneath this directory may be reached, but through no link in it.
    pub beneath: Option<PathBuf>,
    /// Paths of the daemon's: what is one, holds one or lies in one is never reached.
    pub hidden: Vec<PathBuf>,
}

/// What a path is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// The caller wants to write to it.
    pub writable: bool,
    /// Links on the way are followed. For a user they always are: what they lead to is checked.
    pub links: bool,
}

impl Wish {
    /// Reading, through links.
    pub const READ: Self = Self {
        writable: false,
        links: true,
    };
}

/// Why a host path is out of a caller's reach.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// It could not be opened with those rights.
    #[error("it cannot be opened with the caller's rights")]
    Open(#[source] io::Error),
    /// It could not be looked at.
    #[error("failed to {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is a socket, a device or a pipe.
    #[error("it is neither a file nor a directory")]
    Kind,
    /// It is of `/proc`, `/sys`, `/dev` or the like.
    #[error("it is the kernel's, or holds devices")]
    OfTheKernel,
    /// The daemon's own files are there.
    #[error("the daemon keeps its own files there")]
    OfTheDaemon,
    /// Another user owns it.
    #[error("it belongs to another user")]
    NotOwned,
    /// The caller may not do that with it.
    #[error("the caller may not {} it", if *.writable { "write" } else { "read" })]
    Access {
        /// Whether writing was wanted.
        writable: bool,
    },
}

impl ReachError {
    /// Returns whether nothing is there, rather than nothing that the caller may have.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Open(source) if matches!(
            source.raw_os_error(),
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG)
        ))
    }
}

impl Reach {
    /// Opens a path (`O_PATH`) if it is within reach. Blocks; safe to call from any thread.
    ///
    /// # Errors
    ///
    /// Returns [`ReachError`].
    pub fn open(&self, path: &Path, wish: Wish) -> Result<OwnedFd, ReachError> {
        let hidden = self.hidden();
        match &self.user {
            None => self.open_now(path, wish, &hidden),
            Some(user) => user
                .act(|| self.open_now(path, wish, &hidden))
                .map_err(step("take the caller's rights"))?,
        }
    }

    /// As [`Reach::open`], for a process with one thread, which may not make another.
    pub(crate) fn open_here(&self, path: &Path, wish: Wish) -> Result<OwnedFd, ReachError> {
        let hidden = self.hidden();
        match &self.user {
            None => self.open_now(path, wish, &hidden),
            Some(user) => user
                .act_here(|| self.open_now(path, wish, &hidden))
                .map_err(step("take the caller's rights"))?,
        }
    }

    /// Where the daemon's paths really are; what is not there cannot be reached either.
    fn hidden(&self) -> Vec<PathBuf> {
        let real = |path: &PathBuf| real_path(&open_path(path, ResolveFlags::empty()).ok()?).ok();
        self.hidden.iter().filter_map(real).collect()
    }

    fn open_now(&self, path: &Path, wish: Wish, hidden: &[PathBuf]) -> Result<OwnedFd, ReachError> {
        let allowed = self
            .beneath
            .as_deref()
            .map(|directory| open_beneath(directory, path));
        let (file, allowed) = match allowed {
            Some(Ok(file)) => (file, true),
            Some(Err(errno)) if !self.own => return Err(ReachError::Open(errno.into())),
            _ if self.own => {
                let opened = open_path(path, self.rules(wish));
                let file = opened.map_err(|errno| ReachError::Open(errno.into()))?;
                (file, self.user.is_none())
            }
            _ => return Err(ReachError::NotOwned),
        };
        let found = fstat(&file).map_err(|errno| step("look at it")(errno.into()))?;
        let real = real_path(&file).map_err(|errno| step("find out its place")(errno.into()))?;
        check_kind(&file, &found, &real)?;
        if let Some(user) = &self.user {
            if !allowed && !is_owned(user.uid, &found, &real) {
                return Err(ReachError::NotOwned);
            }
            check_access(&file, &found, wish.writable)?;
        }
        let related = |own: &PathBuf| own.starts_with(&real) || real.starts_with(own);
        if hidden.iter().any(related) {
            return Err(ReachError::OfTheDaemon);
        }
        Ok(file)
    }

    fn rules(&self, wish: Wish) -> ResolveFlags {
        if self.user.is_none() && !wish.links {
            ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
        } else {
            ResolveFlags::NO_MAGICLINKS
        }
    }
}

fn open_path(path: &Path, rules: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(CWD, path, flags, Mode::empty(), rules)
}

fn open_beneath(directory: &Path, path: &Path) -> Result<OwnedFd, Errno> {
    let rest = path.strip_prefix(directory).map_err(|_| Errno::XDEV)?;
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if !rest.components().all(plain) {
        return Err(Errno::XDEV);
    }
    let directory = open_path(directory, ResolveFlags::NO_MAGICLINKS)?;
    if rest.as_os_str().is_empty() {
        return Ok(directory);
    }
    let rules = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(&directory, rest, flags, Mode::empty(), rules)
}

/// Where the kernel says that a file is.
fn real_path(file: &OwnedFd) -> Result<PathBuf, Errno> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = readlinkat(CWD, link, Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(path.into_bytes())))
}

fn check_kind(file: &OwnedFd, found: &Stat, real: &Path) -> Result<(), ReachError> {
    let kind = FileType::from_raw_mode(found.st_mode);
    if !matches!(kind, FileType::Directory | FileType::RegularFile) {
        return Err(ReachError::Kind);
    }
    let filesystem = fstatfs(file).map_err(|errno| step("look at its filesystem")(errno.into()))?;
    if OF_THE_KERNEL.contains(&(filesystem.f_type & 0xffff_ffff)) {
        return Err(ReachError::OfTheKernel);
    }
    let devices = Path::new("/dev");
    let is_there = |path: &Path| statat(CWD, path, AtFlags::empty()).ok();
    let of_its_own = is_there(devices)
        .zip(is_there(Path::new("/")))
        .filter(|(devices, root)| devices.st_dev != root.st_dev)
        .is_some_and(|(devices, _)| devices.st_dev == found.st_dev);
    if real == devices || of_its_own {
        return Err(ReachError::OfTheKernel);
    }
    Ok(())
}

/// Whether a user owns it, or a directory that holds it.
fn is_owned(uid: u32, found: &Stat, real: &Path) -> bool {
    // Who owns no directory on the way can move nothing on it, so its text is as good as it was.
    found.st_uid == uid
        || real.ancestors().skip(1).any(|above| {
            statat(CWD, above, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|above| above.st_uid == uid)
        })
}

/// Asks the kernel what the calling thread may do with an open file.
fn check_access(file: &OwnedFd, found: &Stat, writable: bool) -> Result<(), ReachError> {
    let enter = match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => libc::X_OK,
        _ => 0,
    };
    for (mode, writable) in [(libc::R_OK | enter, false), (libc::W_OK | enter, true)]
        .into_iter()
        .take(1 + usize::from(writable))
    {
        // SAFETY: the path is a string that ends in zero, and the kernel only reads it.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_faccessat2,
                file.as_fd().as_raw_fd(),
                c"".as_ptr(),
                mode,
                libc::AT_EMPTY_PATH | libc::AT_EACCESS,
            )
        };
        if answer != 0 {
            return Err(ReachError::Access { writable });
        }
    }
    Ok(())
}

fn step(step: &'static str) -> impl Fn(io::Error) -> ReachError {
    move |source| ReachError::Step { step, source }
}

#[cfg(test)]
mod tests;
