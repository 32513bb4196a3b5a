//! Which addresses the machine of a slot was given for which names. Bounded: a machine cannot make this grow.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Names that are remembered; the one asked for longest ago goes first.
const NAMES: usize = 4096;
/// Addresses of one name that are remembered; the one that ends first goes first.
const ADDRESSES: usize = 32;
/// An address is remembered as long as its record lives, but not shorter or longer than this: programs keep
/// addresses beyond their time, and connect with what they kept.
const KEPT: [Duration; 2] = [Duration::from_secs(5 * 60), Duration::from_secs(60 * 60)];

/// What was given.
#[derive(Debug, Default)]
pub(super) struct Given {
    names: Mutex<HashMap<Box<str>, Addresses>>,
}

#[derive(Debug)]
struct Addresses {
    asked_at: Instant,
    /// Each with the time until which it is remembered.
    kept: Vec<(Ipv4Addr, Instant)>,
}

impl Given {
    /// Remembers the addresses given for a name, with the seconds that they live.
    pub(super) fn note(&self, name: &str, addresses: &[(Ipv4Addr, u32)], now: Instant) {
        if addresses.is_empty() {
            return;
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= NAMES && !names.contains_key(name) {
            names.retain(|_, addresses| addresses.kept.iter().any(|(_, until)| *until > now));
            if names.len() >= NAMES
                && let Some(oldest) = names.iter().min_by_key(|(_, addresses)| addresses.asked_at)
            {
                let oldest = oldest.0.clone();
                names.remove(&oldest);
            }
        }
        let known = names.entry(name.into()).or_insert_with(|| Addresses { asked_at: now, kept: Vec::new() });
        known.asked_at = now;
        for &(address, seconds) in addresses {
            let until = now + Duration::from_secs(seconds.into()).clamp(KEPT[0], KEPT[1]);
            known.kept.retain(|(other, _)| *other != address);
            if known.kept.len() >= ADDRESSES
                && let Some(first) = (0..known.kept.len()).min_by_key(|&at| known.kept[at].1)
            {
                known.kept.swap_remove(first);
            }
            known.kept.push((address, until));
        }
    }

    /// Whether this address was given for this name.
    pub(super) fn has(&self, name: &str, address: Ipv4Addr, now: Instant) -> bool {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(name).is_some_and(|addresses| addresses.have(address, now))
    }

    /// Whether this address was given for a name that counts.
    pub(super) fn has_for(&self, address: Ipv4Addr, counts: impl Fn(&str) -> bool, now: Instant) -> bool {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().any(|(name, addresses)| addresses.have(address, now) && counts(name))
    }
}

impl Addresses {
    fn have(&self, address: Ipv4Addr, now: Instant) -> bool {
        self.kept.iter().any(|&(other, until)| other == address && until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

    #[test]
    fn an_address_is_kept_for_its_time_within_bounds() {
        let (given, begun) = (Given::default(), Instant::now());
        given.note("short.test", &[(ADDRESS, 1)], begun);
        given.note("long.test", &[(ADDRESS, u32::MAX)], begun);
        let seen = |name, seconds| given.has(name, ADDRESS, begun + Duration::from_secs(seconds));
        assert!(seen("short.test", 299) && !seen("short.test", 301));
        assert!(seen("long.test", 3599) && !seen("long.test", 3601));
        assert!(!given.has("other.test", ADDRESS, begun));
        assert!(given.has_for(ADDRESS, |name| name == "long.test", begun));
        assert!(!given.has_for(ADDRESS, |name| name == "other.test", begun));
    }

    #[test]
    fn what_was_asked_for_longest_ago_goes_first() {
        let (given, begun) = (Given::default(), Instant::now());
        let at = |number| begun + Duration::from_millis(number);
        for number in 0..=NAMES as u64 {
            given.note(&format!("{number}.test"), &[(ADDRESS, 600)], at(number));
        }
        assert!(!given.has("0.test", ADDRESS, at(5000)) && given.has("1.test", ADDRESS, at(5000)));
        for number in 0..=ADDRESSES as u32 {
            given.note("1.test", &[(Ipv4Addr::from_bits(number), 600 + number)], at(5000));
        }
        assert!(!given.has("1.test", ADDRESS, at(5000)), "the one that would have ended first");
        assert!(given.has("1.test", Ipv4Addr::from_bits(1), at(5000)));
    }
}
