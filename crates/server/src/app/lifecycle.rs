use async_trait::async_trait;
use nullspace_api::LifecycleApi;
use nullspace_api::lifecycle::LifecycleEvents;
use nullspace_types::Result;
use nullspace_types::event::{LifecycleEventPage, LifecycleEventQuery, LifecycleSubscription};
use nullspace_types::key::Principal;

use super::App;

#[async_trait]
impl LifecycleApi for App {
    async fn lifecycle_list(
        &self,
        caller: Principal,
        query: LifecycleEventQuery,
    ) -> Result<LifecycleEventPage> {
        self.control()?.lifecycle_list(caller.tenant_id, query).await
    }

    async fn lifecycle_subscribe(
        &self,
        caller: Principal,
        subscription: LifecycleSubscription,
    ) -> Result<LifecycleEvents> {
        self.control()?.lifecycle_subscribe(caller.tenant_id, subscription).await
    }
}
