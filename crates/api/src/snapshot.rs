//! Snapshots and what is made of running machines: hibernate, resume, snapshot, fork, tree, diff.

use async_trait::async_trait;
use http::StatusCode;
use nullspace_types::Result;
use nullspace_types::id::{SandboxId, SnapshotId};
use nullspace_types::key::Principal;
use nullspace_types::sandbox::Sandbox;
use nullspace_types::snapshot::{
    SandboxDiff, SandboxDiffQuery, SandboxFork, SandboxForked, SandboxTree, Snapshot, SnapshotListQuery,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::Failure;
use crate::openapi::{Malformed, Missing, NoSnapshot, NotPossible, Refused, TooLarge};
use crate::request::{
    Caller, IdempotencyKey, OptionalJson, PausedPath, Query, SandboxPath, Service, SnapshotPath,
};

/// What can be asked about snapshots.
#[async_trait]
pub trait SnapshotApi: Clone + Send + Sync + 'static {
    /// Freezes a running sandbox to the disk and ends its machine.
    async fn sandbox_hibernate(&self, caller: Principal, id: SandboxId) -> Result<Snapshot>;

    /// Lets a paused sandbox go on, named by its own ID or by that of its snapshot, as text. One that runs
    /// is answered as it is.
    async fn sandbox_resume(&self, caller: Principal, id: String) -> Result<Sandbox>;

    /// Takes a snapshot of a running sandbox, which goes on.
    async fn snapshot_create(
        &self,
        caller: Principal,
        idempotency_key: Option<String>,
        id: SandboxId,
    ) -> Result<Snapshot>;

    /// Makes children of a running sandbox that go on from the same instant.
    async fn sandbox_fork(
        &self,
        caller: Principal,
        idempotency_key: Option<String>,
        id: SandboxId,
        request: SandboxFork,
    ) -> Result<SandboxForked>;

    /// All relatives of a sandbox.
    async fn sandbox_tree(&self, caller: Principal, id: SandboxId) -> Result<SandboxTree>;

    /// Which files differ between a sandbox and a relative.
    async fn sandbox_diff(
        &self,
        caller: Principal,
        id: SandboxId,
        query: SandboxDiffQuery,
    ) -> Result<SandboxDiff>;

    /// Snapshots, newest first.
    async fn snapshot_list(&self, caller: Principal, query: SnapshotListQuery) -> Result<Vec<Snapshot>>;

    /// One snapshot.
    async fn snapshot_get(&self, caller: Principal, id: SnapshotId) -> Result<Snapshot>;

    /// Removes a snapshot. Sandboxes that began from it do not need it.
    async fn snapshot_delete(&self, caller: Principal, id: SnapshotId) -> Result<()>;
}

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new()
        .routes(routes!(sandbox_hibernate))
        .routes(routes!(sandbox_resume))
        .routes(routes!(snapshot_create))
        .routes(routes!(sandbox_fork))
        .routes(routes!(sandbox_tree))
        .routes(routes!(sandbox_diff))
        .routes(routes!(snapshot_list))
        .routes(routes!(snapshot_get, snapshot_delete))
}

/// Hibernate a sandbox: its memory and disk are kept, its machine ends. A paused one is answered as it is.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/hibernate", tag = "snapshot",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    responses((status = 200, description = "The snapshot that it resumes from", body = Snapshot),
        Refused, Missing, NotPossible))]
async fn sandbox_hibernate<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<axum::Json<Snapshot>, Failure> {
    Ok(axum::Json(api.sandbox_hibernate(caller, id).await?))
}

/// Resume a paused sandbox. It keeps its ID; one that runs is answered as it is.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/resume", tag = "snapshot",
    params(("sandbox_id" = String, Path, description = "The sandbox, or the snapshot that it is paused on")),
    responses((status = 200, description = "The sandbox, running", body = Sandbox),
        Malformed, Refused, Missing, NotPossible))]
async fn sandbox_resume<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    PausedPath(id): PausedPath,
) -> Result<axum::Json<Sandbox>, Failure> {
    Ok(axum::Json(api.sandbox_resume(caller, id).await?))
}

/// Take a snapshot of a running sandbox, which goes on.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/snapshots", tag = "snapshot",
    params(("sandbox_id" = String, Path, description = "The sandbox"),
        ("Idempotency-Key" = Option<String>, Header,
            description = "1 to 255 visible ASCII characters; one key makes at most one snapshot")),
    responses((status = 201, description = "The snapshot", body = Snapshot),
        Malformed, Refused, Missing, NotPossible))]
async fn snapshot_create<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    IdempotencyKey(key): IdempotencyKey,
    SandboxPath(id): SandboxPath,
) -> Result<(StatusCode, axum::Json<Snapshot>), Failure> {
    Ok((StatusCode::CREATED, axum::Json(api.snapshot_create(caller, key, id).await?)))
}

/// Fork a running sandbox: children that go on from the same instant, all or none.
#[utoipa::path(post, path = "/v1/sandboxes/{sandbox_id}/fork", tag = "snapshot",
    params(("sandbox_id" = String, Path, description = "The parent"),
        ("Idempotency-Key" = Option<String>, Header,
            description = "1 to 255 visible ASCII characters; one key forks at most once")),
    request_body(content = Option<SandboxFork>, description = "One child without a body"),
    responses((status = 201, description = "The children, running: one bare, or a list if `count` is given",
            body = SandboxForked),
        Malformed, TooLarge, Refused, Missing, NotPossible))]
async fn sandbox_fork<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    IdempotencyKey(key): IdempotencyKey,
    SandboxPath(id): SandboxPath,
    OptionalJson(request): OptionalJson<SandboxFork>,
) -> Result<(StatusCode, axum::Json<SandboxForked>), Failure> {
    let forked = api.sandbox_fork(caller, key, id, request.unwrap_or_default()).await?;
    Ok((StatusCode::CREATED, axum::Json(forked)))
}

/// All relatives of a sandbox: where it was forked from, and what was forked from it.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/tree", tag = "snapshot",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    responses((status = 200, description = "The relatives, depth first from the oldest", body = SandboxTree),
        Refused, Missing))]
async fn sandbox_tree<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<axum::Json<SandboxTree>, Failure> {
    Ok(axum::Json(api.sandbox_tree(caller, id).await?))
}

/// Which files differ between a sandbox and a relative. Wakes neither.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/diff", tag = "snapshot",
    params(("sandbox_id" = String, Path, description = "The sandbox"), SandboxDiffQuery),
    responses((status = 200, description = "What differs", body = SandboxDiff),
        Malformed, Refused, Missing, NotPossible))]
async fn sandbox_diff<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    query: Query<SandboxDiffQuery>,
) -> Result<axum::Json<SandboxDiff>, Failure> {
    Ok(axum::Json(api.sandbox_diff(caller, id, query.value).await?))
}

/// List snapshots.
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshot",
    params(SnapshotListQuery),
    responses((status = 200, description = "The snapshots, newest first", body = Vec<Snapshot>),
        Malformed, Refused))]
async fn snapshot_list<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    query: Query<SnapshotListQuery>,
) -> Result<axum::Json<Vec<Snapshot>>, Failure> {
    Ok(axum::Json(api.snapshot_list(caller, query.value).await?))
}

/// Get a snapshot.
#[utoipa::path(get, path = "/v1/snapshots/{snapshot_id}", tag = "snapshot",
    params(("snapshot_id" = String, Path, description = "The snapshot")),
    responses((status = 200, description = "The snapshot", body = Snapshot), Refused, NoSnapshot))]
async fn snapshot_get<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SnapshotPath(id): SnapshotPath,
) -> Result<axum::Json<Snapshot>, Failure> {
    Ok(axum::Json(api.snapshot_get(caller, id).await?))
}

/// Delete a snapshot. Sandboxes that began from it stay.
#[utoipa::path(delete, path = "/v1/snapshots/{snapshot_id}", tag = "snapshot",
    params(("snapshot_id" = String, Path, description = "The snapshot")),
    responses((status = 204, description = "It is gone"), Refused, NoSnapshot, NotPossible))]
async fn snapshot_delete<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SnapshotPath(id): SnapshotPath,
) -> Result<StatusCode, Failure> {
    api.snapshot_delete(caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
