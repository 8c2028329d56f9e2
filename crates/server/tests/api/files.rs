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
    let path = "/new/dir/large file+ä";
    let bytes: Vec<u8> = (0..=250).cycle().take(LARGE_BYTES).collect();
    let options = WriteOptions {
        mode: Some(0o600),
        parents: true,
        ..WriteOptions::default()
    };
    let chunks = bytes.chunks(100_000).map(<[u8]>::to_vec).collect();
    let written = client.write_file(name, path, &options, content(chunks));
    assert_eq!(within(written).await.unwrap(), LARGE_BYTES as u64);
    let info = client.stat(name, path, false).await.unwrap();
    assert_eq!((info.size, info.mode & 0o777), (LARGE_BYTES as u64, 0o600));
    let read = async |part| whole(client.read_file(name, path, part).await.unwrap()).await;
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
    let error = client.read_file(name, path, outside).await.err().unwrap();
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
    server.end().await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_the_file_as_it_was() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let (client, name) = (&server.client, sandbox.name.as_str());
    let path = "/uploads/kept";
    let options = WriteOptions {
        parents: true,
        ..WriteOptions::default()
    };
    let old = content(vec![b"old".to_vec()]);
    client.write_file(name, path, &options, old).await.unwrap();
    let broken = content(vec![vec![b'n'; 1 << 20]])
        .chain(futures::stream::iter([Err(io::Error::other("torn"))]));
    let error = client
        .write_file(name, path, &options, broken)
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
    let kept = client.read_file(name, path, ByteRange::default()).await;
    assert_eq!(whole(kept.unwrap()).await, b"old");
    // What was written so far goes once the agent has heard of it.
    within(async {
        loop {
            let list = client.list_directory(name, "/uploads", None).await;
            if list.unwrap().entries.len() == 1 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    server.end().await;
}

#[tokio::test]
async fn directories_are_made_listed_renamed_and_removed() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let (client, name) = (&server.client, sandbox.name.as_str());
    let make = |path: &str, parents| MakeDirectoryRequest {
        path: path.to_owned(),
        mode: Some(0o700),
        parents,
    };
    client
        .make_directory(name, &make("/a/b", true))
        .await
        .unwrap();
    let taken = client
        .make_directory(name, &make("/a/b", false))
        .await
        .unwrap_err();
    assert_eq!(taken.code(), ErrorCode::AlreadyExists, "{taken}");
    for index in 0..1005 {
        let path = format!("/a/b/{index:04}");
        let options = WriteOptions::default();
        let written = client.write_file(name, &path, &options, content(Vec::new()));
        assert_eq!(written.await.unwrap(), 0);
    }
    let first = client.list_directory(name, "/a/b", None).await.unwrap();
    assert_eq!(first.entries.len(), 1000);
    let rest = client
        .list_directory(name, "/a/b", first.next.as_deref())
        .await
        .unwrap();
    assert_eq!((rest.entries.len(), rest.next), (5, None));
    let rename = RenameRequest {
        from: "/a/b".to_owned(),
        to: "/c".to_owned(),
    };
    client.rename(name, &rename).await.unwrap();
    let full = client.remove_file(name, "/c", false).await;
    assert!(full.is_err());
    client.remove_file(name, "/c", true).await.unwrap();
    let gone = client.stat(name, "/c", false).await.unwrap_err();
    assert_eq!(gone.code(), ErrorCode::NotFound, "{gone}");
    let read = client.read_file(name, "/a", ByteRange::default()).await;
    let refused = read.err().unwrap();
    assert_eq!(refused.code(), ErrorCode::InvalidArgument, "{refused}");
    assert!(refused.hint().unwrap().contains("tar"));
    server.end().await;
}

#[tokio::test]
async fn a_tree_is_packed_and_unpacked() {
    let server = Server::with_agent().await;
    let sandbox = server.sandbox().await;
    let (client, name) = (&server.client, sandbox.name.as_str());
    let options = WriteOptions {
        parents: true,
        mode: Some(0o755),
        ..WriteOptions::default()
    };
    let large = content(vec![vec![7; LARGE_BYTES]]);
    client
        .write_file(name, "/from/tree/inner/large", &options, large)
        .await
        .unwrap();
    let to = MakeDirectoryRequest {
        path: "/to".to_owned(),
        mode: None,
        parents: false,
    };
    client.make_directory(name, &to).await.unwrap();
    let archive = client
        .pack(name, "/from/tree")
        .await
        .unwrap()
        .map_err(io::Error::other);
    let entries = within(client.unpack(name, "/to", archive)).await.unwrap();
    assert!(entries >= 2, "{entries}");
    let nested = client.stat(name, "/to/tree", false).await.is_ok();
    let root = if nested { "/to/tree" } else { "/to" };
    let info = client
        .stat(name, &format!("{root}/inner/large"), false)
        .await
        .unwrap();
    assert_eq!((info.size, info.mode & 0o777), (LARGE_BYTES as u64, 0o755));
    let noise = client
        .unpack(name, "/to", content(vec![vec![b'?'; 4096]]))
        .await
        .unwrap_err();
    assert_eq!(noise.code(), ErrorCode::InvalidArgument, "{noise}");
    server.end().await;
}
