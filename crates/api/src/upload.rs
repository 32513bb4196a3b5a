//! Resumable uploads into a sandbox: create, parts, complete, abort.

use async_trait::async_trait;
use axum::body::Body;
use http::{HeaderMap, StatusCode};
use nullspace_types::id::{SandboxId, UploadId};
use nullspace_types::key::Principal;
use nullspace_types::upload::{UploadComplete, UploadCompleted, UploadCreate, UploadCreated, UploadSession};
use nullspace_types::{Error, Result};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::Failure;
use crate::file::RawFile;
use crate::openapi::{Conflict, Malformed, Missing, Refused, TooLarge, UploadGone};
use crate::request::{
    Caller, IdempotencyKey, Json, OptionalJson, PartPath, SandboxPath, Service, UploadPath, body_stream,
};
use crate::{Api, ByteStream};

/// The header with a part's checksum.
const PART_CHECKSUM: &str = "x-nullspace-part-sha256";

/// What can be asked about uploads.
#[async_trait]
pub trait UploadApi: Clone + Send + Sync + 'static {
    /// Begins an upload. One idempotency key begins at most one.
    async fn upload_create(
        &self,
        caller: Principal,
        id: SandboxId,
        idempotency_key: Option<String>,
        request: UploadCreate,
    ) -> Result<UploadCreated>;

    /// An upload.
    async fn upload_get(&self, caller: Principal, id: SandboxId, upload: UploadId) -> Result<UploadSession>;

    /// Takes a part. A body that ends in an error, or is not what its checksum says, changes nothing.
    async fn upload_part(
        &self,
        caller: Principal,
        id: SandboxId,
        upload: UploadId,
        part: u32,
        sha256: [u8; 32],
        body: ByteStream,
    ) -> Result<UploadSession>;

    /// Puts an upload in place. Again answers the same.
    async fn upload_complete(
        &self,
        caller: Principal,
        id: SandboxId,
        upload: UploadId,
        request: UploadComplete,
    ) -> Result<UploadCompleted>;

    /// Gives an upload up.
    async fn upload_abort(&self, caller: Principal, id: SandboxId, upload: UploadId) -> Result<()>;
}

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new()
        .routes(routes!(upload_create))
        .routes(routes!(upload_get, upload_abort))
        .routes(routes!(upload_part))
        .routes(routes!(upload_complete))
}

/// Begin a resumable upload. Space for it is kept free from now on.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/uploads", tag = "upload",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("Idempotency-Key" = Option<String>, Header,
            description = "1 to 255 visible ASCII characters; one key begins at most one upload")),
    request_body = UploadCreate,
    responses((status = 201, description = "The upload", body = UploadCreated),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn upload_create<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    IdempotencyKey(key): IdempotencyKey,
    Json(request): Json<UploadCreate>,
) -> Result<(StatusCode, axum::Json<UploadCreated>), Failure> {
    Ok((StatusCode::CREATED, axum::Json(api.upload_create(caller, id, key, request).await?)))
}

/// Get an upload: how far it is, and which part is missing.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/uploads/{upload_id}", tag = "upload",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("upload_id" = String, Path, description = "The upload")),
    responses((status = 200, description = "The upload", body = UploadSession), Refused, Missing, Conflict))]
async fn upload_get<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    UploadPath(id, upload): UploadPath,
) -> Result<axum::Json<UploadSession>, Failure> {
    Ok(axum::Json(api.upload_get(caller, id, upload).await?))
}

/// Send a part, counted from 0, in any order and as often as needed.
#[utoipa::path(put, path = "/v1/sandboxes/{sandbox_id}/uploads/{upload_id}/parts/{part}", tag = "upload",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("upload_id" = String, Path, description = "The upload"),
        ("part" = u32, Path, description = "The part's number"),
        ("x-nullspace-part-sha256" = String, Header, description = "SHA-256 of the part, 64 hexadecimal digits")),
    request_body(content = RawFile, content_type = "application/octet-stream"),
    responses((status = 200, description = "The upload", body = UploadSession),
        Malformed, Refused, Missing, Conflict, UploadGone))]
async fn upload_part<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    PartPath(id, upload, part): PartPath,
    headers: HeaderMap,
    body: Body,
) -> Result<axum::Json<UploadSession>, Failure> {
    let sha256 = checksum(&headers)?;
    Ok(axum::Json(api.upload_part(caller, id, upload, part, sha256, body_stream(body)).await?))
}

fn checksum(headers: &HeaderMap) -> Result<[u8; 32]> {
    let text = headers.get(PART_CHECKSUM).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let digits = |n: usize| u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok();
    let mut sha256 = [0; 32];
    let hexadecimal = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    for (n, byte) in sha256.iter_mut().enumerate() {
        *byte = digits(n).filter(|_| hexadecimal).ok_or_else(|| {
            Error::invalid(format!(
                "the header {PART_CHECKSUM} must be the part's SHA-256 in 64 hexadecimal digits"
            ))
        })?;
    }
    Ok(sha256)
}

/// Put an upload in place, in one step.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/uploads/{upload_id}/complete", tag = "upload",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("upload_id" = String, Path, description = "The upload")),
    request_body = Option<UploadComplete>,
    responses((status = 200, description = "It is in place", body = UploadCompleted),
        Malformed, TooLarge, Refused, Missing, Conflict, UploadGone))]
async fn upload_complete<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    UploadPath(id, upload): UploadPath,
    OptionalJson(request): OptionalJson<UploadComplete>,
) -> Result<axum::Json<UploadCompleted>, Failure> {
    Ok(axum::Json(api.upload_complete(caller, id, upload, request.unwrap_or_default()).await?))
}

/// Give an upload up, and free what it held.
#[utoipa::path(delete, path = "/v1/sandboxes/{sandbox_id}/uploads/{upload_id}", tag = "upload",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("upload_id" = String, Path, description = "The upload")),
    responses((status = 204, description = "It is gone"), Malformed, Refused, Missing, Conflict, UploadGone))]
async fn upload_abort<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    UploadPath(id, upload): UploadPath,
) -> Result<StatusCode, Failure> {
    api.upload_abort(caller, id, upload).await?;
    Ok(StatusCode::NO_CONTENT)
}
