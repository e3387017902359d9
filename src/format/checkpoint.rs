//! How far an unfinished backup of logical volumes has come, as JSON.

use serde::{Deserialize, Serialize};

use super::snapshot::{LogicalVolume, Snapshot};

/// An unfinished backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// What its snapshot would be if it ended here, as far as volumes go.
    pub snapshot: Snapshot,
    /// All its volumes.
    pub volumes: Vec<Unfinished>,
}

impl Checkpoint {
    /// Whether both are of the same backup.
    pub fn is_of(&self, other: &Checkpoint) -> bool {
        self.is_of_series(&other.snapshot.host, &other.snapshot.label)
            && self.snapshot.time == other.snapshot.time
    }

    /// Whether it is of this series.
    pub fn is_of_series(&self, host: &str, label: &str) -> bool {
        self.snapshot.host == host && self.snapshot.label == label
    }

    /// Bytes that are finished.
    pub fn done(&self) -> u64 {
        self.volumes.iter().fold(0, |sum: u64, volume| sum.saturating_add(volume.done))
    }
}

/// A volume of an unfinished backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unfinished {
    /// The root's path, escaped. If anything of it is finished, the snapshot's tree has it.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// The logical volume, and the snapshot of it that is read.
    pub lvm: LogicalVolume,
    /// The snapshot since which it was known what has changed, hex; null if all is read.
    pub since: Option<String>,
    /// Whether blocks that its file system does not use are left out.
    pub free_blocks: bool,
    /// Up to here its map is what it will be.
    pub done: u64,
    /// From here on its map is that of the snapshot `since`; a hole in between, or to the end.
    pub settled: u64,
}

/// All unfinished backups.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Checkpoints(pub Vec<Checkpoint>);

impl Checkpoints {
    /// Takes one in; of the same backup the one that has come further stays.
    pub fn add(&mut self, new: Checkpoint) {
        match self.0.iter_mut().find(|old| old.is_of(&new)) {
            Some(old) if old.done() >= new.done() => {}
            Some(old) => *old = new,
            None => self.0.push(new),
        }
    }
}
