//! Idempotency keys seen lately, so that of many callers with one key at once exactly one begins, and a
//! repeated key does not begin a machine only to end it again. The store has the last word: what is
//! forgotten here, or was before the server began, is found there.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nullspace_domain::sandbox::key_reused;
use nullspace_types::Result;
use nullspace_types::id::TenantId;

/// Keys that are remembered; the oldest is forgotten first.
const REMEMBERED: usize = 16_384;

pub(crate) type Key = (TenantId, String);

/// What was begun with a key.
#[derive(Debug)]
pub(crate) enum Begun<M> {
    /// By this caller.
    Now(M),
    /// By another, with the same request.
    Before(M),
}

#[derive(Debug)]
struct Entry<M> {
    request_hash: [u8; 32],
    /// Tells this use of the key from others.
    number: u64,
    made: M,
}

#[derive(Debug)]
struct Table<M> {
    begun: HashMap<Key, Entry<M>>,
    order: VecDeque<(Key, u64)>,
    next: u64,
}

/// The keys of one operation. `M` names what a request makes.
#[derive(Debug)]
pub(crate) struct RecentKeys<M> {
    table: Mutex<Table<M>>,
}

impl<M> Default for RecentKeys<M> {
    fn default() -> Self {
        let table = Table { begun: HashMap::new(), order: VecDeque::new(), next: 0 };
        Self { table: Mutex::new(table) }
    }
}

impl<M: Clone> RecentKeys<M> {
    // See `Registry` on poisoned locks.
    fn table(&self) -> MutexGuard<'_, Table<M>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the request began before with the key. A key of another request is refused.
    pub(crate) fn find(&self, key: &Key, request_hash: [u8; 32]) -> Result<Option<M>> {
        match self.table().begun.get(key) {
            Some(entry) if entry.request_hash == request_hash => Ok(Some(entry.made.clone())),
            Some(_) => Err(key_reused()),
            None => Ok(None),
        }
    }

    /// What was begun with the key, or nothing: then `begin` is called, and no other caller comes between.
    pub(crate) fn begin(
        &self,
        key: &Key,
        request_hash: [u8; 32],
        begin: impl FnOnce() -> M,
    ) -> Result<Begun<M>> {
        let mut table = self.table();
        match table.begun.get(key) {
            Some(entry) if entry.request_hash == request_hash => {
                return Ok(Begun::Before(entry.made.clone()));
            }
            Some(_) => return Err(key_reused()),
            None => {}
        }
        if table.order.len() >= REMEMBERED
            && let Some((oldest, number)) = table.order.pop_front()
            && table.begun.get(&oldest).is_some_and(|entry| entry.number == number)
        {
            table.begun.remove(&oldest);
        }
        let (made, number) = (begin(), table.next);
        table.next += 1;
        table.begun.insert(key.clone(), Entry { request_hash, number, made: made.clone() });
        table.order.push_back((key.clone(), number));
        Ok(Begun::Now(made))
    }

    /// Forgets the key if it still stands for what `of` knows.
    pub(crate) fn forget(&self, key: &Key, of: impl FnOnce(&M) -> bool) {
        let mut table = self.table();
        if table.begun.get(key).is_some_and(|entry| of(&entry.made)) {
            table.begun.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_begun_once_until_it_is_forgotten_and_the_table_stays_bounded() {
        let keys = RecentKeys::<u32>::default();
        let tenant = TenantId::new();
        let key = (tenant, "key".to_owned());
        assert!(matches!(keys.begin(&key, [0; 32], || 1), Ok(Begun::Now(1))));
        let again = keys.begin(&key, [0; 32], || panic!("begun twice"));
        assert!(matches!(again, Ok(Begun::Before(1))));
        assert!(keys.begin(&key, [1; 32], || panic!("begun twice")).is_err());
        assert!(keys.find(&key, [0; 32]) == Ok(Some(1)) && keys.find(&key, [1; 32]).is_err());
        keys.forget(&key, |made| *made == 2);
        assert_eq!(keys.find(&key, [0; 32]), Ok(Some(1)), "only what it stands for forgets a key");
        keys.forget(&key, |made| *made == 1);
        assert!(matches!(keys.begin(&key, [1; 32], || 2), Ok(Begun::Now(2))));
        for number in 0..REMEMBERED + 10 {
            keys.begin(&(tenant, number.to_string()), [0; 32], || 3).unwrap();
        }
        assert!(keys.table().begun.len() <= REMEMBERED && keys.table().order.len() <= REMEMBERED);
    }
}
