//! Files inside a sandbox. Content travels as JSON (text or base64, small files) or raw as a
//! stream (any size, memory stays flat).

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use nullspace_types::file::{
    FileContent, FileExists, FileInfo, FileListQuery, FilePath, FileRawQuery, FileRead, FileWrite,
};
use reqwest::Method;

use crate::error::Result;
use crate::sandbox::path;
use crate::transport::{Call, Client};

/// The longest answer to a read as JSON; whatever is larger is to be read as a stream.
const READ_ANSWER_MAX: usize = 512 << 20;

/// The content of a file as it arrives.
pub struct FileStream(Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>);

impl Stream for FileStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

impl Client {
    /// What is in a directory.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_list(&self, id: &str, query: &FileListQuery) -> Result<Vec<FileInfo>> {
        self.json(Call::new(Method::GET, path(id, "/files")?).query(query)?).await
    }

    /// The content of a file, as text or base64.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_read(&self, id: &str, request: &FileRead) -> Result<FileContent> {
        let call = Call::new(Method::POST, path(id, "/files/read")?).body(request)?;
        self.json(call.answer_max(READ_ANSWER_MAX)).await
    }

    /// Replaces the content of a file, or makes it.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_write(&self, id: &str, request: &FileWrite) -> Result<FileInfo> {
        self.json(Call::new(Method::POST, path(id, "/files/write")?).body(request)?).await
    }

    /// What a path is.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_info(&self, id: &str, request: &FilePath) -> Result<FileInfo> {
        self.json(Call::new(Method::POST, path(id, "/files/info")?).body(request)?).await
    }

    /// Whether there is anything at a path.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_exists(&self, id: &str, request: &FilePath) -> Result<bool> {
        let call = Call::new(Method::POST, path(id, "/files/exists")?).body(request)?;
        Ok(self.json::<FileExists>(call).await?.exists)
    }

    /// Removes a file, or a directory with all that is in it.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_remove(&self, id: &str, request: &FilePath) -> Result<()> {
        self.empty(Call::new(Method::POST, path(id, "/files/remove")?).body(request)?).await
    }

    /// Makes a directory, and those above it.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_mkdir(&self, id: &str, request: &FilePath) -> Result<()> {
        self.empty(Call::new(Method::POST, path(id, "/files/mkdir")?).body(request)?).await
    }

    /// The bytes of a file, as they arrive.
    ///
    /// # Errors
    /// See [`crate::Error`]; the stream itself ends with an error when the connection breaks.
    pub async fn file_read_raw(&self, id: &str, query: &FileRawQuery) -> Result<FileStream> {
        let stream = self.stream(Call::new(Method::GET, path(id, "/file")?).query(query)?).await?;
        Ok(FileStream(Box::pin(stream)))
    }

    /// Replaces the content of a file by what a stream gives. Never repeated: the stream can be
    /// read once.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_write_raw<S>(&self, id: &str, query: &FileRawQuery, content: S) -> Result<()>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let call = Call::new(Method::PUT, path(id, "/file")?).query(query)?;
        self.upload(call, reqwest::Body::wrap_stream(content)).await
    }
}
