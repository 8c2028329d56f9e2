//! What an attack from outside has done inside a sandbox.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::call::{call_with, text};

/// Bytes of each name of a deep tree, and how many names make a path of 1 MiB.
const NAME_BYTES: usize = 250;
const DEPTH: usize = (1 << 20) / (NAME_BYTES + 1);
/// Entries of a large directory.
const ENTRIES: u32 = 30_000;
/// How long two files are swapped, or watches held.
const SWAPPING: Duration = Duration::from_secs(30);
/// How long one waits for a process to overwrite its program.
const WATCH: Duration = Duration::from_secs(12);

/// Does one of these, by its name.
pub(in super::super) fn act(words: &[&str]) -> io::Result<()> {
    match words {
        ["deep", place] => deep(Path::new(place)),
        ["many", place] => many(Path::new(place)),
        ["overwrite", result] => overwrite(Path::new(result)),
        ["swap", one, other] => {
            let end = Instant::now() + SWAPPING;
            while Instant::now() < end {
                exchange(Path::new(one), Path::new(other))?;
            }
            Ok(())
        }
        ["watch", result] => watch(Path::new(result)),
        ["look"] => look(),
        ["read", path] => {
            use std::io::Read as _;
            File::open(path)?.read_exact(&mut [0])
        }
        _ => Err(io::Error::other("no such act")),
    }
}

fn deep(place: &Path) -> io::Result<()> {
    std::env::set_current_dir(place)?;
    fs::create_dir("deep")?;
    std::env::set_current_dir("deep")?;
    let name = "d".repeat(NAME_BYTES);
    for _ in 0..DEPTH {
        fs::create_dir(&name)?;
        std::env::set_current_dir(&name)?;
    }
    Ok(())
}

/// Holds as many instances of `inotify` as there are, for a while.
fn watch(result: &Path) -> io::Result<()> {
    const MOST: u32 = 2000;
    let mut held = 0;
    while held < MOST && call_with(libc::SYS_inotify_init1, &[0]).is_ok() {
        held += 1;
    }
    fs::write(result, held.to_string())?;
    super::product::pause(SWAPPING);
    Ok(())
}

fn many(place: &Path) -> io::Result<()> {
    let directory = place.join("many");
    fs::create_dir(&directory)?;
    for number in 0..ENTRIES {
        File::create(directory.join(format!("entry-{number}")))?;
    }
    Ok(())
}

/// Swaps two files.
pub(super) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    const HERE: usize = usize::MAX - 99;
    const EXCHANGE: usize = 2;
    let (one, other) = (text(&one.to_string_lossy()), text(&other.to_string_lossy()));
    let arguments = [
        HERE,
        one.as_ptr().addr(),
        HERE,
        other.as_ptr().addr(),
        EXCHANGE,
    ];
    call_with(libc::SYS_renameat2, &arguments).map(drop)
}

/// Tries to write to the program of every process that comes up, while it runs and after.
fn overwrite(result: &Path) -> io::Result<()> {
    let end = Instant::now() + WATCH;
    let own = fs::metadata("/proc/self/exe")?;
    let mut kept = Vec::new();
    let mut seen = 0;
    while Instant::now() < end && !result.with_extension("stop").exists() {
        for entry in fs::read_dir("/proc")?.flatten() {
            let path = entry.path().join("exe");
            let Ok(file) = OpenOptions::new().read(true).open(&path) else {
                continue;
            };
            let Ok(found) = file.metadata() else { continue };
            if found.ino() == own.ino() || found.nlink() != 0 {
                continue;
            }
            // A program without a name: a memory file.
            seen += 1;
            if kept.len() < 16 {
                kept.push(file);
            }
        }
        for file in &kept {
            use std::os::fd::AsRawFd as _;
            let again = format!("/proc/self/fd/{}", file.as_raw_fd());
            if writes_its_own(Path::new(&again)).is_ok() {
                return fs::write(result, "overwrote it");
            }
        }
    }
    fs::write(result, format!("saw {seen} and wrote to none"))
}

/// Writes to a file what is in it, which changes nothing.
fn writes_its_own(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let mut first = [0; 4];
    File::open(path)?.read_exact_at(&mut first, 0)?;
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&first, 0)
}

/// Looks at what an image may have turned elsewhere, and fails when something is wrong.
fn look() -> io::Result<()> {
    const NULL: u64 = 0x103;
    const PROC: i64 = 0x9fa0;
    let null = fs::symlink_metadata("/dev/null")?;
    if !null.file_type().is_char_device() || null.rdev() != NULL {
        return Err(io::Error::other("/dev/null is something else"));
    }
    // `struct statfs` begins with the type; the whole is smaller than this.
    let mut statfs = [0_i64; 32];
    let path = text("/proc");
    let address = statfs.as_mut_ptr().addr();
    call_with(libc::SYS_statfs, &[path.as_ptr().addr(), address])?;
    if statfs.first() != Some(&PROC) || fs::symlink_metadata("/proc")?.is_symlink() {
        return Err(io::Error::other("/proc is something else"));
    }
    for setting in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"] {
        if OpenOptions::new().write(true).open(setting).is_ok() {
            return Err(io::Error::other(format!("{setting} can be written")));
        }
    }
    let console = fs::symlink_metadata("/dev/console");
    if console.is_ok_and(|console| console.is_symlink()) {
        return Err(io::Error::other("/dev/console is a link"));
    }
    for masked in ["/proc/keys", "/proc/kcore"] {
        if fs::read(masked).is_ok_and(|content| !content.is_empty()) {
            return Err(io::Error::other(format!("{masked} can be read")));
        }
    }
    Ok(())
}
