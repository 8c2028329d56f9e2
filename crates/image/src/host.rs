//! Image `host`: the programs of this host under a root that is made anew.
//!
//! What a sandbox sees of the host is `/usr` without `/usr/local`, `/usr/etc` and `/usr/src`, as
//! read-only binds, and copies of a named list of public files of `/etc`. Everything else, from
//! `/etc/passwd` to the home directory, is synthesised. Nothing is taken because it is there: a
//! file that is not on the list, is not readable by everybody, or raises privileges stays out.

mod etc;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pinfold_linux::weaken::{Defence, is_off};

use crate::archive::{Access, Builder};

/// Directory that execs start in.
pub(crate) const WORKDIR: &str = "/workspace";
/// Where programs are looked for inside.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Parts of `/usr` that are the administrator's own and not the distribution's.
const NOT_OF_USR: &[&str] = &["local", "etc", "src"];
/// Most entries of `/usr`, or directories beside it, that are looked at; real hosts have a dozen.
const ENTRIES_MAX: usize = 64;
/// The user that is not root, for those who want one.
const SANDBOX_USER: u32 = 1000;

/// Directories that the skeleton has, with their owner and mode.
const DIRECTORIES: &[(&str, u32, u32)] = &[
    ("dev", 0, 0o755),
    ("etc", 0, 0o755),
    ("home", 0, 0o755),
    ("home/sandbox", SANDBOX_USER, 0o755),
    ("media", 0, 0o755),
    ("mnt", 0, 0o755),
    ("opt", 0, 0o755),
    ("proc", 0, 0o555),
    ("root", 0, 0o700),
    ("run", 0, 0o755),
    ("run/lock", 0, 0o1777),
    ("srv", 0, 0o755),
    ("sys", 0, 0o555),
    ("tmp", 0, 0o1777),
    ("usr", 0, 0o755),
    ("usr/local", 0, 0o755),
    ("usr/local/bin", 0, 0o755),
    ("usr/local/etc", 0, 0o755),
    ("usr/local/include", 0, 0o755),
    ("usr/local/lib", 0, 0o755),
    ("usr/local/sbin", 0, 0o755),
    ("usr/local/share", 0, 0o755),
    ("usr/local/src", 0, 0o755),
    ("usr/src", 0, 0o755),
    ("var", 0, 0o755),
    ("var/cache", 0, 0o755),
    ("var/lib", 0, 0o755),
    ("var/log", 0, 0o755),
    ("var/mail", 0, 0o1777),
    ("var/spool", 0, 0o755),
    ("var/tmp", 0, 0o1777),
    // Whoever works inside may write here, root or not.
    ("workspace", 0, 0o777),
];

/// Links that the skeleton has.
const LINKS: &[(&str, &str)] = &[
    ("etc/mtab", "/proc/self/mounts"),
    ("var/lock", "/run/lock"),
    ("var/run", "/run"),
];

/// A host directory that a sandbox sees, read-only and without effect of set-user-id bits.
///
/// Ids are not mapped on it, so that files which only the host's root may read stay closed to the
/// sandbox's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostBind {
    /// Host path.
    pub source: PathBuf,
    /// Absolute path inside.
    pub target: PathBuf,
}

/// Everything that image `host` is made of.
#[derive(Debug)]
pub(crate) struct HostImage {
    /// The archive of what lies around the binds.
    pub(crate) skeleton: Vec<u8>,
    /// What of the host is visible.
    pub(crate) binds: Vec<HostBind>,
}

impl HostImage {
    /// Looks at the host whose root this is; equal hosts give equal skeletons.
    pub(crate) fn collect(root: &Path) -> Self {
        let mut skeleton = Builder::default();
        for (path, owner, mode) in DIRECTORIES {
            let access = Access {
                owner: *owner,
                mode: *mode,
            };
            skeleton.directory(Path::new(path), access);
        }
        for (path, target) in LINKS {
            skeleton.link(Path::new(path), Path::new(target));
        }
        let mut binds = Vec::new();
        for program in programs(root) {
            let inside = program.path.as_path();
            if let Some(target) = program.link {
                skeleton.link(inside, &target);
                continue;
            }
            let access = Access {
                owner: 0,
                mode: 0o755,
            };
            skeleton.directory(inside, access);
            binds.push(bind(root, inside));
        }
        binds.extend(unlisted(root));
        etc::add(root, &mut skeleton);
        Self {
            skeleton: skeleton.finish(),
            binds,
        }
    }
}

/// Returns what of the host is visible inside.
pub(crate) fn binds(root: &Path) -> Vec<HostBind> {
    programs(root)
        .filter(|program| program.link.is_none())
        .map(|program| bind(root, &program.path))
        .chain(unlisted(root))
        .collect()
}

/// Returns nothing; but in a test that leaves the list out, what is on none.
fn unlisted(root: &Path) -> impl Iterator<Item = HostBind> {
    const UNLISTED: &[&str] = &["etc", "home", "opt", "root", "srv", "usr/local", "var"];
    let off = is_off(Defence::ImageList);
    let there = move |path: &&Path| off && root.join(path).is_dir();
    UNLISTED
        .iter()
        .map(Path::new)
        .filter(there)
        .map(move |path| bind(root, path))
}

/// Returns the environment that execs have when nothing else is said.
pub(crate) fn environment() -> BTreeMap<String, String> {
    [("PATH", SEARCH_PATH), ("LANG", "C.UTF-8")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// What image `host` was made from, cheap to take: it changes when a package is installed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(Vec<(PathBuf, Option<[i64; 4]>)>);

impl Fingerprint {
    pub(crate) fn take(root: &Path) -> Self {
        let programs = programs(root).map(|program| program.path);
        let seen = etc::sources(root).into_iter().chain(programs);
        let state = |path: PathBuf| {
            let found = fs::metadata(root.join(&path)).ok();
            let state = found.map(|found| {
                [
                    found.ino().cast_signed(),
                    found.size().cast_signed(),
                    found.ctime(),
                    found.ctime_nsec(),
                ]
            });
            // Of a directory of programs only its being there counts: it is bound, not copied.
            let bound = !path.starts_with("etc");
            (path, state.filter(|_| !bound))
        };
        Self(seen.map(state).collect())
    }
}

fn bind(root: &Path, inside: &Path) -> HostBind {
    HostBind {
        source: root.join(inside),
        target: Path::new("/").join(inside),
    }
}

/// A directory of programs, or a link to one, relative to the root.
struct Program {
    path: PathBuf,
    link: Option<PathBuf>,
}

fn programs(root: &Path) -> impl Iterator<Item = Program> {
    let at_top = |name: &str| name == "bin" || name == "sbin" || name.starts_with("lib");
    let of_usr = |name: &str| !NOT_OF_USR.contains(&name);
    let mut found = listed(root, Path::new(""), at_top);
    found.extend(listed(root, Path::new("usr"), of_usr));
    found.into_iter()
}

fn listed(root: &Path, directory: &Path, wanted: impl Fn(&str) -> bool) -> Vec<Program> {
    let entries = fs::read_dir(root.join(directory)).into_iter().flatten();
    let mut found: Vec<Program> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .filter_map(|entry| {
            let path = directory.join(entry.file_name());
            let kind = entry.file_type().ok()?;
            match fs::read_link(entry.path()) {
                Ok(target) => inside_usr(&path, &target).then_some(Program {
                    path,
                    link: Some(target),
                }),
                Err(_) => kind.is_dir().then_some(Program { path, link: None }),
            }
        })
        .collect();
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found.truncate(ENTRIES_MAX);
    found
}

/// Returns whether a link at a path leads to something of `/usr` that a sandbox sees.
fn inside_usr(path: &Path, target: &Path) -> bool {
    let above = path.parent().unwrap_or(Path::new(""));
    let mut parts: Vec<&std::ffi::OsStr> = Vec::new();
    let whole = Path::new("/").join(above).join(target);
    for part in whole.components() {
        match part {
            std::path::Component::Normal(name) => parts.push(name),
            std::path::Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    let at = |index: usize| parts.get(index).and_then(|part| part.to_str());
    match (at(0), at(1)) {
        (Some("usr"), Some(child)) => !NOT_OF_USR.contains(&child),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn usr_is_visible_without_the_administrators_parts() {
        let host = tempfile::tempdir().unwrap();
        for path in [
            "usr/bin",
            "usr/lib",
            "usr/local/bin",
            "usr/etc",
            "usr/src",
            "lib32",
            "home",
        ] {
            fs::create_dir_all(host.path().join(path)).unwrap();
        }
        symlink("usr/bin", host.path().join("bin")).unwrap();
        symlink("/home", host.path().join("libhome")).unwrap();
        symlink("local", host.path().join("usr/mine")).unwrap();
        let targets: Vec<_> = binds(host.path())
            .into_iter()
            .map(|bind| bind.target)
            .collect();
        let expected = ["/lib32", "/usr/bin", "/usr/lib"].map(PathBuf::from);
        assert_eq!(targets, expected);
    }

    #[test]
    fn links_are_judged_by_where_they_lead() {
        let leads = |path: &str, target: &str| inside_usr(Path::new(path), Path::new(target));
        assert!(leads("bin", "usr/bin"));
        assert!(leads("usr/lib64", "lib"));
        assert!(leads("etc/alternatives/vi", "/usr/bin/vim.basic"));
        assert!(leads("etc/localtime", "../usr/share/zoneinfo/UTC"));
        assert!(!leads("etc/alternatives/x", "/usr/local/bin/x"));
        assert!(!leads("etc/x", "/usr/../root/secret"));
        assert!(!leads("etc/x", "shadow"));
        assert!(!leads("usr/tmp", "../var/tmp"));
    }
}
