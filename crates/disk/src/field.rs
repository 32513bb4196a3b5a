//! Integers out of blocks, at constant places of blocks whose length is known: qcow2 and ext4's journal are
//! big-endian, the rest of ext4 is little-endian.

/// The bytes at a place. What is not there is zeros: a field that an older, shorter form does not have.
fn bytes<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    block.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

pub fn le16(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes(block, at))
}

pub fn le32(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(block, at))
}

/// A number in two halves.
pub fn le64(block: &[u8], low: usize, high: usize) -> u64 {
    u64::from(le32(block, high)) << 32 | u64::from(le32(block, low))
}

pub fn be16(block: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes(block, at))
}

pub fn be32(block: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes(block, at))
}

pub fn be64(block: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes(block, at))
}
