//! What can be done with resumable uploads. The machine keeps them, so they live as long as it does and no
//! crash of the server's harms them; here they are judged, and shown as the API has them.

use jiff::SignedDuration;
use nullspace_domain::{Limits, upload as rules};
use nullspace_node_api::{ByteStream, UploadSpec, UploadState};
use nullspace_types::id::{SandboxId, TenantId, UploadId};
use nullspace_types::upload::{
    UploadArchive, UploadChecksum, UploadComplete, UploadCompleted, UploadCreate, UploadCreated,
    UploadLimits, UploadSession, UploadSource,
};
use nullspace_types::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::Control;
use crate::access::{answered, awake, usable};

/// What the machine keeps with an upload without knowing what it means.
#[derive(Serialize, Deserialize)]
struct Label {
    source_kind: UploadSource,
    archive_format: Option<UploadArchive>,
}

/// An upload as the API has it.
fn session(state: UploadState, limits: &Limits) -> Result<UploadSession> {
    let Label { source_kind, archive_format } = serde_json::from_str(&state.label)
        .map_err(|error| Error::internal(format!("upload {} lost its label: {error}", state.upload_id)))?;
    Ok(UploadSession {
        upload_id: state.upload_id,
        kind: state.kind,
        source_kind,
        target_path: state.target_path,
        user: state.user,
        content_length: state.content_length,
        accepted_bytes: state.accepted_bytes,
        reserved_staging_bytes: state.reserved_bytes,
        part_size: state.part_size,
        part_count: state.part_count,
        max_concurrency: limits.upload_concurrency_max,
        next_part: state.next_part,
        status: state.status,
        conflict: state.conflict,
        archive_format,
        checksum_algorithm: UploadChecksum::Sha256,
        whole_checksum_sha256: state.whole_sha256.as_ref().map(rules::sha256_text),
        limits: UploadLimits {
            max_upload_bytes: limits.upload_bytes_max,
            max_part_bytes: limits.upload_part_bytes,
            max_concurrency: limits.upload_concurrency_max,
            sandbox_staging_quota_bytes: limits.upload_staging_bytes_max,
        },
        created_at: state.created_at,
        updated_at: state.updated_at,
        expires_at: state.expires_at,
    })
}

impl Control {
    /// Begins an upload, or finds the one that the same key began.
    pub async fn upload_create(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        idempotency_key: Option<String>,
        request: UploadCreate,
    ) -> Result<UploadCreated> {
        let sandbox = usable(&self.shared, tenant_id, id)?;
        let limits = &self.shared.limits;
        let request = rules::validate(request, sandbox.record().row.desired.cwd.as_deref(), limits)?;
        sandbox.awake().await?;
        let kept = SignedDuration::from_secs(i64::from(limits.upload_secs_max));
        let expires_at = self.shared.clock.now().checked_add(kept).map_err(Error::internal)?;
        let label = Label { source_kind: request.source_kind, archive_format: request.archive_format };
        let spec = UploadSpec {
            upload_id: UploadId::new(),
            key: idempotency_key,
            kind: request.kind,
            target_path: request.target_path,
            user: request.user,
            content_length: request.content_length,
            conflict: request.conflict,
            whole_sha256: request.whole_sha256,
            part_size: limits.upload_part_bytes,
            staging_quota_bytes: limits.upload_staging_bytes_max,
            expires_at,
            label: serde_json::to_string(&label).map_err(Error::internal)?,
        };
        let state = answered(id, self.shared.node.upload_create(id, spec).await)?;
        Ok(UploadCreated { session: session(state, limits)? })
    }

    /// An upload.
    pub async fn upload_get(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        upload: UploadId,
    ) -> Result<UploadSession> {
        awake(&self.shared, tenant_id, id).await?;
        session(answered(id, self.shared.node.upload_get(id, upload).await)?, &self.shared.limits)
    }

    /// Takes a part.
    pub async fn upload_part(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        upload: UploadId,
        part: u32,
        sha256: [u8; 32],
        body: ByteStream,
    ) -> Result<UploadSession> {
        awake(&self.shared, tenant_id, id).await?;
        let state = answered(id, self.shared.node.upload_part(id, upload, part, sha256, body).await)?;
        session(state, &self.shared.limits)
    }

    /// Puts an upload in place.
    pub async fn upload_complete(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        upload: UploadId,
        request: UploadComplete,
    ) -> Result<UploadCompleted> {
        let sandbox = usable(&self.shared, tenant_id, id)?;
        let whole = request.whole_checksum_sha256;
        let whole = whole.map(|text| rules::sha256("whole_checksum_sha256", &text)).transpose()?;
        sandbox.awake().await?;
        let published = answered(id, self.shared.node.upload_complete(id, upload, whole).await)?;
        Ok(UploadCompleted {
            session: session(published.upload, &self.shared.limits)?,
            published_bytes: published.bytes,
            published_file_count: published.files,
        })
    }

    /// Gives an upload up.
    pub async fn upload_abort(&self, tenant_id: TenantId, id: SandboxId, upload: UploadId) -> Result<()> {
        awake(&self.shared, tenant_id, id).await?;
        answered(id, self.shared.node.upload_abort(id, upload).await).map(drop)
    }
}
