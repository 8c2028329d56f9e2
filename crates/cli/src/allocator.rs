//! How the daemon's allocator keeps what was freed.
//!
//! By default the C library keeps up to a quarter of a megabyte of small blocks for each thread and
//! eight arenas for each processor. In a process that lives for months that looks like a leak: memory
//! grows for hours, and what is in use cannot be told from what is kept. docs/adr/0013 has the
//! figures. These settings exist only as a variable that a process finds when it begins.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The variable that the C library reads.
pub(crate) const VARIABLE: &str = "GLIBC_TUNABLES";

/// Nothing is kept for a thread alone, and two arenas are enough for the few threads of a daemon.
pub(crate) const VALUE: &str = "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=2";

/// Begins this program again with the settings, as the same process.
///
/// Returns when they are there already, or somebody chose others, or it cannot be done: then the
/// daemon works as well and only keeps more memory.
pub(crate) fn settle() {
    if !cfg!(target_env = "gnu") || std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let Some(program) = std::env::current_exe().ok().filter(|path| path.exists()) else {
        return;
    };
    let mut words = std::env::args_os();
    let name = words.next();
    let failed = Command::new(program)
        .arg0(name.as_deref().unwrap_or(OsStr::new("pinfold")))
        .args(words)
        .env(VARIABLE, VALUE)
        .exec();
    // The logger is not set up yet, and nothing is lost that matters to a caller.
    drop(failed);
}
