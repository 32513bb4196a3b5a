//! Guest memory as a file that only memory holds (memfd).
//!
//! A template's memory is captured in one and then *sealed*: the kernel refuses every later write
//! to it, by anyone, while each clone maps it privately. QEMU up to 8.1 opens the memory file of a
//! clone for writing even where it maps it privately, so file permissions cannot keep a monitor
//! that a guest has taken over from changing what all later sandboxes start from; the seal does.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek64};

/// Copies are made in pieces of this many bytes; a piece of zeros is left out.
pub(crate) const PIECE: usize = 64 << 10;

/// What the kernel calls the file, in the list of a process's mappings for one.
pub(crate) const NAME: &CStr = c"nullspace-memory";

/// The memory of a machine.
#[derive(Debug)]
pub struct Memory {
    file: File,
}

impl Memory {
    /// Fresh memory of so many MiB, all zeros.
    pub fn new(mebibytes: u32) -> io::Result<Self> {
        let fd = memfd_create(NAME, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(fd);
        file.set_len(u64::from(mebibytes) << 20)?;
        Ok(Self { file })
    }

    /// Reads what [`Memory::save`] wrote, and seals it.
    pub fn load(path: &Path, mebibytes: u32) -> io::Result<Self> {
        let mut saved = fs_err::File::open(path)?.into_parts().0;
        let length = saved.metadata()?.len();
        let memory = Self::new(mebibytes)?;
        if length != u64::from(mebibytes) << 20 {
            let text = format!("{} has {length} bytes, not those of {mebibytes} MiB", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        copy_data(&mut saved, &memory.file, length)?;
        memory.seal()?;
        Ok(memory)
    }

    /// Writes it to a new file, leaving holes for zeros, and to the disk.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let to = fs_err::File::create_new(path)?.into_parts().0;
        let mut from = self.file.try_clone()?;
        let length = from.metadata()?.len();
        to.set_len(length)?;
        copy_data(&mut from, &to, length)?;
        to.sync_all()
    }

    /// Makes it immutable for good. No monitor may have it mapped for writing any more.
    pub fn seal(&self) -> io::Result<()> {
        let seals =
            SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&self.file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(())
    }

    /// A descriptor to pass on.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Bytes that it really holds.
    pub fn used_bytes(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata()?.blocks() * 512)
    }
}

/// Copies what is data and not zeros, at the same offsets.
fn copy_data(from: &mut File, mut to: &File, length: u64) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    while offset < length {
        offset = match lseek64(&*from, offset as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            Err(Errno::ENXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = lseek64(&*from, offset as i64, Whence::SeekHole)? as u64;
        from.seek(SeekFrom::Start(offset))?;
        while offset < end {
            let want = PIECE.min((end - offset) as usize);
            from.read_exact(&mut piece[..want])?;
            if piece[..want].iter().any(|byte| *byte != 0) {
                to.seek(SeekFrom::Start(offset))?;
                to.write_all(&piece[..want])?;
            }
            offset += want as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn memory_is_saved_sparse_and_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::new(64).unwrap();
        memory.file.write_all_at(b"here", 5 << 20).unwrap();
        memory.file.write_all_at(&[0; 1 << 20], 20 << 20).unwrap();
        memory.save(&dir.path().join("m")).unwrap();
        assert!(std::fs::metadata(dir.path().join("m")).unwrap().blocks() * 512 < 1 << 20);
        let again = Memory::load(&dir.path().join("m"), 64).unwrap();
        let mut read = [0; 4];
        again.file.read_exact_at(&mut read, 5 << 20).unwrap();
        assert_eq!(&read, b"here");
        assert!(Memory::load(&dir.path().join("m"), 32).is_err());
    }

    #[test]
    fn sealed_memory_cannot_be_written_even_through_a_new_descriptor() {
        use std::os::fd::AsRawFd;
        let memory = Memory::new(1).unwrap();
        memory.file.write_all_at(b"x", 0).unwrap();
        memory.seal().unwrap();
        assert!(memory.file.write_all_at(b"y", 0).is_err());
        let path = format!("/proc/self/fd/{}", memory.file.as_raw_fd());
        let again = std::fs::File::options().read(true).write(true).open(path).unwrap();
        assert!(again.write_all_at(b"y", 0).is_err());
    }
}
