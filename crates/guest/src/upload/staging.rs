//! Where content waits: a file without a name, on the file system of its target.
//!
//! Its room is taken at once, so an upload that was begun does not fail for want of it. It gets a name
//! when it is published; on a file system that cannot give one, a copy of it does.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, fallocate};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::linkat;
use nullspace_guest_proto::UploadFailure as Reason;
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::{Digest, Failure};
use crate::file::write::make_hidden;

const PIECE: usize = 256 << 10;

/// A file for so many bytes of content, in the file system of `directory`.
pub fn reserve(directory: &Path, length: u64) -> Result<File, Failure> {
    let file = nameless(directory).map_err(|error| match error.raw_os_error() {
        // The directory is there, so it takes no files: /proc and the like.
        Some(libc::ENOENT) => {
            Status::permission_denied(format!("{} cannot be written", directory.display())).into()
        }
        _ => Failure::system(&error, directory),
    })?;
    let system = |error: io::Error| Failure::system(&error, directory);
    // Asked first, so that a wish much too large does not take all there is for a moment.
    let room = fstatvfs(&file).map_err(|error| system(error.into()))?;
    let free = room.blocks_available().saturating_mul(room.fragment_size());
    if room.blocks() > 0 && length > free {
        let message = format!("the upload needs {length} bytes; {free} are free in the sandbox");
        return Err(Failure::refused(Reason::InsufficientStagingSpace, message));
    }
    let size = i64::try_from(length).map_err(|_| system(Errno::EFBIG.into()))?;
    if size > 0 {
        match fallocate(&file, FallocateFlags::empty(), 0, size) {
            Ok(()) => {}
            // A file system that does not take room ahead.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => file.set_len(length).map_err(system)?,
            Err(error) => return Err(system(error.into())),
        }
    }
    Ok(file)
}

fn nameless(directory: &Path) -> io::Result<File> {
    let options = || OpenOptions::new().read(true).write(true).mode(0o600).clone();
    match options().custom_flags(libc::O_TMPFILE).open(directory) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            let (file, path) = make_hidden(directory, false, |path| options().create_new(true).open(path))?;
            std::fs::remove_file(path)?;
            Ok(file)
        }
        made => made,
    }
}

/// Gives the content a name, or a copy of it where that cannot be. What has the name is returned.
pub fn name(content: &File, path: &Path) -> io::Result<File> {
    let this = format!("/proc/self/fd/{}", content.as_raw_fd());
    match linkat(AT_FDCWD, this.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW) {
        Ok(()) => content.try_clone(),
        Err(Errno::EEXIST) => Err(Errno::EEXIST.into()),
        // Another file system than when the upload began, one without such names, or a second time.
        Err(_) => copy(content, path),
    }
}

fn copy(mut content: &File, path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let copied = content.rewind().and_then(|()| io::copy(&mut content, &mut file));
    match copied {
        Ok(_) => Ok(file),
        Err(error) => {
            // The error above is what to tell; what stays is a hidden file.
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

/// Refuses content that has another digest.
pub fn check(mut content: &File, wanted: &Digest, stop: &AtomicBool) -> Result<(), Failure> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    let broken = |error: io::Error| Failure::Other(Status::internal(format!("staged content: {error}")));
    content.rewind().map_err(broken)?;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        match content.read(&mut piece) {
            Ok(0) => break,
            Ok(len) => hash.update(&piece[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error)),
        }
    }
    if hash.finalize()[..] != wanted[..] {
        let message = "the content does not have the SHA-256 that was announced; upload it anew";
        return Err(Failure::refused(Reason::WholeChecksumMismatch, message));
    }
    Ok(())
}

/// Its owner gave the upload up in the midst of it.
pub fn stopped() -> Failure {
    Failure::refused(Reason::UploadAbortedAlready, "the upload was aborted")
}
