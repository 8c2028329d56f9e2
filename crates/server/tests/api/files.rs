//! Files and archives, both ways.

use std::io;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use pinfold_client::{ByteRange, ByteStream, WriteOptions};
use pinfold_types::ErrorCode;
use pinfold_types::api::{MakeDirectoryRequest, RenameRequest};

use crate::server::{Server, within};

/// Bytes of the large file.
const LARGE_BYTES: usize = 32 << 20;

async fn whole(stream: ByteStream) -> Vec<u8> {
    let chunks: Vec<Bytes> = within(stream.try_collect()).await.unwrap();
    chunks.concat()
}

fn content(chunks: Vec<Vec<u8>>) -> impl futures::Stream<Item = io::Result<Bytes>> + Send {
    futures::stream::iter(chunks.into_iter().map(|chunk| Ok(Bytes::from(chunk))))
}

#[tokio::test]
async fn a_large_file_goes_in_and_comes_out_whole_and_in_parts() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let (client, name) = (&server.client, sandbox.name.as_str());
    let directory = tempfile::tempdir().unwrap();
    let path = directory
        .path()
        .join("new/large file+ä")
        .display()
        .to_string();
    let bytes: Vec<u8> = (0..=250).cycle().take(LARGE_BYTES).collect();
    let options = WriteOptions {
        mode: Some(0o600),
        parents: true,
        ..WriteOptions::default()
    };
    let chunks = bytes.chunks(100_000).map(<[u8]>::to_vec).collect();
    let written = client.write_file(name, &path, &options, content(chunks));
    assert_eq!(within(written).await.unwrap(), LARGE_BYTES as u64);
    let info = client.stat(name, &path, false).await.unwrap();
    assert_eq!((info.size, info.mode & 0o777), (LARGE_BYTES as u64, 0o600));
    let read = async |part| whole(client.read_file(name, &path, part).await.unwrap()).await;
    assert!(read(ByteRange::default()).await == bytes);
    let part = ByteRange {
        offset: 1000,
        length: Some(5),
    };
    assert_eq!(read(part).await, bytes[1000..1005]);
    let tail = ByteRange {
        offset: LARGE_BYTES as u64 - 3,
        length: None,
    };
    assert_eq!(read(tail).await, bytes[LARGE_BYTES - 3..]);
    let outside = ByteRange {
        offset: LARGE_BYTES as u64,
        length: None,
    };
    let error = client.read_file(name, &path, outside).await.err().unwrap();
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
    server.end().await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_the_file_as_it_was() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let (client, name) = (&server.client, sandbox.name.as_str());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kept").display().to_string();
    let options = WriteOptions::default();
    let old = content(vec![b"old".to_vec()]);
    client.write_file(name, &path, &options, old).await.unwrap();
    let broken = content(vec![vec![b'n'; 1 << 20]])
        .chain(futures::stream::iter([Err(io::Error::other("torn"))]));
    let error = client
        .write_file(name, &path, &options, broken)
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
    let kept = client.read_file(name, &path, ByteRange::default()).await;
    assert_eq!(whole(kept.unwrap()).await, b"old");
    let names = || {
        std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    within(async {
        while names().len() > 1 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(names(), ["kept"]);
    server.end().await;
}

#[tokio::test]
async fn directories_are_made_listed_renamed_and_removed() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let (client, name) = (&server.client, sandbox.name.as_str());
    let directory = tempfile::tempdir().unwrap();
    let path = |below: &str| directory.path().join(below).display().to_string();
    let make = |below: &str, parents| MakeDirectoryRequest {
        path: path(below),
        mode: Some(0o700),
        parents,
    };
    client
        .make_directory(name, &make("a/b", true))
        .await
        .unwrap();
    let taken = client
        .make_directory(name, &make("a/b", false))
        .await
        .unwrap_err();
    assert_eq!(taken.code(), ErrorCode::AlreadyExists, "{taken}");
    for index in 0..1005 {
        std::fs::write(path(&format!("a/b/{index:04}")), "").unwrap();
    }
    let first = client.list_directory(name, &path("a/b"), None).await;
    let first = first.unwrap();
    assert_eq!(first.entries.len(), 1000);
    let rest = client
        .list_directory(name, &path("a/b"), first.next.as_deref())
        .await
        .unwrap();
    assert_eq!((rest.entries.len(), rest.next), (5, None));
    let rename = RenameRequest {
        from: path("a/b"),
        to: path("c"),
    };
    client.rename(name, &rename).await.unwrap();
    let full = client.remove_file(name, &path("c"), false).await;
    assert!(full.is_err());
    client.remove_file(name, &path("c"), true).await.unwrap();
    let gone = client.stat(name, &path("c"), false).await.unwrap_err();
    assert_eq!(gone.code(), ErrorCode::NotFound, "{gone}");
    let a_directory = path("a");
    let read = client.read_file(name, &a_directory, ByteRange::default());
    let refused = read.await.err().unwrap();
    assert_eq!(refused.code(), ErrorCode::InvalidArgument, "{refused}");
    assert!(refused.hint().unwrap().contains("tar"));
    server.end().await;
}

#[tokio::test]
async fn a_tree_is_packed_and_unpacked() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let (client, name) = (&server.client, sandbox.name.as_str());
    let directory = tempfile::tempdir().unwrap();
    let path = |below: &str| directory.path().join(below);
    std::fs::create_dir_all(path("from/tree/inner")).unwrap();
    std::fs::create_dir(path("to")).unwrap();
    std::fs::write(path("from/tree/inner/large"), vec![7; LARGE_BYTES]).unwrap();
    std::os::unix::fs::symlink("inner/large", path("from/tree/link")).unwrap();
    let archive = client
        .pack(name, &path("from/tree").display().to_string())
        .await
        .unwrap()
        .map_err(io::Error::other);
    let entries = client
        .unpack(name, &path("to").display().to_string(), archive)
        .await
        .unwrap();
    assert!(entries >= 3, "{entries}");
    let found = |below: &str| std::fs::exists(path("to").join(below)).unwrap();
    let root = if found("tree") { "to/tree" } else { "to" };
    assert_eq!(
        std::fs::metadata(path(root).join("inner/large"))
            .unwrap()
            .len(),
        LARGE_BYTES as u64
    );
    assert!(path(root).join("link").is_symlink());
    let noise = client
        .unpack(
            name,
            &path("to").display().to_string(),
            content(vec![vec![b'?'; 4096]]),
        )
        .await
        .unwrap_err();
    assert_eq!(noise.code(), ErrorCode::InvalidArgument, "{noise}");
    server.end().await;
}
