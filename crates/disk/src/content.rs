//! Whether two files have the same content.
//!
//! Their maps are walked side by side, and only bytes that do not come from one place are read: of what two
//! relatives share, nothing. Times say nothing here: a guest may set them as it likes, and two children of
//! one instant have the same clock.

use crate::Error;
use crate::ext4::{FileSystem, Inode, Mapping};

/// Compared at once.
const PIECE_BYTES: u64 = 128 << 10;

/// Compares files of one size; `wanted` is asked again and again whether to go on.
pub fn is_same(
    (of, of_inode): (&FileSystem<'_>, &Inode),
    (against, against_inode): (&FileSystem<'_>, &Inode),
    wanted: &dyn Fn() -> Result<(), Error>,
) -> Result<bool, Error> {
    let size = of_inode.size;
    if size == 0 {
        return Ok(true);
    }
    let mut of = Mapping::new(of, of_inode)?;
    let mut against = Mapping::new(against, against_inode)?;
    let (mut one, mut other) = (Vec::new(), Vec::new());
    let mut offset = 0;
    while offset < size {
        wanted()?;
        let piece = of.piece(offset, size - offset)?;
        let opposite = against.piece(offset, piece.bytes)?;
        if piece.is(&opposite) {
            offset += opposite.bytes;
            continue;
        }
        let bytes = opposite.bytes.min(PIECE_BYTES);
        one.resize(bytes as usize, 0);
        other.resize(bytes as usize, 0);
        piece.read(&mut one)?;
        opposite.read(&mut other)?;
        if one != other {
            return Ok(false);
        }
        offset += bytes;
    }
    Ok(true)
}
