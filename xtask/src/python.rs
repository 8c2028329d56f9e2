//! A Python of the tests' own, with the packages of the clients that others wrote.
//!
//! Programs of other people show that the API is what it says, and not only what our client expects.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The packages with their versions, beneath the repository.
const PACKAGES: &str = "xtask/python-packages.txt";

/// Times that the packages are fetched; an index may be busy for a moment.
const TRIES: u32 = 3;

/// Makes it when it is not there or has other packages; answers the program.
pub(crate) fn make(root: &Path) -> Result<PathBuf> {
    let directory = crate::target_directory(root).join("python");
    let program = directory.join("bin/python");
    let wanted = root.join(PACKAGES);
    let packages = std::fs::read_to_string(&wanted).context("failed to read the packages")?;
    // Written last, so that what is half made does not count as there.
    let stamp = directory.join("packages.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == packages) {
        return Ok(program);
    }
    let base = with_environments()?;
    crate::run(
        Command::new(base)
            .args(["-m", "venv", "--clear"])
            .arg(&directory),
    )?;
    fetch(&program, &wanted)?;
    std::fs::write(&stamp, packages).context("failed to keep the Python environment")?;
    Ok(program)
}

fn fetch(program: &Path, wanted: &Path) -> Result<()> {
    for _ in 0..TRIES {
        let status = Command::new(program)
            .args(["-m", "pip", "install", "--quiet", "--no-deps"])
            .args(["--disable-pip-version-check", "--requirement"])
            .arg(wanted)
            .stdin(Stdio::null())
            .status()
            .context("failed to start pip")?;
        if status.success() {
            return Ok(());
        }
    }
    bail!("failed to fetch the Python packages {TRIES} times")
}

/// The Python that makes environments with pip; Debian keeps that in a package of its own.
fn with_environments() -> Result<&'static str> {
    for python in ["python3", "/usr/bin/python3"] {
        let status = Command::new(python)
            .args(["-c", "import ensurepip, venv"])
            .stderr(Stdio::null())
            .status();
        if status.is_ok_and(|status| status.success()) {
            return Ok(python);
        }
    }
    crate::setup::install(&["python3-venv"])?;
    Ok("/usr/bin/python3")
}
