//! Webhooks and their deliveries.

use nullspace_types::webhook::{
    Webhook, WebhookCreate, WebhookDelivery, WebhookDeliveryDetail, WebhookDeliveryQuery, WebhookUpdate,
};
use reqwest::Method;

use crate::error::Result;
use crate::transport::{Call, Client, segment};

const WEBHOOKS: &str = "/v1/lifecycle/webhooks";

impl Client {
    /// Makes a webhook. Events from before are not sent.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn webhook_create(&self, request: &WebhookCreate) -> Result<Webhook> {
        self.json(Call::new(Method::POST, WEBHOOKS.to_owned()).body(request)?).await
    }

    /// All webhooks, oldest first.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn webhook_list(&self) -> Result<Vec<Webhook>> {
        self.json(Call::new(Method::GET, WEBHOOKS.to_owned())).await
    }

    /// One webhook.
    ///
    /// # Errors
    /// `webhook_not_found`; see [`crate::Error`].
    pub async fn webhook_get(&self, id: &str) -> Result<Webhook> {
        self.json(Call::new(Method::GET, one(id)?)).await
    }

    /// Changes what the request names.
    ///
    /// # Errors
    /// `webhook_not_found`; see [`crate::Error`].
    pub async fn webhook_update(&self, id: &str, request: &WebhookUpdate) -> Result<Webhook> {
        self.json(Call::new(Method::PATCH, one(id)?).body(request)?).await
    }

    /// Removes a webhook and its deliveries.
    ///
    /// # Errors
    /// `webhook_not_found`; see [`crate::Error`].
    pub async fn webhook_delete(&self, id: &str) -> Result<()> {
        self.empty(Call::new(Method::DELETE, one(id)?)).await
    }

    /// Deliveries of a webhook, newest first.
    ///
    /// # Errors
    /// `webhook_not_found`; see [`crate::Error`].
    pub async fn webhook_deliveries(
        &self,
        id: &str,
        query: &WebhookDeliveryQuery,
    ) -> Result<Vec<WebhookDelivery>> {
        let path = format!("{}/deliveries", one(id)?);
        self.json(Call::new(Method::GET, path).query(query)?).await
    }

    /// One delivery, with its event and attempts.
    ///
    /// # Errors
    /// `webhook_not_found`, `delivery_not_found`; see [`crate::Error`].
    pub async fn webhook_delivery(&self, id: &str, delivery: &str) -> Result<WebhookDeliveryDetail> {
        self.json(Call::new(Method::GET, below(id, delivery, "")?)).await
    }

    /// Puts a delivery that is over on its way again.
    ///
    /// # Errors
    /// `webhook_not_found`, `delivery_not_found`; see [`crate::Error`].
    pub async fn webhook_redeliver(&self, id: &str, delivery: &str) -> Result<WebhookDelivery> {
        self.json(Call::new(Method::POST, below(id, delivery, "/redeliver")?)).await
    }
}

fn one(id: &str) -> Result<String> {
    Ok(format!("{WEBHOOKS}/{}", segment("webhook ID", id)?))
}

fn below(id: &str, delivery: &str, rest: &str) -> Result<String> {
    Ok(format!("{}/deliveries/{}{rest}", one(id)?, segment("delivery ID", delivery)?))
}
