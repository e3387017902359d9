//! Maps: the extents that make up one file or volume.
//!
//! ```text
//! leaf    u8 0 · varint count · for each: varint length * 4 + kind (0 data, 1 zero, 2 hole)
//!         · 20 bytes an id, for the data extents in order
//! inner   u8 level · varint count · for each child: varint length, data bytes, extents
//!         · 20 bytes an id
//! ```
//!
//! A node may end after a data extent whose id's first four bytes say so (`hashtree`).

use super::hashtree::{self, Root, hash_ends_node};
use super::wire::{Decoded, Malformed, Reader, put_varint};
use super::{NODE_ENTRIES_MAX, NODE_LEVEL_MAX};
use crate::id::ChunkId;

/// The longest file or volume.
pub const LEN_MAX: u64 = i64::MAX as u64;
/// The longest data extent: the largest chunk that any chunker makes.
pub const CHUNK_LEN_MAX: u64 = 4 << 20;
/// The longest extent of zeros or hole; longer ones are several. A length is stored times 4, and blocks stay whole.
const EMPTY_LEN_MAX: u64 = 1 << 61;
/// Maps of at most so many extents are kept in the tree entry itself.
pub const INLINE_EXTENTS_MAX: usize = 16;

/// A range of a file or volume, in one of three states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Bytes that a chunk holds.
    Data {
        /// The chunk.
        id: ChunkId,
        /// Its length.
        len: u32,
    },
    /// Zeros that were allocated.
    Zero {
        /// How many bytes.
        len: u64,
    },
    /// Nothing was allocated here; reads as zeros.
    Hole {
        /// How many bytes.
        len: u64,
    },
}

impl Extent {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match *self {
            Extent::Data { len, .. } => len.into(),
            Extent::Zero { len } | Extent::Hole { len } => len,
        }
    }

    /// Never: extents of no length are not made.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that a chunk holds.
    pub fn data_len(&self) -> u64 {
        match *self {
            Extent::Data { len, .. } => len.into(),
            _ => 0,
        }
    }

    fn kind(&self) -> u64 {
        match self {
            Extent::Data { .. } => 0,
            Extent::Zero { .. } => 1,
            Extent::Hole { .. } => 2,
        }
    }
}

/// What stands for a map node in the node above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// The node.
    pub id: ChunkId,
    /// Bytes of the file or volume below it.
    pub len: u64,
    /// How many of them chunks hold.
    pub data: u64,
    /// Extents below it.
    pub extents: u64,
}

impl hashtree::Entry for Extent {
    type Child = Child;

    fn ends_node(&self) -> bool {
        matches!(self, Extent::Data { id, .. } if hash_ends_node(&id.0))
    }

    fn weight(&self) -> usize {
        0
    }

    fn encode_leaf(entries: &[Self]) -> Vec<u8> {
        let mut out = vec![0];
        put_extents(&mut out, entries);
        out
    }

    fn encode_inner(level: u8, children: &[Child]) -> Vec<u8> {
        let mut out = vec![level];
        put_varint(&mut out, children.len() as u64);
        for child in children {
            put_varint(&mut out, child.len);
            put_varint(&mut out, child.data);
            put_varint(&mut out, child.extents);
        }
        for child in children {
            out.extend_from_slice(&child.id.0);
        }
        out
    }

    fn child_of_leaf(id: ChunkId, entries: &[Self]) -> Child {
        Child {
            id,
            len: entries.iter().map(Extent::len).sum(),
            data: entries.iter().map(Extent::data_len).sum(),
            extents: entries.len() as u64,
        }
    }

    fn child_of_inner(id: ChunkId, children: &[Child]) -> Child {
        Child {
            id,
            len: children.iter().map(|c| c.len).sum(),
            data: children.iter().map(|c| c.data).sum(),
            extents: children.iter().map(|c| c.extents).sum(),
        }
    }

    fn child_id(child: &Child) -> ChunkId {
        child.id
    }
}

/// Appends a count and extents, as in a leaf.
pub fn put_extents(out: &mut Vec<u8>, extents: &[Extent]) {
    put_varint(out, extents.len() as u64);
    for extent in extents {
        put_varint(out, extent.len() << 2 | extent.kind());
    }
    for extent in extents {
        if let Extent::Data { id, .. } = extent {
            out.extend_from_slice(&id.0);
        }
    }
}

/// Reads what [`put_extents`] wrote.
pub fn read_extents(reader: &mut Reader, max: usize) -> Decoded<Vec<Extent>> {
    let count = reader.count(1)?;
    if count > max {
        return Err(Malformed("a map node has too many entries"));
    }
    let mut total = 0u64;
    let mut extents = Vec::with_capacity(count);
    for _ in 0..count {
        let extent = read_extent(reader)?;
        total = checked_total(total, extent.len())?;
        extents.push(extent);
    }
    for extent in &mut extents {
        if let Extent::Data { id, .. } = extent {
            *id = ChunkId(reader.array()?);
        }
    }
    Ok(extents)
}

fn read_extent(reader: &mut Reader) -> Decoded<Extent> {
    let code = reader.varint()?;
    let len = code >> 2;
    if len == 0 {
        return Err(Malformed("an extent is empty"));
    }
    match code & 3 {
        0 if len <= CHUNK_LEN_MAX => Ok(Extent::Data { id: ChunkId([0; 20]), len: len as u32 }),
        0 => Err(Malformed("a chunk is too long")),
        1 => Ok(Extent::Zero { len }),
        2 => Ok(Extent::Hole { len }),
        _ => Err(Malformed("an extent's kind is unknown")),
    }
}

fn checked_total(total: u64, len: u64) -> Decoded<u64> {
    total.checked_add(len).filter(|total| *total <= LEN_MAX).ok_or(Malformed("a map is longer than any file"))
}

/// A decoded map node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Extents.
    Leaf(Vec<Extent>),
    /// Nodes of the level below.
    Inner(Vec<Child>),
}

impl Node {
    /// From a node's bytes; `level` is what the node above says of it.
    pub fn decode(bytes: &[u8], level: u8) -> Decoded<Self> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != level || level > NODE_LEVEL_MAX {
            return Err(Malformed("a map node has the wrong level"));
        }
        let node = if level == 0 {
            Node::Leaf(read_extents(&mut reader, NODE_ENTRIES_MAX)?)
        } else {
            Node::Inner(read_children(&mut reader)?)
        };
        reader.end()?;
        Ok(node)
    }
}

fn read_children(reader: &mut Reader) -> Decoded<Vec<Child>> {
    let count = reader.count(3 + ChunkId::LEN)?;
    if count == 0 || count > NODE_ENTRIES_MAX {
        return Err(Malformed("a map node has a wrong number of entries"));
    }
    let mut total = 0u64;
    let mut children = Vec::with_capacity(count);
    for _ in 0..count {
        let len = reader.varint()?;
        total = checked_total(total, len)?;
        let data = reader.at_most(len, "a map node has more data than bytes")?;
        let extents = reader.at_most(len, "a map node has more extents than bytes")?;
        children.push(Child { id: ChunkId([0; 20]), len, data, extents });
    }
    for child in &mut children {
        child.id = ChunkId(reader.array()?);
    }
    Ok(children)
}

/// The content of a file or volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Map {
    /// Few extents, kept where the map is named.
    Inline(Vec<Extent>),
    /// More: a tree of nodes.
    Tree(Root<Child>),
}

impl Default for Map {
    fn default() -> Self {
        Map::Inline(Vec::new())
    }
}

impl Map {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Map::Inline(extents) => extents.iter().map(Extent::len).sum(),
            Map::Tree(root) => root.node.len,
        }
    }

    /// Whether it is the map of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that chunks hold.
    pub fn data_len(&self) -> u64 {
        match self {
            Map::Inline(extents) => extents.iter().map(Extent::data_len).sum(),
            Map::Tree(root) => root.node.data,
        }
    }

    /// Appends the map: `varint 0` and the extents, or `varint level + 1` and the top node's
    /// length, data bytes, extents and id.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Map::Inline(extents) => {
                out.push(0);
                put_extents(out, extents);
            }
            Map::Tree(Root { level, node }) => {
                out.push(level + 1);
                put_varint(out, node.len);
                put_varint(out, node.data);
                put_varint(out, node.extents);
                out.extend_from_slice(&node.id.0);
            }
        }
    }

    /// Reads what [`Map::put`] wrote.
    pub fn read(reader: &mut Reader) -> Decoded<Self> {
        match reader.u8()? {
            0 => Ok(Map::Inline(read_extents(reader, INLINE_EXTENTS_MAX)?)),
            level if level <= NODE_LEVEL_MAX => {
                let len = reader.at_most(LEN_MAX, "a map is longer than any file")?;
                let data = reader.at_most(len, "a map has more data than bytes")?;
                let extents = reader.at_most(len, "a map has more extents than bytes")?;
                let node = Child { id: ChunkId(reader.array()?), len, data, extents };
                Ok(Map::Tree(Root { level: level - 1, node }))
            }
            _ => Err(Malformed("a map is too deep")),
        }
    }
}

/// Builds a map; like [`hashtree::Builder`], but small maps stay inline and neighbouring zeros
/// and holes become one extent.
#[derive(Clone, Default)]
pub struct Builder {
    nodes: hashtree::Builder<Extent>,
    pending: Option<Extent>,
}

impl Builder {
    /// Adds the next extent; `store` keeps the nodes that this completes and names them.
    pub fn push<X>(
        &mut self,
        extent: Extent,
        store: &mut impl FnMut(Vec<u8>) -> Result<ChunkId, X>,
    ) -> Result<(), X> {
        match (&mut self.pending, extent) {
            (Some(Extent::Zero { len }), Extent::Zero { len: more })
            | (Some(Extent::Hole { len }), Extent::Hole { len: more }) => {
                *len += more;
                Ok(())
            }
            (pending, next) => match pending.replace(next) {
                Some(done) => self.add(done, store),
                None => Ok(()),
            },
        }
    }

    /// Adds an extent that no other is joined to any more.
    fn add<X>(
        &mut self,
        extent: Extent,
        store: &mut impl FnMut(Vec<u8>) -> Result<ChunkId, X>,
    ) -> Result<(), X> {
        let mut left = extent;
        while let Extent::Zero { len } | Extent::Hole { len } = &mut left
            && *len > EMPTY_LEN_MAX
        {
            *len -= EMPTY_LEN_MAX;
            let part = match extent {
                Extent::Zero { .. } => Extent::Zero { len: EMPTY_LEN_MAX },
                _ => Extent::Hole { len: EMPTY_LEN_MAX },
            };
            self.nodes.push(part, store)?;
        }
        self.nodes.push(left, store)
    }

    /// The level up to which whole nodes of another map may be added; `None` if there are open
    /// extents, or the next one may have to be joined to the last.
    pub fn level_open<X>(
        &mut self,
        store: &mut impl FnMut(Vec<u8>) -> Result<ChunkId, X>,
    ) -> Result<Option<u8>, X> {
        if let Some(last @ Extent::Data { .. }) = self.pending {
            self.pending = None;
            self.nodes.push(last, store)?;
        }
        Ok(self.nodes.level_open().filter(|_| self.pending.is_none()))
    }

    /// Adds a whole node, as [`hashtree::Builder::push_node`] has it. What follows must not be
    /// zeros or a hole that would be joined to its last extent.
    pub fn push_node<X>(
        &mut self,
        level: u8,
        child: Child,
        store: &mut impl FnMut(Vec<u8>) -> Result<ChunkId, X>,
    ) -> Result<(), X> {
        self.nodes.push_node(level, child, store)
    }

    /// Completes the map.
    pub fn finish<X>(mut self, store: &mut impl FnMut(Vec<u8>) -> Result<ChunkId, X>) -> Result<Map, X> {
        if let Some(last) = self.pending.take() {
            self.add(last, store)?;
        }
        if let Some(extents) = self.nodes.only_leaf()
            && extents.len() <= INLINE_EXTENTS_MAX
        {
            return Ok(Map::Inline(extents.to_vec()));
        }
        Ok(self.nodes.finish(store)?.map_or_else(Map::default, Map::Tree))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::convert::Infallible;

    fn build(extents: &[Extent]) -> (Map, HashMap<ChunkId, Vec<u8>>) {
        let mut nodes = HashMap::new();
        let mut store = |bytes: Vec<u8>| {
            let id = ChunkId::of(&[1; 32], &bytes);
            nodes.insert(id, bytes);
            Ok::<_, Infallible>(id)
        };
        let mut builder = Builder::default();
        for extent in extents {
            builder.push(*extent, &mut store).unwrap();
        }
        let map = builder.finish(&mut store).unwrap();
        (map, nodes)
    }

    fn walk(id: ChunkId, level: u8, nodes: &HashMap<ChunkId, Vec<u8>>, out: &mut Vec<Extent>) {
        match Node::decode(&nodes[&id], level).unwrap() {
            Node::Leaf(extents) => out.extend(extents),
            Node::Inner(children) => {
                children.iter().for_each(|child| walk(child.id, level - 1, nodes, out));
            }
        }
    }

    fn extents(count: u32, seed: u32) -> Vec<Extent> {
        (0..count)
            .map(|i| {
                let id = ChunkId::of(&[0; 32], &(i ^ seed).to_le_bytes());
                match id.0[19] % 8 {
                    0 => Extent::Zero { len: 4096 * (1 + u64::from(i)) },
                    1 => Extent::Hole { len: 1 << 40 },
                    _ => Extent::Data { id, len: 1 + u32::from(id.0[18]) * 100 },
                }
            })
            .collect()
    }

    fn merged(extents: &[Extent]) -> Vec<Extent> {
        let mut out: Vec<Extent> = Vec::new();
        for extent in extents {
            match (out.last_mut(), *extent) {
                (Some(Extent::Zero { len }), Extent::Zero { len: more })
                | (Some(Extent::Hole { len }), Extent::Hole { len: more }) => *len += more,
                _ => out.push(*extent),
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn maps_of_any_length_come_back(count in 0u32..20_000, seed: u32) {
            let extents = extents(count, seed);
            let (map, nodes) = build(&extents);
            prop_assert_eq!(map.len(), extents.iter().map(Extent::len).sum::<u64>());
            prop_assert_eq!(map.data_len(), extents.iter().map(Extent::data_len).sum::<u64>());
            let mut out = Vec::new();
            match &map {
                Map::Inline(inline) => out.extend(inline.clone()),
                Map::Tree(root) => walk(root.node.id, root.level, &nodes, &mut out),
            }
            prop_assert_eq!(out, merged(&extents));
            let mut bytes = Vec::new();
            map.put(&mut bytes);
            prop_assert_eq!(Map::read(&mut Reader::new(&bytes)), Ok(map));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>, level in 0u8..12) {
            let _ = Node::decode(&bytes, level);
            let _ = Map::read(&mut Reader::new(&bytes));
        }
    }

    #[test]
    fn the_longest_file_keeps_its_length() {
        let data = Extent::Data { id: ChunkId([7; 20]), len: 5 };
        for before in [Extent::Hole { len: LEN_MAX - 5 }, Extent::Zero { len: LEN_MAX - 5 }] {
            let (map, _) = build(&[before, data]);
            let mut bytes = Vec::new();
            map.put(&mut bytes);
            let read = Map::read(&mut Reader::new(&bytes)).unwrap();
            assert_eq!((read.len(), read.data_len(), &read), (LEN_MAX, 5, &map));
        }
    }

    #[test]
    fn a_change_at_the_front_keeps_the_nodes_behind() {
        let mut extents = extents(20_000, 1);
        let (_, before) = build(&extents);
        extents[0] = Extent::Hole { len: 5 };
        extents.insert(1, Extent::Zero { len: 7 });
        let (_, after) = build(&extents);
        let fresh = after.keys().filter(|id| !before.contains_key(id)).count();
        assert!(fresh <= 4, "{fresh} of {} nodes are new", after.len());
    }
}
