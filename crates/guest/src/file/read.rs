//! Reading a file, piece by piece.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nullspace_guest_proto as pb;
use tonic::Status;

use super::{SMALL_BYTES, modified_ns, open_to_read, status};

/// A piece of what is not small: each costs a message, and threads take turns.
const LARGE_CHUNK_BYTES: usize = 256 << 10;

/// Which part of a file, in bytes.
#[derive(Clone, Copy)]
pub enum Range {
    /// From an offset on. Length 0: to the end as it is now.
    From { offset: u64, length: u64 },
    /// The last so many.
    Last(u64),
}

/// A file being read.
pub struct Reader {
    file: File,
    path: PathBuf,
    offset: u64,
    left: u64,
    chunk_bytes: usize,
    buffer: BytesMut,
    /// Of the whole file; told once.
    head: Option<Head>,
}

struct Head {
    size: u64,
    modified_ns: i64,
}

impl Reader {
    /// Opens a regular file.
    pub fn open(path: &Path, range: Range) -> Result<Self, Status> {
        crate::path::refuse_reserved_links(path)?;
        let file = open_to_read(path, 0)
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
        let head = Head { size: metadata.len(), modified_ns: modified_ns(&metadata) };
        let mut reader = Self {
            file,
            path: path.into(),
            offset: 0,
            left: 0,
            chunk_bytes: pb::CHUNK_BYTES,
            buffer: BytesMut::new(),
            head: None,
        };
        let (offset, length) = match range {
            Range::From { offset, length } => (offset, if length == 0 { u64::MAX } else { length }),
            Range::Last(length) => {
                let size = if head.size == 0 { reader.measure()? } else { head.size };
                (size.saturating_sub(length), length)
            }
        };
        // Files of /proc have no size until they are read.
        let end = if head.size == 0 { u64::MAX } else { head.size };
        reader.offset = offset;
        reader.left = end.saturating_sub(offset).min(length);
        if head.size != 0 && reader.left > SMALL_BYTES {
            reader.chunk_bytes = LARGE_CHUNK_BYTES;
            // Advice; a file system need not take it.
            let _ = posix_fadvise(&reader.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
        }
        reader.head = Some(head);
        Ok(reader)
    }

    /// Whether all of it may be read on the agent's thread.
    pub fn is_small(&self) -> bool {
        self.left <= SMALL_BYTES || self.head.as_ref().is_some_and(|head| head.size == 0)
    }

    /// The file and what is to be sent of it, where that is worth a lane of its own: offset, bytes, and the
    /// chunk that tells of the file.
    pub fn into_bulk(self) -> Result<(File, u64, u64, pb::FileChunk), Self> {
        match self.head {
            Some(Head { size, modified_ns }) if size != 0 && self.left >= pb::BULK_FROM_BYTES => {
                let chunk = pb::FileChunk { size, modified_ns, ..Default::default() };
                Ok((self.file, self.offset, self.left, chunk))
            }
            _ => Err(self),
        }
    }

    /// Finds out how long a file is that has no size.
    fn measure(&mut self) -> Result<u64, Status> {
        let mut size = 0;
        loop {
            self.buffer.clear();
            match self.read(self.chunk_bytes, size)? {
                0 => return Ok(size),
                len => size += len as u64,
            }
            if size > SMALL_BYTES {
                return Err(Status::invalid_argument(format!(
                    "{} tells no size, and has more than {SMALL_BYTES} bytes; its end cannot be read alone",
                    self.path.display()
                )));
            }
        }
    }

    /// Reads once into the buffer, which grows. 0: there is no more now.
    fn read(&mut self, wanted: usize, offset: u64) -> Result<usize, Status> {
        loop {
            match read_at(&self.file, &mut self.buffer, wanted, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A file that waits for news has no more for now.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                other => return other.map_err(|error| status(&error, &self.path)),
            }
        }
    }
}

impl Iterator for Reader {
    type Item = Result<pb::FileChunk, Status>;

    /// The first chunk comes even if it is empty, and tells of the whole file.
    fn next(&mut self) -> Option<Self::Item> {
        let head = self.head.take();
        if head.is_none() && self.left == 0 {
            return None;
        }
        self.buffer.clear();
        while self.left > 0 && self.buffer.len() < self.chunk_bytes {
            let wanted = self.left.min((self.chunk_bytes - self.buffer.len()) as u64) as usize;
            match self.read(wanted, self.offset) {
                Ok(0) => self.left = 0,
                Ok(len) => {
                    self.offset += len as u64;
                    self.left -= len as u64;
                }
                Err(error) => {
                    self.left = 0;
                    return Some(Err(error));
                }
            }
        }
        let data = self.buffer.split().freeze();
        match head {
            Some(Head { size, modified_ns }) => {
                // One without a size is as long as what was read of it, if that was to its end.
                let read_to_end = size == 0 && self.left == 0 && !data.is_empty();
                let size = if read_to_end { self.offset } else { size };
                Some(Ok(pb::FileChunk { data, size, modified_ns, ..Default::default() }))
            }
            None if data.is_empty() => None,
            None => Some(Ok(pb::FileChunk { data, ..Default::default() })),
        }
    }
}

/// Reads at most `wanted` bytes onto the end of `buffer`, into memory that nobody has to clear first.
#[allow(unsafe_code)]
fn read_at(file: &File, buffer: &mut BytesMut, wanted: usize, offset: u64) -> io::Result<usize> {
    buffer.reserve(wanted);
    let spare = buffer.spare_capacity_mut();
    let offset = libc::off_t::try_from(offset).unwrap_or(libc::off_t::MAX);
    // SAFETY: `reserve` made room for `wanted` bytes behind that address, which nobody else uses.
    let read = unsafe { libc::pread(file.as_raw_fd(), spare.as_mut_ptr().cast(), wanted, offset) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has written so many bytes there.
    unsafe { buffer.set_len(buffer.len() + read) };
    Ok(read)
}

fn not_a_file(path: &Path, kind: &str) -> Status {
    Status::invalid_argument(format!("{} is {kind}; only files can be read", path.display()))
}
