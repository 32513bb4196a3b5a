//! Packing a directory: a tar archive (POSIX.1-2001, `pax` of IEEE Std 1003.1) that depends on nothing
//! but names, contents, permission bits and link targets, so that packing the same directory again gives
//! the same bytes. Entries are relative and sorted; owner 0, no names, time 0.
//!
//! Nothing is left out but what `.nullspaceignore` in the directory and the caller's own patterns name,
//! in the language of `.gitignore`; of several that match the last one wins, the caller's after the
//! file's. What is left out is not even looked into. What an archive cannot or must not hold is refused
//! before anything is packed: links that are absolute or lead out, devices, sockets and pipes.

use std::fs::{File, FileType, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use tar::{EntryType, Header};

use super::content::{UploadContent, copy_exactly, spooling};
use crate::error::{Error, Result};

/// In the directory itself: patterns of what is left out.
pub const IGNORE_FILE: &str = ".nullspaceignore";

const BLOCK: u64 = 512;
/// From here on a size does not fit into the header's octal digits.
const SIZE_MAX: u64 = 0o1_0000_0000_0000 / 8;

/// A directory that was looked through, before it is packed.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
    entries: Vec<Entry>,
}

/// Something in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the directory, with `/` between its parts.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of a file.
    pub size: u64,
    /// The pattern because of which it is left out, with all that is in it.
    pub excluded_by: Option<String>,
}

/// What something in a directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file. One with several names is several files.
    File,
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: String,
    },
    /// Anything else, which is fine as long as it is left out.
    Special,
}

impl Directory {
    /// Looks through a directory.
    ///
    /// # Errors
    /// `local_error` when something in it cannot be read; `invalid_request` for a pattern that is none,
    /// and for what an archive cannot hold.
    pub fn survey(root: &Path, excludes: &[String]) -> Result<Self> {
        let ignored = patterns(root, excludes)?;
        let mut entries = Vec::new();
        let mut unseen = vec![PathBuf::new()];
        while let Some(directory) = unseen.pop() {
            let listed = std::fs::read_dir(root.join(&directory));
            let failed = |error: io::Error| reading(&root.join(&directory), &error);
            for found in listed.map_err(failed)? {
                let found = found.map_err(failed)?;
                let relative = directory.join(found.file_name());
                let metadata = std::fs::symlink_metadata(root.join(&relative))
                    .map_err(|error| reading(&root.join(&relative), &error))?;
                let entry = look(root, &relative, &metadata, &ignored)?;
                if entry.kind == EntryKind::Directory && entry.excluded_by.is_none() {
                    unseen.push(relative);
                }
                entries.push(entry);
            }
        }
        // By the parts of the path, so that a directory is followed by what is in it.
        entries.sort_by(|one, other| one.path.split('/').cmp(other.path.split('/')));
        Ok(Self { root: root.to_owned(), entries })
    }

    /// Everything in it, sorted, the first level of what is left out included.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many files would be packed.
    pub fn file_count(&self) -> u64 {
        self.included().filter(|entry| entry.kind == EntryKind::File).count() as u64
    }

    /// Bytes of these files.
    pub fn file_bytes(&self) -> u64 {
        self.included().map(|entry| entry.size).sum()
    }

    /// Bytes of the archive, if nothing changes until it is packed.
    pub fn archive_length(&self) -> u64 {
        let length = |entry: &Entry| {
            let extra = match extension(entry, entry.size) {
                records if records.is_empty() => 0,
                records => BLOCK + padded(records.len() as u64),
            };
            extra + BLOCK + padded(entry.size)
        };
        self.included().map(length).sum::<u64>() + 2 * BLOCK
    }

    /// Packs it into a temporary file. Blocks.
    ///
    /// # Errors
    /// `local_error` when a file cannot be read or has changed, or when there is no room.
    pub fn pack(&self) -> Result<UploadContent> {
        UploadContent::archive(|target| {
            for entry in self.included() {
                self.pack_entry(entry, target)?;
            }
            target.write_all(&[0; 2 * BLOCK as usize]).map_err(|error| spooling(&error))
        })
    }

    fn included(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.excluded_by.is_none())
    }

    fn pack_entry(&self, entry: &Entry, target: &mut dyn Write) -> Result<()> {
        let path = self.root.join(&entry.path);
        let failed = |error: io::Error| reading(&path, &error);
        let (metadata, file) = if entry.kind == EntryKind::File {
            let file = File::open(&path).map_err(failed)?;
            (file.metadata().map_err(failed)?, Some(file))
        } else {
            (std::fs::symlink_metadata(&path).map_err(failed)?, None)
        };
        if kind(&path, metadata.file_type())? != entry.kind {
            return Err(failed(io::Error::other("it is something else than it was a moment ago")));
        }
        let size = if file.is_some() { metadata.len() } else { 0 };
        let records = extension(entry, size);
        if !records.is_empty() {
            let mut header = plain_header(EntryType::XHeader, 0o644, records.len() as u64);
            put(&mut header.as_old_mut().name, b"././@PaxHeader");
            header.set_cksum();
            write(target, header.as_bytes())?;
            write(target, &records)?;
            pad(target, records.len() as u64)?;
        }
        let header = header(entry, metadata.permissions().mode() & 0o7777, size);
        write(target, header.as_bytes())?;
        if let Some(mut file) = file {
            copy_exactly(&mut file, target, size).map_err(failed)?;
            pad(target, size)?;
        }
        Ok(())
    }
}

fn patterns(root: &Path, excludes: &[String]) -> Result<Gitignore> {
    let refused = |error: ignore::Error| Error::invalid_request(format!("what is left out: {error}"));
    let mut builder = GitignoreBuilder::new(root);
    let file = root.join(IGNORE_FILE);
    if file.try_exists().map_err(|error| reading(&file, &error))?
        && let Some(error) = builder.add(&file)
    {
        return Err(refused(error));
    }
    for pattern in excludes {
        builder.add_line(None, pattern).map_err(refused)?;
    }
    builder.build().map_err(refused)
}

fn look(root: &Path, relative: &Path, metadata: &Metadata, ignored: &Gitignore) -> Result<Entry> {
    let full = root.join(relative);
    let excluded_by = match ignored.matched(relative, metadata.is_dir()) {
        Match::Ignore(glob) => Some(glob.original().to_owned()),
        Match::None | Match::Whitelist(_) => None,
    };
    let path = match (relative.to_str(), &excluded_by) {
        (Some(path), _) => path.to_owned(),
        (None, Some(_)) => relative.to_string_lossy().into_owned(),
        (None, None) => return Err(refuse(&full, "its name is not UTF-8")),
    };
    let kind = match kind(&full, metadata.file_type()) {
        Err(_) if excluded_by.is_some() => EntryKind::Special,
        kind => kind?,
    };
    if excluded_by.is_none() {
        match &kind {
            EntryKind::Special => return Err(refuse(&full, what(metadata.file_type()))),
            EntryKind::Symlink { target } => refuse_link_out(&full, relative, target)?,
            EntryKind::Directory | EntryKind::File => {}
        }
    }
    let size = if kind == EntryKind::File { metadata.len() } else { 0 };
    Ok(Entry { path, kind, size, excluded_by })
}

fn kind(path: &Path, file_type: FileType) -> Result<EntryKind> {
    if file_type.is_dir() {
        return Ok(EntryKind::Directory);
    }
    if file_type.is_file() {
        return Ok(EntryKind::File);
    }
    if !file_type.is_symlink() {
        return Ok(EntryKind::Special);
    }
    let target = std::fs::read_link(path).map_err(|error| reading(path, &error))?;
    let target = target.into_os_string().into_string();
    Ok(EntryKind::Symlink { target: target.map_err(|_| refuse(path, "where it points is not UTF-8"))? })
}

fn what(file_type: FileType) -> &'static str {
    if file_type.is_fifo() {
        "it is a pipe"
    } else if file_type.is_socket() {
        "it is a socket"
    } else {
        "it is a device"
    }
}

/// Names alone are looked at, as the server does.
fn refuse_link_out(full: &Path, relative: &Path, target: &str) -> Result<()> {
    let mut depth = relative.components().count() - 1;
    for component in Path::new(target).components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            Component::ParentDir => {
                return Err(refuse(full, &format!("it is a link that leads out, to {target}")));
            }
            Component::RootDir | Component::Prefix(_) => {
                return Err(refuse(full, &format!("it is an absolute link, to {target}")));
            }
        }
    }
    Ok(())
}

fn refuse(path: &Path, why: &str) -> Error {
    Error::invalid_request(format!("{} cannot be uploaded: {why}", path.display()))
        .suggest(format!("leave it out with --exclude, or name it in {IGNORE_FILE}"))
}

fn reading(path: &Path, error: &io::Error) -> Error {
    Error::local(format_args!("read {}", path.display()), error)
}

fn plain_header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn header(entry: &Entry, mode: u32, size: u64) -> Header {
    let (kind, mode) = match &entry.kind {
        EntryKind::Directory => (EntryType::Directory, mode),
        EntryKind::Symlink { .. } => (EntryType::Symlink, 0o777),
        EntryKind::File | EntryKind::Special => (EntryType::Regular, mode),
    };
    let mut header = plain_header(kind, mode, size);
    // What does not fit stands in the records before it, and here only for readers of old.
    if header.set_path(&entry.path).is_err() {
        put(&mut header.as_old_mut().name, entry.path.as_bytes());
    }
    if let EntryKind::Symlink { target } = &entry.kind {
        put(&mut header.as_old_mut().linkname, target.as_bytes());
    }
    header.set_cksum();
    header
}

/// The records of an extended header, for what a plain one cannot hold; none if it can.
fn extension(entry: &Entry, size: u64) -> Vec<u8> {
    let mut records = Vec::new();
    if Header::new_ustar().set_path(&entry.path).is_err() {
        record(&mut records, "path", entry.path.as_bytes());
    }
    if let EntryKind::Symlink { target } = &entry.kind
        && target.len() > Header::new_ustar().as_old().linkname.len()
    {
        record(&mut records, "linkpath", target.as_bytes());
    }
    if size >= SIZE_MAX {
        record(&mut records, "size", size.to_string().as_bytes());
    }
    records
}

/// `"%d %s=%s\n"`, where the number is the length of all of it, its own digits included.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn put(field: &mut [u8], value: &[u8]) {
    let length = field.len().min(value.len());
    field[..length].copy_from_slice(&value[..length]);
}

fn write(target: &mut dyn Write, data: &[u8]) -> Result<()> {
    target.write_all(data).map_err(|error| spooling(&error))
}

fn padded(length: u64) -> u64 {
    length.next_multiple_of(BLOCK)
}

fn pad(target: &mut dyn Write, length: u64) -> Result<()> {
    let missing = padded(length) - length;
    #[expect(clippy::cast_possible_truncation, reason = "less than a block")]
    write(target, &[0; BLOCK as usize][..missing as usize])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn world() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("sub/deep")).unwrap();
        std::fs::write(root.join("sub/deep/x.txt"), "hello").unwrap();
        std::fs::write(root.join("sub.txt"), vec![7; 700]).unwrap();
        std::fs::set_permissions(root.join("sub.txt"), PermissionsExt::from_mode(0o754)).unwrap();
        symlink("deep/../deep/x.txt", root.join("sub/link")).unwrap();
        dir
    }

    fn paths(directory: &Directory) -> Vec<(&str, Option<&str>)> {
        let entries = directory.entries().iter();
        entries.map(|entry| (entry.path.as_str(), entry.excluded_by.as_deref())).collect()
    }

    async fn packed(directory: &Directory) -> Vec<u8> {
        use futures::TryStreamExt;
        let content = directory.pack().unwrap();
        assert_eq!(content.length(), directory.archive_length());
        let pieces: Vec<_> = content.read(0, content.length()).try_collect().await.unwrap();
        let bytes = pieces.concat();
        assert_eq!(content.checksum().unwrap(), content.hash(0, content.length()).await.unwrap());
        bytes
    }

    #[tokio::test]
    async fn an_archive_holds_everything_sorted_and_without_owner_or_time() {
        let dir = world();
        let directory = Directory::survey(dir.path(), &[]).unwrap();
        let bytes = packed(&directory).await;
        let mut seen = Vec::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
            assert_eq!((header.username_bytes(), header.groupname_bytes()), (Some(&b""[..]), Some(&b""[..])));
            let target = entry.link_name_bytes().map(|name| String::from_utf8(name.to_vec()).unwrap());
            let path = String::from_utf8(entry.path_bytes().to_vec()).unwrap();
            seen.push((path, header.entry_type(), entry.size(), target));
        }
        let expected = [
            ("sub", EntryType::Directory, 0, None),
            ("sub/deep", EntryType::Directory, 0, None),
            ("sub/deep/x.txt", EntryType::Regular, 5, None),
            ("sub/link", EntryType::Symlink, 0, Some("deep/../deep/x.txt".to_owned())),
            ("sub.txt", EntryType::Regular, 700, None),
        ];
        assert_eq!(seen, expected.map(|(path, kind, size, target)| (path.to_owned(), kind, size, target)));
        let again = Directory::survey(dir.path(), &[]).unwrap();
        assert_eq!(packed(&again).await, bytes, "the same directory gives the same bytes");
    }

    #[tokio::test]
    async fn names_of_any_length_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("{0}/{0}/{1}", "ä".repeat(60), "n".repeat(200));
        std::fs::create_dir_all(dir.path().join(&long).parent().unwrap()).unwrap();
        std::fs::write(dir.path().join(&long), "x").unwrap();
        symlink(&long, dir.path().join("link")).unwrap();
        let bytes = packed(&Directory::survey(dir.path(), &[]).unwrap()).await;
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries = archive.entries().unwrap().map(Result::unwrap).map(|entry| {
            (entry.path().unwrap().into_owned(), entry.link_name().unwrap().map(std::borrow::Cow::into_owned))
        });
        let entries: Vec<_> = entries.collect();
        assert!(entries.contains(&("link".into(), Some(long.clone().into()))), "{entries:?}");
        assert!(entries.contains(&(long.into(), None)), "{entries:?}");
    }

    #[test]
    fn only_what_a_pattern_names_is_left_out_and_the_last_pattern_wins() {
        let dir = world();
        std::fs::write(dir.path().join(IGNORE_FILE), "# mine\n*.txt\ndeep/\n").unwrap();
        std::fs::create_dir(dir.path().join(".git")).unwrap();
        let directory = Directory::survey(dir.path(), &["!/sub.txt".to_owned()]).unwrap();
        let expected = [
            (".git", None),
            (IGNORE_FILE, None),
            ("sub", None),
            ("sub/deep", Some("deep/")),
            ("sub/link", None),
            ("sub.txt", None),
        ];
        assert_eq!(paths(&directory), expected);
        assert_eq!((directory.file_count(), directory.file_bytes()), (2, 719));
    }

    #[test]
    fn what_an_archive_must_not_hold_is_refused_unless_it_is_left_out() {
        for (target, why) in [("/etc/passwd", "absolute"), ("../x", "leads out"), ("a/../../x", "leads out")]
        {
            let dir = world();
            symlink(target, dir.path().join("bad")).unwrap();
            let error = Directory::survey(dir.path(), &[]).unwrap_err();
            assert_eq!(error.code(), "invalid_request");
            assert!(error.message().contains(why) && error.message().contains("/bad "), "{error}");
            Directory::survey(dir.path(), &["bad".to_owned()]).unwrap();
        }
        let dir = world();
        let _socket = UnixListener::bind(dir.path().join("bad")).unwrap();
        let error = Directory::survey(dir.path(), &[]).unwrap_err();
        assert!(error.message().ends_with("it is a socket"), "{error}");
        assert_eq!(Directory::survey(dir.path(), &["[".to_owned()]).unwrap_err().code(), "invalid_request");
    }

    proptest::proptest! {
        #[test]
        fn a_record_counts_its_own_length(length in 0_usize..20_000) {
            let mut records = Vec::new();
            record(&mut records, "path", &vec![b'x'; length]);
            let digits = records.iter().position(|byte| *byte == b' ').unwrap();
            let told: usize = std::str::from_utf8(&records[..digits]).unwrap().parse().unwrap();
            proptest::prop_assert_eq!(told, records.len());
        }
    }
}
