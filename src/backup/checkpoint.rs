//! Going on with an interrupted backup of logical volumes.
//!
//! Now and then all that was read so far is made durable, and the repository is told how far that
//! is: each volume's map up to some cut, and from there on what the earlier state had, or a hole.
//! Whoever finds the same LVM snapshots later takes that map for what the volume was, and only the
//! rest for what has changed. So cutting begins again at a chunk that nothing behind it had a part
//! in, and the result is that of one run.

use std::sync::Arc;

use super::update::Basis;
use super::{BackupOptions, Source};
use crate::error::{Error, Result};
use crate::format::checkpoint::{Checkpoint, Unfinished};
use crate::format::map::{Extent, Map};
use crate::format::snapshot::{RootInfo, Snapshot, TreeRef};
use crate::format::tree::Entry;
use crate::id::SnapshotId;
use crate::repo::Repo;
use crate::repo::catalog::Catalog;
use crate::repo::nodes::{Extents, are_all_there, find_root};
use crate::text::escape;

/// What an interrupted backup has finished of a volume.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The volume's map, as far as it is known.
    pub map: Map,
    /// The snapshot since which it was known what has changed.
    pub since: Option<SnapshotId>,
    /// Whether blocks that its file system does not use are left out.
    pub free_blocks: bool,
    /// Up to here it is what it will be, …
    pub done: u64,
    /// … and from here on what it was in that snapshot.
    pub settled: u64,
}

impl Finished {
    /// What a checkpoint says of the volume `name`; `None` if nothing of it is finished, or not all
    /// of that is there any more.
    pub fn of(catalog: &Catalog, checkpoint: &Checkpoint, name: &[u8]) -> Result<Option<Self>> {
        match Self::find(catalog, checkpoint, name) {
            Err(e) if e.is_damage() => Ok(None),
            other => other,
        }
    }

    fn find(catalog: &Catalog, checkpoint: &Checkpoint, name: &[u8]) -> Result<Option<Self>> {
        let path = escape(name);
        let Some(volume) = checkpoint.volumes.iter().find(|volume| volume.path == path) else {
            return Ok(None);
        };
        let damaged = |why: &dyn std::fmt::Display| Error::damaged("a checkpoint", why);
        let since = volume.since.as_deref().map(|hex| SnapshotId::from_hex(hex).ok_or(damaged(&"no id")));
        let since = since.transpose()?;
        let tree = checkpoint.snapshot.tree.root().map_err(|e| damaged(&e))?;
        let Some(entry) = find_root(catalog, tree, name)? else { return Ok(None) };
        let is_right = volume.done <= volume.settled && volume.settled <= volume.bytes;
        let map = entry.map().filter(|map| map.len() == volume.bytes && is_right);
        let Some(map) = map else { return Ok(None) };
        are_all_there(catalog, map)?;
        let (free_blocks, done, settled) = (volume.free_blocks, volume.done, volume.settled);
        Ok(Some(Self { map: map.clone(), since, free_blocks, done, settled }))
    }
}

/// What of a volume is not finished: where the earlier state's map may be taken over again for a
/// map that is finished up to `at`, amid one of its chunks perhaps; the end if there was none.
pub fn settled_from(catalog: &Catalog, basis: Option<&Arc<Basis>>, at: u64, len: u64) -> Result<u64> {
    let Some(basis) = basis else { return Ok(len) };
    match Extents::from(catalog, &basis.map, at).next().transpose()? {
        Some((start, extent @ Extent::Data { .. })) if start < at => Ok(start + extent.len()),
        _ => Ok(at),
    }
}

/// Tells the repository how far a backup has come.
pub struct Progress<'r> {
    repo: &'r Repo,
    options: &'r BackupOptions,
    /// Bytes that are read between two checkpoints.
    every: u64,
    /// Bytes that were read when the last one was written.
    last: u64,
    volumes: Vec<Unfinished>,
    /// Entries of volumes that are finished, in the order of the roots.
    finished: Vec<Entry>,
}

impl<'r> Progress<'r> {
    /// Of a backup that has logical volumes and wants it.
    pub fn new(repo: &'r Repo, options: &'r BackupOptions) -> Option<Self> {
        let every = options.checkpoint_every.filter(|_| !options.dry_run)?;
        let unfinished = |source: &Source| match source {
            Source::Volume(volume) => Some(Unfinished {
                path: escape(volume.name.as_deref()?),
                bytes: 0,
                lvm: volume.lvm.clone()?,
                since: volume.known.since().map(|id| id.to_string()),
                free_blocks: volume.used.is_some(),
                done: 0,
                settled: 0,
            }),
            _ => None,
        };
        let volumes: Vec<_> = options.sources.iter().filter_map(unfinished).collect();
        let progress = Self { repo, options, every, last: 0, volumes, finished: Vec::new() };
        (!progress.volumes.is_empty()).then_some(progress)
    }

    /// Whether another checkpoint is due, once so many bytes were read.
    pub fn is_due(&self, read: u64) -> bool {
        read - self.last >= self.every
    }

    /// A volume is finished.
    pub fn finish(&mut self, entry: &Entry, since: Option<SnapshotId>) {
        let len = entry.size();
        self.note(entry, since, len, len);
        self.finished.push(entry.clone());
    }

    /// How far a volume has come. What is known of it may be less than it was thought at first.
    pub fn note(&mut self, entry: &Entry, since: Option<SnapshotId>, done: u64, settled: u64) {
        let path = escape(&entry.name);
        if let Some(volume) = self.volumes.iter_mut().find(|volume| volume.path == path) {
            volume.since = since.map(|id| id.to_string());
            (volume.bytes, volume.done, volume.settled) = (entry.size(), done, settled);
        }
    }

    /// Entries of volumes that are finished, in the order of the roots.
    pub fn finished(&self) -> &[Entry] {
        &self.finished
    }

    /// Writes a checkpoint; the tree of all that is finished is durable. `read` bytes were read.
    pub fn write(&mut self, tree: TreeRef, roots: Vec<RootInfo>, read: u64) -> Result<()> {
        self.last = read;
        let snapshot = Snapshot { roots, tree, ..self.options.snapshot() };
        self.repo.remember_checkpoint(Checkpoint { snapshot, volumes: self.volumes.clone() })
    }
}
