//! A daemon that a test runs in the foreground.

#![allow(
    dead_code,
    reason = "every test binary includes this file and uses a part of it"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;

use crate::world::{self, PATIENCE, World, listening};

/// A daemon in the foreground that asks for no key.
pub(crate) struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    /// Starts one and waits until it answers.
    pub(crate) fn begin(world: &World, config: &Path, variables: &[(&str, &str)]) -> Self {
        let log = world.files().join("serve.log");
        let mut serve = world.pinfold(["serve", "--dev", "--listen", "127.0.0.1:0", "--config"]);
        serve.arg(config).envs(variables.iter().copied());
        let (child, url) = listening(&mut serve, &log);
        let address = url.trim_start_matches("http://").to_owned();
        Self { child, address }
    }

    /// Sends a request; answers the status and the headers, and the body.
    pub(crate) fn ask(&self, line: &str, body: &str) -> (String, serde_json::Value) {
        let answer = self.exchange(line, "content-type: application/json\r\n", body);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let body = serde_json::from_str(body).unwrap_or_default();
        (head.to_ascii_lowercase(), body)
    }

    /// Reads what a stream holds until now.
    pub(crate) fn events(&self, path: &str) -> Vec<serde_json::Value> {
        let line = format!("GET {path}");
        let answer = self.exchange(&line, "accept: text/event-stream\r\n", "");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let data = answer
            .lines()
            .filter_map(|line| line.strip_prefix("data: "));
        data.filter_map(|text| serde_json::from_str(text).ok())
            .collect()
    }

    fn exchange(&self, line: &str, headers: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "{line} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{headers}\
             content-length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Sends a request whose status is known.
    #[track_caller]
    pub(crate) fn get(&self, line: &str, body: &str, status: u16) -> serde_json::Value {
        let (head, body) = self.ask(line, body);
        let wanted = format!("http/1.1 {status} ");
        assert!(head.starts_with(&wanted), "{line}: {head}\n{body}");
        body
    }

    /// Kills it with signal 9.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it politely.
    pub(crate) fn end(mut self) {
        world::signal(i32::try_from(self.child.id()).unwrap(), 15);
        assert!(self.child.wait().unwrap().success());
    }
}
