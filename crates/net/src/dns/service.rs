//! What names mean for one slot: which its machine may ask for, which addresses it was given for them, and
//! how often it may ask. The rules are `nullspace_domain::network`'s.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use nullspace_domain::network::{self, Verdict, inspects, is_closed, names_matter};
use nullspace_types::network::{DeniedProtocol, DeniedTarget, DenyReason};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::budget::Budget;
use super::given::Given;
use super::lookup::Lookups;
use super::message::{Query, kind};
use super::relay::{self, Transport};
use crate::denials::SlotDenials;
use crate::way::Way;

/// Kinds of records that are not given where connections are looked into: IPv6 is off, and what hides names
/// is of no use to a machine whose names decide.
const WITHHELD: [u16; 4] = [kind::AAAA, kind::HTTPS, kind::SVCB, kind::ANY];

/// Queries of one machine that are asked at a time, the node's own for it included.
const ASKED: usize = 32;

/// Names for one slot.
#[derive(Debug)]
pub(crate) struct NameService {
    way: Arc<Way>,
    denials: SlotDenials,
    lookups: Arc<Lookups>,
    given: Given,
    budget: Budget,
    asking: Arc<Semaphore>,
}

impl NameService {
    pub(crate) fn new(way: Arc<Way>, denials: SlotDenials, lookups: Arc<Lookups>) -> Self {
        let (budget, asking) = (Budget::new(Instant::now()), Arc::new(Semaphore::new(ASKED)));
        Self { way, denials, lookups, given: Given::default(), budget, asking }
    }

    /// Leave for one more query, while it is held; none if too many are asked.
    pub(super) fn admit(&self) -> Option<OwnedSemaphorePermit> {
        self.asking.clone().try_acquire_owned().ok()
    }

    /// The answer to a query that nobody has to be asked for, most often a refusal.
    pub(super) fn answer_at_once(&self, query: &Query) -> Option<Vec<u8>> {
        let Some(enforced) = self.way.enforced() else { return Some(query.refused()) };
        if !self.budget.take(Instant::now()) {
            self.deny(None, DenyReason::Limit);
            return Some(query.servfail());
        }
        let policy = &enforced.policy;
        let name = query.name();
        let verdict = match &name {
            Some(name) => network::name(policy, name),
            // Rules about names cannot judge what is none.
            None if names_matter(policy) || is_closed(policy) => Verdict::Deny(DenyReason::NameNotAllowed),
            None => Verdict::Allow,
        };
        if let Verdict::Deny(reason) = verdict {
            self.deny(name, reason);
            return Some(if is_closed(policy) { query.refused() } else { query.nxdomain() });
        }
        (inspects(policy) && WITHHELD.contains(&query.kind())).then(|| query.empty())
    }

    /// The resolvers' answer to a query, whose addresses are the machine's from then on.
    pub(super) async fn answer(&self, query: &Query, transport: Transport) -> Vec<u8> {
        let answer = relay::answer(query, transport, self.lookups.resolvers()).await;
        if let Some(name) = query.name() {
            self.given.note(&name, &query.addresses(&answer), Instant::now());
        }
        answer
    }

    /// Whether the node's DNS gave this address to the machine for this name, or gives it now.
    pub(crate) async fn gives(&self, name: &str, address: Ipv4Addr) -> bool {
        if self.given.has(name, address, Instant::now()) {
            return true;
        }
        if !self.budget.take(Instant::now()) {
            self.deny(Some(name.into()), DenyReason::Limit);
            return false;
        }
        let Ok(_one) = self.asking.acquire().await else { return false };
        self.lookups.give(name, address).await
    }

    /// Whether the node's DNS gave this address to the machine for a name that it may use.
    pub(crate) fn knows(&self, address: Ipv4Addr) -> bool {
        let Some(enforced) = self.way.enforced() else { return false };
        let allowed = |name: &str| network::name(&enforced.policy, name) == Verdict::Allow;
        self.given.has_for(address, allowed, Instant::now())
    }

    fn deny(&self, name: Option<String>, reason: DenyReason) {
        let protocol = DeniedProtocol::Dns;
        self.denials.add(DeniedTarget { protocol, address: None, port: None, name, reason });
    }
}
