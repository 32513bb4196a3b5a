//! Idempotency keys seen lately, so that of many callers with one key at once exactly one begins, and a
//! repeated key does not begin a machine only to end it again. The store has the last word: what is
//! forgotten here, or was before the server began, is found there.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nullspace_types::id::{SandboxId, TenantId};

/// Keys that are remembered; the oldest is forgotten first.
const REMEMBERED: usize = 16_384;

type Key = (TenantId, String);

/// A request that was begun with a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    pub(crate) request_hash: [u8; 32],
    pub(crate) sandbox_id: SandboxId,
}

#[derive(Debug, Default)]
struct Table {
    begun: HashMap<Key, Begun>,
    order: VecDeque<(Key, SandboxId)>,
}

/// The keys.
#[derive(Debug, Default)]
pub(crate) struct RecentKeys {
    table: Mutex<Table>,
}

impl RecentKeys {
    // See `Registry` on poisoned locks.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was begun with the key, or nothing: then `begin` is called, and no other caller comes between.
    pub(crate) fn begin(&self, key: &Key, this: Begun, begin: impl FnOnce()) -> Option<Begun> {
        let mut table = self.table();
        if let Some(other) = table.begun.get(key) {
            return Some(*other);
        }
        if table.order.len() >= REMEMBERED
            && let Some((oldest, sandbox_id)) = table.order.pop_front()
            && table.begun.get(&oldest).is_some_and(|begun| begun.sandbox_id == sandbox_id)
        {
            table.begun.remove(&oldest);
        }
        table.begun.insert(key.clone(), this);
        table.order.push_back((key.clone(), this.sandbox_id));
        begin();
        None
    }

    /// Forgets the key if it still stands for this sandbox.
    pub(crate) fn forget(&self, key: &Key, sandbox_id: SandboxId) {
        let mut table = self.table();
        if table.begun.get(key).is_some_and(|begun| begun.sandbox_id == sandbox_id) {
            table.begun.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_begun_once_until_it_is_forgotten_and_the_table_stays_bounded() {
        let keys = RecentKeys::default();
        let tenant = TenantId::new();
        let begun = || Begun { request_hash: [0; 32], sandbox_id: SandboxId::new() };
        let first = begun();
        let key = (tenant, "key".to_owned());
        assert!(keys.begin(&key, first, || {}).is_none());
        let again = keys.begin(&key, begun(), || panic!("begun twice"));
        assert_eq!(again.map(|other| other.sandbox_id), Some(first.sandbox_id));
        keys.forget(&key, SandboxId::new());
        assert!(keys.begin(&key, begun(), || {}).is_some(), "only its own sandbox forgets a key");
        keys.forget(&key, first.sandbox_id);
        assert!(keys.begin(&key, begun(), || {}).is_none());
        for number in 0..REMEMBERED + 10 {
            keys.begin(&(tenant, number.to_string()), begun(), || {});
        }
        assert!(keys.table().begun.len() <= REMEMBERED && keys.table().order.len() <= REMEMBERED);
    }
}
