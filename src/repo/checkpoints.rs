//! How far unfinished backups have come: written by them, found by the next one of the series, and
//! kept alive by prune, for a while.

use std::time::Duration;

use jiff::Timestamp;

use super::Repo;
use super::snapshots::Listed;
use super::state::State;
use crate::error::{Error, Result};
use crate::format::checkpoint::{Checkpoint, Checkpoints};
use crate::format::wire::{Decoded, Malformed};
use crate::id::SnapshotId;

/// An interrupted backup may be gone on with for so long after its beginning. Then it is nobody's
/// any more, and what it stored is not needed.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl State for Checkpoints {
    const NAME: &'static str = "checkpoint";

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn decode(bytes: &[u8]) -> Decoded<Self> {
        serde_json::from_slice(bytes).map_err(|_| Malformed("it is no checkpoint that this varv knows"))
    }

    fn merge(&mut self, other: Self) {
        other.0.into_iter().for_each(|checkpoint| self.add(checkpoint));
    }
}

impl Repo {
    /// Unfinished backups that may be gone on with. Those that cannot be read are none.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        let mut found = self.all_checkpoints()?;
        found.retain(|checkpoint| !is_too_old(checkpoint));
        Ok(found)
    }

    /// Likewise, and those that are too old for that.
    pub fn all_checkpoints(&self) -> Result<Vec<Checkpoint>> {
        Ok(self.remembered::<Checkpoints>()?.value.0)
    }

    /// Writes down how far a backup has come. What it names is durable already.
    pub fn remember_checkpoint(&self, checkpoint: Checkpoint) -> Result<()> {
        self.change_checkpoints(|all| {
            all.0.retain(|other| !other.is_of(&checkpoint));
            all.0.push(checkpoint);
        })
    }

    /// Forgets those backups that are `over`.
    pub fn forget_checkpoints(&self, over: impl Fn(&Checkpoint) -> bool) -> Result<()> {
        self.change_checkpoints(|all| all.0.retain(|checkpoint| !over(checkpoint)))
    }

    fn change_checkpoints(&self, change: impl FnOnce(&mut Checkpoints)) -> Result<()> {
        let before = self.remembered::<Checkpoints>()?;
        let mut all = before.value.clone();
        change(&mut all);
        if all != before.value {
            match all.0.is_empty() {
                true => self.forget_state(&before)?,
                false => self.remember(&all, &before)?,
            }
        }
        self.forget_damaged(&before)
    }
}

/// Whether nobody goes on with it any more.
pub fn is_too_old(checkpoint: &Checkpoint) -> bool {
    Timestamp::now().duration_since(checkpoint.snapshot.time).unsigned_abs() > AGE_MAX
}

/// A checkpoint as if it were a snapshot, for who wants to know what it needs.
pub fn as_listed(checkpoint: &Checkpoint) -> Result<Listed> {
    let plain = serde_json::to_vec(&checkpoint.snapshot);
    let plain = plain.map_err(|_| Error::Internal("a checkpoint as JSON"))?;
    Ok(Listed { id: SnapshotId::of(&plain), snapshot: checkpoint.snapshot.clone() })
}
