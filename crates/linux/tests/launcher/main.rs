//! Sandboxes made by the real launcher, as root, with subordinate ids and with one id only.
//!
//! This binary is the test, the launcher and the agent: process 1 of each sandbox is a stand-in
//! that runs what the test asks for. It needs a user `pinfold-test` with subordinate ids, which
//! `cargo xtask setup` makes.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::panic,
    reason = "this is a test with a runner of its own, because it becomes other processes"
)]

mod checks;
mod guest;
mod yard;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use yard::Kind;

/// A user with subordinate ids, made by the project's set-up.
const MAPPED_USER: &str = "pinfold-test";
/// A user without any; it needs no account.
const SINGLE_ID: u32 = 65_534;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("launcher") => ExitCode::from(pinfold_linux::launcher::serve()),
        Some("init") => guest::run(),
        Some("as-mapped") => run(Kind::Shared, arguments.next().as_deref()),
        Some("as-single") => run(Kind::Single, arguments.next().as_deref()),
        Some("as-masked") => {
            checks::a_covered_proc_is_named();
            println!("test Single::a_covered_proc_is_named ... ok");
            ExitCode::SUCCESS
        }
        Some("--list") => ExitCode::SUCCESS,
        filter => everything(filter.filter(|word| !word.starts_with('-'))),
    }
}

fn everything(filter: Option<&str>) -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI skips none");
        println!("skipped: needs root");
        return ExitCode::SUCCESS;
    }
    let root = run(Kind::Range, filter);
    let mapped = as_user(user_id(MAPPED_USER), "as-mapped", filter);
    let single = as_user(Some(SINGLE_ID), "as-single", filter);
    let masked = if filter.is_none() {
        as_masked()
    } else {
        ExitCode::SUCCESS
    };
    let failed = [root, mapped, single, masked]
        .iter()
        .any(|code| *code != ExitCode::SUCCESS);
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn as_user(id: Option<u32>, role: &str, filter: Option<&str>) -> ExitCode {
    let Some(id) = id else {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI has a user `{MAPPED_USER}`"
        );
        println!("skipped {role}: there is no user `{MAPPED_USER}`; run `cargo xtask setup`");
        return ExitCode::SUCCESS;
    };
    let (_place, program) = copy_of_this_program();
    let status = Command::new(&program)
        .arg(role)
        .args(filter)
        .current_dir("/")
        .uid(id)
        .gid(id)
        .status()
        .unwrap();
    if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs as an ordinary user where the host's `/proc` is covered, as inside a container.
fn as_masked() -> ExitCode {
    let (_place, program) = copy_of_this_program();
    let script = format!(
        "mount -t tmpfs none /proc/tty && exec setpriv --reuid {SINGLE_ID} --regid {SINGLE_ID} \
         --clear-groups {} as-masked",
        program.display()
    );
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .current_dir("/")
        .status()
        .unwrap();
    if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The directory of the build may be one that nobody else can read.
fn copy_of_this_program() -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path().join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    (place, program)
}

fn user_id(name: &str) -> Option<u32> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

fn run(kind: Kind, filter: Option<&str>) -> ExitCode {
    let mut failed = 0;
    for (name, check) in checks::ALL {
        if filter.is_some_and(|filter| !name.contains(filter)) {
            continue;
        }
        let ok = std::panic::catch_unwind(|| check(kind)).is_ok();
        println!(
            "test {kind:?}::{name} ... {}",
            if ok { "ok" } else { "FAILED" }
        );
        failed += u32::from(!ok);
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
