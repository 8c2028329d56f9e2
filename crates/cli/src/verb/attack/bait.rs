//! Things of the host that attacks reach for, so that one that works has something to show.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write as _};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use pinfold_attack::{Facts, SECRET};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

/// A device that does no harm: `/dev/null`.
const NULL: (u32, u32) = (1, 3);

/// A directory, two listeners, and what is known of them; the directory goes with this.
#[derive(Debug)]
pub(super) struct Bait {
    directory: PathBuf,
    facts: Facts,
}

impl Bait {
    /// Lays everything out.
    pub(super) fn lay() -> io::Result<Self> {
        let pid = std::process::id();
        let directory = std::env::temp_dir().join(format!("pinfold-attack-{pid}"));
        DirBuilder::new().mode(0o755).create(&directory)?;
        let mut bait = Self {
            directory,
            facts: Facts::default(),
        };
        bait.fill(pid)?;
        Ok(bait)
    }

    /// Where everything is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory that is shared with sandboxes, for reading.
    pub(super) fn share(&self) -> PathBuf {
        self.directory.join("share")
    }

    /// What the attacks are told.
    pub(super) fn facts(&self) -> Facts {
        self.facts.clone()
    }

    fn fill(&mut self, pid: u32) -> io::Result<()> {
        let file = self.directory.join("secret");
        fs::write(&file, SECRET)?;
        fs::set_permissions(&file, Permissions::from_mode(0o644))?;
        let share = self.share();
        fs::create_dir(&share)?;
        fs::set_permissions(&share, Permissions::from_mode(0o755))?;
        fs::create_dir(share.join("open"))?;
        fs::set_permissions(share.join("open"), Permissions::from_mode(0o777))?;
        symlink(&file, share.join("link"))?;
        make_device(&share.join("device"));
        let name = format!("pinfold-attack-{pid}");
        let local = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        let remote = TcpListener::bind(("127.0.0.1", 0))?;
        let port = remote.local_addr()?.port();
        // Both end with the program.
        std::thread::spawn(move || {
            for peer in local.incoming() {
                let _left = peer.and_then(|mut peer| peer.write_all(SECRET.as_bytes()));
            }
        });
        std::thread::spawn(move || {
            for peer in remote.incoming() {
                let _left = peer.and_then(|mut peer| peer.write_all(SECRET.as_bytes()));
            }
        });
        self.facts = Facts {
            host_pid: i32::try_from(pid).unwrap_or(0),
            host_name: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            host_abstract: name,
            host_port: port,
            host_address: address(),
            host_file: file.display().to_string(),
            ..Facts::default()
        };
        Ok(())
    }
}

/// Returns the address by which this host would reach others. Nothing is sent to find it.
fn address() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    // An address of documentation, which every default route covers.
    socket.connect(("203.0.113.1", 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Only root can; without it that attack has nothing to try.
fn make_device(path: &Path) {
    let everybody = Mode::from_raw_mode(0o666);
    let (major, minor) = NULL;
    let number = makedev(major, minor);
    if mknodat(CWD, path, FileType::CharacterDevice, everybody, number).is_ok() {
        // Without it the attack fails by permission, which shows nothing.
        let _less = fs::set_permissions(path, Permissions::from_mode(0o666));
    }
}

impl Drop for Bait {
    fn drop(&mut self) {
        // It is the caller's own and holds nothing of value.
        let _left = fs::remove_dir_all(&self.directory);
    }
}
