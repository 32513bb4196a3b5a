//! Stored secrets. A value is sealed before it is stored and never read back by its owner; running sandboxes
//! whose settings name it are told anew when it comes or goes.

use nullspace_domain::vault;
use nullspace_types::id::TenantId;
use nullspace_types::key::Principal;
use nullspace_types::vault::{StoredSecret, StoredSecretCreate, StoredSecretList};
use nullspace_types::{Code, Error, Result};

use crate::Control;
use crate::registry::Message;

impl Control {
    /// Stores a secret.
    pub async fn secret_create(
        &self,
        caller: Principal,
        request: StoredSecretCreate,
    ) -> Result<StoredSecret> {
        let (name, value) = vault::validate(&request)?;
        let tenant = caller.tenant_id;
        let sealed = self.shared.access.vault.seal(tenant, name, value)?;
        let stored = self.shared.store.vault_insert(tenant, name, &sealed, self.shared.clock.now()).await;
        let secret = stored.map_err(|error| match error {
            nullspace_store::Error::Conflict(_) => {
                Error::new(Code::Conflict, format!("there is a secret {name:?} already"))
                    .suggest("delete it first, or store this one under another name")
            }
            nullspace_store::Error::Invalid(_) => {
                Error::new(Code::QuotaExceeded, "there are as many secrets as there may be")
                    .suggest("delete those that are not needed")
            }
            error => error.into(),
        })?;
        self.renew(tenant, name);
        Ok(secret)
    }

    /// All stored secrets, without their values.
    pub async fn secret_list(&self, caller: Principal) -> Result<StoredSecretList> {
        Ok(StoredSecretList { items: self.shared.store.vault_list(caller.tenant_id).await? })
    }

    /// Removes a stored secret. Sandboxes that use it can do so no more.
    pub async fn secret_delete(&self, caller: Principal, name: String) -> Result<()> {
        let name = vault::name(&name)?;
        let removed = self.shared.store.vault_delete(caller.tenant_id, name).await;
        removed.map_err(|error| match error {
            nullspace_store::Error::NotFound(_) => {
                Error::new(Code::SecretNotFound, format!("secret {name:?} does not exist"))
                    .suggest("list the secrets")
            }
            error => error.into(),
        })?;
        self.renew(caller.tenant_id, name);
        Ok(())
    }

    /// Has the sandboxes whose settings name a secret told to the node again. Each driver goes on with it
    /// until the node has taken it.
    fn renew(&self, tenant_id: TenantId, name: &str) {
        let concerned: Vec<_> = self
            .shared
            .registry
            .all_of_tenant(tenant_id)
            .into_iter()
            .filter(|entry| {
                let view = entry.view.borrow();
                view.record.row.desired.network.inject.iter().any(|rule| rule.secret == name)
            })
            .collect();
        if concerned.is_empty() {
            return;
        }
        let stop = self.shared.stop.clone();
        self.shared.tasks.spawn(async move {
            for entry in concerned {
                tokio::select! {
                    () = stop.cancelled() => return,
                    // A driver that has ended has no machine to tell of.
                    _ = entry.mailbox.send(Message::RenewNetwork) => {}
                }
            }
        });
    }
}
