//! A file's map: which of its bytes lie where on the disk.
//!
//! It is a tree that is read as it is walked, at most one block of each level at a time. What is in it must
//! come in the file's order; so a tree that leads back to itself is found out, and none can be walked for
//! longer than there are blocks on the disk.

use std::rc::Rc;

use super::inode::Inode;
use super::{FileSystem, Piece};
use crate::Error;
use crate::field::{le16, le32};

const MAGIC: u16 = 0xf30a;
const ENTRY_BYTES: usize = 12;
/// Levels below the root.
const DEPTH_MAX: u16 = 5;
/// A longer extent is one whose blocks are reserved and not written: one of as many less, of zeros.
const WRITTEN_MAX: u16 = 1 << 15;

/// Blocks in a row, counted from the file's beginning, and where they are.
#[derive(Clone, Copy)]
struct Extent {
    first: u64,
    blocks: u64,
    /// On the disk; `None` if they read as zeros.
    at: Option<u64>,
}

struct Node {
    block: Rc<[u8]>,
    depth: u16,
    entries: usize,
    /// Entries that have been walked.
    walked: usize,
    /// Nothing in it may begin earlier.
    from: u64,
}

/// A file's map, asked in the file's order.
pub struct Mapping<'f, 'a> {
    file_system: &'f FileSystem<'a>,
    inode: u32,
    /// From the root to where the walk is.
    path: Vec<Node>,
    /// Where the next extent may begin.
    from: u64,
    /// The one that was found last, and is not passed.
    found: Option<Extent>,
}

impl<'f, 'a> Mapping<'f, 'a> {
    pub fn new(file_system: &'f FileSystem<'a>, inode: &Inode) -> Result<Self, Error> {
        let mut this = Self { file_system, inode: inode.number, path: Vec::new(), from: 0, found: None };
        if !inode.by_extents {
            return Err(this.broken("it is not mapped by extents"));
        }
        let root = this.node(Rc::from(inode.map.as_slice()), None)?;
        this.path.push(root);
        this.found = this.extent()?;
        Ok(this)
    }

    /// Where the `length` (at least one) bytes from an offset on lie, or fewer of them. No offset may be less
    /// than one before.
    pub fn piece(&mut self, offset: u64, length: u64) -> Result<Piece<'a>, Error> {
        let block_bytes = self.file_system.block_bytes();
        while let Some(extent) = self.found {
            let (first, bytes) = (extent.first * block_bytes, extent.blocks * block_bytes);
            let Some(within) = offset.checked_sub(first) else {
                return Ok(Piece::hole(length.min(first - offset)));
            };
            let left = bytes.saturating_sub(within);
            match extent.at {
                _ if left == 0 => self.found = self.extent()?,
                None => return Ok(Piece::hole(length.min(left))),
                Some(at) => return self.file_system.piece(at * block_bytes + within, length.min(left)),
            }
        }
        Ok(Piece::hole(length))
    }

    /// The next blocks that are on the disk: the first in the file, the first on the disk, how many.
    pub fn range(&mut self) -> Result<Option<(u64, u64, u64)>, Error> {
        while let Some(extent) = self.found {
            self.found = self.extent()?;
            if let Some(at) = extent.at {
                return Ok(Some((extent.first, at, extent.blocks)));
            }
        }
        Ok(None)
    }

    fn extent(&mut self) -> Result<Option<Extent>, Error> {
        while let Some(node) = self.path.last_mut() {
            if node.walked == node.entries {
                self.path.pop();
                continue;
            }
            node.walked += 1;
            let entry = &node.block[node.walked * ENTRY_BYTES..][..ENTRY_BYTES];
            let first = u64::from(le32(entry, 0));
            if node.depth == 0 {
                let at = u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8));
                let (blocks, at) = match le16(entry, 4) {
                    blocks if blocks <= WRITTEN_MAX => (blocks, Some(at)),
                    blocks => (blocks - WRITTEN_MAX, None),
                };
                let blocks = u64::from(blocks);
                if first < self.from || blocks == 0 {
                    return Err(self.broken("its extents are not in order"));
                }
                self.from = first + blocks;
                return Ok(Some(Extent { first, blocks, at }));
            }
            if first < node.from {
                return Err(self.broken("its map is not in order"));
            }
            node.from = first + 1;
            let (depth, at) = (node.depth, u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4)));
            let block = self.file_system.block(at)?;
            let below = self.node(block, Some(depth - 1))?;
            self.path.push(below);
        }
        Ok(None)
    }

    /// Checks a node; all but the root have a depth that is known, and are not empty.
    fn node(&self, block: Rc<[u8]>, expected: Option<u16>) -> Result<Node, Error> {
        let (entries, depth) = (usize::from(le16(&block, 2)), le16(&block, 6));
        let fits = (entries + 1) * ENTRY_BYTES <= block.len();
        let belongs = match expected {
            None => depth <= DEPTH_MAX,
            Some(expected) => depth == expected && entries > 0,
        };
        if le16(&block, 0) != MAGIC || !fits || !belongs {
            return Err(self.broken("its map is broken"));
        }
        Ok(Node { block, depth, entries, walked: 0, from: 0 })
    }

    fn broken(&self, reason: &str) -> Error {
        Error::file_system(format!("inode {}: {reason}", self.inode))
    }
}
