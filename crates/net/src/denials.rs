//! What machines were denied and nobody has been told of yet. The firewall's log, DNS and the inspection
//! of connections note it, slot by slot; the node takes it away. Bounded: a machine cannot make this grow.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use nullspace_types::network::{Denial, DeniedTarget};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Different denials of one slot that are told apart at a time; beyond them only kind and reason are.
const DISTINCT: usize = 128;
/// How often they are told at most.
const EVERY: Duration = Duration::from_secs(1);

/// Those of all slots of a pool.
#[derive(Debug, Default)]
pub(crate) struct Denials {
    pending: Mutex<HashMap<u32, HashMap<DeniedTarget, Count>>>,
    some: Notify,
    /// When they were told last; held by whom they are told to.
    told: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    count: u64,
    first_at: Timestamp,
    last_at: Timestamp,
}

impl Denials {
    /// Waits until there are some, and takes them. One caller at a time is served. Nothing is lost if the
    /// caller stops waiting.
    pub(crate) async fn next(&self) -> Vec<(u32, Denial)> {
        let mut told = self.told.lock().await;
        if let Some(last) = *told {
            sleep_until(last + EVERY).await;
        }
        loop {
            self.some.notified().await;
            let denials = self.take();
            if !denials.is_empty() {
                *told = Some(Instant::now());
                return denials;
            }
        }
    }

    fn take(&self) -> Vec<(u32, Denial)> {
        let pending = std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        pending.into_iter().flat_map(|(index, targets)| told(targets).map(move |one| (index, one))).collect()
    }
}

fn told(targets: HashMap<DeniedTarget, Count>) -> impl Iterator<Item = Denial> {
    targets.into_iter().map(|(target, Count { count, first_at, last_at })| Denial {
        target,
        count,
        first_at,
        last_at,
    })
}

/// Where one slot's are noted.
#[derive(Debug, Clone)]
pub(crate) struct SlotDenials {
    index: u32,
    all: Arc<Denials>,
}

impl SlotDenials {
    pub(crate) fn new(index: u32, all: Arc<Denials>) -> Self {
        Self { index, all }
    }

    /// Notes one.
    pub(crate) fn add(&self, target: DeniedTarget) {
        let now = Timestamp::now();
        {
            let mut pending = self.all.pending.lock().unwrap_or_else(PoisonError::into_inner);
            let targets = pending.entry(self.index).or_default();
            let target = if targets.len() < DISTINCT || targets.contains_key(&target) {
                target
            } else {
                DeniedTarget { address: None, port: None, name: None, ..target }
            };
            let count = targets.entry(target).or_insert(Count { count: 0, first_at: now, last_at: now });
            count.count += 1;
            count.last_at = now;
        }
        self.all.some.notify_one();
    }

    /// Takes those of this slot alone: the index may be another machine's soon.
    pub(crate) fn take(&self) -> Vec<Denial> {
        let mut pending = self.all.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.remove(&self.index).map(|targets| told(targets).collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use nullspace_types::network::{DeniedProtocol, DenyReason};

    use super::*;

    fn target(number: u32) -> DeniedTarget {
        DeniedTarget {
            protocol: DeniedProtocol::Tcp,
            address: Some(Ipv4Addr::from_bits(number)),
            port: Some(443),
            name: None,
            reason: DenyReason::DeniedAddress,
        }
    }

    #[tokio::test]
    async fn equal_denials_are_one_with_a_count_and_a_slot_that_ends_takes_its_own_along() {
        let all = Arc::new(Denials::default());
        let [first, second] = [1, 2].map(|index| SlotDenials::new(index, all.clone()));
        first.add(target(7));
        first.add(target(7));
        second.add(target(7));
        assert_eq!(second.take().len(), 1);
        let denials = all.next().await;
        let [(1, denial)] = &denials[..] else { panic!("{denials:?}") };
        assert_eq!((&denial.target, denial.count), (&target(7), 2));
        assert!(denial.first_at <= denial.last_at);
    }

    #[tokio::test]
    async fn a_machine_that_tries_everything_is_counted_and_not_listed() {
        let all = Arc::new(Denials::default());
        let slot = SlotDenials::new(1, all.clone());
        let tries = 2000;
        (0..tries).for_each(|number| slot.add(target(number)));
        let denials = all.next().await;
        assert_eq!(denials.len(), DISTINCT + 1);
        assert_eq!(denials.iter().map(|(_, denial)| denial.count).sum::<u64>(), u64::from(tries));
    }
}
