//! The superblock: how the file system is laid out, and whether that is a way that is known here.

use crate::Error;
use crate::field::{le16, le32, le64};

/// Where it is.
pub const AT: u64 = 1024;
pub const BYTES: usize = 1024;
const MAGIC: u16 = 0xef53;

/// Features without which a reader goes wrong.
mod feature {
    pub const FILE_TYPES: u32 = 0x2;
    /// The journal has what the blocks have not yet.
    pub const RECOVER: u32 = 0x4;
    pub const EXTENTS: u32 = 0x40;
    pub const WIDE: u32 = 0x80;
    pub const FLEXIBLE_GROUPS: u32 = 0x200;
    pub const CHECKSUM_SEED: u32 = 0x2000;
    pub const LARGE_DIRECTORIES: u32 = 0x4000;
    pub const ALL: u32 =
        FILE_TYPES | RECOVER | EXTENTS | WIDE | FLEXIBLE_GROUPS | CHECKSUM_SEED | LARGE_DIRECTORIES;
}

/// What is known of a file system; all its numbers fit each other and the disk.
pub struct Superblock {
    pub block_bytes: u64,
    pub blocks: u64,
    pub first_block: u64,
    pub inodes: u32,
    pub inodes_per_group: u32,
    pub inode_bytes: u64,
    pub descriptor_bytes: u64,
    /// The inode of a journal that is to be read.
    pub journal: Option<u32>,
}

impl Superblock {
    pub fn read(block: &[u8], disk_bytes: u64) -> Result<Self, Error> {
        let broken = |reason: String| Err(Error::file_system(reason));
        if le16(block, 0x38) != MAGIC {
            return broken("it is not ext4".into());
        }
        let features = le32(block, 0x60);
        if features & !feature::ALL != 0 {
            return broken(format!("it has features that are not known: {:#x}", features & !feature::ALL));
        }
        let (log_block, log_page) = (le32(block, 0x18), 2);
        if log_block > log_page {
            return broken(format!("its blocks have 2^{} bytes, more than 4096", u64::from(log_block) + 10));
        }
        let block_bytes = 1024 << log_block;
        let wide = features & feature::WIDE != 0;
        let blocks = if wide { le64(block, 0x04, 0x150) } else { u64::from(le32(block, 0x04)) };
        if blocks.checked_mul(block_bytes).is_none_or(|bytes| bytes > disk_bytes) {
            return broken(format!("its {blocks} blocks do not fit a disk of {disk_bytes} bytes"));
        }
        let first_block = u64::from(le32(block, 0x14));
        if first_block != u64::from(block_bytes == 1024) {
            return broken(format!("its first block is {first_block}"));
        }
        let inode_bytes = match le32(block, 0x4c) {
            0 => 128,
            _ => u64::from(le16(block, 0x58)),
        };
        if !inode_bytes.is_power_of_two() || !(128..=block_bytes).contains(&inode_bytes) {
            return broken(format!("its inodes have {inode_bytes} bytes"));
        }
        let descriptor_bytes = if wide { u64::from(le16(block, 0xfe)) } else { 32 };
        if !descriptor_bytes.is_power_of_two() || !(32..=block_bytes).contains(&descriptor_bytes) {
            return broken(format!("its group descriptors have {descriptor_bytes} bytes"));
        }
        let (inodes, inodes_per_group) = (le32(block, 0x00), le32(block, 0x28));
        if inodes_per_group == 0 || u64::from(inodes) * inode_bytes > disk_bytes {
            return broken(format!("its {inodes} inodes do not fit it"));
        }
        let journal = (features & feature::RECOVER != 0).then(|| le32(block, 0xe0));
        Ok(Self {
            block_bytes,
            blocks,
            first_block,
            inodes,
            inodes_per_group,
            inode_bytes,
            descriptor_bytes,
            journal,
        })
    }
}
