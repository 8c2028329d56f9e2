//! What must hold of every sandbox.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use pinfold_linux::launcher::plan::{Attach, Identity, TmpfsLimit, UsageFile};
use pinfold_linux::launcher::{Exit, LaunchError, LaunchFailure};
use pinfold_linux::reach::{Reach, User};
use pinfold_linux::{capability, marks};

use crate::yard::{Kind, TMPFS_BYTES, Yard, bind, start};

/// How many pairs of namespaces the launcher makes ahead.
const MADE_AHEAD: usize = 4;
/// Descriptors of a launcher with nothing to do: its streams, its socket, its own file and its tiny
/// mount namespace, and three for each pair.
const HELD_IN_PEACE: usize = 6 + 3 * MADE_AHEAD;
/// Longest that this may take on a busy machine.
const SETTLE_MAX: Duration = Duration::from_secs(20);

type Check = (&'static str, fn(Kind));

pub(crate) const ALL: &[Check] = &[
    ("is_a_machine_of_its_own", is_a_machine_of_its_own),
    (
        "process_1_has_what_it_was_given",
        process_1_has_what_it_was_given,
    ),
    ("has_few_rights", has_few_rights),
    ("hides_the_host", hides_the_host),
    ("has_working_devices", has_working_devices),
    ("bounds_what_is_in_memory", bounds_what_is_in_memory),
    ("keeps_what_is_written", keeps_what_is_written),
    ("bounds_a_tmpfs_upper", bounds_a_tmpfs_upper),
    ("binds_host_paths", binds_host_paths),
    ("refuses_bad_binds", refuses_bad_binds),
    ("shows_a_user_their_own", shows_a_user_their_own),
    ("shows_a_user_nothing_else", shows_a_user_nothing_else),
    (
        "starts_from_a_users_directory",
        starts_from_a_users_directory,
    ),
    ("keeps_binds_beneath_the_root", keeps_binds_beneath_the_root),
    (
        "refuses_images_with_links_for_system_directories",
        refuses_images_with_links,
    ),
    ("refuses_bad_plans", refuses_bad_plans),
    ("connects_to_ports", connects_to_ports),
    ("mounts_live", mounts_live),
    ("limits_processes_without_a_cgroup", limits_processes),
    ("outlives_the_launcher", outlives_the_launcher),
    ("removes_what_others_own", removes_what_others_own),
    ("runs_programs_mapped", runs_programs_mapped),
    ("leaves_nothing_behind", leaves_nothing_behind),
    ("joins_cgroups", joins_cgroups),
];

#[track_caller]
fn failure<T>(result: Result<T, LaunchError>) -> LaunchFailure {
    match result {
        Ok(_) => panic!("it worked"),
        Err(error) => error.failure(),
    }
}

fn is_a_machine_of_its_own(kind: Kind) {
    let yard = Yard::new(kind);
    let sandbox = yard.sandbox();
    assert_eq!(
        sandbox.says("id -u; id -g; hostname; ls /sys/class/net; pwd"),
        "0\n0\nyard\nlo\n/"
    );
    assert_eq!(sandbox.says("echo $PPID"), "1");
    sandbox.says("test $(ls -d /proc/[0-9]* | wc -l) -le 5");
    let groups = sandbox.says("sed -n 's/^Groups:[[:space:]]*//p' /proc/self/status");
    if kind != Kind::Single {
        assert_eq!(groups, "");
    }
    assert_eq!(
        sandbox.says("cat /proc/self/cgroup | grep -v ':/$' | wc -l"),
        "0"
    );
    let map = sandbox.says("cat /proc/self/uid_map");
    let base = 3_000_000_000u32.to_string();
    let words: Vec<_> = map.split_whitespace().collect();
    match kind {
        Kind::Range => assert_eq!(words, ["0", &base, "65536"]),
        Kind::Shared => assert_eq!(words, ["0", "0", "1", "1", "1", "65536"]),
        Kind::Single => assert_eq!(words, ["0", "0", "1"]),
    }
}

fn process_1_has_what_it_was_given(kind: Kind) {
    let yard = Yard::new(kind);
    let mut plan = yard.plan();
    plan.boot.memory_limit_bytes = 42;
    plan.boot.usage = vec![UsageFile::CpuNanoseconds];
    let usage = tempfile::tempfile().unwrap();
    let sandbox = yard.launch_with(&plan, &[OwnedFd::from(usage)]).unwrap();
    let arguments = sandbox.run(&["arguments"]).text;
    assert_eq!(arguments, format!("pinfold-agent init {}", plan.id));
    assert!(
        sandbox
            .run(&["environment"])
            .text
            .starts_with("PATH=/usr/local/sbin:")
    );
    assert_eq!(sandbox.run(&["environment"]).text.lines().count(), 1);
    // Its own, the caller that asks, and the directory that it lists.
    assert_eq!(
        sandbox.run(&["descriptors"]).text,
        "[0, 1, 2, 3, 4, 5, 6, 7]"
    );
    let boot: pinfold_linux::launcher::plan::Boot =
        serde_json::from_str(&sandbox.run(&["boot"]).text).unwrap();
    assert_eq!(boot, plan.boot);
}

fn has_few_rights(kind: Kind) {
    let yard = Yard::new(kind);
    let sandbox = yard.sandbox();
    let status = |field: &str| {
        sandbox.says(&format!(
            "sed -n 's/^{field}:[[:space:]]*//p' /proc/self/status"
        ))
    };
    let rights = format!("{:016x}", capability::agent_set().bits());
    for field in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status(field), rights, "{field}");
    }
    for field in ["CapInh", "CapAmb"] {
        assert_eq!(status(field), "0000000000000000", "{field}");
    }
    assert_eq!(status("Seccomp"), "2");
    sandbox.refuses("mount -t tmpfs none /mnt");
    sandbox.refuses("umount /proc/kcore");
    sandbox.refuses("unshare -U true");
    sandbox.refuses("unshare -m true");
    sandbox.refuses("nsenter -t 1 -n true");
    sandbox.refuses("dmesg");
    sandbox.refuses("date -s 2001-01-01");
    sandbox.refuses("hostname other");
    sandbox.refuses("ip link add dummy type dummy || false");
}

fn hides_the_host(kind: Kind) {
    let yard = Yard::new(kind);
    let sandbox = yard.sandbox();
    assert_eq!(
        sandbox.says(
            "cat /proc/keys /proc/timer_list /proc/latency_stats /proc/kcore 2>/dev/null | wc -c"
        ),
        "0"
    );
    assert_eq!(
        sandbox.says(
            "ls -A /proc/acpi /proc/scsi /sys/firmware 2>/dev/null | grep -v : | tr -d '\\n'"
        ),
        ""
    );
    for file in [
        "/proc/sys/kernel/hostname",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
    ] {
        sandbox.refuses(&format!("echo 1 >{file}"));
    }
    let mounts = sandbox.says("cat /proc/self/mountinfo");
    // The layers are named in the options of the root; nothing else of the host is mounted but `/usr`.
    let points: Vec<_> = mounts
        .lines()
        .map(|line| line.split(' ').nth(4).unwrap())
        .collect();
    assert!(
        points.contains(&"/") && points.contains(&"/usr"),
        "{points:?}"
    );
    for point in points {
        let known = ["/proc", "/sys", "/dev", "/tmp", "/usr"];
        assert!(
            point == "/" || known.iter().any(|start| point.starts_with(start)),
            "{point}"
        );
    }
    let name = yard.place.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(
        sandbox.says(&format!("find / -xdev -name '{name}' | wc -l")),
        "0"
    );
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_ne!(host.trim(), "yard");
}

fn has_working_devices(kind: Kind) {
    let yard = Yard::new(kind);
    let sandbox = yard.sandbox();
    assert_eq!(
        sandbox.says("cd /dev; ls | tr '\\n' ' '"),
        "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    assert_eq!(
        sandbox
            .says("echo x >/dev/null; head -c 3 /dev/zero | wc -c; head -c 8 /dev/urandom | wc -c"),
        "3\n8"
    );
    sandbox.refuses("echo x >/dev/full");
    assert_eq!(sandbox.says("echo through | cat /dev/stdin"), "through");
    assert_eq!(
        sandbox.says("script -qec 'tty' /dev/null | tr -d '\\r'"),
        "/dev/pts/0"
    );
    // A node made by root inside opens nothing.
    sandbox.refuses("mknod /dev/disk b 254 0 && head -c 1 /dev/disk");
    sandbox.refuses("mknod /disk b 254 0 && head -c 1 /disk");
    sandbox.refuses("mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk");
}

fn bounds_what_is_in_memory(kind: Kind) {
    let yard = Yard::new(kind);
    let sandbox = yard.sandbox();
    assert_eq!(sandbox.says("stat -c %a /tmp /dev/shm"), "1777\n1777");
    let blocks = TMPFS_BYTES / 1024;
    for place in ["/tmp", "/dev/shm"] {
        let said = sandbox.refuses(&format!("head -c {} /dev/zero >{place}/x", TMPFS_BYTES + 1));
        assert!(said.contains("space"), "{said}");
        assert_eq!(
            sandbox.says(&format!("du -k {place}/x | cut -f1; rm {place}/x")),
            blocks.to_string()
        );
    }
    sandbox.refuses("head -c 100000 /dev/zero >/dev/x");
    sandbox.refuses("i=0; while [ $i -lt 3000 ]; do : >/tmp/f$i || exit 1; i=$((i+1)); done");
}

fn keeps_what_is_written(kind: Kind) {
    let yard = Yard::new(kind);
    fs::create_dir(yard.layer().join("data")).unwrap();
    fs::write(yard.layer().join("data/old"), "image").unwrap();
    let plan = yard.plan();
    let sandbox = yard.launch(&plan).unwrap();
    sandbox.says("echo new >/data/new; rm /data/old; mkdir /made; chmod 700 /made; sync /data/new");
    if kind == Kind::Range {
        sandbox.says(
            "mv /data /moved; test -f /moved/new; mkdir /data; mv /moved/new /data/; rmdir /moved",
        );
    }
    let written = sandbox.private.join("upper/data/new");
    assert_eq!(fs::read_to_string(&written).unwrap(), "new\n");
    let owner = fs::metadata(&written).unwrap().uid();
    assert_eq!(owner, rustix::process::geteuid().as_raw());
    assert_eq!(
        fs::read_to_string(yard.layer().join("data/old")).unwrap(),
        "image"
    );
    drop(sandbox);
    let again = yard.launch(&plan).unwrap();
    assert_eq!(
        again.says("cat /data/new; ls /data; stat -c %a /made"),
        "new\nnew\n700"
    );
    if kind == Kind::Single {
        again.refuses("chown 1 /made");
    } else {
        assert_eq!(
            again.says("chown 33:34 /made; stat -c %u:%g /made"),
            "33:34"
        );
    }
}

fn bounds_a_tmpfs_upper(kind: Kind) {
    let yard = Yard::new(kind);
    let mut plan = yard.plan();
    plan.root.tmpfs_upper = Some(TmpfsLimit {
        bytes: 1 << 20,
        inodes: 64,
    });
    let sandbox = yard.launch(&plan).unwrap();
    assert_eq!(
        sandbox.says("echo y >/file; cat /file; stat -c '%u %a' / /file"),
        "y\n0 755\n0 644"
    );
    sandbox.refuses("head -c 2000000 /dev/zero >/big");
    sandbox.says("rm /big");
    sandbox.refuses("i=0; while [ $i -lt 100 ]; do : >/f$i || exit 1; i=$((i+1)); done");
    assert_eq!(
        fs::read_dir(sandbox.private.join("upper")).unwrap().count(),
        0
    );
}

fn binds_host_paths(kind: Kind) {
    let yard = Yard::new(kind);
    let host = yard.host("project");
    fs::write(host.join("file"), "host").unwrap();
    let mut plan = yard.plan();
    let mut writable = bind(&host, "/desk/project");
    writable.writable = true;
    writable.mapped = true;
    plan.root.binds.push(writable);
    plan.root.binds.push(bind(&host, "/tmp/read"));
    plan.root
        .binds
        .push(bind(host.join("file"), "/etc/one/file"));
    let sandbox = yard.launch(&plan).unwrap();
    assert_eq!(
        sandbox.says("cat /desk/project/file /tmp/read/file /etc/one/file"),
        "hosthosthost"
    );
    sandbox.says("echo inside >/desk/project/new; chmod 600 /desk/project/new");
    assert_eq!(fs::read_to_string(host.join("new")).unwrap(), "inside\n");
    let own = rustix::process::geteuid().as_raw();
    assert_eq!(fs::metadata(host.join("new")).unwrap().uid(), own);
    assert_eq!(
        sandbox.says("stat -c %u /desk/project/new /desk/project/file"),
        "0\n0"
    );
    for path in [
        "/tmp/read/file",
        "/tmp/read/other",
        "/etc/one/file",
        "/usr/x",
    ] {
        assert!(
            sandbox
                .refuses(&format!("echo x >{path}"))
                .contains("Read-only"),
            "{path}"
        );
    }
    let mounts = sandbox.says("grep ' /desk/project ' /proc/self/mounts");
    assert!(mounts.contains("nosuid,nodev"), "{mounts}");
}

fn refuses_bad_binds(kind: Kind) {
    let yard = Yard::new(kind);
    let host = yard.host("project");
    symlink("/etc", yard.place.path().join("link")).unwrap();
    let attempt = |source: &Path, target: &str, writable: bool| {
        let mut plan = yard.plan();
        let mut wanted = bind(source, target);
        wanted.writable = writable;
        plan.root.binds.push(wanted);
        failure(yard.launch(&plan))
    };
    for target in [
        "/",
        "relative",
        "/a/../b",
        "/proc",
        "/proc/self",
        "/sys/x",
        "/dev/x",
        "/dev",
    ] {
        assert_eq!(
            attempt(&host, target, false),
            LaunchFailure::InvalidMount,
            "{target}"
        );
    }
    for source in ["missing", "link"] {
        let source = yard.place.path().join(source);
        assert_eq!(
            attempt(&source, "/x", true),
            LaunchFailure::InvalidMount,
            "{}",
            source.display()
        );
    }
    // A directory over a file.
    assert_eq!(
        attempt(&host, "/etc/passwd", false),
        LaunchFailure::InvalidMount
    );
}

/// A user of no list, and another.
const ADA: u32 = 54_321;
const BOB: u32 = 54_322;

fn reach_of_ada() -> Reach {
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

/// Makes a file or a directory of a user's.
fn own(path: &Path, uid: u32, mode: u32) {
    std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn shows_a_user_their_own(kind: Kind) {
    if kind != Kind::Range {
        // Only root's launcher serves anyone but its own user.
        return;
    }
    let yard = Yard::new(kind);
    fs::set_permissions(yard.place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let host = yard.host("ada");
    for (name, uid, mode) in [
        ("mine", ADA, 0o600),
        ("bobs", BOB, 0o600),
        ("roots", 0, 0o600),
    ] {
        fs::write(host.join(name), name).unwrap();
        own(&host.join(name), uid, mode);
    }
    fs::write(host.join("open"), "open").unwrap();
    own(&host.join("open"), BOB, 0o644);
    own(&host, ADA, 0o700);
    let mut plan = yard.plan();
    let mut shown = bind(&host, "/desk");
    shown.writable = true;
    shown.mapped = true;
    shown.reach = Some(reach_of_ada());
    plan.root.binds.push(shown.clone());
    let sandbox = yard.launch(&plan).unwrap();
    let check = |place: &str| {
        assert_eq!(
            sandbox.says(&format!("cat {place}/mine {place}/open")),
            "mineopen"
        );
        assert_eq!(
            sandbox.says(&format!("cd {place}; stat -c '%n %u %g' mine bobs roots")),
            "mine 0 0\nbobs 65534 65534\nroots 65534 65534"
        );
        // Root inside is root over no one's files but theirs.
        for other in ["bobs", "roots"] {
            sandbox.refuses(&format!("cat {place}/{other}"));
            sandbox.refuses(&format!("echo x >{place}/{other}"));
            sandbox.refuses(&format!("chown 0 {place}/{other}"));
            sandbox.refuses(&format!("chmod 777 {place}/{other}"));
        }
        sandbox.refuses(&format!("echo x >{place}/open"));
        sandbox.refuses(&format!("chown 1 {place}/mine"));
        sandbox.says(&format!(
            "umask 022; echo new >{place}/new; mkdir -p {place}/sub"
        ));
        for name in ["new", "sub"] {
            let made = fs::metadata(host.join(name)).unwrap();
            assert_eq!((made.uid(), made.gid()), (ADA, ADA), "{name}");
        }
    };
    check("/desk");
    shown.target = "/late".into();
    let pidfd = sandbox.launched.pidfd.as_fd();
    yard.launcher().attach(pidfd, &shown).unwrap();
    check("/late");
}

fn shows_a_user_nothing_else(kind: Kind) {
    if kind != Kind::Range {
        return;
    }
    let yard = Yard::new(kind);
    fs::set_permissions(yard.place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let host = yard.host("ada");
    own(&host, ADA, 0o700);
    fs::write(host.join("bobs"), "bobs").unwrap();
    own(&host.join("bobs"), BOB, 0o600);
    let sandbox = yard.sandbox();
    let pidfd = sandbox.launched.pidfd.as_fd();
    let roots = yard.host("roots");
    own(&roots, 0, 0o755);
    symlink(&roots, host.join("way")).unwrap();
    for source in [
        roots,
        host.join("way"),
        host.join("bobs"),
        "/".into(),
        "/proc".into(),
    ] {
        let mut refused = bind(&source, "/x");
        refused.reach = Some(reach_of_ada());
        let mut plan = yard.plan();
        plan.root.binds.push(refused.clone());
        assert_eq!(
            failure(yard.launch(&plan)),
            LaunchFailure::Forbidden,
            "{}",
            source.display()
        );
        let live = yard.launcher().attach(pidfd, &refused);
        assert_eq!(
            failure(live),
            LaunchFailure::Forbidden,
            "{}",
            source.display()
        );
    }
}

fn starts_from_a_users_directory(kind: Kind) {
    if kind != Kind::Range {
        return;
    }
    let yard = Yard::new(kind);
    fs::set_permissions(yard.place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let layer = yard.layer();
    fs::write(layer.join("etc/bobs"), "secret").unwrap();
    own(&layer.join("etc/bobs"), BOB, 0o600);
    for name in ["", "etc", "etc/passwd", "usr"] {
        own(&layer.join(name), ADA, 0o755);
    }
    let mut plan = yard.plan();
    plan.root.layer_reach = Some(reach_of_ada());
    let sandbox = yard.launch(&plan).unwrap();
    assert_eq!(sandbox.says("stat -c %u / /etc /etc/passwd"), "0\n0\n0");
    sandbox.refuses("cat /etc/bobs");
    sandbox.says("echo changed >>/etc/passwd; echo new >/etc/new");
    assert!(
        !fs::read_to_string(layer.join("etc/passwd"))
            .unwrap()
            .contains("changed")
    );
    assert!(!layer.join("etc/new").exists());

    own(&layer, BOB, 0o755);
    assert_eq!(
        failure(yard.launch(&{
            let mut plan = yard.plan();
            plan.root.layer_reach = Some(reach_of_ada());
            plan
        })),
        LaunchFailure::Forbidden
    );
}

fn keeps_binds_beneath_the_root(kind: Kind) {
    let yard = Yard::new(kind);
    let outside = yard.host("outside");
    let host = yard.host("project");
    fs::write(host.join("file"), "host").unwrap();
    symlink(
        Path::new("/../../..").join(outside.strip_prefix("/").unwrap()),
        yard.layer().join("up"),
    )
    .unwrap();
    symlink("/proc/self/root", yard.layer().join("magic")).unwrap();
    symlink("/proc", yard.layer().join("processes")).unwrap();
    symlink("etc", yard.layer().join("alias")).unwrap();
    let mut plan = yard.plan();
    plan.root.binds.push(bind(&host, "/alias/sub"));
    let sandbox = yard.launch(&plan).unwrap();
    assert_eq!(sandbox.says("cat /etc/sub/file"), "host");
    // These are links to what is not inside, or into what is the sandbox's own.
    for target in ["/up/new", "/magic/new", "/processes/sys", "/processes"] {
        let mut plan = yard.plan();
        plan.root.binds.push(bind(&host, target));
        assert_eq!(
            failure(yard.launch(&plan)),
            LaunchFailure::InvalidMount,
            "{target}"
        );
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

fn refuses_images_with_links(kind: Kind) {
    for name in ["dev", "proc", "sys", "tmp"] {
        let yard = Yard::new(kind);
        symlink("/usr", yard.layer().join(name)).unwrap();
        let error = yard.launch(&yard.plan()).unwrap_err();
        assert_eq!(error.failure(), LaunchFailure::InvalidImage, "{name}");
        assert!(error.to_string().contains(&format!("/{name}")), "{error}");
        assert!(error.hint().is_some());
    }
    let yard = Yard::new(kind);
    fs::write(yard.layer().join("proc"), "").unwrap();
    assert_eq!(
        failure(yard.launch(&yard.plan())),
        LaunchFailure::InvalidImage
    );
    let mut plan = yard.plan();
    plan.root.layers = vec![yard.place.path().join("missing")];
    assert_eq!(failure(yard.launch(&plan)), LaunchFailure::InvalidImage);
}

fn refuses_bad_plans(kind: Kind) {
    let yard = Yard::new(kind);
    let mut plan = yard.plan();
    plan.version += 1;
    assert_eq!(failure(yard.launch(&plan)), LaunchFailure::InvalidPlan);
    let mut plan = yard.plan();
    "A".clone_into(&mut plan.id);
    assert_eq!(failure(yard.launch(&plan)), LaunchFailure::InvalidPlan);
    let mut plan = yard.plan();
    plan.attach = vec![Attach::Tasks];
    assert_eq!(failure(yard.launch(&plan)), LaunchFailure::InvalidPlan);
    let mut plan = yard.plan();
    plan.identity = match kind {
        Kind::Range => Identity::Shared,
        Kind::Shared | Kind::Single => Identity::Range { base: 100_000 },
    };
    assert_eq!(failure(yard.launch(&plan)), LaunchFailure::InvalidPlan);
    let mut plan = yard.plan();
    plan.root.layers = vec![yard.layer(); 200];
    assert_eq!(failure(yard.launch(&plan)), LaunchFailure::InvalidImage);
    // It still works.
    assert!(yard.sandbox().is_alive());
}

fn connects_to_ports(kind: Kind) {
    let yard = Yard::new(kind);
    let (first, second) = (yard.sandbox(), yard.sandbox());
    for address in ["127.0.0.1", "::1"] {
        let port: u16 = first.run(&["listen", address]).text.parse().unwrap();
        let socket = yard
            .launcher()
            .connect_port(first.launched.pidfd.as_fd(), port)
            .unwrap();
        let peer = std::net::TcpStream::from(socket).peer_addr().unwrap();
        assert_eq!(peer.port(), port);
        let other = yard
            .launcher()
            .connect_port(second.launched.pidfd.as_fd(), port);
        assert_eq!(failure(other), LaunchFailure::ConnectionRefused);
    }
    let gone = yard.sandbox();
    rustix::process::pidfd_send_signal(&gone.launched.pidfd, rustix::process::Signal::KILL)
        .unwrap();
    rustix::event::poll(
        &mut [rustix::event::PollFd::new(
            &gone.launched.pidfd,
            rustix::event::PollFlags::IN,
        )],
        None,
    )
    .unwrap();
    let refused = yard.launcher().connect_port(gone.launched.pidfd.as_fd(), 1);
    assert_eq!(failure(refused), LaunchFailure::NotFound);
}

fn mounts_live(kind: Kind) {
    let yard = Yard::new(kind);
    let host = yard.host("project");
    fs::write(host.join("file"), "host").unwrap();
    let sandbox = yard.sandbox();
    let pidfd = sandbox.launched.pidfd.as_fd();
    let mut wanted = bind(&host, "/desk/new");
    wanted.writable = true;
    wanted.mapped = true;
    yard.launcher().attach(pidfd, &wanted).unwrap();
    assert_eq!(
        sandbox.says("cat /desk/new/file; echo y >/desk/new/y; stat -c %u /desk/new/y"),
        "host0"
    );
    assert_eq!(fs::read_to_string(host.join("y")).unwrap(), "y\n");
    yard.launcher()
        .detach(pidfd, Path::new("/desk/new"))
        .unwrap();
    assert_eq!(sandbox.says("ls -A /desk/new"), "");
    let again = yard.launcher().detach(pidfd, Path::new("/desk/new"));
    assert_eq!(failure(again), LaunchFailure::NotFound);
    // A guest that points the way elsewhere stays beneath its root.
    sandbox.says("rm -r /desk; ln -s /proc /desk");
    assert_eq!(
        failure(yard.launcher().attach(pidfd, &wanted)),
        LaunchFailure::InvalidMount
    );
    for target in ["/proc", "/desk/kcore"] {
        let detached = yard.launcher().detach(pidfd, Path::new(target));
        assert_eq!(failure(detached), LaunchFailure::InvalidMount, "{target}");
    }
    assert_eq!(
        failure(yard.launcher().detach(pidfd, Path::new("/proc/sys"))),
        LaunchFailure::InvalidMount
    );
}

fn limits_processes(kind: Kind) {
    let yard = Yard::new(kind);
    let mut plan = yard.plan();
    plan.pid_max = Some(400);
    let sandbox = yard.launch(&plan).unwrap();
    assert_eq!(sandbox.says("cat /proc/sys/kernel/pid_max"), "400");
    sandbox.refuses("echo 500 >/proc/sys/kernel/pid_max");
    plan = yard.plan();
    plan.pid_max = Some(5);
    assert_eq!(failure(yard.launch(&plan)), LaunchFailure::HostUnsupported);
}

fn outlives_the_launcher(kind: Kind) {
    let mut yard = Yard::new(kind);
    let sandbox = yard.sandbox();
    drop(yard.launcher.take());
    assert!(sandbox.is_alive());
    assert_eq!(sandbox.says("echo still"), "still");
    let found = marks::find(&sandbox.id).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].pid, sandbox.launched.pid);
    assert_eq!(found[0].start_time, sandbox.launched.start_time);
    let user = match kind {
        Kind::Range => 3_000_000_000,
        Kind::Shared | Kind::Single => rustix::process::geteuid().as_raw(),
    };
    assert_eq!(found[0].user, user);
    yard.launcher = Some(start(kind, Some(sandbox.launched.pid)));
    let port: u16 = sandbox.run(&["listen", "127.0.0.1"]).text.parse().unwrap();
    yard.launcher()
        .connect_port(sandbox.launched.pidfd.as_fd(), port)
        .unwrap();
    assert!(yard.sandbox().is_alive());
}

fn removes_what_others_own(kind: Kind) {
    let yard = Yard::new(kind);
    let sandbox = yard.sandbox();
    if kind != Kind::Single {
        sandbox.says("mkdir -p /a/b; echo x >/a/b/c; chown -R 33:33 /a; chmod 0 /a/b");
    }
    let private = sandbox.private.clone();
    drop(sandbox);
    yard.launcher().remove_tree(&private).unwrap();
    assert!(!private.exists());
    yard.launcher().remove_tree(&private).unwrap();
    assert_eq!(
        failure(yard.launcher().remove_tree(Path::new("/"))),
        LaunchFailure::Internal
    );
}

fn runs_programs_mapped(kind: Kind) {
    let yard = Yard::new(kind);
    let program = fs::File::open("/bin/sh").unwrap();
    let run = |script: &str, input: &str| {
        let mut stdin = tempfile::tempfile().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        std::io::Seek::rewind(&mut stdin).unwrap();
        let mut stdout = tempfile::tempfile().unwrap();
        let arguments = ["sh", "-c", script].map(Into::into);
        let exit = yard
            .launcher()
            .run_mapped(
                program.as_fd(),
                &arguments,
                &[stdin.as_fd(), stdout.as_fd()],
            )
            .unwrap();
        let mut text = String::new();
        std::io::Seek::rewind(&mut stdout).unwrap();
        stdout.read_to_string(&mut text).unwrap();
        (exit, text)
    };
    assert_eq!(
        run("cat; id -u; exit 3", "in "),
        (Exit::Code(3), "in 0\n".to_owned())
    );
    assert_eq!(run("kill -9 $$", ""), (Exit::Signal(9), String::new()));
    let (_, descriptors) = run("ls /proc/self/fd | tr '\\n' ' '", "");
    assert_eq!(descriptors, "0 1 2 3 ");
    if kind == Kind::Shared {
        let place = yard.host("place");
        let script = format!("echo x >{0}/f; chown 33:33 {0}/f", place.display());
        assert_eq!(run(&script, "").0, Exit::Code(0));
        let owner = fs::metadata(place.join("f")).unwrap().uid();
        let ids = pinfold_linux::launcher::SubordinateIds::of_caller().unwrap();
        assert_eq!(owner, ids.users[0].0 + 32);
    }
    let file = tempfile::tempfile().unwrap();
    let failed = yard.launcher().run_mapped(file.as_fd(), &["x".into()], &[]);
    assert_eq!(failure(failed), LaunchFailure::Internal);
}

pub(crate) fn a_covered_proc_is_named() {
    let yard = Yard::new(Kind::Single);
    let error = yard.launch(&yard.plan()).unwrap_err();
    assert_eq!(error.failure(), LaunchFailure::HostUnsupported);
    assert!(
        error.hint().unwrap().contains("systempaths=unconfined"),
        "{error}"
    );
}

/// What the launcher, the one child of this process, holds.
fn held() -> (usize, usize) {
    let own = std::process::id();
    let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
    let launcher: u32 = children.trim().parse().unwrap();
    let descriptors = fs::read_dir(format!("/proc/{launcher}/fd"))
        .unwrap()
        .count();
    let below = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
    (descriptors, below.split_whitespace().count())
}

fn leaves_nothing_behind(kind: Kind) {
    let yard = Yard::new(kind);
    for number in 0..6 {
        let mut plan = yard.plan();
        if number % 2 == 0 {
            plan.root.binds.push(bind("/missing", "/x"));
            assert_eq!(failure(yard.launch(&plan)), LaunchFailure::InvalidMount);
        } else {
            drop(yard.launch(&plan).unwrap());
        }
    }
    let deadline = Instant::now() + SETTLE_MAX;
    while held() != (HELD_IN_PEACE, MADE_AHEAD) {
        assert!(Instant::now() < deadline, "{:?}", held());
        std::thread::yield_now();
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(yard.place.path().to_str().unwrap()));
}

fn joins_cgroups(kind: Kind) {
    if kind != Kind::Range {
        eprintln!("no cgroup that this user may make here");
        return;
    }
    let joined = joins_version_1() | joins_version_2();
    assert!(joined, "this host has no cgroups at all");
}

fn joins_version_1() -> bool {
    let base = Path::new("/sys/fs/cgroup/pids");
    if !base.join("tasks").exists() {
        return false;
    }
    let yard = Yard::new(Kind::Range);
    let group = base.join(format!("pinfold-launcher-{}", std::process::id()));
    fs::create_dir(&group).unwrap();
    fs::write(group.join("pids.max"), "20").unwrap();
    let mut plan = yard.plan();
    plan.attach = vec![Attach::Tasks];
    let tasks = fs::OpenOptions::new()
        .write(true)
        .open(group.join("tasks"))
        .unwrap();
    let sandbox = yard.launch_with(&plan, &[OwnedFd::from(tasks)]).unwrap();
    let members = fs::read_to_string(group.join("tasks")).unwrap();
    assert_eq!(members.trim(), sandbox.launched.pid.to_string());
    assert_eq!(
        sandbox.says("grep pids /proc/self/cgroup | cut -d: -f3"),
        "/"
    );
    sandbox.refuses("for i in $(seq 40); do sleep 1000 >/dev/null 2>&1 & done");
    drop(sandbox);
    fs::remove_dir(&group).unwrap();
    true
}

fn joins_version_2() -> bool {
    let bases = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let Some(base) = bases
        .iter()
        .find(|base| base.join("cgroup.controllers").exists())
    else {
        return false;
    };
    let yard = Yard::new(Kind::Range);
    let group = base.join(format!("pinfold-launcher-{}", std::process::id()));
    fs::create_dir(&group).unwrap();
    let mut plan = yard.plan();
    plan.attach = vec![Attach::Into];
    let directory = fs::File::open(&group).unwrap();
    let sandbox = yard
        .launch_with(&plan, &[OwnedFd::from(directory)])
        .unwrap();
    let members = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    assert_eq!(members.trim(), sandbox.launched.pid.to_string());
    assert_eq!(sandbox.says("grep ^0: /proc/self/cgroup"), "0::/");
    drop(sandbox);
    fs::remove_dir(&group).unwrap();
    true
}
