//! Resumable uploads: content comes in parts, lies in the machine, and is published in one step.
//!
//! `table` owns all uploads of the machine, their bounds and their expiry; `session` is one of them, whose
//! status is a pure function (`state`) and whose parts are counted in `parts`. Content is staged in a file
//! without a name (`staging`): it is invisible to everybody, its room is taken when the upload begins, and
//! the kernel frees it with the last descriptor, whatever happens to the agent. `publish` puts a file in
//! place, `directory` and `merge` what an archive holds.
//!
//! What is here lives as long as the machine: a call, a link or a server that is lost changes nothing.
//! Deliberately absent: checksums of parts, which the node checks as they pass through it.

mod directory;
mod failure;
mod merge;
mod parts;
mod publish;
mod session;
mod staging;
mod state;
mod table;

use std::path::PathBuf;
use std::time::SystemTime;

use nullspace_guest_proto as pb;
use tonic::Status;

use crate::account::Account;

pub use failure::Failure;
pub use table::Uploads;

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// Bytes of an ID, a key or a label.
const TEXT_BYTES: usize = 1024;

/// What somebody wants to upload.
#[derive(Debug)]
pub struct Spec {
    /// The caller's name for it.
    pub upload_id: String,
    /// Two wishes with the same one are the same.
    pub key: Option<String>,
    /// A file, or a directory as an archive.
    pub kind: pb::UploadKind,
    /// Absolute and normalised.
    pub target: PathBuf,
    /// As the caller named the user.
    pub user: String,
    /// Who owns what is made, if not root or who does now.
    pub owner: Option<Account>,
    /// Bytes.
    pub content_length: u64,
    /// What happens if there is something at the target.
    pub conflict: pb::UploadConflict,
    /// Of the whole, if it is known by now.
    pub whole_sha256: Option<Digest>,
    /// Bytes of every part but the last.
    pub part_size: u64,
    /// Bytes of all uploads that have not ended.
    pub quota: u64,
    /// Nanoseconds since the epoch.
    pub expires_ns: i64,
    /// Given back as it is.
    pub label: String,
}

impl Spec {
    /// A request, judged as far as it says by itself. `target` and `owner` are what its path and user mean.
    pub fn new(
        request: pb::CreateUploadRequest,
        target: PathBuf,
        owner: Option<Account>,
    ) -> Result<Self, Status> {
        let (kind, conflict) = (request.kind(), request.conflict());
        if kind == pb::UploadKind::Unspecified {
            return Err(Status::invalid_argument(format!("kind {} is unknown", request.kind)));
        }
        if conflict == pb::UploadConflict::Unspecified {
            return Err(Status::invalid_argument(format!("conflict {} is unknown", request.conflict)));
        }
        if request.upload_id.is_empty() {
            return Err(Status::invalid_argument("upload_id is empty"));
        }
        if request.part_size == 0 {
            return Err(Status::invalid_argument("part_size is 0; at least 1"));
        }
        for (field, text) in
            [("upload_id", &request.upload_id), ("key", &request.key), ("label", &request.label)]
        {
            if text.len() > TEXT_BYTES {
                let len = text.len();
                return Err(Status::invalid_argument(format!(
                    "{field} has {len} bytes; at most {TEXT_BYTES}"
                )));
            }
        }
        Ok(Self {
            whole_sha256: digest(&request.whole_sha256)?,
            upload_id: request.upload_id,
            key: Some(request.key).filter(|key| !key.is_empty()),
            kind,
            target,
            user: request.user,
            owner,
            content_length: request.content_length,
            conflict,
            part_size: request.part_size,
            quota: request.staging_quota_bytes,
            expires_ns: request.expires_ns,
            label: request.label,
        })
    }

    /// Whether two wishes are the same. What the server adds (ID, part size, bounds) may differ between
    /// two sendings of one.
    fn is_same_wish(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.target == other.target
            && self.user == other.user
            && self.content_length == other.content_length
            && self.conflict == other.conflict
            && self.whole_sha256 == other.whole_sha256
            && self.label == other.label
    }

    fn owner_ids(&self) -> Option<(u32, u32)> {
        self.owner.as_ref().map(|owner| (owner.uid, owner.gid))
    }
}

/// What was put in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Bytes of the files.
    bytes: u64,
    /// Regular files.
    files: u64,
}

/// A digest as a request has it: 32 bytes, or none.
pub fn digest(bytes: &[u8]) -> Result<Option<Digest>, Status> {
    match bytes {
        [] => Ok(None),
        bytes => bytes.try_into().map(Some).map_err(|_| {
            Status::invalid_argument(format!("whole_sha256 has {} bytes; 32 or none", bytes.len()))
        }),
    }
}

/// Nanoseconds since the epoch, by the machine's clock.
fn now_ns() -> i64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
