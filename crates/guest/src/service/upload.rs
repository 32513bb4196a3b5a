//! Calls about uploads.

use bytes::Bytes;
use nullspace_guest_proto as pb;
use pb::write_upload_part_request::Part;
use tonic::{Status, Streaming};

use super::Service;
use crate::upload::{Spec, digest};

/// How much of a part is taken at once, if it is there.
const GATHERED_BYTES: usize = 256 << 10;

impl Service {
    pub(super) async fn do_create_upload(
        &self,
        request: pb::CreateUploadRequest,
    ) -> Result<pb::Upload, Status> {
        let (target, owner) = self.path(&request.target_path, &request.user)?;
        let spec = Spec::new(request, target, owner)?;
        Ok(self.uploads.create(spec).await?)
    }

    pub(super) fn do_get_upload(&self, request: &pb::UploadRequest) -> Result<pb::Upload, Status> {
        Ok(self.uploads.get(&request.upload_id)?)
    }

    /// A part counts when its end has come, and not because its stream has ended.
    pub(super) async fn do_write_upload_part(
        &self,
        mut stream: Streaming<pb::WriteUploadPartRequest>,
    ) -> Result<pb::Upload, Status> {
        let Some(Part::Start(start)) = stream.message().await?.and_then(|message| message.part) else {
            return Err(Status::invalid_argument("the first message of a part must be start"));
        };
        let mut writer = self.uploads.write_part(&start.upload_id, start.part)?;
        loop {
            let (pieces, ended) = gather(&mut stream).await?;
            if !pieces.is_empty() {
                writer.write(pieces).await?;
            }
            if ended {
                return Ok(writer.finish()?);
            }
        }
    }

    pub(super) async fn do_complete_upload(
        &self,
        request: pb::CompleteUploadRequest,
    ) -> Result<pb::CompleteUploadReply, Status> {
        let wanted = digest(&request.whole_sha256)?;
        Ok(self.uploads.complete(&request.upload_id, wanted).await?)
    }

    pub(super) async fn do_abort_upload(&self, request: &pb::UploadRequest) -> Result<pb::Upload, Status> {
        Ok(self.uploads.abort(&request.upload_id).await?)
    }
}

/// Waits for data, and takes with it what has come by then; and whether the end was among it.
async fn gather(stream: &mut Streaming<pb::WriteUploadPartRequest>) -> Result<(Vec<Bytes>, bool), Status> {
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut bytes = 0;
    while bytes < GATHERED_BYTES {
        let message = tokio::select! {
            biased;
            message = stream.message() => message?,
            () = std::future::ready(()), if !pieces.is_empty() => break,
        };
        let message = message.ok_or_else(|| Status::aborted("the part broke off before its end"))?;
        match message.part {
            Some(Part::Data(data)) => {
                bytes += data.len();
                pieces.push(data);
            }
            Some(Part::End(_)) => return Ok((pieces, true)),
            Some(Part::Start(_)) | None => {
                return Err(Status::invalid_argument("start may come only once, then data, then end"));
            }
        }
    }
    Ok((pieces, false))
}
