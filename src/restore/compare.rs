//! A live source against a snapshot: both trees are walked in step, and contents are compared
//! some files at a time.

mod contents;

use std::cmp::Ordering;
use std::iter::Peekable;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use rustix::fs::{AtFlags, CWD, FileType, Stat, stat, statat};
use serde::Serialize;

use super::{Context, Reading, Restored};
use crate::error::{Error, IoContext, Result};
use crate::format::map::{Extent, Map};
use crate::format::tree::{Dir, Entry, Payload};
use crate::history::diff::{Change, Each, Side, compare_metadata, diff};
use crate::id::ChunkId;
use crate::nested::Nested;
use crate::observe::{Event, Observer, Stop};
use crate::repo::Repo;
use crate::repo::catalog::Catalog;
use crate::repo::nodes::Entries;
use crate::source::exclude::{ExcludeOptions, Excludes, SourceExcludes};
use crate::source::extents::device_len;
use crate::source::owners::Owners;
use crate::source::walk::{Listed, Listing, THREADS_DEFAULT, Walker};
use crate::source::{metadata, path_of};
use contents::{Check, Place, full, hashed};

/// Contents that are compared together; each is open meanwhile.
const FILES_MAX: usize = 400;
/// Paths that wait to be reported until the contents before them were compared.
const WAITING_MAX: usize = 4096;
/// The length of those paths, which may be nested deeply: each is in memory several times.
const PATHS_LEN_MAX: usize = 4 << 20;

/// How thoroughly to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Kind, size, mode, owner, time of modification and attributes.
    Metadata,
    /// Also the bytes of the source, by the ids of chunks; the repository's data is not read.
    Hash,
    /// Also the bytes, with those in the repository.
    Full,
}

/// What a comparison came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Paths that both have.
    #[serde(rename = "paths_compared")]
    pub paths: u64,
    /// Files and volumes whose content was compared, …
    #[serde(rename = "files_compared")]
    pub files: u64,
    /// … and their length.
    #[serde(rename = "bytes_compared")]
    pub bytes: u64,
    /// Paths that could not be compared.
    pub errors: u64,
    /// Whether bytes in the repository were the reason.
    #[serde(skip)]
    pub damage: bool,
}

/// What is compared with a snapshot.
#[derive(Debug, Clone)]
pub struct Live<'a> {
    /// What the snapshot has of it, …
    pub entry: &'a Entry,
    /// … and its whole path there.
    pub path: &'a [u8],
    /// Where it is.
    pub source: &'a Path,
    /// Whether that may be a symlink to what is meant.
    pub follow: bool,
    /// What of it does not count.
    pub excludes: &'a ExcludeOptions,
}

/// Compares a source with its entry in a snapshot; calls `each` with what differs, as a change
/// from the snapshot to the source.
pub fn compare(
    repo: &Repo,
    catalog: &Catalog,
    live: &Live,
    method: Method,
    observer: &dyn Observer,
    stop: &Stop,
    each: &mut Each,
) -> Result<Compared> {
    let Live { entry, path, source, follow, excludes } = *live;
    let reading = Reading::default();
    let context = reading.context(repo, catalog, observer, stop);
    let bytes = entry.dir().map_or(entry.size(), |dir| dir.bytes);
    let bytes = (method != Method::Metadata).then_some(bytes);
    observer.event(Event::Phase { name: "comparing", bytes });
    let excludes = Excludes::new(excludes, &[source.to_path_buf()])?;
    let filter = excludes.below(source)?;
    let found = match follow {
        true => stat(source),
        false => statat(CWD, source, AtFlags::SYMLINK_NOFOLLOW),
    };
    let found = found.at("find", source)?;
    let mut comparison = Comparison {
        context: &context,
        filter: &filter,
        root: path,
        method,
        owners: Owners::of_system(),
        waiting: Vec::new(),
        checks: 0,
        paths_len: 0,
        restored: Restored::default(),
        compared: Compared::default(),
        each,
    };
    let place = Place { dir: None, path: source.to_path_buf(), follow };
    thread::scope(|scope| {
        let walker = Walker::new(scope, source, THREADS_DEFAULT, &filter);
        let listing = match metadata::kind(&found) {
            FileType::Directory => Some(walker.take(walker.root())?),
            _ => None,
        };
        comparison.tree(&walker, path, entry, &found, listing, place)
    })?;
    comparison.flush()?;
    let Comparison { restored, mut compared, .. } = comparison;
    compared.errors = restored.errors;
    compared.damage = restored.damage;
    Ok(compared)
}

/// A path that may differ.
struct Waiting {
    path: Vec<u8>,
    change: Change,
    /// Where the content is that is still to be compared.
    check: Option<Place>,
}

struct Comparison<'a, 'e> {
    context: &'a Context<'a>,
    filter: &'a SourceExcludes<'a>,
    /// The path of what is compared.
    root: &'a [u8],
    method: Method,
    owners: Owners,
    waiting: Vec<Waiting>,
    checks: usize,
    paths_len: usize,
    restored: Restored,
    compared: Compared,
    each: &'a mut Each<'e>,
}

/// A directory that both or only the source has.
struct Open<'c> {
    path: Nested,
    place: Nested,
    dir: Arc<OwnedFd>,
    live: Peekable<std::vec::IntoIter<Listed>>,
    before: Peekable<Box<dyn Iterator<Item = Result<Entry>> + 'c>>,
    /// Whether the source has more there, which is left out.
    is_partial: bool,
}

impl<'a> Comparison<'a, '_> {
    fn tree(
        &mut self,
        walker: &Walker,
        path: &[u8],
        entry: &Entry,
        found: &Stat,
        listing: Option<Listing>,
        place: Place,
    ) -> Result<()> {
        let mut stack: Vec<Open<'a>> = Vec::new();
        let at = Nested::root(place.path.as_os_str().as_encoded_bytes());
        self.pair(path, Some(entry.clone()), found, place)?;
        self.enter(&mut stack, Nested::root(path), Some(entry), listing, at)?;
        while let Some(open) = stack.last_mut() {
            self.context.stop.check()?;
            let order = match (open.live.peek(), open.before.peek()) {
                (None, None) => {
                    stack.pop();
                    continue;
                }
                (Some(_), None) => Ordering::Less,
                (_, Some(Err(_))) => Ordering::Greater,
                (None, Some(Ok(_))) => Ordering::Greater,
                (Some(live), Some(Ok(before))) => live.name.cmp(&before.name),
            };
            let before = if order.is_ge() { open.before.next() } else { None };
            let live = if order.is_le() { open.live.next() } else { None };
            let before = match before.transpose() {
                Ok(before) => before,
                Err(error) => {
                    // What the snapshot has from here on is not known, so that nothing is new.
                    let place = open.place.whole();
                    self.problem(path_of(&place), error)?;
                    stack.pop();
                    continue;
                }
            };
            match live {
                Some(live) => self.live(walker, &mut stack, live, before)?,
                None if open.is_partial => {}
                None => self.gone(&open.path.clone(), before)?,
            }
        }
        Ok(())
    }

    /// An entry of the source, and what the snapshot has under its name.
    fn live(
        &mut self,
        walker: &Walker,
        stack: &mut Vec<Open<'a>>,
        live: Listed,
        before: Option<Entry>,
    ) -> Result<()> {
        let Some(open) = stack.last() else { return Ok(()) };
        let (path, at) = (open.path.child(&live.name), open.place.child(&live.name));
        let place = Place {
            dir: Some(Arc::clone(&open.dir)),
            path: path_of(&at.whole()).to_path_buf(),
            follow: false,
        };
        let found = match live.stat {
            Ok(found) => found,
            Err(error) => return self.problem(&place.path, error),
        };
        let listing = match live.subdir.map(|handle| walker.take(handle)).transpose() {
            Ok(listing) => listing,
            Err(error) => return self.problem(&place.path, error),
        };
        self.pair(&path.whole(), before.clone(), &found, place)?;
        self.enter(stack, path, before.as_ref(), listing, at)
    }

    /// Only the snapshot has it; what would be left out now is not asked for.
    fn gone(&mut self, above: &Nested, before: Option<Entry>) -> Result<()> {
        let Some(before) = before else { return Ok(()) };
        let path = above.child(&before.name).whole();
        let (catalog, stop) = (self.context.catalog, self.context.stop);
        let (filter, root) = (self.filter, self.root.len());
        diff(catalog, &path, Side::Entry(before), Side::Nothing, stop, &mut |path, change| {
            let Change::Deleted(entry) = &change else { return Err(Error::Internal("nothing was deleted")) };
            let below = path.get(root..).unwrap_or_default();
            let below = below.strip_prefix(b"/").unwrap_or(below);
            if filter.would_exclude(below, entry.dir().is_some(), entry.size()) {
                return Ok(());
            }
            self.wait(Waiting { path: path.to_vec(), change, check: None })
        })
    }

    fn enter(
        &mut self,
        stack: &mut Vec<Open<'a>>,
        path: Nested,
        before: Option<&Entry>,
        listing: Option<Listing>,
        place: Nested,
    ) -> Result<()> {
        let dir = before.and_then(Entry::dir);
        let catalog = self.context.catalog;
        match (dir, listing) {
            (dir, Some(listing)) => {
                let before: Box<dyn Iterator<Item = Result<Entry>> + 'a> = match dir {
                    Some(dir) => Box::new(Entries::of(catalog, dir)),
                    None => Box::new(std::iter::empty()),
                };
                let is_partial = listing.left_out.is_some();
                let live = listing.entries.into_iter().peekable();
                let before = before.peekable();
                stack.push(Open { path, place, dir: listing.dir, live, before, is_partial });
            }
            (Some(dir), None) => {
                for child in Entries::of(catalog, dir) {
                    self.gone(&path, Some(child?))?;
                }
            }
            (None, None) => {}
        }
        Ok(())
    }

    fn pair(&mut self, path: &[u8], before: Option<Entry>, found: &Stat, place: Place) -> Result<()> {
        let after = match self.entry(before.as_ref(), found, &place) {
            Ok(after) => after,
            Err(error) => return self.problem(&place.path, error),
        };
        let Some(before) = before else {
            return self.wait(Waiting { path: path.to_vec(), change: Change::New(after), check: None });
        };
        self.compared.paths += 1;
        let mut aspects = compare_metadata(&before, &after);
        if matches!(before.payload, Payload::Volume(_)) {
            // The node of a device is touched by whoever writes to it.
            aspects.metadata = before.mode != after.mode || before.owner != after.owner;
        }
        let both = before.map().is_some() && after.map().is_some();
        let same_len = both && before.size() == after.size();
        aspects.content |= both && !same_len;
        let check = (same_len && before.size() > 0 && self.method != Method::Metadata).then_some(place);
        if !aspects.any() && check.is_none() {
            return Ok(());
        }
        let (before, after) = (Box::new(before), Box::new(after));
        let change = Change::Changed { before, after, aspects, ranges: None };
        self.wait(Waiting { path: path.to_vec(), change, check })
    }

    /// What the source has, as an entry; a content is as long as it should be, and nothing else.
    fn entry(&self, before: Option<&Entry>, found: &Stat, place: &Place) -> Result<Entry> {
        let is_volume = before.is_some_and(|before| matches!(before.payload, Payload::Volume(_)));
        let content = |len: u64| match len {
            0 => Map::default(),
            len => Map::Inline(vec![Extent::Zero { len }]),
        };
        let name = place.name().as_os_str().as_encoded_bytes();
        let payload = match metadata::kind(found) {
            FileType::RegularFile => Payload::File(content(found.st_size as u64)),
            FileType::Directory => Payload::Dir(Dir {
                root: None,
                entries: 0,
                files: 0,
                bytes: 0,
                content: ChunkId([0; ChunkId::LEN]),
            }),
            FileType::BlockDevice if is_volume => {
                let len = device_len(&place.open()?).at("find the length of", &place.path)?;
                Payload::Volume(content(len))
            }
            _ => {
                let payload = match &place.dir {
                    Some(dir) => metadata::payload_without_content(dir, name, found),
                    None => metadata::payload_without_content(CWD, name, found),
                };
                let payload = payload.at("read", &place.path)?;
                payload.ok_or_else(|| Error::NotFound("it is of a kind that Linux does not have".into()))?
            }
        };
        let xattrs = match before {
            Some(before) if is_volume || metadata::unchanged(found, before) => before.xattrs.clone(),
            Some(_) => self.xattrs(place, metadata::kind(found))?,
            None => Vec::new(),
        };
        let name = before.map_or(name, |before| &before.name).to_vec();
        Ok(metadata::entry(name, found, &self.owners, xattrs, payload))
    }

    fn xattrs(&self, place: &Place, kind: FileType) -> Result<Vec<crate::format::tree::Xattr>> {
        let name = place.name().as_os_str().as_encoded_bytes();
        let xattrs = match (&place.dir, kind) {
            (Some(dir), _) => metadata::xattrs_of_path(dir, name),
            (None, FileType::RegularFile | FileType::Directory) => {
                place.open().map_or(Ok(Vec::new()), metadata::xattrs_of_fd)
            }
            (None, _) => Ok(Vec::new()),
        };
        xattrs.at("read the attributes of", &place.path)
    }

    /// Something that could not be compared. What is no fault of one path ends it all.
    fn problem(&mut self, path: &Path, error: Error) -> Result<()> {
        match error {
            Error::Io { .. } | Error::NotFound(_) => {}
            ref error if error.is_damage() => {}
            error => return Err(error),
        }
        self.context.problem(path.to_path_buf(), &error, &mut self.restored);
        Ok(())
    }

    fn wait(&mut self, waiting: Waiting) -> Result<()> {
        self.checks += usize::from(waiting.check.is_some());
        self.paths_len += waiting.path.len();
        self.waiting.push(waiting);
        let is_full =
            self.checks >= FILES_MAX || self.waiting.len() >= WAITING_MAX || self.paths_len >= PATHS_LEN_MAX;
        if is_full { self.flush() } else { Ok(()) }
    }

    /// Compares contents that wait for it, and reports what differs in its order.
    fn flush(&mut self) -> Result<()> {
        (self.checks, self.paths_len) = (0, 0);
        let mut waiting = std::mem::take(&mut self.waiting);
        let mut checks = Vec::new();
        for (number, wait) in waiting.iter_mut().enumerate() {
            let Change::Changed { before, .. } = &wait.change else { continue };
            let (Some(place), Some(map)) = (wait.check.take(), before.map()) else { continue };
            checks.push(Check { number, place, map: map.clone() });
        }
        let results = match self.method {
            Method::Full => full(self.context, &checks, &mut self.restored)?,
            _ => hashed(self.context, &checks)?,
        };
        for (check, result) in checks.iter().zip(results) {
            match result {
                Ok(found) => {
                    self.compared.files += 1;
                    self.compared.bytes = self.compared.bytes.saturating_add(check.map.len());
                    if let Change::Changed { aspects, ranges, .. } = &mut waiting[check.number].change {
                        aspects.content = found.bytes > 0;
                        *ranges = (found.bytes > 0).then_some(found);
                    }
                }
                Err(error) => self.problem(&check.place.path, error)?,
            }
        }
        for Waiting { path, change, .. } in waiting {
            if !matches!(&change, Change::Changed { aspects, .. } if !aspects.any()) {
                (self.each)(&path, change)?;
            }
        }
        Ok(())
    }
}
