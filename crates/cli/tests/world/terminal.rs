//! A pseudo terminal with `pinfold` on it.

#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::world::{PATIENCE, World};

/// A person's terminal with `pinfold` on it.
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) child: Child,
    seen: String,
}

impl Terminal {
    /// Starts `pinfold` on a terminal of its own.
    pub(crate) fn open(world: &World, arguments: &[&str]) -> Self {
        Self::of(world, &world.pinfold(arguments))
    }

    /// Starts a prepared command on a terminal of its own.
    pub(crate) fn of(world: &World, command: &Command) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        resize(&master, 80, 24);
        let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        // `setsid --ctty` makes the terminal the controlling one, as a login does.
        let pinfold = command;
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "--wait"])
            .arg(pinfold.get_program())
            .args(pinfold.get_args())
            .env_clear()
            .envs(
                pinfold
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .env("TERM", "xterm")
            .current_dir(world.files())
            .stdin(Stdio::from(open()))
            .stdout(Stdio::from(open()))
            .stderr(Stdio::from(open()));
        Self {
            master,
            child: command.spawn().unwrap(),
            seen: String::new(),
        }
    }

    pub(crate) fn type_in(&self, text: &str) {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let written = rustix::io::write(&self.master, rest).unwrap();
            rest = &rest[written..];
        }
    }

    /// Reads until a text has appeared since the last call, and answers what came with it.
    #[track_caller]
    pub(crate) fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            assert!(Instant::now() < deadline, "no {text:?} in {:?}", self.seen);
            self.read_some();
        }
    }

    /// Reads what is there within a moment; answers whether the terminal is still open.
    pub(crate) fn read_some(&mut self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout)).unwrap() == 0 {
            return true;
        }
        let mut buffer = [0; 4096];
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(0) | Err(_) => false,
            Ok(length) => {
                self.seen
                    .push_str(&String::from_utf8_lossy(&buffer[..length]));
                true
            }
        }
    }

    pub(crate) fn end(mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(
                Instant::now() < deadline,
                "it does not end: {:?}",
                self.seen
            );
            self.read_some();
        }
    }
}

/// Gives a terminal another size.
pub(crate) fn resize(master: &OwnedFd, columns: u16, rows: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(master.as_fd(), size).unwrap();
}
