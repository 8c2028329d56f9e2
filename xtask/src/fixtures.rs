//! Makes what the tests give to sandboxes: a Debian root filesystem, packages of three kinds.
//!
//! Sandboxes have no network yet, so everything is fetched here, on the host, by the ordinary
//! clients of the machine and from wherever they are configured to fetch.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::setup::as_root;

/// Times that a fetch is tried; a mirror may be busy for a moment.
const TRIES: u32 = 3;

/// One directory or file of fixtures and how it is made.
struct Fixture {
    name: &'static str,
    make: fn(&Path) -> Result<()>,
}

const FIXTURES: &[Fixture] = &[
    Fixture {
        name: "debian.tar",
        make: debian,
    },
    Fixture {
        name: "debs",
        make: debs,
    },
    Fixture {
        name: "python",
        make: python,
    },
    Fixture {
        name: "openmetrics",
        make: openmetrics,
    },
    Fixture {
        name: "npm",
        make: npm,
    },
];

/// Makes what is missing and answers the directory.
pub(crate) fn make(root: &Path) -> Result<PathBuf> {
    let directory = crate::target_directory(root).join("fixtures");
    std::fs::create_dir_all(&directory).context("failed to make the fixtures' directory")?;
    for fixture in FIXTURES {
        let place = directory.join(fixture.name);
        if place.exists() {
            continue;
        }
        // What is half made has another name, so it never counts as there.
        let partial = directory.join(format!("partial-{}", fixture.name));
        remove(&partial)?;
        (fixture.make)(&partial).with_context(|| format!("failed to make {}", fixture.name))?;
        std::fs::rename(&partial, &place)
            .with_context(|| format!("failed to keep {}", fixture.name))?;
    }
    Ok(directory)
}

fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        crate::run(as_root("rm").arg("-rf").arg(path))?;
    }
    Ok(())
}

/// A small Debian with apt, from the same sources as this machine's.
fn debian(place: &Path) -> Result<()> {
    let release = release_codename()?;
    let place = place.to_str().context("the path is not text")?;
    again(|| {
        as_root("mmdebstrap")
            .args(["--variant=apt", "--mode=root", "--format=tar", "--quiet"])
            .args([
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-include=/usr/share/doc/apt/*",
            ])
            .args([release.as_str(), place, &mirror()?])
            .stdin(Stdio::null())
            .status()
            .context("failed to start mmdebstrap")
    })?;
    crate::run(as_root("chmod").args(["0644", place]))
}

/// The distribution's name in its archive.
fn release_codename() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("failed to read os-release")?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("os-release names no release")
}

/// The archive that this machine's own apt uses for the release.
fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        ])
        .output()
        .context("failed to ask apt for its sources")?;
    let release = release_codename()?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| {
            let mut words = line.split(' ');
            let (uri, suite, component) = (words.next()?, words.next()?, words.next()?);
            (suite == release && component == "main").then(|| uri.to_owned())
        })
        .context("apt has no source for this release: run `apt-get update`")
}

/// A package for apt inside, as a repository of its own.
fn debs(place: &Path) -> Result<()> {
    std::fs::create_dir_all(place)?;
    again(|| {
        Command::new("apt-get")
            .args(["download", "--quiet=2", "hello"])
            .current_dir(place)
            .status()
            .context("failed to start apt-get")
    })?;
    let index = std::fs::File::create(place.join("Packages"))?;
    crate::run(
        Command::new("dpkg-scanpackages")
            .args(["--multiversion", "."])
            .current_dir(place)
            .stdout(index)
            .stderr(Stdio::null()),
    )
}

/// The source distribution of a Python package that brings its own tests and needs no other.
fn python(place: &Path) -> Result<()> {
    std::fs::create_dir_all(place)?;
    let pip = pip()?;
    again(|| {
        Command::new(&pip)
            .args(["-m", "pip", "download", "--quiet", "--no-deps"])
            .args(["--no-binary", "simplejson", "--dest"])
            .arg(place)
            .arg("simplejson==3.20.1")
            .stdin(Stdio::null())
            .status()
            .context("failed to start pip")
    })
}

/// The reference parser of what Prometheus reads, for the host's own Python.
fn openmetrics(place: &Path) -> Result<()> {
    let pip = pip()?;
    again(|| {
        Command::new(&pip)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--no-compile",
            ])
            .args(["--root-user-action", "ignore", "--target"])
            .arg(place)
            .arg("prometheus-client==0.23.1")
            .stdin(Stdio::null())
            .status()
            .context("failed to start pip")
    })
}

/// The Python that has pip.
fn pip() -> Result<String> {
    for python in ["python3", "/usr/bin/python3"] {
        let status = Command::new(python)
            .args(["-c", "import pip"])
            .stderr(Stdio::null())
            .status();
        if status.is_ok_and(|status| status.success()) {
            return Ok(python.to_owned());
        }
    }
    crate::setup::install(&["python3-pip"])?;
    Ok("/usr/bin/python3".to_owned())
}

/// A package for npm that needs no other.
fn npm(place: &Path) -> Result<()> {
    std::fs::create_dir_all(place)?;
    again(|| {
        Command::new("npm")
            .args(["pack", "--silent", "is-number@7.0.0"])
            .current_dir(place)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("failed to start npm")
    })
}

/// Runs a fetch until it succeeds, a few times at most.
fn again(mut fetch: impl FnMut() -> Result<std::process::ExitStatus>) -> Result<()> {
    for _ in 0..TRIES {
        if fetch()?.success() {
            return Ok(());
        }
    }
    bail!("it failed {TRIES} times")
}
