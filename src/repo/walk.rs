//! Walking all that a snapshot needs, past what the visitor knows already.
//!
//! Depth first; a path holds one node of each level of each directory on it.

use super::catalog::Catalog;
use super::index::Location;
use super::snapshots::Listed;
use crate::error::{Error, Result};
use crate::format::hashtree::Root;
use crate::format::map::{self, Extent, Map};
use crate::format::tree::{self, Entry};
use crate::id::ChunkId;
use crate::observe::Stop;

/// Chunks that are looked up at once.
const BATCH: usize = 1 << 16;

/// A node or chunk that a snapshot needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Where it is.
    pub location: Location,
    /// Its ordinal.
    pub ordinal: u64,
    /// A chunk's length.
    pub len: u32,
}

/// Chunks that are met one after the other, to be looked up many at once.
#[derive(Default)]
pub struct Met(Vec<(ChunkId, u32)>);

impl Met {
    /// Adds those of a map's extents; whether it is time to take them.
    pub fn add(&mut self, extents: &[Extent]) -> bool {
        self.0.extend(extents.iter().filter_map(|extent| match *extent {
            Extent::Data { id, len } => Some((id, len)),
            _ => None,
        }));
        self.0.len() >= BATCH
    }

    /// All so far with their lengths, in order, each once.
    pub fn take(&mut self) -> Vec<(ChunkId, u32)> {
        let mut chunks = std::mem::take(&mut self.0);
        chunks.sort_unstable();
        chunks.dedup();
        chunks
    }
}

/// What a walk is for.
pub trait Visitor {
    /// A tree or map node; whether to go on below it.
    fn node(&mut self, found: Found) -> Result<bool>;
    /// Chunks, in the order of their places.
    fn chunks(&mut self, found: &[Found]) -> Result<()>;
}

/// Walks one snapshot.
pub fn walk(catalog: &Catalog, listed: &Listed, visitor: &mut dyn Visitor, stop: &Stop) -> Result<()> {
    let tree = listed.snapshot.tree.root();
    let tree = tree.map_err(|e| Error::damaged(format!("snapshot {}", listed.id), e))?;
    let mut walk = Walk { catalog, visitor, stop, met: Met::default(), open: Vec::new() };
    if let Some(tree) = tree {
        walk.enter(&tree, true)?;
    }
    walk.run()
}

/// Walks entries of a snapshot and all that is below them.
pub fn walk_entries(
    catalog: &Catalog,
    entries: &[Entry],
    visitor: &mut dyn Visitor,
    stop: &Stop,
) -> Result<()> {
    let mut walk = Walk { catalog, visitor, stop, met: Met::default(), open: Vec::new() };
    entries.iter().try_for_each(|entry| walk.entry(entry))?;
    walk.run()
}

struct Walk<'a> {
    catalog: &'a Catalog,
    visitor: &'a mut dyn Visitor,
    stop: &'a Stop,
    met: Met,
    open: Vec<Open>,
}

/// A tree node, as far as it was not walked yet.
enum Open {
    Leaf(std::vec::IntoIter<Entry>),
    /// Children, their level, and whether they are of the tree of roots.
    Inner(std::vec::IntoIter<tree::Child>, u8, bool),
}

impl Walk<'_> {
    fn run(&mut self) -> Result<()> {
        while let Some(open) = self.open.last_mut() {
            self.stop.check()?;
            match open {
                Open::Leaf(entries) => match entries.next() {
                    Some(entry) => self.entry(&entry)?,
                    None => drop(self.open.pop()),
                },
                Open::Inner(children, level, roots) => {
                    let (level, roots) = (*level, *roots);
                    match children.next() {
                        Some(child) => self.enter(&Root { level, node: child.id }, roots)?,
                        None => drop(self.open.pop()),
                    }
                }
            }
        }
        self.flush()
    }

    fn entry(&mut self, entry: &Entry) -> Result<()> {
        if let Some(map) = entry.map() {
            self.map(map)?;
        }
        match entry.dir().and_then(|dir| dir.root.as_ref()) {
            Some(root) => self.enter(root, false),
            None => Ok(()),
        }
    }

    fn enter(&mut self, node: &Root<ChunkId>, roots: bool) -> Result<()> {
        let found = self.find(&node.node, "tree node")?;
        if self.visitor.node(found)? {
            self.open.push(match self.catalog.tree_node(node, roots)? {
                tree::Node::Leaf(entries) => Open::Leaf(entries.into_iter()),
                tree::Node::Inner(children) => {
                    Open::Inner(children.into_iter(), node.level.saturating_sub(1), roots)
                }
            });
        }
        Ok(())
    }

    fn map(&mut self, map: &Map) -> Result<()> {
        let mut pending = match map {
            Map::Inline(extents) => return self.extents(extents),
            Map::Tree(root) => vec![(root.level, root.node.id)],
        };
        while let Some((level, id)) = pending.pop() {
            self.stop.check()?;
            let found = self.find(&id, "map node")?;
            if !self.visitor.node(found)? {
                continue;
            }
            match self.catalog.map_node(&id, level)? {
                map::Node::Leaf(extents) => self.extents(&extents)?,
                map::Node::Inner(children) => {
                    let below = children.iter().rev();
                    pending.extend(below.map(|child| (level.saturating_sub(1), child.id)));
                }
            }
        }
        Ok(())
    }

    fn find(&self, id: &ChunkId, what: &str) -> Result<Found> {
        let mut index = self.catalog.index()?;
        let location = index.locate(std::slice::from_ref(id))?.pop().flatten();
        let found = location.and_then(|location| Some((location, index.ordinal(location)?)));
        let (location, ordinal) = found.ok_or_else(|| Error::missing(format!("{what} {id}")))?;
        Ok(Found { location, ordinal, len: 0 })
    }

    fn extents(&mut self, extents: &[Extent]) -> Result<()> {
        if self.met.add(extents) { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let chunks = self.met.take();
        let ids: Vec<ChunkId> = chunks.iter().map(|(id, _)| *id).collect();
        let mut index = self.catalog.index()?;
        let mut found = Vec::with_capacity(ids.len());
        for (location, (id, len)) in index.locate(&ids)?.into_iter().zip(&chunks) {
            let place = location.and_then(|location| Some((location, index.ordinal(location)?)));
            let (location, ordinal) = place.ok_or_else(|| Error::missing(format!("chunk {id}")))?;
            found.push(Found { location, ordinal, len: *len });
        }
        drop(index);
        found.sort_unstable();
        self.visitor.chunks(&found)
    }
}
