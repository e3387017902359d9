//! What differs between two trees: a streaming walk of both in step.
//!
//! Directories are passed over if their content hashes are equal, and nodes of large directories
//! if both sides have them, so that the cost follows what differs. A path holds one node of each
//! level of each directory on it, on both sides.

use std::cmp::Ordering;

use super::ranges::{Ranges, differing};
use crate::error::Result;
use crate::format::hashtree::Root;
use crate::format::tree::{self, Dir, Entry, Payload};
use crate::id::ChunkId;
use crate::observe::Stop;
use crate::repo::catalog::Catalog;
use crate::repo::nodes::push_name;

/// In what two entries of one path differ. Inodes and times of change do not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Aspects {
    /// What kind of thing it is.
    pub kind: bool,
    /// Its bytes; where a symlink points; a device's number.
    pub content: bool,
    /// Only which of its zeros are holes.
    pub holes: bool,
    /// Mode, owner, time of modification or extended attributes.
    pub metadata: bool,
}

impl Aspects {
    /// Whether they differ at all.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// A word for each.
    pub fn words(&self) -> Vec<&'static str> {
        let all = [
            (self.kind, "kind"),
            (self.content, "content"),
            (self.holes, "holes"),
            (self.metadata, "metadata"),
        ];
        all.into_iter().filter(|(is, _)| *is).map(|(_, word)| word).collect()
    }
}

/// What became of a path.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Only the later tree has it.
    New(Entry),
    /// Only the earlier tree has it.
    Deleted(Entry),
    /// Both have it, and differ.
    Changed {
        /// As it was.
        before: Box<Entry>,
        /// As it is.
        after: Box<Entry>,
        /// In what they differ.
        aspects: Aspects,
        /// Where their contents differ, if both have one.
        ranges: Option<Ranges>,
    },
}

/// One side of a comparison.
#[derive(Debug, Clone)]
pub enum Side {
    /// There is nothing.
    Nothing,
    /// An entry of a snapshot.
    Entry(Entry),
    /// All roots of a snapshot.
    Roots(Option<Root<ChunkId>>),
}

/// What is called with each path that differs.
pub type Each<'a> = dyn FnMut(&[u8], Change) -> Result<()> + 'a;

/// Calls `each` with all that differs at and below `path`, in the order of the trees. All of a
/// directory that only one side has is called for.
pub fn diff(
    catalog: &Catalog,
    path: &[u8],
    before: Side,
    after: Side,
    stop: &Stop,
    each: &mut Each,
) -> Result<()> {
    let mut diff = Diff { catalog, stop, path: path.to_vec(), open: Vec::new() };
    match (before, after) {
        (Side::Roots(before), Side::Roots(after)) => {
            let [before, after] = [before, after].map(|root| Cursor::new(root, true));
            diff.open.push(Open { path_len: path.len(), before, after });
        }
        (before, after) => diff.pair(before.entry(), after.entry(), each)?,
    }
    diff.run(each)
}

/// In what two entries differ, and where their contents do. Directories differ in content if
/// anything below them does.
pub fn compare(
    catalog: &Catalog,
    before: &Entry,
    after: &Entry,
    stop: &Stop,
) -> Result<(Aspects, Option<Ranges>)> {
    let mut aspects = compare_metadata(before, after);
    let mut ranges = None;
    match (before.map(), after.map()) {
        (Some(old), Some(new)) if old != new => {
            let found = differing(catalog, old, new, stop)?;
            aspects.content = found.bytes > 0;
            aspects.holes = found.bytes == 0;
            ranges = Some(found);
        }
        _ => {}
    }
    if let (Payload::Dir(old), Payload::Dir(new)) = (&before.payload, &after.payload) {
        aspects.content = old.content != new.content;
    }
    Ok((aspects, ranges))
}

/// In what two entries differ, as far as the entries themselves say: bytes and what is in
/// directories are not compared.
pub fn compare_metadata(before: &Entry, after: &Entry) -> Aspects {
    let has_content = |entry: &Entry| entry.map().is_some() || entry.dir().is_some();
    let kind = before.kind() != after.kind();
    Aspects {
        kind,
        content: kind || !has_content(before) && before.payload != after.payload,
        holes: false,
        metadata: before.mode != after.mode
            || before.owner != after.owner
            || before.modified != after.modified
            || before.xattrs != after.xattrs,
    }
}

impl Side {
    fn entry(self) -> Option<Entry> {
        match self {
            Side::Entry(entry) => Some(entry),
            Side::Nothing | Side::Roots(_) => None,
        }
    }
}

struct Diff<'a> {
    catalog: &'a Catalog,
    stop: &'a Stop,
    /// Where we are, …
    path: Vec<u8>,
    /// … and the directories on the way there.
    open: Vec<Open>,
}

/// A directory that one or both have.
struct Open {
    path_len: usize,
    before: Cursor,
    after: Cursor,
}

impl Diff<'_> {
    fn run(&mut self, each: &mut Each) -> Result<()> {
        while let Some(open) = self.open.last_mut() {
            self.stop.check()?;
            self.path.truncate(open.path_len);
            match next_pair(self.catalog, &mut open.before, &mut open.after)? {
                None => drop(self.open.pop()),
                Some((None, None)) => {}
                Some((before, after)) => {
                    let name = before.as_ref().or(after.as_ref()).map(|entry| entry.name.as_slice());
                    push_name(&mut self.path, name.unwrap_or_default());
                    self.pair(before, after, each)?;
                }
            }
        }
        Ok(())
    }

    /// What the two have under the path where we are.
    fn pair(&mut self, before: Option<Entry>, after: Option<Entry>, each: &mut Each) -> Result<()> {
        let dir = |entry: &Option<Entry>| entry.as_ref().and_then(Entry::dir).cloned();
        let dirs = (dir(&before), dir(&after));
        match (before, after) {
            (None, None) => {}
            (Some(entry), None) => each(&self.path, Change::Deleted(entry))?,
            (None, Some(entry)) => each(&self.path, Change::New(entry))?,
            (Some(before), Some(after)) => {
                let (mut aspects, ranges) = compare(self.catalog, &before, &after, self.stop)?;
                // What differs below a directory is called for itself.
                aspects.content &= dirs.0.is_none() || dirs.1.is_none();
                if aspects.any() {
                    let (before, after) = (Box::new(before), Box::new(after));
                    each(&self.path, Change::Changed { before, after, aspects, ranges })?;
                }
            }
        }
        self.enter(dirs);
        Ok(())
    }

    fn enter(&mut self, dirs: (Option<Dir>, Option<Dir>)) {
        if let (Some(before), Some(after)) = &dirs
            && before.content == after.content
        {
            return;
        }
        let cursor = |dir: Option<Dir>| Cursor::new(dir.and_then(|dir| dir.root), false);
        let (before, after) = (cursor(dirs.0), cursor(dirs.1));
        if !before.is_done() || !after.is_done() {
            self.open.push(Open { path_len: self.path.len(), before, after });
        }
    }
}

/// An entry of one side, or those of one name of both; of neither, if what was passed is the same.
type Pair = (Option<Entry>, Option<Entry>);

/// A tree of entries, as far as it was not passed.
struct Cursor {
    roots: bool,
    /// Nodes to be read, the next one last, with their first names if these are known.
    pending: Vec<(Root<ChunkId>, Option<Vec<u8>>)>,
    leaf: std::iter::Peekable<std::vec::IntoIter<Entry>>,
}

impl Cursor {
    fn new(root: Option<Root<ChunkId>>, roots: bool) -> Self {
        let pending = root.into_iter().map(|root| (root, None)).collect();
        Self { roots, pending, leaf: Vec::new().into_iter().peekable() }
    }

    fn is_done(&self) -> bool {
        self.pending.is_empty() && self.leaf.len() == 0
    }

    /// The node that comes next, if no entry does.
    fn node(&mut self) -> Option<&(Root<ChunkId>, Option<Vec<u8>>)> {
        match self.leaf.peek() {
            Some(_) => None,
            None => self.pending.last(),
        }
    }

    fn expand(&mut self, catalog: &Catalog) -> Result<()> {
        let Some((node, _)) = self.pending.pop() else { return Ok(()) };
        match catalog.tree_node(&node, self.roots)? {
            tree::Node::Leaf(entries) => self.leaf = entries.into_iter().peekable(),
            tree::Node::Inner(children) => {
                let level = node.level.saturating_sub(1);
                let below = children.into_iter().rev();
                self.pending.extend(below.map(|child| (Root { level, node: child.id }, Some(child.first))));
            }
        }
        Ok(())
    }
}

/// `None` if there is no more.
fn next_pair(catalog: &Catalog, before: &mut Cursor, after: &mut Cursor) -> Result<Option<Pair>> {
    match (before.node(), after.node()) {
        (Some((a, _)), Some((b, _))) => match a.level.cmp(&b.level) {
            Ordering::Equal if a.node == b.node => {
                before.pending.pop();
                after.pending.pop();
            }
            Ordering::Less => after.expand(catalog)?,
            Ordering::Equal | Ordering::Greater => before.expand(catalog)?,
        },
        // An entry before all that a node holds need not wait for it to be read.
        (Some((_, first)), None) => match after.leaf.next_if(|entry| is_before(entry, first)) {
            Some(entry) => return Ok(Some((None, Some(entry)))),
            None => before.expand(catalog)?,
        },
        (None, Some((_, first))) => match before.leaf.next_if(|entry| is_before(entry, first)) {
            Some(entry) => return Ok(Some((Some(entry), None))),
            None => after.expand(catalog)?,
        },
        (None, None) => return Ok(next_entries(before, after)),
    }
    Ok(Some((None, None)))
}

fn is_before(entry: &Entry, first: &Option<Vec<u8>>) -> bool {
    first.as_ref().is_some_and(|first| entry.name < *first)
}

fn next_entries(before: &mut Cursor, after: &mut Cursor) -> Option<Pair> {
    let order = match (before.leaf.peek(), after.leaf.peek()) {
        (None, None) => return None,
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (Some(a), Some(b)) => a.name.cmp(&b.name),
    };
    let before = if order.is_le() { before.leaf.next() } else { None };
    let after = if order.is_ge() { after.leaf.next() } else { None };
    Some((before, after))
}
