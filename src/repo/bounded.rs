//! A cache with a limit in bytes.

use std::sync::Arc;

use lru::LruCache;

/// A cache of shared values that forgets the least recently used beyond a number of bytes.
pub struct Bounded<K: std::hash::Hash + Eq, V> {
    cache: LruCache<K, (Arc<V>, usize)>,
    used: usize,
    max: usize,
}

impl<K: std::hash::Hash + Eq, V> Bounded<K, V> {
    /// For values of at most `max` bytes together.
    pub fn new(max: usize) -> Self {
        Self { cache: LruCache::unbounded(), used: 0, max }
    }

    /// The value, which is used last from now on.
    pub fn get(&mut self, key: &K) -> Option<&Arc<V>> {
        self.cache.get(key).map(|(value, _)| value)
    }

    /// Takes a value of so many bytes; what was forgotten for it is returned.
    pub fn put(&mut self, key: K, value: Arc<V>, size: usize) -> Vec<(K, Arc<V>)> {
        let mut gone = Vec::new();
        self.used += size;
        if let Some((_, before)) = self.cache.put(key, (value, size)) {
            self.used -= before;
        }
        while self.used > self.max && self.cache.len() > 1 {
            let Some((key, (value, size))) = self.cache.pop_lru() else { break };
            self.used -= size;
            gone.push((key, value));
        }
        gone
    }
}
