//! Lifecycle, registry, store, journals, deadlines and recovery.
