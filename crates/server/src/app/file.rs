use async_trait::async_trait;
use nullspace_api::file::{FileDownloadReply, FileReadReply};
use nullspace_api::{ByteStream, FileApi};
use nullspace_types::Result;
use nullspace_types::file::{
    FileExists, FileInfo, FileListQuery, FilePath, FilePermissions, FileRawQuery, FileRead, FileRename,
    FileWrite,
};
use nullspace_types::id::SandboxId;
use nullspace_types::key::Principal;

use super::App;

#[async_trait]
impl FileApi for App {
    async fn file_list(
        &self,
        caller: Principal,
        id: SandboxId,
        query: FileListQuery,
    ) -> Result<Vec<FileInfo>> {
        self.control()?.file_list(caller.tenant_id, id, query).await
    }

    async fn file_read(&self, caller: Principal, id: SandboxId, request: FileRead) -> Result<FileReadReply> {
        let encoding = request.encoding.unwrap_or_default();
        let (_, content) =
            self.control()?.file_read(caller.tenant_id, id, request.path, request.user).await?;
        Ok(FileReadReply { encoding, content })
    }

    async fn file_write(&self, caller: Principal, id: SandboxId, request: FileWrite) -> Result<FileInfo> {
        self.control()?.file_write(caller.tenant_id, id, request).await
    }

    async fn file_info(&self, caller: Principal, id: SandboxId, request: FilePath) -> Result<FileInfo> {
        self.control()?.file_info(caller.tenant_id, id, request).await
    }

    async fn file_exists(&self, caller: Principal, id: SandboxId, request: FilePath) -> Result<FileExists> {
        self.control()?.file_exists(caller.tenant_id, id, request).await
    }

    async fn file_remove(&self, caller: Principal, id: SandboxId, request: FilePath) -> Result<()> {
        self.control()?.file_remove(caller.tenant_id, id, request).await
    }

    async fn file_mkdir(&self, caller: Principal, id: SandboxId, request: FilePath) -> Result<()> {
        self.control()?.file_mkdir(caller.tenant_id, id, request).await
    }

    async fn file_rename(&self, caller: Principal, id: SandboxId, request: FileRename) -> Result<FileInfo> {
        self.control()?.file_rename(caller.tenant_id, id, request).await
    }

    async fn file_permissions(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FilePermissions,
    ) -> Result<()> {
        self.control()?.file_permissions(caller.tenant_id, id, request).await
    }

    async fn file_download(
        &self,
        caller: Principal,
        id: SandboxId,
        query: FileRawQuery,
    ) -> Result<FileDownloadReply> {
        let (size, content) = self.control()?.file_read(caller.tenant_id, id, query.path, query.user).await?;
        Ok(FileDownloadReply { size, content })
    }

    async fn file_upload(
        &self,
        caller: Principal,
        id: SandboxId,
        query: FileRawQuery,
        body: ByteStream,
    ) -> Result<()> {
        self.control()?.file_upload(caller.tenant_id, id, query, body).await.map(|_| ())
    }
}
