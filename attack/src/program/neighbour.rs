//! Attacks on another sandbox, and the program that sits there and is attacked.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use pinfold_attack::{NEIGHBOUR_READY, SECRET};

use super::call::{call_with, holds_secret, steals, text, wait_for_ever};
use super::{Attempt, Found};

const FILE: &str = "/tmp/neighbour-secret";
const MEMORY_FILE: &str = "/dev/shm/neighbour-secret";
const ABSTRACT: &str = "pinfold-attack-neighbour";
const PORT: u16 = 47_101;
const QUEUE: &str = "pinfold-attack";
/// Key of the System V memory.
const KEY: usize = 0x7069_6e66;
const MEMORY_BYTES: usize = 4096;
/// Whoever shares a namespace may use it.
const EVERYBODY: usize = 0o666;
/// Longest that a connection to what is not there may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("neighbour-file", |_| steals(FILE)),
    ("neighbour-memory-file", |_| steals(MEMORY_FILE)),
    ("neighbour-processes", |_| processes()),
    ("neighbour-abstract-socket", |_| abstract_socket(ABSTRACT)),
    ("neighbour-port", |_| port(PORT)),
    ("neighbour-shared-memory", |_| {
        let id = call_with(libc::SYS_shmget, &[KEY, MEMORY_BYTES, EVERYBODY]);
        let attached = id.and_then(|id| call_with(libc::SYS_shmat, &[id, 0, 0]));
        Found::of(attached, "attached")
    }),
    ("neighbour-message-queue", |_| {
        let name = text(QUEUE);
        Found::of(
            call_with(libc::SYS_mq_open, &[name.as_ptr().addr(), 0, 0, 0]),
            "opened",
        )
    }),
    ("neighbour-ids", |facts| {
        match (facts.ids_first, facts.neighbour_ids_first) {
            (Some(own), Some(other)) if own == other => {
                Found::Worked("the same ids of the host".to_owned())
            }
            (Some(own), Some(other)) => Found::Failed(format!("{own} and {other}")),
            _ => Found::NotExpressible("sandboxes of an ordinary user share its ids".to_owned()),
        }
    }),
];

/// Lays out what is attacked, says that it is there, and waits to be ended.
pub(super) fn sit() -> io::Result<()> {
    fs::write(FILE, SECRET)?;
    fs::write(MEMORY_FILE, SECRET)?;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(ABSTRACT)?;
    let local = UnixListener::bind_addr(&address)?;
    let remote = TcpListener::bind(("127.0.0.1", PORT))?;
    let create = libc::IPC_CREAT.unsigned_abs() as usize | EVERYBODY;
    let _memory = call_with(libc::SYS_shmget, &[KEY, MEMORY_BYTES, create])?;
    let name = text(QUEUE);
    let create = libc::O_CREAT.unsigned_abs() as usize;
    let _queue = call_with(
        libc::SYS_mq_open,
        &[name.as_ptr().addr(), create, EVERYBODY, 0],
    )?;
    for accept in [0, 1] {
        let (local, remote) = (local.try_clone()?, remote.try_clone()?);
        std::thread::spawn(move || {
            loop {
                // Whoever leaves early has got nothing.
                let _left = if accept == 0 {
                    local
                        .accept()
                        .and_then(|(mut peer, _)| peer.write_all(SECRET.as_bytes()))
                } else {
                    remote
                        .accept()
                        .and_then(|(mut peer, _)| peer.write_all(SECRET.as_bytes()))
                };
            }
        });
    }
    fs::write(NEIGHBOUR_READY, SECRET)?;
    wait_for_ever();
    Ok(())
}

fn processes() -> Found {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in entries {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if command.ends_with(b"\0sit\0") {
            return Found::Worked(format!("process {}", entry.file_name().display()));
        }
    }
    Found::Failed("not among the processes".to_owned())
}

/// Connects to an abstract socket; has worked when it hands out the secret.
pub(super) fn abstract_socket(name: &str) -> Found {
    let connected = std::os::unix::net::SocketAddr::from_abstract_name(name)
        .and_then(|address| UnixStream::connect_addr(&address));
    told(connected)
}

/// Connects to a port of `127.0.0.1`; has worked when it hands out the secret.
pub(super) fn port(number: u16) -> Found {
    let address = SocketAddr::from(([127, 0, 0, 1], number));
    told(TcpStream::connect_timeout(&address, CONNECT_MAX))
}

fn told(connection: io::Result<impl io::Read>) -> Found {
    let read = connection.and_then(|connection| {
        let mut bytes = Vec::new();
        let most = u64::try_from(SECRET.len()).unwrap_or(u64::MAX);
        connection.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    match read {
        Ok(bytes) if holds_secret(&bytes) => Found::Worked("it told the secret".to_owned()),
        Ok(_) => Found::Failed("somebody else answers".to_owned()),
        Err(error) => Found::Failed(error.to_string()),
    }
}
