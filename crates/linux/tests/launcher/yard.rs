//! Where sandboxes of a test are made.

use std::cell::Cell;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use pinfold_linux::launcher::plan::{Bind, Boot, Identity, PLAN_VERSION, Plan, RootPlan};
use pinfold_linux::launcher::{
    AgentBinary, LaunchError, Launched, Launcher, LauncherConfig, LauncherIdentity, SubordinateIds,
};

use crate::guest::Said;

/// Memory for `/tmp` of a test's sandboxes.
pub(crate) const TMPFS_BYTES: u64 = 1 << 20;

/// Whose ids the sandboxes of a run have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Range,
    Shared,
    Single,
}

#[derive(Debug)]
pub(crate) struct Yard {
    pub(crate) kind: Kind,
    pub(crate) place: tempfile::TempDir,
    pub(crate) launcher: Option<Launcher>,
    made: Cell<u32>,
}

#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) launched: Launched,
    socket: PathBuf,
    pub(crate) private: PathBuf,
    pub(crate) id: String,
}

impl Yard {
    pub(crate) fn new(kind: Kind) -> Self {
        let place = tempfile::tempdir().unwrap();
        let yard = Self {
            kind,
            place,
            launcher: Some(start(kind, None)),
            made: Cell::new(0),
        };
        let layer = yard.layer();
        for name in ["usr", "etc"] {
            fs::create_dir_all(layer.join(name)).unwrap();
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(Path::new("usr").join(name), layer.join(name)).unwrap();
        }
        fs::write(layer.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        yard
    }

    pub(crate) fn launcher(&self) -> &Launcher {
        self.launcher.as_ref().unwrap()
    }

    pub(crate) fn layer(&self) -> PathBuf {
        self.place.path().join("layer")
    }

    pub(crate) fn host(&self, name: &str) -> PathBuf {
        let path = self.place.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Returns a plan that works, with its own private directory.
    pub(crate) fn plan(&self) -> Plan {
        let number = self.made.replace(self.made.get() + 1);
        let private = self.place.path().join(format!("sandbox{number}"));
        for name in ["upper", "work"] {
            fs::create_dir_all(private.join(name)).unwrap();
        }
        Plan {
            version: PLAN_VERSION,
            id: format!("t{}n{number}", std::process::id()),
            identity: match self.kind {
                Kind::Range => Identity::Range {
                    base: 3_000_000_000 + number * 65_536,
                },
                Kind::Shared => Identity::Shared,
                Kind::Single => Identity::Single,
            },
            root: RootPlan {
                layers: vec![self.layer()],
                private,
                volatile: false,
                tmpfs_upper: None,
                binds: vec![bind("/usr", "/usr")],
                layer_reach: None,
            },
            tmpfs_bytes: TMPFS_BYTES,
            hostname: "yard".to_owned(),
            attach: Vec::new(),
            pid_max: None,
            boot: Boot::default(),
        }
    }

    pub(crate) fn launch(&self, plan: &Plan) -> Result<Sandbox, LaunchError> {
        self.launch_with(plan, &[])
    }

    pub(crate) fn launch_with(
        &self,
        plan: &Plan,
        more: &[OwnedFd],
    ) -> Result<Sandbox, LaunchError> {
        let socket = self.place.path().join(format!("{}.sock", plan.id));
        let _none = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let log = std::io::stderr();
        let mut descriptors = vec![listener.as_fd(), log.as_fd()];
        descriptors.extend(more.iter().map(OwnedFd::as_fd));
        Ok(Sandbox {
            launched: self.launcher().launch(plan, &descriptors)?,
            socket,
            private: plan.root.private.clone(),
            id: plan.id.clone(),
        })
    }

    pub(crate) fn sandbox(&self) -> Sandbox {
        self.launch(&self.plan()).unwrap()
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        // What is owned by subordinate ids cannot be removed from outside.
        if let Some(launcher) = &self.launcher {
            for entry in fs::read_dir(self.place.path())
                .into_iter()
                .flatten()
                .flatten()
            {
                let _left = launcher.remove_tree(&entry.path());
            }
        }
    }
}

impl Sandbox {
    /// Runs a command inside and returns its exit code and all that it wrote.
    pub(crate) fn run(&self, words: &[&str]) -> Said {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        let mut line = serde_json::to_vec(words).unwrap();
        line.push(b'\n');
        stream.write_all(&line).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    pub(crate) fn shell(&self, script: &str) -> Said {
        self.run(&["/bin/sh", "-c", script])
    }

    /// Runs a script that must succeed and returns what it wrote.
    pub(crate) fn says(&self, script: &str) -> String {
        let said = self.shell(script);
        assert_eq!(said.code, 0, "{script}: {}", said.text);
        said.text.trim().to_owned()
    }

    /// Runs a script that must fail and returns what it wrote.
    pub(crate) fn refuses(&self, script: &str) -> String {
        let said = self.shell(script);
        assert_ne!(said.code, 0, "{script}: {}", said.text);
        said.text
    }

    pub(crate) fn is_alive(&self) -> bool {
        let mut polled = [rustix::event::PollFd::new(
            &self.launched.pidfd,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut polled, Some(&now)).unwrap() == 0
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let kill = rustix::process::Signal::KILL;
        let _gone = rustix::process::pidfd_send_signal(&self.launched.pidfd, kill);
        let mut polled = [rustix::event::PollFd::new(
            &self.launched.pidfd,
            rustix::event::PollFlags::IN,
        )];
        let _ended = rustix::event::poll(&mut polled, None);
    }
}

pub(crate) fn start(kind: Kind, join: Option<i32>) -> Launcher {
    let identity = match kind {
        Kind::Range => LauncherIdentity::Root,
        Kind::Shared => LauncherIdentity::Subordinate(SubordinateIds::of_caller().unwrap()),
        Kind::Single => LauncherIdentity::Single,
    };
    let program = fs::read(std::env::current_exe().unwrap()).unwrap();
    Launcher::spawn(LauncherConfig {
        agent: AgentBinary::Bytes(program.leak()),
        identity,
        join,
        log: std::io::stderr().as_fd().try_clone_to_owned().unwrap(),
    })
    .unwrap()
}

pub(crate) fn bind(source: impl Into<PathBuf>, target: &str) -> Bind {
    Bind {
        source: source.into(),
        target: PathBuf::from(target),
        writable: false,
        setuid: false,
        mapped: false,
        reach: None,
    }
}
