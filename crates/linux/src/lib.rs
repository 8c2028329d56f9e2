//! The safe kernel layer: what the rest of pinfold needs of Linux, synchronous and without policy.
//!
//! This is the only crate of the product with `unsafe`, which is why it is a crate of its own. There
//! is no async runtime here and nothing that knows what a sandbox is for.

pub mod beneath;
pub mod capability;
pub mod cgroup;
pub mod descriptors;
pub mod disk;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod identity;
pub mod init;
pub mod launcher;
pub mod marks;
pub mod memory;
pub mod mount;
pub mod pty;
pub mod reach;
pub mod root;
pub mod seccomp;
pub mod spawn;
pub mod watch;
pub mod weaken;

/// Returns whether this test run may make namespaces and mounts; in CI it must.
#[cfg(test)]
fn capability_to_test() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(
        root || std::env::var_os("CI").is_none(),
        "these tests need root, and CI skips none"
    );
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}
