//! Uploads that are kept in memory. A directory's archive is taken and not unpacked: its target is made,
//! and stays empty.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use nullspace_guest_proto as proto;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use super::files::Tree;

/// One of them.
#[derive(Clone)]
struct Staged {
    key: String,
    state: proto::Upload,
    parts: BTreeMap<u32, Bytes>,
    published: Option<(u64, u64)>,
}

/// All of them.
#[derive(Clone, Default)]
pub struct Uploads(BTreeMap<String, Staged>);

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn refused(reason: &'static str, message: impl Into<String>) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("nullspace-upload-reason", MetadataValue::from_static(reason));
    Status::with_metadata(Code::FailedPrecondition, message, metadata)
}

impl Staged {
    /// Refuses what no longer takes anything.
    fn open(&self) -> Result<(), Status> {
        match self.state.status() {
            proto::UploadStatus::UploadAborted => Err(refused("upload_aborted", "the upload was given up")),
            proto::UploadStatus::UploadExpired => Err(refused("upload_expired", "the upload's time is over")),
            proto::UploadStatus::UploadCompleted => {
                Err(refused("upload_already_completed", "the upload is in place already"))
            }
            _ => Ok(()),
        }
    }

    fn part_bytes(&self, part: u32) -> u64 {
        let begin = u64::from(part) * self.state.part_size;
        self.state.part_size.min(self.state.content_length.saturating_sub(begin))
    }

    fn recount(&mut self) {
        let missing = (0..self.state.part_count).find(|part| !self.parts.contains_key(part));
        self.state.accepted_bytes = self.parts.values().map(|part| part.len() as u64).sum();
        self.state.next_part = missing;
        self.state.updated_ns = now();
        let status = match (self.parts.is_empty(), missing) {
            (_, None) => proto::UploadStatus::UploadStaged,
            (true, _) => proto::UploadStatus::UploadCreated,
            (false, _) => proto::UploadStatus::UploadUploading,
        };
        self.state.set_status(status);
    }
}

impl Uploads {
    fn find(&mut self, id: &str) -> Result<&mut Staged, Status> {
        let staged =
            self.0.get_mut(id).ok_or_else(|| Status::not_found(format!("there is no upload {id}")))?;
        if staged.open().is_ok() && staged.state.expires_ns <= now() {
            staged.state.set_status(proto::UploadStatus::UploadExpired);
            staged.parts.clear();
        }
        Ok(staged)
    }

    pub fn create(
        &mut self,
        request: proto::CreateUploadRequest,
        target: String,
    ) -> Result<proto::Upload, Status> {
        let same = self.0.values().find(|staged| !request.key.is_empty() && staged.key == request.key);
        if let Some(staged) = same {
            let state = &staged.state;
            if (&state.target_path, state.content_length) != (&target, request.content_length) {
                return Err(Status::already_exists("the key was used for another upload"));
            }
            return Ok(state.clone());
        }
        let unfinished = self.0.values().filter(|staged| staged.open().is_ok());
        let reserved: u64 = unfinished.map(|staged| staged.state.reserved_bytes).sum();
        if reserved + request.content_length > request.staging_quota_bytes {
            return Err(refused("insufficient_staging_space", "the sandbox has no room for the upload"));
        }
        let count = request.content_length.div_ceil(request.part_size.max(1));
        let state = proto::Upload {
            upload_id: request.upload_id.clone(),
            kind: request.kind,
            target_path: target,
            user: request.user,
            content_length: request.content_length,
            reserved_bytes: request.content_length,
            part_size: request.part_size,
            part_count: u32::try_from(count).map_err(|_| Status::invalid_argument("too many parts"))?,
            conflict: request.conflict,
            whole_sha256: request.whole_sha256,
            created_ns: now(),
            expires_ns: request.expires_ns,
            label: request.label,
            ..Default::default()
        };
        let mut staged = Staged { key: request.key, state, parts: BTreeMap::new(), published: None };
        staged.recount();
        let state = staged.state.clone();
        self.0.insert(request.upload_id, staged);
        Ok(state)
    }

    pub fn get(&mut self, id: &str) -> Result<proto::Upload, Status> {
        Ok(self.find(id)?.state.clone())
    }

    pub fn part(&mut self, id: &str, part: u32, data: BytesMut) -> Result<proto::Upload, Status> {
        let staged = self.find(id)?;
        staged.open()?;
        if part >= staged.state.part_count {
            return Err(refused("part_out_of_range", format!("there is no part {part}")));
        }
        if data.len() as u64 != staged.part_bytes(part) {
            let message = format!("part {part} must have {} bytes", staged.part_bytes(part));
            return Err(refused("part_size_mismatch", message));
        }
        staged.parts.entry(part).or_insert_with(|| data.freeze());
        staged.recount();
        Ok(staged.state.clone())
    }

    pub fn complete(&mut self, id: &str, files: &mut Tree) -> Result<proto::CompleteUploadReply, Status> {
        let staged = self.find(id)?;
        if staged.published.is_none() {
            staged.open()?;
            if let Some(part) = staged.state.next_part {
                return Err(refused("missing_parts", format!("part {part} has not come")));
            }
            let (target, user) = (&staged.state.target_path, &staged.state.user);
            if staged.state.conflict() == proto::UploadConflict::Fail && files.exists(target) {
                return Err(refused("target_conflict", format!("there is something at {target}")));
            }
            staged.published = Some(match staged.state.kind() {
                proto::UploadKind::UploadDirectoryTar => {
                    files.make_directories(target, user)?;
                    (0, 0)
                }
                _ => {
                    let content: BytesMut =
                        staged.parts.values().flat_map(|part| part.iter().copied()).collect();
                    (files.write(target, user, content.freeze())?.size, 1)
                }
            });
            staged.state.reserved_bytes = 0;
            staged.state.updated_ns = now();
            staged.state.set_status(proto::UploadStatus::UploadCompleted);
        }
        let (published_bytes, published_file_count) = staged.published.unwrap_or_default();
        Ok(proto::CompleteUploadReply {
            upload: Some(staged.state.clone()),
            published_bytes,
            published_file_count,
        })
    }

    pub fn abort(&mut self, id: &str) -> Result<proto::Upload, Status> {
        let staged = self.find(id)?;
        if staged.state.status() != proto::UploadStatus::UploadAborted {
            staged.open()?;
        }
        staged.parts.clear();
        staged.state.reserved_bytes = 0;
        staged.state.updated_ns = now();
        staged.state.set_status(proto::UploadStatus::UploadAborted);
        Ok(staged.state.clone())
    }
}
