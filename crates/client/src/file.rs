//! Files inside a sandbox. Content travels as JSON (text or base64, small files) or raw as a
//! stream (any size, memory stays flat).

use bytes::Bytes;
use futures::{Stream, StreamExt};
use nullspace_types::file::{
    FileBatch, FileBatchEntry, FileBatchResult, FileBatchResults, FileContent, FileDownloadUrl, FileExists,
    FileFind, FileInfo, FileListQuery, FileMatch, FilePath, FilePermissions, FileRawQuery, FileRead,
    FileRename, FileReplace, FileReplaced, FileSearch, FileSign, FileUploadUrl, FileWrite,
};
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::error::{Error, Result};
use crate::file_stream::FileStream;
use crate::sandbox::path;
use crate::transport::{Call, Client};

/// The longest answer to a read as JSON; whatever is larger is to be read as a stream.
const READ_ANSWER_MAX: usize = 512 << 20;
/// The longest answer of a search: the server gives 10,000 lines of 4 KiB at most, as JSON.
const FIND_ANSWER_MAX: usize = 512 << 20;

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

    /// Gives a file or directory another name.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_rename(&self, id: &str, request: &FileRename) -> Result<FileInfo> {
        self.json(Call::new(Method::POST, path(id, "/files/rename")?).body(request)?).await
    }

    /// Sets the permission bits of a file or directory.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_permissions(&self, id: &str, request: &FilePermissions) -> Result<()> {
        self.empty(Call::new(Method::POST, path(id, "/files/permissions")?).body(request)?).await
    }

    /// The lines of files that match a pattern.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_find(&self, id: &str, request: &FileFind) -> Result<Vec<FileMatch>> {
        let call = Call::new(Method::POST, path(id, "/files/find")?).body(request)?;
        self.json(call.answer_max(FIND_ANSWER_MAX)).await
    }

    /// The paths whose last part matches a glob.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_search(&self, id: &str, request: &FileSearch) -> Result<Vec<String>> {
        let call = Call::new(Method::POST, path(id, "/files/search")?).body(request)?;
        self.json(call.answer_max(FIND_ANSWER_MAX)).await
    }

    /// Replaces a text in files.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_replace(&self, id: &str, request: &FileReplace) -> Result<FileReplaced> {
        self.json(Call::new(Method::POST, path(id, "/files/replace")?).body(request)?).await
    }

    /// Writes files, each for itself: one that fails does not affect the others. One result for each, in
    /// order.
    ///
    /// # Errors
    /// See [`crate::Error`]; that a file could not be written is not one of them.
    pub async fn file_write_batch(
        &self,
        id: &str,
        files: Vec<(String, Bytes)>,
        user: Option<&str>,
    ) -> Result<Vec<FileBatchResult>> {
        let field = |number: usize| format!("file{number}");
        let count = files.len();
        let (paths, contents): (Vec<_>, Vec<_>) = files.into_iter().unzip();
        let entries = paths.into_iter().enumerate();
        let manifest = FileBatch {
            files: entries.map(|(number, path)| FileBatchEntry { path, field: field(number) }).collect(),
            user: user.map(str::to_owned),
        };
        let manifest = serde_json::to_vec(&manifest)
            .map_err(|error| Error::invalid_request(format!("the manifest is no JSON: {error}")))?;
        let mut form = Form::new().part("manifest", part(manifest, "manifest.json", "application/json")?);
        for (number, content) in contents.into_iter().enumerate() {
            let name = format!("{}.bin", field(number));
            form = form.part(field(number), part(content, &name, "application/octet-stream")?);
        }
        let call = Call::new(Method::POST, path(id, "/files/batch-write")?).answer_max(READ_ANSWER_MAX);
        let FileBatchResults { results } = self.form(&call, form).await?;
        if results.len() == count {
            return Ok(results);
        }
        Err(Error::invalid_response(format!("{} results came for {count} files", results.len())))
    }

    /// A URL from which a file can be read without a key, for a while.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_download_url(&self, id: &str, request: &FileSign) -> Result<FileDownloadUrl> {
        self.json(Call::new(Method::POST, path(id, "/files/download-url")?).body(request)?).await
    }

    /// A URL to which a file can be written without a key, for a while.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn file_upload_url(&self, id: &str, request: &FileSign) -> Result<FileUploadUrl> {
        self.json(Call::new(Method::POST, path(id, "/files/upload-url")?).body(request)?).await
    }

    /// The bytes of a file, as they arrive. A connection that breaks is made again and goes on where it
    /// broke, as long as the file is the same.
    ///
    /// # Errors
    /// See [`crate::Error`]; the stream itself ends with an error when the connection cannot be made
    /// again, and with `source_conflict` when the file has changed meanwhile.
    pub async fn file_read_raw(&self, id: &str, query: &FileRawQuery) -> Result<FileStream> {
        FileStream::open(self, Call::new(Method::GET, path(id, "/file")?).query(query)?).await
    }

    /// Writes the bytes of a file to `target`, and answers how many. `progress` hears how many have come,
    /// and how many there are, if the server said.
    ///
    /// # Errors
    /// As [`Client::file_read_raw`]; `local_error` when `target` does not take them.
    pub async fn file_download(
        &self,
        id: &str,
        query: &FileRawQuery,
        target: &mut (impl AsyncWrite + Unpin),
        mut progress: impl FnMut(u64, Option<u64>),
    ) -> Result<u64> {
        let failed = |error: std::io::Error| Error::local("write what was downloaded", &error);
        let mut stream = self.file_read_raw(id, query).await?;
        let length = stream.length();
        let mut written = 0;
        progress(written, length);
        while let Some(chunk) = stream.next().await.transpose()? {
            target.write_all(&chunk).await.map_err(failed)?;
            written += chunk.len() as u64;
            progress(written, length);
        }
        target.flush().await.map_err(failed)?;
        Ok(written)
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
        self.upload(&call, content, |_| {}).await.map(drop)
    }
}

fn part(content: impl Into<Bytes>, name: &str, media_type: &str) -> Result<Part> {
    let content: Bytes = content.into();
    let length = content.len() as u64;
    Part::stream_with_length(content, length)
        .file_name(name.to_owned())
        .mime_str(media_type)
        .map_err(|error| Error::invalid_request(error.to_string()))
}
