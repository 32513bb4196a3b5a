//! The node's own look-ups of names that connections show and that a machine was not given lately: after a
//! restart of the server, or in a child of a fork. Kept for a short time, for all slots together.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use super::message::Query;
use super::relay::{self, Transport};
use super::resolv_conf::Resolvers;

/// How long an answer is kept, also that there is none.
const KEPT: Duration = Duration::from_secs(30);
/// Answers that are kept; the oldest goes first.
const NAMES: usize = 4096;

/// Look-ups of a pool's slots.
#[derive(Debug)]
pub(crate) struct Lookups {
    resolvers: Arc<Resolvers>,
    names: Mutex<HashMap<Box<str>, Lookup>>,
}

#[derive(Debug, Clone)]
struct Lookup {
    begun: Instant,
    answer: Arc<OnceCell<Vec<Ipv4Addr>>>,
}

/// No resolver could tell.
#[derive(Debug)]
struct Failed;

impl Lookups {
    pub(crate) fn new(resolvers: Arc<Resolvers>) -> Self {
        Self { resolvers, names: Mutex::default() }
    }

    /// Whom they are asked of.
    pub(super) fn resolvers(&self) -> &Arc<Resolvers> {
        &self.resolvers
    }

    /// Whether a resolver gives this address for this name now. A name is asked for once at a time.
    pub(super) async fn give(&self, name: &str, address: Ipv4Addr) -> bool {
        let Some(query) = Query::for_addresses(name) else { return false };
        let lookup = self.lookup(name, Instant::now());
        let answered = lookup.answer.get_or_try_init(|| self.ask(&query)).await;
        answered.is_ok_and(|addresses| addresses.contains(&address))
    }

    fn lookup(&self, name: &str, now: Instant) -> Lookup {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |lookup: &Lookup| now.saturating_duration_since(lookup.begun) < KEPT;
        if let Some(lookup) = names.get(name).filter(|lookup| fresh(lookup)) {
            return lookup.clone();
        }
        if names.len() >= NAMES {
            names.retain(|_, lookup| fresh(lookup));
            if names.len() >= NAMES
                && let Some(oldest) = names.iter().min_by_key(|(_, lookup)| lookup.begun)
            {
                let oldest = oldest.0.clone();
                names.remove(&oldest);
            }
        }
        let lookup = Lookup { begun: now, answer: Arc::default() };
        names.insert(name.into(), lookup.clone());
        lookup
    }

    async fn ask(&self, query: &Query) -> Result<Vec<Ipv4Addr>, Failed> {
        let mut answer = relay::answer(query, Transport::Udp, &self.resolvers).await;
        if Query::is_truncated(&answer) {
            answer = relay::answer(query, Transport::Tcp, &self.resolvers).await;
        }
        if Query::is_failure(&answer) {
            return Err(Failed);
        }
        Ok(query.addresses(&answer).into_iter().map(|(address, _)| address).collect())
    }
}
