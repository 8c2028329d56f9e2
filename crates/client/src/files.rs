//! Files inside a sandbox, streamed both ways.

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http::Method;
use http::header::RANGE;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyDataStream, StreamBody};
use hyper::body::Frame;
use pinfold_types::api::{
    FileInfo, FileList, FileWritten, MakeDirectoryRequest, RenameRequest, Unpacked,
};

use crate::client::Client;
use crate::error::{Cause, ClientError};
use crate::query::Target;
use crate::transport::{Body, Call};

type Result<T, E = ClientError> = std::result::Result<T, E>;

/// Content of a file or an archive; dropping it ends the transfer.
///
/// An error item means that the content before it is not all of it.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// How a file is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Permission bits of a new file; 0644 when absent.
    pub mode: Option<u32>,
    /// Who owns a new file; the sandbox's root when absent.
    pub user: Option<String>,
    /// Make missing parent directories.
    pub parents: bool,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByteRange {
    /// Where it starts.
    pub offset: u64,
    /// How long it is; absent is to the end.
    pub length: Option<u64>,
}

impl ByteRange {
    /// Writes the part as a `Range` header; `None` when it is the whole file.
    fn header(self) -> Option<String> {
        match (self.offset, self.length) {
            (0, None) => None,
            (offset, None) => Some(format!("bytes={offset}-")),
            (offset, Some(length)) => {
                let last = offset.saturating_add(length.max(1) - 1);
                Some(format!("bytes={offset}-{last}"))
            }
        }
    }
}

impl Client {
    /// Streams a file's content.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn read_file(
        &self,
        sandbox: &str,
        path: &str,
        part: ByteRange,
    ) -> Result<ByteStream> {
        if part.length == Some(0) {
            return Ok(futures::stream::empty().boxed());
        }
        let target = Target::sandbox(sandbox, "/files").with("path", path);
        let mut call = Call::new(Method::GET, &target);
        if let Some(range) = part.header() {
            call = call.header(RANGE, &range);
        }
        self.download(call).await
    }

    /// Writes a file from a stream and returns its length; an error item leaves the file as it was.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn write_file(
        &self,
        sandbox: &str,
        path: &str,
        options: &WriteOptions,
        content: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<u64> {
        let mut target = Target::sandbox(sandbox, "/files")
            .with("path", path)
            .flag("parents", options.parents);
        if let Some(mode) = options.mode {
            target = target.with("mode", &format!("{mode:o}"));
        }
        if let Some(user) = &options.user {
            target = target.with("user", user);
        }
        let call = Call::new(Method::PUT, &target)
            .body(upload(content))
            .patient();
        let written: FileWritten = self.transport.fetch(call).await?;
        Ok(written.bytes)
    }

    /// Returns the metadata of a path; with `follow` of what a symbolic link points to.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn stat(&self, sandbox: &str, path: &str, follow: bool) -> Result<FileInfo> {
        let target = Target::sandbox(sandbox, "/files/stat")
            .with("path", path)
            .flag("follow", follow);
        self.get_json(&target).await
    }

    /// Returns one page of a directory: the names after `after`.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn list_directory(
        &self,
        sandbox: &str,
        path: &str,
        after: Option<&str>,
    ) -> Result<FileList> {
        let mut target = Target::sandbox(sandbox, "/files/list").with("path", path);
        if let Some(after) = after {
            target = target.with("after", after);
        }
        self.get_json(&target).await
    }

    /// Makes a directory.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn make_directory(
        &self,
        sandbox: &str,
        request: &MakeDirectoryRequest,
    ) -> Result<()> {
        let target = Target::sandbox(sandbox, "/files/mkdir");
        let call = Call::new(Method::POST, &target).json(request)?;
        self.transport.send(call).await.map(drop)
    }

    /// Renames a file or directory.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn rename(&self, sandbox: &str, request: &RenameRequest) -> Result<()> {
        let target = Target::sandbox(sandbox, "/files/rename");
        let call = Call::new(Method::POST, &target).json(request)?;
        self.transport.send(call).await.map(drop)
    }

    /// Removes a file, or with `recursive` a directory with all that is in it.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn remove_file(&self, sandbox: &str, path: &str, recursive: bool) -> Result<()> {
        let target = Target::sandbox(sandbox, "/files")
            .with("path", path)
            .flag("recursive", recursive);
        // A directory may hold very many files.
        let call = Call::new(Method::DELETE, &target).patient();
        self.transport.send(call).await.map(drop)
    }

    /// Streams a tar archive of a path.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn pack(&self, sandbox: &str, path: &str) -> Result<ByteStream> {
        let target = Target::sandbox(sandbox, "/files/tar").with("path", path);
        self.download(Call::new(Method::GET, &target)).await
    }

    /// Unpacks a tar archive beneath a directory and returns the number of its entries.
    ///
    /// # Errors
    ///
    /// Returns [`ClientError`].
    pub async fn unpack(
        &self,
        sandbox: &str,
        directory: &str,
        archive: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<u64> {
        let target = Target::sandbox(sandbox, "/files/tar").with("path", directory);
        let call = Call::new(Method::PUT, &target)
            .body(upload(archive))
            .patient();
        let unpacked: Unpacked = self.transport.fetch(call).await?;
        Ok(unpacked.entries)
    }

    async fn download(&self, call: Call<'_>) -> Result<ByteStream> {
        let response = self.transport.send(call).await?;
        let content = BodyDataStream::new(response.into_body()).map_err(ClientError::transport);
        Ok(content.boxed())
    }
}

fn upload(content: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Body {
    let frames = content.map_ok(Frame::data).map_err(Cause::from);
    UnsyncBoxBody::new(StreamBody::new(frames))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_written_as_ranges() {
        let header = |offset, length| ByteRange { offset, length }.header();
        assert_eq!(header(0, None), None);
        assert_eq!(header(5, None).as_deref(), Some("bytes=5-"));
        assert_eq!(header(0, Some(1)).as_deref(), Some("bytes=0-0"));
        assert_eq!(
            header(u64::MAX, Some(9)),
            Some(format!("bytes={0}-{0}", u64::MAX))
        );
    }
}
