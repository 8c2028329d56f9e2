//! What the real binary says: help, errors and tables, pinned by snapshots.
//!
//! Nothing here needs a daemon; `cargo insta review` shows what changed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A home of its own for each command, and what stands for its path in snapshots.
struct Place {
    directory: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            variables: Vec::new(),
        }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        let here = self.directory.path().to_str().unwrap();
        self.variables.push((name, value.replace("HERE", here)));
        self
    }

    fn write(self, name: &str, content: &str) -> Self {
        let path = self.directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    /// Runs `pinfold` and writes everything that a caller sees of it.
    fn run(&self, arguments: &[&str]) -> String {
        let here = self.directory.path().to_str().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_pinfold"))
            .args(arguments.iter().map(|word| word.replace("HERE", here)))
            .env_clear()
            .env("HOME", here)
            .env("PATH", "/usr/bin:/bin")
            .env("PINFOLD_STATE_DIR", self.directory.path().join("state"))
            .env("PINFOLD_CONFIG", self.config())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let code = output
            .status
            .code()
            .map_or_else(|| "signal".to_owned(), |code| code.to_string());
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec())
                .unwrap()
                .replace(here, "HERE")
        };
        format!(
            "exit: {code}\n--- stdout\n{}--- stderr\n{}",
            text(&output.stdout),
            text(&output.stderr)
        )
    }

    /// Root's own configuration must not reach the tests.
    fn config(&self) -> PathBuf {
        let path = self.directory.path().join("config.yaml");
        if !path.exists() {
            std::fs::write(&path, "").unwrap();
        }
        path
    }
}

fn check(name: &str, place: &Place, arguments: &[&str]) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("golden");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_description(format!("pinfold {}", arguments.join(" ")));
    settings.add_filter(env!("CARGO_PKG_VERSION"), "VERSION");
    settings.bind(|| insta::assert_snapshot!(name, place.run(arguments)));
}

#[test]
fn help_of_every_verb() {
    let place = Place::new();
    check("help", &place, &["--help"]);
    for verb in [
        "run",
        "create",
        "start",
        "stop",
        "rm",
        "list",
        "status",
        "exec",
        "logs",
        "cp",
        "report",
        "metrics",
        "pause",
        "resume",
        "doctor",
        "serve",
        "key",
        "config",
        "completion",
    ] {
        check(&format!("help-{verb}"), &place, &[verb, "--help"]);
    }
}

#[test]
fn help_is_a_verb_too() {
    let place = Place::new();
    for verb in ["run", "cp", "config"] {
        assert_eq!(place.run(&["help", verb]), place.run(&[verb, "--help"]));
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    let place = Place::new();
    for (name, arguments) in [
        ("usage-nothing", &[][..]),
        ("usage-no-dashes", &["exec", "box", "ls", "-l"]),
        (
            "usage-timeout-of-nothing",
            &["run", "--timeout", "0", "--", "true"],
        ),
        ("usage-json", &["--json", "list", "--bogus"]),
        ("usage-unknown-verb", &["fly"]),
        ("usage-unknown-flag", &["run", "--colour", "--", "true"]),
        (
            "usage-malformed-size",
            &["run", "--memory", "lots", "--", "true"],
        ),
        ("usage-malformed-cpus", &["create", "--cpus", "0"]),
        (
            "usage-malformed-duration",
            &["run", "--timeout", "soon", "--", "true"],
        ),
        (
            "usage-malformed-mount",
            &["run", "--mount", "/a", "--", "true"],
        ),
        ("usage-bad-name", &["create", "--name", "Bad_Name"]),
        (
            "usage-bad-language",
            &["run", "--language", "cobol", "--hello"],
        ),
        ("usage-bad-state", &["list", "--state", "asleep"]),
        ("usage-bad-time", &["logs", "--since", "yesterday", "a"]),
        (
            "usage-bad-isolation",
            &["run", "--isolation", "box", "--", "true"],
        ),
        ("usage-nothing-to-stop", &["stop"]),
        ("usage-names-and-all", &["rm", "--all", "a"]),
        ("usage-count-of-none", &["create", "--count", "0"]),
        ("usage-shell", &["completion", "tcsh"]),
    ] {
        check(name, &place, arguments);
    }
}

#[test]
fn a_wrong_configuration_names_the_place() {
    for (name, content) in [
        ("config-unknown-key", "memory: 1g\nmemroy: 2g\n"),
        ("config-bad-value", "pids: many\n"),
        ("config-no-mapping", "- memory\n"),
        ("config-no-yaml", "memory: [\n"),
    ] {
        check(name, &Place::new().write("config.yaml", content), &["list"]);
    }
    let missing = Place::new();
    check(
        "config-missing",
        &missing,
        &["--config", "HERE/none.yaml", "list"],
    );
    let variable = Place::new().with("PINFOLD_MEMORY", "lots");
    check("config-bad-variable", &variable, &["list"]);
    let unknown = Place::new().with("PINFOLD_MEMROY", "1g");
    check("config-unknown-variable", &unknown, &["config", "show"]);
}

#[test]
fn settings_are_shown_with_their_origin() {
    let place = Place::new()
        .write("config.yaml", "memory: 1g\nsocket: run/socket\n")
        .with("PINFOLD_PIDS", "64");
    check("config-show", &place, &["config", "show"]);
    check(
        "config-show-origin",
        &place,
        &["--no-start", "config", "show", "--origin"],
    );
    check(
        "config-show-json",
        &place,
        &["config", "show", "--origin", "--json"],
    );
}

#[test]
fn no_daemon_is_said_to_be_missing() {
    let place = Place::new();
    check("no-daemon", &place, &["list", "--no-start"]);
    check("no-daemon-status", &place, &["status", "--no-start"]);
    check(
        "no-daemon-status-json",
        &place,
        &["status", "--no-start", "--json"],
    );
    let long = format!("/{}", "x".repeat(120));
    check("socket-too-long", &place, &["--socket", &long, "list"]);
    let file = Place::new().write("file", "precious");
    check(
        "socket-is-a-file",
        &file,
        &["--no-start", "--socket", "HERE/file", "list"],
    );
}

#[test]
fn a_socket_of_somebody_else_is_refused() {
    if !rustix::process::geteuid().is_root() {
        assert!(
            std::env::var_os("CI").is_none(),
            "this test needs root, and CI skips none"
        );
        eprintln!("skipped: only root can give a socket away");
        return;
    }
    let place = Place::new();
    let socket = place.directory.path().join("foreign.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::os::unix::fs::chown(&socket, Some(65_534), None).unwrap();
    check(
        "socket-foreign",
        &place,
        &["--socket", "HERE/foreign.sock", "list"],
    );
}

#[test]
fn the_reference_page_is_the_code() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/configuration.md");
    let said = Place::new().run(&["config", "reference"]);
    let made = said
        .strip_prefix("exit: 0\n--- stdout\n")
        .and_then(|rest| rest.strip_suffix("--- stderr\n"))
        .unwrap_or_else(|| panic!("{said}"));
    let kept = std::fs::read_to_string(page).unwrap();
    assert!(
        kept == made,
        "run `pinfold config reference > docs/reference/configuration.md`"
    );
}

#[test]
fn a_reader_that_goes_away_ends_us_quietly() {
    let place = Place::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_pinfold"))
        .args(["config", "reference"])
        .env_clear()
        .env("HOME", place.directory.path())
        .env("PINFOLD_CONFIG", place.config())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    // The page may have fitted into the pipe before its end was closed.
    assert!(
        matches!(output.status.code(), Some(141 | 0)),
        "{:?}",
        output.status
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn completions_are_scripts_that_their_shells_read() {
    for shell in ["bash", "zsh", "fish"] {
        let said = Place::new().run(&["completion", shell]);
        assert!(
            said.starts_with("exit: 0\n") && said.contains("pinfold"),
            "{shell}"
        );
        if shell == "bash" {
            let script = said
                .strip_prefix("exit: 0\n--- stdout\n")
                .and_then(|rest| rest.strip_suffix("--- stderr\n"))
                .unwrap();
            // One argument of a program has a limit that the script is above.
            let place = tempfile::tempdir().unwrap();
            let file = place.path().join("completion");
            std::fs::write(&file, script).unwrap();
            let read = Command::new("bash").arg("-n").arg(&file).status().unwrap();
            assert!(read.success());
        }
    }
}
