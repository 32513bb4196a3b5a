//! Uploads into fake machines. A directory's archive is taken and not unpacked.

use std::collections::BTreeMap;

use jiff::Timestamp;
use nullspace_node_api::{Published, UploadSpec, UploadState};
use nullspace_types::id::UploadId;
use nullspace_types::upload::{UploadConflict, UploadFailure, UploadKind, UploadReason, UploadStatus};
use nullspace_types::{Code, Error, Result};
use sha2::{Digest as _, Sha256};

use super::FakeMachine;

#[derive(Debug, Clone)]
pub(super) struct FakeUpload {
    key: Option<String>,
    state: UploadState,
    parts: BTreeMap<u32, Vec<u8>>,
    published: Option<(u64, u64)>,
}

impl FakeUpload {
    fn refused(&self, reason: UploadReason, message: &str) -> Error {
        Error::upload(UploadFailure {
            reason,
            message: message.into(),
            retryable: false,
            upload_id: Some(self.state.upload_id),
            request_id: None,
            path: None,
            part_number: None,
        })
    }

    fn open(&self) -> Result<()> {
        match self.state.status {
            UploadStatus::Aborted => {
                Err(self.refused(UploadReason::UploadAborted, "the upload was given up"))
            }
            UploadStatus::Expired => {
                Err(self.refused(UploadReason::UploadExpired, "the upload's time is over"))
            }
            UploadStatus::Completed => {
                Err(self.refused(UploadReason::UploadAlreadyCompleted, "the upload is in place already"))
            }
            _ => Ok(()),
        }
    }

    fn recount(&mut self) {
        let state = &mut self.state;
        state.next_part = (0..state.part_count).find(|part| !self.parts.contains_key(part));
        state.accepted_bytes = self.parts.values().map(|part| part.len() as u64).sum();
        state.updated_at = Timestamp::now();
        state.status = match (self.parts.is_empty(), state.next_part) {
            (_, None) => UploadStatus::Staged,
            (true, _) => UploadStatus::Created,
            (false, _) => UploadStatus::Uploading,
        };
    }
}

impl FakeMachine {
    fn upload(&mut self, id: UploadId) -> Result<&mut FakeUpload> {
        let missing = || Error::new(Code::UploadNotFound, format!("there is no upload {id}"));
        let upload = self.uploads.get_mut(&id).ok_or_else(missing)?;
        if upload.open().is_ok() && upload.state.expires_at <= Timestamp::now() {
            upload.state.status = UploadStatus::Expired;
        }
        Ok(upload)
    }

    pub(super) fn upload_create(&mut self, spec: UploadSpec) -> Result<UploadState> {
        let same = self.uploads.values().find(|upload| upload.key.is_some() && upload.key == spec.key);
        if let Some(upload) = same {
            let state = &upload.state;
            if (&state.target_path, state.content_length) != (&spec.target_path, spec.content_length) {
                return Err(Error::new(Code::Conflict, "the key was used for another upload"));
            }
            return Ok(state.clone());
        }
        let state = UploadState {
            upload_id: spec.upload_id,
            kind: spec.kind,
            target_path: spec.target_path,
            user: spec.user,
            content_length: spec.content_length,
            accepted_bytes: 0,
            reserved_bytes: spec.content_length,
            part_size: spec.part_size,
            part_count: u32::try_from(spec.content_length.div_ceil(spec.part_size)).expect("tests are small"),
            next_part: None,
            status: UploadStatus::Created,
            conflict: spec.conflict,
            whole_sha256: spec.whole_sha256,
            created_at: Timestamp::now(),
            updated_at: Timestamp::now(),
            expires_at: spec.expires_at,
            label: spec.label,
        };
        let mut upload = FakeUpload { key: spec.key, state, parts: BTreeMap::new(), published: None };
        upload.recount();
        let state = upload.state.clone();
        self.uploads.insert(spec.upload_id, upload);
        Ok(state)
    }

    pub(super) fn upload_get(&mut self, id: UploadId) -> Result<UploadState> {
        Ok(self.upload(id)?.state.clone())
    }

    pub(super) fn upload_part(
        &mut self,
        id: UploadId,
        part: u32,
        sha256: [u8; 32],
        content: Vec<u8>,
    ) -> Result<UploadState> {
        let upload = self.upload(id)?;
        upload.open()?;
        let state = &upload.state;
        if part >= state.part_count {
            return Err(upload.refused(UploadReason::PartOutOfRange, "there is no such part"));
        }
        let rest = state.content_length - u64::from(part) * state.part_size;
        if content.len() as u64 != rest.min(state.part_size) {
            return Err(upload.refused(UploadReason::PartSizeMismatch, "the part has another length"));
        }
        if <[u8; 32]>::from(Sha256::digest(&content)) != sha256 {
            return Err(upload.refused(UploadReason::InvalidPartChecksum, "the part has another checksum"));
        }
        upload.parts.insert(part, content);
        upload.recount();
        Ok(upload.state.clone())
    }

    pub(super) fn upload_complete(&mut self, id: UploadId, whole: Option<[u8; 32]>) -> Result<Published> {
        let upload = self.upload(id)?;
        if upload.published.is_none() {
            upload.open()?;
            if upload.state.next_part.is_some() {
                return Err(upload.refused(UploadReason::MissingParts, "some parts have not come"));
            }
            let content: Vec<u8> = upload.parts.values().flatten().copied().collect();
            let digest: [u8; 32] = Sha256::digest(&content).into();
            if whole.into_iter().chain(upload.state.whole_sha256).any(|expected| expected != digest) {
                upload.state.status = UploadStatus::Failed;
                return Err(
                    upload.refused(UploadReason::WholeChecksumMismatch, "the whole has another checksum")
                );
            }
            let (kind, target) = (upload.state.kind, upload.state.target_path.clone());
            let fails = upload.state.conflict == UploadConflict::Error && self.files.contains_key(&target);
            if fails {
                let upload = self.upload(id)?;
                return Err(upload.refused(UploadReason::TargetConflict, "there is something at the target"));
            }
            let published = match kind {
                UploadKind::File => {
                    let bytes = content.len() as u64;
                    self.write(target, content);
                    (bytes, 1)
                }
                UploadKind::DirectoryTar => (0, 0),
            };
            let upload = self.upload(id)?;
            upload.published = Some(published);
            upload.state.reserved_bytes = 0;
            upload.state.status = UploadStatus::Completed;
        }
        let upload = self.upload(id)?;
        let (bytes, files) = upload.published.unwrap_or_default();
        Ok(Published { upload: upload.state.clone(), bytes, files })
    }

    pub(super) fn upload_abort(&mut self, id: UploadId) -> Result<UploadState> {
        let upload = self.upload(id)?;
        if upload.state.status != UploadStatus::Aborted {
            upload.open()?;
        }
        upload.parts.clear();
        upload.state.reserved_bytes = 0;
        upload.state.status = UploadStatus::Aborted;
        Ok(upload.state.clone())
    }
}
