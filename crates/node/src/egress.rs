//! What machines may reach: their policies put in force, the authorities that guests trust, and the news of
//! what was denied. The rules are `domain`'s, their enforcement the network room's; here it is seen to that
//! a policy holds from the first instruction on, and that it is the right one again after a restart.
//!
//! An authority is made when a machine first needs one, and is its sandbox's from then on: what goes on from
//! a capture of it goes on with programs that trust it. Its private key never leaves the host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nullspace_guest_proto as proto;
use nullspace_net::{Authority, Enforced};
use nullspace_node_api::Report;
use nullspace_types::id::SandboxId;
use nullspace_types::network::EgressPolicy;
use nullspace_types::{Code, Error, Result};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use crate::Node;
use crate::guest::failed;
use crate::machine::{Record, read_json, write_json};
use crate::running::Running;
use crate::slot::Slot;

/// How long a guest may take to trust an authority.
const GUEST_PATIENCE: Duration = Duration::from_secs(3);

/// What is in force for a machine.
#[derive(Clone)]
pub struct Egress {
    /// The policy.
    pub policy: EgressPolicy,
    /// The authority that its guest trusts, if it ever needed one.
    pub authority: Option<Arc<Authority>>,
}

impl Egress {
    /// Of a machine that has not begun: with the authority that what it goes on from trusts, or a new one if
    /// it needs one.
    pub fn new(policy: EgressPolicy, inherited: Option<&str>) -> Result<Self> {
        let authority = inherited.map(Authority::from_pem).transpose().map_err(Error::internal)?;
        Self { policy, authority: authority.map(Arc::new) }.complete()
    }

    /// The same with another policy.
    fn with(&self, policy: EgressPolicy) -> Result<Self> {
        Self { policy, authority: self.authority.clone() }.complete()
    }

    fn complete(mut self) -> Result<Self> {
        if self.authority.is_none() && !self.policy.injections.is_empty() {
            let made = Authority::generate("Nullspace sandbox").map_err(Error::internal)?;
            self.authority = Some(Arc::new(made));
        }
        Ok(self)
    }

    /// Key and certificate of the authority, for the record.
    pub fn authority_pem(&self) -> Option<String> {
        self.authority.as_ref().map(|authority| authority.to_pem())
    }

    /// What the guest is to trust; nothing is empty.
    pub fn trusted(&self) -> String {
        self.authority.as_ref().map(|authority| authority.certificate_pem().to_owned()).unwrap_or_default()
    }

    /// As the network room takes it.
    pub fn enforced(&self) -> Arc<Enforced> {
        Arc::new(Enforced { policy: self.policy.clone(), authority: self.authority.clone() })
    }
}

/// What is written down of it, beside the machine's record.
#[derive(Serialize, Deserialize)]
struct Written {
    policy: EgressPolicy,
    authority: Option<String>,
}

/// Its name in a machine's directory.
const FILE: &str = "egress.json";

impl Egress {
    /// What was in force last for the machine of a record, without the secrets.
    pub fn written(directory: &Path, record: &Record) -> Result<Self> {
        match read_json::<Written>(directory, FILE) {
            Some(Written { policy, authority }) => Self::new(policy, authority.as_deref()),
            None => Self::new(record.spec.egress.clone(), record.authority.as_deref()),
        }
    }
}

/// Changes the policy of a running machine. It is written down first: what is found after a crash is never
/// more than what was asked for last. If it cannot be put in force, whatever the reason, the way out is
/// closed: neither a full disk nor a guest that does not answer keeps an older policy open.
pub async fn set(machine: &Running, policy: EgressPolicy) -> Result<()> {
    let changed = change(machine, policy).await;
    if changed.is_err() {
        machine.slot().close()?;
    }
    changed
}

async fn change(machine: &Running, policy: EgressPolicy) -> Result<()> {
    let _alone = machine.ruling.lock().await;
    let before = machine.egress();
    let new = before.with(policy)?;
    if new.authority.is_some() && before.authority.is_none() {
        let request = proto::SetAuthorityRequest { certificate_pem: new.trusted() };
        let mut client = machine.client()?;
        let told = tokio::time::timeout(GUEST_PATIENCE, client.set_authority(request));
        match machine.while_there(async { Ok(told.await) }).await? {
            Ok(answer) => answer.map(drop).map_err(|status| failed("set authority", &status))?,
            Err(_) => {
                return Err(Error::new(Code::SandboxNotReady, "the sandbox does not take the authority"));
            }
        }
    }
    let written = Written { policy: new.policy.clone(), authority: new.authority_pem() };
    write_json(machine.directory(), FILE, &written).await?;
    let enforced = new.enforced();
    machine.replace_egress(new);
    machine.slot().set_egress(enforced).await
}

/// Tells control what machines were denied, as it happens.
pub async fn report_denials(node: Arc<Node>) {
    loop {
        let denials = tokio::select! {
            denials = node.slots.denials() => denials,
            () = node.stopping.cancelled() => return,
        };
        let of_machines: Vec<_> = {
            let owners = node.owners.lock().expect("no panic under it");
            denials.into_iter().filter_map(|(slot, denial)| Some((*owners.get(&slot)?, denial))).collect()
        };
        if !of_machines.is_empty() && node.reports.send(Report::Denied(of_machines)).await.is_err() {
            return;
        }
    }
}

/// Says whose slot it is, for what is denied from now on.
pub fn own(node: &Node, slot: &Slot, sandbox: SandboxId) {
    node.owners.lock().expect("no panic under it").insert(slot.index(), sandbox);
}

/// Tells what is left to tell of a slot before it is released, and that it is nobody's then.
pub async fn disown(node: &Node, slot: &Slot) {
    let owner = node.owners.lock().expect("no panic under it").remove(&slot.index());
    let Some(owner) = owner else { return };
    match slot.take_denials() {
        Ok(denials) if denials.is_empty() => {}
        Ok(denials) => {
            let denials = denials.into_iter().map(|denial| (owner, denial)).collect();
            if node.reports.send(Report::Denied(denials)).await.is_err() {
                tracing::debug!(sandbox = %owner, "nobody hears what a machine was denied");
            }
        }
        Err(error) => tracing::warn!(sandbox = %owner, %error, "what the machine was denied last is lost"),
    }
}

/// Whom connections in which a secret is sent believe: the host's own authorities, and those in these files.
pub fn roots(files: &[PathBuf]) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "some of the host's authorities cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    for file in files {
        for certificate in certificates(file)? {
            roots.add(certificate).map_err(|error| unusable(file, &error))?;
        }
    }
    Ok(Arc::new(roots))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|error| unusable(file, &error))?;
    if found.is_empty() {
        return Err(unusable(file, &"it holds no certificate"));
    }
    Ok(found)
}

fn unusable(file: &Path, why: &dyn std::fmt::Display) -> Error {
    let message = format!("[network] authorities: {} cannot be used: {why}", file.display());
    Error::new(Code::Unavailable, message)
}
