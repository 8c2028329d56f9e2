//! Pseudo terminals.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::{SpecialCodeIndex, Winsize};

/// What ends input on a terminal that has no such character set: Ctrl-D.
const END_OF_FILE_DEFAULT: u8 = 4;

/// A pseudo terminal: our end, and the end that a process gets.
#[derive(Debug)]
pub struct Terminal {
    /// Our end; reads and writes do not wait.
    pub ours: OwnedFd,
    /// The process's end; close it here once the process has it.
    pub theirs: OwnedFd,
}

/// Makes a terminal of a size, owned by a user.
///
/// # Errors
/// Fails when there is no `/dev/ptmx`, or no terminal is left.
pub fn open(columns: u16, rows: u16, owner: u32) -> io::Result<Terminal> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&ours)?;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
    resize(&ours, columns, rows)?;
    if Uid::from_raw(owner) != rustix::process::geteuid() {
        rustix::fs::fchown(&theirs, Some(Uid::from_raw(owner)), None::<Gid>)?;
    }
    rustix::fs::fchmod(&theirs, Mode::RUSR | Mode::WUSR | Mode::WGRP)?;
    rustix::fs::fcntl_setfl(&ours, OFlags::RDWR | OFlags::NONBLOCK)?;
    Ok(Terminal { ours, theirs })
}

/// Tells a terminal its size; its processes get `SIGWINCH`.
///
/// # Errors
/// Fails when the descriptor is no terminal.
pub fn resize(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// Returns the process group in the foreground of a terminal.
///
/// # Errors
/// Fails when there is none.
pub fn foreground_group(terminal: impl AsFd) -> io::Result<i32> {
    Ok(rustix::termios::tcgetpgrp(terminal)?.as_raw_nonzero().get())
}

/// Returns the character that ends input.
pub fn end_of_file(terminal: impl AsFd) -> u8 {
    match rustix::termios::tcgetattr(terminal) {
        Ok(modes) if modes.special_codes[SpecialCodeIndex::VEOF] != 0 => {
            modes.special_codes[SpecialCodeIndex::VEOF]
        }
        _ => END_OF_FILE_DEFAULT,
    }
}
