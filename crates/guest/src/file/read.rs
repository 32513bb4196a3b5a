//! Reading a file, piece by piece.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nullspace_guest_proto as pb;
use tonic::Status;

use super::{SMALL_BYTES, status};

/// A file being read.
pub struct Reader {
    file: File,
    path: PathBuf,
    offset: u64,
    left: u64,
    /// Of the whole file; told once.
    size: Option<u64>,
}

impl Reader {
    /// Opens a regular file. `length` 0: to the end as it is now.
    pub fn open(path: &Path, offset: u64, length: u64) -> Result<Self, Status> {
        crate::path::refuse_reserved_links(path)?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            // A socket cannot be opened at all.
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENXIO) => not_a_file(path, "a socket or a device"),
                _ => status(&error, path),
            })?;
        let metadata = file.metadata().map_err(|error| status(&error, path))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(Status::invalid_argument(format!("{} is a directory", path.display())));
        }
        if !kind.is_file() {
            return Err(not_a_file(path, if kind.is_fifo() { "a named pipe" } else { "a device" }));
        }
        // Files of /proc have no size until they are read.
        let size = metadata.len();
        let end = if size == 0 { u64::MAX } else { size };
        let left = end.saturating_sub(offset).min(if length == 0 { u64::MAX } else { length });
        Ok(Self { file, path: path.into(), offset, left, size: Some(size) })
    }

    /// Whether all of it may be read on the agent's thread.
    pub fn is_small(&self) -> bool {
        self.left <= SMALL_BYTES || self.size == Some(0)
    }
}

impl Iterator for Reader {
    type Item = Result<pb::FileChunk, Status>;

    /// The first chunk comes even if it is empty, and tells the size.
    fn next(&mut self) -> Option<Self::Item> {
        let first = self.size.take();
        if first.is_none() && self.left == 0 {
            return None;
        }
        let mut data = vec![0; self.left.min(pb::CHUNK_BYTES as u64) as usize];
        let mut filled = 0;
        while filled < data.len() {
            match self.file.read_at(&mut data[filled..], self.offset) {
                Ok(0) => break,
                Ok(len) => {
                    filled += len;
                    self.offset += len as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A file that waits for news has no more for now.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.left = 0;
                    return Some(Err(status(&error, &self.path)));
                }
            }
        }
        let ended = filled < data.len();
        data.truncate(filled);
        self.left = if ended { 0 } else { self.left - filled as u64 };
        let size = match first {
            Some(0) if ended => self.offset,
            Some(size) => size,
            None => 0,
        };
        if data.is_empty() && first.is_none() {
            return None;
        }
        Some(Ok(pb::FileChunk { data: Bytes::from(data), size }))
    }
}

fn not_a_file(path: &Path, kind: &str) -> Status {
    Status::invalid_argument(format!("{} is {kind}; only files can be read", path.display()))
}
