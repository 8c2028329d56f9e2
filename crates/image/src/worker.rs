//! Unpacking in a process that holds the ids which files belong to.
//!
//! An ordinary user's process cannot give a file to a subordinate id; one in a user namespace that
//! maps them can. The driver runs this product there with the words that [`serve`] understands.
//! The archive is its standard input, so that only the store's directory need be visible to it,
//! and it answers with lines of JSON on its standard output.

use std::cell::Cell;
use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use pinfold_linux::beneath::Beneath;
use pinfold_types::ErrorChain;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::archive::{InvalidImage, Limits, Owners, UnpackError, UnpackReport, unpack_archive};

/// The subcommand of the product that [`serve`] stands behind.
pub const SUBCOMMAND: &str = "internal-unpack";
/// Most bytes of a line that the process may answer with.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Exit code of a process that said why it failed.
const FAILED: u8 = 1;
/// Exit code of a process that was started with other words.
const MISUSED: u8 = 2;

/// Runs this product where the caller's subordinate ids are mapped.
pub trait Mapped: Debug + Send + Sync {
    /// Runs it with these arguments, standard input and standard output, waits for it, and returns
    /// its exit code (128 and the signal's number after a signal).
    ///
    /// No copy of the descriptors is left open in this process when it returns.
    ///
    /// # Errors
    /// Fails if it cannot be started or waited for.
    fn run(
        &self,
        arguments: &[OsString],
        standard_input: OwnedFd,
        standard_output: OwnedFd,
    ) -> io::Result<i32>;
}

/// One line of the process's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    /// So many bytes of the archive were read.
    Read(u64),
    /// All is done.
    Done(UnpackReport),
    /// Nothing came of it.
    Failed(Fault),
}

/// An [`UnpackError`] as it travels.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fault {
    Invalid(InvalidImage),
    Read(HostFault),
    Write(String, HostFault),
    Owner(String, u32, u32, HostFault),
}

/// What the kernel said.
#[derive(Debug, Serialize, Deserialize)]
struct HostFault {
    number: Option<i32>,
    text: String,
}

/// Does what the store asked for and returns the exit code: the whole of `internal-unpack`.
///
/// `words` are the arguments after the subcommand.
pub fn serve(words: &[OsString], input: &mut dyn Read, output: &mut dyn Write) -> u8 {
    let text: Vec<Option<&str>> = words.iter().map(|word| word.to_str()).collect();
    let said = match (text.as_slice(), words) {
        ([Some("unpack"), _], [_, destination]) => unpack(Path::new(destination), input, output),
        ([Some("remove"), _, _], [_, parent, name]) => remove(Path::new(parent), Path::new(name)),
        _ => return MISUSED,
    };
    let failed = matches!(said, Said::Failed(_));
    match (say(output, &said), failed) {
        (Ok(()), false) => 0,
        _ => FAILED,
    }
}

fn unpack(destination: &Path, input: &mut dyn Read, output: &mut dyn Write) -> Said {
    let _working = hold(destination.parent().unwrap_or(destination));
    let alone = Cell::new(false);
    let mut progress = |read| alone.set(say(output, &Said::Read(read)).is_err());
    let mut input = WhileHeard {
        input,
        alone: &alone,
    };
    let limits = Limits::default();
    match unpack_archive(&mut input, destination, Owners::Keep, limits, &mut progress) {
        Ok(report) => Said::Done(report),
        Err(error) => Said::Failed(error.into()),
    }
}

/// An archive that cannot be read on when whoever asked for it is gone.
struct WhileHeard<'a> {
    input: &'a mut dyn Read,
    alone: &'a Cell<bool>,
}

impl Read for WhileHeard<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.alone.get() {
            return Err(io::Error::from(Errno::PIPE));
        }
        self.input.read(buffer)
    }
}

/// Waits until no other process works in a directory, and keeps others waiting.
///
/// A process that unpacks may outlive the daemon that asked for it by a moment; the next daemon
/// must not remove what is still being made. Where nothing can be locked there is no such process.
fn hold(directory: &Path) -> Option<File> {
    let held = File::open(directory).ok()?;
    while rustix::fs::flock(&held, FlockOperation::LockExclusive) == Err(Errno::INTR) {}
    Some(held)
}

fn remove(parent: &Path, name: &Path) -> Said {
    let _alone = hold(&parent.join(name));
    match Beneath::open(parent).and_then(|beneath| beneath.remove_all(name)) {
        Ok(()) => Said::Done(UnpackReport::default()),
        Err(error) => Said::Failed(Fault::Write(
            error.path.display().to_string(),
            HostFault::new(&error.source),
        )),
    }
}

fn say(output: &mut dyn Write, said: &Said) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    output.write_all(&line)?;
    output.flush()
}

/// Unpacks an archive into a directory in a process that holds the ids of its owners.
pub(crate) fn unpack_mapped(
    mapped: &dyn Mapped,
    archive: File,
    destination: &Path,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<UnpackReport, WorkerError> {
    let words = ["unpack".into(), destination.as_os_str().to_owned()];
    ask(mapped, &words, archive.into(), progress)
}

/// Removes a directory whose files may belong to any of the ids.
pub(crate) fn remove_mapped(
    mapped: &dyn Mapped,
    parent: &Path,
    name: &str,
) -> Result<(), WorkerError> {
    let words = ["remove".into(), parent.as_os_str().to_owned(), name.into()];
    let nothing = File::open("/dev/null").map_err(WorkerError::Run)?;
    ask(mapped, &words, nothing.into(), &mut |_| {}).map(drop)
}

/// The other process gave no result.
#[derive(Debug)]
pub(crate) enum WorkerError {
    /// It answered with an error.
    Unpack(UnpackError),
    /// It could not be run.
    Run(io::Error),
    /// It ended with this code and without an answer.
    Silent(i32),
}

fn ask(
    mapped: &dyn Mapped,
    words: &[OsString],
    input: OwnedFd,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<UnpackReport, WorkerError> {
    let mut arguments = vec![OsString::from(SUBCOMMAND)];
    arguments.extend_from_slice(words);
    let (reading, writing) = io::pipe().map_err(WorkerError::Run)?;
    let (ended, said) = std::thread::scope(|scope| {
        let listener = scope.spawn(move || listen(reading, progress));
        let ended = mapped.run(&arguments, input, writing.into());
        (ended, listener.join())
    });
    let code = ended.map_err(WorkerError::Run)?;
    match said {
        Ok(Some(Said::Done(report))) if code == 0 => Ok(report),
        Ok(Some(Said::Failed(fault))) => Err(WorkerError::Unpack(fault.into())),
        _ => Err(WorkerError::Silent(code)),
    }
}

/// Hears what a process says until it closes its end, and returns its last word.
fn listen(reading: io::PipeReader, progress: &mut (dyn FnMut(u64) + Send)) -> Option<Said> {
    let mut lines = BufReader::new(reading);
    let mut last = None;
    loop {
        let mut line = Vec::new();
        let read = lines
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line);
        if !read.is_ok_and(|read| read > 0) {
            return last;
        }
        match serde_json::from_slice(&line) {
            Ok(Said::Read(bytes)) => progress(bytes),
            Ok(said) => last = Some(said),
            Err(_) => return None,
        }
    }
}

impl HostFault {
    fn new(error: &io::Error) -> Self {
        Self {
            number: error.raw_os_error(),
            text: ErrorChain(error).to_string(),
        }
    }
}

impl From<HostFault> for io::Error {
    fn from(fault: HostFault) -> Self {
        match fault.number {
            Some(number) => Self::from_raw_os_error(number),
            None => Self::other(fault.text),
        }
    }
}

impl From<UnpackError> for Fault {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::Invalid(problem) => Self::Invalid(problem),
            UnpackError::Read(source) => Self::Read(HostFault::new(&source)),
            UnpackError::Write { name, source } => Self::Write(name, HostFault::new(&source)),
            UnpackError::Owner {
                name,
                user,
                group,
                source,
            } => Self::Owner(name, user, group, HostFault::new(&source)),
        }
    }
}

impl From<Fault> for UnpackError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Invalid(problem) => Self::Invalid(problem),
            Fault::Read(source) => Self::Read(source.into()),
            Fault::Write(name, source) => Self::Write {
                name,
                source: source.into(),
            },
            Fault::Owner(name, user, group, source) => Self::Owner {
                name,
                user,
                group,
                source: source.into(),
            },
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::archive::{Access, Builder};

    /// Does the work in this very process, as if it held the ids.
    #[derive(Debug)]
    pub(crate) struct InProcess;

    impl Mapped for InProcess {
        fn run(&self, arguments: &[OsString], input: OwnedFd, output: OwnedFd) -> io::Result<i32> {
            let [subcommand, words @ ..] = arguments else {
                return Ok(i32::from(MISUSED));
            };
            assert_eq!(subcommand, SUBCOMMAND);
            let code = serve(words, &mut File::from(input), &mut File::from(output));
            Ok(code.into())
        }
    }

    #[test]
    fn faults_travel() {
        for error in [
            UnpackError::Invalid(InvalidImage::Truncated),
            UnpackError::Read(io::Error::from_raw_os_error(5)),
            UnpackError::Write {
                name: "a".to_owned(),
                source: io::Error::from_raw_os_error(28),
            },
        ] {
            let text = ErrorChain(&error).to_string();
            let line = serde_json::to_vec(&Fault::from(error)).unwrap();
            let fault: Fault = serde_json::from_slice(&line).unwrap();
            assert_eq!(ErrorChain(&UnpackError::from(fault)).to_string(), text);
        }
    }

    #[test]
    fn nobody_unpacks_for_a_daemon_that_is_gone() {
        let place = tempfile::tempdir().unwrap();
        let words = ["unpack".into(), place.path().as_os_str().to_owned()];
        let (heard, mut said) = io::pipe().unwrap();
        drop(heard);
        let large = vec![0; 4 << 20];
        let mut left = large.as_slice();
        let mut archive = Builder::default();
        archive.file(
            Path::new("large"),
            &large,
            Access {
                owner: 0,
                mode: 0o644,
            },
        );
        let archive = archive.finish();
        let mut input = archive.as_slice().chain(&mut left);
        assert_eq!(serve(&words, &mut input, &mut said), FAILED);
        assert_eq!(left.len(), large.len(), "it read on");
    }

    #[test]
    fn other_words_are_refused() {
        let words = |words: &[&str]| -> Vec<OsString> { words.iter().map(Into::into).collect() };
        for given in [&[][..], &["unpack"], &["remove", "a"], &["x", "y"]] {
            let code = serve(&words(given), &mut io::empty(), &mut io::sink());
            assert_eq!(code, MISUSED);
        }
    }
}
