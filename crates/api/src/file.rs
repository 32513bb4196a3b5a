//! Files inside a sandbox: as JSON, raw, many at once, by content and by name.

use async_trait::async_trait;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures::stream::BoxStream;
use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use jiff::Timestamp;
use nullspace_types::file::{
    BatchPart, FileBatchResult, FileBatchResults, FileChange, FileContent, FileDownloadUrl, FileEncoding,
    FileExists, FileFind, FileInfo, FileListQuery, FileMatch, FilePath, FilePermissions, FileRange,
    FileRawQuery, FileRead, FileRename, FileReplace, FileReplaced, FileSearch, FileSign, FileUploadUrl,
    FileWrite, Found,
};
use nullspace_types::id::SandboxId;
use nullspace_types::key::Principal;
use nullspace_types::{Error, Result};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Failure, record};
use crate::json_stream::JsonStream;
use crate::multipart;
use crate::openapi::{Conflict, Malformed, Missing, OutOfRange, Refused, TooLarge};
use crate::range::{self, Part};
use crate::request::{Caller, FILE_JSON_LIMIT, Json, Query, SandboxPath, Service, body_stream};
use crate::{Api, ByteStream};

/// Says on the answer of a search that there was more than the limit.
pub(crate) const LIMITED: HeaderName = HeaderName::from_static("x-nullspace-limited");

/// The pieces of a batch write, in order.
pub type BatchParts = BoxStream<'static, Result<BatchPart>>;

/// What a watch sees.
pub type FileChanges = BoxStream<'static, Result<FileChange>>;

/// What to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileWatch {
    /// A directory or a file.
    pub path: String,
    /// The user on whose behalf.
    pub user: Option<String>,
    /// With all that is below it.
    pub recursive: bool,
}

/// A URL that works without a key, in parts.
pub struct SignedUrl {
    /// Where the server is reached from outside, if that is configured.
    pub base: Option<String>,
    /// What follows the question mark.
    pub query: String,
    /// The part of it that authorises.
    pub token: String,
}

/// A file's content, as bytes; the API layer makes JSON of it in the encoding, while it comes.
pub struct FileReadReply {
    /// How the content shall stand in the answer.
    pub encoding: FileEncoding,
    /// The file's bytes.
    pub content: ByteStream,
}

/// A file's content, to be sent as it is.
pub struct FileDownloadReply {
    /// Bytes of the whole file, as the file system says.
    pub size: u64,
    /// When it last changed.
    pub modified: Timestamp,
    /// The bytes of the part that was asked for.
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

    /// A file's content, raw, or a part of it.
    async fn file_download(
        &self,
        caller: Principal,
        id: SandboxId,
        query: FileRawQuery,
        range: FileRange,
    ) -> Result<FileDownloadReply>;

    /// Writes a file whole, raw. A body that ends in an error changes nothing.
    async fn file_upload(
        &self,
        caller: Principal,
        id: SandboxId,
        query: FileRawQuery,
        body: ByteStream,
    ) -> Result<()>;

    /// Lines that match.
    async fn file_find(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileFind,
    ) -> Result<Found<FileMatch>>;

    /// Paths whose last part matches.
    async fn file_search(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileSearch,
    ) -> Result<Found<String>>;

    /// Replaces a text in files.
    async fn file_replace(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileReplace,
    ) -> Result<FileReplaced>;

    /// Writes many files; one outcome for each, in order. If the parts end in an error, so does this.
    async fn file_batch_write(
        &self,
        caller: Principal,
        id: SandboxId,
        user: Option<String>,
        parts: BatchParts,
    ) -> Result<Vec<Result<FileInfo>>>;

    /// Watches a path. What happens after this has answered is seen.
    async fn file_watch(&self, caller: Principal, id: SandboxId, request: FileWatch) -> Result<FileChanges>;

    /// Signs a URL to read a file with.
    async fn file_download_url(
        &self,
        caller: Principal,
        id: SandboxId,
        request: FileSign,
    ) -> Result<SignedUrl>;

    /// Signs a URL to write a file with.
    async fn file_upload_url(&self, caller: Principal, id: SandboxId, request: FileSign)
    -> Result<SignedUrl>;
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
        .routes(routes!(file_download, file_upload, file_upload_form))
        .routes(routes!(file_find))
        .routes(routes!(file_search))
        .routes(routes!(file_replace))
        .routes(routes!(file_batch_write))
        .routes(routes!(file_download_url))
        .routes(routes!(file_upload_url))
}

/// The bytes of a file.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "describes bodies, which are streams")]
pub(crate) struct RawFile(Vec<u8>);

/// A form with a file in it.
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "describes a body, which is a stream")]
struct FileForm {
    /// The bytes.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Many files: a part `manifest`, then a part for each file, in the manifest's order.
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "describes a body, which is a stream")]
struct BatchForm {
    /// Which file is in which part, as JSON.
    manifest: nullspace_types::file::FileBatch,
}

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

/// Read a file raw, or one range of it.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/file", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox"), FileRawQuery,
        ("Range" = Option<String>, Header, description = "One range of bytes, such as `bytes=100-` or `bytes=-5`"),
        ("If-Range" = Option<String>, Header,
            description = "An ETag or date: the range is answered only if the file is still that one, else all of it")),
    responses((status = 200, description = "Its bytes", body = RawFile, content_type = "application/octet-stream"),
        (status = 206, description = "The range", body = RawFile, content_type = "application/octet-stream"),
        Malformed, Refused, Missing, Conflict, OutOfRange))]
async fn file_download<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    query: Query<FileRawQuery>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let part = range::wanted(&method, &headers);
    let query = query.value;
    let reply = api.file_download(caller, id, query.clone(), part.file_range()).await?;
    if part != Part::Whole && !range::still_valid(&headers, &reply) {
        let reply = api.file_download(caller, id, query, FileRange::Whole).await?;
        return Ok(range::respond(reply, Part::Whole));
    }
    Ok(range::respond(reply, part))
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

/// Write a file whole, raw, as the field `file` of a form.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/file", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox"), FileRawQuery),
    request_body(content = FileForm, content_type = "multipart/form-data"),
    responses((status = 204, description = "It is written"), Malformed, Refused, Missing, Conflict))]
async fn file_upload_form<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    query: Query<FileRawQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Failure> {
    let content = multipart::file(multipart::open(&headers, body_stream(body))?).await?;
    api.file_upload(caller, id, query.value, content).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a search found; the header says if there was more.
fn found<T: Serialize>(found: Found<T>) -> Response {
    let mut response = axum::Json(found.items).into_response();
    if found.limited {
        response.headers_mut().insert(LIMITED, HeaderValue::from_static("true"));
    }
    response
}

/// Find lines in files.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/find", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = FileFind,
    responses((status = 200, description = "The lines, in order of the paths", body = Vec<FileMatch>,
            headers(("x-nullspace-limited" = String, description = "`true` if there were more than the limit"))),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn file_find<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<FileFind>,
) -> Result<Response, Failure> {
    Ok(found(api.file_find(caller, id, request).await?))
}

/// Find files by name.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/search", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = FileSearch,
    responses((status = 200, description = "Their paths, in order", body = Vec<String>,
            headers(("x-nullspace-limited" = String, description = "`true` if there were more than the limit"))),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn file_search<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<FileSearch>,
) -> Result<Response, Failure> {
    Ok(found(api.file_search(caller, id, request).await?))
}

/// Replace a text in files. Each file is changed whole or not at all.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/replace", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = FileReplace,
    responses((status = 200, description = "What was done", body = FileReplaced),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn file_replace<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<FileReplace>,
) -> Result<axum::Json<FileReplaced>, Failure> {
    Ok(axum::Json(api.file_replace(caller, id, request).await?))
}

/// Write many files. One that cannot be written does not keep the others from it.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/batch-write", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body(content = BatchForm, content_type = "multipart/form-data"),
    responses((status = 200, description = "What came of each, in order", body = FileBatchResults),
        Malformed, Refused, Missing, Conflict))]
async fn file_batch_write<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    headers: HeaderMap,
    body: Body,
) -> Result<axum::Json<FileBatchResults>, Failure> {
    let (manifest, parts) = multipart::batch(multipart::open(&headers, body_stream(body))?).await?;
    let outcomes = api.file_batch_write(caller, id, manifest.user, parts).await?;
    let result = |(entry, outcome): (nullspace_types::file::FileBatchEntry, Result<FileInfo>)| match outcome {
        Ok(info) => FileBatchResult::Success { path: entry.path, info },
        Err(error) => {
            record(&error);
            FileBatchResult::Error { path: entry.path, error: error.message }
        }
    };
    let results = manifest.files.into_iter().zip(outcomes).map(result).collect();
    Ok(axum::Json(FileBatchResults { results }))
}

/// Sign a URL to read a file with, without a key.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/download-url", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = FileSign,
    responses((status = 200, description = "The URL", body = FileDownloadUrl),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn file_download_url<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    headers: HeaderMap,
    Json(request): Json<FileSign>,
) -> Result<axum::Json<FileDownloadUrl>, Failure> {
    let signed = api.file_download_url(caller, id, request).await?;
    Ok(axum::Json(FileDownloadUrl { url: signed.url(&headers, id)? }))
}

/// Sign a URL to write a file with, without a key.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/files/upload-url", tag = "file",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = FileSign,
    responses((status = 200, description = "The URL", body = FileUploadUrl),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn file_upload_url<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    headers: HeaderMap,
    Json(request): Json<FileSign>,
) -> Result<axum::Json<FileUploadUrl>, Failure> {
    let signed = api.file_upload_url(caller, id, request).await?;
    Ok(axum::Json(FileUploadUrl { url: signed.url(&headers, id)?, token: signed.token }))
}

impl SignedUrl {
    /// The whole URL: at the configured address, else where this request came to.
    fn url(&self, headers: &HeaderMap, id: SandboxId) -> Result<String> {
        let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let base = match &self.base {
            Some(base) => base.trim_end_matches('/').to_owned(),
            None => {
                let host = header(HOST).ok_or_else(|| {
                    Error::invalid("the header Host is missing: it is what the URL is made of")
                })?;
                let scheme = header(HeaderName::from_static("x-forwarded-proto"));
                format!("{}://{host}", scheme.filter(|scheme| *scheme == "https").unwrap_or("http"))
            }
        };
        Ok(format!("{base}/v1/sandboxes/{id}/file?{}", self.query))
    }
}
