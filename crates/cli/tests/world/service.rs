//! A daemon of a world that listens on a port, and the programs that speak to it.

#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::world::{World, listening, signal};

/// Address that a network of a daemon's own has beside loopback; it is for documents and nobody's.
pub(crate) const OTHER_ADDRESS: &str = "192.0.2.1";

/// A daemon in the foreground that listens on a port.
#[derive(Debug)]
pub(crate) struct Service {
    child: Child,
    log: PathBuf,
    /// Whether it has a loopback network of its own.
    apart: bool,
    /// As in `http://127.0.0.1:8080`.
    pub(crate) url: String,
}

impl Service {
    /// Starts the daemon with arguments of `serve`.
    pub(crate) fn start(world: &World, arguments: &[&str]) -> Self {
        Self::launch(world, arguments, false)
    }

    /// Starts it in a network of its own, where every port is free; [`Self::enter`] goes there.
    pub(crate) fn start_apart(world: &World, arguments: &[&str]) -> Self {
        Self::launch(world, arguments, true)
    }

    fn launch(world: &World, arguments: &[&str], apart: bool) -> Self {
        let log = world.files().join("serve.log");
        let serve = world.pinfold(["serve"].iter().chain(arguments));
        let mut command = if apart {
            let script = format!(
                "ip link set lo up && ip address add {OTHER_ADDRESS}/32 dev lo && exec \"$@\""
            );
            behind(&serve, &["unshare", "--net", "sh", "-c", &script, "sh"])
        } else {
            serve
        };
        let (child, url) = listening(&mut command, &log);
        Self {
            child,
            log,
            apart,
            url,
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// What the daemon has said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Lets a program run where the daemon's port is.
    pub(crate) fn enter(&self, command: &Command) -> Command {
        if !self.apart {
            return behind(command, &["env"]);
        }
        let network = format!("--net=/proc/{}/ns/net", self.pid());
        behind(command, &["nsenter", &network, "--"])
    }

    /// Runs a line of shell as the world's person, with a key in `$KEY`; answers what it printed.
    #[track_caller]
    pub(crate) fn shell(&self, world: &World, line: &str, key: &str) -> String {
        let mut shell = world.command(Path::new("/bin/sh"));
        shell.args(["-c", line]).env("KEY", key);
        let output = self.enter(&shell).output().unwrap();
        printed(&output, line)
    }

    /// As [`Self::shell`], and reads what was printed as JSON.
    #[track_caller]
    pub(crate) fn json(&self, world: &World, line: &str, key: &str) -> Value {
        let text = self.shell(world, line, key);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
    }

    /// Ends the daemon as an operator would and checks that it ended well.
    pub(crate) fn end(mut self) {
        signal(self.pid(), 15);
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
    }

    /// Kills the daemon and waits until nothing of it is left.
    pub(crate) fn kill(mut self) {
        signal(self.pid(), 9);
        self.child.wait().unwrap();
    }
}

#[track_caller]
fn printed(output: &Output, line: &str) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {text}{told}");
    text
}

/// Puts words before a command, with its environment and directory.
fn behind(command: &Command, words: &[&str]) -> Command {
    let mut longer = Command::new(words[0]);
    longer
        .args(&words[1..])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(directory) = command.get_current_dir() {
        longer.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        longer.env(name, value.unwrap_or_default());
    }
    longer
}

/// Prepares a client in Python; root runs it, whoever the daemon belongs to.
pub(crate) fn client(name: &str) -> Command {
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let mut command = python();
    command.arg(clients.join(name));
    command
}

/// Prepares the Python that has the clients' packages.
pub(crate) fn python() -> Command {
    let named = std::env::var_os("PINFOLD_PYTHON").map(PathBuf::from);
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = named.unwrap_or_else(|| manifest.join("../../target/python/bin/python"));
    assert!(
        python.is_file(),
        "{} is not there: run `cargo xtask python`",
        python.display()
    );
    let mut command = Command::new(python);
    command
        .arg("-B")
        .env_clear()
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .env("LANG", "C.UTF-8")
        .env("HOME", "/nonexistent")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}
