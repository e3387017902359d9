//! Checking that snapshots lead to what they need: every tree node, map node and chunk.
//!
//! Directories, map nodes and the leaves of directories are marked by their ordinals, so that
//! what many snapshots share is followed once. Chunks are looked up in sorted batches. A path
//! holds one leaf of each directory on it, however large these are.

use super::blame::culprit;
use super::findings::{Findings, damage_of};
use crate::error::{Error, Result};
use crate::format::hashtree::{Entry as _, Root};
use crate::format::map::{self, Extent, Map};
use crate::format::pack::Kind;
use crate::format::tree::{self, ContentHasher, Dir, Entry, Payload};
use crate::id::{ChunkId, Key};
use crate::observe::{Event, Observer, Stop};
use crate::repo::Repo;
use crate::repo::catalog::Catalog;
use crate::repo::index::Location;
use crate::repo::marks::Marks;
use crate::repo::nodes::child_path;
use crate::repo::snapshots::{Listed, Snapshots};
use crate::repo::walk::Met;
use crate::text::escape;

/// Follows all snapshots.
pub fn check(
    repo: &Repo,
    catalog: &Catalog,
    snapshots: &Snapshots,
    findings: &mut Findings,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<()> {
    observer.event(Event::Phase { name: "checking snapshots", bytes: None });
    let mut structure = Structure::new(repo, catalog, findings, observer, stop);
    for listed in &snapshots.listed {
        structure.snapshot(listed)?;
    }
    structure.flush()
}

/// Follows one snapshot, or one entry of it under its whole path; the ordinals of the chunks that
/// it needs.
pub fn needed(
    repo: &Repo,
    catalog: &Catalog,
    (listed, path, entry): (&Listed, &[u8], Option<&Entry>),
    findings: &mut Findings,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Marks> {
    observer.event(Event::Phase { name: "checking the snapshot", bytes: None });
    let mut structure = Structure::new(repo, catalog, findings, observer, stop);
    structure.needed = Some(Marks::default());
    match entry {
        None => structure.snapshot(listed)?,
        Some(entry) => {
            let top = structure.follow(Entry { name: path.to_vec(), ..entry.clone() })?;
            structure.walk(top.into_iter().collect(), listed)?;
        }
    }
    structure.flush()?;
    Ok(structure.needed.take().unwrap_or_default())
}

struct Structure<'a> {
    catalog: &'a Catalog,
    tree_key: &'a Key,
    findings: &'a mut Findings,
    observer: &'a dyn Observer,
    stop: &'a Stop,
    /// Directories that were followed, by their topmost nodes.
    dirs: Marks,
    /// Leaves of directories and map nodes that were followed.
    nodes: Marks,
    /// Chunks with the lengths that maps say, to be looked up.
    met: Met,
    /// All chunks that were met and are somewhere, if that is wanted.
    needed: Option<Marks>,
}

/// A directory on the way to where we are.
struct OpenDir {
    /// Its name; that of the tree of roots is empty.
    name: Vec<u8>,
    /// What its entry says of it; the tree of roots has no entry.
    said: Option<Dir>,
    /// Nodes to be read, the next one last, with what the node above says of each.
    pending: Vec<(u8, ChunkId, Option<tree::Child>)>,
    leaf: std::vec::IntoIter<Entry>,
    /// Whether the leaf's entries still have to be followed.
    leaf_is_new: bool,
    content: ContentHasher,
    entries: u64,
    files: u64,
    bytes: u64,
    /// Part of it could not be read, so that nothing about its sums can be said.
    is_partial: bool,
}

impl OpenDir {
    fn new(name: Vec<u8>, root: Option<Root<ChunkId>>, said: Option<Dir>, key: &Key) -> Self {
        Self {
            name,
            said,
            pending: root.map(|root| (root.level, root.node, None)).into_iter().collect(),
            leaf: Vec::new().into_iter(),
            leaf_is_new: false,
            content: ContentHasher::new(key),
            entries: 0,
            files: 0,
            bytes: 0,
            is_partial: false,
        }
    }

    fn count(&mut self, entry: &Entry) {
        entry.hash_content(&mut self.content);
        let (files, bytes) = entry.dir().map_or((1, entry.size()), |dir| (dir.files, dir.bytes));
        self.entries += 1;
        self.files = self.files.saturating_add(files);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// What is wrong with what its entry says of it.
    fn complaint(&self) -> Option<&'static str> {
        let said = self.said.as_ref().filter(|_| !self.is_partial)?;
        if (said.entries, said.files, said.bytes) != (self.entries, self.files, self.bytes) {
            return Some("its entries, files or bytes are not as many as it says");
        }
        (said.content != self.content.finish()).then_some("its content has another hash than it says")
    }
}

impl<'a> Structure<'a> {
    fn new(
        repo: &'a Repo,
        catalog: &'a Catalog,
        findings: &'a mut Findings,
        observer: &'a dyn Observer,
        stop: &'a Stop,
    ) -> Self {
        Self {
            catalog,
            tree_key: repo.keys().ids(Kind::Tree),
            findings,
            observer,
            stop,
            dirs: Marks::default(),
            nodes: Marks::default(),
            met: Met::default(),
            needed: None,
        }
    }

    fn snapshot(&mut self, listed: &Listed) -> Result<()> {
        let name = format!("snapshot {}", listed.id);
        let tree = match listed.snapshot.tree.root() {
            Ok(tree) => tree,
            Err(error) => {
                self.findings.add(&name, error.to_string());
                return Ok(());
            }
        };
        let mut stack = Vec::new();
        if let Some(tree) = tree
            && self.is_new(&tree.node, true)?
        {
            stack.push(OpenDir::new(Vec::new(), Some(tree), None, self.tree_key));
        }
        self.walk(stack, listed)
    }

    fn walk(&mut self, mut stack: Vec<OpenDir>, listed: &Listed) -> Result<()> {
        while let Some(dir) = stack.last_mut() {
            self.stop.check()?;
            if let Some(child) = self.advance(dir)? {
                stack.push(child);
            } else if dir.pending.is_empty() && dir.leaf.len() == 0 {
                self.close(&mut stack, listed);
            }
        }
        Ok(())
    }

    /// The next step in a directory: an entry or a node. The directory to be entered, if that
    /// is what comes next.
    fn advance(&mut self, dir: &mut OpenDir) -> Result<Option<OpenDir>> {
        if let Some(entry) = dir.leaf.next() {
            dir.count(&entry);
            return if dir.leaf_is_new { self.follow(entry) } else { Ok(None) };
        }
        if let Some((level, id, said)) = dir.pending.pop() {
            self.node(dir, level, id, said)?;
        }
        Ok(None)
    }

    fn close(&mut self, stack: &mut Vec<OpenDir>, listed: &Listed) {
        if let Some(complaint) = stack.last().and_then(OpenDir::complaint) {
            let path = path_of(stack);
            let object = format!("directory {path}");
            self.findings.add(&object, complaint.into());
            self.findings.hurt(&object, &path, &listed.id.short());
        }
        stack.pop();
    }

    fn node(&mut self, dir: &mut OpenDir, level: u8, id: ChunkId, said: Option<tree::Child>) -> Result<()> {
        let root = Root { level, node: id };
        let node = match self.catalog.tree_node(&root, dir.said.is_none()) {
            Ok(node) => node,
            Err(error) => {
                dir.is_partial = true;
                return self.node_error(&id, error);
            }
        };
        if said.is_some_and(|said| !fits(&said, &node)) {
            let why = "its entries are not what the node above says".into();
            self.findings.add(&format!("tree node {id}"), why);
        }
        match node {
            tree::Node::Leaf(entries) => {
                dir.leaf_is_new = self.is_new(&id, false)?;
                dir.leaf = entries.into_iter();
            }
            tree::Node::Inner(children) => {
                let below = children.into_iter().rev();
                dir.pending.extend(below.map(|child| (level.saturating_sub(1), child.id, Some(child))));
            }
        }
        Ok(())
    }

    /// Whether a node was not followed before; one that is nowhere is always to be followed,
    /// which says so.
    fn is_new(&mut self, id: &ChunkId, is_dir: bool) -> Result<bool> {
        let mut index = self.catalog.index()?;
        let location = index.locate(std::slice::from_ref(id))?.pop().flatten();
        let Some(ordinal) = location.and_then(|location| index.ordinal(location)) else { return Ok(true) };
        drop(index);
        let marks = if is_dir { &mut self.dirs } else { &mut self.nodes };
        Ok(marks.insert(ordinal))
    }

    fn follow(&mut self, entry: Entry) -> Result<Option<OpenDir>> {
        if let Some(map) = entry.map() {
            self.map(map)?;
        }
        let Payload::Dir(dir) = entry.payload else { return Ok(None) };
        match &dir.root {
            Some(root) if !self.is_new(&root.node, true)? => Ok(None),
            root => Ok(Some(OpenDir::new(entry.name, root.clone(), Some(dir), self.tree_key))),
        }
    }

    fn map(&mut self, map: &Map) -> Result<()> {
        let mut pending = match map {
            Map::Inline(extents) => return self.extents(extents),
            Map::Tree(root) => vec![(root.level, root.node)],
        };
        while let Some((level, said)) = pending.pop() {
            self.stop.check()?;
            if !self.is_new(&said.id, false)? {
                continue;
            }
            let found = match self.catalog.map_node(&said.id, level) {
                Ok(map::Node::Leaf(extents)) => {
                    self.extents(&extents)?;
                    Extent::child_of_leaf(said.id, &extents)
                }
                Ok(map::Node::Inner(children)) => {
                    let below = children.iter().rev();
                    pending.extend(below.map(|child| (level.saturating_sub(1), *child)));
                    Extent::child_of_inner(said.id, &children)
                }
                Err(error) => {
                    self.node_error(&said.id, error)?;
                    continue;
                }
            };
            if found != said {
                let why = "its lengths are not what the node above says".into();
                self.findings.add(&format!("map node {}", said.id), why);
            }
        }
        Ok(())
    }

    fn extents(&mut self, extents: &[Extent]) -> Result<()> {
        if self.met.add(extents) { self.flush() } else { Ok(()) }
    }

    /// Looks up the chunks that have been met, and compares their lengths.
    fn flush(&mut self) -> Result<()> {
        let chunks = self.met.take();
        let ids: Vec<ChunkId> = chunks.iter().map(|(id, _)| *id).collect();
        let mut found: Vec<(Location, usize)> = Vec::with_capacity(ids.len());
        for (at, location) in self.catalog.locate(&ids)?.into_iter().enumerate() {
            match location {
                Some(location) => found.push((location, at)),
                None => self.missing(ids[at])?,
            }
        }
        if let Some(needed) = &mut self.needed {
            let index = self.catalog.index()?;
            for ordinal in found.iter().filter_map(|(location, _)| index.ordinal(*location)) {
                needed.insert(ordinal);
            }
        }
        found.sort_unstable();
        for in_pack in found.chunk_by(|(a, _), (b, _)| a.pack == b.pack) {
            self.stop.check()?;
            self.lengths(in_pack, &chunks)?;
        }
        let bytes = chunks.iter().map(|(_, len)| u64::from(*len)).sum();
        self.observer.event(Event::Advance { bytes, files: 0 });
        Ok(())
    }

    /// A chunk that no look-up finds.
    fn missing(&mut self, id: ChunkId) -> Result<()> {
        self.findings.lose(id);
        match culprit(self.catalog, self.findings, &id)? {
            Some(object) => self.findings.need(&object),
            None => self.findings.missing_chunk(id),
        }
        Ok(())
    }

    /// A node that cannot be read; what it is in may have been complained of already.
    fn node_error(&mut self, id: &ChunkId, error: Error) -> Result<()> {
        self.findings.lose_node(*id);
        let culprit = match matches!(error, Error::Missing { .. }) {
            true => culprit(self.catalog, self.findings, id)?,
            false => None,
        };
        match culprit {
            Some(object) => self.findings.need(&object),
            None => {
                let object = damage_of(&error).map(|(object, _)| object);
                self.findings.error(error)?;
                object.iter().for_each(|object| self.findings.need(object));
            }
        }
        Ok(())
    }

    /// Compares the lengths of chunks that are in one pack.
    fn lengths(&mut self, found: &[(Location, usize)], chunks: &[(ChunkId, u32)]) -> Result<()> {
        let Some(number) = found.first().map(|(location, _)| location.pack) else { return Ok(()) };
        let pack = match self.catalog.pack(number) {
            Ok(pack) => pack,
            Err(error) => return self.findings.error(error),
        };
        for (location, at) in found {
            let (id, len) = chunks[*at];
            let slot = match pack.slot(location.slot) {
                Ok(slot) => slot,
                Err(error) => return self.findings.error(error),
            };
            if slot.id != id || slot.len != len || pack.frame(slot.frame)?.kind != Kind::Data {
                let why = "it is not as long, or not of the kind, that a map says".into();
                self.findings.odd_chunk(*location, format!("chunk {id} in pack {}", pack.id), why);
            }
        }
        Ok(())
    }
}

/// Whether a tree node is what the node above says.
fn fits(said: &tree::Child, node: &tree::Node) -> bool {
    let (first, entries) = match node {
        tree::Node::Leaf(entries) => (entries.first().map(|entry| &entry.name), Some(entries.len() as u64)),
        tree::Node::Inner(children) => {
            let sum = children.iter().try_fold(0u64, |sum, child| sum.checked_add(child.entries));
            (children.first().map(|child| &child.first), sum)
        }
    };
    first == Some(&said.first) && entries == Some(said.entries)
}

fn path_of(stack: &[OpenDir]) -> String {
    escape(&stack.iter().fold(Vec::new(), |path, dir| child_path(&path, &dir.name)))
}
