//! Real programs, offline: a package's own tests, a compiler, Node, big streams, package managers.

#![cfg(test)]

use std::io::Read as _;
use std::process::Stdio;

use sha2::Digest as _;

#[path = "world/world.rs"]
mod world;

use world::{Person, World};

fn first_fixture(world: &World, directory: &str, ending: &str) -> String {
    let copy = world.fixture(directory);
    std::fs::read_dir(&copy)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .find(|name| name.ends_with(ending))
        .unwrap_or_else(|| panic!("no {ending} in {}", copy.display()))
}

#[test]
fn a_published_package_passes_its_own_tests() {
    for person in [Person::Root, Person::Plain, Person::Single] {
        let world = World::new(person);
        let archive = first_fixture(&world, "python", ".tar.gz");
        let script = format!(
            "cd /tmp && tar xzf /in/{archive} --no-same-owner && cd simplejson-* && \
             python3 -m unittest discover -s simplejson/tests -t . 2>&1 | tail -n 4"
        );
        let source = world.files().join("python");
        let said = world
            .run([
                "run",
                "--in",
                source.to_str().unwrap(),
                "--",
                "sh",
                "-c",
                &script,
            ])
            .ok();
        assert!(said.contains("\nOK"), "{person:?}: {said}");
        let ran = said
            .split_whitespace()
            .skip_while(|word| *word != "Ran")
            .nth(1)
            .and_then(|count| count.parse::<u32>().ok());
        assert!(ran.is_some_and(|count| count > 100), "{said}");
    }
}

#[test]
fn a_c_program_is_compiled_and_run() {
    for person in [Person::Root, Person::Single] {
        let world = World::new(person);
        let source = world.write(
            "answer.c",
            "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 6 * 7); return 0; }\n",
        );
        let mount = format!("{}:/in", source.parent().unwrap().display());
        let script = "cc -O2 -o /tmp/answer /in/answer.c && /tmp/answer";
        let printed = world
            .run(["run", "--mount", &mount, "--", "sh", "-c", script])
            .ok();
        assert_eq!(printed, "42\n", "{person:?}");
    }
}

#[test]
fn a_node_program_runs_from_a_file() {
    let world = World::new(Person::Root);
    let file = world.write(
        "main.js",
        "console.log([1, 2, 3].map(x => x * 14).at(-1))\n",
    );
    assert_eq!(
        world.run(["run", "--file", file.to_str().unwrap()]).ok(),
        "42\n"
    );
    let file = world.write("main.py", "import sys\nprint(len(sys.argv), 6 * 7)\n");
    assert_eq!(
        world.run(["run", "--file", file.to_str().unwrap()]).ok(),
        "1 42\n"
    );
    assert_eq!(
        world.run(["run", "--language", "node", "--hello"]).ok(),
        "hello world\n"
    );
}

/// Two GiB from `exec`, hashed as it is made and as it arrives.
#[test]
fn two_gibibytes_arrive_as_they_were_sent() {
    let world = World::new(Person::Root);
    world.create(&["--name", "stream"]);
    let program = "import hashlib, os, sys\nh = hashlib.sha256()\nblock = os.urandom(1 << 20)\n\
        for i in range(2048):\n b = i.to_bytes(8, 'big') + block[8:]\n h.update(b)\n \
        sys.stdout.buffer.write(b)\nsys.stdout.flush()\nprint(h.hexdigest(), file=sys.stderr)";
    let mut child = world
        .pinfold(["exec", "stream", "--", "python3", "-c", program])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut digest = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0u64;
    loop {
        let length = output.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        total += length as u64;
        digest.update(&buffer[..length]);
    }
    let end = child.wait_with_output().unwrap();
    let sent = String::from_utf8(end.stderr).unwrap();
    assert!(end.status.success(), "{sent}");
    assert_eq!(total, 2 << 30);
    let digest = digest.finalize();
    let arrived = digest
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    assert_eq!(sent.trim(), arrived);
}

#[test]
fn a_hundred_thousand_files_are_unpacked_and_removed() {
    let world = World::new(Person::Root);
    let make = "import io, tarfile\nt = tarfile.open('/tmp/many.tar', 'w')\n\
        for d in range(100):\n for n in range(1000):\n  \
        i = tarfile.TarInfo(f'many/{d}/{n}'); i.size = 3\n  t.addfile(i, io.BytesIO(b'abc'))\n\
        t.close()";
    let script = "python3 -c \"$1\" && cd /workspace && tar xf /tmp/many.tar && \
        find many -type f | wc -l && rm -r many && ls | wc -l";
    let printed = world
        .run(["run", "--", "sh", "-c", script, "sh", make])
        .ok();
    assert_eq!(
        printed.split_whitespace().collect::<Vec<_>>(),
        ["100000", "0"]
    );
}

fn debian(person: Person) {
    let world = World::new(person);
    let image = world.fixture("debian.tar");
    let packages = world.fixture("debs");
    let mount = format!("{}:/packages", packages.display());
    world.create(&[
        "--name",
        "debian",
        "--image",
        image.to_str().unwrap(),
        "--mount",
        &mount,
    ]);
    let script = "set -e; echo 'deb [trusted=yes] file:/packages ./' > /etc/apt/sources.list; \
        rm -f /etc/apt/sources.list.d/*; apt-get update -qq; \
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq hello > /tmp/log 2>&1 || \
        { cat /tmp/log; exit 1; }; hello";
    let printed = world.run(["exec", "debian", "--", "sh", "-c", script]).ok();
    assert!(printed.contains("Hello, world!"), "{person:?}: {printed}");
    // Directories of a lower layer are renamed, as package managers do.
    let script = "mv /usr/share/doc /usr/share/moved && test -d /usr/share/moved && echo moved";
    assert_eq!(
        world.run(["exec", "debian", "--", "sh", "-c", script]).ok(),
        "moved\n"
    );
}

#[test]
fn apt_installs_as_root() {
    debian(Person::Root);
}

#[test]
fn apt_installs_as_a_user_with_subordinate_ids() {
    debian(Person::Plain);
}

#[test]
fn npm_and_git_work() {
    for person in [Person::Root, Person::Plain, Person::Single] {
        let world = World::new(person);
        let archive = first_fixture(&world, "npm", ".tgz");
        let source = world.files().join("npm");
        let mount = format!("{}:/packages", source.display());
        world.create(&["--name", "tools", "--mount", &mount]);
        let script = format!(
            "set -e; mkdir -p /workspace/app && cd /workspace/app && npm init -y > /dev/null && \
             npm install --offline --no-audit --no-fund /packages/{archive} > /tmp/log 2>&1 || \
             {{ cat /tmp/log; exit 1; }}; ls node_modules; node -e \
             \"console.log(require('./node_modules/' + require('fs').readdirSync('node_modules')\
             .filter(n => !n.startsWith('.'))[0]) !== undefined)\""
        );
        let printed = world.run(["exec", "tools", "--", "sh", "-c", &script]).ok();
        assert!(printed.ends_with("true\n"), "{person:?}: {printed}");
        let script = "set -e; cd /workspace && git init -q repo && cd repo && \
            git config user.email a@example.com && git config user.name a && \
            mkdir d && echo 1 > d/f && git add . && git commit -qm one && git mv d e && \
            git commit -qm two && git gc -q && git clone -q . ../copy && git log --oneline | wc -l && \
            cat ../copy/e/f";
        let printed = world.run(["exec", "tools", "--", "sh", "-c", script]).ok();
        assert_eq!(
            printed.split_whitespace().collect::<Vec<_>>(),
            ["2", "1"],
            "{person:?}"
        );
    }
}
