//! Archives as nobody should make them, and what must come of each.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use proptest::prelude::*;

use super::build::{Access, Builder, record};
use super::header::BLOCK_BYTES;
use super::{InvalidImage, Limits, Owners, UnpackError, UnpackReport, unpack_archive};

const ACCESS: Access = Access {
    owner: 0,
    mode: 0o755,
};

/// A directory with a place to unpack in, so that an escape has somewhere to go.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.inside("")).unwrap();
        place
    }

    fn inside(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join("inside").join(path)
    }

    fn unpack(&self, archive: &[u8], limits: Limits) -> Result<UnpackReport, InvalidImage> {
        let mut file = archive;
        let unpacked = unpack_archive(
            &mut file,
            &self.inside(""),
            Owners::Caller,
            limits,
            &mut |_| {},
        );
        let outside: Vec<_> = fs::read_dir(self.0.path()).unwrap().flatten().collect();
        assert_eq!(outside.len(), 1, "something was made outside");
        unpacked.map_err(|error| match error {
            UnpackError::Invalid(problem) => problem,
            other => panic!("{other:?}"),
        })
    }
}

fn unpack(archive: &[u8]) -> Result<UnpackReport, InvalidImage> {
    Place::new().unpack(archive, Limits::default())
}

/// An archive with `bin`, and whatever else is wanted.
fn image(add: impl FnOnce(&mut Builder)) -> Vec<u8> {
    let mut builder = Builder::default();
    builder.directory(Path::new("./"), ACCESS);
    builder.directory(Path::new("./bin/"), ACCESS);
    add(&mut builder);
    builder.finish()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[track_caller]
fn check(add: impl FnOnce(&mut Builder), wanted: fn(&InvalidImage) -> bool) {
    let problem = unpack(&image(add)).unwrap_err();
    assert!(wanted(&problem), "{problem:?}");
}

#[test]
fn an_ordinary_image_is_unpacked_as_it_was() {
    let long = format!("usr/{}/x", "a".repeat(200));
    let archive = image(|builder| {
        let set_user_id = Access {
            owner: 1000,
            mode: 0o4755,
        };
        builder.file(Path::new("bin/su"), b"program", set_user_id);
        builder.entry(
            b'1',
            (Path::new("bin/also"), Path::new("bin/su")),
            ACCESS,
            0,
        );
        builder.link(Path::new("sh"), Path::new("/bin/su"));
        builder.entry(b'6', (Path::new("pipe"), Path::new("")), ACCESS, 0);
        builder.entry(b'3', (Path::new("dev/null"), Path::new("")), ACCESS, 0);
        builder.file(Path::new(&long), b"deep", ACCESS);
        let closed = Access { owner: 0, mode: 0 };
        builder.directory(Path::new("closed"), closed);
        builder.file(Path::new("closed/file"), b"", ACCESS);
    });
    for archive in [archive.clone(), gzip(&archive)] {
        let place = Place::new();
        let report = place.unpack(&archive, Limits::default()).unwrap();
        assert_eq!((report.entries, report.bytes), (10, 11));
        assert_eq!(report.devices_left_out, 1);
        assert_eq!(report.digest.len(), 64);
        let program = fs::metadata(place.inside("bin/su")).unwrap();
        assert_eq!(program.permissions().mode() & 0o7777, 0o4755);
        assert_eq!(program.nlink(), 2);
        assert_eq!(program.mtime(), 946_684_800);
        assert_eq!(
            fs::read_link(place.inside("sh")).unwrap(),
            Path::new("/bin/su")
        );
        assert_eq!(fs::read(place.inside(&long)).unwrap(), b"deep");
        let closed = fs::metadata(place.inside("closed")).unwrap();
        assert_eq!(closed.permissions().mode() & 0o7777, 0);
        assert_eq!(closed.mtime(), 946_684_800);
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in ["../out", "/out", "a/../../out", "..", "bin/../.."] {
        check(
            |builder| builder.file(Path::new(name), b"x", ACCESS),
            |problem| matches!(problem, InvalidImage::Name { .. }),
        );
        check(
            |builder| builder.directory(Path::new(name), ACCESS),
            |problem| matches!(problem, InvalidImage::Name { .. }),
        );
        check(
            |builder| builder.entry(b'1', (Path::new("x"), Path::new(name)), ACCESS, 0),
            |problem| matches!(problem, InvalidImage::Name { .. }),
        );
    }
}

#[test]
fn extended_names_are_checked_like_others() {
    for (kind, content) in [
        (b'x', record("path", b"../out")),
        (b'g', record("path", b"/out")),
        (b'L', b"../out\0".to_vec()),
        (b'x', record("path", b"a\0b")),
    ] {
        check(
            |builder| {
                builder.entry(
                    kind,
                    (Path::new("meta"), Path::new("")),
                    ACCESS,
                    content.len(),
                );
                builder.data(&content);
                builder.file(Path::new("harmless"), b"x", ACCESS);
            },
            |problem| matches!(problem, InvalidImage::Name { .. }),
        );
    }
}

#[test]
fn nothing_is_made_through_a_link() {
    for target in ["..", "/", "../..", "bin", "."] {
        check(
            |builder| {
                builder.link(Path::new("link"), Path::new(target));
                builder.file(Path::new("link/out"), b"x", ACCESS);
            },
            |problem| matches!(problem, InvalidImage::NotBeneathDirectory { .. }),
        );
        check(
            |builder| {
                builder.link(Path::new("link"), Path::new(target));
                builder.directory(Path::new("link/a/b"), ACCESS);
            },
            |problem| matches!(problem, InvalidImage::NotBeneathDirectory { .. }),
        );
        check(
            |builder| {
                builder.link(Path::new("link"), Path::new(target));
                builder.entry(b'1', (Path::new("x"), Path::new("link/inside")), ACCESS, 0);
            },
            |problem| matches!(problem, InvalidImage::HardLink { .. }),
        );
    }
}

#[test]
fn a_file_replaces_a_link_and_not_what_it_leads_to() {
    let place = Place::new();
    let archive = image(|builder| {
        builder.file(Path::new("kept"), b"kept", ACCESS);
        builder.link(Path::new("bin/x"), Path::new("../kept"));
        builder.file(Path::new("bin/x"), b"new", ACCESS);
        builder.link(Path::new("bin/y"), Path::new(".."));
        builder.directory(
            Path::new("bin/y"),
            Access {
                owner: 0,
                mode: 0o700,
            },
        );
        builder.file(Path::new("bin/y/z"), b"z", ACCESS);
        builder.file(Path::new("bin/y/z"), b"again", ACCESS);
    });
    place.unpack(&archive, Limits::default()).unwrap();
    assert_eq!(fs::read(place.inside("kept")).unwrap(), b"kept");
    assert_eq!(fs::read(place.inside("bin/x")).unwrap(), b"new");
    assert_eq!(fs::read(place.inside("bin/y/z")).unwrap(), b"again");
    check(
        |builder| builder.file(Path::new("bin"), b"x", ACCESS),
        |problem| matches!(problem, InvalidImage::Replaces { .. }),
    );
}

#[test]
fn hard_links_are_to_earlier_entries_only() {
    for target in ["missing", "bin", "later"] {
        check(
            |builder| {
                builder.entry(b'1', (Path::new("x"), Path::new(target)), ACCESS, 0);
                builder.file(Path::new("later"), b"x", ACCESS);
            },
            |problem| matches!(problem, InvalidImage::HardLink { .. }),
        );
    }
}

#[test]
fn directories_that_are_mounted_on_must_be_directories() {
    for name in ["dev", "proc", "sys", "tmp"] {
        check(
            |builder| builder.link(Path::new(name), Path::new("/etc")),
            |problem| matches!(problem, InvalidImage::Reserved { .. }),
        );
        check(
            |builder| builder.file(Path::new(name), b"", ACCESS),
            |problem| matches!(problem, InvalidImage::Reserved { .. }),
        );
    }
}

#[test]
fn what_is_no_root_filesystem_is_said() {
    let archive = |name: &str| {
        let mut builder = Builder::default();
        builder.file(
            Path::new(name),
            b"x",
            Access {
                owner: 0,
                mode: 0o644,
            },
        );
        builder.finish()
    };
    assert_eq!(
        unpack(&archive("readme")).unwrap_err(),
        InvalidImage::NotARoot
    );
    assert_eq!(
        unpack(&archive("manifest.json")).unwrap_err(),
        InvalidImage::Layers
    );
    let directory = "rootfs".to_owned();
    assert_eq!(
        unpack(&archive("rootfs/usr/x")).unwrap_err(),
        InvalidImage::OneDeeper { directory }
    );
    let mut program = Builder::default();
    program.file(Path::new("server"), b"x", ACCESS);
    unpack(&program.finish()).unwrap();
}

#[test]
fn sizes_are_bounded() {
    let limits = Limits {
        entries: 10,
        bytes: 1 << 20,
    };
    let problem = |archive: &[u8]| Place::new().unpack(archive, limits).unwrap_err();
    let limit = 1 << 20;
    let large = image(|builder| builder.file(Path::new("x"), &vec![0; 2 << 20], ACCESS));
    assert_eq!(problem(&large), InvalidImage::TooLarge { limit });
    let bomb = gzip(&large);
    assert!(bomb.len() < 32 << 10);
    assert_eq!(problem(&bomb), InvalidImage::TooLarge { limit });
    let after_the_end = gzip(&[image(|_| {}), vec![0; 2 << 20]].concat());
    assert_eq!(problem(&after_the_end), InvalidImage::TooLarge { limit });
    let many = image(|builder| {
        for number in 0..20 {
            builder.directory(Path::new(&format!("d{number}")), ACCESS);
        }
    });
    assert_eq!(problem(&many), InvalidImage::TooManyEntries { limit: 10 });
    let giant = image(|builder| {
        builder.entry(b'0', (Path::new("x"), Path::new("")), ACCESS, 1 << 32);
    });
    assert_eq!(problem(&giant), InvalidImage::Truncated);
    let extension = image(|builder| {
        builder.entry(b'x', (Path::new("x"), Path::new("")), ACCESS, 1 << 30);
    });
    assert!(matches!(problem(&extension), InvalidImage::Field { .. }));
}

#[test]
fn a_size_that_fills_its_field_allocates_nothing() {
    let mut archive = image(|builder| {
        builder.entry(b'0', (Path::new("x"), Path::new("")), ACCESS, 0);
    });
    let start = 2 * BLOCK_BYTES;
    let header: &mut [u8; BLOCK_BYTES] = (&mut archive[start..start + BLOCK_BYTES])
        .try_into()
        .unwrap();
    header[124] = 0x80;
    header[125..136].fill(0);
    header[128..136].copy_from_slice(&i64::MAX.to_be_bytes());
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().copied().map(u64::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(unpack(&archive).unwrap_err(), InvalidImage::Truncated);
}

#[test]
fn every_cut_is_noticed() {
    let archive = image(|builder| builder.file(Path::new("bin/x"), &[7; 700], ACCESS));
    let whole = archive.len();
    for length in (0..whole - 2 * BLOCK_BYTES).step_by(97) {
        let problem = unpack(&archive[..length]).unwrap_err();
        let wanted = [InvalidImage::Truncated, InvalidImage::NotAnArchive];
        assert!(wanted.contains(&problem), "{length}: {problem:?}");
    }
    let packed = gzip(&archive);
    for length in (20..packed.len()).step_by(7) {
        assert_eq!(
            unpack(&packed[..length]).unwrap_err(),
            InvalidImage::Truncated
        );
    }
    let mut damaged = packed.clone();
    let middle = damaged.len() - 6;
    damaged[middle] ^= 0xff;
    assert_eq!(unpack(&damaged).unwrap_err(), InvalidImage::Damaged);
}

#[test]
fn other_files_are_named_for_what_they_are() {
    let compressed = |with: &str| InvalidImage::Compressed {
        with: with.to_owned(),
    };
    for (bytes, problem) in [
        (&b""[..], InvalidImage::NotAnArchive),
        (b"hello", InvalidImage::NotAnArchive),
        (&[b'x'; 4096], InvalidImage::NotAnArchive),
        (b"\x28\xb5\x2f\xfd....", compressed("zstd")),
        (b"\xfd7zXZ\0....", compressed("xz")),
        (b"BZh91AY", compressed("bzip2")),
        (b"PK\x03\x04....", compressed("zip")),
    ] {
        assert_eq!(unpack(bytes).unwrap_err(), problem);
    }
    assert_eq!(
        unpack(&gzip(b"hello")).unwrap_err(),
        InvalidImage::NotAnArchive
    );
}

#[test]
fn kinds_that_images_do_not_have_are_refused() {
    for kind in [b'S', b'M', b'D', b'Z', 0xff] {
        check(
            |builder| builder.entry(kind, (Path::new("x"), Path::new("")), ACCESS, 0),
            |problem| matches!(problem, InvalidImage::Unsupported { .. }),
        );
    }
    let sparse = record("GNU.sparse.major", b"1");
    check(
        |builder| {
            builder.entry(b'x', (Path::new("x"), Path::new("")), ACCESS, sparse.len());
            builder.data(&sparse);
            builder.file(Path::new("x"), b"", ACCESS);
        },
        |problem| matches!(problem, InvalidImage::Unsupported { .. }),
    );
}

#[test]
fn owners_that_no_sandbox_has_are_refused() {
    let stranger = Access {
        owner: 65_536,
        mode: 0o644,
    };
    check(
        |builder| builder.file(Path::new("x"), b"", stranger),
        |problem| matches!(problem, InvalidImage::Owner { id: 65_536, .. }),
    );
}

#[test]
fn deep_trees_are_made_or_refused() {
    let nested = |depth: usize| {
        image(|builder| {
            builder.directory(Path::new(&"d/".repeat(depth)), ACCESS);
        })
    };
    unpack(&nested(1000)).unwrap();
    assert!(matches!(
        unpack(&nested(1500)),
        Err(InvalidImage::Name { .. })
    ));
    assert!(matches!(
        unpack(&image(|builder| builder.file(
            Path::new(&"n".repeat(300)),
            b"",
            ACCESS
        ))),
        Err(InvalidImage::Name { .. })
    ));
}

#[test]
fn messages_repeat_hostile_names_safely() {
    let name = format!("../\x1b[31m\n{}", "x".repeat(3000));
    let problem = unpack(&image(|builder| {
        builder.file(Path::new(&name), b"", ACCESS);
    }));
    let text = problem.unwrap_err().to_string();
    assert!(
        text.len() < 600 && !text.contains(char::is_control),
        "{text:?}"
    );
}

#[test]
fn owners_are_kept_by_root() {
    if !rustix::process::geteuid().is_root() {
        assert!(
            std::env::var_os("CI").is_none(),
            "needs root, and CI skips nothing"
        );
        return;
    }
    let place = Place::new();
    let owned = Access {
        owner: 1234,
        mode: 0o6755,
    };
    let archive = image(|builder| {
        builder.directory(Path::new("home"), owned);
        builder.file(Path::new("home/x"), b"x", owned);
    });
    let mut file = archive.as_slice();
    let limits = Limits::default();
    let unpacked = unpack_archive(
        &mut file,
        &place.inside(""),
        Owners::Keep,
        limits,
        &mut |_| {},
    );
    unpacked.unwrap();
    for path in ["home", "home/x"] {
        let found = fs::metadata(place.inside(path)).unwrap();
        assert_eq!((found.uid(), found.gid()), (1234, 1234), "{path}");
        assert_eq!(found.mode() & 0o7777, 0o6755, "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        prop_assert!(unpack(&bytes).is_err());
    }

    #[test]
    fn random_changes_never_panic_nor_escape(
        changes in proptest::collection::vec((0_usize..6000, any::<u8>()), 1..24),
        mend in any::<bool>(),
    ) {
        let mut archive = image(|builder| {
            builder.file(Path::new("bin/x"), &[7; 700], ACCESS);
            builder.link(Path::new("link"), Path::new("bin"));
            builder.entry(b'1', (Path::new("hard"), Path::new("bin/x")), ACCESS, 0);
            builder.file(Path::new(&"long/".repeat(40)), b"x", ACCESS);
        });
        let length = archive.len();
        for (at, byte) in changes {
            archive[at % length] = byte;
        }
        if mend {
            mend_checksums(&mut archive);
        }
        // Whatever comes of it, it is an answer; `Place` fails when something got out.
        let mut file = archive.as_slice();
        let place = Place::new();
        let inside = place.inside("");
        let limits = Limits { entries: 100, bytes: 1 << 20 };
        let _answer = unpack_archive(&mut file, &inside, Owners::Caller, limits, &mut |_| {});
        prop_assert_eq!(fs::read_dir(place.0.path()).unwrap().count(), 1);
    }
}

/// Gives every block that could be a header a right checksum, so that its fields are looked at.
fn mend_checksums(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(BLOCK_BYTES) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u64 = block.iter().copied().map(u64::from).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}
