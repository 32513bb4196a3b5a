//! The disk's size, and the file system's growth to it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::Interest;

use super::device_event;
use crate::watch::watch;

mod call {
    use nix::{ioctl_read, ioctl_write_ptr};

    // The kernel's header says size_t where it means u64; so the number has a size of 8.
    ioctl_read!(device_bytes, 0x12, 114, u64);
    ioctl_write_ptr!(resize_file_system, b'f', 16, u64);
}

const DISK: &str = "/dev/vda";

/// Open since boot, so that looking costs one call.
static DEVICE: OnceLock<File> = OnceLock::new();

/// What the file system had when it was last looked at. Only the agent changes it.
static FILE_SYSTEM_BYTES: AtomicU64 = AtomicU64::new(0);

/// Opens the device.
pub fn prepare() -> io::Result<()> {
    let device = File::open(DISK)?;
    let (blocks, block_bytes) = file_system(&device)?;
    FILE_SYSTEM_BYTES.store(blocks * block_bytes, Ordering::Relaxed);
    // Boot runs once.
    let _ = DEVICE.set(device);
    Ok(())
}

/// Grows the root file system to a device of `wanted` bytes, waiting at most `wait` for the device to
/// have them.
pub async fn grow(wanted: u64, wait: Duration) -> io::Result<()> {
    if wanted <= FILE_SYSTEM_BYTES.load(Ordering::Relaxed) {
        return Ok(());
    }
    let device = DEVICE.get().ok_or_else(|| io::Error::other("there is no disk"))?;
    let (blocks, block_bytes) = file_system(device)?;
    if wanted / block_bytes <= blocks {
        return Ok(());
    }
    if device_bytes(device)? < wanted {
        let events = watch(device_event::listen()?, Interest::READABLE)?;
        let grown = async {
            // Looked at again after the events are listened to, so none falls between.
            while device_bytes(device)? < wanted {
                let mut ready = events.readable().await?;
                device_event::discard(events.get_ref());
                ready.clear_ready();
            }
            io::Result::Ok(())
        };
        match tokio::time::timeout(wait, grown).await {
            Ok(result) => result?,
            Err(_) => {
                let has = device_bytes(device)?;
                return Err(io::Error::other(format!("the device has {has} bytes, not {wanted}")));
            }
        }
    }
    let target = wanted / block_bytes;
    let root = File::open("/")?;
    tokio::task::spawn_blocking(move || {
        // SAFETY: the descriptor is the root directory's; the pointer is to a live integer.
        unsafe { call::resize_file_system(root.as_raw_fd(), &raw const target) }
    })
    .await
    .map_err(io::Error::other)??;
    let (blocks, _) = file_system(device)?;
    FILE_SYSTEM_BYTES.store(blocks * block_bytes, Ordering::Relaxed);
    // The kernel may leave out a last group that is too small to hold anything.
    if target.saturating_sub(blocks) * block_bytes >= 128 << 20 {
        return Err(io::Error::other(format!("the file system has {blocks} blocks, not {target}")));
    }
    Ok(())
}

fn device_bytes(device: &File) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the descriptor is a block device's; the pointer is to a live integer.
    unsafe { call::device_bytes(device.as_raw_fd(), &raw mut bytes) }?;
    Ok(bytes)
}

/// Blocks of the mounted file system and their size, from its super block, which the kernel keeps
/// current in the device's own cache.
fn file_system(device: &File) -> io::Result<(u64, u64)> {
    let mut block = [0; 1024];
    device.read_exact_at(&mut block, 1024)?;
    parse_super_block(&block).ok_or_else(|| io::Error::other("the disk holds no ext4"))
}

fn parse_super_block(block: &[u8; 1024]) -> Option<(u64, u64)> {
    let word =
        |at: usize| block[at..at + 4].iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let magic = u16::from_le_bytes([block[56], block[57]]);
    let shift = word(24);
    if magic != 0xef53 || shift > 6 {
        return None;
    }
    const WIDE: u64 = 0x80;
    let high = if word(96) & WIDE != 0 { word(0x150) } else { 0 };
    Some((high << 32 | word(4), 1024 << shift))
}

#[cfg(test)]
mod tests {
    use super::parse_super_block;

    #[test]
    fn a_super_block_tells_the_size() {
        let mut block = [0; 1024];
        assert_eq!(parse_super_block(&block), None);
        block[56..58].copy_from_slice(&0xef53_u16.to_le_bytes());
        block[24] = 2;
        block[4..8].copy_from_slice(&524_288_u32.to_le_bytes());
        assert_eq!(parse_super_block(&block), Some((524_288, 4096)));
        block[0x150] = 1;
        assert_eq!(
            parse_super_block(&block),
            Some((524_288, 4096)),
            "the high word counts only when it is used"
        );
        block[96] = 0x80;
        assert_eq!(parse_super_block(&block), Some(((1 << 32) + 524_288, 4096)));
    }
}
