//! Host paths as a privilege: what ordinary users may show of the host through a daemon of root's.

#![cfg(test)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

#[path = "world/world.rs"]
mod world;

use world::{Person, World};

/// Root's daemon, and two ordinary users who may speak to it.
struct Town {
    root: World,
    ada: World,
    bob: World,
}

impl Town {
    /// Starts root's daemon with a setting and opens its socket to everyone.
    fn new(mounts_allowed: &str) -> Self {
        let town = Self {
            root: World::new(Person::Root),
            ada: World::new(Person::Plain),
            bob: World::new(Person::Single),
        };
        let mut first = town.root.pinfold(["list"]);
        first.env("PINFOLD_MOUNTS_ALLOWED", mounts_allowed);
        assert!(first.output().unwrap().status.success());
        let socket = town.root.socket();
        let above = socket.parent().unwrap();
        for directory in [above, above.parent().unwrap()] {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        town
    }

    fn by<'a>(&self, person: &World, arguments: impl IntoIterator<Item = &'a str>) -> Said {
        let mut command: Command = person.pinfold(arguments);
        command.env("PINFOLD_SOCKET", self.root.socket());
        let output = command.output().unwrap();
        Said {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn ada<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Said {
        self.by(&self.ada, arguments)
    }

    /// What a person may not show is refused with a reason and a way out, and leaves nothing.
    #[track_caller]
    fn refuses(&self, source: &Path, writable: bool) {
        let mount = format!(
            "{}:/x{}",
            source.display(),
            if writable { ":rw" } else { "" }
        );
        let said = self.ada(["run", "--mount", &mount, "--", "ls", "-la", "/x"]);
        assert_eq!(said.code, 125, "{mount}: {said:?}");
        assert!(said.stderr.contains("hint:"), "{mount}: {said:?}");
        assert_eq!(said.stdout, "", "{mount}");
        assert_eq!(self.root.json(["list", "--all"]), serde_json::json!([]));
    }
}

#[derive(Debug)]
struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Said {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }
}

#[test]
fn users_show_their_own_directories_through_roots_daemon() {
    let town = Town::new("own");
    town.ada.write("in/number", "20");
    town.ada.write("out/old", "old");
    let script = "stat -c '%u %g' /in/number /out; echo $(( $(cat /in/number) + 22 )) >/out/answer; \
                  mkdir /out/made; chmod 600 /out/old; rm /out/old; ! echo x 2>&- >/in/new";
    let shown = town.ada([
        "run", "--in", "in", "--out", "out", "--", "sh", "-c", script,
    ]);
    assert_eq!(shown.ok(), "0 0\n0 0\n");
    let out = town.ada.files().join("out");
    assert_eq!(fs::read_to_string(out.join("answer")).unwrap(), "42\n");
    assert!(!out.join("old").exists() && !town.ada.files().join("in/new").exists());
    for name in ["answer", "made"] {
        let made = fs::symlink_metadata(out.join(name)).unwrap();
        assert_eq!(made.uid(), town.ada.uid(), "{name}");
        assert_eq!(made.gid(), fs::metadata(&out).unwrap().gid(), "{name}");
    }
    // A single file; a link to a directory of one's own; and no user inside but root is anyone.
    symlink("in", town.ada.files().join("way")).unwrap();
    let files = town.ada.files().display().to_string();
    let file = format!("{files}/in/number:/etc/number");
    let way = format!("{files}/way:/way");
    let shown = town.ada([
        "run",
        "--mount",
        &file,
        "--mount",
        &way,
        "--",
        "cat",
        "/etc/number",
        "/way/number",
    ]);
    assert_eq!(shown.ok(), "2020");
    let writable = format!("{files}/out:/x:rw");
    let other = town.ada([
        "run", "--user", "1", "--mount", &writable, "--", "touch", "/x/other",
    ]);
    assert_ne!(other.code, 0);
    assert!(!out.join("other").exists());
}

#[test]
fn users_show_nothing_of_anybody_elses() {
    let town = Town::new("own");
    let secret = town.bob.write("secret/word", "bobs");
    let open = town.bob.files().parent().unwrap().join("open");
    fs::create_dir(&open).unwrap();
    town.bob.give(&open);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let files = town.ada.files();
    let links: Vec<PathBuf> = [
        (secret.as_path(), "to-bobs-file"),
        (open.as_path(), "to-bobs-open-directory"),
        (Path::new("/root"), "to-root"),
        (Path::new("/etc/shadow"), "to-shadow"),
        (Path::new("/proc/1/root"), "to-proc"),
        (Path::new("/"), "to-everything"),
        (&town.root.state(), "to-the-state"),
    ]
    .into_iter()
    .map(|(target, name)| {
        symlink(target, files.join(name)).unwrap();
        files.join(name)
    })
    .collect();
    let _listener = UnixListener::bind(files.join("socket")).unwrap();
    chown(files.join("socket"), Some(town.ada.uid()), None).unwrap();
    let fifo = Command::new("mkfifo").arg(files.join("fifo")).status();
    assert!(fifo.unwrap().success());
    town.ada.give(&files.join("fifo"));
    let fixed = [
        "/",
        "/root",
        "/etc",
        "/etc/passwd",
        "/proc",
        "/proc/self",
        "/sys",
        "/sys/fs/cgroup",
        "/dev",
        "/dev/null",
        "/dev/shm",
        "/tmp",
        "/var/tmp",
        "/run",
    ];
    let of_others = [
        secret.parent().unwrap().to_owned(),
        town.bob.files(),
        open,
        town.root.files(),
        town.root.state(),
        town.root.state().join("pinfold.db"),
        town.root.socket(),
        files.join("socket"),
        files.join("fifo"),
        files.join("own/../../../bob"),
        files.join("missing"),
    ];
    for source in fixed
        .iter()
        .map(PathBuf::from)
        .chain(links)
        .chain(of_others)
    {
        town.refuses(&source, false);
        town.refuses(&source, true);
    }
    assert_eq!(fs::read_to_string(secret).unwrap(), "bobs");
}

#[test]
fn users_write_only_what_they_could_write_themselves() {
    let town = Town::new("own");
    let closed = town.ada.write("own/file", "adas");
    let closed = closed.parent().unwrap();
    fs::set_permissions(closed, fs::Permissions::from_mode(0o500)).unwrap();
    town.refuses(closed, true);
    let mount = format!("{}:/x", closed.display());
    let shown = town.ada(["run", "--mount", &mount, "--", "cat", "/x/file"]);
    assert_eq!(shown.ok(), "adas");
}

#[test]
fn a_path_that_turns_into_a_link_never_shows_what_is_behind_it() {
    let town = Town::new("own");
    let files = town.ada.files();
    for (directory, owner) in [("turning", &town.ada), ("secret", &town.bob)] {
        let path = owner.files().join(directory);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("word"), directory).unwrap();
        owner.give(&path);
    }
    // Only the right of whom it is opened for keeps it closed: everybody can reach it.
    let secret = town.bob.files().join("secret");
    for path in [
        town.bob.files().parent().unwrap(),
        &town.bob.files(),
        &secret,
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let (path, real, link) = (
        files.join("turning"),
        files.join("real"),
        files.join("link"),
    );
    symlink(&secret, &link).unwrap();
    let ended = AtomicBool::new(false);
    let mut shown = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                fs::rename(&path, &real).unwrap();
                fs::rename(&link, &path).unwrap();
                world::pause();
                fs::rename(&path, &link).unwrap();
                fs::rename(&real, &path).unwrap();
                world::pause();
            }
        });
        let mount = format!("{}:/x:rw", path.display());
        for _ in 0..30 {
            shown.push(town.ada([
                "run",
                "--mount",
                &mount,
                "--",
                "sh",
                "-c",
                "cat /x/word; echo x >/x/word",
            ]));
        }
        ended.store(true, Ordering::Relaxed);
    });
    for said in &shown {
        assert!(!said.stdout.contains("secret"), "{said:?}");
        assert!(matches!(said.code, 0 | 125), "{said:?}");
    }
    assert_eq!(fs::read_to_string(secret.join("word")).unwrap(), "secret");
}

#[test]
fn a_right_that_is_lost_is_lost_at_the_next_start() {
    let town = Town::new("own");
    town.ada.write("desk/file", "adas");
    let desk = town.ada.files().join("desk");
    let mount = format!("{}:/x:rw", desk.display());
    town.ada(["create", "--name", "keeper", "--mount", &mount])
        .ok();
    town.ada(["stop", "keeper"]).ok();
    town.ada(["start", "keeper"]).ok();
    town.ada(["exec", "keeper", "--", "sh", "-c", "echo more >>/x/file"])
        .ok();
    town.ada(["stop", "keeper"]).ok();
    chown(&desk, Some(town.bob.uid()), None).unwrap();
    chown(desk.join("file"), Some(town.bob.uid()), None).unwrap();
    fs::rename(&desk, town.bob.files().join("desk")).unwrap();
    symlink(town.bob.files().join("desk"), &desk).unwrap();
    let refused = town.ada(["start", "keeper"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    // Root may start it, which does not give it more than its owner has.
    let list = town.root.json(["list", "--all"]);
    let id = list[0]["id"].as_str().unwrap();
    let refused = town.root.run(["start", id]).fails(125);
    assert!(refused.contains("hint:"), "{refused}");
}

#[test]
fn an_allow_list_opens_its_directories_and_nothing_else() {
    let square = tempfile::tempdir_in("/var/tmp").unwrap();
    let square = square.path();
    let town = Town::new(&format!("{0}:ro,{0}/open", square.display()));
    for (name, mode) in [
        ("", 0o755),
        ("data", 0o755),
        ("open", 0o777),
        ("closed", 0o700),
    ] {
        fs::create_dir_all(square.join(name)).unwrap();
        fs::set_permissions(square.join(name), fs::Permissions::from_mode(mode)).unwrap();
        fs::write(square.join(name).join("word"), "shared").unwrap();
    }
    symlink("/etc", square.join("link")).unwrap();
    town.ada.write("own/word", "own");
    let show = |name: &str, script: &str| {
        let mount = format!("{}:/x", square.join(name).display());
        town.ada(["run", "--mount", &mount, "--", "sh", "-c", script])
    };
    assert_eq!(
        show("data", "cat /x/word; stat -c %u /x").ok(),
        "shared65534\n"
    );
    assert_eq!(
        show("", "cat /x/closed/word || echo closed").ok(),
        "closed\n"
    );
    for (name, writable) in [
        ("data", true),
        ("closed", false),
        ("link", false),
        ("data/../closed", false),
    ] {
        town.refuses(&square.join(name), writable);
    }
    town.refuses(&town.ada.files().join("own"), false);
    town.refuses(Path::new("/etc"), false);
    // What others own is never written, though its mode would let everyone; one's own in it is.
    fs::create_dir(square.join("open/adas")).unwrap();
    town.ada.give(&square.join("open/adas"));
    let mount = format!("{}:/x:rw", square.join("open").display());
    let script = "touch /x/adas/new; ! touch /x/new";
    town.ada(["run", "--mount", &mount, "--", "sh", "-c", script])
        .ok();
    let new = fs::metadata(square.join("open/adas/new")).unwrap();
    assert_eq!(new.uid(), town.ada.uid());
    assert!(!square.join("open/new").exists());
    // Root is held to the same list.
    let own = format!("{}:/x", town.root.files().display());
    let refused = town
        .root
        .run(["run", "--mount", &own, "--", "ls", "/x"])
        .fails(125);
    assert!(refused.contains("mounts_allowed"), "{refused}");
    let listed = format!("{}:/x", square.join("closed").display());
    assert_eq!(
        town.root
            .run(["run", "--mount", &listed, "--", "cat", "/x/word"])
            .ok(),
        "shared"
    );
}

/// Makes a root filesystem of a person's with a file that only its owner may read.
fn image(person: &World, word: &str) -> PathBuf {
    person.write("image/usr/bin/nothing", "");
    person.write("image/etc/word", word);
    let image = person.files().join("image");
    fs::set_permissions(image.join("etc/word"), fs::Permissions::from_mode(0o600)).unwrap();
    let tar = person.files().join("image.tar");
    let made = Command::new("tar")
        .arg("-C")
        .arg(&image)
        .arg("-cf")
        .arg(&tar)
        .arg(".")
        .status();
    assert!(made.unwrap().success());
    person.give(&tar);
    fs::set_permissions(&tar, fs::Permissions::from_mode(0o600)).unwrap();
    image
}

#[test]
fn users_start_from_their_own_images_alone() {
    let town = Town::new("own");
    let theirs = image(&town.ada, "adas");
    let bobs = image(&town.bob, "bobs");
    // What others left in it stays theirs.
    fs::write(theirs.join("etc/roots"), "roots").unwrap();
    fs::set_permissions(theirs.join("etc/roots"), fs::Permissions::from_mode(0o600)).unwrap();
    for (kind, name) in [("image", "directory"), ("image.tar", "archive")] {
        let path = town.ada.files().join(kind).display().to_string();
        town.ada(["create", "--name", name, "--image", &path]).ok();
        let word = format!("{name}:/etc/word");
        town.ada(["cp", &word, name]).ok();
        assert_eq!(
            fs::read_to_string(town.ada.files().join(name)).unwrap(),
            "adas"
        );
        town.ada(["stop", name]).ok();
        town.ada(["start", name]).ok();
    }
    let roots = town.ada(["cp", "directory:/etc/roots", "roots"]);
    assert_ne!(roots.code, 0, "{roots:?}");
    town.ada(["rm", "--all", "--force"]).ok();
    symlink(&bobs, town.ada.files().join("to-bob")).unwrap();
    symlink(
        bobs.with_extension("tar"),
        town.ada.files().join("to-bob.tar"),
    )
    .unwrap();
    for path in [
        bobs.clone(),
        bobs.with_extension("tar"),
        town.ada.files().join("to-bob"),
        town.ada.files().join("to-bob.tar"),
        "/".into(),
        "/root/none.tar".into(),
    ] {
        let refused = town.ada(["create", "--image", &path.display().to_string()]);
        assert_eq!(refused.code, 125, "{refused:?}");
        assert!(refused.stderr.contains("hint:"), "{refused:?}");
    }
    assert_eq!(town.root.json(["list", "--all"]), serde_json::json!([]));
}

#[test]
fn nobody_shows_the_daemons_own_files_inside() {
    for person in [Person::Root, Person::Plain] {
        let world = World::new(person);
        world.run(["list"]).ok();
        let above = world.state().parent().unwrap().to_owned();
        for source in [
            above,
            world.state(),
            world.state().join("pinfold.db"),
            world.socket(),
        ] {
            let mount = format!("{}:/x", source.display());
            let refused = world
                .run(["run", "--mount", &mount, "--", "ls", "/x"])
                .fails(125);
            assert!(refused.contains("hint:"), "{person:?} {mount}: {refused}");
        }
        world.write("desk/file", "fine");
        assert_eq!(
            world
                .run(["run", "--in", "desk", "--", "cat", "/in/file"])
                .ok(),
            "fine"
        );
    }
}
