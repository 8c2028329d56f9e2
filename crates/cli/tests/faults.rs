//! A disk that is full or read-only, a second daemon, and programs that flood who reads them.

#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

#[path = "world/world.rs"]
mod world;

#[path = "world/owned.rs"]
mod owned;

use world::{PATIENCE, Person, World, eventually, pause};

/// Size of the file system that is filled: room for a daemon and its sandboxes.
const SMALL_DISK: &str = "size=48m";

/// What is left free, one operation of each kind at a time: from nothing at all to enough for
/// everything, so that each write of an operation is once the one that finds no room.
const ROOM_KIB: [u64; 9] = [0, 4, 8, 12, 20, 32, 48, 96, 256];

/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(10);

/// Most memory that the daemon may gain from one flood.
const FLOOD_MEMORY_KIB_MAX: u64 = pinfold_engine::FLOOD_BYTES_MAX as u64 >> 10;

/// Most bytes of a journal on disk: its limit, a file that is begun before the oldest goes, and a
/// batch.
const JOURNAL_DISK_MAX: u64 = (64 << 20) + (4 << 20) + (2 << 20);

/// A world whose state directory is a mount.
struct Mounted {
    world: Option<World>,
    state: PathBuf,
}

impl Mounted {
    fn new(arguments: &[&str]) -> Self {
        let world = World::new(Person::Root);
        let state = world.state();
        fs::create_dir(&state).unwrap();
        let mounted = Self {
            world: Some(world),
            state,
        };
        mounted.mount(arguments);
        mounted
    }

    fn mount(&self, arguments: &[&str]) {
        let mut command = Command::new("mount");
        let status = command.args(arguments).arg(&self.state).status().unwrap();
        assert!(status.success(), "mount {arguments:?}");
    }

    fn world(&self) -> &World {
        self.world.as_ref().unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(self.world.take());
        while is_mounted(&self.state) {
            let lazily = ["-l"];
            let status = Command::new("umount")
                .args(lazily)
                .arg(&self.state)
                .status();
            if !status.is_ok_and(|status| status.success()) {
                break;
            }
        }
        let _best_effort = fs::remove_dir_all(self.state.parent().unwrap());
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = path.to_str().unwrap();
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(path))
}

/// Fills a file system except for some KiB, and makes room again when dropped.
struct Filler(PathBuf);

impl Filler {
    fn new(directory: &Path, room_kib: u64) -> Self {
        let path = directory.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        let block = vec![0x5a; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
        let bytes = file.metadata().unwrap().len();
        file.set_len(bytes.saturating_sub(room_kib << 10)).unwrap();
        Self(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.0);
    }
}

fn exec(world: &World, name: &str, script: &str) -> String {
    let exec = world.json(["exec", "--detach", name, "--", "sh", "-c", script]);
    exec["exec_id"].as_str().unwrap().to_owned()
}

/// What became of operations that may have found no room.
#[derive(Default)]
struct Full {
    refused: usize,
    /// Refusals that do not say why.
    unclear: Vec<String>,
}

/// Tries one operation of each kind, each with so much room.
fn steps_with_room(mounted: &Mounted, room: u64) -> Full {
    let world = mounted.world();
    world.create(&["--name", "used"]);
    let steps: [&[&str]; 6] = [
        &["create", "--name", "new"],
        &["exec", "used", "--", "echo", "x"],
        &["stop", "used"],
        &["start", "used"],
        &["rm", "--force", "used"],
        &["list"],
    ];
    // A step that follows from a failed one is refused by the state.
    let clear = [
        "full",
        "space",
        "is stopped",
        "is failed",
        "cannot become",
        "failed:",
    ];
    let mut full = Full::default();
    for step in steps {
        let filler = Filler::new(&mounted.state, room);
        let said = world.run(step);
        drop(filler);
        if said.code != 0 {
            full.refused += 1;
            let text = said.stderr.to_lowercase();
            if !clear.iter().any(|word| text.contains(word)) {
                full.unclear.push(format!("{room} KiB: {step:?}: {text}"));
            }
        }
    }
    full
}

#[test]
fn a_full_disk_fails_the_operation_and_nothing_else() {
    let mounted = Mounted::new(&["-t", "tmpfs", "-o", SMALL_DISK, "pinfold-small"]);
    let world = mounted.world();
    world.create(&["--name", "kept"]);
    world
        .run(["exec", "kept", "--", "sh", "-c", "echo disk > /root/file"])
        .ok();
    let before = exec(world, "kept", "echo before");
    let daemon = world.daemon().unwrap();
    let (mut refused, mut unclear) = (0, Vec::<String>::new());
    for room in ROOM_KIB {
        let full = steps_with_room(&mounted, room);
        refused += full.refused;
        unclear.extend(full.unclear);
        assert_eq!(world.daemon(), Some(daemon), "{room} KiB");
        // A removal that failed is not over: the same call tries again.
        for (name, state) in owned::states(world).values() {
            if state == "removing" {
                world.run(["rm", "--force", name]).ok();
            }
        }
        let states = owned::at_rest(world);
        owned::check(world, &states, &format!("{room} KiB"));
        for name in ["new", "used"] {
            if states.values().any(|(listed, _)| listed == name) {
                world.run(["rm", "--force", name]).ok();
            }
        }
        assert_eq!(
            world.run(["exec", "kept", "--", "cat", "/root/file"]).ok(),
            "disk\n"
        );
        assert_eq!(
            world.run(["logs", "kept", "--exec", &before]).ok(),
            "before\n"
        );
    }
    assert!(refused >= 3, "the disk was never full");
    assert!(unclear.is_empty(), "{unclear:#?}");
    // Another daemon finds all of it, also while there is no room at all.
    let filler = Filler::new(&mounted.state, 0);
    world.kill_daemon();
    let said = world.run(["list", "--all"]);
    drop(filler);
    assert!(
        said.code == 0 || said.stderr.contains("full"),
        "{}",
        said.stderr
    );
    assert_eq!(
        world.run(["exec", "kept", "--", "cat", "/root/file"]).ok(),
        "disk\n"
    );
    assert_eq!(
        world.run(["logs", "kept", "--exec", &before]).ok(),
        "before\n"
    );
}

#[test]
fn a_journal_that_finds_no_room_waits_and_loses_nothing() {
    let mounted = Mounted::new(&["-t", "tmpfs", "-o", SMALL_DISK, "pinfold-small"]);
    let world = mounted.world();
    world.create(&["--name", "kept"]);
    let script = "until [ -e /tmp/go ]; do sleep 0.05; done; seq 1 200000";
    let waiting = exec(world, "kept", script);
    let filler = Filler::new(&mounted.state, 64);
    world.run(["exec", "kept", "--", "touch", "/tmp/go"]);
    eventually("the daemon to say that it cannot write", || {
        let log = fs::read_to_string(mounted.state.join("daemon.log")).unwrap();
        log.contains("the process waits")
    });
    drop(filler);
    let mut printed = String::new();
    eventually("the whole output", || {
        printed = world.run(["logs", "kept", "--exec", &waiting]).stdout;
        printed.ends_with("200000\n")
    });
    assert_eq!(printed.lines().count(), 200_000);
}

#[test]
fn a_read_only_state_directory_is_named_and_nothing_is_lost() {
    let world = World::new(Person::Root);
    let state = world.state();
    world.create(&["--name", "kept"]);
    world
        .run([
            "exec",
            "kept",
            "--",
            "sh",
            "-c",
            "echo disk > /root/file; echo up > /dev/shm/up",
        ])
        .ok();
    let mounted = Mounted {
        world: Some(world),
        state: state.clone(),
    };
    mounted.world().kill_daemon();
    mounted.mount(&["--bind", state.to_str().unwrap()]);
    mounted.mount(&["-o", "remount,bind,ro"]);
    let error = mounted.world().run(["list"]).fails(125);
    assert!(
        error.to_lowercase().contains("read-only") && error.contains(state.to_str().unwrap()),
        "{error}"
    );
    let error = mounted.world().run(["serve"]).fails(125);
    assert!(error.to_lowercase().contains("read-only"), "{error}");
    let status = Command::new("umount").arg(&state).status().unwrap();
    assert!(status.success());
    let printed = mounted
        .world()
        .run(["exec", "kept", "--", "cat", "/root/file", "/dev/shm/up"]);
    assert_eq!(printed.ok(), "disk\nup\n");
}

#[test]
fn a_second_daemon_is_refused_and_told_of_the_first() {
    let world = World::new(Person::Root);
    world.create(&["--name", "kept"]);
    let first = world.daemon().unwrap();
    let other = world.files().join("other.sock");
    for socket in [world.socket(), other] {
        let output = world
            .pinfold(["serve"])
            .env("PINFOLD_SOCKET", socket)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{error}");
        assert!(
            error.contains(&format!("process {first}")) && error.contains("hint:"),
            "{error}"
        );
    }
    assert_eq!(world.daemon(), Some(first));
    assert_eq!(world.run(["exec", "kept", "--", "echo", "ok"]).ok(), "ok\n");
}

/// What the daemon has in memory, in KiB.
fn memory_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn bytes_of(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_of(&entry.path()),
            Ok(found) => found.len(),
            // The oldest files go while this looks.
            Err(_) => 0,
        })
        .sum()
}

/// Looks at memory and disk while a reader does not read, and ends the reader.
fn watch_flood(world: &World, before: u64, mut reader: Child, what: &str) {
    let daemon = world.daemon().unwrap();
    let journals = world.state().join("journals");
    let began = Instant::now();
    let (mut memory, mut disk) = (before, 0);
    while began.elapsed() < FLOOD {
        memory = memory.max(memory_kib(daemon));
        disk = disk.max(bytes_of(&journals));
        pause();
    }
    assert!(reader.try_wait().unwrap().is_none(), "the reader ended");
    let gained = memory.saturating_sub(before);
    println!("{what}: {before} KiB before, {gained} KiB gained at most, {disk} bytes of journals");
    reader.kill().unwrap();
    reader.wait().unwrap();
    assert!(gained < FLOOD_MEMORY_KIB_MAX, "{what}: {gained} KiB gained");
    assert!(disk <= JOURNAL_DISK_MAX, "{what}: {disk} bytes of journals");
    assert!(disk > 0, "{what}: nothing was written");
    let before = Instant::now();
    assert_eq!(
        world.run(["exec", "flood", "--", "echo", "ok"]).ok(),
        "ok\n"
    );
    assert!(before.elapsed() < PATIENCE);
}

#[test]
fn a_flood_with_back_pressure_does_not_fill_the_daemon() {
    let world = World::new(Person::Root);
    world.create(&["--name", "flood"]);
    world.run(["exec", "flood", "--", "echo", "warm"]).ok();
    let before = memory_kib(world.daemon().unwrap());
    // Nobody reads the pipe.
    let reader = world.spawn(["exec", "flood", "--", "cat", "/dev/zero"]);
    watch_flood(&world, before, reader, "with back-pressure");
}

#[test]
fn a_flood_without_back_pressure_does_not_fill_the_daemon() {
    let world = World::new(Person::Root);
    world.create(&["--name", "flood"]);
    world.run(["exec", "flood", "--", "echo", "warm"]).ok();
    let before = memory_kib(world.daemon().unwrap());
    let flood = exec(&world, "flood", "exec cat /dev/zero");
    // Nobody reads the pipe.
    let reader = world.spawn(["logs", "--follow", "flood", "--exec", &flood]);
    watch_flood(&world, before, reader, "without back-pressure");
}
