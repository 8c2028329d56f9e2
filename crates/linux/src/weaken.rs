//! What a weakened test build must not do on the machine that runs the test; the switches themselves
//! are in [`pinfold_types::weaken`].

pub use pinfold_types::weaken::{Defence, VARIABLE, is_off};

/// Returns whether what is off would let programs of a sandbox at the machine that runs the test.
///
/// Without these defences they are the host's own root or meet its processes. So a test gives the
/// host that it plays a process namespace of its own, and its mounts and network besides.
#[cfg(feature = "test-weaken")]
pub fn endangers_machine() -> bool {
    /// How the kernel names the first process namespace, in every boot.
    const FIRST: &str = "pid:[4026531836]";
    let off = is_off(Defence::UserNamespace) || is_off(Defence::PidNamespace);
    off && std::fs::read_link("/proc/self/ns/pid").map_or(true, |name| name.as_os_str() == FIRST)
}

/// Returns whether what is off is a danger: nothing is ever off.
#[cfg(not(feature = "test-weaken"))]
pub const fn endangers_machine() -> bool {
    false
}
