//! Process 1 of the sandboxes: runs commands for the test.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, ExitCode};

use pinfold_linux::launcher::plan::Boot;

/// What a command gave.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) text: String,
}

pub(crate) fn run() -> ExitCode {
    let listener = pinfold_linux::init::take_inherited(Boot::LISTENER_DESCRIPTOR).unwrap();
    let listener = UnixListener::from(listener);
    let mut held = Vec::new();
    loop {
        let (caller, _) = listener.accept().unwrap();
        serve(caller, &mut held);
    }
}

fn serve(mut caller: UnixStream, held: &mut Vec<TcpListener>) {
    let mut line = String::new();
    BufReader::new(&caller).read_line(&mut line).unwrap();
    let words: Vec<String> = serde_json::from_str(&line).unwrap();
    let said = match words[0].as_str() {
        "listen" => {
            let listener = TcpListener::bind((words[1].as_str(), 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            held.push(listener);
            Said {
                code: 0,
                text: port.to_string(),
            }
        }
        "arguments" => Said {
            code: 0,
            text: std::env::args().collect::<Vec<_>>().join(" "),
        },
        "environment" => Said {
            code: 0,
            text: std::env::vars()
                .map(|(name, value)| [name, value].join("="))
                .collect::<Vec<_>>()
                .join("\n"),
        },
        "descriptors" => {
            let entries = std::fs::read_dir("/proc/self/fd").unwrap();
            let mut numbers: Vec<i32> = entries
                .map(|entry| {
                    entry
                        .unwrap()
                        .file_name()
                        .to_str()
                        .unwrap()
                        .parse()
                        .unwrap()
                })
                .collect();
            numbers.sort_unstable();
            Said {
                code: 0,
                text: format!("{numbers:?}"),
            }
        }
        "boot" => {
            let text = std::fs::read_to_string("/proc/self/fd/4").unwrap();
            Said { code: 0, text }
        }
        program => {
            let output = Command::new(program).args(&words[1..]).output().unwrap();
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            Said {
                code: output.status.code().unwrap_or(-1),
                text,
            }
        }
    };
    caller
        .write_all(&serde_json::to_vec(&said).unwrap())
        .unwrap();
}
