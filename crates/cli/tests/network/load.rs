//! Crowds at the port: bounded, on loopback, and counted rather than timed.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

use crate::service::{Service, client};
use crate::world::{PATIENCE, Person, World, eventually, pause};

/// Readers of one exec at once.
const READERS: usize = 200;

/// Programs at once, and the sandboxes that they are spread over.
const EXECS: usize = 1000;
const SANDBOXES: usize = 50;

/// Connections that do nothing, where descriptors allow as many.
const IDLE: u64 = 10_000;

/// Connections that are opened before the first is asked about.
const AT_ONCE: usize = 64;

/// Most of one request that is read: the limit of JSON, what is thrown away so that the caller reads our
/// answer, and what the kernel holds.
const TAKEN_MIB_MAX: usize = 96;

/// Descriptors that the daemon keeps for other things than its port, and we for other things than
/// connections.
const DESCRIPTORS_KEPT: u64 = 4200;

/// Most that the daemon may hold for an idle connection: hyper's first buffer, a task, the kernel's
/// own part not counted.
const IDLE_BYTES_MAX: u64 = 48 << 10;

/// A daemon with a port, and a key for it.
struct Crowded {
    world: World,
    service: Service,
    address: String,
    key: String,
}

impl Crowded {
    fn new() -> Self {
        let world = World::new(Person::Root);
        let service = Service::start(&world, &["--listen", "127.0.0.1:0"]);
        let address = service.url.strip_prefix("http://").unwrap().to_owned();
        let key = world.run(["key", "create", "crowd"]).ok();
        Self {
            world,
            service,
            address,
            key: key.trim().to_owned(),
        }
    }

    /// Writes a request that leaves its connection open.
    fn head(&self, line: &str, more: &str) -> String {
        format!(
            "{line} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n{more}\r\n",
            self.address, self.key
        )
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Asks on a connection and reads the status of the answer.
    fn status(stream: &mut TcpStream, request: &str) -> u16 {
        stream.write_all(request.as_bytes()).unwrap();
        read_status(stream)
    }

    /// A request beside the crowd is answered, and a program runs.
    fn still_serves(&self) {
        let health = self.head("GET /v1/health", "");
        assert_eq!(Self::status(&mut self.connect(), &health), 200);
        let said = self.world.run(["run", "--", "echo", "beside"]);
        assert_eq!(said.ok(), "beside\n");
    }

    fn python(&self, mut command: Command) -> Command {
        command.env("KEY", &self.key);
        self.service.enter(&command)
    }

    /// Returns one number of the daemon's status, as in `VmRSS`.
    fn kib(&self, name: &str) -> u64 {
        let status = format!("/proc/{}/status", self.service.pid());
        let text = std::fs::read_to_string(status).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// Reads the status of an answer whose body has no more than a packet.
fn read_status(stream: &mut TcpStream) -> u16 {
    let mut answer = [0; 2048];
    let length = stream.read(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer[..length]);
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    status.unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn two_hundred_readers_of_a_busy_program_miss_nothing() {
    let crowd = Crowded::new();
    let sandbox = crowd.world.create(&["--name", "busy"]);
    let script = "until [ -e /tmp/go ]; do sleep 0.05; done; \
                  for n in $(seq 1 300); do echo line $n; done";
    let exec = crowd
        .world
        .run(["exec", "--detach", "busy", "--", "sh", "-c", script])
        .ok();
    // The key's principal is another than the one that made it, so an admin's key reads along.
    let admin = crowd
        .world
        .run(["key", "create", "reader", "--role", "admin"])
        .ok();
    let url = format!(
        "ws://{}/v1/sandboxes/{sandbox}/stream?exec_id={}",
        crowd.address,
        exec.trim()
    );
    let mut readers = client("readers.py");
    readers.args([&url, "--count", &READERS.to_string()]);
    readers.env("KEY", admin.trim());
    let mut readers = crowd.service.enter(&readers).spawn().unwrap();
    let mut line = [0; 5];
    let output = readers.stdout.as_mut().unwrap();
    output.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"open\n");
    crowd
        .world
        .run(["exec", "busy", "--", "touch", "/tmp/go"])
        .ok();
    let output = readers.wait_with_output().unwrap();
    let seen: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(seen["ended"], READERS, "{seen}");
    assert_eq!(seen["connections"], READERS, "{seen}");
    assert_eq!(seen["wrong"], serde_json::json!([]), "{seen}");
    assert_eq!(seen["events"].as_array().unwrap().len(), 1, "{seen}");
    assert_eq!(seen["digests"].as_array().unwrap().len(), 1, "{seen}");
    crowd.service.end();
}

#[test]
fn a_thousand_programs_at_once_in_fifty_sandboxes_all_succeed() {
    let crowd = Crowded::new();
    let count = SANDBOXES.to_string();
    let far = ["--host", &crowd.service.url, "create", "--count", &count];
    let mut create = crowd.world.pinfold(far);
    create.env("PINFOLD_API_KEY", &crowd.key);
    let output = create.output().unwrap();
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(names.lines().count(), SANDBOXES, "{names}");
    let (_, port) = crowd.address.rsplit_once(':').unwrap();
    let mut execs = client("execs.py");
    execs.args([port, &EXECS.to_string()]).args(names.lines());
    let output = crowd.python(execs).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let outcomes: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcomes, serde_json::json!({ "succeeded": EXECS }));
    crowd.service.end();
}

/// Lets this process have as many descriptors as it may; returns how many.
fn descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(1 << 17).min(1 << 17);
    let raised = Rlimit {
        current: Some(most),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    most
}

/// Whether the other end has left a connection open.
fn is_open(stream: &TcpStream) -> bool {
    let mut byte = [0];
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut byte);
    stream.set_nonblocking(false).unwrap();
    match peeked {
        Ok(length) => length > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

#[test]
fn ten_thousand_idle_connections_do_not_hurt() {
    // The daemon gives three quarters of its places to one address.
    let room = descriptors().saturating_sub(DESCRIPTORS_KEPT) / 4 * 3;
    let count = usize::try_from(room.min(IDLE)).unwrap();
    assert!(count >= 1000, "this process may have too few descriptors");
    let crowd = Crowded::new();
    crowd.still_serves();
    let before = crowd.kib("VmRSS");
    let health = crowd.head("GET /v1/health", "");
    let began = Instant::now();
    let mut idle: Vec<TcpStream> = Vec::with_capacity(count);
    // An idle connection is closed after ten seconds, so slow machines open some of them again.
    let mut tries = 0;
    loop {
        tries += 1;
        while idle.len() < count {
            // Several at a time, fewer than wait to be accepted.
            let at_once = AT_ONCE.min(count - idle.len());
            let mut batch: Vec<TcpStream> = (0..at_once).map(|_| crowd.connect()).collect();
            for stream in &mut batch {
                stream.write_all(health.as_bytes()).unwrap();
            }
            for stream in &mut batch {
                assert_eq!(read_status(stream), 200);
            }
            idle.append(&mut batch);
        }
        idle.retain(is_open);
        if idle.len() == count {
            break;
        }
        assert!(began.elapsed() < 2 * PATIENCE, "{} of {count}", idle.len());
    }
    let held = crowd.kib("VmRSS").saturating_sub(before);
    crowd.still_serves();
    let each = (held << 10) / count as u64;
    println!(
        "{count} idle connections in {tries} rounds: {each} bytes of the daemon's memory each"
    );
    assert!(each < IDLE_BYTES_MAX, "{each} bytes");
    // Those that say nothing are closed by the daemon, and their places are free again.
    let log = crowd.service.log();
    assert!(!log.contains("ERROR"), "{log}");
    let descriptors = || {
        let directory = format!("/proc/{}/fd", crowd.service.pid());
        std::fs::read_dir(directory).unwrap().count()
    };
    eventually("idle connections to be closed", || descriptors() < 1000);
    eventually("the last of them to be closed", || {
        !idle.iter().any(is_open)
    });
    crowd.still_serves();
    crowd.service.end();
}

#[test]
fn slow_and_oversized_requests_are_cut_off_cheaply() {
    let crowd = Crowded::new();
    crowd.still_serves();
    let before = crowd.kib("VmRSS");
    // Each begins a head and adds to it a byte at a time for ever.
    let mut slow: Vec<TcpStream> = (0..200).map(|_| crowd.connect()).collect();
    for stream in &mut slow {
        stream
            .write_all(b"GET /v1/health HTTP/1.1\r\nhost: ")
            .unwrap();
    }
    // A head that is too large is refused before it has ended, a body by its announced length.
    let endless = format!("GET /v1/health HTTP/1.1\r\nx: {}", "x".repeat(300 << 10));
    let announced = crowd.head(
        "POST /v1/sandboxes",
        "content-type: application/json\r\ncontent-length: 1000000000000\r\n",
    );
    for _ in 0..50 {
        let mut stream = crowd.connect();
        // The daemon may close while we write, and then its answer may be lost.
        let _cut = stream.write_all(endless.as_bytes());
        let mut answer = Vec::new();
        let _cut = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 431"),
            "{text}"
        );
    }
    // Who announces too much and waits is told so, and nothing is read for him.
    let mut waiting: Vec<TcpStream> = (0..50).map(|_| crowd.connect()).collect();
    for stream in &mut waiting {
        stream.write_all(announced.as_bytes()).unwrap();
    }
    for stream in &mut waiting {
        assert_eq!(read_status(stream), 413);
    }
    // A body that does not say how long it is, is read up to the limit and no further.
    let chunked = crowd.head("POST /v1/sandboxes", "transfer-encoding: chunked\r\n");
    let mut stream = crowd.connect();
    stream.write_all(chunked.as_bytes()).unwrap();
    let chunk = format!("100000\r\n{}\r\n", " ".repeat(1 << 20));
    let mut sent = 0;
    while sent < TAKEN_MIB_MAX && stream.write_all(chunk.as_bytes()).is_ok() {
        sent += 1;
    }
    assert!(
        sent < TAKEN_MIB_MAX,
        "the daemon took {sent} MiB of one request"
    );
    crowd.still_serves();
    let deadline = Instant::now() + PATIENCE;
    while slow.iter().any(is_open) {
        assert!(Instant::now() < deadline, "slow connections stay open");
        for stream in &mut slow {
            // Some are closed already.
            let _closed = stream.write_all(b"a");
        }
        pause();
    }
    let grown = crowd.kib("VmRSS").saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB");
    crowd.service.end();
}
