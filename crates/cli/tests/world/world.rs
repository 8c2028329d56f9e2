//! A person of this machine with a private state directory, who runs the real `pinfold`.
//!
//! The tests run as root and become other users with `setpriv`. Each world has its own daemon,
//! which ends with the world; so tests do not see each other.

#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longest time that any condition may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Who runs the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Person {
    /// The superuser.
    Root,
    /// An ordinary user with subordinate ids and delegated control groups.
    Delegated,
    /// An ordinary user with subordinate ids only.
    Plain,
    /// An ordinary user with nothing but a uid.
    Single,
}

impl Person {
    /// Everybody.
    pub(crate) const ALL: [Self; 4] = [Self::Root, Self::Delegated, Self::Plain, Self::Single];

    fn user(self) -> Option<&'static str> {
        match self {
            Self::Root => None,
            Self::Delegated => Some("pinfold-test"),
            Self::Plain => Some("pinfold-plain"),
            Self::Single => Some("pinfold-single"),
        }
    }
}

/// A person, a private directory and the daemon that starts in it by itself.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) person: Person,
    directory: PathBuf,
    uid: u32,
    gid: u32,
}

/// What a command said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    pub(crate) fn new(output: &Output) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        Self {
            code: output
                .status
                .code()
                .unwrap_or_else(|| 1000 + output.status.signal().unwrap_or_default()),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails the test unless the command exited 0; answers what it printed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(
            self.code, 0,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self.stdout
    }

    /// Fails the test unless the command exited with `code`; answers its standard error.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(
            self.code, code,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self.stderr
    }
}

/// Starts a daemon in the foreground, with its log in a file, and waits until it says where it
/// listens; answers the URL.
#[track_caller]
pub(crate) fn listening(serve: &mut Command, log: &Path) -> (Child, String) {
    let mut child = serve
        .stderr(fs::File::create(log).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut url = String::new();
    eventually("the daemon to say where it listens", || {
        let text = fs::read_to_string(log).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it ended: {text}");
        let line = text.lines().find(|line| line.contains("serving at "));
        let found = line.and_then(|line| line.rsplit_once(" and at "));
        url = found.map_or_else(String::new, |(_, url)| url.trim().to_owned());
        !url.is_empty()
    });
    (child, url)
}

/// Where everybody can execute what is there, and how the copies in it are named.
const TESTED_IN: &str = "/var/tmp";
const TESTED: &str = "pinfold-tested-";

/// The product as everybody can execute it: the build directory may be root's alone.
fn product() -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| {
        let built = Path::new(env!("CARGO_BIN_EXE_pinfold"));
        let stamp = fs::metadata(built).unwrap();
        let name = format!("{TESTED}{}-{}", stamp.size(), stamp.mtime());
        let directory = Path::new(TESTED_IN).join(name);
        let copy = directory.join("pinfold");
        if copy.exists() {
            return copy;
        }
        remove_old_copies();
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let partial = directory.join(format!("partial-{}", std::process::id()));
        fs::copy(built, &partial).unwrap();
        fs::set_permissions(&partial, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&partial, &copy).unwrap();
        copy
    })
}

/// Removes what earlier builds left: each is large. Tests of another build may run right now, so
/// young ones stay.
fn remove_old_copies() {
    const OLD: Duration = Duration::from_hours(1);
    for entry in fs::read_dir(TESTED_IN).unwrap().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(TESTED);
        let made = entry.metadata().and_then(|file| file.modified());
        let age = made.ok().and_then(|made| made.elapsed().ok());
        if ours && age.is_some_and(|age| age > OLD) {
            // Other tests do the same at the same time.
            let _removed_by_another = fs::remove_dir_all(entry.path());
        }
    }
}

/// Directory of what `cargo xtask fixtures` made.
pub(crate) fn fixtures() -> PathBuf {
    let named = std::env::var_os("PINFOLD_FIXTURES").map(PathBuf::from);
    let directory = named
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fixtures"));
    assert!(
        directory.is_dir(),
        "{} is not there: run `cargo xtask fixtures`",
        directory.display()
    );
    directory.canonicalize().unwrap()
}

impl World {
    /// Makes a private place for a person. The tests need root to become others.
    pub(crate) fn new(person: Person) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests become several users, so run them as root"
        );
        let (uid, gid) = person.user().map_or((0, 0), |user| {
            let id = |flag: &str| -> u32 {
                let output = Command::new("id").args([flag, user]).output().unwrap();
                assert!(
                    output.status.success(),
                    "{user} is not there: run `cargo xtask people`"
                );
                String::from_utf8(output.stdout)
                    .unwrap()
                    .trim()
                    .parse()
                    .unwrap()
            };
            (id("-u"), id("-g"))
        });
        let directory = tempfile::Builder::new()
            .prefix("pf-")
            .tempdir_in("/var/tmp")
            .unwrap()
            .keep();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&directory, Some(uid), Some(gid)).unwrap();
        let world = Self {
            person,
            directory,
            uid,
            gid,
        };
        for name in ["home", "run", "files"] {
            let path = world.directory.join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        }
        world
    }

    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// Directory that the daemon keeps its state in.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// The daemon's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("run/pinfold.sock")
    }

    /// A directory of the person's for files of the test.
    pub(crate) fn files(&self) -> PathBuf {
        self.directory.join("files")
    }

    /// Writes a file of the person's and answers its path.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.files().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        self.give(&self.files());
        path
    }

    /// Copies a fixture to where the person can read it.
    pub(crate) fn fixture(&self, name: &str) -> PathBuf {
        let copy = self.files().join(name);
        if !copy.exists() {
            let status = Command::new("cp")
                .args(["-a", "--reflink=auto"])
                .arg(fixtures().join(name))
                .arg(&copy)
                .status()
                .unwrap();
            assert!(status.success(), "fixture {name}");
            self.give(&copy);
        }
        copy
    }

    /// Makes the person the owner of a path and everything beneath it.
    pub(crate) fn give(&self, path: &Path) {
        let status = Command::new("chown")
            .args(["-R", "-h", &format!("{}:{}", self.uid, self.gid)])
            .arg(path)
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Prepares any program to run as the person, with the private directories in its environment.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = if self.person == Person::Root {
            Command::new(program)
        } else {
            let mut command = Command::new("setpriv");
            command
                .args([
                    format!("--reuid={}", self.uid),
                    format!("--regid={}", self.gid),
                ])
                .args([
                    "--clear-groups",
                    "--inh-caps=-all",
                    "--bounding-set=+all",
                    "--",
                ])
                .arg(program);
            command
        };
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", self.directory.join("home"))
            .env("PINFOLD_STATE_DIR", self.state())
            .env("PINFOLD_SOCKET", self.socket())
            .env("LANG", "C.UTF-8")
            .current_dir(self.files())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Prepares `pinfold` with arguments.
    pub(crate) fn pinfold<I: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
    ) -> Command {
        let mut command = self.command(product());
        command.args(arguments);
        command
    }

    /// Runs `pinfold` to its end.
    pub(crate) fn run<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Said {
        Said::new(&self.pinfold(arguments).output().unwrap())
    }

    /// Runs `pinfold` with something on its standard input.
    pub(crate) fn run_with_input<I: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
        input: &[u8],
    ) -> Said {
        let mut child = self
            .pinfold(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // The program may end before it has read everything.
            let _broken_pipe = stdin.write_all(&input);
        });
        let said = Said::new(&child.wait_with_output().unwrap());
        writer.join().unwrap();
        said
    }

    /// Runs `pinfold … --json` and answers the value.
    #[track_caller]
    pub(crate) fn json<I: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
    ) -> serde_json::Value {
        let mut command = self.pinfold(["--json"]);
        command.args(arguments);
        let printed = Said::new(&command.output().unwrap()).ok();
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    /// Starts `pinfold` and leaves it running.
    pub(crate) fn spawn<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Child {
        self.pinfold(arguments).spawn().unwrap()
    }

    /// Makes a sandbox and answers its id.
    #[track_caller]
    pub(crate) fn create(&self, arguments: &[&str]) -> String {
        let made = self.json(["create"].iter().chain(arguments));
        let one = made.get(0).unwrap_or(&made);
        one["id"]
            .as_str()
            .unwrap_or_else(|| panic!("{made}"))
            .to_owned()
    }

    /// Process id of the daemon, when one runs for this world.
    pub(crate) fn daemon(&self) -> Option<i32> {
        let mark = format!("PINFOLD_STATE_DIR={}", self.state().display());
        fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let words = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
            let has = |bytes: &[u8], word: &str| {
                bytes
                    .split(|byte| *byte == 0)
                    .any(|part| part == word.as_bytes())
            };
            (has(&words("cmdline"), "serve") && has(&words("environ"), &mark) && alive(pid))
                .then_some(pid)
        })
    }

    /// Kills the daemon with signal 9 and waits until it is gone.
    pub(crate) fn kill_daemon(&self) {
        let pid = self.daemon().expect("no daemon to kill");
        signal(pid, 9);
        eventually("the daemon to be gone", || !alive(pid));
        // Its first thread may be gone before the last one, which still holds the socket.
        let socket = self.socket();
        eventually("its socket to be closed", || {
            std::os::unix::net::UnixStream::connect(&socket).is_err()
        });
    }

    fn finish(&self) {
        let _best_effort = self.pinfold(["rm", "--all", "--force"]).output();
        if let Some(pid) = self.daemon() {
            signal(pid, 15);
            let deadline = Instant::now() + PATIENCE;
            while alive(pid) && Instant::now() < deadline {
                pause();
            }
        }
        // Files of subordinate ids are root's to remove.
        let _best_effort = fs::remove_dir_all(&self.directory);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::env::var_os("PINFOLD_KEEP_WORLD").is_some() {
            println!("kept {}", self.directory.display());
            return;
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.state().join("daemon.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.len().saturating_sub(40);
            println!("end of the daemon's log:\n{}", lines[tail..].join("\n"));
        }
        self.finish();
    }
}

/// Waits until something is so; fails the test after [`PATIENCE`].
#[track_caller]
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        pause();
    }
}

/// Lets others run between two looks at a condition, without burning a core.
pub(crate) fn pause() {
    let timeout = rustix::time::Timespec {
        tv_sec: 0,
        tv_nsec: 10_000_000,
    };
    let _interrupted = rustix::event::poll(&mut [], Some(&timeout));
}

/// Sends a signal to a process.
pub(crate) fn signal(pid: i32, number: i32) {
    // It may be gone already, which is as good.
    Command::new("kill")
        .args([format!("-{number}"), pid.to_string()])
        .stderr(Stdio::null())
        .status()
        .unwrap();
}

/// Returns whether a process exists and is not merely unreaped.
pub(crate) fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
    })
}

/// Every directory of any control group hierarchy whose name is an id.
pub(crate) fn cgroups_of(id: &str) -> BTreeSet<PathBuf> {
    let output = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-name", id])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(PathBuf::from)
        .collect()
}

/// Processes that live in, or hold a descriptor of, one of some namespaces such as `net:[123]`.
pub(crate) fn holders_of(namespaces: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        if !entry
            .file_name()
            .to_string_lossy()
            .starts_with(|c: char| c.is_ascii_digit())
        {
            continue;
        }
        for directory in ["ns", "fd"] {
            for link in fs::read_dir(entry.path().join(directory))
                .into_iter()
                .flatten()
                .flatten()
            {
                if let Ok(target) = fs::read_link(link.path())
                    && namespaces.contains(&*target.to_string_lossy())
                {
                    found.push(format!("{} -> {}", link.path().display(), target.display()));
                }
            }
        }
    }
    found
}

/// Lines of the mount tables of every process that name a path or an id.
pub(crate) fn mounts_naming(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let table = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        found.extend(
            table
                .lines()
                .filter(|line| line.contains(text))
                .map(|line| format!("{}: {line}", entry.path().display())),
        );
    }
    found
}
