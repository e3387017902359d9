//! Volumes of which something is known before they are read.

use std::path::PathBuf;

use super::checkpoint::Finished;
use super::spot::Share;
use crate::format::snapshot::{LogicalVolume, Method};
use crate::id::SnapshotId;
use crate::lvm::InUse;
use crate::source::changes::Changes;

/// A block device, or a file taken as one.
#[derive(Debug, Clone)]
pub struct Volume {
    /// The name that it is kept under, such as `vg/root`; its path if there is none.
    pub name: Option<Vec<u8>>,
    /// What is read.
    pub path: PathBuf,
    /// What is known of it.
    pub known: Known,
    /// How much of what is said to be unchanged is read and compared.
    pub spot_check: Share,
    /// The logical volume that it is, or is a snapshot of.
    pub lvm: Option<LogicalVolume>,
    /// What its file system uses, if all else is to be left out.
    pub used: Option<InUse>,
    /// What an interrupted backup has finished of it.
    pub finished: Option<Finished>,
}

impl Volume {
    /// What of a volume of this length is read where all of it is: what is allocated and in use, as
    /// far as that is known.
    pub fn layout(&self, len: u64) -> Option<Changes> {
        let allocated = match &self.known {
            Known::Full { layout, .. } => layout.clone().filter(|layout| layout.len() == len),
            Known::Since { .. } => None,
        };
        let Some(used) = &self.used else { return allocated };
        let mut layout = allocated.unwrap_or_else(|| Changes::all(len));
        layout.leave_out(&used.ranges);
        Some(layout)
    }
}

/// What is known of a volume before it is read.
#[derive(Debug, Clone)]
pub enum Known {
    /// All of it is read, but for holes.
    Full {
        /// Where nothing is allocated, if that is known.
        layout: Option<Changes>,
        /// Why no more is known, if that is worth telling.
        reason: Option<String>,
    },
    /// What may have changed since a snapshot.
    Since {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What may have changed.
        changes: Changes,
        /// How that is known.
        method: Method,
    },
}

impl Known {
    /// The snapshot that changes are known since.
    pub fn since(&self) -> Option<SnapshotId> {
        match self {
            Known::Full { .. } => None,
            Known::Since { snapshot, .. } => Some(*snapshot),
        }
    }
}
