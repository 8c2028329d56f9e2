//! Files: every operation, on what is there and on what tries to lead elsewhere.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use connectrpc::{ConnectError, ErrorCode};
use futures::stream;
use pinfold_agent_api::v1::{
    FileInfo, FileKind, ListDirectoryRequest, MakeDirectoryRequest, ReadFileRequest, RemoveRequest,
    RenameRequest, StatRequest, WatchRequest, WriteFileRequest,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::world::{World, eventually};

async fn stat(world: &World, path: &str, follow: bool) -> Result<FileInfo, ConnectError> {
    let request = StatRequest {
        path: path.to_owned(),
        follow,
        ..StatRequest::default()
    };
    let response = world.file.stat(request).await?;
    Ok(response.into_owned().info.as_option().unwrap().clone())
}

async fn read(
    world: &World,
    path: &str,
    offset: u64,
    length: u64,
) -> Result<Vec<u8>, ConnectError> {
    let request = ReadFileRequest {
        path: path.to_owned(),
        offset,
        length,
        ..ReadFileRequest::default()
    };
    let mut chunks = world.file.read_file(request).await?;
    let mut content = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        content.extend_from_slice(chunk.view().data);
    }
    match chunks.error() {
        Some(error) => Err(error.clone()),
        None => Ok(content),
    }
}

async fn write(
    world: &World,
    first: WriteFileRequest,
    rest: &[&[u8]],
) -> Result<u64, ConnectError> {
    let rest = rest.iter().map(|data| WriteFileRequest {
        data: data.to_vec(),
        ..WriteFileRequest::default()
    });
    let messages: Vec<_> = std::iter::once(first).chain(rest).collect();
    let response = world.file.write_file(stream::iter(messages)).await?;
    Ok(response.view().written)
}

fn to(path: &str) -> WriteFileRequest {
    WriteFileRequest {
        path: path.to_owned(),
        ..WriteFileRequest::default()
    }
}

async fn list(world: &World, path: &str, after: &str, limit: u32) -> (Vec<FileInfo>, bool) {
    let request = ListDirectoryRequest {
        path: path.to_owned(),
        after: after.to_owned(),
        limit,
        ..ListDirectoryRequest::default()
    };
    let page = world
        .file
        .list_directory(request)
        .await
        .unwrap()
        .into_owned();
    (page.entries, page.more)
}

async fn remove(
    world: &World,
    path: &str,
    recursive: bool,
    missing_ok: bool,
) -> Result<(), ConnectError> {
    let request = RemoveRequest {
        path: path.to_owned(),
        recursive,
        missing_ok,
        ..RemoveRequest::default()
    };
    world.file.remove(request).await.map(drop)
}

async fn make_directory(world: &World, path: &str, parents: bool) -> Result<(), ConnectError> {
    let request = MakeDirectoryRequest {
        path: path.to_owned(),
        parents,
        ..MakeDirectoryRequest::default()
    };
    world.file.make_directory(request).await.map(drop)
}

fn code<T: std::fmt::Debug>(result: Result<T, ConnectError>) -> ErrorCode {
    result.unwrap_err().code
}

fn mkfifo(path: &std::path::Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
}

#[tokio::test]
async fn files_are_described() {
    let world = World::new();
    std::fs::write(world.root().join("file"), "12345").unwrap();
    std::fs::set_permissions(
        world.root().join("file"),
        std::fs::Permissions::from_mode(0o4751),
    )
    .unwrap();
    symlink("file", world.root().join("link")).unwrap();
    mkfifo(&world.root().join("fifo"));
    let file = stat(&world, "/file", false).await.unwrap();
    assert_eq!(
        (file.name.as_str(), file.size, file.mode),
        ("file", 5, 0o4751)
    );
    assert_eq!(file.kind, FileKind::FILE_KIND_FILE);
    assert!(file.modified_ms > 1_500_000_000_000);
    let link = stat(&world, "/link", false).await.unwrap();
    assert_eq!(link.kind, FileKind::FILE_KIND_SYMLINK);
    assert_eq!(link.link_target, "file");
    let followed = stat(&world, "/link", true).await.unwrap();
    assert_eq!((followed.kind, followed.size), (file.kind, 5));
    let fifo = stat(&world, "/fifo", true).await.unwrap();
    assert_eq!(fifo.kind, FileKind::FILE_KIND_FIFO);
    let root = stat(&world, "/", true).await.unwrap();
    assert_eq!(root.kind, FileKind::FILE_KIND_DIRECTORY);
    assert_eq!(
        code(stat(&world, "/nothing", true).await),
        ErrorCode::NotFound
    );
    assert_eq!(
        code(stat(&world, "file", true).await),
        ErrorCode::InvalidArgument
    );
    let long = format!("/{}", "x".repeat(5000));
    assert_eq!(
        code(stat(&world, &long, true).await),
        ErrorCode::InvalidArgument
    );
}

#[tokio::test]
async fn directories_are_listed_in_order_and_in_pages() {
    let world = World::new();
    std::fs::create_dir(world.root().join("d")).unwrap();
    for number in 0..2500 {
        std::fs::write(world.root().join(format!("d/{number:04}")), "").unwrap();
    }
    let mut names: Vec<String> = Vec::new();
    let mut pages = 0;
    loop {
        let after = names.last().cloned().unwrap_or_default();
        let (entries, more) = list(&world, "/d", &after, 0).await;
        names.extend(entries.into_iter().map(|entry| entry.name));
        pages += 1;
        if !more {
            break;
        }
    }
    assert_eq!(pages, 3);
    let expected: Vec<_> = (0..2500).map(|number| format!("{number:04}")).collect();
    assert_eq!(names, expected);
    let (entries, more) = list(&world, "/d", "2498", 1).await;
    assert_eq!((entries.len(), more), (1, false));
    let (entries, more) = list(&world, "/d", "2497", 1).await;
    assert_eq!((entries[0].name.as_str(), more), ("2498", true));
}

#[tokio::test]
async fn parts_of_regular_files_are_read() {
    let world = World::new();
    let content: Vec<u8> = (0..1_000_000_u32)
        .map(|number| number.to_le_bytes()[0])
        .collect();
    std::fs::write(world.root().join("file"), &content).unwrap();
    assert_eq!(read(&world, "/file", 0, 0).await.unwrap(), content);
    assert_eq!(
        read(&world, "/file", 999_990, 0).await.unwrap(),
        content[999_990..]
    );
    assert_eq!(read(&world, "/file", 5, 10).await.unwrap(), content[5..15]);
    assert!(
        read(&world, "/file", 5_000_000, 10)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        read(&world, "/file", u64::MAX, 1)
            .await
            .map_or(0, |data| data.len()),
        0
    );
    mkfifo(&world.root().join("fifo"));
    assert_eq!(
        code(read(&world, "/fifo", 0, 0).await),
        ErrorCode::InvalidArgument
    );
    assert_eq!(
        code(read(&world, "/", 0, 0).await),
        ErrorCode::FailedPrecondition
    );
    assert_eq!(
        code(read(&world, "/nothing", 0, 0).await),
        ErrorCode::NotFound
    );
}

#[tokio::test]
async fn links_lead_nowhere_outside() {
    let world = World::new();
    let outside = world.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, world.root().join("absolute")).unwrap();
    symlink("../outside", world.root().join("relative")).unwrap();
    symlink("../outside/secret", world.root().join("file")).unwrap();
    for path in [
        "/absolute/secret",
        "/relative/secret",
        "/../outside/secret",
        "/file",
    ] {
        assert_eq!(
            code(read(&world, path, 0, 0).await),
            ErrorCode::NotFound,
            "{path}"
        );
        assert!(write(&world, to(path), &[b"x"]).await.is_err(), "{path}");
        assert!(
            matches!(remove(&world, path, true, true).await, Ok(())),
            "{path}"
        );
    }
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
}

#[tokio::test]
async fn a_replaced_file_keeps_its_mode_and_its_name_until_all_is_there() {
    let world = World::new();
    let path = world.root().join("file");
    let written = write(&world, to("/file"), &[b"one", b"", b"two"])
        .await
        .unwrap();
    assert_eq!(written, 6);
    assert_eq!(std::fs::read(&path).unwrap(), b"onetwo");
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o644);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
    let inode = path.metadata().unwrap().ino();
    symlink("file", world.root().join("link")).unwrap();
    let first = WriteFileRequest {
        mode: 0o600,
        data: b"first".to_vec(),
        ..to("/link")
    };
    write(&world, first, &[]).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"first");
    let now = path.metadata().unwrap();
    assert_eq!(now.mode() & 0o7777, 0o750);
    assert_ne!(now.ino(), inode);
    assert!(world.root().join("link").is_symlink());
    // A call that breaks off changes nothing and leaves nothing.
    let messages = stream::unfold(0, |step| async move {
        match step {
            0 => Some((
                WriteFileRequest {
                    data: b"half".to_vec(),
                    ..to("/file")
                },
                1,
            )),
            _ => std::future::pending().await,
        }
    });
    let given_up = tokio::time::timeout(
        std::time::Duration::from_millis(200),
        world.file.write_file(messages),
    );
    assert!(given_up.await.is_err());
    eventually("the temporary file's end", || {
        std::fs::read_dir(world.root()).unwrap().count() == 2
    })
    .await;
    assert_eq!(std::fs::read(&path).unwrap(), b"first");
}

#[tokio::test]
async fn a_file_is_written_in_place() {
    let world = World::new();
    let path = world.root().join("file");
    std::fs::write(&path, "0123456789").unwrap();
    let inode = path.metadata().unwrap().ino();
    let request = WriteFileRequest {
        in_place: true,
        offset: 8,
        ..to("/file")
    };
    write(&world, request, &[b"abc", b"d"]).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"01234567abcd");
    assert_eq!(path.metadata().unwrap().ino(), inode);
    let beyond = WriteFileRequest {
        in_place: true,
        offset: u64::MAX,
        ..to("/file")
    };
    assert!(write(&world, beyond, &[b"abc"]).await.is_err());
    mkfifo(&world.root().join("fifo"));
    for in_place in [false, true] {
        let fifo = WriteFileRequest {
            in_place,
            ..to("/fifo")
        };
        assert!(write(&world, fifo, &[b"x"]).await.is_err());
        let missing = WriteFileRequest {
            in_place,
            ..to("/no/file")
        };
        assert_eq!(
            code(write(&world, missing, &[b"x"]).await),
            ErrorCode::NotFound
        );
        let made = WriteFileRequest {
            in_place,
            make_parents: true,
            mode: 0o700,
            ..to(&format!("/a/{in_place}/file"))
        };
        assert_eq!(write(&world, made, &[b"x"]).await.unwrap(), 1);
        let found = world
            .root()
            .join(format!("a/{in_place}/file"))
            .metadata()
            .unwrap()
            .mode();
        assert_eq!(found & 0o7777, 0o700);
    }
}

#[tokio::test]
async fn directories_are_made_renamed_and_removed() {
    let world = World::new();
    make_directory(&world, "/a", false).await.unwrap();
    assert_eq!(
        code(make_directory(&world, "/a", false).await),
        ErrorCode::AlreadyExists
    );
    make_directory(&world, "/a", true).await.unwrap();
    assert_eq!(
        code(make_directory(&world, "/b/c", false).await),
        ErrorCode::NotFound
    );
    make_directory(&world, "/b/c/d", true).await.unwrap();
    std::fs::write(world.root().join("b/c/d/file"), "").unwrap();
    assert!(make_directory(&world, "/b/c/d/file/x", true).await.is_err());
    let rename = |from: &str, to: &str| {
        world.file.rename(RenameRequest {
            from: from.to_owned(),
            to: to.to_owned(),
            ..RenameRequest::default()
        })
    };
    rename("/b/c", "/a/moved").await.unwrap();
    assert!(world.root().join("a/moved/d/file").exists());
    assert_eq!(
        code(rename("/nothing", "/x").await.map(drop)),
        ErrorCode::NotFound
    );
    assert_eq!(
        code(remove(&world, "/a", false, false).await),
        ErrorCode::FailedPrecondition
    );
    assert_eq!(
        code(remove(&world, "/x", false, false).await),
        ErrorCode::NotFound
    );
    remove(&world, "/x", true, true).await.unwrap();
    remove(&world, "/b", false, false).await.unwrap();
    remove(&world, "/a", true, false).await.unwrap();
    assert_eq!(std::fs::read_dir(world.root()).unwrap().count(), 0);
    for path in ["/", "/..", "/.", ""] {
        assert_eq!(
            code(remove(&world, path, true, true).await),
            ErrorCode::InvalidArgument,
            "{path}"
        );
    }
}

#[tokio::test]
async fn changes_are_watched() {
    let world = World::new();
    std::fs::create_dir(world.root().join("sub")).unwrap();
    let request = |path: &str, recursive| WatchRequest {
        path: path.to_owned(),
        recursive,
        ..WatchRequest::default()
    };
    let mut deep = world.file.watch(request("/", true)).await.unwrap();
    let mut flat = world.file.watch(request("/", false)).await.unwrap();
    // The answer begins before the watch is asked for its first event, but after it was made.
    std::fs::write(world.root().join("sub/file"), "x").unwrap();
    std::fs::create_dir(world.root().join("new")).unwrap();
    let mut seen = Vec::new();
    loop {
        let event = deep.message().await.unwrap().unwrap().to_owned_message();
        let end = event.mask == (libc::IN_CREATE | libc::IN_ISDIR);
        seen.push((event.directory, event.name, event.mask));
        if end {
            break;
        }
    }
    let expected = |mask| seen.contains(&("/sub".to_owned(), "file".to_owned(), mask));
    assert!(
        expected(libc::IN_CREATE) && expected(libc::IN_CLOSE_WRITE),
        "{seen:?}"
    );
    assert_eq!(seen.last().unwrap().1, "new");
    std::fs::write(world.root().join("new/inner"), "x").unwrap();
    loop {
        let event = deep.message().await.unwrap().unwrap().to_owned_message();
        if event.directory == "/new" && event.name == "inner" {
            break;
        }
    }
    loop {
        let event = flat.message().await.unwrap().unwrap().to_owned_message();
        assert!(event.directory == "/" && event.name != "file");
        if event.name == "new" {
            break;
        }
    }
    let mut missing = world.file.watch(request("/nothing", false)).await.unwrap();
    let error = missing.message().await.err().unwrap();
    assert_eq!(error.code, ErrorCode::NotFound);
}
