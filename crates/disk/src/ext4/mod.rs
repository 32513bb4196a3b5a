//! Reading an ext4 file system, as much of it as telling files apart takes, out of a [`Chain`].
//!
//! A guest's file system was in use when its disk froze: what its journal has and its blocks have not yet is
//! read from there, as a mount would write it back ([`journal`]). Files are found by their inodes; where
//! their bytes lie is told before they are read ([`Piece`]), so that those that two disks share are not read
//! at all. Checksums are not verified: they are for disks that fail, and a guest that lies can make them.
//!
//! Source: Linux, Documentation/filesystems/ext4, fs/ext4/ext4.h.

mod directory;
mod extent;
mod inode;
mod journal;
mod superblock;

use std::cell::RefCell;
use std::rc::Rc;

pub use directory::Entries;
pub use extent::Mapping;
pub use inode::{Inode, Kind};
use journal::Journal;
use superblock::Superblock;

use crate::Error;
use crate::cache::Cache;
use crate::chain::{Chain, Place};
use crate::field::{le32, le64};

/// The root directory's inode.
pub const ROOT: u32 = 2;
/// Blocks that are kept: 16 MiB of them.
const BLOCKS_KEPT: usize = 4096;

/// A file system, open on a disk.
pub struct FileSystem<'a> {
    disk: &'a Chain,
    superblock: Superblock,
    journal: Journal,
    blocks: RefCell<Cache<u64, Rc<[u8]>>>,
}

/// Bytes that lie in a row.
#[derive(Clone, Copy)]
pub struct Piece<'a> {
    place: Place<'a>,
    /// Its first four bytes are not what is read, but the journal's magic number.
    escaped: bool,
    /// How many.
    pub bytes: u64,
}

impl Piece<'_> {
    /// So many bytes of a hole.
    pub fn hole(bytes: u64) -> Self {
        Self { place: Place::Zeros, escaped: false, bytes }
    }

    /// Whether both begin with the same bytes of the same file, or of none.
    pub fn is(&self, other: &Piece<'_>) -> bool {
        self.escaped == other.escaped && self.place.is(&other.place)
    }

    /// Reads its first bytes, not more than it has.
    pub fn read(&self, buffer: &mut [u8]) -> Result<(), Error> {
        self.place.read(buffer)?;
        if self.escaped {
            let magic = journal::MAGIC.to_be_bytes();
            buffer.iter_mut().zip(magic).for_each(|(byte, magic)| *byte = magic);
        }
        Ok(())
    }
}

impl<'a> FileSystem<'a> {
    /// Opens the file system that begins where the disk does.
    pub fn open(disk: &'a Chain) -> Result<Self, Error> {
        let mut block = [0; superblock::BYTES];
        disk.read_at(superblock::AT, &mut block)?;
        let superblock = Superblock::read(&block, disk.len_bytes())?;
        let blocks = RefCell::new(Cache::new(BLOCKS_KEPT));
        let mut this = Self { disk, superblock, journal: Journal::default(), blocks };
        let Some(inode) = this.superblock.journal else { return Ok(this) };
        let journal = Journal::read(&this, inode)?;
        // All that was read until now, the superblock included, may have a newer form in it.
        this.journal = journal;
        this.blocks = RefCell::new(Cache::new(BLOCKS_KEPT));
        let block_bytes = this.block_bytes();
        let newer = this.block(superblock::AT / block_bytes)?;
        let within = (superblock::AT % block_bytes) as usize;
        let superblock = Superblock::read(&newer[within..][..superblock::BYTES], disk.len_bytes())?;
        if superblock.block_bytes != block_bytes {
            return Err(Error::file_system("its journal has blocks of another size"));
        }
        this.superblock = superblock;
        Ok(this)
    }

    pub fn block_bytes(&self) -> u64 {
        self.superblock.block_bytes
    }

    /// How many inodes there may be; their numbers begin at one.
    pub fn inodes(&self) -> u32 {
        self.superblock.inodes
    }

    /// An inode.
    pub fn inode(&self, number: u32) -> Result<Inode, Error> {
        let superblock = &self.superblock;
        if number == 0 || number > superblock.inodes {
            return Err(Error::file_system(format!("there is no inode {number}")));
        }
        let (group, index) =
            ((number - 1) / superblock.inodes_per_group, (number - 1) % superblock.inodes_per_group);
        let at = u64::from(group) * superblock.descriptor_bytes;
        let block = self.block(superblock.first_block + 1 + at / self.block_bytes())?;
        let descriptor = &block[(at % self.block_bytes()) as usize..][..superblock.descriptor_bytes as usize];
        let table = match superblock.descriptor_bytes {
            32 => u64::from(le32(descriptor, 0x08)),
            _ => le64(descriptor, 0x08, 0x28),
        };
        let at = u64::from(index) * superblock.inode_bytes;
        let block = self.block(table.saturating_add(at / self.block_bytes()))?;
        let inode = &block[(at % self.block_bytes()) as usize..][..superblock.inode_bytes as usize];
        Ok(Inode::read(number, inode))
    }

    /// A block, as it is after recovery.
    pub fn block(&self, number: u64) -> Result<Rc<[u8]>, Error> {
        let mut blocks = self.blocks.borrow_mut();
        blocks.get_or(number, || {
            let mut block = vec![0; self.block_bytes() as usize];
            let mut read = 0;
            while read < block.len() {
                let at = number.saturating_mul(self.block_bytes()).saturating_add(read as u64);
                let piece = self.piece(at, (block.len() - read) as u64)?;
                let end = read + piece.bytes as usize;
                piece.read(&mut block[read..end])?;
                read = end;
            }
            Ok(block.into())
        })
    }

    /// Where up to `length` bytes from a byte of the file system on lie after recovery.
    pub fn piece(&self, at: u64, length: u64) -> Result<Piece<'a>, Error> {
        let (block, within) = (at / self.block_bytes(), at % self.block_bytes());
        if block >= self.superblock.blocks {
            return Err(Error::file_system(format!("there is no block {block}")));
        }
        let (copy, blocks) = self.journal.copy_of(block);
        let length = length.min(blocks.saturating_mul(self.block_bytes()) - within);
        let at = copy.map_or(at, |copy| copy.block * self.block_bytes() + within);
        let (place, bytes) = self.disk.place(at, length)?;
        Ok(Piece { place, escaped: within == 0 && copy.is_some_and(|copy| copy.escaped), bytes })
    }
}
