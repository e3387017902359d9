//! The shape that maps and trees share: ordered entries in nodes that are cut by content.
//!
//! A leaf node ends where an entry says so, an inner node where a child's id says so, between
//! [`NODE_ENTRIES_MIN`] and [`NODE_ENTRIES_MAX`] entries; a leaf also once its entries weigh
//! [`NODE_WEIGHT_MAX`]. What did not change between two nights
//! keeps its nodes, and so its ids, whatever happened before it.

use super::{NODE_ENTRIES_MAX, NODE_ENTRIES_MIN, NODE_ENTRIES_MODULUS, NODE_LEVEL_MAX, NODE_WEIGHT_MAX};
use crate::id::ChunkId;

/// An entry of a leaf, and how nodes are made of such entries.
pub trait Entry: Sized {
    /// What stands for a node in the node above.
    type Child;

    /// Whether a node may end after this entry.
    fn ends_node(&self) -> bool;
    /// The bytes that this entry takes at most, about: a node ends before it grows too long.
    fn weight(&self) -> usize;
    /// A leaf's bytes.
    fn encode_leaf(entries: &[Self]) -> Vec<u8>;
    /// An inner node's bytes; its children are nodes of `level - 1`.
    fn encode_inner(level: u8, children: &[Self::Child]) -> Vec<u8>;
    /// What stands for a leaf.
    fn child_of_leaf(id: ChunkId, entries: &[Self]) -> Self::Child;
    /// What stands for an inner node.
    fn child_of_inner(id: ChunkId, children: &[Self::Child]) -> Self::Child;
    /// The node that a child stands for.
    fn child_id(child: &Self::Child) -> ChunkId;
}

/// A finished tree of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root<C> {
    /// The topmost node's level; 0 is a leaf.
    pub level: u8,
    /// The topmost node.
    pub node: C,
}

/// Builds the nodes over a sequence of entries, holding one open node a level.
#[derive(Clone)]
pub struct Builder<E: Entry> {
    leaf: Vec<E>,
    weight: usize,
    inner: Vec<Vec<E::Child>>,
}

impl<E: Entry> Default for Builder<E> {
    fn default() -> Self {
        Self { leaf: Vec::new(), weight: 0, inner: Vec::new() }
    }
}

impl<E: Entry> Builder<E> {
    /// The entries so far, if no node was completed yet.
    pub fn only_leaf(&self) -> Option<&[E]> {
        self.inner.is_empty().then_some(&self.leaf)
    }

    /// Adds an entry; `store` keeps the nodes that this completes and names them.
    pub fn push<X>(
        &mut self,
        entry: E,
        store: &mut impl FnMut(Vec<u8>) -> Result<ChunkId, X>,
    ) -> Result<(), X> {
        let ends = entry.ends_node();
        self.weight += entry.weight();
        self.leaf.push(entry);
        let heavy = self.weight >= NODE_WEIGHT_MAX;
        if heavy || complete(self.leaf.len(), ends) { self.close_leaf(store) } else { Ok(()) }
    }

    /// The level up to which whole nodes may be added, since nothing is open below it: 0 for
    /// leaves. `None` while a leaf is open.
    pub fn level_open(&self) -> Option<u8> {
        let closed = self.inner.iter().take_while(|children| children.is_empty()).count();
        let level = if closed == self.inner.len() { usize::from(NODE_LEVEL_MAX) } else { closed };
        self.leaf.is_empty().then_some(level as u8)
    }

    /// Adds a whole node that another tree has, and that its builder completed before its end: the
    /// entries below it would make the same one. `level` is at most [`Builder::level_open`].
    pub fn push_node<X>(
        &mut self,
        level: u8,
        child: E::Child,
        store: &mut impl FnMut(Vec<u8>) -> Result<ChunkId, X>,
    ) -> Result<(), X> {
        while self.inner.len() < usize::from(level) {
            self.inner.push(Vec::new());
        }
        self.push_child(level.into(), child, store)
    }

    fn close_leaf<X>(&mut self, store: &mut impl FnMut(Vec<u8>) -> Result<ChunkId, X>) -> Result<(), X> {
        let id = store(E::encode_leaf(&self.leaf))?;
        let child = E::child_of_leaf(id, &self.leaf);
        self.leaf.clear();
        self.weight = 0;
        self.push_child(0, child, store)
    }

    fn push_child<X>(
        &mut self,
        level: usize,
        child: E::Child,
        store: &mut impl FnMut(Vec<u8>) -> Result<ChunkId, X>,
    ) -> Result<(), X> {
        if self.inner.len() == level {
            self.inner.push(Vec::new());
        }
        let ends = hash_ends_node(&E::child_id(&child).0);
        self.inner[level].push(child);
        if complete(self.inner[level].len(), ends) { self.close_inner(level, store) } else { Ok(()) }
    }

    fn close_inner<X>(
        &mut self,
        level: usize,
        store: &mut impl FnMut(Vec<u8>) -> Result<ChunkId, X>,
    ) -> Result<(), X> {
        let children = std::mem::take(&mut self.inner[level]);
        let id = store(E::encode_inner(level as u8 + 1, &children))?;
        self.push_child(level + 1, E::child_of_inner(id, &children), store)
    }

    /// Completes all nodes; `None` if there was no entry.
    pub fn finish<X>(
        mut self,
        store: &mut impl FnMut(Vec<u8>) -> Result<ChunkId, X>,
    ) -> Result<Option<Root<E::Child>>, X> {
        if !self.leaf.is_empty() {
            self.close_leaf(store)?;
        }
        let mut level = 0;
        while level < self.inner.len() {
            let top = level + 1 == self.inner.len();
            match self.inner[level].len() {
                0 => {}
                1 if top => {
                    let node = self.inner[level].remove(0);
                    debug_assert!(level <= usize::from(NODE_LEVEL_MAX));
                    return Ok(Some(Root { level: level as u8, node }));
                }
                _ => self.close_inner(level, store)?,
            }
            level += 1;
        }
        Ok(None)
    }
}

fn complete(entries: usize, ends: bool) -> bool {
    entries >= NODE_ENTRIES_MAX || (ends && entries >= NODE_ENTRIES_MIN)
}

/// Whether a node may end after something with this hash: one in [`NODE_ENTRIES_MODULUS`] may.
pub fn hash_ends_node(hash: &[u8]) -> bool {
    let head = hash.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    head % NODE_ENTRIES_MODULUS == 0
}
