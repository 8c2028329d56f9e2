//! The product as anybody runs it, and its API as anybody speaks it.

#![expect(unsafe_code, reason = "the use of a child is known by `wait4` alone")]

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pinfold_attack::{FACTS_VARIABLE, Facts, Outside};

/// Longest time that a command of the product may take.
pub(super) const COMMAND: Duration = Duration::from_mins(1);
/// Most bytes of output that are kept.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Most bytes of an answer that are kept.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// The product.
#[derive(Debug)]
pub(super) struct Product {
    pub(super) given: Outside,
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) ok: bool,
    pub(super) late: bool,
    pub(super) out: Vec<u8>,
    pub(super) err: Vec<u8>,
    /// Most memory that it had.
    pub(super) memory_kib: i64,
}

impl Ran {
    /// What it said last, for people.
    pub(super) fn word(&self) -> String {
        let said = String::from_utf8_lossy(&self.err);
        // Without the colours that we asked for.
        let plain = |line: &str| {
            let mut parts = line.split("\u{1b}[");
            let first = parts.next().unwrap_or_default().to_owned();
            parts.fold(first, |text, part| {
                text + part.split_once('m').map_or(part, |(_, rest)| rest)
            })
        };
        let mut lines = said.lines().map(|line| plain(line.trim()));
        let error = lines.clone().find(|line| line.starts_with("error:"));
        let cause = lines.clone().rfind(|line| line.starts_with("caused by:"));
        match cause
            .or(error)
            .or_else(|| lines.find(|line| !line.is_empty()))
        {
            _ if self.late => "it did not end".to_owned(),
            Some(line) => line,
            None if self.ok => "it went well".to_owned(),
            None => "it failed".to_owned(),
        }
    }

    /// Returns whether it said something anywhere.
    pub(super) fn said(&self, text: &str) -> bool {
        let holds = |bytes: &[u8]| {
            bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        holds(&self.out) || holds(&self.err)
    }
}

impl Product {
    pub(super) fn of(facts: &Facts) -> io::Result<Self> {
        let given = facts.outside.clone();
        let given = given.ok_or_else(|| io::Error::other("there is no product"))?;
        Ok(Self { given })
    }

    /// A path of the attack's own.
    pub(super) fn scratch(&self, name: &str) -> PathBuf {
        Path::new(&self.given.scratch).join(name)
    }

    /// Makes a directory of the attack's own.
    pub(super) fn directory(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.scratch(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Prepares the product with arguments.
    pub(super) fn command<I: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
    ) -> Command {
        let mut command = Command::new(&self.given.product);
        command
            .args(arguments)
            .env_remove(FACTS_VARIABLE)
            .env("PINFOLD_SOCKET", &self.given.socket)
            // A daemon that an attack ended must stay ended, and colours show what is let through.
            .env("PINFOLD_AUTOSTART", "false")
            .env("PINFOLD_COLOR", "always")
            .current_dir(&self.given.scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the product for no longer than it may take.
    pub(super) fn run<I: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
    ) -> io::Result<Ran> {
        run(self.command(arguments), COMMAND)
    }

    /// Runs the product, which has to do what it is told.
    pub(super) fn must<I: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
    ) -> io::Result<Ran> {
        let ran = self.run(arguments)?;
        if ran.ok {
            Ok(ran)
        } else {
            Err(io::Error::other(ran.word()))
        }
    }

    /// Makes a sandbox that goes with the value.
    pub(super) fn sandbox(&self, arguments: &[&str]) -> io::Result<Sandbox<'_>> {
        match self.try_sandbox(arguments)? {
            Ok(sandbox) => Ok(sandbox),
            Err(ran) => Err(io::Error::other(ran.word())),
        }
    }

    /// Makes a sandbox, or says how that failed.
    pub(super) fn try_sandbox(&self, arguments: &[&str]) -> io::Result<Result<Sandbox<'_>, Ran>> {
        let ran = self.run(["--json", "create"].iter().chain(arguments))?;
        if !ran.ok {
            return Ok(Err(ran));
        }
        let made: serde_json::Value = serde_json::from_slice(&ran.out)?;
        let one = made.get(0).unwrap_or(&made);
        let id = one.get("id").and_then(serde_json::Value::as_str);
        let id = id.ok_or_else(|| io::Error::other("the sandbox has no id"))?;
        Ok(Ok(Sandbox {
            product: self,
            id: id.to_owned(),
        }))
    }

    /// Sends a request and answers what comes in some time, from the first line on.
    pub(super) fn ask(&self, request: &[u8], most: Duration) -> io::Result<Answer> {
        let mut stream = UnixStream::connect(&self.given.socket)?;
        stream.set_write_timeout(Some(most))?;
        // A server may refuse before it has heard everything.
        let _refused = stream.write_all(request);
        let deadline = Instant::now() + most;
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        let ended = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || bytes.len() > ANSWER_BYTES_MAX {
                break false;
            }
            stream.set_read_timeout(Some(left))?;
            match stream.read(&mut buffer) {
                Ok(0) => break true,
                Ok(count) => bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break true,
                Err(_) => break false,
            }
        };
        Ok(Answer { bytes, ended })
    }

    /// Asks for something with a plain request.
    pub(super) fn get(&self, target: &str, most: Duration) -> io::Result<Answer> {
        let request = format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        self.ask(request.as_bytes(), most)
    }

    /// Returns whether the daemon answers, soon.
    pub(super) fn answers(&self) -> bool {
        const SOON: Duration = Duration::from_secs(20);
        self.get("/v1/version", SOON)
            .is_ok_and(|answer| answer.status() == Some(200))
    }

    /// Process of the daemon.
    pub(super) fn daemon(&self) -> io::Result<i64> {
        let answer = self.get("/v1/version", COMMAND)?;
        let pid = answer.json().and_then(|json| json.get("pid")?.as_i64());
        pid.ok_or_else(|| io::Error::other("the daemon does not say its process"))
    }
}

/// What came for a request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    /// It is all there is.
    pub(super) ended: bool,
}

impl Answer {
    pub(super) fn status(&self) -> Option<u16> {
        let head = self.bytes.get(..64.min(self.bytes.len()))?;
        let line = String::from_utf8_lossy(head);
        line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
    }

    fn json(&self) -> Option<serde_json::Value> {
        let start = self.bytes.windows(4).position(|part| part == b"\r\n\r\n")?;
        serde_json::from_slice(self.bytes.get(start + 4..)?).ok()
    }
}

/// A sandbox that is removed with the value.
#[derive(Debug)]
pub(super) struct Sandbox<'a> {
    product: &'a Product,
    pub(super) id: String,
}

impl Sandbox<'_> {
    /// Runs a program inside.
    pub(super) fn exec(&self, command: &[&str]) -> io::Result<Ran> {
        self.product
            .run(["exec", &self.id, "--"].iter().chain(command))
    }

    /// Runs a script of the shell inside, which has to go well.
    pub(super) fn script(&self, script: &str) -> io::Result<Ran> {
        let ran = self.exec(&["sh", "-c", script])?;
        if ran.ok {
            Ok(ran)
        } else {
            Err(io::Error::other(format!("a script inside: {}", ran.word())))
        }
    }

    /// Leaves a program running inside.
    pub(super) fn leave(&self, command: &[&str]) -> io::Result<()> {
        let start = ["exec", "--detach", &self.id, "--"];
        self.product.must(start.iter().chain(command)).map(drop)
    }

    /// Copies this program inside.
    pub(super) fn bring_program(&self) -> io::Result<()> {
        let own = std::env::current_exe()?;
        let to = self.path("/attack");
        self.product
            .must([OsStr::new("cp"), own.as_os_str(), OsStr::new(&to)])?;
        self.script("chmod 755 /attack").map(drop)
    }

    /// Names a path inside, for `cp`.
    pub(super) fn path(&self, path: &str) -> String {
        format!("{}:{path}", self.id)
    }

    /// Copies out.
    pub(super) fn copy_out(&self, path: &str, to: &Path) -> io::Result<Ran> {
        let from = self.path(path);
        self.product
            .run([OsStr::new("cp"), OsStr::new(&from), to.as_os_str()])
    }

    /// Copies in.
    pub(super) fn copy_in(&self, from: &Path, path: &str) -> io::Result<Ran> {
        let to = self.path(path);
        self.product
            .run([OsStr::new("cp"), from.as_os_str(), OsStr::new(&to)])
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        // What is left is the next sweep's.
        let _left = self.product.run(["rm", "--force", &self.id]);
    }
}

/// Runs a program to its end or for no longer than it may take, and keeps some of what it says.
pub(super) fn run(mut command: Command, most: Duration) -> io::Result<Ran> {
    let mut child = command.spawn()?;
    let (ended, end) = mpsc::channel();
    let out = child.stdout.take().map(|pipe| reading(pipe, ended.clone()));
    let err = child.stderr.take().map(|pipe| reading(pipe, ended));
    let deadline = Instant::now() + most;
    let mut late = false;
    // Ends when both pipes have: nobody holds the other end of the channel then.
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match end.recv_timeout(left) {
            Ok(()) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                late = true;
                child.kill()?;
                break;
            }
        }
    }
    let (status, memory_kib) = reap(child.id())?;
    let gather = |reader: Option<JoinHandle<Vec<u8>>>| {
        reader
            .and_then(|reader| reader.join().ok())
            .unwrap_or_default()
    };
    Ok(Ran {
        ok: !late && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        late,
        out: gather(out),
        err: gather(err),
        memory_kib,
    })
}

fn reading(mut pipe: impl Read + Send + 'static, ended: mpsc::Sender<()>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count) = pipe.read(&mut buffer)
            && count > 0
        {
            let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len()).min(count);
            kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
        }
        drop(ended);
        kept
    })
}

fn reap(pid: u32) -> io::Result<(i32, i64)> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    let mut status = 0;
    // SAFETY: all zero is a value of this plain record.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both places outlive the call.
    if unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut used) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((status, used.ru_maxrss))
}

/// Waits a little, without burning a core.
pub(super) fn pause(time: Duration) {
    let milliseconds = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: no descriptor is given.
    unsafe { libc::poll(std::ptr::null_mut(), 0, milliseconds) };
}

/// Memory of a process that is in use now.
pub(super) fn memory_kib(pid: i64) -> io::Result<u64> {
    of_status(pid, "VmRSS:")
}

/// The same, from where on [`peak_kib`] counts.
pub(super) fn calm_kib(pid: i64) -> io::Result<u64> {
    const RESET_PEAK: &str = "5";
    // Where it may not be reset, it counts from the process's beginning, which is more.
    let _refused = fs::write(format!("/proc/{pid}/clear_refs"), RESET_PEAK);
    peak_kib(pid)
}

/// Most memory of a process that was in use at any time.
pub(super) fn peak_kib(pid: i64) -> io::Result<u64> {
    of_status(pid, "VmHWM:")
}

fn of_status(pid: i64, field: &str) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| io::Error::other("the daemon's memory is not told"))
}
