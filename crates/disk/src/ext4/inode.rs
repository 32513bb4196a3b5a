//! An inode: what a file is, and where its map begins.

use crate::field::{le16, le32, le64};

/// Bytes of the map that are in the inode.
pub const MAP_BYTES: usize = 60;
const MAPPED_BY_EXTENTS: u32 = 0x80000;
const PERMISSIONS: u16 = 0o7777;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Pipe,
    Socket,
    /// What Linux does not know either.
    Unknown,
}

/// A file's own data.
pub struct Inode {
    pub number: u32,
    pub kind: Kind,
    /// With set-ID and sticky bits.
    pub mode: u16,
    pub user: u32,
    pub group: u32,
    /// In bytes.
    pub size: u64,
    /// In how many directories it is.
    pub links: u16,
    /// Whether the map is a tree of extents.
    pub by_extents: bool,
    /// The map's root, a short link's target, or a device's number.
    pub map: [u8; MAP_BYTES],
}

impl Inode {
    pub fn read(number: u32, bytes: &[u8]) -> Self {
        let mode = le16(bytes, 0x00);
        let kind = match mode & !PERMISSIONS {
            0x8000 => Kind::File,
            0x4000 => Kind::Directory,
            0xa000 => Kind::Symlink,
            0x2000 => Kind::CharacterDevice,
            0x6000 => Kind::BlockDevice,
            0x1000 => Kind::Pipe,
            0xc000 => Kind::Socket,
            _ => Kind::Unknown,
        };
        let mut map = [0; MAP_BYTES];
        map.copy_from_slice(&bytes[0x28..][..MAP_BYTES]);
        Self {
            number,
            kind,
            mode: mode & PERMISSIONS,
            user: u32::from(le16(bytes, 0x78)) << 16 | u32::from(le16(bytes, 0x02)),
            group: u32::from(le16(bytes, 0x7a)) << 16 | u32::from(le16(bytes, 0x18)),
            size: le64(bytes, 0x04, 0x6c),
            links: le16(bytes, 0x1a),
            by_extents: le32(bytes, 0x20) & MAPPED_BY_EXTENTS != 0,
            map,
        }
    }

    /// A link's target, if it is kept in the inode.
    pub fn short_target(&self) -> Option<&[u8]> {
        let length = usize::try_from(self.size).ok().filter(|length| *length < MAP_BYTES)?;
        (self.kind == Kind::Symlink && !self.by_extents).then(|| &self.map[..length])
    }

    /// A device's number, as it is written.
    pub fn device(&self) -> &[u8] {
        &self.map[..8]
    }
}
