//! What all sandboxes of a key do, as it happens; and what the server does, for its operator.

use async_trait::async_trait;
use futures::stream::BoxStream;
use http::HeaderName;
use http::header::CONTENT_TYPE;
use nullspace_types::Result;
use nullspace_types::key::Principal;
use nullspace_types::monitor::{MonitorNews, MonitorSpec};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::Failure;
use crate::openapi::Refused;
use crate::request::Service;

/// What a monitor tells: first the snapshot, then what happens. Ends only with an error.
pub type MonitorStream = BoxStream<'static, Result<MonitorNews>>;

/// What can be watched.
#[async_trait]
pub trait MonitorApi: Clone + Send + Sync + 'static {
    /// Watches all sandboxes of the caller's.
    async fn monitor(&self, caller: Principal, spec: MonitorSpec) -> Result<MonitorStream>;

    /// What the server does, in the Prometheus text format (version 0.0.4).
    async fn metrics(&self) -> Result<String>;
}

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// What the server does, for Prometheus. A request from the host itself needs no key.
#[utoipa::path(get, path = "/metrics", tag = "monitor", security((), ("api_key" = [])),
    responses((status = 200, description = "The Prometheus text format, version 0.0.4", body = String,
            content_type = "text/plain"),
        Refused))]
async fn metrics<A: Api>(
    Service(api): Service<A>,
) -> Result<([(HeaderName, &'static str); 1], String), Failure> {
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], api.metrics().await?))
}
