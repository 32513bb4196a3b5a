//! Files inside a sandbox: as JSON, and raw.

use async_trait::async_trait;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use nullspace_types::Result;
use nullspace_types::file::{
    FileContent, FileEncoding, FileExists, FileInfo, FileListQuery, FilePath, FilePermissions, FileRawQuery,
    FileRead, FileRename, FileWrite,
};
use nullspace_types::id::SandboxId;
use nullspace_types::key::Principal;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::Failure;
use crate::json_stream::JsonStream;
use crate::openapi::{Conflict, Malformed, Missing, Refused, TooLarge};
use crate::request::{Caller, FILE_JSON_LIMIT, Json, Query, SandboxPath, Service, body_stream};
use crate::{Api, ByteStream};

/// Bytes of a page of memory, which is what files of the kernel's say they hold.
const PAGE: u64 = 4096;

/// A file's content, as bytes; the API layer makes JSON of it in the encoding, while it comes.
pub struct FileReadReply {
    /// How the content shall stand in the answer.
    pub encoding: FileEncoding,
    /// The file's bytes.
    pub content: ByteStream,
}

/// A file's content, to be sent as it is.
pub struct FileDownloadReply {
    /// Bytes, as the file system says.
    pub size: u64,
    /// The file's bytes.
    pub content: ByteStream,
}

/// What can be asked about files.
#[async_trait]
pub trait FileApi: Clone + Send + Sync + 'static {
    /// What a directory holds.
    async fn file_list(
        &self,
        caller: Principal,
        id: SandboxId,
        query: FileListQuery,
    ) -> Result<Vec<FileInfo>>;

    /// A file's content.
    async fn file_read(&self, caller: Principal, id: SandboxId, request: FileRead) -> Result<FileReadReply>;

    /// Writes a file whole.
    async fn file_write(&self, caller: Principal, id: SandboxId, request: FileWrite) -> Result<FileInfo>;

    /// About one path.
    async fn file_info(&self, caller: Principal, id: SandboxId, request: FilePath) -> Result<FileInfo>;

    /// Whether there is anything at the path.
    async fn file_exists(&self, caller: Principal, id: SandboxId, request: FilePath) -> Result<FileExists>;

    /// Removes a file or a whole directory.
    async fn file_remove(&self, caller: Principal, id: SandboxId, request: FilePath) -> Result<()>;

    /// Makes a directory and those above it.
    async fn file_mkdir(&self, caller: Principal, id: SandboxId, request: FilePath) -> Result<()>;

    /// Moves a file or directory, and answers about the new path.
    async fn file_rename(&self, caller: Principal, id: SandboxId, request: FileRename) -> Result<FileInfo>;

    /// Sets permission bits.
    async fn file_permissions(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FilePermissions,
    ) -> Result<()>;

    /// A file's content, raw.
    async fn file_download(
        &self,
        caller: Principal,
        id: SandboxId,
        query: FileRawQuery,
    ) -> Result<FileDownloadReply>;

    /// Writes a file whole, raw. A body that ends in an error changes nothing.
    async fn file_upload(
        &self,
        caller: Principal,
        id: SandboxId,
        query: FileRawQuery,
        body: ByteStream,
    ) -> Result<()>;
}

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new()
        .routes(routes!(file_list))
        .routes(routes!(file_read))
        .routes(routes!(file_write))
        .routes(routes!(file_info))
        .routes(routes!(file_exists))
        .routes(routes!(file_remove))
        .routes(routes!(file_mkdir))
        .routes(routes!(file_rename))
        .routes(routes!(file_permissions))
        .routes(routes!(file_download, file_upload))
}

/// The bytes of a file.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "describes bodies, which are streams")]
struct RawFile(Vec<u8>);

/// List a directory.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/files", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox"), FileListQuery),
    responses((status = 200, description = "What is in it", body = Vec<FileInfo>),
        Malformed, Refused, Missing, Conflict))]
async fn file_list<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    query: Query<FileListQuery>,
) -> Result<axum::Json<Vec<FileInfo>>, Failure> {
    Ok(axum::Json(api.file_list(caller, id, query.value).await?))
}

/// Read a file as JSON.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/read", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = FileRead,
    responses((status = 200, description = "Its content", body = FileContent),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn file_read<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<FileRead>,
) -> Result<Response, Failure> {
    Ok(api.file_read(caller, id, request).await?.into_response().await?)
}

impl FileReadReply {
    async fn into_response(self) -> Result<Response> {
        let json = JsonStream::default().literal("{\"content\":");
        let (json, encoding) = match self.encoding {
            FileEncoding::Utf8 => (json.text(self.content), "utf8"),
            FileEncoding::Base64 => (json.base64(self.content), "base64"),
        };
        json.literal(format!(",\"encoding\":\"{encoding}\",\"size\":")).counted().literal("}").respond().await
    }
}

/// Write a file whole. Missing directories above it are made.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/write", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = FileWrite,
    responses((status = 200, description = "The file", body = FileInfo),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn file_write<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<FileWrite, FILE_JSON_LIMIT>,
) -> Result<axum::Json<FileInfo>, Failure> {
    Ok(axum::Json(api.file_write(caller, id, request).await?))
}

/// About one path.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/info", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = FilePath,
    responses((status = 200, description = "What is there", body = FileInfo),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn file_info<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<FilePath>,
) -> Result<axum::Json<FileInfo>, Failure> {
    Ok(axum::Json(api.file_info(caller, id, request).await?))
}

/// Whether there is anything at a path.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/exists", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = FilePath,
    responses((status = 200, description = "Whether there is", body = FileExists),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn file_exists<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<FilePath>,
) -> Result<axum::Json<FileExists>, Failure> {
    Ok(axum::Json(api.file_exists(caller, id, request).await?))
}

/// Remove a file or a whole directory.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/remove", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = FilePath,
    responses((status = 204, description = "It is gone"),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn file_remove<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<FilePath>,
) -> Result<StatusCode, Failure> {
    api.file_remove(caller, id, request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a directory and those above it.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/mkdir", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = FilePath,
    responses((status = 204, description = "It is there"),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn file_mkdir<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<FilePath>,
) -> Result<StatusCode, Failure> {
    api.file_mkdir(caller, id, request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Move a file or directory.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/rename", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = FileRename,
    responses((status = 200, description = "What is at the new path", body = FileInfo),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn file_rename<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<FileRename>,
) -> Result<axum::Json<FileInfo>, Failure> {
    Ok(axum::Json(api.file_rename(caller, id, request).await?))
}

/// Set permission bits.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/permissions", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = FilePermissions,
    responses((status = 204, description = "They are set"),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn file_permissions<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<FilePermissions>,
) -> Result<StatusCode, Failure> {
    api.file_permissions(caller, id, request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Read a file raw.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/file", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox"), FileRawQuery),
    responses((status = 200, description = "Its bytes", body = RawFile, content_type = "application/octet-stream"),
        Malformed, Refused, Missing, Conflict))]
async fn file_download<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    query: Query<FileRawQuery>,
) -> Result<FileDownloadReply, Failure> {
    Ok(api.file_download(caller, id, query.value).await?)
}

impl IntoResponse for FileDownloadReply {
    fn into_response(self) -> Response {
        let mut response = Body::from_stream(self.content).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        // Files of /proc and /sys say 0 or one page, whatever they hold. Real files that small need no
        // length.
        if self.size > PAGE {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(self.size));
        }
        response
    }
}

/// Write a file whole, raw. The body may come in chunks, of any length.
#[utoipa::path(put, path = "/v1/sandboxes/{sandbox_id}/file", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox"), FileRawQuery),
    request_body(content = RawFile, content_type = "application/octet-stream"),
    responses((status = 204, description = "It is written"), Malformed, Refused, Missing, Conflict))]
async fn file_upload<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    query: Query<FileRawQuery>,
    body: Body,
) -> Result<StatusCode, Failure> {
    api.file_upload(caller, id, query.value, body_stream(body)).await?;
    Ok(StatusCode::NO_CONTENT)
}
