//! What can be done with files. All of it is the node's work; here the path is judged by its text and
//! content is brought into bytes.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, future};
use nullspace_domain::{file, process};
use nullspace_node_api::{ByteStream, FileBody};
use nullspace_types::file::{
    BatchPart, FileChange, FileEncoding, FileExists, FileFind, FileInfo, FileListQuery, FileMatch, FilePath,
    FilePermissions, FileRange, FileRawQuery, FileRename, FileReplace, FileReplaced, FileSearch, FileSign,
    FileWrite, Found,
};
use nullspace_types::id::{SandboxId, TenantId};
use nullspace_types::{Error, Result};

use crate::Control;
use crate::access::{Usable, answered, usable};

/// What a signed URL shall allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileGrant {
    /// Which file, as it was named.
    pub path: String,
    /// On whose behalf.
    pub user: Option<String>,
    /// Until when, in seconds since the epoch.
    pub expires: i64,
}

impl Control {
    /// Judges who asks, for which paths, on whose behalf; answers the sandbox, not woken yet, and the user.
    fn file_access<'a>(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        paths: impl IntoIterator<Item = (&'static str, &'a str)>,
        user: Option<String>,
    ) -> Result<(Usable<'_>, Option<String>)> {
        let sandbox = usable(&self.shared, tenant_id, id)?;
        let user = process::user(user)?;
        for (field, path) in paths {
            let cwd = sandbox.record().row.desired.cwd.as_deref();
            file::validate_path(field, path, cwd, user.as_deref())?;
        }
        Ok((sandbox, user))
    }

    /// What a directory holds.
    pub async fn file_list(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        query: FileListQuery,
    ) -> Result<Vec<FileInfo>> {
        let path = query.path.unwrap_or_else(|| "/".to_owned());
        let (sandbox, user) = self.file_access(tenant_id, id, [("path", &*path)], query.user)?;
        let depth = file::depth(query.depth.as_deref())?;
        sandbox.awake().await?;
        answered(id, self.shared.node.file_list(id, path, user, depth).await)
    }

    /// A file's content, or a part of it.
    pub async fn file_read(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        path: String,
        user: Option<String>,
        range: FileRange,
    ) -> Result<FileBody> {
        let (sandbox, user) = self.file_access(tenant_id, id, [("path", &*path)], user)?;
        sandbox.awake().await?;
        answered(id, self.shared.node.file_read(id, path, user, range).await)
    }

    /// Writes a file whole.
    pub async fn file_write(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        request: FileWrite,
    ) -> Result<FileInfo> {
        let (sandbox, user) = self.file_access(tenant_id, id, [("path", &*request.path)], request.user)?;
        let content = match request.encoding.unwrap_or_default() {
            FileEncoding::Utf8 => Bytes::from(request.content),
            FileEncoding::Base64 => STANDARD
                .decode(&request.content)
                .map(Bytes::from)
                .map_err(|error| Error::invalid(format!("content is not valid base64: {error}")))?,
        };
        let body = stream::iter([Ok(content)]).boxed();
        sandbox.awake().await?;
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
        let (sandbox, user) = self.file_access(tenant_id, id, [("path", &*query.path)], query.user)?;
        sandbox.awake().await?;
        answered(id, self.shared.node.file_write(id, query.path, user, body).await)
    }

    /// About one path.
    pub async fn file_info(&self, tenant_id: TenantId, id: SandboxId, request: FilePath) -> Result<FileInfo> {
        let (sandbox, user) = self.file_access(tenant_id, id, [("path", &*request.path)], request.user)?;
        sandbox.awake().await?;
        answered(id, self.shared.node.file_info(id, request.path, user).await)
    }

    /// Whether there is anything at the path.
    pub async fn file_exists(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        request: FilePath,
    ) -> Result<FileExists> {
        let (sandbox, user) = self.file_access(tenant_id, id, [("path", &*request.path)], request.user)?;
        sandbox.awake().await?;
        let exists = answered(id, self.shared.node.file_exists(id, request.path, user).await)?;
        Ok(FileExists { exists })
    }

    /// Removes a file or a whole directory.
    pub async fn file_remove(&self, tenant_id: TenantId, id: SandboxId, request: FilePath) -> Result<()> {
        let (sandbox, user) = self.file_access(tenant_id, id, [("path", &*request.path)], request.user)?;
        sandbox.awake().await?;
        answered(id, self.shared.node.file_remove(id, request.path, user).await)
    }

    /// Makes a directory and those above it.
    pub async fn file_mkdir(&self, tenant_id: TenantId, id: SandboxId, request: FilePath) -> Result<()> {
        let (sandbox, user) = self.file_access(tenant_id, id, [("path", &*request.path)], request.user)?;
        sandbox.awake().await?;
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
        let (sandbox, user) = self.file_access(tenant_id, id, paths, request.user)?;
        sandbox.awake().await?;
        answered(id, self.shared.node.file_rename(id, request.old_path, request.new_path, user).await)
    }

    /// Sets permission bits.
    pub async fn file_permissions(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        request: FilePermissions,
    ) -> Result<()> {
        let (sandbox, user) = self.file_access(tenant_id, id, [("path", &*request.path)], request.user)?;
        let mode = file::permissions(&request.permissions)?;
        sandbox.awake().await?;
        answered(id, self.shared.node.file_permissions(id, request.path, mode, user).await)
    }

    /// Lines that match a pattern.
    pub async fn file_find(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        request: FileFind,
    ) -> Result<Found<FileMatch>> {
        let FileFind { path, pattern, user, limit } = request;
        let (sandbox, user) = self.file_access(tenant_id, id, [("path", &*path)], user)?;
        file::pattern(&pattern)?;
        let limit = file::find_limit(limit)?;
        sandbox.awake().await?;
        answered(id, self.shared.node.file_find(id, path, user, pattern, limit).await)
    }

    /// Paths whose last part matches a glob.
    pub async fn file_search(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        request: FileSearch,
    ) -> Result<Found<String>> {
        let FileSearch { path, pattern, user, limit } = request;
        let (sandbox, user) = self.file_access(tenant_id, id, [("path", &*path)], user)?;
        file::pattern(&pattern)?;
        let limit = file::search_limit(limit)?;
        sandbox.awake().await?;
        answered(id, self.shared.node.file_search(id, path, user, pattern, limit).await)
    }

    /// Replaces a text in files.
    pub async fn file_replace(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        mut request: FileReplace,
    ) -> Result<FileReplaced> {
        let paths = request.files.iter().map(|path| ("files", &**path));
        let (sandbox, user) = self.file_access(tenant_id, id, paths, request.user.clone())?;
        request.user = user;
        file::replacement(&request)?;
        sandbox.awake().await?;
        answered(id, self.shared.node.file_replace(id, request).await)
    }

    /// Writes many files. One whose path may not be named does not keep the others from being written.
    pub async fn file_batch_write(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        user: Option<String>,
        parts: BoxStream<'static, Result<BatchPart>>,
    ) -> Result<Vec<Result<FileInfo>>> {
        let sandbox = usable(&self.shared, tenant_id, id)?;
        let user = process::user(user)?;
        let record = sandbox.awake().await?;
        let batch = Arc::new(Mutex::new(Batch::default()));
        let (judge, of) = (Arc::clone(&batch), user.clone());
        let judged = parts.filter_map(move |part| {
            let cwd = record.row.desired.cwd.as_deref();
            let part = part.and_then(|part| {
                judge
                    .lock()
                    .expect("no panic under it")
                    .judge(part, |path| file::validate_path("path", path, cwd, of.as_deref()))
            });
            future::ready(part.transpose())
        });
        let written = answered(id, self.shared.node.file_write_batch(id, user, judged.boxed()).await)?;
        let refused = std::mem::take(&mut batch.lock().expect("no panic under it").refused);
        let mut written = written.into_iter();
        let unanswered = || Err(Error::internal("the node did not answer for every file of a batch"));
        let outcome = |refused| match refused {
            Some(error) => Err(error),
            None => written.next().unwrap_or_else(unanswered),
        };
        Ok(refused.into_iter().map(outcome).collect())
    }

    /// Watches a path. What happens after this has answered is seen.
    pub async fn file_watch(
        &self,
        tenant_id: TenantId,
        id: SandboxId,
        path: String,
        user: Option<String>,
        recursive: bool,
    ) -> Result<BoxStream<'static, Result<FileChange>>> {
        let (sandbox, user) = self.file_access(tenant_id, id, [("path", &*path)], user)?;
        sandbox.awake().await?;
        let changes = answered(id, self.shared.node.file_watch(id, path, user, recursive).await)?;
        Ok(changes.map(move |change| answered(id, change)).boxed())
    }

    /// Judges a URL to sign, and says what it shall allow. Whether there is such a file is seen when it is
    /// used; nothing is woken before that.
    pub fn file_sign(&self, tenant_id: TenantId, id: SandboxId, request: FileSign) -> Result<FileGrant> {
        let (_, user) = self.file_access(tenant_id, id, [("path", &*request.path)], request.user)?;
        let secs = file::sign_secs(request.expires_in_secs)?;
        let expires = self.shared.clock.now().as_second() + i64::try_from(secs).map_err(Error::internal)?;
        Ok(FileGrant { path: request.path, user, expires })
    }
}

/// The files of a batch as they go by.
#[derive(Default)]
struct Batch {
    /// For each file that began, why it was refused; those that were not went on to the node.
    refused: Vec<Option<Error>>,
}

impl Batch {
    /// What of a part goes on: nothing of a file that is refused.
    fn judge(&mut self, part: BatchPart, rule: impl FnOnce(&str) -> Result<()>) -> Result<Option<BatchPart>> {
        if let BatchPart::Start { path } = &part {
            if self.refused.len() == file::FILES_MAX {
                let message = format!("a batch must have at most {} files", file::FILES_MAX);
                return Err(Error::invalid(message));
            }
            self.refused.push(rule(path).err());
        }
        match self.refused.last() {
            Some(None) => Ok(Some(part)),
            Some(Some(_)) => Ok(None),
            None => Err(Error::internal("a batch began with content")),
        }
    }
}
