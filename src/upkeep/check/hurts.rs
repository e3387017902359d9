//! Which paths of which snapshots need something that is damaged.
//!
//! Walks all snapshots once more, past what was found to need nothing that is damaged: that
//! costs the distinct nodes once, and for each snapshot the way to its damaged places.

use std::collections::BTreeSet;

use super::blame::culprit;
use super::findings::{Findings, MISSING, damage_of, node_id};
use crate::error::{Error, Result};
use crate::format::map::{self, Extent, Map};
use crate::format::tree::Entry;
use crate::id::ChunkId;
use crate::observe::{Event, Observer, Stop};
use crate::repo::catalog::Catalog;
use crate::repo::marks::Marks;
use crate::repo::nodes::{Entries, child_path};
use crate::repo::snapshots::{Listed, Snapshots};
use crate::text::escape;

/// Finds them, the newest snapshots first.
pub fn find(
    catalog: &Catalog,
    snapshots: &Snapshots,
    findings: &mut Findings,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<()> {
    observer.event(Event::Phase { name: "finding what is hurt", bytes: None });
    let mut search = Search { catalog, findings, stop, sound: Marks::default() };
    snapshots.listed.iter().rev().try_for_each(|listed| search.snapshot(listed))
}

/// Finds those of one entry of a snapshot, which has this whole path.
pub fn find_below(
    catalog: &Catalog,
    (listed, path, entry): (&Listed, &[u8], &Entry),
    findings: &mut Findings,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<()> {
    observer.event(Event::Phase { name: "finding what is hurt", bytes: None });
    let mut search = Search { catalog, findings, stop, sound: Marks::default() };
    let entries = Entries::of_roots(catalog, None);
    let mut above = OpenDir { path: Vec::new(), ordinal: None, entries, is_sound: true };
    let entry = Entry { name: path.to_vec(), ..entry.clone() };
    let below = search.entry(&mut above, entry, &listed.id.short())?;
    search.walk(below.into_iter().collect(), &listed.id.short())
}

struct Search<'a> {
    catalog: &'a Catalog,
    findings: &'a mut Findings,
    stop: &'a Stop,
    /// Directories and map nodes below which nothing is damaged.
    sound: Marks,
}

/// A directory on the way to where we are.
struct OpenDir<'a> {
    path: Vec<u8>,
    ordinal: Option<u64>,
    entries: Entries<'a>,
    is_sound: bool,
}

impl<'a> Search<'a> {
    fn snapshot(&mut self, listed: &Listed) -> Result<()> {
        // A snapshot whose tree has no name is damaged itself.
        let Ok(Some(tree)) = listed.snapshot.tree.root() else { return Ok(()) };
        let short = listed.id.short();
        let mut stack: Vec<OpenDir<'a>> = Vec::new();
        let ordinal = self.ordinal(&tree.node)?;
        let entries = Entries::of_roots(self.catalog, Some(tree));
        stack.extend(self.enter(Vec::new(), ordinal, entries));
        self.walk(stack, &short)
    }

    fn walk(&mut self, mut stack: Vec<OpenDir<'a>>, short: &str) -> Result<()> {
        while let Some(dir) = stack.last_mut() {
            self.stop.check()?;
            match dir.entries.next() {
                Some(Ok(entry)) => {
                    let child = self.entry(dir, entry, short)?;
                    stack.extend(child);
                }
                Some(Err(error)) => {
                    dir.is_sound = false;
                    let object = self.blame(error)?;
                    self.findings.hurt(&object, &shown(&dir.path), short);
                }
                None => self.leave(&mut stack),
            }
        }
        Ok(())
    }

    fn enter(&self, path: Vec<u8>, ordinal: Option<u64>, entries: Entries<'a>) -> Option<OpenDir<'a>> {
        let is_known = ordinal.is_some_and(|ordinal| self.sound.contains(ordinal));
        (!is_known).then_some(OpenDir { path, ordinal, entries, is_sound: true })
    }

    fn leave(&mut self, stack: &mut Vec<OpenDir>) {
        let Some(dir) = stack.pop() else { return };
        match (dir.is_sound, dir.ordinal, stack.last_mut()) {
            (true, Some(ordinal), _) => {
                self.sound.insert(ordinal);
            }
            (false, _, Some(above)) => above.is_sound = false,
            _ => {}
        }
    }

    fn entry(&mut self, dir: &mut OpenDir, entry: Entry, snapshot: &str) -> Result<Option<OpenDir<'a>>> {
        let path = child_path(&dir.path, &entry.name);
        if let Some(map) = entry.map() {
            let mut blamed = BTreeSet::new();
            dir.is_sound &= self.map(map, &mut blamed)?;
            blamed.iter().for_each(|object| self.findings.hurt(object, &shown(&path), snapshot));
        }
        let Some(below) = entry.dir() else { return Ok(None) };
        let Some(root) = &below.root else { return Ok(None) };
        let ordinal = self.ordinal(&root.node)?;
        Ok(self.enter(path, ordinal, Entries::of(self.catalog, below)))
    }

    fn ordinal(&self, id: &ChunkId) -> Result<Option<u64>> {
        let mut index = self.catalog.index()?;
        let location = index.locate(std::slice::from_ref(id))?.pop().flatten();
        Ok(location.and_then(|location| index.ordinal(location)))
    }

    fn map(&mut self, map: &Map, blamed: &mut BTreeSet<String>) -> Result<bool> {
        match map {
            Map::Inline(extents) => self.chunks(extents, blamed),
            Map::Tree(root) => self.map_node(root.level, &root.node.id, blamed),
        }
    }

    /// Whether nothing below is damaged. Levels go down, so that it calls itself ten times at most.
    fn map_node(&mut self, level: u8, id: &ChunkId, blamed: &mut BTreeSet<String>) -> Result<bool> {
        let ordinal = self.ordinal(id)?;
        if ordinal.is_some_and(|ordinal| self.sound.contains(ordinal)) {
            return Ok(true);
        }
        let is_sound = match self.catalog.map_node(id, level) {
            Ok(map::Node::Leaf(extents)) => self.chunks(&extents, blamed)?,
            Ok(map::Node::Inner(children)) => {
                let mut is_sound = true;
                for child in &children {
                    is_sound &= self.map_node(level.saturating_sub(1), &child.id, blamed)?;
                }
                is_sound
            }
            Err(error) => {
                blamed.insert(self.blame(error)?);
                false
            }
        };
        if let Some(ordinal) = ordinal.filter(|_| is_sound) {
            self.sound.insert(ordinal);
        }
        Ok(is_sound)
    }

    fn chunks(&mut self, extents: &[Extent], blamed: &mut BTreeSet<String>) -> Result<bool> {
        let ids: Vec<ChunkId> = extents
            .iter()
            .filter_map(|extent| if let Extent::Data { id, .. } = extent { Some(*id) } else { None })
            .collect();
        let mut is_sound = true;
        for (id, place) in ids.iter().zip(self.catalog.locate(&ids)?) {
            let object = match place {
                Some(place) => self.findings.odd(place).map(str::to_owned),
                None => Some(culprit(self.catalog, self.findings, id)?.unwrap_or_else(|| MISSING.into())),
            };
            is_sound &= object.is_none();
            blamed.extend(object);
        }
        Ok(is_sound)
    }

    /// What is to blame that a node cannot be read.
    fn blame(&self, error: Error) -> Result<String> {
        let (object, _) = damage_of(&error).ok_or(error)?;
        match node_id(&object) {
            Some(id) => Ok(culprit(self.catalog, self.findings, &id)?.unwrap_or(object)),
            None => Ok(object),
        }
    }
}

/// A path for people; the tree of roots has none.
fn shown(path: &[u8]) -> String {
    match path {
        b"" => "all of it".into(),
        path => escape(path),
    }
}
