//! Watches directories by inotify.

use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;

use rustix::fs::inotify;
use rustix::io::Errno;

/// What a watch reports: everything that changes a file or a directory, and who opens them.
const INTEREST: u32 = libc::IN_ALL_EVENTS;
/// Room for at least sixty events with the longest names.
const BUFFER_BYTES: usize = 16 << 10;

/// The kernel lost events because nobody read them in time.
pub const OVERFLOW: u32 = libc::IN_Q_OVERFLOW;
/// The event is about a directory.
pub const IS_DIRECTORY: u32 = libc::IN_ISDIR;
/// A name appeared by creation.
pub const CREATED: u32 = libc::IN_CREATE;
/// A name appeared by renaming.
pub const MOVED_IN: u32 = libc::IN_MOVED_TO;
/// The watch is gone.
pub const IGNORED: u32 = libc::IN_IGNORED;

/// One event, as the kernel gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Which watch; -1 when it is about all of them.
    pub watch: i32,
    /// What happened.
    pub mask: u32,
    /// Joins the two halves of a renaming.
    pub cookie: u32,
    /// Name in the watched directory; empty when it is about the directory itself.
    pub name: OsString,
}

/// A queue of events.
#[derive(Debug)]
pub struct Watch {
    queue: OwnedFd,
}

impl Watch {
    /// Makes a queue that watches nothing yet.
    ///
    /// # Errors
    /// Fails when this user has too many.
    pub fn new() -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let queue = inotify::init(flags)?;
        Ok(Self { queue })
    }

    /// Adds an open file or directory and returns the number of its watch.
    ///
    /// # Errors
    /// Fails when this user watches too much, or `/proc` is not there.
    pub fn add(&self, entry: BorrowedFd<'_>) -> io::Result<i32> {
        let path = format!("/proc/self/fd/{}", entry.as_raw_fd());
        let flags = inotify::WatchFlags::from_bits_retain(INTEREST);
        Ok(inotify::add_watch(&self.queue, path, flags)?)
    }

    /// Takes what is queued, at most one buffer of it; nothing when nothing is.
    ///
    /// # Errors
    /// Fails when the kernel does.
    pub fn read(&self) -> io::Result<Vec<Event>> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); BUFFER_BYTES];
        let mut reader = inotify::Reader::new(self.queue.as_fd(), &mut buffer);
        let mut events = Vec::new();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(events),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            events.push(Event {
                watch: event.wd(),
                mask: event.events().bits(),
                cookie: event.cookie(),
                name: event.file_name().map_or_else(OsString::new, |name| {
                    OsString::from_vec(name.to_bytes().to_vec())
                }),
            });
            if reader.is_buffer_empty() {
                return Ok(events);
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.queue.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_kernels_own() {
        let directory = tempfile::tempdir().unwrap();
        let handle = std::fs::File::open(directory.path()).unwrap();
        let watch = Watch::new().unwrap();
        let number = watch.add(handle.as_fd()).unwrap();
        assert_eq!(watch.read().unwrap(), []);
        std::fs::write(directory.path().join("a"), "x").unwrap();
        std::fs::rename(directory.path().join("a"), directory.path().join("b")).unwrap();
        let events = watch.read().unwrap();
        assert!(events.iter().all(|event| event.watch == number));
        let masks: Vec<_> = events
            .iter()
            .map(|event| (event.mask, event.name.to_str().unwrap()))
            .collect();
        assert_eq!(
            masks,
            [
                (libc::IN_CREATE, "a"),
                (libc::IN_OPEN, "a"),
                (libc::IN_MODIFY, "a"),
                (libc::IN_CLOSE_WRITE, "a"),
                (libc::IN_MOVED_FROM, "a"),
                (libc::IN_MOVED_TO, "b"),
            ]
        );
        assert_eq!(events[4].cookie, events[5].cookie);
    }
}
