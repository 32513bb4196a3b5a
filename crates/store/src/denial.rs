//! What sandboxes tried to reach and may not.

use async_trait::async_trait;
use nullspace_types::id::{SandboxId, TenantId};
use nullspace_types::network::Denial;

use crate::Result;

/// Denials, counted.
#[async_trait]
pub trait DenialStore: Send + Sync {
    /// Adds what was denied, in one transaction: what is there already gets a higher count and a later time.
    /// Of one sandbox the 1,000 latest are kept. What is of no sandbox is left out.
    async fn denials_add(&self, denials: &[(SandboxId, Denial)]) -> Result<()>;

    /// Those of a tenant's sandbox, the latest first.
    async fn denial_list(
        &self,
        tenant: TenantId,
        sandbox: SandboxId,
        offset: u32,
        limit: u32,
    ) -> Result<Vec<Denial>>;
}
