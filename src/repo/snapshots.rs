//! The snapshots of a repository: publish, list, find by id.

use crate::error::{Error, Result};
use crate::format::object::ObjectKind;
use crate::format::snapshot::Snapshot;
use crate::id::SnapshotId;
use crate::store::Store;

use super::Repo;
use super::layout;
use super::objects::{OBJECT_MAX, open_object, seal_object};

/// The word for the newest snapshot, where an id may stand; ids have no such letters.
pub const LATEST: &str = "latest";

/// A snapshot and its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Its name.
    pub id: SnapshotId,
    /// What it says.
    pub snapshot: Snapshot,
}

/// All snapshots that could be read, oldest first, and what could not be read.
#[derive(Debug, Default)]
pub struct Snapshots {
    /// By time, then by id.
    pub listed: Vec<Listed>,
    /// Damaged ones.
    pub damaged: Vec<(SnapshotId, Error)>,
    /// What unfinished backups have so far, if somebody asked for that.
    pub unfinished: Vec<Listed>,
}

impl Repo {
    /// Makes a snapshot visible and durable: the last step of a backup.
    pub fn publish_snapshot(&self, snapshot: &Snapshot) -> Result<SnapshotId> {
        let plain = serde_json::to_vec(snapshot).map_err(|_| Error::Internal("snapshot as JSON"))?;
        let bytes = seal_object(self.keys(), &self.id(), ObjectKind::Snapshot, &plain)?;
        let id = SnapshotId::of(&bytes);
        self.store().barrier()?;
        self.store().put(&layout::snapshot(&id), &bytes)?;
        self.store().barrier()?;
        Ok(id)
    }

    /// Reads one snapshot.
    pub fn load_snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        self.load_from(&layout::snapshot(id), id)
    }

    /// Reads the snapshot that the object `object` holds.
    pub(super) fn load_from(&self, object: &str, id: &SnapshotId) -> Result<Snapshot> {
        let name = format!("snapshot {id}");
        let bytes = self.store().read(object, OBJECT_MAX)?;
        if SnapshotId::of(&bytes) != *id {
            return Err(Error::damaged(name, "its content has another id"));
        }
        let plain = open_object(self.keys(), &self.id(), ObjectKind::Snapshot, &name, bytes)?;
        serde_json::from_slice(&plain).map_err(|e| Error::damaged(name, e))
    }

    /// The names of all snapshots, in no order.
    pub fn snapshot_ids(&self) -> Result<Vec<SnapshotId>> {
        snapshot_ids(&**self.store())
    }

    /// Reads all snapshots.
    pub fn snapshots(&self) -> Result<Snapshots> {
        self.load_all(self.snapshot_ids()?, layout::snapshot)
    }

    /// Reads all of these, which have names by `name`.
    pub(super) fn load_all(
        &self,
        ids: Vec<SnapshotId>,
        name: fn(&SnapshotId) -> String,
    ) -> Result<Snapshots> {
        let mut found = Snapshots::default();
        for id in ids {
            match self.load_from(&name(&id), &id) {
                Ok(snapshot) => found.listed.push(Listed { id, snapshot }),
                Err(e) if e.is_damage() => found.damaged.push((id, e)),
                Err(e) => return Err(e),
            }
        }
        found.listed.sort_by_key(|listed| (listed.snapshot.time, listed.id));
        Ok(found)
    }
}

impl Snapshots {
    /// The newest snapshot that fits.
    pub fn latest(&self, fits: impl Fn(&Listed) -> bool) -> Result<&Listed> {
        let latest = self.listed.iter().rfind(|listed| fits(listed));
        latest.ok_or_else(|| Error::NotFound("there is no snapshot that fits: see varv snapshots".into()))
    }

    /// The snapshot with this id or unique prefix of one; or the newest one.
    pub fn by_prefix(&self, prefix: &str) -> Result<&Listed> {
        if prefix == LATEST {
            return self.latest(|_| true);
        }
        if prefix.is_empty() {
            return Err(Error::Refused("the id of a snapshot is empty: see varv snapshots".into()));
        }
        let mut fitting = self.listed.iter().filter(|listed| listed.id.to_string().starts_with(prefix));
        match (fitting.next(), fitting.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(Error::NotFound(format!("there is no snapshot {prefix}: see varv snapshots"))),
            (Some(_), Some(_)) => {
                Err(Error::Refused(format!("more than one snapshot begins with {prefix}: give more digits")))
            }
        }
    }
}

/// The names of all snapshots in a store, in no order.
pub(super) fn snapshot_ids(store: &dyn Store) -> Result<Vec<SnapshotId>> {
    let mut ids = Vec::new();
    store.list(layout::SNAPSHOTS, &mut |name, _| {
        ids.extend(layout::snapshot_id(name));
        Ok(())
    })?;
    Ok(ids)
}
