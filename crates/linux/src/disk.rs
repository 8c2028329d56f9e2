//! Holding a directory to a number of bytes and files, by a filesystem in a sparse file.
//!
//! The file is mounted as a detached mount: it belongs to no path until somebody attaches it, and
//! its loop device is given back by the kernel when the last mount of it is gone. So a sandbox that
//! ended leaves no mount and no device behind, also when nobody cleans up.

#![expect(unsafe_code, reason = "the ioctls of loop devices have no safe form")]

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

/// Smallest filesystem that is made: its own structures take most of a smaller one.
pub const IMAGE_BYTES_MIN: u64 = 4 << 20;
/// Bytes of a block; with it the number of files per group is known.
const BLOCK_BYTES: u64 = 4096;
/// Bytes of a group of blocks of this size.
const GROUP_BYTES: u64 = BLOCK_BYTES * BLOCK_BYTES * 8;
/// The kernel rounds the files of a group up to this.
const FILES_PER_GROUP_STEP: u64 = 16;
/// Files that ext4 keeps for itself.
const FILES_RESERVED: u64 = 11;
/// How often a free loop device that somebody else took is looked for again.
const DEVICE_ATTEMPTS: usize = 64;
/// Most bytes of what a failed `mkfs.ext4` said that are kept.
const COMPLAINT_BYTES_MAX: usize = 512;
/// Where the program is looked for; never in the caller's own path.
const PROGRAM_DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Why a disk could not be made or mounted.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The limit is smaller than any filesystem.
    #[error("{bytes} bytes are fewer than the {IMAGE_BYTES_MIN} that a filesystem needs")]
    TooSmall {
        /// What was asked for.
        bytes: u64,
    },
    /// So few files cannot be held in a filesystem of that size.
    #[error(
        "a filesystem of {bytes} bytes cannot be held to {files} files, the fewest are {least}"
    )]
    TooFewFiles {
        /// The size.
        bytes: u64,
        /// What was asked for.
        files: u64,
        /// What is possible.
        least: u64,
    },
    /// The program that makes filesystems is not installed.
    #[error("`mkfs.ext4` is not installed")]
    NoProgram,
    /// The program that makes filesystems failed.
    #[error("`mkfs.ext4` failed: {said}")]
    Program {
        /// What it said, cut.
        said: String,
    },
    /// A step on one path failed; nothing is left of it.
    #[error("failed to {step} `{}`", path.display())]
    Step {
        /// What was tried.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// How much a disk may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLimit {
    /// Bytes, with the filesystem's own structures.
    pub bytes: u64,
    /// Files, directories and links.
    pub files: Option<u64>,
}

/// Returns the bytes of the largest filesystem that can be held to that many files.
pub fn bytes_for_files(files: u64) -> u64 {
    (files / FILES_PER_GROUP_STEP).saturating_mul(GROUP_BYTES)
}

/// Returns where the program that makes filesystems is.
pub fn program() -> Option<PathBuf> {
    PROGRAM_DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join("mkfs.ext4"))
        .find(|path| path.is_file())
}

/// Makes a sparse file with a filesystem of at most that many bytes and files, which holds a copy
/// of a directory.
///
/// # Errors
///
/// Returns [`DiskError`] and leaves no file.
pub fn create_image(path: &Path, limit: DiskLimit, content: &Path) -> Result<(), DiskError> {
    let files = files_to_ask_for(limit)?;
    let program = program().ok_or(DiskError::NoProgram)?;
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|file| file.set_len(limit.bytes));
    made.map_err(|source| step("make the sparse file", path, source))?;
    let undo = || drop(fs::remove_file(path));
    let mut command = Command::new(program);
    command
        .args(["-q", "-F", "-b", "4096", "-I", "256", "-m", "0"])
        .args([
            "-E",
            "root_owner=0:0,nodiscard,lazy_itable_init=1,lazy_journal_init=1",
        ]);
    command.arg("-d").arg(content);
    if let Some(files) = files {
        command.args(["-N", &files.to_string()]);
    }
    let output = command
        .arg(path)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .inspect_err(|_| undo())
        .map_err(|source| step("run `mkfs.ext4` on", path, source))?;
    if !output.status.success() {
        undo();
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().chars().take(COMPLAINT_BYTES_MAX).collect();
        return Err(DiskError::Program { said });
    }
    Ok(())
}

/// The program rounds the number of files up in each group; this rounds down first.
fn files_to_ask_for(limit: DiskLimit) -> Result<Option<u64>, DiskError> {
    let bytes = limit.bytes;
    if bytes < IMAGE_BYTES_MIN {
        return Err(DiskError::TooSmall { bytes });
    }
    let Some(files) = limit.files else {
        return Ok(None);
    };
    let unit = bytes
        .div_ceil(GROUP_BYTES)
        .saturating_mul(FILES_PER_GROUP_STEP);
    let least = unit.max(FILES_RESERVED.next_multiple_of(FILES_PER_GROUP_STEP) * 2);
    if files < least {
        return Err(DiskError::TooFewFiles {
            bytes,
            files,
            least,
        });
    }
    Ok(Some(files / unit * unit))
}

/// Mounts the filesystem in a sparse file, attached to no path. Needs root.
///
/// # Errors
///
/// Returns [`DiskError`] and leaves neither mount nor device.
pub fn mount_image(path: &Path) -> Result<OwnedFd, DiskError> {
    let (device, _until_mounted) = attach_device(path)?;
    let failed = |what: &'static str| move |source: rustix::io::Errno| step(what, path, source);
    let context =
        fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("prepare a mount of"))?;
    fsconfig_set_string(context.as_fd(), "source", device.as_os_str())
        .map_err(failed("name the device of"))?;
    // What is removed inside makes the file smaller outside.
    fsconfig_set_flag(context.as_fd(), "discard").map_err(failed("configure the mount of"))?;
    fsconfig_create(context.as_fd()).map_err(failed("read the filesystem in"))?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME,
    )
    .map_err(failed("mount the filesystem in"))
}

/// Puts a file behind a free loop device that frees itself when its last user is gone.
fn attach_device(path: &Path) -> Result<(PathBuf, OwnedFd), DiskError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(CWD, path, flags, Mode::empty()).map_err(|e| step("open", path, e))?;
    let control = Path::new("/dev/loop-control");
    let asked = openat(CWD, control, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| step("open", control, source))?;
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..DEVICE_ATTEMPTS {
        // SAFETY: the request takes no argument and answers a number.
        let number = unsafe { libc::ioctl(asked.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            let source = io::Error::last_os_error();
            return Err(step("find a free device by", control, source));
        }
        let device = PathBuf::from(format!("/dev/loop{number}"));
        let opened = openat(CWD, &device, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| step("open", &device, source))?;
        match configure(&opened, &file) {
            Ok(()) => return Ok((device, opened)),
            Err(error) => last = error,
        }
        if last.raw_os_error() != Some(libc::EBUSY) {
            break;
        }
    }
    Err(step("put a loop device over", path, last))
}

/// Answers a number of a device that nobody uses.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
/// Sets file, flags and block size at once, since kernel 5.8.
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
/// The device lets go of its file when nobody has it open.
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// As the kernel's `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    real_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// As the kernel's `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

fn configure(device: &OwnedFd, file: &OwnedFd) -> io::Result<()> {
    let config = LoopConfig {
        file: file.as_raw_fd().unsigned_abs(),
        block_size: 0,
        info: LoopInfo {
            device: 0,
            inode: 0,
            real_device: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_AUTOCLEAR,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the record has the layout that this request reads and outlives the call.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn step(step: &'static str, path: &Path, source: impl Into<io::Error>) -> DiskError {
    DiskError::Step {
        step,
        path: path.to_path_buf(),
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_never_more_than_asked_for() {
        let ask = |bytes, files| files_to_ask_for(DiskLimit { bytes, files });
        assert_eq!(ask(64 << 20, Some(2000)).unwrap(), Some(2000));
        assert_eq!(ask(1 << 30, Some(2000)).unwrap(), Some(1920));
        assert_eq!(ask(1 << 30, None).unwrap(), None);
        assert_eq!(ask(bytes_for_files(1000), Some(1000)).unwrap(), Some(992));
        assert!(matches!(
            ask(1 << 30, Some(100)),
            Err(DiskError::TooFewFiles { least: 128, .. })
        ));
        assert!(matches!(
            ask(1 << 20, None),
            Err(DiskError::TooSmall { .. })
        ));
    }

    #[test]
    fn an_image_holds_its_bytes_and_files_and_leaves_no_device() {
        if !crate::capability_to_test() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk");
        let limit = DiskLimit {
            bytes: 256 << 20,
            files: Some(500),
        };
        let content = directory.path().join("content");
        fs::create_dir_all(content.join("upper")).unwrap();
        create_image(&image, limit, &content).unwrap();
        assert!(create_image(&image, limit, &content).is_err(), "it exists");
        let mount = mount_image(&image).unwrap();
        let counted = rustix::fs::fstatvfs(&mount).unwrap();
        assert!(counted.f_files <= 500, "{}", counted.f_files);
        assert!(counted.f_blocks * counted.f_frsize <= limit.bytes);
        let make = |number: u32| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            openat(&mount, format!("{number}"), flags, Mode::RUSR)
        };
        let count = (0..1000).take_while(|number| make(*number).is_ok()).count();
        assert!((400..=500).contains(&count), "{count}");
        assert!(devices_of(&image) == 1);
        drop(mount);
        // The kernel gives the device back a moment after the last mount is gone.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while devices_of(&image) > 0 {
            assert!(std::time::Instant::now() < deadline, "the device stays");
            std::thread::yield_now();
        }
        // What was written is there at the next mount, and what it was made with.
        let again = mount_image(&image).unwrap();
        for name in ["0", "upper"] {
            assert!(rustix::fs::statat(&again, name, rustix::fs::AtFlags::empty()).is_ok());
        }
    }

    /// Counts the loop devices over a file.
    fn devices_of(image: &Path) -> usize {
        let image = image.to_str().unwrap();
        fs::read_dir("/sys/block")
            .unwrap()
            .filter_map(Result::ok)
            .filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok())
            .filter(|backing| backing.trim() == image)
            .count()
    }
}
