//! Walking snapshots to records of their files, and to what each directory holds.
//!
//! ```text
//! record   u64 length · 32 digest · u32 root · u32 directory · u64 device · u64 inode · u32 links
//!          · u64 data · i64 s, u32 ns modified · name
//! ```

use std::collections::HashMap;
use std::path::Path;

use super::super::Totals;
use super::super::paths::{DirId, Dirs};
use super::super::record::{Inode, take, take_time};
use super::super::sorter::{Sorted, Sorter};
use super::content::{Key, key_of};
use super::partly::Chunks;
use super::{Filters, Options, Place};
use crate::error::{Error, Result};
use crate::format::tree::{Entry, Payload};
use crate::id::{ChunkId, Hasher};
use crate::observe::Stop;
use crate::repo::catalog::Catalog;
use crate::repo::nodes::Entries;
use crate::source::exclude::Patterns;

/// Names what is below a directory: names and bytes, no metadata.
pub type DirHash = [u8; 16];

/// A file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Its content.
    pub key: Key,
    /// The place that it was found in.
    pub root: u32,
    /// Its directory.
    pub dir: DirId,
    /// Its name there.
    pub name: Vec<u8>,
    /// Which file it was; device and inode are known of files with several names only.
    pub inode: Inode,
    /// How many of its bytes chunks hold.
    pub data: u64,
}

/// What a directory holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DirInfo {
    /// What is below it; `None` of what is no directory itself: the places.
    pub hash: Option<DirHash>,
    /// Length of all files below it.
    pub bytes: u64,
    /// How many those are.
    pub files: u64,
}

/// What was found.
pub struct Walked {
    /// The files, by content.
    pub files: Sorted,
    /// Their directories; those of a place begin below the directory of its number.
    pub dirs: Dirs,
    /// What each directory holds.
    pub infos: Vec<DirInfo>,
    /// What was counted.
    pub totals: Totals,
    /// The chunks of longer files, if they are wanted.
    pub chunks: Option<Chunks>,
}

impl StoredFile {
    fn put(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.key.len.to_be_bytes());
        out.extend_from_slice(&self.key.digest);
        out.extend_from_slice(&self.root.to_be_bytes());
        out.extend_from_slice(&self.dir.to_be_bytes());
        out.extend_from_slice(&self.inode.device.to_be_bytes());
        out.extend_from_slice(&self.inode.inode.to_be_bytes());
        out.extend_from_slice(&self.inode.links.to_be_bytes());
        out.extend_from_slice(&self.data.to_be_bytes());
        out.extend_from_slice(&self.inode.modified.seconds.to_be_bytes());
        out.extend_from_slice(&self.inode.modified.nanos.to_be_bytes());
        out.extend_from_slice(&self.name);
    }

    /// Reads what was written.
    pub fn read(record: &[u8]) -> Result<Self> {
        Self::take(record).ok_or(Error::Internal("a sorted record is too short"))
    }

    fn take(mut rest: &[u8]) -> Option<Self> {
        let rest = &mut rest;
        let len = u64::from_be_bytes(take(rest)?);
        let key = Key { len, digest: take(rest)? };
        let root = u32::from_be_bytes(take(rest)?);
        let dir = u32::from_be_bytes(take(rest)?);
        let device = u64::from_be_bytes(take(rest)?);
        let inode = u64::from_be_bytes(take(rest)?);
        let links = u32::from_be_bytes(take(rest)?);
        let data = u64::from_be_bytes(take(rest)?);
        let modified = take_time(rest)?;
        let inode = Inode { len, device, inode, modified, changed: modified, links, is_sparse: data < len };
        Some(Self { key, root, dir, name: rest.to_vec(), inode, data })
    }
}

/// Walks all places.
pub fn walk(catalog: &Catalog, places: &[Place], options: &Options, stop: &Stop) -> Result<Walked> {
    let mut recorder = Recorder {
        options,
        catalog,
        files: Sorter::new(&options.temporary),
        record: Vec::new(),
        totals: Totals::default(),
        chunks: options.share_min.map(|_| Chunks::new(&options.temporary)),
    };
    let (dirs, infos) = visit(catalog, places, &options.filters, stop, &mut recorder)?;
    let Recorder { files, mut totals, chunks, .. } = recorder;
    totals.dirs = (infos.len() - places.len()) as u64;
    Ok(Walked { files: files.finish()?, dirs, infos, totals, chunks })
}

/// Listens to a walk.
pub trait Visit {
    /// A file, volume or stream: its place, directory, whole path and entry. What it returns goes
    /// into the directory's hash.
    fn file(&mut self, root: u32, dir: DirId, path: &[u8], entry: &Entry) -> Result<Key>;
}

/// Walks all places; the directories met, and what each of them holds.
pub fn visit(
    catalog: &Catalog,
    places: &[Place],
    filters: &Filters,
    stop: &Stop,
    visitor: &mut dyn Visit,
) -> Result<(Dirs, Vec<DirInfo>)> {
    let mut walk = Walk {
        catalog,
        hidden: filters.hidden,
        include: filters.included()?,
        exclude: Patterns::new(&filters.exclude, Path::new("/"))?,
        stop,
        visitor,
        dirs: Dirs::new(places.len()),
        infos: vec![DirInfo::default(); places.len()],
        known: HashMap::new(),
        path: Vec::new(),
    };
    let series = |place: &Place| (place.listed.snapshot.host.clone(), place.listed.snapshot.label.clone());
    let mut before = None;
    for (number, place) in places.iter().enumerate() {
        if before.replace(series(place)) != Some(series(place)) {
            walk.known.clear();
        }
        walk.place(number as u32, place)?;
    }
    Ok((walk.dirs, walk.infos))
}

struct Walk<'a> {
    catalog: &'a Catalog,
    hidden: bool,
    include: Option<Patterns>,
    exclude: Patterns,
    stop: &'a Stop,
    visitor: &'a mut dyn Visit,
    dirs: Dirs,
    infos: Vec<DirInfo>,
    /// Directories of this series that were walked already, by their topmost nodes.
    known: HashMap<ChunkId, DirId>,
    /// The whole path of what is looked at.
    path: Vec<u8>,
}

/// A directory that is being walked.
struct Open<'c> {
    id: DirId,
    entries: Entries<'c>,
    node: Option<ChunkId>,
    hasher: Hasher,
    info: DirInfo,
    is_included: bool,
    /// The length of its path, slash included.
    path_len: usize,
    /// Where patterns begin in the path.
    base_len: usize,
}

impl<'a> Walk<'a> {
    fn place(&mut self, root: u32, place: &Place) -> Result<()> {
        self.path.clear();
        if let Some((path, entry)) = &place.entry {
            return self.tree(root, path, entry);
        }
        let tree = place.listed.snapshot.tree.root();
        let tree = tree.map_err(|e| Error::damaged(format!("snapshot {}", place.listed.id), e))?;
        for entry in Entries::of_roots(self.catalog, tree) {
            let entry = entry?;
            self.path.clear();
            self.tree(root, &entry.name.clone(), &entry)?;
        }
        Ok(())
    }

    /// Walks what has this whole path.
    fn tree(&mut self, root: u32, path: &[u8], entry: &Entry) -> Result<()> {
        self.path.extend_from_slice(path);
        let Some(dir) = entry.dir() else {
            if self.include.is_none() && entry.map().is_some() {
                self.visitor.file(root, root, path, entry)?;
            }
            return Ok(());
        };
        // The root directory's name is empty: what is in it has just a slash before it.
        let name = path.strip_suffix(b"/").unwrap_or(path);
        self.path.truncate(name.len());
        let id = self.add(root, name);
        let mut open =
            vec![self.open(id, Entries::of(self.catalog, dir), dir.root.as_ref().map(|r| r.node), None)];
        while let Some(top) = open.last_mut() {
            self.path.truncate(top.path_len);
            match top.entries.next().transpose()? {
                Some(entry) => {
                    if let Some(below) = self.entry(root, top, &entry)? {
                        open.push(below);
                    }
                }
                None => {
                    self.stop.check()?;
                    let Some(done) = open.pop() else { break };
                    let info = self.close(done);
                    if let Some(above) = open.last_mut() {
                        let name = self.path.get(above.path_len..).unwrap_or_default();
                        above.add_dir(name.strip_suffix(b"/").unwrap_or(name), &info);
                    }
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, above: DirId, name: &[u8]) -> DirId {
        self.infos.push(DirInfo::default());
        self.dirs.add(above, name)
    }

    /// Goes into the directory whose path was put together.
    fn open(
        &mut self,
        id: DirId,
        entries: Entries<'a>,
        node: Option<ChunkId>,
        above: Option<(&Open, bool)>,
    ) -> Open<'a> {
        self.path.push(b'/');
        let path_len = self.path.len();
        let (base_len, is_included) =
            above.map_or((path_len, self.include.is_none()), |(above, included)| (above.base_len, included));
        Open {
            id,
            entries,
            node,
            hasher: Hasher::plain(),
            info: DirInfo::default(),
            is_included,
            path_len,
            base_len,
        }
    }

    fn close(&mut self, done: Open) -> DirInfo {
        let info = DirInfo { hash: Some(done.hasher.finish()), ..done.info };
        if let Some(slot) = self.infos.get_mut(done.id as usize) {
            *slot = info;
        }
        if let Some(node) = done.node {
            self.known.insert(node, done.id);
        }
        info
    }

    fn entry(&mut self, root: u32, top: &mut Open<'a>, entry: &Entry) -> Result<Option<Open<'a>>> {
        self.path.extend_from_slice(&entry.name);
        let is_dir = entry.dir().is_some();
        let below = self.path.get(top.base_len..).unwrap_or_default();
        let is_hidden = !self.hidden && entry.name.starts_with(b".");
        if is_hidden || self.exclude.matches(below, is_dir) {
            return Ok(None);
        }
        let is_included =
            top.is_included || self.include.as_ref().is_none_or(|include| include.matches(below, is_dir));
        let Some(dir) = entry.dir() else {
            if is_included || entry.map().is_none() {
                self.leaf(root, top, entry)?;
            }
            return Ok(None);
        };
        let node = dir.root.as_ref().map(|root| root.node);
        if let Some(info) = node.and_then(|node| self.known(&node)) {
            top.add_dir(&entry.name, &info);
            return Ok(None);
        }
        let id = self.add(top.id, &entry.name);
        Ok(Some(self.open(id, Entries::of(self.catalog, dir), node, Some((top, is_included)))))
    }

    fn leaf(&mut self, root: u32, top: &mut Open, entry: &Entry) -> Result<()> {
        top.begin(&entry.name, entry.kind());
        match &entry.payload {
            Payload::Symlink(target) => drop(top.hasher.update(target)),
            Payload::BlockDevice(device) | Payload::CharDevice(device) => {
                top.hasher.update(&device.major.to_be_bytes()).update(&device.minor.to_be_bytes());
            }
            _ if entry.map().is_some() => {
                let key = self.visitor.file(root, top.id, &self.path, entry)?;
                top.hasher.update(&key.len.to_be_bytes()).update(&key.digest);
                top.info.bytes = top.info.bytes.saturating_add(key.len);
                top.info.files += 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// What a directory with this path and node holds, if an earlier snapshot of the series had it.
    fn known(&self, node: &ChunkId) -> Option<DirInfo> {
        let known = *self.known.get(node)?;
        let mut path = Vec::new();
        self.dirs.path(known, &mut path);
        path.pop();
        (path == self.path).then(|| self.infos.get(known as usize).copied()).flatten()
    }
}

impl Open<'_> {
    fn begin(&mut self, name: &[u8], kind: &str) {
        self.hasher.update(&(name.len() as u64).to_be_bytes()).update(name);
        self.hasher.update(&[kind.len() as u8]).update(kind.as_bytes());
    }

    fn add_dir(&mut self, name: &[u8], info: &DirInfo) {
        self.begin(name, "directory");
        self.hasher.update(&info.hash.unwrap_or_default());
        self.info.bytes = self.info.bytes.saturating_add(info.bytes);
        self.info.files += info.files;
    }
}

/// Writes records.
struct Recorder<'a> {
    options: &'a Options,
    catalog: &'a Catalog,
    files: Sorter,
    record: Vec<u8>,
    totals: Totals,
    chunks: Option<Chunks>,
}

impl Visit for Recorder<'_> {
    fn file(&mut self, root: u32, dir: DirId, path: &[u8], entry: &Entry) -> Result<Key> {
        let Some(map) = entry.map() else { return Err(Error::Internal("a file without content")) };
        let key = key_of(self.catalog, map)?;
        if !self.options.filters.takes(key.len) {
            self.totals.empty += u64::from(key.len == 0);
            return Ok(key);
        }
        self.totals.files += 1;
        self.totals.bytes = self.totals.bytes.saturating_add(key.len);
        if let Some(chunks) = &mut self.chunks {
            chunks.add(self.catalog, &key, map, path)?;
        }
        stored_file(root, dir, path, key, entry, map.data_len()).put(&mut self.record);
        self.files.push(&self.record)?;
        Ok(key)
    }
}

fn stored_file(root: u32, dir: DirId, path: &[u8], key: Key, entry: &Entry, data: u64) -> StoredFile {
    // What lies in no directory has its whole path as name.
    let name = if dir == root { path } else { &entry.name };
    let (device, links) = entry.links.map_or((0, 1), |links| (links.device, links.count));
    let inode = Inode {
        len: key.len,
        device,
        inode: entry.inode,
        modified: entry.modified,
        changed: entry.changed,
        links: u32::try_from(links).unwrap_or(u32::MAX),
        is_sparse: data < key.len,
    };
    StoredFile { key, root, dir, name: name.to_vec(), inode, data }
}
