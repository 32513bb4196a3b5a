use async_trait::async_trait;
use nullspace_api::file::{BatchParts, FileChanges, FileDownloadReply, FileReadReply, FileWatch, SignedUrl};
use nullspace_api::{ByteStream, FileApi};
use nullspace_auth::grant::{Direction, Grant, Signed};
use nullspace_control::FileGrant;
use nullspace_node_api::FileBody;
use nullspace_types::Result;
use nullspace_types::file::{
    FileExists, FileFind, FileInfo, FileListQuery, FileMatch, FilePath, FilePermissions, FileRange,
    FileRawQuery, FileRead, FileRename, FileReplace, FileReplaced, FileSearch, FileSign, FileWrite, Found,
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
        let FileRead { path, encoding, user } = request;
        let read = self.control()?.file_read(caller.tenant_id, id, path, user, FileRange::Whole).await?;
        Ok(FileReadReply { encoding: encoding.unwrap_or_default(), content: read.content })
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
        range: FileRange,
    ) -> Result<FileDownloadReply> {
        let FileRawQuery { path, user } = query;
        let FileBody { size, modified, content } =
            self.control()?.file_read(caller.tenant_id, id, path, user, range).await?;
        Ok(FileDownloadReply { size, modified, content })
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

    async fn file_find(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileFind,
    ) -> Result<Found<FileMatch>> {
        self.control()?.file_find(caller.tenant_id, id, request).await
    }

    async fn file_search(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileSearch,
    ) -> Result<Found<String>> {
        self.control()?.file_search(caller.tenant_id, id, request).await
    }

    async fn file_replace(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileReplace,
    ) -> Result<FileReplaced> {
        self.control()?.file_replace(caller.tenant_id, id, request).await
    }

    async fn file_batch_write(
        &self,
        caller: Principal,
        id: SandboxId,
        user: Option<String>,
        parts: BatchParts,
    ) -> Result<Vec<Result<FileInfo>>> {
        self.control()?.file_batch_write(caller.tenant_id, id, user, parts).await
    }

    async fn file_watch(&self, caller: Principal, id: SandboxId, request: FileWatch) -> Result<FileChanges> {
        let FileWatch { path, user, recursive } = request;
        self.control()?.file_watch(caller.tenant_id, id, path, user, recursive).await
    }

    async fn file_download_url(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileSign,
    ) -> Result<SignedUrl> {
        let grant = self.control()?.file_sign(caller.tenant_id, id, request)?;
        Ok(self.signed(caller, id, Direction::Download, grant))
    }

    async fn file_upload_url(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileSign,
    ) -> Result<SignedUrl> {
        let grant = self.control()?.file_sign(caller.tenant_id, id, request)?;
        Ok(self.signed(caller, id, Direction::Upload, grant))
    }
}

impl App {
    fn signed(&self, caller: Principal, id: SandboxId, direction: Direction, grant: FileGrant) -> SignedUrl {
        let FileGrant { path, user, expires } = grant;
        let grant = Grant { sandbox_id: id, direction, path, user, expires };
        let Signed { query, token } = self.0.authenticator.grant(caller, &grant);
        SignedUrl { base: self.0.public_url.clone(), query, token }
    }
}
