//! What a sandbox may reach, changed while it lives. Settings are written first and then put in force, one
//! change after the other, and only while no call to the node makes or captures the machine: a machine in the
//! making has the settings as of when it was begun. What a node does not take is put back.

use std::time::Duration;

use nullspace_domain::lifecycle::{Rejected, State};
use nullspace_domain::network::change;
use nullspace_types::network::{EgressPolicy, NetworkSettings, SandboxNetwork};
use nullspace_types::{Code, Error, Result};
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::Driver;
use crate::access::{answered, refusal};
use crate::network::{new_policy, policy, shown};
use crate::write::{Change, Write};

/// How long a node may take to put a policy in force. The driver waits for it, so a destroy does too.
const ENFORCE_LIMIT: Duration = Duration::from_secs(8);
/// Between two attempts to put the settings in force that a sandbox has: from the first to the second,
/// doubling.
const RENEWAL_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// A change that somebody waits for.
pub(super) struct NetworkChange {
    pub(super) change: Map<String, Value>,
    pub(super) done: oneshot::Sender<Result<SandboxNetwork>>,
}

/// That the node is to be told the policy again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Renewal {
    due: Instant,
    pause: Duration,
}

impl Driver {
    /// Has the policy told to the node again, as soon as there is a machine that nothing else is done with.
    pub(super) fn renew_later(&mut self) {
        self.renewal = Some(Renewal { due: Instant::now(), pause: RENEWAL_PAUSES.0 });
    }

    pub(super) fn renewal_due(&self) -> Option<Instant> {
        matches!(self.record.state, State::Running { .. }).then_some(self.renewal?.due)
    }

    /// Makes the changes that wait, if this is a state for it.
    pub(super) async fn change_networks(&mut self) {
        match self.record.state {
            State::Hibernating { .. } | State::Resuming { .. } => return,
            State::Absent
            | State::Creating { .. }
            | State::Running { .. }
            | State::Paused { .. }
            | State::Lost { .. }
            | State::Destroying { .. }
            | State::Destroyed => {}
        }
        while let Some(NetworkChange { change, done }) = self.networks.pop_front() {
            // Nobody would learn what became of it.
            if done.is_closed() {
                continue;
            }
            let changed = self.change_network(&change).await;
            let _ = done.send(changed);
        }
    }

    async fn change_network(&mut self, asked: &Map<String, Value>) -> Result<SandboxNetwork> {
        let running = match self.record.state {
            State::Running { .. } => true,
            State::Paused { .. } => false,
            State::Absent | State::Creating { .. } | State::Hibernating { .. } | State::Resuming { .. } => {
                return Err(refusal(&self.record, Rejected::NotRunning));
            }
            State::Lost { .. } => return Err(refusal(&self.record, Rejected::MachineLost)),
            State::Destroying { .. } | State::Destroyed => {
                return Err(refusal(&self.record, Rejected::Gone));
            }
        };
        let tenant = self.record.row.tenant_id;
        let desired = &self.record.row.desired;
        let before = (desired.internet_access, desired.network.clone());
        let (internet_access, network) = change(before.0, &before.1, asked)?;
        let policy = new_policy(&self.shared, tenant, internet_access, &network).await?;
        let written = Change::Network { internet_access, network: network.clone() };
        self.journal.write(&self.shared, &Write { change: written, events: vec![] }).await?;
        self.record.row.desired.internet_access = internet_access;
        self.record.row.desired.network = network;
        if running && let Err(error) = self.enforce(policy).await {
            return Err(self.put_back(before, error).await);
        }
        self.publish();
        Ok(shown(&self.record))
    }

    async fn enforce(&mut self, policy: EgressPolicy) -> Result<()> {
        let enforced = timeout(ENFORCE_LIMIT, self.shared.node.egress_set(self.id, policy)).await;
        let late = || {
            let secs = ENFORCE_LIMIT.as_secs();
            Error::new(Code::Unavailable, format!("the settings were not in force within {secs} seconds"))
        };
        answered(self.id, enforced.unwrap_or_else(|_| Err(late())))?;
        self.renewal = None;
        Ok(())
    }

    /// Goes back to the settings from before a change that the node did not take.
    async fn put_back(&mut self, before: (bool, NetworkSettings), why: Error) -> Error {
        tracing::warn!(sandbox = %self.id, error = %why, context = why.context, "network settings could not be put in force; putting the former back");
        let (internet_access, network) = before;
        self.record.row.desired.internet_access = internet_access;
        self.record.row.desired.network = network.clone();
        let written = Change::Network { internet_access, network };
        self.journal.push(&self.shared, vec![Write { change: written, events: vec![] }]).await;
        let message = format!("the network settings were not changed: {}", why.message);
        match self.enforce_own().await {
            Ok(()) => Error { message, ..why },
            Err(error) => {
                tracing::error!(sandbox = %self.id, %error, context = error.context, "the sandbox reaches nothing until the node takes its settings again");
                self.renew_later();
                let message = format!(
                    "{message}; the sandbox reaches nothing until the node takes the former settings again, \
                     which is being tried"
                );
                Error { message, ..why }
            }
        }
    }

    /// Puts the settings in force that the sandbox has.
    async fn enforce_own(&mut self) -> Result<()> {
        let row = &self.record.row;
        let (internet_access, network) = (row.desired.internet_access, &row.desired.network);
        let policy = policy(&self.shared, row.tenant_id, internet_access, network).await?;
        self.enforce(policy).await
    }

    /// Tells the node the policy again, and sets the time of the next attempt if that fails.
    pub(super) async fn renew(&mut self) {
        let Some(Renewal { pause, .. }) = self.renewal else { return };
        if let Err(error) = self.enforce_own().await {
            tracing::warn!(sandbox = %self.id, %error, context = error.context, ?pause, "network settings could not be put in force; trying again");
            let next = (pause * 2).min(RENEWAL_PAUSES.1);
            self.renewal = Some(Renewal { due: Instant::now() + pause, pause: next });
        }
        self.view.send_modify(|view| view.taken_over = true);
    }
}
