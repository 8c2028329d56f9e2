//! Watches files and directories, with the events exactly as the kernel gives them.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsFd as _;

use pinfold_linux::watch as kernel;
use rustix::fs::{Dir, FileType, OFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::files::{FileError, Files, check, failed};
use crate::ready;

/// Most directories of one recursive watch; the kernel's own limit for a user is shared by all.
pub const WATCH_DIRECTORIES_MAX: usize = 8192;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The watched directory or file that it is about; the top one when events were lost.
    pub directory: String,
    /// Name in it.
    pub name: String,
    /// What happened, as in inotify(7).
    pub mask: u32,
    /// Joins the halves of a renaming.
    pub cookie: u32,
}

/// A watch.
#[derive(Debug)]
pub struct Watch {
    files: Files,
    queue: AsyncFd<kernel::Watch>,
    top: String,
    recursive: bool,
    paths: HashMap<i32, String>,
    ready: VecDeque<kernel::Event>,
}

impl Watch {
    /// Watches a file or directory; with `recursive` also the directories in it, those that are
    /// made later included. What happens in a new directory before it is watched has no events of
    /// its own.
    ///
    /// # Errors
    /// Fails when it is not there, or there are too many directories.
    pub fn new(files: &Files, path: &str, recursive: bool) -> Result<Self, FileError> {
        let failed = failed("watch", path);
        check(path).map_err(&failed)?;
        let queue = kernel::Watch::new().map_err(&failed)?;
        let queue = ready::watched(queue, Interest::READABLE).map_err(&failed)?;
        let mut watch = Self {
            files: files.clone(),
            queue,
            top: path.to_owned(),
            recursive,
            paths: HashMap::new(),
            ready: VecDeque::new(),
        };
        watch.add(path, OFlags::PATH).map_err(&failed)?;
        Ok(watch)
    }

    /// Adds a path, and when this is recursive what is beneath it.
    fn add(&mut self, path: &str, flags: OFlags) -> io::Result<()> {
        let mut waiting = vec![(path.to_owned(), flags)];
        while let Some((path, flags)) = waiting.pop() {
            if self.paths.len() >= WATCH_DIRECTORIES_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::QuotaExceeded,
                    format!("a watch covers at most {WATCH_DIRECTORIES_MAX} directories"),
                ));
            }
            let added = self.add_one(&path, flags, &mut waiting);
            // Beneath the top, what is gone again needs no watch.
            if path == self.top {
                added?;
            }
        }
        Ok(())
    }

    fn add_one(
        &mut self,
        path: &str,
        flags: OFlags,
        waiting: &mut Vec<(String, OFlags)>,
    ) -> io::Result<()> {
        let entry = self.files.root().resolve(path, flags)?;
        let number = self.queue.get_ref().add(entry.as_fd())?;
        self.paths.insert(number, path.to_owned());
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&entry)?.st_mode);
        if !self.recursive || kind != FileType::Directory {
            return Ok(());
        }
        let directory = self
            .files
            .root()
            .resolve(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let may_be = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
            // Names that are no UTF-8 cannot be told, so they are not watched either.
            if let (true, Ok(name)) = (may_be && name != c"." && name != c"..", name.to_str()) {
                waiting.push((
                    join(path, name),
                    OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW,
                ));
            }
            if waiting.len() > WATCH_DIRECTORIES_MAX {
                break;
            }
        }
        Ok(())
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// Fails when the kernel does.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(self.describe(&event));
            }
            let mut ready = self.queue.readable().await?;
            let events = self.queue.get_ref().read()?;
            if events.is_empty() {
                ready.clear_ready();
            }
            self.ready.extend(events);
        }
    }

    fn describe(&mut self, event: &kernel::Event) -> Event {
        let directory = self.paths.get(&event.watch).unwrap_or(&self.top).clone();
        if event.mask & kernel::IGNORED != 0 {
            self.paths.remove(&event.watch);
        }
        let name = event.name.to_string_lossy().into_owned();
        let appeared = event.mask & (kernel::CREATED | kernel::MOVED_IN) != 0;
        if self.recursive && appeared && event.mask & kernel::IS_DIRECTORY != 0 {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            // Beyond the limit it is not watched; the event itself has been told.
            drop(self.add(&join(&directory, &name), flags));
        }
        Event {
            directory,
            name,
            mask: event.mask,
            cookie: event.cookie,
        }
    }
}

fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}
