//! Limits on what a sandbox writes to the host's disk.
