//! A file of the host that a disk is made of: its bytes, and what tells whether two disks share it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::Error;

/// Which file of the host, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

/// An open base or layer.
pub struct DiskFile {
    path: PathBuf,
    file: File,
    pub id: FileId,
    /// Its length when it was opened; it does not change.
    pub bytes: u64,
}

impl DiskFile {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |error| Error::file(path, error);
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let id = FileId { device: metadata.dev(), inode: metadata.ino() };
        Ok(Self { path: path.to_owned(), file, id, bytes: metadata.len() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads bytes; what lies beyond the end is zeros.
    pub fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<(), Error> {
        while !buffer.is_empty() {
            match self.file.read_at(buffer, offset) {
                Ok(0) => {
                    buffer.fill(0);
                    break;
                }
                Ok(count) => {
                    offset = offset.saturating_add(count as u64);
                    buffer = &mut buffer[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::file(&self.path, error)),
            }
        }
        Ok(())
    }
}
