//! Attacks on mounts.

use std::fs;
use std::io;

use pinfold_attack::{Facts, SHARE};

use super::call::{any, call, call_with, opens_for_writing, text};
use super::{Attempt, Found};

/// `MS_BIND`.
const BIND: usize = 0x1000;
/// `MS_REMOUNT | MS_BIND`.
const REMOUNT: usize = 0x20 | BIND;
/// `MS_REC`.
const RECURSIVE: usize = 0x4000;
/// `AT_FDCWD`.
const HERE: usize = usize::MAX - 99;

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("share-remount", share_remount),
    // The same, under the name by which it is known.
    ("cve-2026-46695", share_remount),
    ("release-agent", |_| {
        let directory = "/tmp/attack-cgroup";
        // A hierarchy of the host's, or a new one; both go with this process's mounts.
        any(["memory", "none,name=pinfold-attack"].map(|hierarchy| {
            let mounted = fs::create_dir_all(directory)
                .and_then(|()| mount("cgroup", directory, "cgroup", 0, hierarchy));
            match mounted {
                Err(error) => Found::Failed(error.to_string()),
                Ok(_) => opens_for_writing("/tmp/attack-cgroup/release_agent"),
            }
        }))
    }),
    ("binfmt", |_| {
        opens_for_writing("/proc/sys/fs/binfmt_misc/register").or(|| {
            let directory = "/tmp/attack-formats";
            let mounted = fs::create_dir_all(directory)
                .and_then(|()| mount("none", directory, "binfmt_misc", 0, ""));
            match mounted {
                Err(error) => Found::Failed(error.to_string()),
                Ok(_) => opens_for_writing("/tmp/attack-formats/register"),
            }
        })
    }),
    ("mount", |_| {
        Found::of(mount("tmpfs", "/tmp", "tmpfs", 0, ""), "mounted")
    }),
    ("mount-new", |_| {
        let made = call_with(libc::SYS_fsopen, &[c"tmpfs".as_ptr().addr(), 0]);
        let create = |context: usize| {
            // `FSCONFIG_CMD_CREATE`.
            call_with(libc::SYS_fsconfig, &[context, 6, 0, 0, 0])?;
            call_with(libc::SYS_fsmount, &[context, 0, 0])
        };
        Found::of(made.and_then(create), "mounted")
    }),
    ("mount-bind", |_| {
        Found::of(
            mount("/proc", "/mnt", "none", BIND | RECURSIVE, ""),
            "bound",
        )
        .or(|| {
            Found::of(
                mount("/proc", "/tmp", "none", BIND | RECURSIVE, ""),
                "bound",
            )
        })
    }),
    ("mount-overlay", |_| {
        let made = fs::create_dir_all("/tmp/attack-upper")
            .and_then(|()| fs::create_dir_all("/tmp/attack-work"));
        let options = "lowerdir=/etc,upperdir=/tmp/attack-upper,workdir=/tmp/attack-work,userxattr";
        let mounted = made.and_then(|()| mount("overlay", "/etc", "overlay", 0, options));
        Found::of(mounted, "mounted")
    }),
    ("remount-masked", |_| {
        Found::of(mount("none", "/proc/sys", "none", REMOUNT, ""), "remounted").or(|| {
            let path = text("/proc/sys");
            Found::of(unmount(&path), "unmounted")
        })
    }),
    ("unmount-mask", |_| match unmount(&text("/proc/keys")) {
        Ok(_) => super::host::is_uncovered("/proc/keys"),
        Err(error) => Found::Failed(error.to_string()),
    }),
    ("set-mount-flags", |_| {
        step_aside();
        // Clears read-only, by `struct mount_attr`.
        let record = [0_u64, 1, 0, 0];
        any(["/usr", SHARE, "/proc/sys", "/sys"].map(|path| {
            let bytes = text(path);
            let set = call(
                libc::SYS_mount_setattr,
                [
                    HERE,
                    bytes.as_ptr().addr(),
                    0,
                    (&raw const record).addr(),
                    size_of_val(&record),
                    0,
                ],
            );
            Found::of(set, path)
        }))
    }),
    ("pivot-again", |_| {
        let path = text("/tmp");
        let address = path.as_ptr().addr();
        let pivoted = mount("/tmp", "/tmp", "none", BIND, "")
            .and_then(|_| call_with(libc::SYS_chdir, &[address]))
            .and_then(|_| {
                let here = c".".as_ptr().addr();
                call_with(libc::SYS_pivot_root, &[here, here])
            });
        Found::of(pivoted, "changed the root")
    }),
];

fn share_remount(facts: &Facts) -> Found {
    if !facts.share {
        return Found::NotExpressible("nothing is shared".to_owned());
    }
    let remounted = mount("none", SHARE, "none", REMOUNT, "");
    if let Err(error) = remounted {
        return Found::Failed(error.to_string());
    }
    Found::of(
        fs::write("/attack-share/open/remounted", "x"),
        "wrote to it",
    )
}

impl Found {
    /// Tries something else when this did not work.
    pub(super) fn or(self, other: impl FnOnce() -> Self) -> Self {
        if matches!(self, Self::Worked(_)) {
            self
        } else {
            other()
        }
    }
}

/// Where a namespace of one's own can be made, other attacks are spared what this one mounts.
fn step_aside() {
    let namespace = libc::CLONE_NEWNS.unsigned_abs() as usize;
    // Refused, as it should be, the attack goes on where it is.
    let _refused = call_with(libc::SYS_unshare, &[namespace]);
}

fn mount(source: &str, target: &str, kind: &str, flags: usize, data: &str) -> io::Result<usize> {
    step_aside();
    let [source, target, kind, data] = [source, target, kind, data].map(text);
    call_with(
        libc::SYS_mount,
        &[
            source.as_ptr().addr(),
            target.as_ptr().addr(),
            kind.as_ptr().addr(),
            flags,
            data.as_ptr().addr(),
        ],
    )
}

fn unmount(path: &std::ffi::CStr) -> io::Result<usize> {
    const DETACH: usize = 2;
    step_aside();
    call_with(libc::SYS_umount2, &[path.as_ptr().addr(), DETACH])
}
