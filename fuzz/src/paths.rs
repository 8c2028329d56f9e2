//! Paths that a guest or an archive chose, given to everything that works beneath a directory.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pinfold_agent::files::{Files, WriteRequest};
use pinfold_agent::fuzzing::files;
use pinfold_linux::beneath::Beneath;
use rustix::fs::{Mode, OFlags};

use crate::input::Input;
use crate::place::Place;

/// Most operations of one input.
const OPERATIONS_MAX: usize = 24;

/// Most bytes of a file that are read.
const READ_BYTES_MAX: usize = 64 << 10;

/// Most entries of a directory that are listed at once.
const PAGE: usize = 7;

/// Nothing outside is touched or read, whatever links lead there; what is said to be done is done.
pub fn run(data: &[u8]) {
    let place = Place::new();
    let inside = place.inside();
    furnish(&place);
    let host = Host {
        place: &place,
        beneath: Beneath::open(&inside).expect("the directory is there"),
        inside: inside.clone(),
    };
    let guest = files(&inside).expect("the directory is there");
    let mut input = Input::new(data);
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() {
            break;
        }
        let choice = input.byte();
        if choice & 1 == 0 {
            host.perform(choice >> 1, &mut input);
        } else {
            let read = perform(&guest, choice >> 1, &mut input);
            assert!(!contains(&read, place.content()), "read outside");
        }
    }
    place.check();
}

/// Makes what attacks need: links out by every way there is.
fn furnish(place: &Place) {
    let inside = place.inside();
    fs::create_dir_all(inside.join("d/e")).expect("it is writable");
    fs::write(inside.join("d/f"), "inside").expect("it is writable");
    let links: [(&Path, &str); 6] = [
        (Path::new(".."), "up"),
        (&place.secret(), "out"),
        (Path::new("loop"), "loop"),
        (Path::new("d"), "in"),
        (Path::new("/proc/self/root"), "magic"),
        (Path::new("../../secret"), "d/s"),
    ];
    for (target, name) in links {
        symlink(target, inside.join(name)).expect("it is writable");
    }
}

/// What the host does for a guest.
struct Host<'a> {
    place: &'a Place,
    beneath: Beneath,
    inside: PathBuf,
}

impl Host<'_> {
    fn perform(&self, choice: u8, input: &mut Input<'_>) {
        let first = input.line();
        let path = Path::new(&first);
        let mode = Mode::from_raw_mode(0o700);
        let done = match choice % 9 {
            0 => {
                let created = self.beneath.create_file(path, mode);
                created.map(|file| drop(fs::File::from(file).write_all(b"new")))
            }
            1 => self.beneath.mkdir(path, mode),
            2 => self.beneath.mkdir_all(path, mode),
            3 => self.beneath.symlink(Path::new(&input.line()), path),
            4 => self.beneath.hard_link(Path::new(&input.line()), path),
            5 => self.beneath.mkfifo(path, mode),
            6 => self.beneath.remove_file(path),
            7 => self.beneath.remove_all(path),
            _ => return self.read(path),
        };
        if done.is_err() {
            return;
        }
        // As it was understood: without a slash at its end, which asks for a directory.
        let path: PathBuf = path.components().collect();
        let there = fs::symlink_metadata(self.inside.join(&path)).is_ok();
        assert_eq!(there, !matches!(choice % 9, 6 | 7), "{choice} {first:?}");
        let parent = path.parent().unwrap_or(&path);
        // What was removed may have been on its own way.
        let parent = fs::canonicalize(self.inside.join(parent));
        let beneath = parent.map_or(true, |parent| parent.starts_with(&self.inside));
        assert!(beneath, "{choice} outside: {first:?}");
    }

    fn read(&self, path: &Path) {
        if let Ok(file) = self.beneath.open_file(path, OFlags::RDONLY) {
            let mut content = [0; 256];
            let count = rustix::io::read(&file, &mut content).unwrap_or(0);
            let content = content.get(..count).unwrap_or_default();
            assert!(!contains(content, self.place.content()), "read outside");
        }
        drop(self.beneath.stat(path));
    }
}

fn contains(content: &[u8], secret: &[u8]) -> bool {
    content.windows(secret.len()).any(|part| part == secret)
}

/// What the agent does for a caller, and what that read. It may follow links, and never out of its
/// root.
fn perform(files: &Files, choice: u8, input: &mut Input<'_>) -> Vec<u8> {
    let path = input.line();
    let mut read = Bounded(Vec::new());
    match choice % 8 {
        0 => {
            if let Ok(info) = files.stat(&path, choice & 64 != 0) {
                assert!(!info.name.contains('/'), "{info:?}");
            }
        }
        1 => list(files, &path),
        2 => {
            let range = (u64::from(input.byte()), u64::from(input.byte()));
            drop(files.read(&path, range, &mut read));
            assert!(range.1 == 0 || read.0.len() as u64 <= range.1, "{range:?}");
        }
        3 => write(files, path, choice, input),
        4 => drop(files.make_directory(&path, u32::from(input.byte()), choice & 64 != 0)),
        5 => drop(files.rename(&path, &input.line())),
        6 => drop(files.remove(&path, choice & 64 != 0, choice & 32 != 0)),
        _ => drop(files.pack(&path, &mut read)),
    }
    read.0
}

/// Lists a directory page by page: the names are in order, and the pages end.
fn list(files: &Files, path: &str) {
    let mut after = String::new();
    while let Ok(page) = files.list(path, &after, PAGE) {
        assert!(page.entries.len() <= PAGE);
        for entry in &page.entries {
            assert!(entry.name > after, "{} after {after}", entry.name);
            after.clone_from(&entry.name);
        }
        if !page.more {
            break;
        }
        assert!(!page.entries.is_empty(), "more than nothing");
    }
}

fn write(files: &Files, path: String, choice: u8, input: &mut Input<'_>) {
    let content = Bytes::copy_from_slice(input.part());
    let request = WriteRequest {
        path,
        mode: u32::from(input.byte()),
        in_place: choice & 64 != 0,
        offset: u64::from(input.byte()),
        user: String::new(),
        make_parents: choice & 32 != 0,
    };
    let length = content.len() as u64;
    let mut content = Some(content);
    let written = files.write(&request, || Ok(content.take()));
    let Ok(written) = written else { return };
    assert_eq!(written, length);
    let mut read = Bounded(Vec::new());
    let start = if request.in_place { request.offset } else { 0 };
    // Whose mode forbids it may not read what it wrote.
    if length > 0
        && files
            .read(&request.path, (start, length), &mut read)
            .is_ok()
    {
        assert_eq!(read.0.len() as u64, length, "{request:?}");
    }
}

/// Takes so many bytes and no more.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = READ_BYTES_MAX.saturating_sub(self.0.len());
        let taken = data.len().min(room);
        self.0.extend(data.iter().take(taken));
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
