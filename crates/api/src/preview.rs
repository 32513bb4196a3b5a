//! Ports of a sandbox as others reach them, and access by SSH.

use async_trait::async_trait;
use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use http::header::CACHE_CONTROL;
use nullspace_types::Result;
use nullspace_types::id::{PreviewGrantId, SandboxId};
use nullspace_types::key::Principal;
use nullspace_types::preview::{
    HostInfo, HostRequest, PreviewGrantList, PreviewGrantQuery, PreviewGrantRevoked, PreviewProxyTarget,
    PreviewReadiness, PreviewUrl, ProxyTargetRequest, ReadinessRequest, SignedPreviewRequest,
};
use nullspace_types::ssh::{SshAccess, SshAccessRequest};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::Failure;
use crate::openapi::{Malformed, Missing, NoGrant, Refused, TooLarge};
use crate::request::{Caller, GrantPath, Json, OptionalJson, PortPath, Query, SandboxPath, Service};

/// What can be asked about ports and access. A port comes as the path has it.
#[async_trait]
pub trait PreviewApi: Clone + Send + Sync + 'static {
    /// Where a port is reached.
    async fn preview_host(&self, caller: Principal, id: SandboxId, request: HostRequest) -> Result<HostInfo>;

    /// Makes a grant and a preview URL of the default length of time.
    async fn preview_url(&self, caller: Principal, id: SandboxId, port: String) -> Result<PreviewUrl>;

    /// Makes a grant and a preview URL.
    async fn preview_url_signed(
        &self,
        caller: Principal,
        id: SandboxId,
        port: String,
        request: SignedPreviewRequest,
    ) -> Result<PreviewUrl>;

    /// Makes a grant for a customer's own proxy.
    async fn preview_proxy_target(
        &self,
        caller: Principal,
        id: SandboxId,
        port: String,
        request: ProxyTargetRequest,
    ) -> Result<PreviewProxyTarget>;

    /// Waits for a service.
    async fn preview_readiness(
        &self,
        caller: Principal,
        id: SandboxId,
        port: String,
        request: ReadinessRequest,
    ) -> Result<PreviewReadiness>;

    /// Grants of a sandbox, newest first.
    async fn preview_grant_list(
        &self,
        caller: Principal,
        id: SandboxId,
        query: PreviewGrantQuery,
    ) -> Result<PreviewGrantList>;

    /// Revokes a grant, and cuts what it holds open.
    async fn preview_grant_revoke(
        &self,
        caller: Principal,
        id: SandboxId,
        grant: PreviewGrantId,
    ) -> Result<PreviewGrantRevoked>;

    /// Certifies a key for a sandbox.
    async fn ssh_access(
        &self,
        caller: Principal,
        id: SandboxId,
        request: SshAccessRequest,
    ) -> Result<SshAccess>;
}

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new()
        .routes(routes!(preview_host))
        .routes(routes!(preview_url))
        .routes(routes!(preview_url_signed))
        .routes(routes!(preview_proxy_target))
        .routes(routes!(preview_readiness))
        .routes(routes!(preview_grant_list))
        .routes(routes!(preview_grant_revoke))
        .routes(routes!(ssh_access))
}

/// An answer with tokens in it, which nothing on the way may keep: one of these is made by a `GET`.
fn unkept(answer: impl Serialize) -> Response {
    let mut response = axum::Json(answer).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Say where a port is reached. Makes no token.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/host", tag = "preview",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = HostRequest,
    responses((status = 200, description = "Where it is reached", body = HostInfo),
        Malformed, TooLarge, Refused, Missing))]
async fn preview_host<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<HostRequest>,
) -> Result<axum::Json<HostInfo>, Failure> {
    Ok(axum::Json(api.preview_host(caller, id, request).await?))
}

/// Make a preview URL that is good for 15 minutes. Each request makes a grant of its own.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/ports/{port}/preview-url", tag = "preview",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("port" = u16, Path, description = "The port")),
    responses((status = 200, description = "The URLs, and the grant behind them", body = PreviewUrl),
        Malformed, Refused, Missing))]
async fn preview_url<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    PortPath(id, port): PortPath,
) -> Result<Response, Failure> {
    Ok(unkept(api.preview_url(caller, id, port).await?))
}

/// Make a preview URL that is good for as long as is asked for.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/ports/{port}/signed-preview-url", tag = "preview",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("port" = u16, Path, description = "The port")),
    request_body(content = Option<SignedPreviewRequest>, description = "15 minutes without a body"),
    responses((status = 200, description = "The URLs, and the grant behind them", body = PreviewUrl),
        Malformed, TooLarge, Refused, Missing))]
async fn preview_url_signed<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    PortPath(id, port): PortPath,
    OptionalJson(request): OptionalJson<SignedPreviewRequest>,
) -> Result<Response, Failure> {
    Ok(unkept(api.preview_url_signed(caller, id, port, request.unwrap_or_default()).await?))
}

/// Make what a proxy of one's own needs to reach a port: URLs, and tokens that it sends in a header.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/ports/{port}/preview-proxy-target", tag = "preview",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("port" = u16, Path, description = "The port")),
    request_body(content = Option<ProxyTargetRequest>, description = "15 minutes and all transports without a body"),
    responses((status = 200, description = "The target, and the grant behind it", body = PreviewProxyTarget),
        Malformed, TooLarge, Refused, Missing))]
async fn preview_proxy_target<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    PortPath(id, port): PortPath,
    OptionalJson(request): OptionalJson<ProxyTargetRequest>,
) -> Result<Response, Failure> {
    Ok(unkept(api.preview_proxy_target(caller, id, port, request.unwrap_or_default()).await?))
}

/// Wait until a service answers. One that does not in time is no error: the answer says so.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/ports/{port}/readiness", tag = "preview",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("port" = u16, Path, description = "The port")),
    request_body(content = Option<ReadinessRequest>, description = "TCP for up to 30 seconds without a body"),
    responses((status = 200, description = "Whether it answers", body = PreviewReadiness),
        Malformed, TooLarge, Refused, Missing))]
async fn preview_readiness<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    PortPath(id, port): PortPath,
    OptionalJson(request): OptionalJson<ReadinessRequest>,
) -> Result<axum::Json<PreviewReadiness>, Failure> {
    Ok(axum::Json(api.preview_readiness(caller, id, port, request.unwrap_or_default()).await?))
}

/// List a sandbox's grants, with how they were used. Tokens are not among it.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/preview-urls", tag = "preview",
    params(("sandbox_id" = String, Path, description = "The sandbox"), PreviewGrantQuery),
    responses((status = 200, description = "The grants, newest first", body = PreviewGrantList),
        Malformed, Refused, Missing))]
async fn preview_grant_list<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    query: Query<PreviewGrantQuery>,
) -> Result<axum::Json<PreviewGrantList>, Failure> {
    Ok(axum::Json(api.preview_grant_list(caller, id, query.value).await?))
}

/// Revoke a grant. Its tokens are worth nothing from now on, and what they hold open is cut.
#[utoipa::path(delete, path = "/v1/sandboxes/{sandbox_id}/preview-urls/{grant_id}", tag = "preview",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("grant_id" = String, Path, description = "The grant")),
    responses((status = 200, description = "The grant as it is now", body = PreviewGrantRevoked),
        Refused, NoGrant))]
async fn preview_grant_revoke<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    GrantPath(id, grant): GrantPath,
) -> Result<axum::Json<PreviewGrantRevoked>, Failure> {
    Ok(axum::Json(api.preview_grant_revoke(caller, id, grant).await?))
}

/// Certify a public key for access to a sandbox by SSH.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/ssh-access", tag = "preview",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = SshAccessRequest,
    responses((status = 200, description = "The certificate, and where it is good", body = SshAccess),
        Malformed, TooLarge, Refused, Missing))]
async fn ssh_access<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<SshAccessRequest>,
) -> Result<axum::Json<SshAccess>, Failure> {
    Ok(axum::Json(api.ssh_access(caller, id, request).await?))
}
