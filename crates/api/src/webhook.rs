//! Webhooks and their deliveries.

use async_trait::async_trait;
use http::StatusCode;
use nullspace_types::Result;
use nullspace_types::id::{DeliveryId, WebhookId};
use nullspace_types::key::Principal;
use nullspace_types::webhook::{
    Webhook, WebhookCreate, WebhookDelivery, WebhookDeliveryDetail, WebhookDeliveryQuery, WebhookUpdate,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Api;
use crate::error::Failure;
use crate::openapi::{Malformed, NoWebhook, Refused, TooLarge};
use crate::request::{Caller, DeliveryPath, Json, Query, Service, WebhookPath};

/// What can be asked about webhooks.
#[async_trait]
pub trait WebhookApi: Clone + Send + Sync + 'static {
    /// Makes a webhook. Events from before are not sent.
    async fn webhook_create(&self, caller: Principal, request: WebhookCreate) -> Result<Webhook>;

    /// All webhooks, oldest first.
    async fn webhook_list(&self, caller: Principal) -> Result<Vec<Webhook>>;

    /// One webhook.
    async fn webhook_get(&self, caller: Principal, id: WebhookId) -> Result<Webhook>;

    /// Changes what the request names.
    async fn webhook_update(
        &self,
        caller: Principal,
        id: WebhookId,
        request: WebhookUpdate,
    ) -> Result<Webhook>;

    /// Removes a webhook and its deliveries.
    async fn webhook_delete(&self, caller: Principal, id: WebhookId) -> Result<()>;

    /// Deliveries of a webhook, newest first.
    async fn webhook_deliveries(
        &self,
        caller: Principal,
        id: WebhookId,
        query: WebhookDeliveryQuery,
    ) -> Result<Vec<WebhookDelivery>>;

    /// One delivery, with its event and attempts.
    async fn webhook_delivery(
        &self,
        caller: Principal,
        id: WebhookId,
        delivery: DeliveryId,
    ) -> Result<WebhookDeliveryDetail>;

    /// Puts a delivery that is over on its way again.
    async fn webhook_redeliver(
        &self,
        caller: Principal,
        id: WebhookId,
        delivery: DeliveryId,
    ) -> Result<WebhookDelivery>;
}

pub(crate) fn routes<A: Api>() -> OpenApiRouter<A> {
    OpenApiRouter::new()
        .routes(routes!(webhook_create, webhook_list))
        .routes(routes!(webhook_get, webhook_update, webhook_delete))
        .routes(routes!(webhook_deliveries))
        .routes(routes!(webhook_delivery))
        .routes(routes!(webhook_redeliver))
}

/// Create a webhook. Events from now on are sent to it.
#[utoipa::path(post, path = "/v1/lifecycle/webhooks", tag = "webhook",
    request_body = WebhookCreate,
    responses((status = 201, description = "The webhook", body = Webhook), Malformed, TooLarge, Refused))]
async fn webhook_create<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    Json(request): Json<WebhookCreate>,
) -> Result<(StatusCode, axum::Json<Webhook>), Failure> {
    Ok((StatusCode::CREATED, axum::Json(api.webhook_create(caller, request).await?)))
}

/// List webhooks.
#[utoipa::path(get, path = "/v1/lifecycle/webhooks", tag = "webhook",
    responses((status = 200, description = "The webhooks, oldest first", body = Vec<Webhook>), Refused))]
async fn webhook_list<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
) -> Result<axum::Json<Vec<Webhook>>, Failure> {
    Ok(axum::Json(api.webhook_list(caller).await?))
}

/// Get a webhook.
#[utoipa::path(get, path = "/v1/lifecycle/webhooks/{webhook_id}", tag = "webhook",
    params(("webhook_id" = String, Path, description = "The webhook")),
    responses((status = 200, description = "The webhook", body = Webhook), Refused, NoWebhook))]
async fn webhook_get<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    WebhookPath(id): WebhookPath,
) -> Result<axum::Json<Webhook>, Failure> {
    Ok(axum::Json(api.webhook_get(caller, id).await?))
}

/// Change a webhook: what the request names.
#[utoipa::path(patch, path = "/v1/lifecycle/webhooks/{webhook_id}", tag = "webhook",
    params(("webhook_id" = String, Path, description = "The webhook")),
    request_body = WebhookUpdate,
    responses((status = 200, description = "The webhook as it is now", body = Webhook),
        Malformed, TooLarge, Refused, NoWebhook))]
async fn webhook_update<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    WebhookPath(id): WebhookPath,
    Json(request): Json<WebhookUpdate>,
) -> Result<axum::Json<Webhook>, Failure> {
    Ok(axum::Json(api.webhook_update(caller, id, request).await?))
}

/// Delete a webhook and its deliveries.
#[utoipa::path(delete, path = "/v1/lifecycle/webhooks/{webhook_id}", tag = "webhook",
    params(("webhook_id" = String, Path, description = "The webhook")),
    responses((status = 204, description = "It is gone"), Refused, NoWebhook))]
async fn webhook_delete<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    WebhookPath(id): WebhookPath,
) -> Result<StatusCode, Failure> {
    api.webhook_delete(caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List a webhook's deliveries.
#[utoipa::path(get, path = "/v1/lifecycle/webhooks/{webhook_id}/deliveries", tag = "webhook",
    params(("webhook_id" = String, Path, description = "The webhook"), WebhookDeliveryQuery),
    responses((status = 200, description = "The deliveries, newest first", body = Vec<WebhookDelivery>),
        Malformed, Refused, NoWebhook))]
async fn webhook_deliveries<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    WebhookPath(id): WebhookPath,
    query: Query<WebhookDeliveryQuery>,
) -> Result<axum::Json<Vec<WebhookDelivery>>, Failure> {
    Ok(axum::Json(api.webhook_deliveries(caller, id, query.value).await?))
}

/// Get a delivery, with its event and every attempt.
#[utoipa::path(get, path = "/v1/lifecycle/webhooks/{webhook_id}/deliveries/{delivery_id}", tag = "webhook",
    params(("webhook_id" = String, Path, description = "The webhook"),
        ("delivery_id" = String, Path, description = "The delivery")),
    responses((status = 200, description = "The delivery", body = WebhookDeliveryDetail),
        Refused, NoWebhook))]
async fn webhook_delivery<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    DeliveryPath(id, delivery): DeliveryPath,
) -> Result<axum::Json<WebhookDeliveryDetail>, Failure> {
    Ok(axum::Json(api.webhook_delivery(caller, id, delivery).await?))
}

/// Deliver again what has been delivered or given up.
#[utoipa::path(post, path = "/v1/lifecycle/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver",
    tag = "webhook",
    params(("webhook_id" = String, Path, description = "The webhook"),
        ("delivery_id" = String, Path, description = "The delivery")),
    responses((status = 200, description = "The delivery, on its way again", body = WebhookDelivery),
        Malformed, Refused, NoWebhook))]
async fn webhook_redeliver<A: Api>(
    Service(api): Service<A>,
    Caller(caller): Caller,
    DeliveryPath(id, delivery): DeliveryPath,
) -> Result<axum::Json<WebhookDelivery>, Failure> {
    Ok(axum::Json(api.webhook_redeliver(caller, id, delivery).await?))
}
