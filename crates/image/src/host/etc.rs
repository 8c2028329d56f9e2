//! The `/etc` of image `host`.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::{SANDBOX_USER, inside_usr};
use crate::archive::{Access, Builder};

/// Files and directories of `/etc` that programs need and that say nothing of whose host this is.
///
/// A final `*` stands for versions. Whatever may hold a password, a key, a proxy's address or a
/// registry's token is not here: `environment`, `profile.d`, `wgetrc`, `pip.conf`, `npmrc`, `netrc`,
/// `gitconfig`, `apt`, `docker`, `ssh`, `maven`, `php`, `my.cnf`, `krb5.conf`.
const COPIED: &[&str] = &[
    "ImageMagick-*",
    "alpine-release",
    "alternatives",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "dpkg/origins",
    "ethertypes",
    "fedora-release",
    "fonts",
    "gai.conf",
    "groff",
    "host.conf",
    "inputrc",
    "java-*",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "login.defs",
    "lsb-release",
    "magic",
    "magic.mime",
    "manpath.config",
    "mime.types",
    "mke2fs.conf",
    "nanorc",
    "os-release",
    "perl",
    "pki/ca-trust/extracted",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "protocols",
    "python3",
    "python3.*",
    "redhat-release",
    "rpc",
    "services",
    "sgml",
    "shells",
    "ssl/cert.pem",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "vim",
    "xattr.conf",
    "xml",
];

/// Most bytes of a file that is copied; the largest of the list, a bundle of certificates, has 1 MiB.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Most bytes of all that is copied.
const BYTES_MAX: u64 = 48 << 20;
/// Most entries that are copied; a desktop has a few thousand.
const ENTRIES_MAX: usize = 20_000;
/// Deepest directory of the list.
const DEPTH_MAX: usize = 8;
/// Bits of a mode that raise privileges, and the bits that let everybody read.
const RAISES: u32 = 0o6000;
const READABLE: u32 = 0o004;

/// Returns what of the host's `/etc` the skeleton is made from, relative to the root.
pub(super) fn sources(root: &Path) -> Vec<PathBuf> {
    let etc = root.join("etc");
    let mut names: Vec<String> = fs::read_dir(&etc)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    let mut found = Vec::new();
    for copied in COPIED {
        match copied.strip_suffix('*') {
            Some(start) => {
                let versions = names.iter().filter(|name| name.starts_with(start));
                found.extend(versions.map(|name| Path::new("etc").join(name)));
            }
            None => found.push(Path::new("etc").join(copied)),
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Adds everything beneath `/etc`.
pub(super) fn add(root: &Path, skeleton: &mut Builder) {
    let mut copying = Copying {
        root,
        skeleton,
        bytes_left: BYTES_MAX,
        entries_left: ENTRIES_MAX,
    };
    for path in sources(root) {
        copying.add(&path, DEPTH_MAX);
    }
    let shell = ["bin/bash", "usr/bin/bash"]
        .iter()
        .any(|path| root.join(path).exists());
    for (name, content) in synthesised(if shell { "/bin/bash" } else { "/bin/sh" }) {
        let access = Access {
            owner: 0,
            mode: 0o644,
        };
        skeleton.file(&Path::new("etc").join(name), content.as_bytes(), access);
    }
}

struct Copying<'a> {
    root: &'a Path,
    skeleton: &'a mut Builder,
    bytes_left: u64,
    entries_left: usize,
}

impl Copying<'_> {
    /// Adds a path, without what is private in it; a path that is not there is skipped.
    fn add(&mut self, path: &Path, depth: usize) {
        let host = self.root.join(path);
        let Ok(found) = fs::symlink_metadata(&host) else {
            return;
        };
        let Some(left) = self.entries_left.checked_sub(1) else {
            return;
        };
        self.entries_left = left;
        if found.is_symlink() {
            self.add_link(path);
        } else if found.is_dir() && found.mode() & READABLE != 0 && depth > 0 {
            let access = Access {
                owner: 0,
                mode: 0o755,
            };
            self.skeleton.directory(path, access);
            let entries = fs::read_dir(&host).into_iter().flatten().flatten();
            let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
            names.sort();
            for name in names {
                self.add(&path.join(name), depth - 1);
            }
        } else if found.is_file() {
            self.add_file(path, path);
        }
    }

    /// Keeps a link to what a sandbox sees; of another, takes the public file that it leads to.
    fn add_link(&mut self, path: &Path) {
        let Ok(target) = fs::read_link(self.root.join(path)) else {
            return;
        };
        let within_etc = target.is_relative()
            && !target
                .components()
                .any(|part| part == std::path::Component::ParentDir);
        let alternative = target.starts_with("/etc/alternatives");
        if within_etc || alternative || inside_usr(path, &target) {
            self.skeleton.link(path, &target);
        } else if path.starts_with("etc/ssl/certs") {
            // Certificates that the administrator added are public, and lie beneath /usr/local.
            let local = Path::new("usr/local/share/ca-certificates");
            let inside = target.strip_prefix("/").unwrap_or(&target);
            if inside.starts_with(local) {
                let inside = inside.to_owned();
                self.add_file(path, &inside);
            }
        }
    }

    fn add_file(&mut self, path: &Path, source: &Path) {
        let Some(content) = public_content(&self.root.join(source)) else {
            return;
        };
        let Some(left) = self.bytes_left.checked_sub(content.len() as u64) else {
            return;
        };
        self.bytes_left = left;
        let access = Access {
            owner: 0,
            mode: 0o644,
        };
        self.skeleton.file(path, &content, access);
    }
}

/// Returns what a file holds, when everybody may read it and it raises no privileges.
fn public_content(path: &Path) -> Option<Vec<u8>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = flags.bits().cast_signed();
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .ok()?;
    // Of what was opened, not of what the name meant a moment ago.
    let found = file.metadata().ok()?;
    let public = found.is_file() && found.mode() & READABLE != 0 && found.mode() & RAISES == 0;
    if !public || found.len() > FILE_BYTES_MAX {
        return None;
    }
    let mut content = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut content).ok()?;
    Some(content)
}

fn synthesised(shell: &str) -> Vec<(&'static str, String)> {
    let fixed = |text: &str| text.to_owned();
    vec![
        ("bash.bashrc", fixed(BASHRC)),
        ("environment", String::new()),
        ("fstab", String::new()),
        ("gitconfig", String::new()),
        ("group", group()),
        ("hostname", fixed("sandbox\n")),
        ("hosts", fixed(HOSTS)),
        ("machine-id", String::new()),
        ("nsswitch.conf", fixed(NSSWITCH)),
        ("passwd", passwd(shell)),
        ("profile", fixed(PROFILE)),
        ("resolv.conf", String::new()),
        ("subgid", String::new()),
        ("subuid", String::new()),
    ]
}

fn passwd(shell: &str) -> String {
    format!(
        "root:x:0:0:root:/root:{shell}\n\
         daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
         bin:x:2:2:bin:/bin:/usr/sbin/nologin\n\
         sys:x:3:3:sys:/dev:/usr/sbin/nologin\n\
         sandbox:x:{SANDBOX_USER}:{SANDBOX_USER}:sandbox:/home/sandbox:{shell}\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )
}

fn group() -> String {
    format!(
        "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\ntty:x:5:\nmail:x:8:\nutmp:x:43:\nstaff:x:50:\n\
         users:x:100:\nsandbox:x:{SANDBOX_USER}:\nnogroup:x:65534:\n"
    )
}

const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n\
    networks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\n";

const PROFILE: &str = r#"# For login shells of a sandbox.
if [ -n "$BASH_VERSION" ] && [ -r /etc/bash.bashrc ]; then
    . /etc/bash.bashrc
elif [ "$(id -u)" -eq 0 ]; then
    PS1='# '
else
    PS1='$ '
fi
"#;

const BASHRC: &str = r#"# For interactive shells of a sandbox.
[ -z "$PS1" ] && return
shopt -s checkwinsize
PS1='\u@\h:\w\$ '
alias ls='ls --color=auto'
alias grep='grep --color=auto'
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, Owners, unpack_archive};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn write(root: &Path, path: &str, mode: u32) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "of the host").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_named_public_files_are_taken() {
        let host = tempfile::tempdir().unwrap();
        let root = host.path();
        for (path, mode) in [
            ("etc/services", 0o644),
            ("etc/pip.conf", 0o644),
            ("etc/shadow", 0o640),
            ("etc/inputrc", 0o600),
            ("etc/magic", 0o4755),
            ("etc/ssl/certs/all.crt", 0o644),
            ("etc/ssl/private/key.pem", 0o644),
            ("etc/ssl/certs/secret.pem", 0o640),
            ("etc/python3.11/site.py", 0o644),
            ("usr/local/share/ca-certificates/own.crt", 0o644),
            ("root/secret", 0o644),
            ("usr/bin/true", 0o755),
        ] {
            write(root, path, mode);
        }
        let link = |target: &str, path: &str| symlink(target, root.join(path)).unwrap();
        link(
            "/usr/local/share/ca-certificates/own.crt",
            "etc/ssl/certs/own.pem",
        );
        link("/root/secret", "etc/ssl/certs/stolen.pem");
        link("/usr/share/zoneinfo/UTC", "etc/localtime");
        link("/root/secret", "etc/os-release");
        let skeleton = super::super::HostImage::collect(root).skeleton;
        assert_eq!(skeleton, super::super::HostImage::collect(root).skeleton);
        let made = tempfile::tempdir().unwrap();
        let unpacked = unpack_archive(
            &mut skeleton.as_slice(),
            made.path(),
            Owners::Caller,
            Limits::default(),
            &mut |_| {},
        );
        unpacked.unwrap();
        let etc = made.path().join("etc");
        for name in [
            "services",
            "ssl/certs/all.crt",
            "ssl/certs/own.pem",
            "python3.11/site.py",
        ] {
            assert_eq!(fs::read(etc.join(name)).unwrap(), b"of the host", "{name}");
        }
        for name in [
            "pip.conf",
            "shadow",
            "inputrc",
            "magic",
            "ssl/private",
            "ssl/certs/secret.pem",
            "ssl/certs/stolen.pem",
            "os-release",
        ] {
            assert!(fs::symlink_metadata(etc.join(name)).is_err(), "{name}");
        }
        assert!(etc.join("localtime").is_symlink());
        let mode_of = |path: &str| {
            let found = fs::metadata(made.path().join(path)).unwrap();
            found.permissions().mode() & 0o7777
        };
        assert_eq!(mode_of("root"), 0o700);
        assert_eq!(mode_of("tmp"), 0o1777);
        assert!(
            fs::read_to_string(etc.join("passwd"))
                .unwrap()
                .starts_with("root:x:0:0:")
        );
    }
}
