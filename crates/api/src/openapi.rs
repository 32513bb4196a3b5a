//! The OpenAPI document: made from the routes alone, over an implementation that cannot exist.

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use nullspace_types::Result;
use nullspace_types::file::{
    FileExists, FileFind, FileInfo, FileListQuery, FileMatch, FilePath, FilePermissions, FileRange,
    FileRawQuery, FileRead, FileRename, FileReplace, FileReplaced, FileSearch, FileSign, FileWrite, Found,
};
use nullspace_types::id::{SandboxId, SessionId, UploadId};
use nullspace_types::key::Principal;
use nullspace_types::process::{ExecRequest, ProcessInfo, ProcessStdin};
use nullspace_types::sandbox::{
    Sandbox, SandboxCreate, SandboxDestroyed, SandboxGetQuery, SandboxList, SandboxListQuery, SandboxMetrics,
    SandboxTimeout, SandboxTimeoutSet,
};
use nullspace_types::template::Template;
use nullspace_types::terminal::{TerminalInfo, TerminalResize};
use nullspace_types::upload::{UploadComplete, UploadCompleted, UploadCreate, UploadCreated, UploadSession};
use serde_json::Value;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi, SecurityRequirement};
use utoipa::{IntoResponses, OpenApi as _};

use crate::error::ErrorBody;
use crate::file::{BatchParts, FileChanges, FileDownloadReply, FileReadReply, FileWatch, SignedUrl};
use crate::process::{ExecReply, LogsReply, ProcessEvents};
use crate::terminal::{TerminalEvents, TerminalStart, TerminalTarget};
use crate::{
    Authenticate, ByteStream, FileApi, HealthApi, ProcessApi, SandboxApi, TemplateApi, TerminalApi, UploadApi,
};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Nullspace",
        description = "Virtual machines that agents create, run code in, and destroy. \
            Every answer has the header `x-request-id`. Unknown fields are ignored, and null is absent."
    ),
    tags(
        (name = "sandbox", description = "Virtual machines"),
        (name = "process", description = "Commands and processes in them"),
        (name = "terminal", description = "Terminal sessions in them"),
        (name = "file", description = "Files in them"),
        (name = "upload", description = "Resumable uploads into them"),
        (name = "socket", description = "Following commands, terminals and changes as they happen"),
        (name = "template", description = "What they are made from"),
        (name = "health", description = "The server itself"),
    )
)]
struct Document;

/// The whole document.
pub(crate) fn document() -> OpenApi {
    let (_, paths) = crate::documented::<Undefined>().split_for_parts();
    let mut document = Document::openapi();
    document.merge(paths);
    let key = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("An API key")).build();
    document.components.get_or_insert_default().add_security_scheme("api_key", SecurityScheme::Http(key));
    document.security = Some(vec![SecurityRequirement::new("api_key", [] as [&str; 0])]);
    document
}

/// What any request with a key can come to.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) enum Refused {
    /// The key is missing, malformed, unknown or revoked: `unauthorized`.
    #[response(status = 401)]
    Key(ErrorBody),
    /// Too many requests, `rate_limit_exceeded`, or the tenant's limit, `quota_exceeded`.
    #[response(status = 429)]
    TooMany(ErrorBody),
    /// A fault of the server's own: `internal_error`.
    #[response(status = 500)]
    Fault(ErrorBody),
    /// The server starts, stops or repairs itself, `unavailable`, or has no room for another machine,
    /// `capacity_exceeded`.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

/// A field, a parameter or the whole is wrong, and the message says which and how: `invalid_request`,
/// `invalid_fields`; or the sandbox's file system refused it: `file_error`.
#[derive(IntoResponses)]
#[response(status = 400)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct Malformed(ErrorBody);

/// The body is too large: `payload_too_large`.
#[derive(IntoResponses)]
#[response(status = 413)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct TooLarge(ErrorBody);

/// No such sandbox, process or file, or not the caller's: `sandbox_not_found` and the like.
#[derive(IntoResponses)]
#[response(status = 404)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct Missing(ErrorBody);

/// Not in this state: `sandbox_not_ready`, `transition_in_progress`; or an idempotency key was used for
/// something else: `conflict`.
#[derive(IntoResponses)]
#[response(status = 409)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct Conflict(ErrorBody);

/// The range is outside of the file: `range_not_satisfiable`.
#[derive(IntoResponses)]
#[response(status = 416)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct OutOfRange(ErrorBody);

/// The upload's time is over: `file_upload_error`.
#[derive(IntoResponses)]
#[response(status = 410)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct UploadGone(ErrorBody);

/// No such template: `template_not_found`.
#[derive(IntoResponses)]
#[response(status = 404)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct NoTemplate(ErrorBody);

/// This server does not have the feature: `not_implemented`.
#[derive(IntoResponses)]
#[response(status = 501)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) struct NotBuilt(ErrorBody);

/// What commands can come to.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "describes answers")]
pub(crate) enum NotRun {
    /// The command could not be run: `exec_failed`.
    #[response(status = 502)]
    Failed(ErrorBody),
    /// The command ran out of its time and was killed: `exec_timeout`.
    #[response(status = 504)]
    Timeout(ErrorBody),
}

/// An implementation of which there is no value: routes can be described over it, never served.
#[derive(Clone)]
enum Undefined {}

#[async_trait]
impl SandboxApi for Undefined {
    async fn sandbox_create(&self, _: Principal, _: Option<String>, _: SandboxCreate) -> Result<Sandbox> {
        match *self {}
    }

    async fn sandbox_list(&self, _: Principal, _: SandboxListQuery, _: bool) -> Result<SandboxList> {
        match *self {}
    }

    async fn sandbox_get(&self, _: Principal, _: SandboxId, _: SandboxGetQuery) -> Result<Value> {
        match *self {}
    }

    async fn sandbox_destroy(&self, _: Principal, _: SandboxId) -> Result<SandboxDestroyed> {
        match *self {}
    }

    async fn sandbox_timeout_set(
        &self,
        _: Principal,
        _: SandboxId,
        _: SandboxTimeoutSet,
    ) -> Result<SandboxTimeout> {
        match *self {}
    }

    async fn sandbox_metrics(&self, _: Principal, _: SandboxId) -> Result<Vec<SandboxMetrics>> {
        match *self {}
    }
}

#[async_trait]
impl ProcessApi for Undefined {
    async fn process_exec(&self, _: Principal, _: SandboxId, _: ExecRequest) -> Result<ExecReply> {
        match *self {}
    }

    async fn process_stream(&self, _: Principal, _: SandboxId, _: ExecRequest) -> Result<ProcessEvents> {
        match *self {}
    }

    async fn process_attach(
        &self,
        _: Principal,
        _: SandboxId,
        _: u32,
        _: u64,
        _: u64,
    ) -> Result<ProcessEvents> {
        match *self {}
    }

    async fn process_list(&self, _: Principal, _: SandboxId) -> Result<Vec<ProcessInfo>> {
        match *self {}
    }

    async fn process_stdin_close(&self, _: Principal, _: SandboxId, _: u32) -> Result<()> {
        match *self {}
    }

    async fn process_kill(&self, _: Principal, _: SandboxId, _: u32) -> Result<()> {
        match *self {}
    }

    async fn process_stdin(&self, _: Principal, _: SandboxId, _: u32, _: ProcessStdin) -> Result<()> {
        match *self {}
    }

    async fn process_logs(&self, _: Principal, _: SandboxId, _: u32) -> Result<LogsReply> {
        match *self {}
    }
}

#[async_trait]
impl FileApi for Undefined {
    async fn file_list(&self, _: Principal, _: SandboxId, _: FileListQuery) -> Result<Vec<FileInfo>> {
        match *self {}
    }

    async fn file_read(&self, _: Principal, _: SandboxId, _: FileRead) -> Result<FileReadReply> {
        match *self {}
    }

    async fn file_write(&self, _: Principal, _: SandboxId, _: FileWrite) -> Result<FileInfo> {
        match *self {}
    }

    async fn file_info(&self, _: Principal, _: SandboxId, _: FilePath) -> Result<FileInfo> {
        match *self {}
    }

    async fn file_exists(&self, _: Principal, _: SandboxId, _: FilePath) -> Result<FileExists> {
        match *self {}
    }

    async fn file_remove(&self, _: Principal, _: SandboxId, _: FilePath) -> Result<()> {
        match *self {}
    }

    async fn file_mkdir(&self, _: Principal, _: SandboxId, _: FilePath) -> Result<()> {
        match *self {}
    }

    async fn file_rename(&self, _: Principal, _: SandboxId, _: FileRename) -> Result<FileInfo> {
        match *self {}
    }

    async fn file_permissions(&self, _: Principal, _: SandboxId, _: FilePermissions) -> Result<()> {
        match *self {}
    }

    async fn file_download(
        &self,
        _: Principal,
        _: SandboxId,
        _: FileRawQuery,
        _: FileRange,
    ) -> Result<FileDownloadReply> {
        match *self {}
    }

    async fn file_upload(&self, _: Principal, _: SandboxId, _: FileRawQuery, _: ByteStream) -> Result<()> {
        match *self {}
    }

    async fn file_find(&self, _: Principal, _: SandboxId, _: FileFind) -> Result<Found<FileMatch>> {
        match *self {}
    }

    async fn file_search(&self, _: Principal, _: SandboxId, _: FileSearch) -> Result<Found<String>> {
        match *self {}
    }

    async fn file_replace(&self, _: Principal, _: SandboxId, _: FileReplace) -> Result<FileReplaced> {
        match *self {}
    }

    async fn file_batch_write(
        &self,
        _: Principal,
        _: SandboxId,
        _: Option<String>,
        _: BatchParts,
    ) -> Result<Vec<Result<FileInfo>>> {
        match *self {}
    }

    async fn file_watch(&self, _: Principal, _: SandboxId, _: FileWatch) -> Result<FileChanges> {
        match *self {}
    }

    async fn file_download_url(&self, _: Principal, _: SandboxId, _: FileSign) -> Result<SignedUrl> {
        match *self {}
    }

    async fn file_upload_url(&self, _: Principal, _: SandboxId, _: FileSign) -> Result<SignedUrl> {
        match *self {}
    }
}

#[async_trait]
impl TerminalApi for Undefined {
    async fn terminal_start(&self, _: Principal, _: SandboxId, _: TerminalStart) -> Result<TerminalEvents> {
        match *self {}
    }

    async fn terminal_attach(&self, _: Principal, _: SandboxId, _: TerminalTarget) -> Result<TerminalEvents> {
        match *self {}
    }

    async fn terminal_write(&self, _: Principal, _: SandboxId, _: SessionId, _: Bytes) -> Result<()> {
        match *self {}
    }

    async fn terminal_resize(
        &self,
        _: Principal,
        _: SandboxId,
        _: SessionId,
        _: TerminalResize,
    ) -> Result<()> {
        match *self {}
    }

    async fn terminal_kill(&self, _: Principal, _: SandboxId, _: SessionId) -> Result<()> {
        match *self {}
    }

    async fn terminal_list(&self, _: Principal, _: SandboxId) -> Result<Vec<TerminalInfo>> {
        match *self {}
    }

    async fn terminal_get(&self, _: Principal, _: SandboxId, _: SessionId) -> Result<TerminalInfo> {
        match *self {}
    }
}

#[async_trait]
impl UploadApi for Undefined {
    async fn upload_create(
        &self,
        _: Principal,
        _: SandboxId,
        _: Option<String>,
        _: UploadCreate,
    ) -> Result<UploadCreated> {
        match *self {}
    }

    async fn upload_get(&self, _: Principal, _: SandboxId, _: UploadId) -> Result<UploadSession> {
        match *self {}
    }

    async fn upload_part(
        &self,
        _: Principal,
        _: SandboxId,
        _: UploadId,
        _: u32,
        _: [u8; 32],
        _: ByteStream,
    ) -> Result<UploadSession> {
        match *self {}
    }

    async fn upload_complete(
        &self,
        _: Principal,
        _: SandboxId,
        _: UploadId,
        _: UploadComplete,
    ) -> Result<UploadCompleted> {
        match *self {}
    }

    async fn upload_abort(&self, _: Principal, _: SandboxId, _: UploadId) -> Result<()> {
        match *self {}
    }
}

#[async_trait]
impl TemplateApi for Undefined {
    async fn template_list(&self, _: Principal) -> Result<Vec<Template>> {
        match *self {}
    }
}

#[async_trait]
impl HealthApi for Undefined {
    async fn health(&self) -> Result<()> {
        match *self {}
    }
}

#[async_trait]
impl Authenticate for Undefined {
    async fn authenticate(&self, _: Option<&str>) -> Result<Principal> {
        match *self {}
    }

    async fn authenticate_grant(&self, _: &Method, _: &str, _: &str) -> Result<Principal> {
        match *self {}
    }
}
