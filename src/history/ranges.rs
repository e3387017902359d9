//! Where two contents differ, by their maps.
//!
//! Both maps are walked in step and nodes that both have at the same place are passed over by
//! their ids, so that the cost follows what differs. A chunk is compared as a whole: a range that
//! differs is as wide as the chunks in it.

use serde::Serialize;

use crate::error::Result;
use crate::format::map::{self, Extent, Map};
use crate::id::ChunkId;
use crate::observe::Stop;
use crate::repo::catalog::Catalog;

/// Ranges that are listed; all are counted.
pub const RANGES_MAX: usize = 1000;

/// A range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ByteRange {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// Where two contents differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    /// How many bytes differ, what only one of them has included.
    pub bytes: u64,
    /// In how many ranges.
    pub count: u64,
    /// The first [`RANGES_MAX`] of them.
    pub list: Vec<ByteRange>,
    /// Where the last one ends.
    end: Option<u64>,
}

impl Ranges {
    /// Adds a range behind those that were added.
    pub fn push(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        self.bytes += len;
        if self.end.replace(offset + len) != Some(offset) {
            self.count += 1;
            if self.list.len() < RANGES_MAX {
                self.list.push(ByteRange { offset, len });
            }
        } else if self.count as usize == self.list.len()
            && let Some(last) = self.list.last_mut()
        {
            last.len += len;
        }
    }
}

/// Where `before` and `after` differ. Zeros and holes are the same.
pub fn differing(catalog: &Catalog, before: &Map, after: &Map, stop: &Stop) -> Result<Ranges> {
    let (mut a, mut b) = (Cursor::new(catalog, before), Cursor::new(catalog, after));
    let mut ranges = Ranges::default();
    let mut at = 0;
    loop {
        stop.check()?;
        let (left, right) = match (a.pending.last(), b.pending.last()) {
            (Some(left), Some(right)) => (left, right),
            _ => {
                ranges.push(at, a.rest() + b.rest());
                return Ok(ranges);
            }
        };
        let len = left.len().min(right.len());
        let same = match (left, right) {
            (Piece::Node(_, left), Piece::Node(_, right)) if left.id == right.id => true,
            (Piece::Node(..), Piece::Node(..)) if left.len() >= right.len() => {
                a.expand()?;
                continue;
            }
            (_, Piece::Node(..)) => {
                b.expand()?;
                continue;
            }
            (Piece::Node(..), _) => {
                a.expand()?;
                continue;
            }
            (left, right) => left == right || matches!((left, right), (Piece::Zeros(_), Piece::Zeros(_))),
        };
        if !same {
            ranges.push(at, len);
        }
        a.pass(len);
        b.pass(len);
        at += len;
    }
}

/// Something that a map is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Node(u8, map::Child),
    Chunk(ChunkId, u64),
    /// The rest of a chunk: it is the same as nothing.
    Rest(u64),
    Zeros(u64),
}

impl Piece {
    fn of(extent: &Extent) -> Self {
        match *extent {
            Extent::Data { id, len } => Piece::Chunk(id, len.into()),
            Extent::Zero { len } | Extent::Hole { len } => Piece::Zeros(len),
        }
    }

    fn len(&self) -> u64 {
        match *self {
            Piece::Node(_, map::Child { len, .. }) => len,
            Piece::Chunk(_, len) | Piece::Rest(len) | Piece::Zeros(len) => len,
        }
    }
}

struct Cursor<'c> {
    catalog: &'c Catalog,
    /// What was not passed yet, the next one last.
    pending: Vec<Piece>,
}

impl<'c> Cursor<'c> {
    fn new(catalog: &'c Catalog, map: &Map) -> Self {
        let pending = match map {
            Map::Inline(extents) => extents.iter().rev().map(Piece::of).collect(),
            Map::Tree(root) => vec![Piece::Node(root.level, root.node)],
        };
        Self { catalog, pending }
    }

    fn expand(&mut self) -> Result<()> {
        let Some(Piece::Node(level, child)) = self.pending.pop() else { return Ok(()) };
        match self.catalog.map_node(&child.id, level)? {
            map::Node::Leaf(extents) => self.pending.extend(extents.iter().rev().map(Piece::of)),
            map::Node::Inner(children) => {
                let level = level.saturating_sub(1);
                self.pending.extend(children.into_iter().rev().map(|child| Piece::Node(level, child)));
            }
        }
        Ok(())
    }

    /// Goes on by `len` bytes, which are not more than the next piece has.
    fn pass(&mut self, len: u64) {
        let Some(piece) = self.pending.pop() else { return };
        let left = piece.len() - len;
        match piece {
            _ if left == 0 => {}
            Piece::Zeros(_) => self.pending.push(Piece::Zeros(left)),
            _ => self.pending.push(Piece::Rest(left)),
        }
    }

    fn rest(&self) -> u64 {
        self.pending.iter().map(Piece::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range_and_lists_are_bounded() {
        let mut ranges = Ranges::default();
        ranges.push(0, 10);
        ranges.push(10, 5);
        ranges.push(20, 0);
        ranges.push(20, 1);
        assert_eq!((ranges.bytes, ranges.count), (16, 2));
        assert_eq!(ranges.list, [ByteRange { offset: 0, len: 15 }, ByteRange { offset: 20, len: 1 }]);
        for at in 0..RANGES_MAX as u64 {
            ranges.push(100 + 2 * at, 1);
        }
        ranges.push(99 + 2 * RANGES_MAX as u64, 7);
        assert_eq!((ranges.count, ranges.list.len()), (RANGES_MAX as u64 + 2, RANGES_MAX));
        assert!(
            ranges.list.iter().all(|range| range.len == 1 || range.offset == 0),
            "the last is not listed"
        );
    }
}
