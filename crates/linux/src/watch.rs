//! Watches directories by inotify.
