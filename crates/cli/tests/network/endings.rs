//! A daemon that is killed or asked to end while it is being used over its port.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::service::{Service, client};
use crate::world::{PATIENCE, Person, World, alive, eventually};

/// Callers that make sandboxes at once.
const MAKERS: usize = 4;

/// Readers of one exec.
const READERS: usize = 3;

/// A caller of the port with a key.
struct Caller<'a> {
    address: &'a str,
    key: &'a str,
}

impl Caller<'_> {
    /// Sends the head of a request, and as much of its body as there is yet.
    fn begin(&self, line: &str, length: usize, body: &[u8]) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (host, key) = (self.address, self.key);
        let head = format!(
            "{line} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n\
             connection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        Ok(stream)
    }

    /// Reads an answer: its status and its JSON.
    fn answer(mut stream: TcpStream) -> std::io::Result<(u16, Value)> {
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let broken = || std::io::Error::other("the answer is not whole");
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(broken)?;
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        let value = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(body).map_err(|_| broken())?
        };
        Ok((status.ok_or_else(broken)?, value))
    }

    fn ask(&self, line: &str, body: &str) -> std::io::Result<(u16, Value)> {
        Self::answer(self.begin(line, body.len(), body.as_bytes())?)
    }
}

/// Starts a program whose output is long, and which goes on when `/tmp/go` is there.
fn busy(caller: &Caller, sandbox: &str) -> String {
    let script = "for n in $(seq 1 2000); do echo line $n; done; \
                  until [ -e /tmp/go ]; do echo tick; sleep 0.01; done; \
                  for n in $(seq 1 2000); do echo line $n; done";
    let body = serde_json::json!({ "command": ["sh", "-c", script], "async": true });
    let line = format!("POST /v1/sandboxes/{sandbox}/exec");
    let (status, exec) = caller.ask(&line, &body.to_string()).unwrap();
    assert_eq!(status, 202, "{exec}");
    exec["exec_id"].as_str().unwrap().to_owned()
}

/// Lets clients of somebody else read an exec, and come back when they are cut off.
fn read(service: &Service, key: &str, sandbox: &str, exec_id: &str) -> Child {
    let base = service.url.replace("http://", "ws://");
    let url = format!("{base}/v1/sandboxes/{sandbox}/stream?exec_id={exec_id}");
    let count = READERS.to_string();
    let mut readers = client("readers.py");
    readers
        .args([&url, "--count", &count, "--again"])
        .env("KEY", key);
    let mut readers = service.enter(&readers).spawn().unwrap();
    let mut line = [0; 5];
    let output = readers.stdout.as_mut().unwrap();
    output.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"open\n");
    readers
}

/// Waits for the readers and checks that each saw each event once.
fn check_readers(readers: Child, connections_min: u64) {
    let output = readers.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["ended"], READERS, "{seen}");
    assert_eq!(seen["wrong"], serde_json::json!([]), "{seen}");
    assert_eq!(seen["digests"].as_array().unwrap().len(), 1, "{seen}");
    assert!(
        seen["connections"].as_u64().unwrap() >= connections_min,
        "{seen}"
    );
}

/// Makes sandboxes until the daemon is gone; answers those that it acknowledged.
fn make(caller: &Caller, acknowledged: &Mutex<Vec<String>>, ended: &AtomicBool) {
    while !ended.load(Ordering::SeqCst) {
        match caller.ask("POST /v1/sandboxes", "{}") {
            Ok((201, made)) => {
                let id = made["id"].as_str().unwrap().to_owned();
                acknowledged.lock().unwrap().push(id);
            }
            Ok((status, told)) => panic!("{status}: {told}"),
            // It is gone; what it has not acknowledged may or may not be there.
            Err(_) => return,
        }
    }
}

#[test]
fn what_was_acknowledged_outlives_a_daemon_that_is_killed_under_load() {
    let world = World::new(Person::Root);
    let service = Service::start(&world, &["--listen", "127.0.0.1:0"]);
    let address = service.url.strip_prefix("http://").unwrap().to_owned();
    let key = world.run(["key", "create", "load"]).ok();
    let caller = Caller {
        address: &address,
        key: key.trim(),
    };
    let (status, read_one) = caller.ask("POST /v1/sandboxes", "{}").unwrap();
    assert_eq!(status, 201, "{read_one}");
    let sandbox = read_one["id"].as_str().unwrap();
    let exec_id = busy(&caller, sandbox);
    let readers = read(&service, caller.key, sandbox, &exec_id);
    let (acknowledged, ended) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let mut service = Some(service);
    std::thread::scope(|scope| {
        for _ in 0..MAKERS {
            scope.spawn(|| make(&caller, &acknowledged, &ended));
        }
        eventually("sandboxes to be made", || {
            acknowledged.lock().unwrap().len() >= 3 * MAKERS
        });
        service.take().unwrap().kill();
        ended.store(true, Ordering::SeqCst);
    });
    let service = Service::start(&world, &["--listen", &address]);
    let there: Vec<String> = world
        .json(["list", "--all"])
        .as_array()
        .unwrap()
        .iter()
        .filter(|sandbox| sandbox["state"] == "running")
        .map(|sandbox| sandbox["id"].as_str().unwrap().to_owned())
        .collect();
    let acknowledged = acknowledged.into_inner().unwrap();
    assert!(acknowledged.len() >= 3 * MAKERS);
    for id in &acknowledged {
        assert!(there.contains(id), "{id} was acknowledged: {there:?}");
    }
    world.run(["exec", sandbox, "--", "touch", "/tmp/go"]).ok();
    check_readers(readers, 2 * READERS as u64);
    service.end();
}

/// Waits until nothing more is accepted at an address.
fn closed(address: &str) {
    eventually("the port to be closed", || {
        TcpStream::connect(address).is_err()
    });
}

#[test]
fn a_daemon_that_is_asked_to_end_finishes_what_it_began() {
    for person in [Person::Root, Person::Plain] {
        let world = World::new(person);
        let service = Service::start(&world, &["--listen", "127.0.0.1:0"]);
        let address = service.url.strip_prefix("http://").unwrap().to_owned();
        let key = world.run(["key", "create", "load"]).ok();
        let caller = Caller {
            address: &address,
            key: key.trim(),
        };
        let (_, made) = caller.ask("POST /v1/sandboxes", "{}").unwrap();
        let sandbox = made["id"].as_str().unwrap();
        let exec_id = busy(&caller, sandbox);
        let readers = read(&service, caller.key, sandbox, &exec_id);
        // A caller that waits for a program, an upload that is half there, and one that gets no further.
        let body = r#"{"command":["sh","-c","echo begun > /tmp/begun; exec sleep 1000"]}"#;
        let waiting = caller
            .begin(
                &format!("POST /v1/sandboxes/{sandbox}/exec"),
                body.len(),
                body.as_bytes(),
            )
            .unwrap();
        let half = vec![b'x'; 1 << 20];
        let upload = |path: &str| {
            let line = format!("PUT /v1/sandboxes/{sandbox}/files?path={path}");
            caller.begin(&line, 2 * half.len(), &half).unwrap()
        };
        let mut finished = upload("/tmp/whole");
        let mut stuck = upload("/tmp/stuck");
        eventually("the program to have begun", || {
            world
                .run(["exec", sandbox, "--", "test", "-e", "/tmp/begun"])
                .code
                == 0
        });
        let pid = service.pid();
        let ending = std::thread::spawn(move || service.end());
        closed(&address);
        finished.write_all(&half).unwrap();
        let (status, written) = Caller::answer(finished).unwrap();
        assert!((200..300).contains(&status), "{status}: {written}");
        let (status, told) = Caller::answer(waiting).unwrap();
        assert_eq!(status, 503, "{told}");
        assert_eq!(told["error"]["code"], "unavailable", "{told}");
        let waited_for = told["error"]["details"]["exec_id"].as_str().unwrap();
        // One that gets no further does not keep the daemon for longer than the time that it has.
        ending.join().unwrap();
        assert!(!alive(pid));
        let mut rest = Vec::new();
        // It is cut off, with an answer or without.
        let _cut = stuck.read_to_end(&mut rest);
        let service = Service::start(&world, &["--listen", &address]);
        let exec = format!("GET /v1/sandboxes/{sandbox}/execs/{waited_for}");
        let (status, exec) = caller.ask(&exec, "").unwrap();
        assert_eq!(status, 200, "{exec}");
        assert_eq!(exec["exit"], Value::Null, "{exec}");
        let size = ["exec", sandbox, "--", "stat", "-c", "%s", "/tmp/whole"];
        assert_eq!(world.run(size).ok(), "2097152\n");
        world.run(["exec", sandbox, "--", "touch", "/tmp/go"]).ok();
        check_readers(readers, 2 * READERS as u64);
        service.end();
    }
}
