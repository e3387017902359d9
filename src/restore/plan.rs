//! Going through a tree: what becomes of each entry, in which order.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::content::write_content;
use super::delete::others;
use super::window::Window;
use super::{Context, Overwrite, Restored, incomplete};
use crate::error::{Error, Result};
use crate::format::map::{Extent, Map};
use crate::format::tree::{Entry, Payload};
use crate::nested::Nested;
use crate::observe::Event;
use crate::repo::nodes::Entries;
use crate::source::path_of;
use crate::target::{
    Content, Existing, FileOptions, FileTarget, Found, Identity, Kind, TargetDir, make_hard_link, write_whole,
};

/// Files up to this length without holes may be written in one go.
const SMALL_MAX: u64 = 2 << 20;

/// Restores what is below a directory into `root`, and the directory's own metadata.
pub fn restore_tree(context: &Context, entry: &Entry, root: Arc<TargetDir>) -> Result<Restored> {
    let mut tree = TreeRestore::new(context, Arc::clone(&root))?;
    root.make_writable();
    tree.tree(entry.clone(), Place { dir: Some(root), path: Nested::root(b"") })?;
    tree.flush()?;
    Ok(tree.restored)
}

/// Restores one file, volume, stream or node.
pub fn restore_single(context: &Context, entry: &Entry, dir: Arc<TargetDir>) -> Result<Restored> {
    let mut tree = TreeRestore::new(context, Arc::clone(&dir))?;
    let mut place = Place { dir: Some(dir), path: Nested::root(b"") };
    tree.entry(entry.clone(), &mut place)?;
    tree.flush()?;
    Ok(tree.restored)
}

/// Counts what would be restored, and tells what would be removed.
pub fn count(context: &Context, entry: &Entry, target: &Path) -> Result<Restored> {
    let mut restored = Restored::default();
    let mut pending = vec![(Vec::new(), entry.clone())];
    while let Some((path, entry)) = pending.pop() {
        let Some(dir) = entry.dir() else { continue };
        let mut names = Vec::new();
        for child in Entries::of(context.catalog, dir) {
            let child = child?;
            let path = joined(&path, &child.name);
            let is_dir = child.dir().is_some();
            let excluded = context.filter.excludes(&path, is_dir);
            if context.options.delete {
                names.push(child.name.clone());
            }
            if !is_dir && !excluded && context.filter.includes(&path, false) {
                restored.files += 1;
                restored.bytes = restored.bytes.saturating_add(child.size());
            } else if is_dir && !excluded {
                pending.push((path, child));
            }
        }
        if path.is_empty() || context.filter.includes(&path, true) {
            restored.dirs += 1;
            count_others(context, target, &path, &names, &mut restored);
        }
    }
    Ok(restored)
}

/// What would be removed from a directory of the target, if it is there.
fn count_others(context: &Context, target: &Path, path: &[u8], names: &[Vec<u8>], restored: &mut Restored) {
    if !context.options.delete || !target.is_dir() {
        return;
    }
    let found = TargetDir::open_root(target)
        .and_then(|root| self::names(path).try_fold(root, |dir, name| dir.open_dir(name)));
    let Ok(dir) = found else { return };
    match others(context, &dir, names, path) {
        Ok(others) => {
            restored.deleted += others.len() as u64;
            for name in others {
                let path = dir.path_of(&name);
                context.observer.event(Event::Notice(format!("{} would be removed", path.display())));
            }
        }
        Err(e) => context.problem(dir.path(), &e, restored),
    }
}

/// A directory of the target. It is only made when something is to be put into it.
struct Place {
    dir: Option<Arc<TargetDir>>,
    /// Below the root.
    path: Nested,
}

/// A directory that is being gone through.
struct Open<'a> {
    entry: Entry,
    place: Place,
    entries: Entries<'a>,
    /// What the snapshot has there, if what it does not have is to be removed; `None` too where that is
    /// not known any more.
    names: Option<Vec<Vec<u8>>>,
}

/// The first name of a file with several.
struct FirstName {
    path: Vec<u8>,
    /// Names still to come; with none left the file can be forgotten.
    left: u64,
}

/// A hard link that is made when its file is there.
struct Link {
    /// The path of the first name below the root.
    first: Vec<u8>,
    /// Whether the file is a node, which may not be allowed here.
    is_node: bool,
    dir: Arc<TargetDir>,
    name: Vec<u8>,
    existing: Existing,
}

struct TreeRestore<'a> {
    context: &'a Context<'a>,
    root: Arc<TargetDir>,
    window: Window,
    /// Directories that get their metadata once the window is written, children first.
    left: Vec<(Arc<TargetDir>, Entry)>,
    /// Hard links to be made once the window is written.
    links: Vec<Link>,
    first_names: HashMap<(u64, u64), FirstName>,
    /// Files with several names that are written in place.
    in_place: HashSet<Identity>,
    restored: Restored,
}

impl<'a> TreeRestore<'a> {
    fn new(context: &'a Context<'a>, root: Arc<TargetDir>) -> Result<Self> {
        Ok(Self {
            context,
            root,
            window: Window::default(),
            left: Vec::new(),
            links: Vec::new(),
            first_names: HashMap::new(),
            in_place: HashSet::new(),
            restored: Restored::default(),
        })
    }

    /// Writes the window, then what had to wait for it.
    fn flush(&mut self) -> Result<()> {
        self.context.stop.check()?;
        std::mem::take(&mut self.window).write(self.context)?.note(self.context, &mut self.restored);
        for link in std::mem::take(&mut self.links) {
            if let Err(e) = self.link(&link) {
                self.problem(&link.dir, &link.name, &e);
            }
        }
        for (dir, entry) in std::mem::take(&mut self.left) {
            if let Err(e) = self.context.metadata.apply_to_dir(&dir, &entry) {
                self.context.problem(dir.path(), &e, &mut self.restored);
            }
        }
        Ok(())
    }

    fn problem(&mut self, dir: &TargetDir, name: &[u8], error: &Error) {
        self.context.problem(dir.path_of(name), error, &mut self.restored);
    }

    fn link(&mut self, link: &Link) -> Result<()> {
        let mut names: Vec<&[u8]> = names(&link.first).collect();
        let Some(name) = names.pop() else { return Ok(()) };
        let mut from = Arc::clone(&self.root);
        for folder in names {
            from = Arc::new(from.open_dir(folder)?);
        }
        if link.is_node && from.look(name)?.is_none() {
            self.context.metadata.count_node(&link.dir.path_of(&link.name));
            return Ok(());
        }
        make_hard_link(&from, name, &link.dir, &link.name, link.existing)?;
        self.restored.files += 1;
        Ok(())
    }

    /// The place's directory, made if it is not there yet, with those above it.
    fn made(&mut self, place: &mut Place) -> Result<Arc<TargetDir>> {
        if let Some(dir) = &place.dir {
            return Ok(Arc::clone(dir));
        }
        let mut dir = Arc::clone(&self.root);
        for name in names(&place.path.whole()) {
            dir = Arc::new(dir.mkdir(name)?);
        }
        place.dir = Some(Arc::clone(&dir));
        Ok(dir)
    }

    /// Everything below a directory, then the directory's metadata; the same for each one below it.
    fn tree(&mut self, entry: Entry, place: Place) -> Result<()> {
        let mut open: Vec<Open<'a>> = self.open(entry, place).into_iter().collect();
        while let Some(dir) = open.last_mut() {
            let below = match dir.entries.next() {
                Some(Ok(child)) => {
                    if let Some(names) = &mut dir.names {
                        names.push(child.name.clone());
                    }
                    self.child(child, &mut dir.place)?
                }
                Some(Err(e)) if e.is_damage() => {
                    let path = self.root.path().join(path_of(&dir.place.path.whole()));
                    self.context.problem(path, &e, &mut self.restored);
                    dir.names = None;
                    None
                }
                Some(Err(e)) => return Err(e),
                None => {
                    if let Some(done) = open.pop() {
                        self.leave(done)?;
                    }
                    None
                }
            };
            open.extend(below);
            if self.window.is_full() {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn open(&self, entry: Entry, place: Place) -> Option<Open<'a>> {
        let entries = Entries::of(self.context.catalog, entry.dir()?);
        let existed = place.dir.as_ref().is_some_and(|dir| !dir.was_created());
        let names = (existed && self.context.options.delete).then(Vec::new);
        Some(Open { entry, place, entries, names })
    }

    fn leave(&mut self, done: Open) -> Result<()> {
        let Open { entry, place, names, .. } = done;
        let Some(target) = place.dir else { return Ok(()) };
        if let Some(names) = names {
            self.delete_others(&target, &names, &place.path.whole())?;
        }
        self.restored.dirs += 1;
        self.window.hold_open();
        self.left.push((target, entry));
        Ok(())
    }

    /// One of a directory's entries; if that is a directory itself, what is to be gone through next.
    fn child(&mut self, child: Entry, place: &mut Place) -> Result<Option<Open<'a>>> {
        let is_dir = child.dir().is_some();
        let Some(included) = self.includes(place, &child.name, is_dir) else { return Ok(None) };
        if is_dir {
            let mut below = Place { dir: None, path: place.path.child(&child.name) };
            if included {
                let parent = self.made(place)?;
                match self.enter(&parent, &child) {
                    Ok(dir) => below.dir = Some(dir),
                    Err(e) => {
                        self.problem(&parent, &child.name, &e);
                        return Ok(None);
                    }
                }
            }
            return Ok(self.open(child, below));
        }
        if included {
            self.entry(child, place)?;
        }
        Ok(None)
    }

    /// Whether an entry is wanted; `None` if nothing below it is either.
    fn includes(&self, place: &Place, name: &[u8], is_dir: bool) -> Option<bool> {
        let filter = &self.context.filter;
        if filter.takes_all() {
            return Some(true);
        }
        let path = place.path.child(name).whole();
        (!filter.excludes(&path, is_dir)).then(|| filter.includes(&path, is_dir))
    }

    /// Opens or makes a directory; something else of that name makes room if that was asked for.
    fn enter(&mut self, parent: &Arc<TargetDir>, entry: &Entry) -> Result<Arc<TargetDir>> {
        let found = match parent.was_created() {
            true => None,
            false => parent.look(&entry.name)?,
        };
        if let Some(found) = found
            && found.kind != Kind::Dir
        {
            if !self.replaces(entry, &found) {
                return Err(Error::Refused("something else has that name".into()));
            }
            parent.remove(&entry.name, self.context.repository)?;
        }
        let dir = parent.mkdir(&entry.name)?;
        if !dir.was_created() && Some(dir.identity()?) == self.context.repository {
            return Err(Error::Refused("it is the repository: nothing is restored into it".into()));
        }
        dir.make_writable();
        Ok(Arc::new(dir))
    }

    /// Anything but a directory.
    fn entry(&mut self, entry: Entry, place: &mut Place) -> Result<()> {
        let dir = self.made(place)?;
        let existing = match self.existing(&dir, &entry) {
            Ok(Some(existing)) => existing,
            Ok(None) => {
                self.restored.skipped += 1;
                return Ok(());
            }
            Err(e) => {
                self.problem(&dir, &entry.name, &e);
                return Ok(());
            }
        };
        if let Some(first) = self.first_name(&entry, place) {
            self.window.hold_open();
            let is_node = entry.map().is_none();
            self.links.push(Link { first, is_node, dir, name: entry.name, existing });
            return Ok(());
        }
        self.restored.bytes = self.restored.bytes.saturating_add(entry.size());
        let done = match &entry.payload {
            Payload::File(map) | Payload::Volume(map) | Payload::Stream(map) => {
                let map = map.clone();
                self.content(&dir, &entry, existing, &map)
            }
            _ => self.context.metadata.make_node(&dir, existing, &entry).map(|made| {
                self.restored.files += u64::from(made);
            }),
        };
        match done {
            Err(e @ (Error::Stopped(_) | Error::Internal(_) | Error::Index { .. })) => Err(e),
            Err(e) => {
                self.problem(&dir, &entry.name, &e);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// What becomes of what has the name; `None` if it stays.
    fn existing(&mut self, dir: &TargetDir, entry: &Entry) -> Result<Option<Existing>> {
        if dir.was_created() {
            return Ok(Some(Existing::Refuse));
        }
        let Some(found) = dir.look(&entry.name)? else { return Ok(Some(Existing::Refuse)) };
        if !self.replaces(entry, &found) {
            return Ok(None);
        }
        if found.kind == Kind::Dir {
            dir.remove(&entry.name, self.context.repository)?;
            return Ok(Some(Existing::Refuse));
        }
        let in_place = self.context.options.in_place && self.is_alone(entry, &found);
        Ok(Some(if in_place { Existing::InPlace } else { Existing::Replace }))
    }

    /// Whether what is written to a file shows under no name that is another file's in the
    /// snapshot, as far as its number of names tells.
    fn is_alone(&mut self, entry: &Entry, found: &Found) -> bool {
        let names = entry.links.map_or(1, |links| links.count);
        found.links == 1 || (found.links <= names && self.in_place.insert(found.identity))
    }

    fn replaces(&self, entry: &Entry, found: &Found) -> bool {
        let same_kind = (found.kind == Kind::Dir) == entry.dir().is_some();
        match self.context.options.overwrite {
            Overwrite::Always => true,
            Overwrite::Refuse => self.context.options.in_place,
            Overwrite::Never => false,
            Overwrite::IfNewer => entry.modified > found.modified,
            Overwrite::IfChanged => {
                !same_kind || found.size != entry.size() || found.modified != entry.modified
            }
        }
    }

    /// The first name of the same file, if this is not it.
    fn first_name(&mut self, entry: &Entry, place: &Place) -> Option<Vec<u8>> {
        let links = entry.links?;
        let key = (links.device, entry.inode);
        if let Some(first) = self.first_names.get_mut(&key) {
            let path = first.path.clone();
            first.left = first.left.saturating_sub(1);
            if first.left == 0 {
                self.first_names.remove(&key);
            }
            return Some(path);
        }
        let path = place.path.child(&entry.name).whole();
        self.first_names.insert(key, FirstName { path, left: links.count.saturating_sub(1) });
        None
    }

    fn content(&mut self, dir: &Arc<TargetDir>, entry: &Entry, existing: Existing, map: &Map) -> Result<()> {
        let context = self.context;
        let whole = |extents: &[Extent]| {
            entry.size() <= SMALL_MAX && extents.iter().all(|e| matches!(e, Extent::Data { .. }))
        };
        if let Map::Inline(extents) = map
            && whole(extents)
        {
            if extents.is_empty() {
                let counts = write_whole(dir, &[], existing, context.metadata, entry)?;
                self.restored.files += 1;
                self.restored.add_counts(counts);
                return Ok(());
            }
            self.window.small(Arc::clone(dir), entry.clone(), existing, extents);
            return Ok(());
        }
        self.large(dir, entry, existing, map)
    }

    /// A file that is opened here and written window by window.
    fn large(&mut self, dir: &Arc<TargetDir>, entry: &Entry, existing: Existing, map: &Map) -> Result<()> {
        let options = FileOptions {
            size: map.len(),
            sparse: self.context.options.sparse,
            existing,
            ..FileOptions::default()
        };
        let target = Arc::new(FileTarget::create(dir, &entry.name, &options)?);
        let path = dir.path_of(&entry.name);
        let errors = self.restored.errors;
        let content = Arc::clone(&target) as Arc<dyn Content + Send>;
        write_content(self.context, map, &content, &path, &mut self.restored)?;
        drop(content);
        if self.restored.errors > errors && existing == Existing::Replace {
            // What is there is better than what could be put in its place.
            return Ok(());
        }
        match self.restored.errors > errors {
            true => target.set_metadata(self.context.metadata, &incomplete(entry))?,
            false => target.set_metadata(self.context.metadata, entry)?,
        }
        let allocated = target.allocated()?;
        let target = Arc::into_inner(target).ok_or(Error::Internal("a file is still in use"))?;
        let counts = target.finish()?;
        self.restored.add_counts(counts);
        let (sum, needed) = self.restored.allocated.unwrap_or_default();
        self.restored.allocated = Some((sum + allocated, needed + map.data_len()));
        self.restored.files += u64::from(self.restored.errors == errors);
        Ok(())
    }

    /// Removes what the snapshot does not have, within the selection only.
    fn delete_others(&mut self, dir: &TargetDir, names: &[Vec<u8>], path: &[u8]) -> Result<()> {
        let context = self.context;
        let others = match others(context, dir, names, path) {
            Ok(others) => others,
            Err(e @ Error::Refused(_)) => {
                context.problem(dir.path(), &e, &mut self.restored);
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        for name in others {
            match dir.remove(&name, context.repository) {
                Ok(()) => self.restored.deleted += 1,
                Err(e) => self.problem(dir, &name, &e),
            }
        }
        Ok(())
    }
}

/// The path of a name below a path, which is empty for the root.
pub fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// The names of a path that [`joined`] made.
fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
}
