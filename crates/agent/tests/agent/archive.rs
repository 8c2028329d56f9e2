//! Archives: there and back again, and hostile ones.

use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use connectrpc::ConnectError;
use futures::stream;
use pinfold_agent_api::v1::{PackRequest, UnpackRequest};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tar::{Archive, Builder, EntryType, Header};

use crate::world::World;

async fn pack(world: &World, path: &str) -> Result<Vec<u8>, ConnectError> {
    let request = PackRequest {
        path: path.to_owned(),
        ..PackRequest::default()
    };
    let mut chunks = world.file.pack(request).await?;
    let mut archive = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        archive.extend_from_slice(chunk.view().data);
    }
    match chunks.error() {
        Some(error) => Err(error.clone()),
        None => Ok(archive),
    }
}

async fn unpack(world: &World, directory: &str, archive: &[u8]) -> Result<u64, ConnectError> {
    let first = UnpackRequest {
        directory: directory.to_owned(),
        ..UnpackRequest::default()
    };
    let rest = archive.chunks(100_000).map(|data| UnpackRequest {
        data: data.to_vec(),
        ..UnpackRequest::default()
    });
    let messages: Vec<_> = std::iter::once(first).chain(rest).collect();
    let response = world.file.unpack(stream::iter(messages)).await?;
    Ok(response.view().entries)
}

/// One entry, with a name that no well-behaved program would write.
fn entry(archive: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, link: &str, data: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o6755);
    header.set_size(u64::try_from(data.len()).unwrap());
    let old = header.as_old_mut();
    old.name[..path.len()].copy_from_slice(path.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    archive.append(&header, data).unwrap();
}

fn tree(root: &Path) {
    let long = "long-".repeat(45);
    std::fs::create_dir_all(root.join("tree/empty")).unwrap();
    std::fs::create_dir_all(root.join("tree").join(&long).join(&long)).unwrap();
    std::fs::write(
        root.join("tree").join(&long).join(&long).join("deep"),
        "deep",
    )
    .unwrap();
    std::fs::write(root.join("tree/large"), vec![7; 1_000_000]).unwrap();
    std::fs::write(root.join("tree/nothing"), "").unwrap();
    std::fs::hard_link(root.join("tree/large"), root.join("tree/same")).unwrap();
    symlink("../../outside", root.join("tree/link")).unwrap();
    symlink("x".repeat(300), root.join("tree/far")).unwrap();
    std::fs::set_permissions(
        root.join("tree/empty"),
        std::fs::Permissions::from_mode(0o2550),
    )
    .unwrap();
    std::fs::set_permissions(
        root.join("tree/large"),
        std::fs::Permissions::from_mode(0o4711),
    )
    .unwrap();
    mknodat(CWD, root.join("tree/fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    std::os::unix::net::UnixListener::bind(root.join("tree/socket")).unwrap();
}

#[tokio::test]
async fn a_tree_goes_there_and_back() {
    let world = World::new();
    tree(&world.root());
    let archive = pack(&world, "/tree").await.unwrap();
    unpack(&world, "/copy/here", &archive).await.unwrap();
    let (from, to) = (
        world.root().join("tree"),
        world.root().join("copy/here/tree"),
    );
    let mut waiting = vec![std::path::PathBuf::new()];
    let mut count = 0;
    while let Some(path) = waiting.pop() {
        let (a, b) = (from.join(&path), to.join(&path));
        let left = a.symlink_metadata().unwrap();
        if path == Path::new("socket") {
            assert!(b.symlink_metadata().is_err());
            continue;
        }
        let right = b
            .symlink_metadata()
            .unwrap_or_else(|_| panic!("{} is missing", path.display()));
        count += 1;
        assert_eq!(left.mode(), right.mode(), "{}", path.display());
        assert_eq!(left.mtime(), right.mtime(), "{}", path.display());
        if left.is_symlink() {
            assert_eq!(a.read_link().unwrap(), b.read_link().unwrap());
        } else if left.is_dir() {
            let entries = std::fs::read_dir(&a).unwrap();
            waiting.extend(entries.map(|entry| path.join(entry.unwrap().file_name())));
        } else if left.is_file() {
            assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        }
    }
    assert_eq!(count, 11);
    let inode = |name| to.join(name).metadata().unwrap().ino();
    assert_eq!(inode("large"), inode("same"));
    // Over itself once more: what is there is replaced.
    unpack(&world, "/copy/here", &archive).await.unwrap();
    // One file, and everything.
    let one = pack(&world, "/tree/large").await.unwrap();
    let names: Vec<_> = names(&one);
    assert_eq!(names, ["large"]);
    assert!(names_of(&pack(&world, "/").await.unwrap()).contains(&"tree/nothing".to_owned()));
    assert!(pack(&world, "/missing").await.is_err());
}

fn names(archive: &[u8]) -> Vec<String> {
    names_of(archive)
}

fn names_of(archive: &[u8]) -> Vec<String> {
    Archive::new(archive)
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect()
}

#[tokio::test]
async fn a_file_that_grows_meanwhile_is_cut_to_its_header() {
    let world = World::new();
    let path = world.root().join("file");
    std::fs::write(&path, vec![1; 8 << 20]).unwrap();
    world
        .shell(
            "writer",
            "while :; do head -c 100000 /dev/zero >>file; done",
        )
        .await;
    for _ in 0..3 {
        let archive = pack(&world, "/file").await.unwrap();
        let mut archive = Archive::new(&archive[..]);
        let mut entries = archive.entries().unwrap();
        let mut file = entries.next().unwrap().unwrap();
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(
            u64::try_from(content.len()).unwrap(),
            file.header().size().unwrap()
        );
        drop(file);
        assert!(entries.next().is_none());
    }
}

#[tokio::test]
async fn a_hostile_archive_writes_nothing_outside() {
    let world = World::new();
    let outside = world.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let target = outside.display().to_string();
    let attack = |build: &dyn Fn(&mut Builder<Vec<u8>>)| {
        let mut archive = Builder::new(Vec::new());
        build(&mut archive);
        archive.into_inner().unwrap()
    };
    let file = EntryType::Regular;
    let refused = [
        attack(&|a| entry(a, file, "../outside/a", "", b"x")),
        attack(&|a| entry(a, file, "a/../../outside/a", "", b"x")),
        attack(&|a| {
            entry(a, EntryType::Symlink, "link", &target, b"");
            entry(a, file, "link/a", "", b"x");
        }),
        attack(&|a| {
            entry(a, EntryType::Symlink, "link", "../outside", b"");
            entry(a, EntryType::Directory, "link", "", b"");
        }),
        attack(&|a| entry(a, EntryType::Link, "hard", "../outside/a", b"")),
        attack(&|a| {
            entry(a, EntryType::Symlink, "up", "..", b"");
            entry(a, EntryType::Link, "hard", "up/outside/a", b"");
        }),
        attack(&|a| entry(a, EntryType::GNUSparse, "sparse", "", b"")),
        attack(&|a| entry(a, EntryType::GNULongName, "x", "", &vec![b'x'; 2 << 20])),
        attack(&|a| entry(a, EntryType::XHeader, "x", "", b"99 path=x\n")),
        attack(&|a| {
            entry(a, EntryType::XHeader, "x", "", b"23 path=../outside/evil\n");
            entry(a, file, "fine", "", b"x");
        }),
        attack(&|a| {
            entry(a, EntryType::XHeader, "x", "", b"11 size=99\n");
            entry(a, file, "fine", "", b"x");
        }),
        vec![b'x'; 5000],
    ];
    for (number, archive) in refused.iter().enumerate() {
        let into = format!("/into{number}");
        let error = unpack(&world, &into, archive).await.unwrap_err();
        assert!(error.message.is_some(), "{number}");
        assert_eq!(
            std::fs::read_dir(&outside).unwrap().count(),
            0,
            "{number}: {error}"
        );
    }
    let tamed = attack(&|a| {
        entry(a, file, "/absolute/file", "", b"x");
        entry(a, file, "./plain", "", b"first");
        entry(a, file, "plain", "", b"second");
        entry(a, EntryType::Symlink, "link", &target, b"");
        entry(a, file, "link", "", b"a file now");
        entry(a, EntryType::Char, "device", "", b"");
    });
    unpack(&world, "/tamed", &tamed).await.unwrap();
    let tamed = world.root().join("tamed");
    assert_eq!(std::fs::read(tamed.join("absolute/file")).unwrap(), b"x");
    assert_eq!(std::fs::read(tamed.join("plain")).unwrap(), b"second");
    assert_eq!(std::fs::read(tamed.join("link")).unwrap(), b"a file now");
    assert!(!tamed.join("device").exists());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn every_cut_of_an_archive_is_an_error_or_a_shorter_archive() {
    let world = World::new();
    tree(&world.root());
    let archive = pack(&world, "/tree").await.unwrap();
    for cut in (0..archive.len()).step_by(40_123) {
        // Whichever it is, the agent goes on.
        drop(unpack(&world, "/cut", &archive[..cut]).await);
    }
    unpack(&world, "/cut", &archive).await.unwrap();
}
