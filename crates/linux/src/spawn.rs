//! Starts a process with exact ids, limits, terminal and descriptors.
