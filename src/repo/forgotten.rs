//! Forgetting snapshots, and bringing them back until prune has run.
//!
//! The store has no rename: the copy in `forgotten/` is durable before the snapshot goes, and
//! likewise on the way back. A snapshot that is found in both places was being moved; it counts as
//! one that is not forgotten.

use std::collections::HashSet;

use super::Repo;
use super::layout;
use super::objects::OBJECT_MAX;
use super::snapshots::Snapshots;
use crate::error::{Error, Result};
use crate::id::SnapshotId;
use crate::store::Store;

/// Where a snapshot is, and where it goes.
struct Move {
    from: fn(&SnapshotId) -> String,
    to: fn(&SnapshotId) -> String,
}

const FORGET: Move = Move { from: layout::snapshot, to: layout::forgotten };
const BRING_BACK: Move = Move { from: layout::forgotten, to: layout::snapshot };

impl Repo {
    /// Moves snapshots out of sight. Damaged ones too: they are moved as they are. On a full disk
    /// each goes first and its copy takes its place, and those whose copy still found no room are
    /// returned: they are gone for good.
    pub fn forget(&self, ids: &[SnapshotId]) -> Result<Vec<SnapshotId>> {
        self.still_locked()?;
        let store = &**self.store();
        let cramped = FORGET.publish(store, ids)?;
        let copied: Vec<SnapshotId> = ids.iter().filter(|id| !cramped.contains(id)).copied().collect();
        FORGET.remove(store, &copied)?;
        let lost = forget_first(store, &cramped)?;
        store.barrier()?;
        Ok(lost)
    }

    /// Moves forgotten snapshots back.
    pub fn bring_back(&self, ids: &[SnapshotId]) -> Result<()> {
        self.still_locked()?;
        let store = &**self.store();
        if let [_, ..] = BRING_BACK.publish(store, ids)?[..] {
            return Err(Error::Io {
                action: "bring back snapshots in",
                path: self.root().to_path_buf(),
                source: std::io::ErrorKind::StorageFull.into(),
            });
        }
        BRING_BACK.remove(store, ids)?;
        store.barrier()
    }

    /// Forgotten snapshots that prune has not met yet.
    pub fn forgotten(&self) -> Result<Snapshots> {
        let there: HashSet<SnapshotId> = self.snapshot_ids()?.into_iter().collect();
        let mut ids = self.forgotten_ids()?;
        ids.retain(|id| !there.contains(id));
        self.load_all(ids, layout::forgotten)
    }

    /// The names of all objects in `forgotten/`, in no order.
    pub fn forgotten_ids(&self) -> Result<Vec<SnapshotId>> {
        let mut ids = Vec::new();
        self.store().list(layout::FORGOTTEN, &mut |name, _| {
            ids.extend(layout::forgotten_id(name));
            Ok(())
        })?;
        Ok(ids)
    }

    /// Removes what is in `forgotten/`: from here on nothing can be brought back. For the holder
    /// of the exclusive lock, before it removes anything that these snapshots need.
    pub fn drop_forgotten(&self) -> Result<u64> {
        let ids = self.forgotten_ids()?;
        for id in &ids {
            self.store().remove(&layout::forgotten(id))?;
        }
        self.store().barrier()?;
        Ok(ids.len() as u64)
    }
}

impl Move {
    /// Makes the copies durable; those for which there was no room are returned.
    fn publish(&self, store: &dyn Store, ids: &[SnapshotId]) -> Result<Vec<SnapshotId>> {
        let mut cramped = Vec::new();
        for id in ids {
            match self.copy(store, id) {
                Err(e) if e.is_out_of_space() => cramped.push(*id),
                other => other?,
            }
        }
        store.barrier()?;
        Ok(cramped)
    }

    fn copy(&self, store: &dyn Store, id: &SnapshotId) -> Result<()> {
        let to = (self.to)(id);
        let bytes = match store.read(&(self.from)(id), OBJECT_MAX) {
            // Another process moves it as well, and was faster.
            Err(Error::Missing { .. }) if store.len(&to)?.is_some() => return Ok(()),
            other => other?,
        };
        put(store, &to, &bytes)
    }

    fn remove(&self, store: &dyn Store, ids: &[SnapshotId]) -> Result<()> {
        ids.iter().try_for_each(|id| store.remove(&(self.from)(id)))
    }
}

/// Forgets where there is no room for a copy until its original is gone; those that got none
/// even then are returned.
fn forget_first(store: &dyn Store, ids: &[SnapshotId]) -> Result<Vec<SnapshotId>> {
    let mut waiting = Vec::new();
    for id in ids {
        let bytes = store.read(&layout::snapshot(id), OBJECT_MAX)?;
        store.remove(&layout::snapshot(id))?;
        // What a removal gives back may be used only once it is durable.
        store.barrier()?;
        waiting.push((*id, bytes));
        waiting = put_all(store, waiting)?;
    }
    Ok(waiting.into_iter().map(|(id, _)| id).collect())
}

/// Those for which there is no room are returned.
fn put_all(store: &dyn Store, copies: Vec<(SnapshotId, Vec<u8>)>) -> Result<Vec<(SnapshotId, Vec<u8>)>> {
    let mut left = Vec::new();
    for (id, bytes) in copies {
        match put(store, &layout::forgotten(&id), &bytes) {
            Err(e) if e.is_out_of_space() => left.push((id, bytes)),
            other => other?,
        }
    }
    Ok(left)
}

/// A copy that is there already is the same: names are hashes of content.
fn put(store: &dyn Store, name: &str, bytes: &[u8]) -> Result<()> {
    match store.put(name, bytes) {
        Err(e) if e.io().is_some_and(|e| e.kind() == std::io::ErrorKind::AlreadyExists) => {
            store.adopt(name);
            Ok(())
        }
        other => other,
    }
}
