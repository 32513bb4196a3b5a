//! The journal: which blocks have a newer form in it, found as the kernel finds them when it mounts.
//!
//! Nothing is written back; a block that has a copy is read from there. A transaction counts once its commit
//! is in the journal, which is written after all the rest of it is. What is broken ends the journal there, as
//! it does for the kernel.
//!
//! Source: Linux, fs/jbd2/recovery.c and include/linux/jbd2.h.

use std::collections::BTreeMap;

use super::{FileSystem, Mapping};
use crate::Error;
use crate::field::{be16, be32, be64};

/// At the beginning of each of its own blocks.
pub const MAGIC: u32 = 0xc03b_3998;
/// What bounds the memory that it takes; mke2fs makes none that is larger by itself.
const BLOCKS_MAX: u32 = 1 << 18;
/// Blocks that one transaction may revoke; 64 MiB of numbers.
const REVOKED_MAX: usize = 8 << 20;
const HEADER_BYTES: usize = 12;

/// Kinds of its own blocks.
mod kind {
    pub const DESCRIPTOR: u32 = 1;
    pub const COMMIT: u32 = 2;
    pub const SUPERBLOCK_1: u32 = 3;
    pub const SUPERBLOCK_2: u32 = 4;
    pub const REVOCATION: u32 = 5;
}

/// Features without which a reader goes wrong.
mod feature {
    pub const REVOCATIONS: u32 = 0x1;
    pub const WIDE: u32 = 0x2;
    pub const CHECKSUM_2: u32 = 0x8;
    pub const CHECKSUM_3: u32 = 0x10;
    pub const ALL: u32 = REVOCATIONS | WIDE | CHECKSUM_2 | CHECKSUM_3;
}

/// What a descriptor says of a block's copy.
mod tag {
    /// The copy's first four bytes are zeros in place of [`super::MAGIC`].
    pub const ESCAPED: u32 = 1;
    /// It has no UUID.
    pub const SAME_UUID: u32 = 2;
    pub const LAST: u32 = 8;
}

/// Where the newest form of a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    pub block: u64,
    pub escaped: bool,
}

/// Newest forms, by block.
#[derive(Default)]
pub struct Journal {
    copies: BTreeMap<u64, Copy>,
}

impl Journal {
    /// A block's copy, if it has one, and for how many blocks from it on that holds.
    pub fn copy_of(&self, block: u64) -> (Option<Copy>, u64) {
        match self.copies.range(block..).next() {
            Some((number, copy)) if *number == block => (Some(*copy), 1),
            Some((number, _)) => (None, number - block),
            None => (None, u64::MAX - block),
        }
    }

    /// Reads the journal in a file of a file system that is open without it.
    pub fn read(file_system: &FileSystem<'_>, inode: u32) -> Result<Self, Error> {
        let Some(mut log) = Log::open(file_system, inode)? else { return Ok(Self::default()) };
        let mut copies = BTreeMap::new();
        let mut transaction = Transaction::default();
        while let Some(block) = log.next_block()? {
            let block = file_system.block(block)?;
            if be32(&block, 0) != MAGIC || be32(&block, 8) != log.sequence {
                break;
            }
            let whole = match be32(&block, 4) {
                kind::DESCRIPTOR => transaction.describe(&block, &mut log)?,
                kind::REVOCATION => transaction.revoke(&block, &log)?,
                kind::COMMIT => {
                    copies.extend(transaction.copies.drain(..));
                    for block in transaction.revoked.drain(..) {
                        copies.remove(&block);
                    }
                    log.sequence = log.sequence.wrapping_add(1);
                    true
                }
                _ => false,
            };
            if !whole {
                break;
            }
        }
        Ok(Self { copies })
    }
}

/// What is not committed yet.
#[derive(Default)]
struct Transaction {
    copies: Vec<(u64, Copy)>,
    /// What must not be written back from this transaction or one before it.
    revoked: Vec<u64>,
}

impl Transaction {
    /// Takes what a descriptor says, and the blocks that follow it; whether all was there.
    fn describe(&mut self, block: &[u8], log: &mut Log) -> Result<bool, Error> {
        let checksum_3 = log.has(feature::CHECKSUM_3);
        let mut tag_bytes = if checksum_3 { 16 } else { 8 };
        if !checksum_3 {
            tag_bytes += if log.has(feature::WIDE) { 4 } else { 0 };
            tag_bytes += if log.has(feature::CHECKSUM_2) { 2 } else { 0 };
        }
        let mut tags = &block[HEADER_BYTES..block.len() - log.checksum_bytes()];
        while tags.len() >= tag_bytes {
            let flags = if checksum_3 { be32(tags, 4) } else { u32::from(be16(tags, 6)) };
            let high = if log.has(feature::WIDE) { be32(tags, 8) } else { 0 };
            let number = u64::from(high) << 32 | u64::from(be32(tags, 0));
            let Some(block) = log.next_block()? else { return Ok(false) };
            self.copies.push((number, Copy { block, escaped: flags & tag::ESCAPED != 0 }));
            if flags & tag::LAST != 0 {
                break;
            }
            let uuid_bytes = if flags & tag::SAME_UUID != 0 { 0 } else { 16 };
            tags = tags.get(tag_bytes + uuid_bytes..).unwrap_or_default();
        }
        Ok(true)
    }

    /// Takes the numbers of a revocation; whether it is whole.
    fn revoke(&mut self, block: &[u8], log: &Log) -> Result<bool, Error> {
        let number_bytes = if log.has(feature::WIDE) { 8 } else { 4 };
        let (begin, end) = (HEADER_BYTES + 4, be32(block, HEADER_BYTES) as usize);
        if !(begin..=block.len() - log.checksum_bytes()).contains(&end) {
            return Ok(false);
        }
        let numbers = block[begin..end].chunks_exact(number_bytes);
        self.revoked.extend(numbers.map(|number| match number_bytes {
            8 => be64(number, 0),
            _ => u64::from(be32(number, 0)),
        }));
        if self.revoked.len() > REVOKED_MAX {
            return Err(Error::file_system("its journal revokes too many blocks at once"));
        }
        Ok(true)
    }
}

/// The journal's blocks from the first that counts on, each once.
struct Log {
    features: u32,
    /// Of the transaction that is read now.
    sequence: u32,
    /// All blocks of the journal, by ranges: where in it, where on the disk, how many.
    ranges: Vec<(u64, u64, u64)>,
    /// The ring that is written round and round.
    ring: std::ops::Range<u64>,
    at: u64,
    left: u64,
}

impl Log {
    /// `None` if nothing in it counts.
    fn open(file_system: &FileSystem<'_>, inode: u32) -> Result<Option<Self>, Error> {
        let broken = |reason: String| Error::file_system(format!("its journal: {reason}"));
        let inode = file_system.inode(inode)?;
        let ranges = ranges(file_system, &inode)?;
        let first = ranges.first().filter(|range| range.0 == 0);
        let superblock = file_system.block(first.ok_or_else(|| broken("it has no beginning".into()))?.1)?;
        let features = match be32(&superblock, 4) {
            kind::SUPERBLOCK_1 => 0,
            kind::SUPERBLOCK_2 => be32(&superblock, 40),
            other => return Err(broken(format!("it begins with a block of kind {other}"))),
        };
        if be32(&superblock, 0) != MAGIC {
            return Err(broken("it has no magic number".into()));
        }
        if features & !feature::ALL != 0 {
            let unknown = features & !feature::ALL;
            return Err(broken(format!("it has features that are not known: {unknown:#x}")));
        }
        let block_bytes = be32(&superblock, 12);
        let (end, begin) = (be32(&superblock, 16), be32(&superblock, 20));
        let (sequence, at) = (be32(&superblock, 24), be32(&superblock, 28));
        if at == 0 {
            return Ok(None);
        }
        if u64::from(block_bytes) != file_system.block_bytes() || end > BLOCKS_MAX {
            return Err(broken(format!("it has {end} blocks of {block_bytes} bytes")));
        }
        if begin == 0 || !(begin..end).contains(&at) {
            return Err(broken(format!("it begins at {at} of {begin} to {end}")));
        }
        let ring = u64::from(begin)..u64::from(end);
        let left = ring.end - ring.start;
        Ok(Some(Self { features, sequence, ranges, ring, at: u64::from(at), left }))
    }

    fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }

    /// What a block of its own has for one at its end.
    fn checksum_bytes(&self) -> usize {
        if self.has(feature::CHECKSUM_2 | feature::CHECKSUM_3) { 4 } else { 0 }
    }

    /// Where the next block is on the disk.
    fn next_block(&mut self) -> Result<Option<u64>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        let behind = self.ranges.partition_point(|range| range.0 <= self.at);
        let range = behind.checked_sub(1).map(|number| self.ranges[number]);
        let (first, block, _) = range
            .filter(|(first, _, blocks)| self.at - first < *blocks)
            .ok_or_else(|| Error::file_system(format!("its journal has no block {}", self.at)))?;
        let found = block + (self.at - first);
        self.left -= 1;
        self.at = if self.at + 1 == self.ring.end { self.ring.start } else { self.at + 1 };
        Ok(Some(found))
    }
}

fn ranges(file_system: &FileSystem<'_>, inode: &super::Inode) -> Result<Vec<(u64, u64, u64)>, Error> {
    let mut ranges = Vec::new();
    let mut mapping = Mapping::new(file_system, inode)?;
    while let Some(range) = mapping.range()? {
        if ranges.len() == BLOCKS_MAX as usize {
            return Err(Error::file_system("its journal is in too many pieces"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}
