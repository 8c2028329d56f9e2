//! Sandboxes from Linux namespaces, cgroups, overlayfs, seccomp and capabilities.
