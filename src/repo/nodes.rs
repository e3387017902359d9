//! Walking stored trees and maps, node by node.

use crate::error::{Error, Result};
use crate::format::hashtree::Root;
use crate::format::map::{self, Extent, Map};
use crate::format::pack::Kind;
use crate::format::tree::{self, Dir, Entry};
use crate::id::ChunkId;

use super::catalog::Catalog;

/// The entries of one directory, in order of their names, holding one node a level.
pub struct Entries<'c> {
    catalog: &'c Catalog,
    roots: bool,
    /// Nodes still to be read, the next one last.
    pending: Vec<Root<ChunkId>>,
    leaf: std::vec::IntoIter<Entry>,
    /// The nodes read so far, if they are wanted.
    seen: Option<Vec<ChunkId>>,
}

impl<'c> Entries<'c> {
    /// Of a directory.
    pub fn of(catalog: &'c Catalog, dir: &Dir) -> Self {
        Self::new(catalog, dir.root.clone(), false)
    }

    /// Of a snapshot: its roots.
    pub fn of_roots(catalog: &'c Catalog, root: Option<Root<ChunkId>>) -> Self {
        Self::new(catalog, root, true)
    }

    fn new(catalog: &'c Catalog, root: Option<Root<ChunkId>>, roots: bool) -> Self {
        Self { catalog, roots, pending: root.into_iter().collect(), leaf: Vec::new().into_iter(), seen: None }
    }

    /// Remembers the ids of the nodes that are read from now on.
    pub fn remembering(mut self) -> Self {
        self.seen = Some(Vec::new());
        self
    }

    /// The nodes that were read.
    pub fn take_seen(&mut self) -> Vec<ChunkId> {
        self.seen.replace(Vec::new()).unwrap_or_default()
    }

    fn step(&mut self) -> Result<bool> {
        let Some(node) = self.pending.pop() else { return Ok(false) };
        let read = self.catalog.tree_node(&node, self.roots)?;
        if let Some(seen) = &mut self.seen {
            seen.push(node.node);
        }
        match read {
            tree::Node::Leaf(entries) => self.leaf = entries.into_iter(),
            tree::Node::Inner(children) => {
                let level = node.level.saturating_sub(1);
                let below = children.into_iter().rev().map(|child| Root { level, node: child.id });
                self.pending.extend(below);
            }
        }
        Ok(true)
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        loop {
            if let Some(entry) = self.leaf.next() {
                return Some(Ok(entry));
            }
            match self.step() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(e) => {
                    self.pending.clear();
                    return Some(Err(e));
                }
            }
        }
    }
}

/// The entry `name` of a directory, reading one node a level.
pub fn find_entry(catalog: &Catalog, dir: &Dir, name: &[u8]) -> Result<Option<Entry>> {
    find(catalog, dir.root.clone(), false, name)
}

/// A snapshot's root by its whole path, reading one node a level.
pub fn find_root(catalog: &Catalog, tree: Option<Root<ChunkId>>, path: &[u8]) -> Result<Option<Entry>> {
    find(catalog, tree, true, path)
}

fn find(catalog: &Catalog, tree: Option<Root<ChunkId>>, roots: bool, name: &[u8]) -> Result<Option<Entry>> {
    let Some(mut at) = tree else { return Ok(None) };
    loop {
        match catalog.tree_node(&at, roots)? {
            tree::Node::Leaf(entries) => return Ok(entries.into_iter().find(|e| e.name == name)),
            tree::Node::Inner(children) => {
                let behind = children.partition_point(|child| child.first.as_slice() <= name);
                let Some(child) = behind.checked_sub(1).and_then(|i| children.get(i)) else {
                    return Ok(None);
                };
                at = Root { level: at.level.saturating_sub(1), node: child.id };
            }
        }
    }
}

/// The whole path of an entry of the directory with the path `above`, which is empty for roots.
pub fn child_path(above: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(above.len() + 1 + name.len());
    path.extend_from_slice(above);
    push_name(&mut path, name);
    path
}

/// The same in place: who goes down a tree needs one path, not one for each level of it.
pub fn push_name(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() && path != b"/" {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// The extents of a map from an offset on, holding one node a level.
pub struct Extents<'c> {
    catalog: &'c Catalog,
    pending: Vec<(u8, map::Child)>,
    leaf: std::vec::IntoIter<Extent>,
    /// Where the next extent begins.
    at: u64,
    skip_to: u64,
}

impl<'c> Extents<'c> {
    /// All of a map's.
    pub fn of(catalog: &'c Catalog, map: &Map) -> Self {
        Self::from(catalog, map, 0)
    }

    /// From the extent on that holds `offset`.
    pub fn from(catalog: &'c Catalog, map: &Map, offset: u64) -> Self {
        let (pending, leaf) = match map {
            Map::Inline(extents) => (Vec::new(), extents.clone()),
            Map::Tree(root) => (vec![(root.level, root.node)], Vec::new()),
        };
        Self { catalog, pending, leaf: leaf.into_iter(), at: 0, skip_to: offset }
    }

    /// Goes on with the extent that holds `offset`, past nodes that end before it.
    pub fn skip_to(&mut self, offset: u64) {
        self.skip_to = offset;
    }

    fn step(&mut self) -> Result<bool> {
        let Some((level, child)) = self.pending.pop() else { return Ok(false) };
        if self.at + child.len <= self.skip_to {
            self.at += child.len;
            return Ok(true);
        }
        match self.catalog.map_node(&child.id, level)? {
            map::Node::Leaf(extents) => {
                check_length(&child, extents.iter().map(Extent::len).sum())?;
                self.leaf = extents.into_iter();
            }
            map::Node::Inner(children) => {
                check_length(&child, children.iter().map(|c| c.len).sum())?;
                let level = level.saturating_sub(1);
                self.pending.extend(children.into_iter().rev().map(|child| (level, child)));
            }
        }
        Ok(true)
    }
}

pub(super) fn check_length(child: &map::Child, found: u64) -> Result<()> {
    if found == child.len {
        return Ok(());
    }
    Err(Error::damaged(format!("map node {}", child.id), "its length is not what the node above says"))
}

impl Iterator for Extents<'_> {
    /// Where it begins, and the extent.
    type Item = Result<(u64, Extent)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(extent) = self.leaf.next() {
                let at = self.at;
                self.at += extent.len();
                if self.at <= self.skip_to {
                    continue;
                }
                return Some(Ok((at, extent)));
            }
            match self.step() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(e) => {
                    self.pending.clear();
                    return Some(Err(e));
                }
            }
        }
    }
}

/// Calls `each` with every node of a map and the chunks of its leaves, for marking.
pub fn for_each_chunk_of_map(
    catalog: &Catalog,
    map: &Map,
    each: &mut impl FnMut(Kind, ChunkId) -> Result<()>,
) -> Result<()> {
    let data = |extents: &[Extent], each: &mut dyn FnMut(Kind, ChunkId) -> Result<()>| {
        extents.iter().try_for_each(|extent| match extent {
            Extent::Data { id, .. } => each(Kind::Data, *id),
            _ => Ok(()),
        })
    };
    let mut pending = match map {
        Map::Inline(extents) => return data(extents, each),
        Map::Tree(root) => vec![(root.level, root.node.id)],
    };
    while let Some((level, id)) = pending.pop() {
        each(Kind::Map, id)?;
        match catalog.map_node(&id, level)? {
            map::Node::Leaf(extents) => data(&extents, each)?,
            map::Node::Inner(children) => {
                let level = level.saturating_sub(1);
                pending.extend(children.iter().rev().map(|child| (level, child.id)));
            }
        }
    }
    Ok(())
}

/// Chunks that are looked up at once.
const LOOKED_UP: usize = 64 << 10;

/// An error if a chunk of a map is in no place that can be read.
pub fn are_all_there(catalog: &Catalog, map: &Map) -> Result<()> {
    let mut ids = Vec::new();
    for_each_chunk_of_map(catalog, map, &mut |_, id| {
        ids.push(id);
        if ids.len() < LOOKED_UP { Ok(()) } else { look_up(catalog, &mut ids) }
    })?;
    look_up(catalog, &mut ids)
}

fn look_up(catalog: &Catalog, ids: &mut Vec<ChunkId>) -> Result<()> {
    ids.sort_unstable();
    let found = catalog.locate(ids)?;
    match ids.iter().zip(found).find(|(_, place)| place.is_none()) {
        Some((id, _)) => Err(Error::missing(format!("chunk {id}"))),
        None => {
            ids.clear();
            Ok(())
        }
    }
}
