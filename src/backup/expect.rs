//! Chunks that a stretch is expected to have, since the parent snapshot has them there.
//!
//! To see that a chunk is what it was takes its id alone, and not the search for where it ends,
//! which is more than half of the work on data that has not changed. What is cut is the same: a
//! cut depends on the chunk's bytes and the one behind, so only the last chunk before a change is
//! cut again.

use crate::id::{ChunkId, Key};

/// A chunk that the parent has at some place.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length.
    pub len: usize,
    /// Its name.
    pub id: ChunkId,
}

/// Goes through what is expected of a stretch, in order. Ids are only tried once one has come true:
/// what was moved or changed all over is not hashed twice.
pub struct Guess<'e> {
    left: &'e [Expected],
    key: &'e Key,
    in_step: bool,
}

impl<'e> Guess<'e> {
    /// Of chunks in their order.
    pub fn new(expected: &'e [Expected], key: &'e Key) -> Self {
        Self { left: expected, key, in_step: false }
    }

    /// The chunk that `bytes` at `offset` begin with, if it is what is expected there.
    pub fn come_true(&mut self, offset: u64, bytes: &[u8]) -> Option<Expected> {
        if !self.in_step {
            return None;
        }
        let expected = self.at(offset);
        let found = expected.filter(|chunk| {
            bytes.get(..chunk.len).is_some_and(|bytes| ChunkId::of(self.key, bytes) == chunk.id)
        });
        self.in_step = found.is_some();
        found
    }

    /// Where a chunk was cut, and what it is.
    pub fn note(&mut self, offset: u64, id: ChunkId) {
        self.in_step = self.at(offset).is_some_and(|chunk| chunk.id == id);
    }

    fn at(&mut self, offset: u64) -> Option<Expected> {
        let before = self.left.partition_point(|chunk| chunk.offset < offset);
        self.left = &self.left[before..];
        self.left.first().filter(|chunk| chunk.offset == offset).copied()
    }
}
