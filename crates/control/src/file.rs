//! What can be done with files. All of it is the node's work; here the path is judged by its text and
//! content is brought into bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use nullspace_domain::{file, process};
use nullspace_node_api::ByteStream;
use nullspace_types::file::{
    FileEncoding, FileExists, FileInfo, FileListQuery, FilePath, FilePermissions, FileRawQuery, FileRename,
    FileWrite,
};
use nullspace_types::id::{SandboxId, TenantId};
use nullspace_types::{Error, Result};

use crate::Control;
use crate::access::{answered, running};

impl Control {
    /// Judges who asks, for which paths, on whose behalf; answers the user.
    fn file_access<const PATHS: usize>(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        paths: [(&str, &str); PATHS],
        user: Option<String>,
    ) -> Result<Option<String>> {
        let record = running(&self.shared, tenant_id, id)?;
        let user = process::user(user)?;
        for (field, path) in paths {
            file::validate_path(field, path, record.row.desired.cwd.as_deref(), user.as_deref())?;
        }
        Ok(user)
    }

    /// What a directory holds.
    pub async fn file_list(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        query: FileListQuery,
    ) -> Result<Vec<FileInfo>> {
        let path = query.path.unwrap_or_else(|| "/".to_owned());
        let user = self.file_access(tenant_id, id, [("path", &path)], query.user)?;
        let depth = file::depth(query.depth.as_deref())?;
        answered(id, self.shared.node.file_list(id, path, user, depth).await)
    }

    /// A file's size and content.
    pub async fn file_read(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        path: String,
        user: Option<String>,
    ) -> Result<(u64, ByteStream)> {
        let user = self.file_access(tenant_id, id, [("path", &path)], user)?;
        answered(id, self.shared.node.file_read(id, path, user).await)
    }

    /// Writes a file whole.
    pub async fn file_write(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        request: FileWrite,
    ) -> Result<FileInfo> {
        let user = self.file_access(tenant_id, id, [("path", &request.path)], request.user)?;
        let content = match request.encoding.unwrap_or_default() {
            FileEncoding::Utf8 => Bytes::from(request.content),
            FileEncoding::Base64 => STANDARD
                .decode(&request.content)
                .map(Bytes::from)
                .map_err(|error| Error::invalid(format!("content is not valid base64: {error}")))?,
        };
        let body = stream::iter([Ok(content)]).boxed();
        answered(id, self.shared.node.file_write(id, request.path, user, body).await)
    }

    /// Writes a file whole, from a stream. One that ends in an error changes nothing.
    pub async fn file_upload(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        query: FileRawQuery,
        body: ByteStream,
    ) -> Result<FileInfo> {
        let user = self.file_access(tenant_id, id, [("path", &query.path)], query.user)?;
        answered(id, self.shared.node.file_write(id, query.path, user, body).await)
    }

    /// About one path.
    pub async fn file_info(&self, tenant_id: TenantId, id: SandboxId, request: FilePath) -> Result<FileInfo> {
        let user = self.file_access(tenant_id, id, [("path", &request.path)], request.user)?;
        answered(id, self.shared.node.file_info(id, request.path, user).await)
    }

    /// Whether there is anything at the path.
    pub async fn file_exists(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        request: FilePath,
    ) -> Result<FileExists> {
        let user = self.file_access(tenant_id, id, [("path", &request.path)], request.user)?;
        let exists = answered(id, self.shared.node.file_exists(id, request.path, user).await)?;
        Ok(FileExists { exists })
    }

    /// Removes a file or a whole directory.
    pub async fn file_remove(&self, tenant_id: TenantId, id: SandboxId, request: FilePath) -> Result<()> {
        let user = self.file_access(tenant_id, id, [("path", &request.path)], request.user)?;
        answered(id, self.shared.node.file_remove(id, request.path, user).await)
    }

    /// Makes a directory and those above it.
    pub async fn file_mkdir(&self, tenant_id: TenantId, id: SandboxId, request: FilePath) -> Result<()> {
        let user = self.file_access(tenant_id, id, [("path", &request.path)], request.user)?;
        answered(id, self.shared.node.file_mkdir(id, request.path, user).await)
    }

    /// Moves a file or directory, and answers about the new path.
    pub async fn file_rename(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        request: FileRename,
    ) -> Result<FileInfo> {
        let paths = [("old_path", &*request.old_path), ("new_path", &*request.new_path)];
        let user = self.file_access(tenant_id, id, paths, request.user)?;
        answered(id, self.shared.node.file_rename(id, request.old_path, request.new_path, user).await)
    }

    /// Sets permission bits.
    pub async fn file_permissions(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        request: FilePermissions,
    ) -> Result<()> {
        let user = self.file_access(tenant_id, id, [("path", &request.path)], request.user)?;
        let mode = file::permissions(&request.permissions)?;
        answered(id, self.shared.node.file_permissions(id, request.path, mode, user).await)
    }
}
