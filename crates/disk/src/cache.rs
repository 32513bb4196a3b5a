//! A bounded memory of what was read.

use std::collections::HashMap;
use std::hash::Hash;

/// Values by key. Emptied when it is full: whatever the order in which a guest has things read, it costs no
/// more memory than its bound, and no more time than having none.
pub struct Cache<K, V> {
    most: usize,
    held: HashMap<K, V>,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// Holds at most so many values.
    pub fn new(most: usize) -> Self {
        Self { most, held: HashMap::new() }
    }

    /// What is held, or else what `read` answers.
    pub fn get_or<E>(&mut self, key: K, read: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        if let Some(value) = self.held.get(&key) {
            return Ok(value.clone());
        }
        let value = read()?;
        if self.held.len() >= self.most {
            self.held.clear();
        }
        self.held.insert(key, value.clone());
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_holds_more_than_its_bound_and_answers_all_the_same() {
        let mut cache = Cache::new(3);
        for round in 0..2 {
            for key in 0..10 {
                assert_eq!(cache.get_or(key, || Ok::<_, ()>(key * 2)), Ok(key * 2), "round {round}");
                assert!(cache.held.len() <= 3);
            }
        }
        assert_eq!(cache.get_or(9, || Err("read again")), Ok(18));
    }
}
