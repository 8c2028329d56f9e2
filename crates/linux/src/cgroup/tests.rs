use std::fs;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use super::*;

/// A directory tree with the files of a v2 hierarchy; the kernel's own rules are not in it.
struct Model {
    directory: tempfile::TempDir,
    system: System,
}

impl Model {
    fn new(own: &str, controllers: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mount = directory.path();
        let inner = mount.join(own.trim_start_matches('/'));
        fs::create_dir_all(&inner).unwrap();
        for group in [mount, &inner] {
            fs::write(group.join("cgroup.controllers"), controllers).unwrap();
            fs::write(group.join("cgroup.subtree_control"), "").unwrap();
            fs::write(group.join("cgroup.procs"), "").unwrap();
        }
        let system = System {
            mounts: format!(
                "31 23 0:28 / {} rw,relatime shared:1 - cgroup2 cgroup2 rw\n",
                mount.display()
            ),
            own: format!("0::{own}\n"),
            user: rustix::process::geteuid().as_raw(),
        };
        Self { directory, system }
    }

    /// Makes the files that the kernel makes with a new group.
    fn group(&self, path: &str) -> PathBuf {
        let group = self.directory.path().join(path);
        fs::create_dir_all(&group).unwrap();
        for file in [
            "cgroup.subtree_control",
            "cpu.max",
            "cpu.weight",
            "memory.max",
            "memory.swap.max",
            "memory.low",
            "pids.max",
        ] {
            fs::write(group.join(file), "").unwrap();
        }
        group
    }
}

#[test]
fn v2_limits_are_written_beneath_the_own_group() {
    let model = Model::new("/a/b", "cpu io memory pids");
    model.group("a/b/pinfold");
    let group = model.group("a/b/pinfold/one");
    let cgroups = Cgroups::discover_in(&model.system, None);
    for controller in Controller::ALL {
        assert_eq!(cgroups.version(controller), Some(Version::V2));
    }
    cgroups.prepare().unwrap();
    let limits = Limits {
        cpu_milli: Some(1500),
        memory_bytes: Some(64 << 20),
        pids: Some(77),
        cpu_request_milli: Some(2000),
        memory_request_bytes: Some(1 << 20),
    };
    cgroups.create("one", &limits).unwrap();
    for (file, text) in [
        ("cpu.max", "150000 100000"),
        ("cpu.weight", "79"),
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("memory.low", "1048576"),
        ("pids.max", "77"),
    ] {
        assert_eq!(
            fs::read_to_string(group.join(file)).unwrap(),
            text,
            "{file}"
        );
    }
    let parent = model.directory.path().join("a/b/pinfold");
    let enabled = fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap();
    assert_eq!(enabled, "+cpu +memory +pids");
}

#[test]
fn a_control_file_that_is_missing_is_an_error_and_not_a_new_file() {
    let model = Model::new("/", "memory");
    model.group("pinfold");
    let cgroups = Cgroups::discover_in(&model.system, None);
    let limits = Limits {
        memory_bytes: Some(1 << 20),
        ..Limits::default()
    };
    assert!(matches!(
        cgroups.create("one", &limits),
        Err(CgroupError::Step { .. })
    ));
    assert!(!cgroups.open("one").unwrap().exists());
}

#[test]
fn a_limit_without_its_controller_is_refused() {
    let model = Model::new("/", "memory");
    let cgroups = Cgroups::discover_in(&model.system, None);
    assert_eq!(cgroups.version(Controller::Pids), None);
    model.group("pinfold/one");
    let limits = Limits {
        pids: Some(10),
        ..Limits::default()
    };
    assert!(matches!(
        cgroups.open("one").unwrap().set(&limits),
        Err(CgroupError::Missing {
            controller: Controller::Pids
        })
    ));
}

#[test]
fn a_daemon_that_moved_to_its_leaf_finds_its_base_again() {
    let model = Model::new("/a", "memory");
    fs::create_dir(model.directory.path().join("a/pinfold-daemon")).unwrap();
    let moved = System {
        own: "0::/a/pinfold-daemon\n".to_owned(),
        ..model.system.clone()
    };
    assert_eq!(
        Cgroups::discover_in(&moved, None).base(Controller::Memory),
        Some(model.directory.path().join("a").as_path())
    );
}

#[test]
fn controllers_are_found_each_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().display();
    for path in ["cpu,cpuacct", "memory/x", "pids", "freezer", "unified"] {
        fs::create_dir_all(directory.path().join(path)).unwrap();
    }
    fs::write(directory.path().join("unified/cgroup.procs"), "").unwrap();
    let system = System {
        mounts: format!(
            "1 0 0:1 / {root}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             2 0 0:2 / {root}/memory rw - cgroup cgroup rw,memory\n\
             3 0 0:3 /docker/x {root}/pids rw - cgroup cgroup rw,pids\n\
             4 0 0:4 / {root}/freezer rw - cgroup cgroup rw,freezer\n\
             5 0 0:5 / {root}/unified rw - cgroup2 cgroup2 rw\n\
             6 0 0:6 / / rw - ext4 /dev/x rw\nnonsense\n"
        ),
        own: "4:cpu,cpuacct:/\n3:memory:/x\n2:pids:/docker/x\n1:freezer:/gone\n0::/\nnonsense\n"
            .to_owned(),
        user: rustix::process::geteuid().as_raw(),
    };
    let cgroups = Cgroups::discover_in(&system, None);
    for (controller, version, base) in [
        (Controller::Cpu, Version::V1, "cpu,cpuacct"),
        (Controller::CpuAccount, Version::V2, "unified"),
        (Controller::Memory, Version::V1, "memory/x"),
        (Controller::Pids, Version::V1, "pids"),
        (Controller::Freezer, Version::V2, "unified"),
    ] {
        assert_eq!(cgroups.version(controller), Some(version));
        assert_eq!(
            cgroups.base(controller),
            Some(directory.path().join(base).as_path())
        );
    }
}

#[test]
fn nothing_delegated_names_the_command_that_delegates() {
    let directory = tempfile::tempdir().unwrap();
    let mount = directory.path().join("memory");
    fs::create_dir(&mount).unwrap();
    // The caller's own group is not there, so nothing is usable, also for root.
    let system = System {
        mounts: format!(
            "1 0 0:1 / {} rw - cgroup cgroup rw,memory\n",
            mount.display()
        ),
        own: "1:memory:/elsewhere\n".to_owned(),
        user: 4242,
    };
    let cgroups = Cgroups::discover_in(&system, None);
    assert_eq!(cgroups.version(Controller::Memory), None);
    assert!(cgroups.is_undelegated(Controller::Memory));
    let command = cgroups.delegation_command(&[Controller::Memory]);
    assert!(command.contains(&mount.display().to_string()), "{command}");
    assert!(command.contains("chown 4242"), "{command}");
    let v2 = Cgroups::none().delegation_command(&[Controller::Memory]);
    assert!(v2.contains("Delegate=yes"), "{v2}");
}

#[test]
fn names_cannot_leave_the_parent() {
    for name in ["", ".", "..", "a/b", "a.b", "\0", &"x".repeat(65)] {
        assert!(Cgroups::none().open(name).is_err(), "{name}");
    }
}

/// A shell that joins a group by itself, says so, and then does what it is told.
fn shell_in(group: &Group, program: &str) -> Child {
    let mut script = String::new();
    for directory in group.directories_for_test() {
        let file = if directory.join("tasks").exists() {
            "tasks"
        } else {
            "cgroup.procs"
        };
        for part in [
            "echo 0 > ",
            &directory.join(file).display().to_string(),
            "; ",
        ] {
            script.push_str(part);
        }
    }
    let mut child = Command::new("sh")
        .args(["-c", &format!("{script} echo ready; {program}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0u8; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    child
}

fn real(name: &str, limits: &Limits) -> (Cgroups, Group) {
    let cgroups = Cgroups::discover(None).unwrap();
    cgroups.prepare().unwrap();
    let name = format!("{name}-{}", std::process::id());
    let group = cgroups.create(&name, limits).unwrap();
    assert!(cgroups.list().contains(&name));
    (cgroups, group)
}

#[test]
fn a_real_group_freezes_counts_kills_and_goes() {
    if !crate::capability_to_test() {
        return;
    }
    let limits = Limits {
        cpu_milli: Some(500),
        memory_bytes: Some(64 << 20),
        pids: Some(50),
        cpu_request_milli: Some(250),
        memory_request_bytes: Some(1 << 20),
    };
    let (_cgroups, group) = real("test-life", &limits);
    assert!(!group.joins().unwrap().is_empty());
    assert!(!group.usage_files().unwrap().is_empty());
    let mut child = shell_in(&group, "while read line; do echo $line; done; sleep 1000");
    let usage = group.usage();
    assert_eq!(usage.pids, Some(1));
    assert!(usage.cpu_us.is_some() && usage.memory_bytes.is_some());
    assert_eq!(usage.out_of_memory, Some(0));
    group.freeze().unwrap();
    group.freeze().unwrap();
    assert!(group.is_frozen());
    child.stdin.as_mut().unwrap().write_all(b"one\n").unwrap();
    group.thaw().unwrap();
    assert!(!group.is_frozen());
    let mut answer = [0u8; 4];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut answer).unwrap();
    assert_eq!(&answer, b"one\n");
    // A frozen group can be killed too.
    group.freeze().unwrap();
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    group.kill().unwrap();
    assert!(!reaper.join().unwrap().success());
    group.remove().unwrap();
    group.remove().unwrap();
    assert!(!group.exists());
}

#[test]
fn a_real_fork_bomb_is_held_and_killed() {
    if !crate::capability_to_test() {
        return;
    }
    let limits = Limits {
        pids: Some(64),
        ..Limits::default()
    };
    let (_cgroups, group) = real("test-bomb", &limits);
    let mut child = shell_in(
        &group,
        "bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 1000",
    );
    assert!(group.usage().pids.unwrap() <= 64);
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    group.kill().unwrap();
    reaper.join().unwrap();
    assert_eq!(group.processes(), Vec::<i32>::new());
    group.remove().unwrap();
}

#[test]
fn a_real_memory_limit_ends_a_process_and_is_counted() {
    if !crate::capability_to_test() {
        return;
    }
    let limits = Limits {
        memory_bytes: Some(32 << 20),
        ..Limits::default()
    };
    let (_cgroups, group) = real("test-memory", &limits);
    let mut child = shell_in(&group, "exec head -c 200m /dev/zero | tail -n 1");
    child.wait().unwrap();
    // The kernel may end the other half of the pipe too.
    let ended = group.usage().out_of_memory;
    assert!(ended.is_some_and(|count| count >= 1), "{ended:?}");
    // A live limit can be raised and taken away.
    for memory_bytes in [Some(512 << 20), Some(16 << 20), None] {
        let limits = Limits {
            memory_bytes,
            ..limits
        };
        group.set(&limits).unwrap();
    }
    group.kill().unwrap();
    group.remove().unwrap();
}
