//! The command line on a daemon that is reached over a port: everything as on the daemon's own host.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::service::Service;
use crate::terminal::Terminal;
use crate::world::{Person, Said, World, eventually};

/// A daemon with TLS and keys, and a command line that knows nothing of it but its URL.
struct Far {
    world: World,
    service: Service,
    authority: PathBuf,
    key: String,
}

/// Makes a certificate for names; answers the files of certificate and key.
fn certificate(world: &World, name: &str, names: &[&str]) -> (PathBuf, PathBuf) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate = world.write(&format!("{name}.pem"), made.cert.pem());
    let key = world.write(&format!("{name}.key"), made.signing_key.serialize_pem());
    (certificate, key)
}

fn serve(world: &World, configuration: &Path, address: &str) -> Service {
    let configuration = configuration.to_str().unwrap();
    Service::start(world, &["--config", configuration, "--listen", address])
}

impl Far {
    fn new(person: Person) -> Self {
        let world = World::new(person);
        let (authority, key_file) = certificate(&world, "cert", &["127.0.0.1", "localhost"]);
        let configuration = world.write(
            "serve.yaml",
            format!(
                "tls_cert: {}\ntls_key: {}\n",
                authority.display(),
                key_file.display()
            ),
        );
        let service = serve(&world, &configuration, "127.0.0.1:0");
        assert!(service.url.starts_with("https://127.0.0.1:"));
        let key = world.run(["key", "create", "far", "--role", "user"]).ok();
        Self {
            world,
            service,
            authority,
            key: key.trim().to_owned(),
        }
    }

    /// Prepares `pinfold` with nothing of the daemon but its URL, certificate and key.
    fn command(&self, url: &str, key: &str, arguments: &[&str]) -> Command {
        let mut command = self.world.pinfold(["--host", url, "--ca-file"]);
        command.arg(&self.authority).args(arguments);
        command
            .env("PINFOLD_API_KEY", key)
            .env("PINFOLD_STATE_DIR", self.elsewhere())
            .env("PINFOLD_SOCKET", self.elsewhere().join("no.sock"));
        command
    }

    /// Where a daemon's state would be if one were started for the command line.
    fn elsewhere(&self) -> PathBuf {
        self.world.files().join("elsewhere")
    }

    fn pinfold(&self, arguments: &[&str]) -> Command {
        self.command(&self.service.url, &self.key, arguments)
    }

    fn run(&self, arguments: &[&str]) -> Said {
        Said::new(&self.pinfold(arguments).output().unwrap())
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let printed = self.run(&all).ok();
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    fn with_input(&self, arguments: &[&str], input: &[u8]) -> Said {
        let file = self.world.write("input", input);
        let mut command = self.pinfold(arguments);
        command.stdin(fs::File::open(file).unwrap());
        Said::new(&command.output().unwrap())
    }

    fn end(self) {
        // Nothing was started here for the sake of a command line that asks elsewhere.
        assert!(!self.elsewhere().exists());
        self.service.end();
    }
}

fn lives(far: &Far) {
    let status = far.json(&["status"]);
    assert_eq!(status["host"], far.service.url.as_str());
    assert_eq!(far.run(&["create", "--name", "one"]).ok(), "one\n");
    let made = far.json(&["status", "one"]);
    assert_eq!(made["owner"], "far");
    assert_eq!(far.json(&["list"]).as_array().unwrap().len(), 1);
    far.run(&["update", "one", "--label", "kind=test"]).ok();
    assert_eq!(
        far.json(&["list", "--label", "kind=test"])
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let report = far.run(&["report"]).ok();
    assert!(report.contains("one"), "{report}");
    assert!(far.json(&["metrics", "one"])["uptime_seconds"].is_number());
    far.run(&["stop", "one"]).ok();
    assert_eq!(far.json(&["status", "one"])["state"], "stopped");
    far.run(&["start", "one"]).ok();
    assert_eq!(far.json(&["status", "one"])["state"], "running");
    far.run(&["doctor"]);
    let keys = far.json(&["key", "list"]);
    assert_eq!(keys.as_array().unwrap().len(), 1);
    let more = far.run(&["key", "create", "more"]).ok();
    assert!(more.starts_with("pf_"), "{more}");
    far.run(&["key", "revoke", "more"]).ok();
    far.run(&["template", "create", "t"]).ok();
    assert_eq!(far.json(&["template", "list"]).as_array().unwrap().len(), 1);
    far.json(&["pool", "list"]);
    far.run(&["template", "rm", "t"]).ok();
}

fn executes(far: &Far) {
    let said = far.run(&[
        "exec",
        "one",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);
    assert_eq!((said.stdout.as_str(), said.code), ("out\n", 7));
    assert!(said.stderr.contains("err"), "{}", said.stderr);
    let input: Vec<u8> = (0..2_000_000u32).map(|n| b'a' + (n % 23) as u8).collect();
    let through = far.with_input(&["exec", "-i", "one", "--", "cat"], &input);
    assert_eq!(through.ok().as_bytes(), input.as_slice());
    far.run(&["exec", "--timeout", "1s", "one", "--", "sleep", "100"])
        .fails(124);
    far.run(&["exec", "one", "--", "no-such-command"])
        .fails(127);
    assert_eq!(
        far.run(&["run", "--", "echo", "a new one"]).ok(),
        "a new one\n"
    );
    far.world.write("hello.py", "print('from a file')");
    assert_eq!(
        far.run(&["run", "--file", "hello.py"]).ok(),
        "from a file\n"
    );
    // A program that was left running is followed to its end.
    let script =
        "for n in 1 2 3; do echo line $n; done; until [ -e /tmp/go ]; do :; done; echo end";
    let id = far
        .run(&["exec", "--detach", "one", "--", "sh", "-c", script])
        .ok();
    let mut follow = far
        .pinfold(&["logs", "--follow", "--exec", id.trim(), "one"])
        .spawn()
        .unwrap();
    let mut first = [0; 7];
    follow
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    far.run(&["exec", "one", "--", "touch", "/tmp/go"]).ok();
    let rest = Said::new(&follow.wait_with_output().unwrap()).ok();
    assert_eq!(rest, "line 2\nline 3\nend\n");
    let whole = far.run(&["logs", "--exec", id.trim(), "one"]).ok();
    assert_eq!(whole, "line 1\nline 2\nline 3\nend\n");
}

fn copies(far: &Far) {
    let files = far.world.files();
    far.world.write("tree/a", vec![7u8; 300_000]);
    far.world.write("tree/below/b", "b");
    far.run(&["cp", "tree", "one:/workspace/tree"]).ok();
    assert_eq!(
        far.run(&["exec", "one", "--", "wc", "-c", "/workspace/tree/a"])
            .ok(),
        "300000 /workspace/tree/a\n"
    );
    far.run(&["cp", "one:/workspace/tree", "back"]).ok();
    assert_eq!(fs::read(files.join("back/a")).unwrap(), vec![7u8; 300_000]);
    assert_eq!(fs::read(files.join("back/below/b")).unwrap(), b"b");
    for arguments in [
        &["run", "--in", "tree", "--", "true"][..],
        &["run", "--out", "result", "--", "true"],
        &["create", "--mount", "tree:/data"],
        &["template", "create", "x", "--in", "tree"],
    ] {
        let told = far.run(arguments).fails(125);
        assert!(told.contains("pinfold cp"), "{told}");
    }
    // The daemon says so of its own paths: a key names none of them.
    let told = far
        .run(&["create", "--mount", "/usr/share:/data"])
        .fails(125);
    assert!(told.contains("pinfold cp"), "{told}");
    assert!(!files.join("result").exists());
    let told = far.run(&["create", "--image", "./root"]).fails(125);
    assert!(told.contains("absolute path"), "{told}");
}

fn talks(far: &Far) {
    let shell = far.pinfold(&["exec", "-it", "one", "--", "bash", "--norc", "--noprofile"]);
    let mut terminal = Terminal::of(&far.world, &shell);
    terminal.type_in("PS1='rea''dy> '\n");
    terminal.expect("ready> ");
    terminal.type_in("tty && stty size\n");
    terminal.expect("/dev/pts/");
    terminal.expect("24 80");
    terminal.expect("ready> ");
    // A key counts only once the program is in the foreground, so it says when it is.
    terminal.type_in("sh -c 'echo run''ning; exec sleep 1000'\n");
    terminal.expect("running");
    terminal.type_in("\u{3}");
    terminal.expect("ready> ");
    terminal.type_in("echo code=$?\n");
    terminal.expect("code=130");
    terminal.expect("ready> ");
    terminal.type_in("exit 5\n");
    assert_eq!(terminal.end(), 5);
}

#[test]
fn everything_works_over_tls_with_a_key() {
    for person in [Person::Root, Person::Plain] {
        let far = Far::new(person);
        lives(&far);
        executes(&far);
        copies(&far);
        talks(&far);
        far.run(&["rm", "--all"]).ok();
        assert_eq!(far.json(&["list", "--all"]), serde_json::json!([]));
        far.end();
    }
}

#[test]
fn nobody_is_trusted_and_nobody_is_let_in_without_proof() {
    let far = Far::new(Person::Plain);
    let asked = |url: &str, key: &str| {
        let output = far.command(url, key, &["list"]).output().unwrap();
        Said::new(&output)
    };
    let url = far.service.url.clone();
    asked(&url, &far.key).ok();
    // The certificate says `localhost` too, and no other name of this host.
    let port = url.rsplit(':').next().unwrap();
    asked(&format!("https://localhost:{port}"), &far.key).ok();
    let other = asked(&format!("https://127.0.0.2:{port}"), &far.key).fails(125);
    assert!(
        other.contains("no daemon answers") || other.contains("no TLS"),
        "{other}"
    );
    let (stranger, _) = certificate(&far.world, "stranger", &["127.0.0.1"]);
    let mut wrong = far.world.pinfold(["--host", &url, "--ca-file"]);
    wrong
        .arg(stranger)
        .arg("list")
        .env("PINFOLD_API_KEY", &far.key);
    let told = Said::new(&wrong.output().unwrap()).fails(125);
    assert!(
        told.contains("no TLS connection") && told.contains("--ca-file"),
        "{told}"
    );
    // The system's certificates know nothing of it either.
    let system = far
        .world
        .pinfold(["--host", &url, "list"])
        .output()
        .unwrap();
    let told = Said::new(&system).fails(125);
    assert!(told.contains("no TLS connection"), "{told}");
    let plain = asked(&format!("http://127.0.0.1:{port}"), &far.key).fails(125);
    assert!(!plain.contains(&far.key), "{plain}");
    let none = asked(&url, "").fails(125);
    assert!(none.contains("PINFOLD_API_KEY"), "{none}");
    let wrong = asked(&url, &format!("{}0", far.key)).fails(125);
    assert!(!wrong.contains(&far.key), "{wrong}");
    let broken = asked(&url, "two words").fails(125);
    assert!(!broken.contains("two words"), "{broken}");
    let expiring = far
        .world
        .run(["key", "create", "brief", "--expires", "1s"])
        .ok();
    eventually("the key to expire", || {
        asked(&url, expiring.trim()).code == 125
    });
    // A file serves as well as the variable, and the flag wins.
    let file = far.world.write("key", format!("{}\n", far.key));
    let mut by_file = far.command(
        &url,
        "wrong",
        &["--key-file", file.to_str().unwrap(), "list"],
    );
    let said = Said::new(&by_file.output().unwrap());
    assert!(said.stderr.contains("chmod 600"), "{}", said.stderr);
    said.ok();
    far.end();
}

#[test]
fn a_key_leaves_the_machine_in_plain_text_only_when_told_to() {
    let world = World::new(Person::Root);
    // The network of the daemon's own has an address that is not loopback.
    let configuration = world.write("serve.yaml", "allow_plain_tcp: true\n");
    let configuration = configuration.to_str().unwrap();
    let address = format!("{}:8080", crate::service::OTHER_ADDRESS);
    let service = Service::start_apart(&world, &["--config", configuration, "--listen", &address]);
    let key = world.run(["key", "create", "plain"]).ok();
    let ask = |arguments: &[&str]| {
        let mut command = world.pinfold(["--host", &service.url]);
        command.args(arguments).env("PINFOLD_API_KEY", key.trim());
        Said::new(&service.enter(&command).output().unwrap())
    };
    let told = ask(&["list"]).fails(125);
    assert!(
        told.contains("without TLS") && told.contains("--insecure-http"),
        "{told}"
    );
    let said = ask(&["--insecure-http", "list"]);
    assert!(said.stderr.contains("warning:"), "{}", said.stderr);
    said.ok();
    service.end();
}

/// Answers one request with a redirection to `target`, and tells what was asked.
fn redirecting(target: &str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: {target}/v1/version\r\n\
         content-length: 0\r\n\r\n"
    );
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let length = stream.read(&mut head).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8_lossy(&head[..length]).into_owned()
    });
    (url, asked)
}

#[test]
fn redirections_are_not_followed() {
    let world = World::new(Person::Plain);
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    target.set_nonblocking(true).unwrap();
    let (url, asked) = redirecting(&format!("http://{}", target.local_addr().unwrap()));
    let mut command = world.pinfold(["--host", &url, "list"]);
    command.env("PINFOLD_API_KEY", "pf_secret");
    let told = Said::new(&command.output().unwrap()).fails(125);
    assert!(told.contains("redirection"), "{told}");
    assert!(asked.join().unwrap().contains("Bearer pf_secret"));
    let nobody = target.accept().unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(world.daemon(), None);
}

/// Passes connections on to an address and counts them.
fn counting(target: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    // The threads end with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::SeqCst);
            let Ok(beyond) = TcpStream::connect(&target) else {
                continue;
            };
            for (mut from, mut to) in [
                (stream.try_clone().unwrap(), beyond.try_clone().unwrap()),
                (beyond, stream),
            ] {
                std::thread::spawn(move || {
                    // Either side may go at any time.
                    let _ended = std::io::copy(&mut from, &mut to);
                    let _closed = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    (address, count)
}

#[test]
fn requests_share_a_connection_and_a_lost_daemon_is_found_again() {
    let world = World::new(Person::Plain);
    let service = Service::start(&world, &["--listen", "127.0.0.1:0"]);
    let address = service.url.strip_prefix("http://").unwrap().to_owned();
    let (through, count) = counting(address.clone());
    let key = world.run(["key", "create", "far"]).ok();
    let url = format!("http://{through}");
    let pinfold = |arguments: &[&str]| {
        let mut command = world.pinfold(["--host", &url]);
        command.args(arguments).env("PINFOLD_API_KEY", key.trim());
        command
    };
    let run = |arguments: &[&str]| Said::new(&pinfold(arguments).output().unwrap()).ok();
    run(&["create", "--name", "one"]);
    let before = count.load(Ordering::SeqCst);
    // It asks for the version and for each name in turn.
    let names = ["one"; 20];
    let mut arguments = vec!["status"];
    arguments.extend(names);
    run(&arguments);
    // Now and then one is made before the last has been put back.
    let made = count.load(Ordering::SeqCst) - before;
    assert!((1..=3).contains(&made), "{made} connections");
    // A program's output goes on without a gap when the daemon is killed and comes back.
    let script = "for n in $(seq 1 200); do echo line $n; done; until [ -e /tmp/go ]; do sleep 0.1; \
                  done; for n in $(seq 201 400); do echo line $n; done";
    let mut child = pinfold(&["exec", "one", "--", "sh", "-c", script])
        .spawn()
        .unwrap();
    let mut first = [0; 7];
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut first).unwrap();
    service.kill();
    let service = Service::start(&world, &["--listen", &address]);
    run(&["exec", "one", "--", "touch", "/tmp/go"]);
    let mut rest = String::from_utf8_lossy(&first).into_owned();
    output.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
    let expected: Vec<String> = (1..=400).map(|n| format!("line {n}")).collect();
    assert_eq!(rest.lines().collect::<Vec<_>>(), expected);
    service.end();
}
