//! What archives make, and which are refused.

use std::fs::{self, File};
use std::mem::discriminant;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use tar::{Builder, EntryType, Header};

use super::{Failure, Fault, Rules, Unpacked, unpack};

/// An archive, entry by entry, whatever they say.
struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, name: &str, link: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o6751);
        header.set_mtime(1_000_000_000);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, "", data)
    }

    fn directory(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.0.append_pax_extensions([(key, value)]).unwrap();
        self
    }

    fn unpack(self) -> (tempfile::TempDir, Result<Unpacked, Failure>) {
        unpack_bytes(&self.0.into_inner().unwrap())
    }
}

fn unpack_bytes(archive: &[u8]) -> (tempfile::TempDir, Result<Unpacked, Failure>) {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    fs::create_dir(&root).unwrap();
    let open = File::open(&root).unwrap();
    let stop = AtomicBool::new(false);
    let reserved = |path: &Path| path.starts_with("mine");
    let rules = Rules { owner: None, bytes_max: 1 << 20, stop: &stop, reserved: &reserved };
    let outcome = unpack(archive, open.as_fd(), &rules);
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1, "nothing is made outside");
    (outer, outcome)
}

#[test]
fn files_directories_and_links_are_made_as_the_archive_has_them() {
    let long = "a/".repeat(100) + "long";
    let (outer, outcome) = Tar::new()
        .directory("./")
        .directory("a/")
        .file("a/file", b"content")
        .file("implied/parents/file", b"x")
        .link("a/up", "../implied")
        .link("a/winding", "../implied/../a/file")
        .pax("path", long.as_bytes())
        .file("short", b"long")
        .file("twice", b"first")
        .file("twice", b"2")
        .unpack();
    assert_eq!(outcome.unwrap(), Unpacked { files: 4, bytes: 13 });
    let root = outer.path().join("root");
    let file = root.join("a/file");
    assert_eq!(fs::read(&file).unwrap(), b"content");
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o751, 1_000_000_000));
    assert_eq!(fs::read(root.join(long)).unwrap(), b"long");
    assert_eq!(fs::read(root.join("twice")).unwrap(), b"2");
    assert_eq!(fs::read_link(root.join("a/up")).unwrap(), Path::new("../implied"));
    assert_eq!(fs::read(root.join("a/winding")).unwrap(), b"content");
}

#[test]
fn what_leads_out_or_cannot_be_had_is_refused_by_name() {
    let tar = Tar::new;
    for (path, archive, fault) in [
        ("/etc/x", tar().file("/etc/x", b""), Fault::Path),
        ("a/../../x", tar().file("a/../../x", b""), Fault::Path),
        ("../x", tar().pax("path", b"../x").file("ok", b""), Fault::Path),
        ("mine/x", tar().file("mine/x", b""), Fault::Path),
        ("d", tar().file("d/x", b"").file("d", b""), Fault::Path),
        ("f/x", tar().file("f", b"").file("f/x", b""), Fault::Path),
        ("f", tar().file("f", b"").directory("f"), Fault::Path),
        ("l/x", tar().directory("d").link("l", "d").file("l/x", b""), Fault::Path),
        ("l", tar().directory("d").link("l", "d").directory("l"), Fault::Path),
        ("l", tar().link("l", "/etc"), Fault::Link),
        ("a/l", tar().link("a/l", "../../x"), Fault::Link),
        // a/up is the root, so its parent is outside.
        ("m", tar().link("a/up", "..").link("m", "a/up/.."), Fault::Link),
        ("m", tar().link("m", "later/../x"), Fault::Link),
        ("h", tar().file("f", b"").entry(EntryType::Link, "h", "f", b""), Fault::Unsupported),
        ("p", tar().entry(EntryType::Fifo, "p", "", b""), Fault::Unsupported),
        ("c", tar().entry(EntryType::Char, "c", "", b""), Fault::Unsupported),
        ("z", tar().entry(EntryType::new(b'Z'), "z", "", b""), Fault::Unsupported),
        ("s", tar().pax("GNU.sparse.major", b"1").file("s", b""), Fault::Unsupported),
        ("big", tar().file("big", &vec![0; (1 << 20) + 1]), Fault::TooLarge),
    ] {
        let (_outer, outcome) = archive.unpack();
        let failure = outcome.expect_err(path);
        assert_eq!(discriminant(&failure.fault), discriminant(&fault), "{path}: {failure:?}");
        assert_eq!(failure.path, Path::new(path));
    }
}

#[test]
fn bytes_that_are_no_archive_are_refused() {
    let whole = Tar::new().file("file", &[7; 1000]).0.into_inner().unwrap();
    let mut damaged = whole.clone();
    damaged[0] ^= 1;
    // A description of two megabytes, to be read into memory.
    let endless = Tar::new().entry(EntryType::GNULongName, "x", "", &vec![b'a'; 2 << 20]).file("f", b"");
    for bytes in [&whole[..100], &whole[..700], &damaged, &endless.0.into_inner().unwrap()] {
        let (_outer, outcome) = unpack_bytes(bytes);
        assert!(matches!(outcome.unwrap_err().fault, Fault::Unsupported));
    }
    assert_eq!(unpack_bytes(&[]).1.unwrap(), Unpacked::default());
}

#[test]
fn it_stops_when_it_is_told_to() {
    let archive = Tar::new().file("f", b"x").0.into_inner().unwrap();
    let outer = tempfile::tempdir().unwrap();
    let open = File::open(outer.path()).unwrap();
    let stop = AtomicBool::new(true);
    let rules = Rules { owner: None, bytes_max: 9, stop: &stop, reserved: &|_| false };
    let stopped = unpack(archive.as_slice(), open.as_fd(), &rules).unwrap_err();
    assert!(matches!(stopped.fault, Fault::Stopped));
}
