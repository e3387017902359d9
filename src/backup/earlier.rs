//! What a file held in the parent snapshot: what new chunks are compared with.

use std::collections::VecDeque;
use std::ops::Range;

use super::expect::Expected;
use crate::format::map::{Extent, Map};
use crate::id::ChunkId;
use crate::repo::catalog::Catalog;
use crate::repo::nodes::Extents;

/// How far from a new chunk's range its candidates may end: what moved a little is still found.
const SLACK: u64 = 4096;

/// The parent's chunks around a place that only moves forward.
pub struct Earlier<'c> {
    extents: Extents<'c>,
    /// Chunks with their ranges, in order.
    near: VecDeque<(u64, u64, ChunkId)>,
    ended: bool,
}

impl<'c> Earlier<'c> {
    /// Of a map of the parent's.
    pub fn of(catalog: &'c Catalog, map: &Map) -> Self {
        Self { extents: Extents::of(catalog, map), near: VecDeque::new(), ended: false }
    }

    /// The parent's chunks that overlap a range of `len` bytes at `start`, or nearly so.
    pub fn near(&mut self, start: u64, len: u64) -> impl Iterator<Item = ChunkId> {
        self.overlapping(start.saturating_sub(SLACK), start + len + SLACK).map(|(.., id)| *id)
    }

    /// The parent's chunks in a range.
    pub fn expected(&mut self, range: Range<u64>) -> Vec<Expected> {
        let chunks = self.overlapping(range.start, range.end);
        let inside = chunks.filter(|(start, end, _)| range.start <= *start && *end <= range.end);
        let expected = |&(offset, end, id)| Expected { offset, len: (end - offset) as usize, id };
        inside.map(expected).collect()
    }

    fn overlapping(&mut self, from: u64, to: u64) -> impl Iterator<Item = &(u64, u64, ChunkId)> {
        while self.near.front().is_some_and(|(_, end, _)| *end <= from) {
            self.near.pop_front();
        }
        self.extents.skip_to(from);
        while !self.ended && self.near.back().is_none_or(|(start, ..)| *start < to) {
            match self.extents.next() {
                Some(Ok((at, Extent::Data { id, len }))) => {
                    self.near.push_back((at, at + u64::from(len), id))
                }
                Some(Ok((at, other))) if at + other.len() >= to => break,
                Some(Ok(_)) => {}
                // A parent that cannot be read is only of no use here.
                Some(Err(_)) | None => self.ended = true,
            }
        }
        let overlaps = move |(start, end, _): &&(u64, u64, ChunkId)| *start < to && from < *end;
        self.near.iter().filter(overlaps)
    }
}
