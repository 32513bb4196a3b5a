//! Resumable uploads.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nullspace_guest_proto as pb;
use pb::UploadStatus::*;
use pb::write_upload_part_request::Part;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::agent::{Agent, Client};
use crate::archives::{Tar, directory};
use crate::processes::SmallDisk;

const PART: u64 = 1000;

fn message(part: Part) -> pb::WriteUploadPartRequest {
    pb::WriteUploadPartRequest { part: Some(part) }
}

fn start(part: u32) -> pb::WriteUploadPartRequest {
    message(Part::Start(pb::WriteUploadPartStart { upload_id: "up".into(), part }))
}

fn data(data: &[u8]) -> pb::WriteUploadPartRequest {
    message(Part::Data(bytes::Bytes::copy_from_slice(data)))
}

fn end() -> pb::WriteUploadPartRequest {
    message(Part::End(pb::WriteUploadPartEnd {}))
}

pub fn content(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

fn sha256(content: &[u8]) -> bytes::Bytes {
    Sha256::digest(content).to_vec().into()
}

fn in_seconds(seconds: u64) -> i64 {
    let at = SystemTime::now() + Duration::from_secs(seconds);
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as i64
}

pub fn wish(length: usize) -> pb::CreateUploadRequest {
    pb::CreateUploadRequest {
        upload_id: "up".into(),
        kind: pb::UploadKind::UploadFile.into(),
        target_path: "sub/target".into(),
        content_length: length as u64,
        conflict: pb::UploadConflict::Merge.into(),
        part_size: PART,
        staging_quota_bytes: 1 << 30,
        expires_ns: in_seconds(3600),
        label: "label".into(),
        ..Default::default()
    }
}

/// What a refusal says to programs.
pub fn reason(status: &Status) -> &str {
    let told = status.metadata().get("nullspace-upload-reason").map(|reason| reason.to_str().unwrap());
    told.unwrap_or_else(|| panic!("no reason: {status:?}"))
}

/// Short forms of the calls; the upload is `up` where no other is named.
pub trait Uploads {
    async fn begin(&mut self, request: pb::CreateUploadRequest) -> Result<pb::Upload, Status>;
    async fn state(&mut self) -> pb::Upload;
    async fn part(&mut self, part: u32, content: &[u8]) -> Result<pb::Upload, Status>;
    async fn parts(&mut self, content: &[u8], size: u64);
    async fn complete(&mut self, sha256: bytes::Bytes) -> Result<pb::CompleteUploadReply, Status>;
    async fn abort(&mut self) -> Result<pb::Upload, Status>;
    /// From the beginning to the end under an ID of its own.
    async fn whole(
        &mut self,
        request: pb::CreateUploadRequest,
        content: &[u8],
    ) -> Result<pb::CompleteUploadReply, Status>;
}

impl Uploads for Client {
    async fn begin(&mut self, request: pb::CreateUploadRequest) -> Result<pb::Upload, Status> {
        self.create_upload(request).await.map(|reply| reply.into_inner())
    }

    async fn state(&mut self) -> pb::Upload {
        self.get_upload(pb::UploadRequest { upload_id: "up".into() }).await.unwrap().into_inner()
    }

    async fn part(&mut self, part: u32, content: &[u8]) -> Result<pb::Upload, Status> {
        let mut messages = vec![start(part)];
        messages.extend(content.chunks(300).map(data));
        messages.push(end());
        self.write_upload_part(tokio_stream::iter(messages)).await.map(|reply| reply.into_inner())
    }

    async fn parts(&mut self, content: &[u8], size: u64) {
        for (part, content) in content.chunks(size as usize).enumerate() {
            self.part(part as u32, content).await.unwrap();
        }
    }

    async fn complete(&mut self, sha256: bytes::Bytes) -> Result<pb::CompleteUploadReply, Status> {
        let request = pb::CompleteUploadRequest { upload_id: "up".into(), whole_sha256: sha256 };
        self.complete_upload(request).await.map(|reply| reply.into_inner())
    }

    async fn abort(&mut self) -> Result<pb::Upload, Status> {
        self.abort_upload(pb::UploadRequest { upload_id: "up".into() }).await.map(|r| r.into_inner())
    }

    async fn whole(
        &mut self,
        request: pb::CreateUploadRequest,
        content: &[u8],
    ) -> Result<pb::CompleteUploadReply, Status> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = format!("up_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.begin(pb::CreateUploadRequest { upload_id: id.clone(), ..request }).await?;
        let messages = vec![
            message(Part::Start(pb::WriteUploadPartStart { upload_id: id.clone(), part: 0 })),
            data(content),
            end(),
        ];
        if !content.is_empty() {
            self.write_upload_part(tokio_stream::iter(messages)).await?;
        }
        let request = pb::CompleteUploadRequest { upload_id: id, whole_sha256: sha256(content) };
        self.complete_upload(request).await.map(|reply| reply.into_inner())
    }
}

pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn parts_come_in_any_order_again_and_at_once_and_are_published_in_one_step() {
    let mut agent = Agent::start().await;
    let content = content(3500);
    let part = |n: usize| &content[n * 1000..content.len().min(n * 1000 + 1000)];
    let created = agent.client.begin(wish(3500)).await.unwrap();
    let target = agent.cwd.join("sub/target");
    assert_eq!(created.target_path, target.to_str().unwrap());
    assert_eq!((created.status(), created.part_count, created.next_part), (UploadCreated, 4, Some(0)));
    assert_eq!((created.reserved_bytes, created.label.as_str()), (3500, "label"));

    let last = agent.client.part(3, part(3)).await.unwrap();
    assert_eq!((last.status(), last.accepted_bytes, last.next_part), (UploadUploading, 500, Some(0)));
    let mut others = [agent.client.clone(), agent.client.clone()];
    let [one, two] = &mut others;
    let (one, two) = tokio::join!(one.part(0, part(0)), two.part(2, part(2)));
    assert_eq!(one.unwrap().accepted_bytes.max(two.unwrap().accepted_bytes), 2500);
    // Again, and with other bytes: what was accepted stays.
    assert_eq!(agent.client.part(0, &[9; 1000]).await.unwrap().accepted_bytes, 2500);

    let early = agent.client.complete(sha256(&content)).await.unwrap_err();
    assert_eq!((early.code(), reason(&early)), (Code::FailedPrecondition, "missing_parts"));
    assert_eq!(early.message(), "1 of 4 parts are missing; the first is 1");
    let staged = agent.client.part(1, part(1)).await.unwrap();
    assert_eq!((staged.status(), staged.accepted_bytes, staged.next_part), (UploadStaged, 3500, None));
    assert!(!agent.cwd.exists(), "nothing can be seen before the end, not even a directory");

    let mut other = agent.client.clone();
    let both = tokio::join!(agent.client.complete(sha256(&content)), other.complete(sha256(&content)));
    let completed = both.0.unwrap();
    assert_eq!((completed.published_bytes, completed.published_file_count), (3500, 1));
    assert_eq!(completed.upload.as_ref().unwrap().status(), UploadCompleted);
    assert_eq!(completed.upload.as_ref().unwrap().reserved_bytes, 0);
    assert_eq!(both.1.unwrap(), completed);
    assert_eq!(agent.client.complete(bytes::Bytes::new()).await.unwrap(), completed, "also later");
    assert_eq!(fs::read(&target).unwrap(), content);
    assert_eq!(target.metadata().unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(names(&agent.cwd.join("sub")), ["target"]);

    for late in [agent.client.part(1, part(1)).await.unwrap_err(), agent.client.abort().await.unwrap_err()] {
        assert_eq!(reason(&late), "upload_already_completed");
    }
    assert_eq!(agent.client.state().await, completed.upload.unwrap());
}

#[tokio::test]
async fn a_part_that_is_wrong_or_breaks_off_changes_nothing() {
    let mut agent = Agent::start().await;
    let content = content(2000);
    agent.client.begin(wish(2000)).await.unwrap();
    agent.client.part(0, &content[..1000]).await.unwrap();
    let before = agent.client.state().await;
    for length in [0, 999, 1001, 5000] {
        for part in [0, 1] {
            let refused = agent.client.part(part, &vec![7; length]).await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused)), (Code::InvalidArgument, "part_size_mismatch"));
        }
    }
    for part in [2, u32::MAX] {
        let refused = agent.client.part(part, b"").await.unwrap_err();
        assert_eq!(reason(&refused), "part_out_of_range");
        assert_eq!(refused.message(), format!("there is no part {part}; the upload has 2"));
    }
    // All of the bytes, but not the end.
    let broken = tokio_stream::iter(vec![start(1), data(&[7; 1000])]);
    assert_eq!(agent.client.write_upload_part(broken).await.unwrap_err().code(), Code::Aborted);
    let (send, receive) = mpsc::channel(4);
    send.send(start(1)).await.unwrap();
    send.send(data(&[7; 500])).await.unwrap();
    let mut other = agent.client.clone();
    let call = tokio::spawn(async move { other.write_upload_part(ReceiverStream::new(receive)).await });
    assert_eq!(agent.client.state().await, before);

    // A newer call of the same part takes it over, though the other has not ended.
    agent.client.part(1, &content[1000..]).await.unwrap();
    send.send(data(&[7; 500])).await.unwrap();
    send.send(end()).await.unwrap();
    // The older one wrote nothing more; or it had not begun, and then was a repetition.
    let older = call.await.unwrap();
    assert!(older.is_ok() || older.unwrap_err().code() == Code::Aborted);
    agent.client.complete(sha256(&content)).await.unwrap();
    assert_eq!(fs::read(agent.cwd.join("sub/target")).unwrap(), content);
}

#[tokio::test]
async fn content_with_another_checksum_is_not_published_and_ends_the_upload() {
    let mut agent = Agent::start().await;
    let announced = sha256(b"announced");
    let request = pb::CreateUploadRequest { whole_sha256: announced.clone(), ..wish(1500) };
    agent.client.begin(request).await.unwrap();
    agent.client.parts(&content(1500), PART).await;
    let contradicts = agent.client.complete(sha256(&content(1500))).await.unwrap_err();
    assert_eq!(reason(&contradicts), "whole_checksum_mismatch");
    assert_eq!(agent.client.state().await.status(), UploadStaged, "a wrong wish changes nothing");
    for _ in 0..2 {
        let failed = agent.client.complete(announced.clone()).await.unwrap_err();
        assert_eq!((failed.code(), reason(&failed)), (Code::FailedPrecondition, "whole_checksum_mismatch"));
        let state = agent.client.state().await;
        assert_eq!((state.status(), state.reserved_bytes), (UploadFailed, 0));
    }
    assert_eq!(reason(&agent.client.part(0, &[0; 1000]).await.unwrap_err()), "whole_checksum_mismatch");
    assert!(!agent.cwd.exists());
}

#[tokio::test]
async fn the_same_key_finds_the_upload_and_other_values_are_refused() {
    let mut agent = Agent::start().await;
    let request = pb::CreateUploadRequest { key: "key".into(), ..wish(10) };
    let mut others = [agent.client.clone(), agent.client.clone()];
    let [one, two] = &mut others;
    let (one, two) = tokio::join!(one.begin(request.clone()), two.begin(request.clone()));
    let created = one.unwrap();
    assert_eq!(two.unwrap(), created);
    // A server that sends it again chooses its part anew.
    let again = pb::CreateUploadRequest {
        upload_id: "another".into(),
        expires_ns: in_seconds(7200),
        part_size: 5,
        ..request.clone()
    };
    assert_eq!(agent.client.begin(again).await.unwrap(), created);
    let other = pb::CreateUploadRequest { content_length: 11, ..request.clone() };
    assert_eq!(agent.client.begin(other).await.unwrap_err().code(), Code::AlreadyExists);
    agent.client.part(0, &content(10)).await.unwrap();
    let completed = agent.client.complete(bytes::Bytes::new()).await.unwrap();
    assert_eq!(agent.client.begin(request).await.unwrap(), completed.upload.unwrap(), "also after its end");
}

#[tokio::test]
async fn an_aborted_or_expired_upload_is_gone_and_says_so() {
    let mut agent = Agent::start().await;
    agent.client.begin(wish(1500)).await.unwrap();
    agent.client.part(0, &content(1000)).await.unwrap();
    for _ in 0..2 {
        let aborted = agent.client.abort().await.unwrap();
        assert_eq!((aborted.status(), aborted.reserved_bytes), (UploadAborted, 0));
    }
    assert_eq!(reason(&agent.client.part(1, &[0; 500]).await.unwrap_err()), "upload_aborted");
    assert_eq!(reason(&agent.client.complete(bytes::Bytes::new()).await.unwrap_err()), "upload_aborted");

    let mut agent = Agent::start().await;
    let begun = agent.client.begin(pb::CreateUploadRequest { expires_ns: in_seconds(1), ..wish(1500) }).await;
    assert_eq!(begun.unwrap().status(), UploadCreated);
    while agent.client.state().await.status() != UploadExpired {
        tokio::task::yield_now().await;
    }
    assert_eq!(reason(&agent.client.part(0, &[0; 1000]).await.unwrap_err()), "upload_expired");
    assert_eq!(reason(&agent.client.complete(bytes::Bytes::new()).await.unwrap_err()), "upload_expired");
    let past = pb::CreateUploadRequest { upload_id: "past".into(), expires_ns: 1, ..wish(1) };
    assert_eq!(agent.client.begin(past).await.unwrap_err().code(), Code::InvalidArgument);
    let unknown = agent.client.get_upload(pb::UploadRequest { upload_id: "past".into() }).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn an_upload_that_is_being_put_in_place_can_still_be_given_up() {
    let mut agent = Agent::start().await;
    let length = 64 << 20;
    agent.client.begin(pb::CreateUploadRequest { part_size: length as u64, ..wish(length) }).await.unwrap();
    let pieces = std::iter::repeat_n(data(&vec![0; 1 << 20]), length >> 20);
    let messages: Vec<_> = std::iter::once(start(0)).chain(pieces).chain([end()]).collect();
    agent.client.write_upload_part(tokio_stream::iter(messages)).await.unwrap();
    let mut other = agent.client.clone();
    let completing = tokio::spawn(async move { other.complete(sha256(&vec![0; length])).await });
    while agent.client.state().await.status() == UploadStaged {
        tokio::task::yield_now().await;
    }
    let aborted = agent.client.abort().await;
    let completed = completing.await.unwrap();
    // Whichever was faster, the two agree.
    match aborted {
        Ok(aborted) => {
            assert_eq!(aborted.status(), UploadAborted);
            assert_eq!(reason(&completed.unwrap_err()), "upload_aborted");
            assert!(!agent.cwd.exists());
        }
        Err(refused) => {
            assert_eq!(reason(&refused), "upload_already_completed");
            assert_eq!(completed.unwrap().published_bytes, length as u64);
        }
    }
}

#[tokio::test]
async fn uploads_that_are_too_large_or_too_many_are_refused() {
    let mut agent = Agent::start().await;
    let with = |upload_id: &str, length, quota| pb::CreateUploadRequest {
        upload_id: upload_id.into(),
        staging_quota_bytes: quota,
        ..wish(length)
    };
    agent.client.begin(with("up", 600, 1000)).await.unwrap();
    let refused = agent.client.begin(with("b", 600, 1000)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::ResourceExhausted, "insufficient_staging_space"));
    agent.client.abort().await.unwrap();
    agent.client.begin(with("b", 600, 1000)).await.unwrap();
    let parts = pb::CreateUploadRequest { part_size: 1, ..with("c", 100_001, 1 << 30) };
    assert_eq!(reason(&agent.client.begin(parts).await.unwrap_err()), "size_limit_exceeded");
    let huge = with("d", 1 << 60, u64::MAX);
    let huge = pb::CreateUploadRequest { part_size: 1 << 50, ..huge };
    assert_eq!(reason(&agent.client.begin(huge).await.unwrap_err()), "insufficient_staging_space");
    for broken in [
        pb::CreateUploadRequest { kind: 0, ..wish(1) },
        pb::CreateUploadRequest { conflict: 9, ..wish(1) },
        pb::CreateUploadRequest { part_size: 0, ..wish(1) },
        pb::CreateUploadRequest { upload_id: String::new(), ..wish(1) },
        pb::CreateUploadRequest { label: "x".repeat(1025), ..wish(1) },
        pb::CreateUploadRequest { whole_sha256: b"short"[..].into(), ..wish(1) },
        pb::CreateUploadRequest { target_path: String::new(), ..wish(1) },
        pb::CreateUploadRequest { user: "nobody-of-that-name".into(), ..wish(1) },
    ] {
        let broken = pb::CreateUploadRequest {
            upload_id: if broken.upload_id.is_empty() { String::new() } else { "e".into() },
            ..broken
        };
        assert_eq!(
            agent.client.begin(broken.clone()).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{broken:?}"
        );
    }
    let proc = pb::CreateUploadRequest { upload_id: "f".into(), target_path: "/proc/x".into(), ..wish(1) };
    assert_eq!(agent.client.begin(proc).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn room_is_taken_at_the_beginning_and_freed_at_the_end() {
    let Some(disk) = SmallDisk::mount() else { return };
    let mut agent = Agent::start().await;
    let target = disk.path().join("target").to_str().unwrap().to_owned();
    let to_disk = |upload_id: &str, length| pb::CreateUploadRequest {
        upload_id: upload_id.into(),
        target_path: target.clone(),
        ..wish(length)
    };
    agent.client.begin(to_disk("up", 700_000)).await.unwrap();
    let full = agent.client.begin(to_disk("b", 700_000)).await.unwrap_err();
    assert_eq!((full.code(), reason(&full)), (Code::ResourceExhausted, "insufficient_staging_space"));
    assert!(fs::write(disk.path().join("other"), vec![0; 700_000]).is_err(), "the room is taken");
    fs::remove_file(disk.path().join("other")).unwrap();
    agent.client.abort().await.unwrap();
    while agent.client.begin(to_disk("b", 700_000)).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert!(names(disk.path()).is_empty(), "what is staged has no name");

    // An archive for whose content there is no room, until somebody makes some.
    let archive = Tar::new().file("file", &vec![1; 600_000]).bytes();
    agent.client.abort_upload(pb::UploadRequest { upload_id: "b".into() }).await.unwrap();
    let mut agent = Agent::start().await;
    let request = pb::CreateUploadRequest {
        target_path: disk.path().join("tree").to_str().unwrap().into(),
        ..directory(&archive, pb::UploadConflict::Merge)
    };
    while agent.client.begin(request.clone()).await.is_err() {
        tokio::task::yield_now().await;
    }
    agent.client.parts(&archive, 1 << 20).await;
    let full = agent.client.complete(bytes::Bytes::new()).await.unwrap_err();
    assert_eq!((full.code(), reason(&full)), (Code::ResourceExhausted, "insufficient_staging_space"));
    assert!(names(disk.path()).is_empty());
    assert_eq!(agent.client.state().await.status(), UploadStaged);
    nix::mount::mount(
        None::<&str>,
        disk.path(),
        None::<&str>,
        nix::mount::MsFlags::MS_REMOUNT,
        Some("size=2m"),
    )
    .unwrap();
    assert_eq!(agent.client.complete(bytes::Bytes::new()).await.unwrap().published_bytes, 600_000);
}

#[tokio::test]
async fn an_expired_upload_frees_its_room_though_nobody_asks_for_it() {
    let Some(disk) = SmallDisk::mount() else { return };
    let mut agent = Agent::start().await;
    let request = pb::CreateUploadRequest {
        target_path: disk.path().join("target").to_str().unwrap().into(),
        expires_ns: in_seconds(1),
        ..wish(700_000)
    };
    agent.client.begin(request).await.unwrap();
    while fs::write(disk.path().join("other"), vec![0; 700_000]).is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_is_at_a_files_target_is_replaced_or_in_the_way() {
    let mut agent = Agent::start().await;
    fs::create_dir_all(agent.cwd.join("sub/directory")).unwrap();
    let target = agent.cwd.join("sub/target");
    fs::write(&target, "old").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o751)).unwrap();
    let hard_link = agent.cwd.join("hard link");
    fs::hard_link(&target, &hard_link).unwrap();
    let root = nix::unistd::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(&target, Some(65534), Some(65534)).unwrap();
    }
    agent.client.whole(wish(3), b"new").await.unwrap();
    let metadata = target.metadata().unwrap();
    assert_eq!((fs::read(&target).unwrap(), metadata.mode() & 0o7777), (b"new".to_vec(), 0o751));
    assert_eq!(fs::read(&hard_link).unwrap(), b"old");
    if root {
        assert_eq!((metadata.uid(), metadata.gid()), (65534, 65534));
        let owned = pb::CreateUploadRequest { user: "root".into(), ..wish(3) };
        agent.client.whole(owned, b"own").await.unwrap();
        assert_eq!(target.metadata().unwrap().uid(), 0);
    }
    symlink("target", agent.cwd.join("sub/link")).unwrap();
    let through = pb::CreateUploadRequest { target_path: "sub/link".into(), ..wish(0) };
    agent.client.whole(through, b"").await.unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"");

    let fails = pb::CreateUploadRequest { conflict: pb::UploadConflict::Fail.into(), ..wish(3) };
    let refused = agent.client.whole(fails.clone(), b"no!").await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::FailedPrecondition, "target_conflict"));
    assert_eq!(refused.metadata().get("nullspace-upload-path").unwrap(), target.to_str().unwrap());
    let blocked = pb::CreateUploadRequest { target_path: "sub/directory".into(), ..wish(3) };
    assert_eq!(reason(&agent.client.whole(blocked, b"no!").await.unwrap_err()), "target_conflict");

    // What comes while the content does, too; and when it has gone, the upload can still be completed.
    fs::remove_file(&target).unwrap();
    agent.client.begin(fails).await.unwrap();
    agent.client.part(0, b"yes").await.unwrap();
    fs::write(&target, "late").unwrap();
    assert_eq!(reason(&agent.client.complete(sha256(b"yes")).await.unwrap_err()), "target_conflict");
    assert_eq!(fs::read(&target).unwrap(), b"late");
    fs::remove_file(&target).unwrap();
    agent.client.complete(sha256(b"yes")).await.unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"yes");
    assert_eq!(names(&agent.cwd.join("sub")), ["directory", "link", "target"]);
}
