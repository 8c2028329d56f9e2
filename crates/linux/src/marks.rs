//! Finds the processes of a sandbox by the marks that the launcher left on them.
