//! Attacks with images, which the daemon unpacks.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::{Attempt, Found};
use super::archive::{Archive, DEVICE, DIRECTORY, HARD_LINK, LINK, hole};
use super::copy::worked_if;
use super::product::{Product, Sandbox, memory_kib, pause};
use super::with;

/// Longest time in which an image of 1 KiB is refused.
const SOON: Duration = Duration::from_secs(40);
/// Entries that an image may have and few do.
const MANY: u32 = 1_000_000;
/// Longest time that is looked on.
const MANY_TIME_MAX: Duration = Duration::from_mins(1);
/// Most memory by which the daemon may grow for an image.
const GROWTH_KIB_MAX: u64 = 256 << 10;

pub(super) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("image-absolute", |facts| {
        with(facts, |product| {
            let victim = product.directory("victim")?;
            let name = victim.join("pwned").display().to_string();
            outside(product, &victim, Archive::default().file(&name, b"pwned"))
        })
    }),
    ("image-parent", |facts| {
        with(facts, |product| {
            let victim = product.directory("victim")?;
            let name = format!("bin/{}{}/pwned", "../".repeat(12), victim.display());
            outside(product, &victim, Archive::default().file(&name, b"pwned"))
        })
    }),
    ("image-hard-link", |facts| with(facts, hard_link)),
    ("image-device", |facts| {
        with(facts, |product| {
            let archive = Archive::default().entry("bin/device", DEVICE, "");
            match sandbox_of(product, archive)? {
                Err(word) => Ok(Found::Failed(word)),
                Ok(sandbox) => {
                    let read = sandbox.exec(&["/bin/attack", "act", "read", "/bin/device"])?;
                    Ok(worked_if(read.ok, "it can be opened", &read.word()))
                }
            }
        })
    }),
    ("image-sparse", |facts| {
        with(facts, |product| {
            let archive = Archive::default()
                .block(&hole("bin/holes"))
                .block(&[0; 512]);
            let begun = Instant::now();
            let made = sandbox_of(product, archive)?;
            let took = begun.elapsed();
            Ok(match made {
                Ok(_) => Found::Worked("it was taken".to_owned()),
                Err(_) if took > SOON => Found::Worked("it did not end".to_owned()),
                Err(word) => Found::Failed(word),
            })
        })
    }),
    ("image-many", |facts| with(facts, many)),
];

fn hard_link(product: &Product) -> io::Result<Found> {
    // A file has names on one file system alone: the one that images are unpacked on.
    let state = Path::new(&product.given.state);
    let here = fs::metadata(&product.given.scratch)?.dev();
    let secret = match fs::metadata(state) {
        Ok(there) if there.dev() != here => state.join("attack-secret"),
        _ => product.scratch("secret"),
    };
    fs::write(&secret, pinfold_attack::SECRET)?;
    let target = secret.display().to_string();
    let above = format!("{}{target}", "../".repeat(12));
    let mut found = Found::Failed("refused".to_owned());
    for target in [target, above] {
        let archive = Archive::default().entry("bin/stolen", HARD_LINK, &target);
        let made = sandbox_of(product, archive)?;
        if fs::metadata(&secret)?.nlink() > 1 {
            found = Found::Worked("it has a second name".to_owned());
        }
        drop(made);
    }
    fs::remove_file(&secret)?;
    Ok(found)
}

/// Has worked when an image's file lands in a directory of the host.
pub(super) fn outside(product: &Product, victim: &Path, archive: Archive) -> io::Result<Found> {
    let made = sandbox_of(product, archive)?;
    let word = match &made {
        Ok(_) => "it was unpacked inside".to_owned(),
        Err(word) => word.clone(),
    };
    Ok(worked_if(
        victim.join("pwned").exists(),
        "wrote to the host",
        &word,
    ))
}

/// Makes a sandbox of an archive with this program in it, or says why there is none.
pub(super) fn sandbox_of(
    product: &Product,
    archive: Archive,
) -> io::Result<Result<Sandbox<'_>, String>> {
    let program = fs::read(std::env::current_exe()?)?;
    let whole = Archive::default()
        .entry("bin/", DIRECTORY, "")
        .file("bin/attack", &program)
        .entry("bin/sh", LINK, "attack")
        .block(&archive.open())
        .end();
    // Each its own: what was unpacked once is not unpacked again.
    let path = product.scratch(&format!("image-{}.tar", whole.len()));
    fs::write(&path, whole)?;
    sandbox_of_file(product, &path)
}

fn sandbox_of_file<'a>(
    product: &'a Product,
    path: &Path,
) -> io::Result<Result<Sandbox<'a>, String>> {
    let image = path.display().to_string();
    let made = product.try_sandbox(&["--image", &image])?;
    Ok(made.map_err(|ran| ran.word()))
}

fn many(product: &Product) -> io::Result<Found> {
    const NAME: &str = "attack-many";
    let path = product.scratch("many.tar.gz");
    write_many(&path)?;
    let daemon = product.daemon()?;
    let before = memory_kib(daemon)?;
    let create = ["create", "--name", NAME, "--image"].map(OsStr::new);
    let mut child = product
        .command(create.into_iter().chain([path.as_os_str()]))
        .spawn()?;
    let mut most = before;
    let begun = Instant::now();
    let end = begun + MANY_TIME_MAX;
    // As long as it unpacks, others are served.
    let outcome = loop {
        if !product.answers() {
            break Found::Worked("the daemon does not answer".to_owned());
        }
        most = most.max(memory_kib(daemon)?);
        let grown = most.saturating_sub(before);
        if grown > GROWTH_KIB_MAX {
            break Found::Worked(format!("the daemon grew to {} MiB", most >> 10));
        }
        if Instant::now() > end {
            break Found::Failed("others were served all the time".to_owned());
        }
        if let Some(status) = child.try_wait()? {
            let grown = grown >> 10;
            let ended = if status.success() { "taken" } else { "refused" };
            let seconds = begun.elapsed().as_secs();
            break Found::Failed(format!(
                "{ended} within {seconds} s; it grew by {grown} MiB"
            ));
        }
        pause(Duration::from_millis(100));
    };
    // It may have ended by itself.
    let _ended = child.kill();
    child.wait()?;
    product.run(["rm", "--force", NAME])?;
    Ok(outcome)
}

/// Writes an image of very many entries: one compressed part, again and again.
fn write_many(path: &Path) -> io::Result<()> {
    const PART: u32 = 10_000;
    let part = (0..PART).fold(Archive::default(), |archive, number| {
        archive.entry(&format!("d{}/", number % 100), DIRECTORY, "")
    });
    let compress = |bytes: &[u8]| -> io::Result<Vec<u8>> {
        let fast = flate2::Compression::fast();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), fast);
        encoder.write_all(bytes)?;
        encoder.finish()
    };
    let part = compress(&part.open())?;
    // Each its own: what was unpacked once is not unpacked again.
    let first = Archive::default()
        .entry("bin/", DIRECTORY, "")
        .entry(&format!("{}/", std::process::id()), DIRECTORY, "")
        .open();
    let mut file = File::create(path)?;
    file.write_all(&compress(&first)?)?;
    for _ in 0..MANY / PART {
        file.write_all(&part)?;
    }
    file.write_all(&compress(&Archive::default().end())?)
}
