//! Control groups of version 1, version 2 and hybrid hosts.
