//! How those who fail to log in are held back: by address, so that they cost others nothing. Owns the table of
//! addresses, which is bounded and forgets after a minute; it knows nothing of connections.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures of one address within [`WINDOW`] until it has to wait.
const FAILURES_MAX: u32 = 20;
/// Connections of one address that are logging in at once.
const STARTING_MAX: u32 = 32;
/// How long failures count, and how long an address with too many has to wait.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4096;

/// The addresses that are logging in, or failed to.
#[derive(Default)]
pub(crate) struct Peers {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    peers: HashMap<IpAddr, Peer>,
    /// Failures and refusals since they were last reported.
    unreported: u64,
}

struct Peer {
    /// When the first of these failures was.
    since: Instant,
    failures: u32,
    starting: u32,
    barred_until: Option<Instant>,
}

/// A connection that is logging in.
pub(crate) struct Login {
    peers: Arc<Peers>,
    address: IpAddr,
}

impl Peers {
    /// Lets a connection try; `None` if its address has to wait.
    pub(crate) fn begin(self: &Arc<Self>, address: IpAddr, now: Instant) -> Option<Login> {
        let address = network(address);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.peers.len() >= ADDRESSES_MAX && !table.peers.contains_key(&address) {
            table.make_room(now);
        }
        let fresh = || Peer { since: now, failures: 0, starting: 0, barred_until: None };
        let peer = table.peers.entry(address).or_insert_with(fresh);
        if peer.stale(now) {
            *peer = Peer { starting: peer.starting, ..fresh() };
        }
        if peer.barred_until.is_some() || peer.starting >= STARTING_MAX {
            table.unreported += 1;
            return None;
        }
        peer.starting += 1;
        Some(Login { peers: self.clone(), address })
    }

    /// How many failed or were refused since this was last asked.
    pub(crate) fn report(&self) -> u64 {
        std::mem::take(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner).unreported)
    }
}

impl Peer {
    /// Whether what is remembered no longer counts.
    fn stale(&self, now: Instant) -> bool {
        match self.barred_until {
            Some(until) => now >= until,
            None => now.saturating_duration_since(self.since) >= WINDOW,
        }
    }
}

impl Table {
    /// Forgets those that no longer count, and if that is none, any that is not logging in: there are fewer
    /// connections than there is room.
    fn make_room(&mut self, now: Instant) {
        self.peers.retain(|_, peer| peer.starting > 0 || !peer.stale(now));
        if self.peers.len() >= ADDRESSES_MAX {
            let any = self.peers.iter().find(|(_, peer)| peer.starting == 0).map(|(address, _)| *address);
            any.and_then(|address| self.peers.remove(&address));
        }
    }
}

impl Login {
    /// Counts a failure.
    pub(crate) fn failed(self, now: Instant) {
        let mut table = self.peers.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.unreported += 1;
        if let Some(peer) = table.peers.get_mut(&self.address) {
            if peer.failures == 0 {
                peer.since = now;
            }
            peer.failures += 1;
            if peer.failures >= FAILURES_MAX && peer.barred_until.is_none() {
                peer.barred_until = Some(now + WINDOW);
            }
        }
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        let mut table = self.peers.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = table.peers.get_mut(&self.address) {
            peer.starting = peer.starting.saturating_sub(1);
            if peer.starting == 0 && peer.failures == 0 {
                table.peers.remove(&self.address);
            }
        }
    }
}

/// With IPv6 one customer has a network of 64 bits, not an address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn fail(peers: &Arc<Peers>, from: &str, now: Instant) {
        peers.begin(address(from), now).expect("not barred yet").failed(now);
    }

    #[test]
    fn an_address_that_fails_too_often_waits_for_a_minute_and_others_do_not() {
        let (peers, now) = (Arc::new(Peers::default()), Instant::now());
        (0..FAILURES_MAX).for_each(|_| fail(&peers, "192.0.2.1", now));
        assert!(peers.begin(address("192.0.2.1"), now).is_none());
        assert!(peers.begin(address("::ffff:192.0.2.1"), now).is_none(), "the same in another notation");
        assert!(peers.begin(address("192.0.2.2"), now).is_some());
        assert!(peers.begin(address("192.0.2.1"), now + WINDOW).is_some());
        assert_eq!((peers.report(), peers.report()), (u64::from(FAILURES_MAX) + 2, 0));
    }

    #[test]
    fn failures_far_apart_bar_nobody() {
        let (peers, mut now) = (Arc::new(Peers::default()), Instant::now());
        for _ in 0..3 * FAILURES_MAX {
            fail(&peers, "2001:db8::1", now);
            now += WINDOW / 10;
        }
        assert!(peers.begin(address("2001:db8::ffff"), now).is_some());
    }

    #[test]
    fn one_network_logs_in_a_few_times_at_once_and_is_forgotten() {
        let (peers, now) = (Arc::new(Peers::default()), Instant::now());
        let at = |last: u32| address(&format!("2001:db8::{last:x}"));
        let logins: Vec<_> = (0..STARTING_MAX).map(|n| peers.begin(at(n), now).expect("room")).collect();
        assert!(peers.begin(at(99), now).is_none());
        drop(logins);
        assert!(peers.begin(at(99), now).is_some());
        assert!(peers.table.lock().unwrap().peers.is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let (peers, now) = (Arc::new(Peers::default()), Instant::now());
        for n in 0..2 * ADDRESSES_MAX as u32 {
            let from = IpAddr::from(std::net::Ipv4Addr::from_bits(n));
            peers.begin(from, now).expect("a new address").failed(now);
        }
        assert!(peers.table.lock().unwrap().peers.len() <= ADDRESSES_MAX);
    }
}
