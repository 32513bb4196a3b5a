//! The log of lifecycle events: pages of it, and what the sockets that follow it ask for.

use async_trait::async_trait;
use futures::stream::BoxStream;
use nullspace_types::Result;
use nullspace_types::event::{
    LifecycleEvent, LifecycleEventPage, LifecycleEventQuery, LifecycleSubscription,
};
use nullspace_types::key::Principal;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::Failure;
use crate::openapi::{Malformed, Missing, NoSnapshot, Refused};
use crate::request::{Caller, Query, SandboxPath, Service, SnapshotPath, of_path};

/// Events as they come. Ends only with an error.
pub type LifecycleEvents = BoxStream<'static, Result<LifecycleEvent>>;

/// What can be asked about lifecycle events.
#[async_trait]
pub trait LifecycleApi: Clone + Send + Sync + 'static {
    /// A page of the log.
    async fn lifecycle_list(
        &self,
        caller: Principal,
        query: LifecycleEventQuery,
    ) -> Result<LifecycleEventPage>;

    /// Follows the log: first what is to be told of the past, then what happens, each event once.
    async fn lifecycle_subscribe(
        &self,
        caller: Principal,
        subscription: LifecycleSubscription,
    ) -> Result<LifecycleEvents>;
}

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new()
        .routes(routes!(lifecycle_list))
        .routes(routes!(lifecycle_list_sandbox))
        .routes(routes!(lifecycle_list_snapshot))
}

/// List lifecycle events.
#[utoipa::path(get, path = "/v1/lifecycle/events", tag = "lifecycle",
    params(LifecycleEventQuery),
    responses((status = 200, description = "A page of the log", body = LifecycleEventPage),
        Malformed, Refused, Missing))]
async fn lifecycle_list<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    query: Query<LifecycleEventQuery>,
) -> Result<axum::Json<LifecycleEventPage>, Failure> {
    Ok(axum::Json(api.lifecycle_list(caller, query.value).await?))
}

/// List the lifecycle events in which a sandbox has any part, also after it is destroyed.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/lifecycle", tag = "lifecycle",
    params(("sandbox_id" = String, Path, description = "The sandbox"), LifecycleEventQuery),
    responses((status = 200, description = "A page of the log", body = LifecycleEventPage),
        Malformed, Refused, Missing))]
async fn lifecycle_list_sandbox<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Query { value: query, .. }: Query<LifecycleEventQuery>,
) -> Result<axum::Json<LifecycleEventPage>, Failure> {
    let sandbox_id = of_path("sandbox_id", query.sandbox_id, id)?;
    let query = LifecycleEventQuery { sandbox_id, ..query };
    Ok(axum::Json(api.lifecycle_list(caller, query).await?))
}

/// List the lifecycle events about a snapshot, also after it is deleted.
#[utoipa::path(get, path = "/v1/snapshots/{snapshot_id}/lifecycle", tag = "lifecycle",
    params(("snapshot_id" = String, Path, description = "The snapshot"), LifecycleEventQuery),
    responses((status = 200, description = "A page of the log", body = LifecycleEventPage),
        Malformed, Refused, NoSnapshot))]
async fn lifecycle_list_snapshot<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SnapshotPath(id): SnapshotPath,
    Query { value: query, .. }: Query<LifecycleEventQuery>,
) -> Result<axum::Json<LifecycleEventPage>, Failure> {
    let snapshot_id = of_path("snapshot_id", query.snapshot_id, id)?;
    let query = LifecycleEventQuery { snapshot_id, ..query };
    Ok(axum::Json(api.lifecycle_list(caller, query).await?))
}
