//! What a sandbox may reach, what it was denied, and stored secrets.

use async_trait::async_trait;
use http::StatusCode;
use nullspace_types::Result;
use nullspace_types::id::SandboxId;
use nullspace_types::key::Principal;
use nullspace_types::network::{DenialPage, DenialQuery, NetworkSettings, SandboxNetwork};
use nullspace_types::vault::{StoredSecret, StoredSecretCreate, StoredSecretList};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::Failure;
use crate::openapi::{Conflict, Malformed, Missing, NoSecret, Refused, TooLarge};
use crate::request::{Caller, Json, NamePath, Query, SandboxPath, Service};

/// What can be asked about networks.
#[async_trait]
pub trait NetworkApi: Clone + Send + Sync + 'static {
    /// The settings of a sandbox.
    async fn network_get(&self, caller: Principal, id: SandboxId) -> Result<SandboxNetwork>;

    /// Changes what the request names; in force when this answers.
    async fn network_update(
        &self,
        caller: Principal,
        id: SandboxId,
        change: Map<String, Value>,
    ) -> Result<SandboxNetwork>;

    /// What a sandbox was denied, the latest first.
    async fn network_denied(
        &self,
        caller: Principal,
        id: SandboxId,
        query: DenialQuery,
    ) -> Result<DenialPage>;

    /// Stores a secret.
    async fn secret_create(&self, caller: Principal, request: StoredSecretCreate) -> Result<StoredSecret>;

    /// All stored secrets, without their values.
    async fn secret_list(&self, caller: Principal) -> Result<StoredSecretList>;

    /// Removes a stored secret. Sandboxes that use it can do so no more.
    async fn secret_delete(&self, caller: Principal, name: String) -> Result<()>;
}

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new()
        .routes(routes!(network_get, network_update))
        .routes(routes!(network_denied))
        .routes(routes!(secret_create, secret_list))
        .routes(routes!(secret_delete))
}

/// What a change may name, each part of it or none.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "describes requests")]
struct NetworkChange {
    /// Whether it reaches anything that no rule allows.
    internet_access: Option<bool>,
    #[serde(flatten)]
    settings: NetworkSettings,
}

/// Get what a sandbox may reach, and who may reach it.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/network", tag = "network",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    responses((status = 200, description = "The settings", body = SandboxNetwork), Refused, Missing))]
async fn network_get<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
) -> Result<axum::Json<SandboxNetwork>, Failure> {
    Ok(axum::Json(api.network_get(caller, id).await?))
}

/// Change what a sandbox may reach, and who may reach it. Each setting that the request names is replaced
/// whole, and null puts its default back; the others stay.
#[utoipa::path(patch, path = "/v1/sandboxes/{sandbox_id}/network", tag = "network",
    params(("sandbox_id" = String, Path, description = "The sandbox")),
    request_body = NetworkChange,
    responses((status = 200, description = "The settings, in force", body = SandboxNetwork),
        Malformed, TooLarge, Refused, Missing, Conflict))]
async fn network_update<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    Json(change): Json<Map<String, Value>>,
) -> Result<axum::Json<SandboxNetwork>, Failure> {
    Ok(axum::Json(api.network_update(caller, id, change).await?))
}

/// List what a sandbox tried to reach and may not.
#[utoipa::path(get, path = "/v1/sandboxes/{sandbox_id}/network/denied", tag = "network",
    params(("sandbox_id" = String, Path, description = "The sandbox"), DenialQuery),
    responses((status = 200, description = "A page of denials, the latest first", body = DenialPage),
        Malformed, Refused, Missing))]
async fn network_denied<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    SandboxPath(id): SandboxPath,
    query: Query<DenialQuery>,
) -> Result<axum::Json<DenialPage>, Failure> {
    Ok(axum::Json(api.network_denied(caller, id, query.value).await?))
}

/// Store a secret, for rules that add it to requests. Its value is never told again.
#[utoipa::path(post, path = "/v1/secrets", tag = "secret",
    request_body = StoredSecretCreate,
    responses((status = 201, description = "The secret, without its value", body = StoredSecret),
        Malformed, TooLarge, Refused, Conflict))]
async fn secret_create<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    Json(request): Json<StoredSecretCreate>,
) -> Result<(StatusCode, axum::Json<StoredSecret>), Failure> {
    Ok((StatusCode::CREATED, axum::Json(api.secret_create(caller, request).await?)))
}

/// List stored secrets.
#[utoipa::path(get, path = "/v1/secrets", tag = "secret",
    responses((status = 200, description = "The secrets by name, without their values", body = StoredSecretList),
        Refused))]
async fn secret_list<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
) -> Result<axum::Json<StoredSecretList>, Failure> {
    Ok(axum::Json(api.secret_list(caller).await?))
}

/// Delete a stored secret. Requests that were to carry it are refused from now on.
#[utoipa::path(delete, path = "/v1/secrets/{name}", tag = "secret",
    params(("name" = String, Path, description = "The secret's name")),
    responses((status = 204, description = "It is gone"), Refused, NoSecret))]
async fn secret_delete<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    NamePath(name): NamePath,
) -> Result<StatusCode, Failure> {
    api.secret_delete(caller, name).await?;
    Ok(StatusCode::NO_CONTENT)
}
