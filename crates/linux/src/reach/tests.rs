use super::*;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

/// Nobody's and nobody else's: users need not be in the list to own files.
const ADA: u32 = 54_321;
const BOB: u32 = 54_322;

/// Directories of two users, side by side.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = Self { directory };
        fs::set_permissions(place.at(""), fs::Permissions::from_mode(0o755)).unwrap();
        for (name, uid) in [("ada", ADA), ("bob", BOB)] {
            place.directory(name, uid, 0o700);
            place.file(&format!("{name}/file"), uid);
        }
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn directory(&self, name: &str, uid: u32, mode: u32) {
        fs::create_dir(self.at(name)).unwrap();
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(mode)).unwrap();
        chown(self.at(name), Some(uid), Some(uid)).unwrap();
    }

    fn file(&self, name: &str, uid: u32) {
        fs::write(self.at(name), "x").unwrap();
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(0o600)).unwrap();
        chown(self.at(name), Some(uid), Some(uid)).unwrap();
    }
}

fn reach() -> Reach {
    Reach {
        user: Some(User {
            uid: ADA,
            gid: ADA,
            groups: Vec::new(),
        }),
        own: true,
        beneath: None,
        hidden: Vec::new(),
    }
}

const WRITE: Wish = Wish {
    writable: true,
    links: true,
};

#[test]
fn users_are_found_in_the_lists() {
    let users = "root:x:0:0::/root:/bin/sh\nada:x:7:70::/:/bin/sh\nbroken\nx:y:z\n";
    let groups = "root:x:0:\nteam:x:8:bob,ada\nbobs:x:9:bob\nlike:x:10:adam\nlast:x:11:ada\n";
    let ada = User::listed(7, users, groups);
    assert_eq!((ada.gid, ada.groups), (70, vec![8, 11]));
    let nobody = User::listed(8, users, groups);
    assert_eq!((nobody.gid, nobody.groups), (NOBODY, vec![]));
    let many: Vec<String> = (0..1000).map(|n| format!("g{n}:x:{n}:ada\n")).collect();
    assert_eq!(
        User::listed(7, users, &many.concat()).groups.len(),
        GROUPS_MAX
    );
}

#[test]
fn a_user_reaches_what_is_theirs_and_nothing_else() {
    if !crate::capability_to_test() {
        return;
    }
    let place = Place::new();
    let reach = reach();
    for wish in [Wish::READ, WRITE] {
        for own in ["ada", "ada/file"] {
            let file = reach.open(&place.at(own), wish).unwrap();
            assert_eq!(fstat(&file).unwrap().st_uid, ADA, "{own}");
        }
        for other in ["bob", "bob/file", "bob/none", ""] {
            let refused = reach.open(&place.at(other), wish);
            let refused = refused.unwrap_err();
            assert!(!refused.is_missing(), "{other}: {refused:?}");
        }
    }
    assert!(
        reach
            .open(&place.at("ada/none"), Wish::READ)
            .unwrap_err()
            .is_missing()
    );
    // The thread that did it is gone, and this one has every right that it had.
    assert!(fs::read(place.at("bob/file")).is_ok());
    assert!(reach.open_here(&place.at("bob/file"), Wish::READ).is_err());
    assert!(fs::read(place.at("bob/file")).is_ok());
    assert_eq!(fs::metadata(place.at("bob")).unwrap().uid(), BOB);
}

#[test]
fn a_link_leads_only_to_what_is_the_users_own() {
    if !crate::capability_to_test() {
        return;
    }
    let place = Place::new();
    place.directory("ada/deep", ADA, 0o755);
    for (link, target) in [
        ("to-bob", place.at("bob")),
        ("to-bobs-file", place.at("bob/file")),
        ("to-root", "/root".into()),
        ("to-all", "/".into()),
        ("to-passwd", "/etc/passwd".into()),
        ("to-proc", "/proc/self/root".into()),
        ("to-own", place.at("ada/deep")),
    ] {
        symlink(target, place.at("ada").join(link)).unwrap();
    }
    for link in [
        "to-bob",
        "to-bobs-file",
        "to-root",
        "to-all",
        "to-passwd",
        "to-proc",
    ] {
        let path = place.at("ada").join(link);
        assert!(reach().open(&path, Wish::READ).is_err(), "{link}");
    }
    assert!(reach().open(&place.at("ada/to-own"), WRITE).is_ok());
    let around = place.at("ada/deep/../../bob");
    assert!(reach().open(&around, Wish::READ).is_err());
}

#[test]
fn a_swap_for_a_link_never_gives_what_is_anothers() {
    if !crate::capability_to_test() {
        return;
    }
    let place = Place::new();
    place.directory("bob/secret", BOB, 0o777);
    let path = place.at("ada/turning");
    let (real, link) = (place.at("ada/real"), place.at("ada/link"));
    place.directory("ada/turning", ADA, 0o755);
    symlink(place.at("bob/secret"), &link).unwrap();
    let ended = AtomicBool::new(false);
    let (mut given, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                fs::rename(&path, &real).unwrap();
                fs::rename(&link, &path).unwrap();
                fs::rename(&path, &link).unwrap();
                fs::rename(&real, &path).unwrap();
            }
        });
        for _ in 0..2000 {
            match reach().open(&path, Wish::READ) {
                Ok(file) => {
                    assert_eq!(fstat(&file).unwrap().st_uid, ADA);
                    given += 1;
                }
                Err(_) => refused += 1,
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
    assert!(given > 0 && refused > 0, "{given} {refused}");
}

#[test]
fn what_a_user_owns_is_theirs_only_as_far_as_its_mode_says() {
    if !crate::capability_to_test() {
        return;
    }
    let place = Place::new();
    place.file("ada/bobs", BOB);
    place.file("ada/closed", ADA);
    for (name, mode) in [("bobs", 0o644), ("closed", 0o400)] {
        let path = place.at("ada").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let path = place.at("ada").join(name);
        // What lies in a directory of one's own may be read as one may.
        assert!(reach().open(&path, Wish::READ).is_ok(), "{name}");
        let refused = reach().open(&path, WRITE).unwrap_err();
        assert!(
            matches!(refused, ReachError::Access { writable: true }),
            "{name}: {refused:?}"
        );
    }
    let path = place.at("ada/bobs");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let refused = reach().open(&path, Wish::READ).unwrap_err();
    assert!(matches!(refused, ReachError::Access { writable: false }));
}

#[test]
fn the_kernel_devices_and_sockets_are_nobodys() {
    if !crate::capability_to_test() {
        return;
    }
    let place = Place::new();
    let daemon = Reach {
        user: None,
        ..reach()
    };
    for path in [
        "/proc",
        "/proc/self",
        "/proc/version",
        "/sys",
        "/dev",
        "/dev/null",
        "/dev/pts",
    ] {
        for reach in [&daemon, &reach()] {
            assert!(reach.open(path.as_ref(), Wish::READ).is_err(), "{path}");
        }
    }
    let _listener = UnixListener::bind(place.at("ada/socket")).unwrap();
    chown(place.at("ada/socket"), Some(ADA), None).unwrap();
    for reach in [daemon, reach()] {
        let refused = reach.open(&place.at("ada/socket"), Wish::READ);
        assert!(matches!(refused, Err(ReachError::Kind)), "{refused:?}");
    }
}

#[test]
fn the_daemons_own_files_are_out_of_everybodys_reach() {
    if !crate::capability_to_test() {
        return;
    }
    let place = Place::new();
    place.directory("ada/state", ADA, 0o755);
    place.directory("ada/state/deep", ADA, 0o755);
    place.directory("ada/beside", ADA, 0o755);
    for user in [None, reach().user] {
        let reach = Reach {
            user,
            hidden: vec![place.at("ada/state"), place.at("none")],
            ..reach()
        };
        for path in ["ada", "ada/state", "ada/state/deep", ""] {
            assert!(reach.open(&place.at(path), Wish::READ).is_err(), "{path}");
        }
        assert!(reach.open(&place.at("ada/beside"), WRITE).is_ok());
    }
}

#[test]
fn an_allowed_directory_is_reached_but_not_left() {
    if !crate::capability_to_test() {
        return;
    }
    let place = Place::new();
    place.directory("data", 0, 0o755);
    place.directory("data/open", 0, 0o755);
    place.directory("data/closed", 0, 0o700);
    symlink(place.at("bob"), place.at("data/link")).unwrap();
    for (user, closed_too) in [(reach().user, false), (None, true)] {
        let reach = Reach {
            user,
            own: false,
            beneath: Some(place.at("data")),
            ..reach()
        };
        let opens = |name: &str, wish| reach.open(&place.at(name), wish).is_ok();
        assert!(opens("data", Wish::READ) && opens("data/open", Wish::READ));
        assert_eq!(opens("data/closed", Wish::READ), closed_too);
        assert_eq!(opens("data/open", WRITE), closed_too);
        for out in ["data/link", "data/link/file", "data/../bob", "ada", "bob"] {
            assert!(!opens(out, Wish::READ), "{out}");
        }
    }
}
