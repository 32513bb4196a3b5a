use async_trait::async_trait;
use nullspace_api::WebhookApi;
use nullspace_types::Result;
use nullspace_types::id::{DeliveryId, WebhookId};
use nullspace_types::key::Principal;
use nullspace_types::webhook::{
    Webhook, WebhookCreate, WebhookDelivery, WebhookDeliveryDetail, WebhookDeliveryQuery, WebhookUpdate,
};

use super::App;

#[async_trait]
impl WebhookApi for App {
    async fn webhook_create(&self, caller: Principal, request: WebhookCreate) -> Result<Webhook> {
        self.control()?.webhook_create(caller.tenant_id, request).await
    }

    async fn webhook_list(&self, caller: Principal) -> Result<Vec<Webhook>> {
        self.control()?.webhook_list(caller.tenant_id).await
    }

    async fn webhook_get(&self, caller: Principal, id: WebhookId) -> Result<Webhook> {
        self.control()?.webhook_get(caller.tenant_id, id).await
    }

    async fn webhook_update(
        &self,
        caller: Principal,
        id: WebhookId,
        request: WebhookUpdate,
    ) -> Result<Webhook> {
        self.control()?.webhook_update(caller.tenant_id, id, request).await
    }

    async fn webhook_delete(&self, caller: Principal, id: WebhookId) -> Result<()> {
        self.control()?.webhook_delete(caller.tenant_id, id).await
    }

    async fn webhook_deliveries(
        &self,
        caller: Principal,
        id: WebhookId,
        query: WebhookDeliveryQuery,
    ) -> Result<Vec<WebhookDelivery>> {
        self.control()?.webhook_deliveries(caller.tenant_id, id, query).await
    }

    async fn webhook_delivery(
        &self,
        caller: Principal,
        id: WebhookId,
        delivery: DeliveryId,
    ) -> Result<WebhookDeliveryDetail> {
        self.control()?.webhook_delivery(caller.tenant_id, id, delivery).await
    }

    async fn webhook_redeliver(
        &self,
        caller: Principal,
        id: WebhookId,
        delivery: DeliveryId,
    ) -> Result<WebhookDelivery> {
        self.control()?.webhook_redeliver(caller.tenant_id, id, delivery).await
    }
}
