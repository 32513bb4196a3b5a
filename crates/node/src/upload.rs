//! Resumable uploads into a machine, as calls on its agent, which keeps them. What comes is hashed on its
//! way: a part whose checksum is wrong is never ended, so that the agent takes nothing of it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use nullspace_guest_proto as proto;
use nullspace_guest_proto::write_upload_part_request::Part;
use nullspace_node_api::{ByteStream, Published, UploadSpec, UploadState};
use nullspace_types::id::UploadId;
use nullspace_types::upload::{UploadConflict, UploadFailure, UploadKind, UploadReason, UploadStatus};
use nullspace_types::{Code, Error, Result};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as Unknown;
use sha2::{Digest, Sha256};
use tonic::Status;

use crate::feed;
use crate::file::time;
use crate::guest::{Breaks, file_error, link_broke, repeated, silent};
use crate::running::Running;

/// How long putting an upload in place may take: all of it is read once, and a directory is written again.
const COMPLETE_PATIENCE: Duration = Duration::from_secs(3600);

/// What a caller is told when an upload call fails.
fn upload_error(status: &Status, upload: UploadId, part: Option<u32>) -> Error {
    let metadata = |name| status.metadata().get(name).and_then(|value| value.to_str().ok());
    let reason = metadata("nullspace-upload-reason").and_then(|reason| {
        UploadReason::deserialize(IntoDeserializer::<Unknown>::into_deserializer(reason)).ok()
    });
    if let Some(reason) = reason {
        let path = metadata("nullspace-upload-path");
        let path = path.map(|path| percent_decode_str(path).decode_utf8_lossy()).map(Cow::into_owned);
        return refused(reason, status.message(), upload, part, path);
    }
    match status.code() {
        tonic::Code::NotFound => Error::new(Code::UploadNotFound, status.message()),
        tonic::Code::AlreadyExists => Error::new(Code::Conflict, status.message()),
        _ => file_error(status),
    }
}

fn refused(
    reason: UploadReason,
    message: &str,
    upload: UploadId,
    part_number: Option<u32>,
    path: Option<String>,
) -> Error {
    Error::upload(UploadFailure {
        reason,
        message: message.to_owned(),
        // Room may come, and what was damaged on its way may come whole.
        retryable: matches!(
            reason,
            UploadReason::InsufficientStagingSpace | UploadReason::InvalidPartChecksum
        ),
        upload_id: Some(upload),
        request_id: None,
        path,
        part_number,
    })
}

/// An upload as the agent says it is.
fn state(upload: proto::Upload) -> Result<UploadState> {
    let strange =
        |what: &str| silent(&Status::internal(format!("the agent answered an upload without {what}")));
    let kind = match upload.kind() {
        proto::UploadKind::UploadFile => UploadKind::File,
        proto::UploadKind::UploadDirectoryTar => UploadKind::DirectoryTar,
        proto::UploadKind::Unspecified => return Err(strange("a kind")),
    };
    let status = match upload.status() {
        proto::UploadStatus::UploadCreated => UploadStatus::Created,
        proto::UploadStatus::UploadUploading => UploadStatus::Uploading,
        proto::UploadStatus::UploadStaged => UploadStatus::Staged,
        proto::UploadStatus::UploadCompleting => UploadStatus::Completing,
        proto::UploadStatus::UploadCompleted => UploadStatus::Completed,
        proto::UploadStatus::UploadAborted => UploadStatus::Aborted,
        proto::UploadStatus::UploadExpired => UploadStatus::Expired,
        proto::UploadStatus::UploadFailed => UploadStatus::Failed,
        proto::UploadStatus::Unspecified => return Err(strange("a status")),
    };
    let conflict = match upload.conflict() {
        proto::UploadConflict::Merge => UploadConflict::Merge,
        proto::UploadConflict::Replace => UploadConflict::Replace,
        proto::UploadConflict::Fail => UploadConflict::Error,
        proto::UploadConflict::Unspecified => return Err(strange("a rule for conflicts")),
    };
    let whole_sha256 = match upload.whole_sha256.len() {
        0 => None,
        _ => Some(upload.whole_sha256.as_ref().try_into().map_err(|_| strange("a checksum of 32 bytes"))?),
    };
    Ok(UploadState {
        upload_id: upload.upload_id.parse().map_err(|_| strange("an ID"))?,
        kind,
        target_path: upload.target_path,
        user: (!upload.user.is_empty()).then_some(upload.user),
        content_length: upload.content_length,
        accepted_bytes: upload.accepted_bytes,
        reserved_bytes: upload.reserved_bytes,
        part_size: upload.part_size,
        part_count: upload.part_count,
        next_part: upload.next_part,
        status,
        conflict,
        whole_sha256,
        created_at: time(upload.created_ns)?,
        updated_at: time(upload.updated_ns)?,
        expires_at: time(upload.expires_ns)?,
        label: upload.label,
    })
}

/// Begins an upload, or finds the one with the same key.
pub async fn create(machine: &Running, spec: UploadSpec) -> Result<UploadState> {
    let upload = spec.upload_id;
    let kind = match spec.kind {
        UploadKind::File => proto::UploadKind::UploadFile,
        UploadKind::DirectoryTar => proto::UploadKind::UploadDirectoryTar,
    };
    let conflict = match spec.conflict {
        UploadConflict::Merge => proto::UploadConflict::Merge,
        UploadConflict::Replace => proto::UploadConflict::Replace,
        UploadConflict::Error => proto::UploadConflict::Fail,
    };
    let request = proto::CreateUploadRequest {
        upload_id: upload.to_string(),
        // With a key the call can be repeated when its link breaks.
        key: spec.key.unwrap_or_else(|| upload.to_string()),
        kind: kind.into(),
        target_path: spec.target_path,
        user: spec.user.unwrap_or_default(),
        content_length: spec.content_length,
        conflict: conflict.into(),
        whole_sha256: spec.whole_sha256.map(|digest| digest.to_vec().into()).unwrap_or_default(),
        part_size: spec.part_size,
        staging_quota_bytes: spec.staging_quota_bytes,
        expires_ns: i64::try_from(spec.expires_at.as_nanosecond()).map_err(Error::internal)?,
        label: spec.label,
    };
    let client = machine.client()?;
    let create = || async { client.clone().create_upload(request.clone()).await };
    state(repeated(create).await.map_err(|status| upload_error(&status, upload, None))?)
}

/// An upload.
pub async fn get(machine: &Running, upload: UploadId) -> Result<UploadState> {
    let client = machine.client()?;
    let request = proto::UploadRequest { upload_id: upload.to_string() };
    let get = || async { client.clone().get_upload(request.clone()).await };
    state(repeated(get).await.map_err(|status| upload_error(&status, upload, None))?)
}

/// Takes a part.
pub async fn part(
    machine: Arc<Running>,
    upload: UploadId,
    part: u32,
    sha256: [u8; 32],
    body: ByteStream,
) -> Result<UploadState> {
    let mut client = machine.client()?;
    let start = proto::WriteUploadPartStart { upload_id: upload.to_string(), part };
    let content = stream::unfold(Some((body, Sha256::new())), move |state| async move {
        let (mut body, mut hash) = state?;
        match body.next().await {
            Some(Ok(data)) => {
                hash.update(&data);
                Some((Ok(feed::cut(data).map(Part::Data).collect()), Some((body, hash))))
            }
            Some(Err(error)) => Some((Err(error), None)),
            None if <[u8; 32]>::from(hash.finalize()) == sha256 => {
                Some((Ok(vec![Part::End(proto::WriteUploadPartEnd {})]), None))
            }
            None => {
                let message = format!("the content of part {part} has another checksum than was said");
                let reason = UploadReason::InvalidPartChecksum;
                Some((Err(refused(reason, &message, upload, Some(part), None)), None))
            }
        }
    });
    let pieces = content.flat_map(|pieces: Result<Vec<Part>>| match pieces {
        Ok(pieces) => stream::iter(pieces).map(Ok).left_stream(),
        Err(error) => stream::iter([Err(error)]).right_stream(),
    });
    let parts = stream::iter([Ok(Part::Start(start))]).chain(pieces);
    let messages = parts.map(|part| part.map(|part| proto::WriteUploadPartRequest { part: Some(part) }));
    let call = move |messages| async move { Ok(client.write_upload_part(messages).await?.into_inner()) };
    state(feed::send(machine, messages, call, move |status| upload_error(status, upload, Some(part))).await?)
}

/// Puts an upload in place. The agent answers a repeated call as the first.
pub async fn complete(
    machine: &Running,
    upload: UploadId,
    whole_sha256: Option<[u8; 32]>,
) -> Result<Published> {
    let mut client = machine.client()?;
    let request = proto::CompleteUploadRequest {
        upload_id: upload.to_string(),
        whole_sha256: whole_sha256.map(|digest| digest.to_vec().into()).unwrap_or_default(),
    };
    let completed = async {
        let mut breaks = Breaks::default();
        loop {
            match client.complete_upload(request.clone()).await {
                Err(status) if link_broke(&status) => breaks.pause(status).await?,
                answer => return answer.map(tonic::Response::into_inner),
            }
        }
    };
    let completed = async {
        tokio::time::timeout(COMPLETE_PATIENCE, completed)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the upload is not in place yet")))
            .map_err(|status: Status| upload_error(&status, upload, None))
    };
    let reply = machine.while_there(completed).await?;
    let missing = || silent(&Status::internal("the agent did not say what it has put in place"));
    Ok(Published {
        upload: state(reply.upload.ok_or_else(missing)?)?,
        bytes: reply.published_bytes,
        files: reply.published_file_count,
    })
}

/// Gives an upload up.
pub async fn abort(machine: &Running, upload: UploadId) -> Result<UploadState> {
    let client = machine.client()?;
    let request = proto::UploadRequest { upload_id: upload.to_string() };
    let abort = || async { client.clone().abort_upload(request.clone()).await };
    state(repeated(abort).await.map_err(|status| upload_error(&status, upload, None))?)
}
