//! The daemon's port as the real binary opens it.

#![cfg(test)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;

#[path = "world/world.rs"]
mod world;

use world::{PATIENCE, Person, World, listening};

/// A daemon in the foreground whose standard error is a file.
struct Serving {
    child: Child,
    log: std::path::PathBuf,
    address: String,
}

fn serve(world: &World, arguments: &[&str]) -> Serving {
    let log = world.files().join("serve.log");
    let mut serve = world.pinfold(["serve", "--log", "trace"].iter().chain(arguments));
    let (child, url) = listening(&mut serve, &log);
    let address = url.trim_start_matches("http://").to_owned();
    Serving {
        child,
        log,
        address,
    }
}

impl Serving {
    /// Sends a request and answers all that came back.
    fn ask(&self, line: &str, headers: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (address, length) = (&self.address, body.len());
        let request = format!(
            "{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
             content-length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn end(mut self) {
        world::signal(i32::try_from(self.child.id()).unwrap(), 15);
        assert!(self.child.wait().unwrap().success());
    }
}

/// Whether any file beneath a directory holds a text.
fn is_beneath(directory: &Path, text: &str) -> bool {
    fs::read_dir(directory).unwrap().flatten().any(|entry| {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            return is_beneath(&path, text);
        }
        let bytes = if kind.is_file() {
            fs::read(&path).unwrap_or_default()
        } else {
            Vec::new()
        };
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    })
}

#[test]
fn a_key_works_over_the_port_and_is_written_nowhere() {
    for person in [Person::Root, Person::Plain] {
        let world = World::new(person);
        let serving = serve(&world, &["--listen", "127.0.0.1:0"]);
        let key = world.run(["key", "create", "ci", "--sandboxes", "1"]).ok();
        let key = key.trim();
        let bearer = format!("authorization: Bearer {key}\r\n");
        assert!(
            serving
                .ask("GET /v1/version", "", "")
                .starts_with("HTTP/1.1 401")
        );
        assert!(
            serving
                .ask("GET /v1/version", &bearer, "")
                .starts_with("HTTP/1.1 200")
        );
        let wrong = format!("authorization: Bearer {key}0\r\n");
        assert!(
            serving
                .ask("GET /v1/version", &wrong, "")
                .starts_with("HTTP/1.1 401")
        );
        let made = serving.ask("POST /v1/sandboxes", &bearer, "{}");
        assert!(made.starts_with("HTTP/1.1 201"), "{made}");
        assert!(made.contains("\"owner\":\"ci\""), "{made}");
        let more = serving.ask("POST /v1/sandboxes", &bearer, "{}");
        assert!(more.starts_with("HTTP/1.1 429"), "{more}");
        // Whoever shows a key names no path of the host.
        let image = r#"{"spec":{"image":"/etc"}}"#;
        let refused = serving.ask("POST /v1/sandboxes", &bearer, image);
        assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
        // The daemon's own user is its admin and sees it.
        assert!(world.run(["list"]).ok().lines().count() > 1);
        world.run(["key", "revoke", "ci"]).ok();
        assert!(
            serving
                .ask("GET /v1/version", &bearer, "")
                .starts_with("HTTP/1.1 401")
        );
        let secret = key.rsplit('_').next().unwrap();
        assert!(secret.len() > 40);
        let log = fs::read_to_string(&serving.log).unwrap();
        // The log tells of the requests, and so would tell of the key.
        assert!(log.contains("/v1/version"), "{log}");
        assert!(!log.contains(secret));
        assert!(!is_beneath(&world.state(), secret));
        serving.end();
    }
}

#[test]
fn development_lets_this_machine_in_and_warns() {
    let world = World::new(Person::Plain);
    let serving = serve(&world, &["--dev", "--listen", "127.0.0.1:0"]);
    let log = fs::read_to_string(&serving.log).unwrap();
    assert!(
        log.contains("warning:") && log.contains("without a key"),
        "{log}"
    );
    let made = serving.ask(
        "POST /sandboxes",
        "content-type: application/json\r\n",
        "{}",
    );
    assert!(made.starts_with("HTTP/1.1 201"), "{made}");
    let evil = serving.ask("POST /sandboxes", "origin: http://evil.example\r\n", "{}");
    assert!(evil.starts_with("HTTP/1.1 403"), "{evil}");
    serving.end();
}

#[test]
fn a_port_that_would_let_in_too_many_is_not_opened() {
    let world = World::new(Person::Plain);
    for (arguments, told) in [
        (&["--dev", "--listen", "0.0.0.0:0"][..], "--dev"),
        (&["--listen", "0.0.0.0:0"], "without TLS"),
        (&["--listen", "8080"], "--listen"),
    ] {
        let said = world.run(["serve"].iter().chain(arguments));
        assert!(said.code != 0);
        assert!(said.stderr.contains(told), "{}", said.stderr);
    }
    assert_eq!(world.daemon(), None);
    // A daemon that starts by itself opens no port.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = world
        .pinfold(["list"])
        .env("PINFOLD_LISTEN", address)
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(world.daemon().is_some());
}
