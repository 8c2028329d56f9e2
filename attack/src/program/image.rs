//! Attacks on what the host's own files give away.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::call::{any, read};
use super::{Attempt, Found};

/// Most files and directories that one search looks at.
const ENTRIES_MAX: usize = 60_000;
/// Largest file that may be a key.
const KEY_BYTES_MAX: u64 = 64 << 10;

/// Where keys of the host's would be; what packages bring beneath `/usr` is no secret of its.
const KEY_PLACES: &[&str] = &[
    "/etc",
    "/usr/local",
    "/usr/etc",
    "/usr/src",
    "/home",
    "/root",
    "/opt",
    "/srv",
    "/var",
];
/// Places of credentials, beneath each home and beneath `/`.
const CREDENTIALS: &[&str] = &[
    "root/.netrc",
    "root/.npmrc",
    "root/.ssh",
    "root/.aws/credentials",
    "root/.docker/config.json",
    "root/.kube/config",
    "root/.config/gcloud",
    "root/.git-credentials",
    "root/.cargo/credentials.toml",
    "root/.pypirc",
    "etc/pip.conf",
    "etc/npmrc",
    "etc/apt/auth.conf",
    "etc/apt/auth.conf.d",
    "etc/docker",
    "etc/kubernetes",
    "etc/krb5.keytab",
    "etc/ssh",
    "etc/sudoers",
    "usr/etc/npmrc",
    "usr/local/etc",
    "var/lib",
    "run/secrets",
];

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("home-directories", |_| homes()),
    ("password-file", |_| passwords()),
    ("private-keys", |_| keys()),
    ("credentials", |_| {
        any(CREDENTIALS.iter().map(|place| {
            let path = Path::new("/").join(place);
            match fs::metadata(&path) {
                Ok(found) if found.is_dir() && is_empty(&path) => Found::Failed("empty".to_owned()),
                found => Found::of(found, &format!("{} is there", path.display())),
            }
        }))
    }),
    ("setuid-programs", |_| setuid()),
    ("image-write", |_| {
        any(
            ["/usr/bin", "/usr/lib", "/usr/share", "/usr/sbin"].map(|directory| {
                let path = Path::new(directory).join("pinfold-attack");
                let written = fs::write(&path, "x");
                // It was never there, or is the sandbox's own.
                let _absent = fs::remove_file(&path);
                Found::of(written, &format!("wrote beneath {directory}"))
            }),
        )
    }),
];

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

fn homes() -> Found {
    for directory in ["/home", "/root", "/opt", "/srv", "/mnt", "/media"] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            // The sandbox's own user.
            if entry.path() != Path::new("/home/sandbox") {
                return Found::Worked(format!("{}", entry.path().display()));
            }
        }
    }
    Found::Failed("all are empty or not there".to_owned())
}

fn passwords() -> Found {
    any(
        ["/etc/shadow", "/etc/gshadow", "/etc/shadow-"].map(|path| match read(path) {
            Ok(content)
                if content
                    .windows(2)
                    .any(|pair| pair == b"$y" || pair == b"$6") =>
            {
                Found::Worked(format!("{path} has passwords"))
            }
            Ok(_) => Found::Failed("no password in it".to_owned()),
            Err(error) => Found::Failed(error.to_string()),
        }),
    )
}

/// Walks the host's parts of the image, in one order, and stops at the bound.
fn walk(roots: &[&str], mut visit: impl FnMut(&Path, &fs::Metadata) -> bool) -> usize {
    let mut waiting: Vec<PathBuf> = roots.iter().map(PathBuf::from).collect();
    let mut seen = 0;
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            seen += 1;
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                waiting.push(entry.path());
            } else if visit(&entry.path(), &metadata) {
                return seen;
            }
            if seen >= ENTRIES_MAX {
                return seen;
            }
        }
    }
    seen
}

/// Looks at one place after the other, so that a large one hides nothing in the next.
fn keys() -> Found {
    any(KEY_PLACES.iter().map(|place| keys_in(place)))
}

fn keys_in(place: &str) -> Found {
    let mut found = None;
    let seen = walk(&[place], |path, metadata| {
        let name = path.to_string_lossy();
        let may_be = [".pem", ".key", "_rsa", "_ed25519", "_ecdsa", ".keytab"];
        // Examples of programs' documentation and tests are no secrets of this host.
        let example = ["/doc/", "/test", "/example"];
        if metadata.len() > KEY_BYTES_MAX
            || !may_be.iter().any(|end| name.ends_with(end))
            || example.iter().any(|part| name.contains(part))
        {
            return false;
        }
        let content = read(path).unwrap_or_default();
        let private = content.windows(12).any(|window| window == b"PRIVATE KEY-");
        if private {
            found = Some(path.to_owned());
        }
        private
    });
    match found {
        Some(path) => Found::Worked(format!("{}", path.display())),
        None => Found::Failed(format!("none in {seen} files of {place}")),
    }
}

/// A program with setuid is of use where its mount lets it and its owner is somebody here.
fn setuid() -> Found {
    let mut found = None;
    let seen = walk(&["/usr/bin", "/usr/sbin", "/usr/lib"], |path, metadata| {
        if metadata.permissions().mode() & 0o6000 == 0 || !metadata.is_file() {
            return false;
        }
        let works = !has_nosuid(path) && metadata.uid() == 0;
        if works {
            found = Some(path.to_owned());
        }
        works
    });
    match found {
        Some(path) => Found::Worked(format!("{}", path.display())),
        None => Found::Failed(format!("none in {seen} files")),
    }
}

fn has_nosuid(path: &Path) -> bool {
    const NOSUID: u64 = 2;
    // Longer than the kernel's record, whose tenth word are the flags.
    let mut record = [0_u64; 32];
    let path = super::call::text(&path.to_string_lossy());
    let address = (&raw mut record).addr();
    let asked = super::call::call_with(libc::SYS_statfs, &[path.as_ptr().addr(), address]);
    asked.is_ok() && record[10] & NOSUID != 0
}
