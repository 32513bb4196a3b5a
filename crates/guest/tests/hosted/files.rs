//! Reading, writing and changing files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nullspace_guest_proto as pb;
use pb::write_file_request::Part;
use tonic::{Code, Status};

use crate::agent::Agent;
use crate::processes::SmallDisk;

pub fn start(path: &str, user: &str) -> pb::WriteFileRequest {
    pb::WriteFileRequest {
        part: Some(Part::Start(pb::WriteFileStart {
            path: path.into(),
            user: user.into(),
            ..Default::default()
        })),
    }
}

pub fn data(data: &[u8]) -> pb::WriteFileRequest {
    pb::WriteFileRequest { part: Some(Part::Data(bytes::Bytes::copy_from_slice(data))) }
}

fn path(path: impl AsRef<Path>) -> pb::PathRequest {
    pb::PathRequest { path: path.as_ref().to_str().unwrap().into(), user: String::new() }
}

impl Agent {
    pub async fn write(&mut self, path: &str, user: &str, content: &[u8]) -> Result<pb::FileInfo, Status> {
        let parts: Vec<_> =
            std::iter::once(start(path, user)).chain(content.chunks(65536).map(data)).collect();
        self.client.write_file(tokio_stream::iter(parts)).await.map(|reply| reply.into_inner())
    }

    async fn read(&mut self, path: &str, offset: u64, length: u64) -> Result<(Vec<u8>, u64), Status> {
        self.read_part(pb::ReadFileRequest { path: path.into(), offset, length, ..Default::default() }).await
    }

    async fn read_last(&mut self, path: &str, suffix: u64) -> Result<(Vec<u8>, u64), Status> {
        self.read_part(pb::ReadFileRequest { path: path.into(), suffix, ..Default::default() }).await
    }

    async fn read_part(&mut self, request: pb::ReadFileRequest) -> Result<(Vec<u8>, u64), Status> {
        let mut chunks = self.client.read_file(request).await?.into_inner();
        let first = chunks.message().await?.expect("there is always a first chunk");
        let mut content = first.data.to_vec();
        while let Some(chunk) = chunks.message().await? {
            assert!(!chunk.data.is_empty() && chunk.data.len() <= pb::MESSAGE_LIMIT / 2);
            content.extend_from_slice(&chunk.data);
        }
        Ok((content, first.size))
    }

    async fn list(&mut self, path: &str, depth: u32) -> Result<Vec<pb::FileInfo>, Status> {
        let request = pb::ListFilesRequest { path: path.into(), user: String::new(), depth };
        let mut entries = self.client.list_files(request).await?.into_inner();
        let mut all = Vec::new();
        while let Some(entry) = entries.message().await? {
            all.push(entry);
        }
        Ok(all)
    }
}

#[tokio::test]
async fn a_file_is_written_with_its_parents_and_read_back() {
    let mut agent = Agent::start().await;
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    for len in [0, 1, 65536, 65537, 3_000_000] {
        let info = agent.write("a/b/file", "", &content[..len]).await.unwrap();
        let target = agent.cwd.join("a/b/file");
        assert_eq!((info.path.as_str(), info.size), (target.to_str().unwrap(), len as u64));
        assert_eq!((info.r#type(), info.mode, info.owner.as_str()), (pb::FileType::File, 0o644, "root"));
        assert_eq!(info, agent.client.stat_file(path("a/b/file")).await.unwrap().into_inner());
        let (read, size) = agent.read("a/b/file", 0, 0).await.unwrap();
        assert!(read == content[..len] && size == len as u64);
    }
    let (part, size) = agent.read("a/b/file", 70_000, 100_000).await.unwrap();
    assert!(part == content[70_000..170_000] && size == 3_000_000);
    assert_eq!(agent.read("a/b/file", 5_000_000, 0).await.unwrap(), (vec![], 3_000_000));
    assert_eq!(agent.read_last("a/b/file", 3).await.unwrap(), (content[2_999_997..].to_vec(), 3_000_000));
    assert!(agent.read_last("a/b/file", 5_000_000).await.unwrap().0 == content);
    let names: Vec<_> =
        fs::read_dir(agent.cwd.join("a/b")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["file"], "nothing temporary is left");
}

#[tokio::test]
async fn files_of_proc_have_no_size_and_are_read() {
    let mut agent = Agent::start().await;
    let (content, size) = agent.read("/proc/self/status", 0, 0).await.unwrap();
    assert!(content.starts_with(b"Name:") && size == content.len() as u64);
    let (kernel, _) = agent.read("/proc/version", 0, 0).await.unwrap();
    assert_eq!(agent.read_last("/proc/version", 7).await.unwrap().0, kernel[kernel.len() - 7..]);
}

#[tokio::test]
async fn the_first_chunk_tells_of_the_whole_file() {
    let mut agent = Agent::start().await;
    agent.write("empty", "", b"").await.unwrap();
    assert_eq!(agent.read("empty", 7, 0).await.unwrap(), (vec![], 0));
    assert_eq!(agent.read_last("empty", 7).await.unwrap(), (vec![], 0));
    let info = agent.write("f", "", b"content").await.unwrap();
    let request = pb::ReadFileRequest { path: "f".into(), offset: 100, ..Default::default() };
    let chunk = agent.client.read_file(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!((chunk.data.len(), chunk.size, chunk.modified_ns), (0, 7, info.modified_ns));
    assert!(info.modified_ns > 1_600_000_000_000_000_000);
}

#[tokio::test]
async fn overwriting_keeps_mode_and_owner_unless_a_user_is_named() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP: needs root to give files away");
        return;
    }
    let mut agent = Agent::start().await;
    agent.write("d/f", "nobody", b"1").await.unwrap();
    let file = agent.cwd.join("d/f");
    let ids = |path: &Path| (fs::metadata(path).unwrap().uid(), fs::metadata(path).unwrap().gid());
    assert_eq!((ids(&file), ids(&agent.cwd.join("d"))), ((65534, 65534), (65534, 65534)));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap();
    let info = agent.write("d/f", "", b"2").await.unwrap();
    assert_eq!((info.mode, info.owner.as_str(), info.group.as_str()), (0o4751, "nobody", "nogroup"));
    assert_eq!(agent.write("d/f", "root", b"3").await.unwrap().owner, "root");
    let unknown = agent.write("d/f", "nobody-of-that-name", b"4").await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    assert_eq!(fs::read(&file).unwrap(), b"3");
}

#[tokio::test]
async fn a_link_is_written_through_and_devices_directly() {
    let mut agent = Agent::start().await;
    fs::create_dir_all(agent.cwd.join("real")).unwrap();
    symlink("real/new", agent.cwd.join("link")).unwrap();
    for content in [b"1", b"2"] {
        let info = agent.write("link", "", content).await.unwrap();
        assert_eq!((info.r#type(), info.symlink_target.as_str()), (pb::FileType::Symlink, "real/new"));
        assert_eq!(fs::read(agent.cwd.join("real/new")).unwrap(), content);
    }
    agent.write("/dev/null", "", b"gone").await.unwrap();
    let full = agent.write("/dev/full", "", b"gone").await.unwrap_err();
    assert_eq!(
        (full.code(), full.message()),
        (Code::ResourceExhausted, "no space left in the sandbox: /dev/full")
    );
}

#[tokio::test]
async fn nothing_waits_for_a_pipe() {
    let mut agent = Agent::start().await;
    fs::create_dir_all(&agent.cwd).unwrap();
    nix::unistd::mkfifo(&agent.cwd.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(agent.write("pipe", "", b"x").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(agent.read("pipe", 0, 0).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(agent.list(".", 1).await.unwrap()[0].r#type(), pb::FileType::Other);
}

#[tokio::test]
async fn paths_outside_the_rules_are_refused() {
    let mut agent = Agent::start().await;
    fs::create_dir_all(agent.cwd.join("dir")).unwrap();
    let long = "n/".repeat(2500);
    symlink("loop", agent.cwd.join("loop")).unwrap();
    for bad in
        ["", "/workspace/.nullspace/x", "/a/../workspace/.nullspace", "a\0b", &long, "dir", "loop", "loop/x"]
    {
        assert_eq!(agent.write(bad, "", b"x").await.unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
    }
    fs::write(agent.cwd.join("plain"), "x").unwrap();
    for (bad, code) in [
        ("plain/below", Code::InvalidArgument),
        ("/proc/new-file", Code::PermissionDenied),
        ("/sys/new-file", Code::PermissionDenied),
        ("/proc/1/status/x", Code::InvalidArgument),
        (&format!("{}/x", "n".repeat(300)), Code::InvalidArgument),
    ] {
        let error = agent.write(bad, "", b"x").await.unwrap_err();
        assert_eq!(error.code(), code, "{bad:?}: {error}");
    }
    let is_directory = agent.read("dir", 0, 0).await.unwrap_err();
    assert_eq!(is_directory.code(), Code::InvalidArgument);
    assert!(is_directory.message().ends_with("is a directory"), "{is_directory}");
    assert_eq!(agent.read("missing", 0, 0).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(agent.list("plain", 1).await.unwrap_err().code(), Code::InvalidArgument);
    let up = agent.write("../../../../../../../../../../../proc/x", "", b"x").await.unwrap_err();
    assert_eq!((up.code(), up.message()), (Code::PermissionDenied, "/proc/x cannot be written"));
    let no_start = agent.client.write_file(tokio_stream::iter([data(b"x")])).await.unwrap_err();
    assert_eq!(no_start.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_full_disk_refuses_a_file_and_leaves_the_old_one() {
    let Some(disk) = SmallDisk::mount() else { return };
    let mut agent = Agent::start().await;
    let target = disk.path().join("file");
    let target = target.to_str().unwrap();
    agent.write(target, "", b"old").await.unwrap();
    let error = agent.write(target, "", &vec![0; 4 << 20]).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(error.message(), format!("no space left in the sandbox: {target}"));
    assert_eq!(fs::read(target).unwrap(), b"old");
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 1, "the temporary file is gone");
}

#[tokio::test]
async fn a_file_system_that_takes_no_changes_refuses_them_by_name() {
    let Some(disk) = SmallDisk::mount() else { return };
    fs::write(disk.path().join("f"), "old").unwrap();
    let flags = nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_RDONLY;
    let none: Option<&str> = None;
    nix::mount::mount(none, disk.path(), none, flags, none).unwrap();
    let mut agent = Agent::start().await;
    for name in ["f", "new", "new/below"] {
        let target = disk.path().join(name);
        let error = agent.write(target.to_str().unwrap(), "", b"x").await.unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied);
        assert!(error.message().starts_with("read-only file system: "), "{error}");
    }
    let request = pb::ReplaceInFilesRequest {
        paths: vec![disk.path().join("f").to_str().unwrap().into()],
        pattern: "old".into(),
        ..Default::default()
    };
    let error = agent.client.replace_in_files(request).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
}

#[tokio::test]
async fn a_write_that_is_given_up_leaves_nothing() {
    let agent = Agent::start().await;
    fs::create_dir_all(&agent.cwd).unwrap();
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    sender.send(start("f", "")).await.unwrap();
    sender.send(data(b"half")).await.unwrap();
    let mut client = agent.client.clone();
    let write = tokio::spawn(async move {
        client.write_file(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.map(|_| ())
    });
    let hidden = |agent: &Agent| fs::read_dir(&agent.cwd).unwrap().count();
    while hidden(&agent) == 0 {
        tokio::task::yield_now().await;
    }
    write.abort();
    assert!(write.await.unwrap_err().is_cancelled());
    while hidden(&agent) != 0 {
        tokio::task::yield_now().await;
    }
    // The end of the messages, which comes too late, is not the end of the file.
    drop(sender);
    let exists = agent.client.clone().file_exists(path("f")).await.unwrap().into_inner().exists;
    assert!(!exists);
}

#[tokio::test]
async fn a_listing_is_sorted_and_as_deep_as_asked() {
    let mut agent = Agent::start().await;
    let cwd = agent.cwd.clone();
    for directory in ["b/deep/er", "a"] {
        fs::create_dir_all(cwd.join(directory)).unwrap();
    }
    for file in ["c", "b/x", "b/deep/y", "b-file", "a/z"] {
        fs::write(cwd.join(file), file).unwrap();
    }
    symlink("/", cwd.join("link")).unwrap();
    fs::write(cwd.join(".nullspace-write-7-new"), "not there yet").unwrap();
    let mut names = async |depth| -> Vec<String> {
        let list = agent.list(".", depth).await.unwrap();
        list.iter()
            .map(|entry| Path::new(&entry.path).strip_prefix(&cwd).unwrap().to_str().unwrap().into())
            .collect()
    };
    assert_eq!(names(0).await, ["a", "b", "b-file", "c", "link"]);
    assert_eq!(names(1).await, ["a", "b", "b-file", "c", "link"]);
    assert_eq!(names(2).await, ["a", "a/z", "b", "b/deep", "b/x", "b-file", "c", "link"]);
    assert_eq!(
        names(9).await,
        ["a", "a/z", "b", "b/deep", "b/deep/er", "b/deep/y", "b/x", "b-file", "c", "link"]
    );
    let all = agent.list(".", 1).await.unwrap();
    assert_eq!((all[0].r#type(), all[3].size), (pb::FileType::Directory, 1));
    assert_eq!((all[4].r#type(), all[4].symlink_target.as_str()), (pb::FileType::Symlink, "/"));
    assert_eq!(agent.list("missing", 1).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn files_are_looked_for_moved_changed_and_removed() {
    let mut agent = Agent::start().await;
    let client = &mut agent.client;
    let exists = |reply: tonic::Response<pb::FileExistsReply>| reply.into_inner().exists;
    client.make_directory(path("x/y")).await.unwrap();
    client.make_directory(path("x/y")).await.unwrap();
    assert!(exists(client.file_exists(path("x/y")).await.unwrap()));
    assert!(!exists(client.file_exists(path("x/none/at/all")).await.unwrap()));

    fs::write(agent.cwd.join("x/f"), "content").unwrap();
    assert_eq!(client.make_directory(path("x/f")).await.unwrap_err().code(), Code::AlreadyExists);
    let rename = |old: &str, new: &str| pb::RenameFileRequest {
        old_path: old.into(),
        new_path: new.into(),
        user: String::new(),
    };
    let info = client.rename_file(rename("x/f", "new/place")).await.unwrap().into_inner();
    assert_eq!(info.path, agent.cwd.join("new/place").to_str().unwrap());
    assert_eq!(client.rename_file(rename("x/f", "y")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.rename_file(rename("x", "x/y/z")).await.unwrap_err().code(), Code::InvalidArgument);

    let permissions =
        |mode| pb::SetPermissionsRequest { path: "new/place".into(), mode, user: String::new() };
    client.set_permissions(permissions(0o2640)).await.unwrap();
    assert_eq!(client.stat_file(path("new/place")).await.unwrap().into_inner().mode, 0o2640);
    assert_eq!(client.set_permissions(permissions(0o10000)).await.unwrap_err().code(), Code::InvalidArgument);

    client.remove_file(path("new/place")).await.unwrap();
    client.remove_file(path("x")).await.unwrap();
    assert!(!agent.cwd.join("x").exists());
    assert_eq!(client.remove_file(path("x")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.remove_file(path("/")).await.unwrap_err().code(), Code::InvalidArgument);
}
