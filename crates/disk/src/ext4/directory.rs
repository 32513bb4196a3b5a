//! A directory's entries.
//!
//! They are read in a row, whether or not the directory has a tree of hashes: that lies in entries that are
//! unused.

use super::inode::Inode;
use super::{FileSystem, Mapping};
use crate::Error;
use crate::field::{le16, le32};

const HEADER_BYTES: usize = 8;

/// A file's name in a directory, and its inode.
pub type Entry = (Vec<u8>, u32);

/// Walks a directory, a block at a time.
pub struct Entries<'f, 'a> {
    mapping: Mapping<'f, 'a>,
    inode: u32,
    size: u64,
    /// Where the next block begins.
    at: u64,
    block: Vec<u8>,
}

impl<'f, 'a> Entries<'f, 'a> {
    pub fn new(file_system: &'f FileSystem<'a>, inode: &Inode) -> Result<Self, Error> {
        let mapping = Mapping::new(file_system, inode)?;
        let block = vec![0; file_system.block_bytes() as usize];
        Ok(Self { mapping, inode: inode.number, size: inode.size, at: 0, block })
    }

    /// The entries of the next block, without `.` and `..`.
    pub fn next_block(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        if self.at >= self.size {
            return Ok(None);
        }
        let mut read = 0;
        while read < self.block.len() {
            let piece = self.mapping.piece(self.at + read as u64, (self.block.len() - read) as u64)?;
            let end = read + piece.bytes as usize;
            piece.read(&mut self.block[read..end])?;
            read = end;
        }
        self.at += read as u64;
        let mut entries = Vec::new();
        let mut rest = self.block.as_slice();
        while !rest.is_empty() {
            let (length, name) = (usize::from(le16(rest, 4)), usize::from(le16(rest, 6) & 0xff));
            if length < HEADER_BYTES + name || !length.is_multiple_of(4) || length > rest.len() {
                return Err(self.broken("an entry is broken"));
            }
            match (le32(rest, 0), &rest[HEADER_BYTES..][..name]) {
                (0, _) | (_, b"." | b"..") => {}
                (_, []) => return Err(self.broken("a name is empty")),
                (_, name) if name.iter().any(|byte| matches!(byte, b'/' | 0)) => {
                    return Err(self.broken("a name has a byte that no name can have"));
                }
                (inode, name) => entries.push((name.to_vec(), inode)),
            }
            rest = &rest[length..];
        }
        Ok(Some(entries))
    }

    fn broken(&self, reason: &str) -> Error {
        Error::file_system(format!("directory {}: {reason}", self.inode))
    }
}
