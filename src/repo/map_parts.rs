//! Going through a stored map in order, by whole nodes where somebody can take them.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::map::{self, Child, Extent, Map};

use super::catalog::Catalog;
use super::nodes::check_length;

/// A part of a stored map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapPart {
    /// A node with all that is below it, and its level.
    Node(u8, Child),
    /// An extent, or a part of one that is zeros or a hole.
    Extent(Extent),
}

impl MapPart {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            MapPart::Node(_, child) => child.len,
            MapPart::Extent(extent) => extent.len(),
        }
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The parts of a map, holding one node a level.
pub struct MapParts<'c> {
    catalog: &'c Catalog,
    /// Nodes to come, the next one last.
    pending: Vec<Pending>,
    leaf: std::vec::IntoIter<Extent>,
    extent: Option<Extent>,
    /// Where the extent, or what comes next, begins.
    at: u64,
}

#[derive(Clone, Copy)]
struct Pending {
    level: u8,
    child: Child,
    /// Whether the map's end may be why it ends where it does.
    is_last: bool,
}

impl<'c> MapParts<'c> {
    /// All of a map's.
    pub fn of(catalog: &'c Catalog, map: &Map) -> Self {
        let (pending, leaf) = match map {
            Map::Inline(extents) => (Vec::new(), extents.clone()),
            Map::Tree(root) => {
                (vec![Pending { level: root.level, child: root.node, is_last: true }], Vec::new())
            }
        };
        Self { catalog, pending, leaf: leaf.into_iter(), extent: None, at: 0 }
    }

    /// The part that begins at `range.start`, of those that end within the range; ranges of later
    /// calls begin no earlier than this part ends. A node is given only if its level is at most
    /// `level`, another part of the map follows within the range, and its end is not the map's.
    ///
    /// An error if the range ends the map or cuts a chunk in two.
    pub fn next(&mut self, range: Range<u64>, level: Option<u8>) -> Result<MapPart> {
        loop {
            if self.extent.is_none() {
                self.extent = self.leaf.next();
            }
            if let Some(extent) = self.extent {
                let end = self.at + extent.len();
                if end > range.start {
                    return self.take(extent, range);
                }
                (self.at, self.extent) = (end, None);
                continue;
            }
            let Some(Pending { level: own, child, is_last }) = self.pending.pop() else {
                return Err(Error::Internal("a range is not in the map"));
            };
            let end = self.at + child.len;
            if end <= range.start {
                self.at = end;
                continue;
            }
            if !is_last && self.at == range.start && end < range.end && level.is_some_and(|open| own <= open)
            {
                self.at = end;
                return Ok(MapPart::Node(own, child));
            }
            self.open(own, child, is_last)?;
        }
    }

    fn take(&mut self, extent: Extent, range: Range<u64>) -> Result<MapPart> {
        let end = self.at + extent.len();
        let len = end.min(range.end) - range.start.max(self.at);
        let part = match extent {
            Extent::Data { .. } if len == extent.len() => extent,
            Extent::Data { .. } => return Err(Error::Internal("a range cuts a chunk in two")),
            Extent::Zero { .. } => Extent::Zero { len },
            Extent::Hole { .. } => Extent::Hole { len },
        };
        Ok(MapPart::Extent(part))
    }

    fn open(&mut self, level: u8, child: Child, is_last: bool) -> Result<()> {
        match self.catalog.map_node(&child.id, level)? {
            map::Node::Leaf(extents) => {
                check_length(&child, extents.iter().map(Extent::len).sum())?;
                self.leaf = extents.into_iter();
            }
            map::Node::Inner(children) => {
                check_length(&child, children.iter().map(|c| c.len).sum())?;
                let level = level.saturating_sub(1);
                let count = children.len();
                self.pending.extend(children.into_iter().enumerate().rev().map(|(number, child)| Pending {
                    level,
                    child,
                    is_last: is_last && number + 1 == count,
                }));
            }
        }
        Ok(())
    }
}
