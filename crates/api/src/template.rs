//! Templates: what sandboxes are made from.

use async_trait::async_trait;
use nullspace_types::Result;
use nullspace_types::key::Principal;
use nullspace_types::template::Template;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::Failure;
use crate::openapi::Refused;
use crate::request::{Caller, Service};

/// What can be asked about templates.
#[async_trait]
pub trait TemplateApi: Clone + Send + Sync + 'static {
    /// Every template that the caller can use.
    async fn template_list(&self, caller: Principal) -> Result<Vec<Template>>;
}

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new().routes(routes!(template_list))
}

/// List the templates that sandboxes can be made from.
#[utoipa::path(get, path = "/v1/templates", tag = "template",
    responses((status = 200, description = "The templates", body = Vec<Template>), Refused))]
async fn template_list<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
) -> Result<axum::Json<Vec<Template>>, Failure> {
    Ok(axum::Json(api.template_list(caller).await?))
}
