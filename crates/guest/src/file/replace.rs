//! Replacing a literal text in files.
//!
//! All files are looked at before the first is changed: one that is missing, or too large, changes
//! nothing. Each is then written anew beside itself and put in place, so it has the old content or the
//! new. A file is never in memory whole.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use memchr::memchr;
use memchr::memmem::Finder;
use nix::unistd::{AccessFlags, access};
use nullspace_guest_proto as pb;
use tonic::Status;

use super::write::Writer;
use super::{check_pattern, open_to_read, status};
use crate::account::Accounts;

/// Most files of one call.
pub const FILES: usize = 10_000;
/// Of a file, before and after.
const FILE_BYTES: u64 = 256 << 20;
/// Read at once.
const WINDOW: usize = 256 << 10;

/// What is to be replaced, and by what.
pub struct Replace<'a> {
    finder: Finder<'a>,
    replacement: &'a [u8],
}

impl<'a> Replace<'a> {
    /// Errors: the pattern is empty or too long.
    pub fn new(pattern: &'a str, replacement: &'a str) -> Result<Self, Status> {
        check_pattern(pattern)?;
        Ok(Self { finder: Finder::new(pattern), replacement: replacement.as_bytes() })
    }

    /// Does it in each of these files. `dry_run`: counts only.
    pub fn run(&self, paths: &[PathBuf], dry_run: bool) -> Result<pb::ReplaceInFilesReply, Status> {
        for path in paths {
            check(path, dry_run)?;
        }
        let mut reply = pb::ReplaceInFilesReply::default();
        let mut with_text = Vec::new();
        for path in paths {
            match self.count(path)? {
                None => reply.binary_files_skipped += 1,
                Some(0) => reply.files_skipped += 1,
                Some(count) if dry_run => {
                    reply.replacements += count;
                    reply.files_modified += 1;
                }
                Some(_) => with_text.push(path),
            }
        }
        for path in with_text {
            let replaced = self.write(path).map_err(|error| match reply.files_modified {
                0 => error,
                before => Status::new(
                    error.code(),
                    format!("{}; {before} files before it have been changed", error.message()),
                ),
            })?;
            match replaced {
                // Somebody else was faster.
                0 => reply.files_skipped += 1,
                count => {
                    reply.replacements += count;
                    reply.files_modified += 1;
                }
            }
        }
        Ok(reply)
    }

    /// How often a file has the text; none when it is binary.
    fn count(&self, path: &Path) -> Result<Option<u64>, Status> {
        let (mut count, mut size, mut binary) = (0, 0, false);
        self.scan(path, |piece| {
            match piece {
                Piece::Found => {
                    count += 1;
                    size += self.replacement.len() as u64;
                }
                Piece::Other(other) => {
                    size += other.len() as u64;
                    binary = memchr(0, other).is_some();
                }
            }
            Ok(!binary)
        })?;
        if !binary && size > FILE_BYTES {
            return Err(too_large(path, "would be"));
        }
        Ok((!binary).then_some(count))
    }

    /// Writes a file anew; says how often the text was there.
    fn write(&self, path: &Path) -> Result<u64, Status> {
        let failed = |error: io::Error| status(&error, path);
        let mut writer = Writer::create(path, None)?;
        let mut count = 0;
        let mut out = BufWriter::with_capacity(WINDOW, &mut writer);
        self.scan(path, |piece| {
            match piece {
                Piece::Found => {
                    count += 1;
                    out.write_all(self.replacement)
                }
                Piece::Other(other) => out.write_all(other),
            }
            .map_err(failed)?;
            Ok(true)
        })?;
        out.flush().map_err(failed)?;
        drop(out);
        if count > 0 {
            // Nobody asked for names of users.
            writer.finish(&Accounts::default())?;
        }
        Ok(count)
    }

    /// Gives a file piece by piece, as long as more is wanted. Matches do not overlap.
    fn scan(
        &self,
        path: &Path,
        mut take: impl FnMut(Piece<'_>) -> Result<bool, Status>,
    ) -> Result<(), Status> {
        let mut file: File = open_to_read(path, 0).map_err(|error| status(&error, path))?;
        let len = self.finder.needle().len();
        let mut buffer = vec![0; WINDOW + len];
        let (mut filled, mut total) = (0, 0);
        loop {
            let read = match file.read(&mut buffer[filled..]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(status(&error, path)),
            };
            filled += read;
            total += read as u64;
            if total > FILE_BYTES {
                return Err(too_large(path, "is"));
            }
            let mut at = 0;
            while let Some(found) = self.finder.find(&buffer[at..filled]) {
                if !take(Piece::Other(&buffer[at..at + found]))? || !take(Piece::Found)? {
                    return Ok(());
                }
                at += found + len;
            }
            // What may be the beginning of a match waits for more.
            let kept = if read == 0 { 0 } else { (filled - at).min(len - 1) };
            if !take(Piece::Other(&buffer[at..filled - kept]))? || read == 0 {
                return Ok(());
            }
            buffer.copy_within(filled - kept..filled, 0);
            filled = kept;
        }
    }
}

enum Piece<'a> {
    Found,
    /// What stands between, perhaps nothing.
    Other(&'a [u8]),
}

fn check(path: &Path, dry_run: bool) -> Result<(), Status> {
    crate::path::refuse_reserved_links(path)?;
    let metadata = path.metadata().map_err(|error| status(&error, path))?;
    if metadata.is_dir() {
        return Err(Status::invalid_argument(format!("{} is a directory", path.display())));
    }
    if !metadata.is_file() {
        return Err(Status::invalid_argument(format!(
            "{} is a pipe, a socket or a device; text can be replaced only in files",
            path.display()
        )));
    }
    if metadata.len() > FILE_BYTES {
        return Err(too_large(path, "is"));
    }
    if !dry_run {
        access(path, AccessFlags::W_OK).map_err(|error| status(&error.into(), path))?;
    }
    Ok(())
}

fn too_large(path: &Path, is: &str) -> Status {
    Status::invalid_argument(format!(
        "{} {is} larger than {FILE_BYTES} bytes, the most in which text is replaced",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_file_is_changed_as_its_text_would_be(
            parts in proptest::collection::vec("[ab]{0,4}", 0..12),
            // Around the end of what is read at once.
            before in WINDOW - 12..WINDOW + 12,
            pattern in "[ab]{1,4}",
            replacement in "[ac]{0,5}",
        ) {
            let text = "x".repeat(before) + &parts.concat();
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("f");
            fs::write(&path, &text).unwrap();
            let reply = Replace::new(&pattern, &replacement).unwrap().run(std::slice::from_ref(&path), false).unwrap();
            prop_assert_eq!(fs::read_to_string(&path).unwrap(), text.replace(&pattern, &replacement));
            prop_assert_eq!(reply.replacements, text.matches(&pattern).count() as u64);
        }
    }
}
