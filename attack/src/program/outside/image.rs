//! Attacks with images, which the daemon unpacks.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::{Attempt, Found};
use super::archive::{Archive, DEVICE, DIRECTORY, HARD_LINK, HOLES, LINK, hole};
use super::copy::worked_if;
use super::product::{Product, Sandbox, memory_kib, pause};
use super::with;

/// Longest time in which an image of 1 KiB is refused.
const SOON: Duration = Duration::from_secs(40);
/// Entries that an image may have and few do.
const MANY: u32 = 1_000_000;
/// Most images at once.
const MANY_IMAGES_MAX: usize = 8;
/// Longest time for an answer meanwhile.
const LATE: Duration = Duration::from_secs(8);
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
    ("image-sparse", |facts| with(facts, sparse)),
    ("image-many", |facts| with(facts, many)),
];

fn sparse(product: &Product) -> io::Result<Found> {
    let mut last = String::new();
    for bytes in HOLES {
        let archive = Archive::default()
            .block(&hole("bin/holes", bytes))
            .block(&[0; 512]);
        let begun = Instant::now();
        match sandbox_of(product, archive)? {
            Ok(_) => return Ok(Found::Worked(format!("took a hole of {bytes} bytes"))),
            Err(_) if begun.elapsed() > SOON => {
                return Ok(Found::Worked("it did not end".to_owned()));
            }
            Err(word) => last = word,
        }
    }
    Ok(Found::Failed(last))
}

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
    // One for each thread that the daemon may have for everybody.
    let count = std::thread::available_parallelism()?
        .get()
        .min(MANY_IMAGES_MAX);
    let daemon = product.daemon()?;
    let before = memory_kib(daemon)?;
    let name = |number: usize| format!("attack-many-{number}");
    let mut children = Vec::new();
    for number in 0..count {
        let path = product.scratch(&format!("many-{number}.tar.gz"));
        write_many(&path, number)?;
        let create = ["create", "--name", &name(number), "--image"];
        let create = create.iter().map(OsStr::new);
        children.push(product.command(create.chain([path.as_os_str()])).spawn()?);
    }
    let mut most = before;
    let begun = Instant::now();
    let end = begun + MANY_TIME_MAX;
    // As long as it unpacks, others are served.
    let outcome = loop {
        let answer = product.get("/v1/version", LATE)?;
        if answer.status() != Some(200) {
            break Found::Worked(format!("no answer within {} s", LATE.as_secs()));
        }
        most = most.max(memory_kib(daemon)?);
        let grown = most.saturating_sub(before);
        if grown > GROWTH_KIB_MAX {
            break Found::Worked(format!("the daemon grew to {} MiB", most >> 10));
        }
        if Instant::now() > end {
            break Found::Failed("others were served all the time".to_owned());
        }
        let mut ended = 0;
        for child in &mut children {
            ended += usize::from(child.try_wait()?.is_some());
        }
        if ended == count {
            let (seconds, grown) = (begun.elapsed().as_secs(), grown >> 10);
            break Found::Failed(format!("over within {seconds} s; it grew by {grown} MiB"));
        }
        pause(Duration::from_millis(100));
    };
    for (number, mut child) in children.into_iter().enumerate() {
        // It may have ended by itself.
        let _ended = child.kill();
        child.wait()?;
        // Whoever does not answer does not remove either; the next sweep does.
        if matches!(outcome, Found::Failed(_)) {
            product.run(["rm", "--force", &name(number)])?;
        }
    }
    Ok(outcome)
}

/// Writes an image of very many entries: one compressed part, again and again.
fn write_many(path: &Path, number: usize) -> io::Result<()> {
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
    let own = format!("{}-{number}/", std::process::id());
    let first = Archive::default()
        .entry("bin/", DIRECTORY, "")
        .entry(&own, DIRECTORY, "")
        .open();
    let mut file = File::create(path)?;
    file.write_all(&compress(&first)?)?;
    for _ in 0..MANY / PART {
        file.write_all(&part)?;
    }
    file.write_all(&compress(&Archive::default().end())?)
}
