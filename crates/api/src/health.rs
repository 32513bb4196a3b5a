//! Whether the server can do its work, asked without a key.

use async_trait::async_trait;
use axum::Extension;
use axum::response::{IntoResponse, Response};
use nullspace_types::{Code, Error, Result};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::{ErrorBody, Failure, HealthAnswer};
use crate::request::Service;

/// What can be asked about the server itself.
#[async_trait]
pub trait HealthApi: Clone + Send + Sync + 'static {
    /// Ok when a sandbox could be created now. The error's message is shown to anyone who asks.
    async fn health(&self) -> Result<()>;
}

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new().routes(routes!(health))
}

/// The server can do its work.
#[derive(Serialize, utoipa::ToSchema)]
struct Health {
    /// Always `ok`.
    status: &'static str,
}

/// Whether a sandbox could be created now.
#[utoipa::path(get, path = "/healthz", tag = "health", security(()),
    responses((status = 200, description = "It could", body = Health),
        (status = 503, description = "It could not, and why", body = ErrorBody)))]
async fn health<A: Api>(Service(api): Service<A>) -> Response {
    match api.health().await {
        Ok(()) => axum::Json(Health { status: "ok" }).into_response(),
        Err(error) => {
            (Extension(HealthAnswer), Failure(Error { code: Code::Unavailable, ..error })).into_response()
        }
    }
}
