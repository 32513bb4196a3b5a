//! What can be asked about networks: the settings of a sandbox, and what it was denied. A change goes to the
//! sandbox's driver, which puts it in force; the rules are in `domain`, and the node enforces them.

use std::collections::{HashMap, HashSet};

use nullspace_domain::network;
use nullspace_types::id::{SandboxId, TenantId};
use nullspace_types::key::Principal;
use nullspace_types::network::{
    Denial, DenialPage, DenialQuery, EgressPolicy, NetworkSettings, SandboxNetwork,
};
use nullspace_types::{Code, Error, Result};
use serde_json::{Map, Value};

use crate::Control;
use crate::access::{ask, within};
use crate::record::Record;
use crate::registry::Message;
use crate::sandbox::{BUSY, DECISION_WAIT};
use crate::shared::Shared;

pub(crate) fn shown(record: &Record) -> SandboxNetwork {
    let desired = &record.row.desired;
    SandboxNetwork { internet_access: desired.internet_access, settings: desired.network.clone() }
}

/// The values of the stored secrets that settings name, those that exist. They are held for as long as it
/// takes to tell the node.
async fn secrets(
    shared: &Shared,
    tenant: TenantId,
    settings: &NetworkSettings,
) -> Result<HashMap<String, String>> {
    if settings.inject.is_empty() {
        return Ok(HashMap::new());
    }
    let names: HashSet<&String> = settings.inject.iter().map(|rule| &rule.secret).collect();
    let names: Vec<String> = names.into_iter().cloned().collect();
    let sealed = shared.store.vault_get(tenant, &names).await?;
    let unseal = |(name, sealed): (String, Vec<u8>)| {
        let value = shared.access.vault.unseal(tenant, &name, &sealed)?;
        Ok((name, value))
    };
    sealed.into_iter().map(unseal).collect()
}

/// What a node is to enforce. A rule whose secret is gone lets nothing pass to its host.
pub(crate) async fn policy(
    shared: &Shared,
    tenant: TenantId,
    internet_access: bool,
    settings: &NetworkSettings,
) -> Result<EgressPolicy> {
    let secrets = secrets(shared, tenant, settings).await?;
    Ok(network::policy(internet_access, settings, |name| secrets.get(name).cloned()))
}

/// The same, for settings that somebody asks for: their secrets have to exist.
pub(crate) async fn new_policy(
    shared: &Shared,
    tenant: TenantId,
    internet_access: bool,
    settings: &NetworkSettings,
) -> Result<EgressPolicy> {
    let secrets = secrets(shared, tenant, settings).await?;
    if let Some(rule) = settings.inject.iter().find(|rule| !secrets.contains_key(&rule.secret)) {
        let message = format!("network.inject: there is no secret {:?}", rule.secret);
        return Err(Error::new(Code::SecretNotFound, message).suggest("store the secret first"));
    }
    Ok(network::policy(internet_access, settings, |name| secrets.get(name).cloned()))
}

/// Writes what was denied. What cannot be written is lost: it is an account, and no sandbox waits for it.
pub(crate) async fn denied(shared: &Shared, denials: Vec<(SandboxId, Denial)>) {
    if let Err(error) = shared.store.denials_add(&denials).await {
        tracing::warn!(%error, denials = denials.len(), "what was denied could not be written");
    }
}

impl Control {
    /// The settings of a sandbox.
    pub async fn network_get(&self, caller: Principal, id: SandboxId) -> Result<SandboxNetwork> {
        let entry = self.living(caller.tenant_id, id)?;
        let view = entry.view.borrow();
        Ok(shown(&view.record))
    }

    /// Changes what the request names; in force when this answers.
    pub async fn network_update(
        &self,
        caller: Principal,
        id: SandboxId,
        change: Map<String, Value>,
    ) -> Result<SandboxNetwork> {
        let entry = self.living(caller.tenant_id, id)?;
        let changed = ask(&self.shared, &entry, |done| Message::SetNetwork { change, done });
        within(DECISION_WAIT, BUSY, changed).await
    }

    /// What a sandbox was denied, the latest first; of one that is gone too.
    pub async fn network_denied(
        &self,
        caller: Principal,
        id: SandboxId,
        query: DenialQuery,
    ) -> Result<DenialPage> {
        let page = network::denial_page(&query)?;
        self.ever_lived(caller.tenant_id, id).await?;
        // One more than asked for tells whether there are more.
        let store = &self.shared.store;
        let mut items = store.denial_list(caller.tenant_id, id, page.offset, page.limit + 1).await?;
        let has_more = items.len() > page.limit as usize;
        items.truncate(page.limit as usize);
        Ok(DenialPage { sandbox_id: id, items, has_more })
    }
}
