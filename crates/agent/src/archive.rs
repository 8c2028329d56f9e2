//! Tar archives of files and directories, out of the sandbox and into it.

mod extension;
mod pack;
mod unpack;

/// Most bytes of a record that names a long path or holds extended attributes.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// How many directories deep an archive may go; each takes a descriptor while it is packed.
const DEPTH_MAX: usize = 256;
