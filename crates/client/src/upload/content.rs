//! What is uploaded: a file of this host, read at any place as often as needed. Reading is off the
//! asynchronous threads and in pieces.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use nullspace_types::upload::{UploadKind, UploadSource};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

const PIECE: usize = 256 << 10;

/// A content that stays as it is until its upload is done. Cheap to clone.
#[derive(Debug, Clone)]
pub struct UploadContent {
    file: Arc<File>,
    length: u64,
    kind: UploadKind,
    source: UploadSource,
    checksum: Option<String>,
}

impl UploadContent {
    /// A regular file as it is. It must not change until the upload is done; if it does the upload is
    /// refused by its checksum.
    ///
    /// # Errors
    /// `local_error` when it cannot be read, `invalid_request` when it is no regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| Error::local(format_args!("read {}", path.display()), &error);
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(Error::invalid_request(format!("{} is no regular file", path.display())));
        }
        Ok(Self::new(file, metadata.len(), UploadKind::File, UploadSource::RestartableFile, None))
    }

    /// What a stream gives, kept in a temporary file that nobody else sees and that is gone with this.
    ///
    /// # Errors
    /// `local_error` when the stream fails or there is no room for it.
    pub async fn spool<S>(stream: S) -> Result<Self>
    where
        S: Stream<Item = io::Result<Bytes>> + Send,
    {
        let mut stream = std::pin::pin!(stream);
        let mut file = tokio::fs::File::from_std(temporary()?);
        let mut length = 0;
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| Error::local("read what is to be uploaded", &error))?;
            let written = tokio::io::AsyncWriteExt::write_all(&mut file, &piece).await;
            written.map_err(|error| spooling(&error))?;
            length += piece.len() as u64;
        }
        tokio::io::AsyncWriteExt::flush(&mut file).await.map_err(|error| spooling(&error))?;
        let file = file.into_std().await;
        Ok(Self::new(file, length, UploadKind::File, UploadSource::SpooledStream, None))
    }

    /// An archive that `write` writes, kept as [`UploadContent::spool`] keeps a stream.
    pub(super) fn archive(write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Self> {
        let file = temporary()?;
        let (length, checksum) = {
            let inner = io::BufWriter::with_capacity(PIECE, &file);
            let mut hashing = Hashing { inner, hash: Sha256::new(), length: 0 };
            write(&mut hashing)?;
            hashing.flush().map_err(|error| spooling(&error))?;
            (hashing.length, Some(hex(&hashing.hash.finalize())))
        };
        Ok(Self::new(file, length, UploadKind::DirectoryTar, UploadSource::DirectoryArchive, checksum))
    }

    fn new(
        file: File,
        length: u64,
        kind: UploadKind,
        source: UploadSource,
        checksum: Option<String>,
    ) -> Self {
        Self { file: Arc::new(file), length, kind, source, checksum }
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// One file, or a packed directory.
    pub fn kind(&self) -> UploadKind {
        self.kind
    }

    /// Where it comes from.
    pub fn source(&self) -> UploadSource {
        self.source
    }

    /// SHA-256 of the whole, as 64 hexadecimal digits, where it is known from the beginning.
    pub fn checksum(&self) -> Option<&str> {
        self.checksum.as_deref()
    }

    /// The bytes `[offset, offset + length)` in pieces. Fewer are an error: then the file has changed.
    pub fn read(&self, offset: u64, length: u64) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let end = offset.saturating_add(length);
        futures::stream::try_unfold((self.file.clone(), offset), move |(file, at)| async move {
            let Some(left) = end.checked_sub(at).filter(|left| *left > 0) else { return Ok(None) };
            let size = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let reading = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; size];
                file.read_exact_at(&mut piece, at).map_err(shortened)?;
                Ok::<_, io::Error>((Bytes::from(piece), file))
            });
            let (piece, file) = reading.await.map_err(io::Error::other)??;
            Ok(Some((piece, (file, at + size as u64))))
        })
    }

    /// SHA-256 of these bytes, as 64 hexadecimal digits.
    pub(super) async fn hash(&self, offset: u64, length: u64) -> Result<String> {
        let file = self.file.clone();
        let hashing = tokio::task::spawn_blocking(move || {
            let mut hash = Sha256::new();
            let mut piece = vec![0; PIECE];
            let mut done = 0;
            while done < length {
                let size = usize::try_from(length - done).unwrap_or(PIECE).min(PIECE);
                file.read_exact_at(&mut piece[..size], offset + done).map_err(shortened)?;
                hash.update(&piece[..size]);
                done += size as u64;
            }
            Ok(hex(&hash.finalize()))
        });
        let hash = hashing.await.map_err(io::Error::other).flatten();
        hash.map_err(|error: io::Error| Error::local("read what is to be uploaded", &error))
    }
}

fn temporary() -> Result<File> {
    tempfile::tempfile().map_err(|error| spooling(&error))
}

pub(super) fn spooling(error: &io::Error) -> Error {
    let directory = std::env::temp_dir();
    Error::local(format_args!("keep what is to be uploaded in {}", directory.display()), error)
        .suggest("make room there, or set TMPDIR to a directory that has more")
}

fn shortened(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("it became shorter while it was read"),
        _ => error,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
    length: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.hash.update(&data[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Copies exactly so many bytes: what changes meanwhile is told, not packed in part.
pub(super) fn copy_exactly(
    from: &mut impl Read,
    to: &mut (impl Write + ?Sized),
    length: u64,
) -> io::Result<()> {
    let copied = io::copy(&mut from.take(length), to)?;
    if copied < length {
        return Err(io::Error::other("it became shorter while it was read"));
    }
    Ok(())
}
