use async_trait::async_trait;
use nullspace_api::{ByteStream, UploadApi};
use nullspace_types::Result;
use nullspace_types::id::{SandboxId, UploadId};
use nullspace_types::key::Principal;
use nullspace_types::upload::{UploadComplete, UploadCompleted, UploadCreate, UploadCreated, UploadSession};

use super::App;

#[async_trait]
impl UploadApi for App {
    async fn upload_create(
        &self,
        caller: Principal,
        id: SandboxId,
        idempotency_key: Option<String>,
        request: UploadCreate,
    ) -> Result<UploadCreated> {
        self.control()?.upload_create(caller.tenant_id, id, idempotency_key, request).await
    }

    async fn upload_get(&self, caller: Principal, id: SandboxId, upload: UploadId) -> Result<UploadSession> {
        self.control()?.upload_get(caller.tenant_id, id, upload).await
    }

    async fn upload_part(
        &self,
        caller: Principal,
        id: SandboxId,
        upload: UploadId,
        part: u32,
        sha256: [u8; 32],
        body: ByteStream,
    ) -> Result<UploadSession> {
        self.control()?.upload_part(caller.tenant_id, id, upload, part, sha256, body).await
    }

    async fn upload_complete(
        &self,
        caller: Principal,
        id: SandboxId,
        upload: UploadId,
        request: UploadComplete,
    ) -> Result<UploadCompleted> {
        self.control()?.upload_complete(caller.tenant_id, id, upload, request).await
    }

    async fn upload_abort(&self, caller: Principal, id: SandboxId, upload: UploadId) -> Result<()> {
        self.control()?.upload_abort(caller.tenant_id, id, upload).await
    }
}
