//! Sandboxes: create, list, get, destroy, window, metrics.

use async_trait::async_trait;
use http::StatusCode;
use nullspace_types::Result;
use nullspace_types::id::SandboxId;
use nullspace_types::key::Principal;
use nullspace_types::sandbox::{
    Sandbox, SandboxCreate, SandboxDestroyed, SandboxGetQuery, SandboxList, SandboxListQuery, SandboxMetrics,
    SandboxTimeout, SandboxTimeoutSet,
};
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::Failure;
use crate::openapi::{Conflict, Malformed, Missing, NoTemplate, NotBuilt, NotPossible, Refused, TooLarge};
use crate::request::{Caller, IdempotencyKey, Json, Query, SandboxPath, Service};

/// What can be asked about sandboxes.
#[async_trait]
pub trait SandboxApi: Clone + Send + Sync + 'static {
    /// Makes a sandbox and answers it running. One idempotency key makes at most one.
    async fn sandbox_create(
        &self,
        caller: Principal,
        idempotency_key: Option<String>,
        request: SandboxCreate,
    ) -> Result<Sandbox>;

    /// Lists sandboxes: all of them without a query (`any_query` is false), a page with one.
    async fn sandbox_list(
        &self,
        caller: Principal,
        query: SandboxListQuery,
        any_query: bool,
    ) -> Result<SandboxList>;

    /// One sandbox, or the fields of it that the query names.
    async fn sandbox_get(&self, caller: Principal, id: SandboxId, query: SandboxGetQuery) -> Result<Value>;

    /// Destroys a sandbox.
    async fn sandbox_destroy(&self, caller: Principal, id: SandboxId) -> Result<SandboxDestroyed>;

    /// Sets a new window, counted from now.
    async fn sandbox_timeout_set(
        &self,
        caller: Principal,
        id: SandboxId,
        request: SandboxTimeoutSet,
    ) -> Result<SandboxTimeout>;

    /// What the sandbox has used lately, newest last.
    async fn sandbox_metrics(&self, caller: Principal, id: SandboxId) -> Result<Vec<SandboxMetrics>>;
}

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new()
        .routes(routes!(sandbox_create, sandbox_list))
        .routes(routes!(sandbox_get, sandbox_destroy))
        .routes(routes!(sandbox_timeout_set))
        .routes(routes!(sandbox_metrics))
}

/// Create a sandbox: a virtual machine that runs when this answers.
#[utoipa::path(post, path = "/v1/sandboxes", tag = "sandbox",
    params(("Idempotency-Key" = Option<String>, Header,
        description = "1 to 255 visible ASCII characters; one key makes at most one sandbox")),
    request_body = SandboxCreate,
    responses((status = 201, description = "The sandbox, running", body = Sandbox),
        Malformed, TooLarge, Refused, NotPossible, NoTemplate, NotBuilt))]
async fn sandbox_create<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    IdempotencyKey(key): IdempotencyKey,
    Json(request): Json<SandboxCreate>,
) -> Result<(StatusCode, axum::Json<Sandbox>), Failure> {
    Ok((StatusCode::CREATED, axum::Json(api.sandbox_create(caller, key, request).await?)))
}

/// List sandboxes: all as an array without a query, a page with one.
#[utoipa::path(get, path = "/v1/sandboxes", tag = "sandbox",
    params(SandboxListQuery),
    responses((status = 200, description = "The sandboxes, newest first", body = SandboxList),
        Malformed, Refused))]
async fn sandbox_list<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    query: Query<SandboxListQuery>,
) -> Result<axum::Json<SandboxList>, Failure> {
    Ok(axum::Json(api.sandbox_list(caller, query.value, query.any).await?))
}

/// Get a sandbox, or some fields of it.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}", tag = "sandbox",
    params(("sandbox_id" = String, Path, description = "The sandbox"), SandboxGetQuery),
    responses((status = 200, description = "The sandbox, or the fields that `fields` names", body = Sandbox),
        Malformed, Refused, Missing))]
async fn sandbox_get<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    query: Query<SandboxGetQuery>,
) -> Result<axum::Json<Value>, Failure> {
    Ok(axum::Json(api.sandbox_get(caller, id, query.value).await?))
}

/// Destroy a sandbox. Legal in every state.
#[utoipa::path(delete, path = "/v1/sandboxes/{sandbox_id}", tag = "sandbox",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    responses((status = 200, description = "It is destroyed", body = SandboxDestroyed), Refused, Missing))]
async fn sandbox_destroy<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<axum::Json<SandboxDestroyed>, Failure> {
    Ok(axum::Json(api.sandbox_destroy(caller, id).await?))
}

/// Set the sandbox's window anew, counted from now.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/timeout", tag = "sandbox",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = SandboxTimeoutSet,
    responses((status = 200, description = "The window now in force", body = SandboxTimeout),
        Malformed, TooLarge, Refused, Missing, Conflict, NotBuilt))]
async fn sandbox_timeout_set<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(request): Json<SandboxTimeoutSet>,
) -> Result<axum::Json<SandboxTimeout>, Failure> {
    Ok(axum::Json(api.sandbox_timeout_set(caller, id, request).await?))
}

/// What the sandbox has used lately.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/metrics", tag = "sandbox",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    responses((status = 200, description = "Samples, newest last", body = Vec<SandboxMetrics>),
        Refused, Missing, Conflict))]
async fn sandbox_metrics<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<axum::Json<Vec<SandboxMetrics>>, Failure> {
    Ok(axum::Json(api.sandbox_metrics(caller, id).await?))
}
