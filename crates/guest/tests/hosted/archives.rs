//! Uploads of directories.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nullspace_guest_proto as pb;
use pb::UploadStatus::UploadFailed;
use tar::{Builder, EntryType, Header};
use tonic::Code;

use crate::agent::Agent;
use crate::processes::SmallDisk;
use crate::uploads::{Uploads, content, names, reason, wish};

/// An archive, entry by entry.
pub struct Tar(Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, name: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_mtime(0);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, "", 0o640, data)
    }

    fn directory(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", 0o750, b"")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, 0o777, b"")
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A wish for a directory `tree`.
pub fn directory(archive: &[u8], conflict: pb::UploadConflict) -> pb::CreateUploadRequest {
    pb::CreateUploadRequest {
        kind: pb::UploadKind::UploadDirectoryTar.into(),
        target_path: "tree".into(),
        conflict: conflict.into(),
        part_size: 1 << 20,
        ..wish(archive.len())
    }
}

#[tokio::test]
async fn a_directory_is_made_merged_replaced_or_in_the_way() {
    use pb::UploadConflict::{Fail, Merge, Replace};
    let mut agent = Agent::start().await;
    let tree = agent.cwd.join("tree");
    let mode = |path: &Path| path.symlink_metadata().unwrap().mode() & 0o7777;

    let first =
        Tar::new().directory("./").directory("d").file("d/kept", b"kept").file("d/old", b"old").bytes();
    let made = agent.client.whole(directory(&first, Fail), &first).await.unwrap();
    assert_eq!((made.published_bytes, made.published_file_count), (7, 2));
    assert_eq!((mode(&tree), mode(&tree.join("d")), mode(&tree.join("d/old"))), (0o755, 0o750, 0o640));
    let refused = agent.client.whole(directory(&first, Fail), &first).await.unwrap_err();
    assert_eq!(reason(&refused), "target_conflict");

    let root = nix::unistd::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(tree.join("d/old"), Some(65534), Some(65534)).unwrap();
    }
    fs::set_permissions(tree.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
    let second =
        Tar::new().directory("d").file("d/old", b"new").file("d/e/f", b"f").link("d/l", "old").bytes();
    let merged = agent.client.whole(directory(&second, Merge), &second).await.unwrap();
    assert_eq!((merged.published_bytes, merged.published_file_count), (4, 2));
    assert_eq!(names(&tree), ["d"]);
    assert_eq!(names(&tree.join("d")), ["e", "kept", "l", "old"]);
    assert_eq!(fs::read(tree.join("d/l")).unwrap(), b"new");
    assert_eq!((mode(&tree.join("d")), mode(&tree.join("d/e"))), (0o700, 0o755));
    if root {
        assert_eq!(tree.join("d/old").metadata().unwrap().uid(), 65534);
    }

    // A clash is found before anything is moved.
    let clash = Tar::new().file("a", b"a").file("d/e", b"no directory").file("z", b"z").bytes();
    let refused = agent.client.whole(directory(&clash, Merge), &clash).await.unwrap_err();
    assert_eq!(reason(&refused), "target_conflict");
    let path = refused.metadata().get("nullspace-upload-path").unwrap();
    assert_eq!(path, tree.join("d/e").to_str().unwrap());
    assert_eq!(
        (names(&tree), names(&tree.join("d"))),
        (vec!["d".into()], ["e", "kept", "l", "old"].map(String::from).to_vec())
    );

    // A link that is there is not followed.
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), tree.join("away")).unwrap();
    let through = Tar::new().file("away/x", b"x").bytes();
    let refused = agent.client.whole(directory(&through, Merge), &through).await.unwrap_err();
    assert_eq!(reason(&refused), "target_conflict");
    assert!(names(outside.path()).is_empty());

    fs::set_permissions(&tree, fs::Permissions::from_mode(0o711)).unwrap();
    let third = Tar::new().file("only", b"1").bytes();
    let owned = pb::CreateUploadRequest {
        user: if root { "nobody".into() } else { String::new() },
        ..directory(&third, Replace)
    };
    agent.client.whole(owned, &third).await.unwrap();
    assert_eq!((names(&tree), mode(&tree)), (vec!["only".to_string()], 0o711));
    if root {
        assert_eq!(tree.metadata().unwrap().uid(), 65534);
        assert_eq!(tree.join("only").metadata().unwrap().uid(), 65534);
    }
    assert_eq!(names(&agent.cwd), ["tree"], "nothing hidden is left");

    fs::write(agent.cwd.join("file"), "").unwrap();
    let onto = pb::CreateUploadRequest { target_path: "file".into(), ..directory(&third, Replace) };
    assert_eq!(reason(&agent.client.whole(onto, &third).await.unwrap_err()), "target_conflict");
}

#[tokio::test]
async fn a_mount_is_merged_into_and_never_replaced() {
    let Some(disk) = SmallDisk::mount() else { return };
    let mut agent = Agent::start().await;
    let archive = Tar::new().file("file", b"x").bytes();
    let onto = |conflict| pb::CreateUploadRequest {
        target_path: disk.path().to_str().unwrap().into(),
        ..directory(&archive, conflict)
    };
    fs::write(disk.path().join("data"), "precious").unwrap();
    let refused = agent.client.whole(onto(pb::UploadConflict::Replace), &archive).await.unwrap_err();
    assert_eq!(reason(&refused), "target_conflict");
    agent.client.whole(onto(pb::UploadConflict::Merge), &archive).await.unwrap();
    assert_eq!(names(disk.path()), ["data", "file"]);
}

#[tokio::test]
async fn a_hostile_archive_is_refused_by_name_and_leaves_nothing() {
    let mut agent = Agent::start().await;
    fs::create_dir_all(&agent.cwd).unwrap();
    let tar = || Tar::new().file("innocent", b"x");
    let (path, link, kind) = (
        "directory_extract_invalid_path",
        "directory_extract_invalid_symlink",
        "directory_extract_unsupported_entry",
    );
    for (archive, expected, at) in [
        (tar().file("../escape", b"x"), path, "../escape"),
        (tar().file("/escape", b"x"), path, "/escape"),
        (tar().directory("d").link("l", "d").file("l/x", b"x"), path, "l/x"),
        (tar().link("l", "/etc/passwd"), link, "l"),
        (tar().link("d/l", "../../x"), link, "d/l"),
        (tar().link("d/up", "..").link("out", "d/up/.."), link, "out"),
        (tar().entry(EntryType::Link, "h", "innocent", 0o644, b""), kind, "h"),
        (tar().entry(EntryType::Char, "null", "", 0o644, b""), kind, "null"),
        (tar().entry(EntryType::Fifo, "pipe", "", 0o644, b""), kind, "pipe"),
        (tar().entry(EntryType::GNUSparse, "sparse", "", 0o644, b""), kind, ""),
    ] {
        let archive = archive.bytes();
        let refused = agent.client.whole(directory(&archive, pb::UploadConflict::Merge), &archive).await;
        let refused = refused.expect_err(at);
        assert_eq!((refused.code(), reason(&refused)), (Code::FailedPrecondition, expected), "{at}");
        let told = refused.metadata().get("nullspace-upload-path").map(|path| path.to_str().unwrap());
        assert_eq!(told.unwrap_or_default(), at);
        assert!(names(&agent.cwd).is_empty(), "{at}");
    }
    let noise = content(5000);
    let refused = agent.client.whole(directory(&noise, pb::UploadConflict::Merge), &noise).await;
    assert_eq!(reason(&refused.unwrap_err()), kind);
    // What is no archive never becomes one.
    let archive = tar().link("l", "/").bytes();
    agent.client.begin(directory(&archive, pb::UploadConflict::Merge)).await.unwrap();
    agent.client.parts(&archive, 1 << 20).await;
    agent.client.complete(bytes::Bytes::new()).await.unwrap_err();
    assert_eq!(agent.client.state().await.status(), UploadFailed);
}

#[tokio::test]
async fn set_id_bits_are_not_taken_from_an_archive() {
    let mut agent = Agent::start().await;
    let archive = Tar::new().entry(EntryType::Regular, "program", "", 0o6755, b"x").bytes();
    agent.client.whole(directory(&archive, pb::UploadConflict::Merge), &archive).await.unwrap();
    assert_eq!(agent.cwd.join("tree/program").metadata().unwrap().mode() & 0o7777, 0o755);
}
