//! Removing a directory with all that is in it, however deep.
//!
//! Names are resolved against open directories and links are never followed, so nothing outside the
//! tree can be hit while programs move things around. A tree may be deeper than any stack or path
//! length: what lies below a fixed depth is first moved up into the tree's top.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::HIDDEN;

const DEPTH: usize = 64;

/// Removes `path` and everything in it.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let top = open(path, directory(), Mode::empty())?;
    let mut moved = 0;
    loop {
        let before = moved;
        empty(&top, top.try_clone()?, DEPTH, &mut moved)?;
        // Whatever was moved up has come after its directory was read; so once more.
        if moved == before {
            return fs::remove_dir(path);
        }
    }
}

fn directory() -> OFlag {
    OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY | OFlag::O_NONBLOCK
}

fn empty(top: &OwnedFd, this: OwnedFd, depth: usize, moved: &mut u64) -> io::Result<()> {
    let mut entries = Dir::from_fd(openat(&this, ".", directory(), Mode::empty())?)?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if !matches!(entry.file_type(), Some(Type::Directory) | None) {
            gone(unlinkat(this.as_fd(), name, UnlinkatFlags::NoRemoveDir))?;
            continue;
        }
        match openat(&this, name, directory(), Mode::empty()) {
            Ok(child) if depth > 0 => {
                empty(top, child, depth - 1, moved)?;
                match unlinkat(this.as_fd(), name, UnlinkatFlags::RemoveDir) {
                    // Something below was moved up, or somebody is still writing there: the next
                    // round sees it.
                    Err(Errno::ENOTEMPTY | Errno::EEXIST) if *moved > 0 => *moved += 1,
                    other => gone(other)?,
                }
            }
            Ok(_) => loop {
                *moved += 1;
                let parked = format!("{HIDDEN}removed-{moved}");
                match renameat(&this, name, top, parked.as_str()) {
                    Err(Errno::EEXIST | Errno::ENOTEMPTY) => {}
                    other => break gone(other)?,
                }
            },
            // Not a directory after all.
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                gone(unlinkat(this.as_fd(), name, UnlinkatFlags::NoRemoveDir))?;
            }
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What somebody else has removed is removed.
fn gone(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_is_removed_and_links_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        let kept = outside.path().join("kept");
        fs::write(&kept, "x").unwrap();
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        fs::create_dir(&tree).unwrap();
        std::os::unix::fs::symlink(outside.path(), tree.join("link")).unwrap();
        let mut at = open(&tree, directory(), Mode::empty()).unwrap();
        for level in 0..3000 {
            nix::sys::stat::mkdirat(&at, "a_directory", Mode::S_IRWXU).unwrap();
            if level % 100 == 0 {
                openat(&at, "file", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU).unwrap();
            }
            at = openat(&at, "a_directory", directory(), Mode::empty()).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(kept.exists());
    }
}
