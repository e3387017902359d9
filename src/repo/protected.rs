//! Protected snapshots: those that no rule forgets.
//!
//! An object in `state/` protects one snapshot by its name. So two who protect at once do not undo
//! each other's work, and nothing has to be read to know what is protected.

use std::collections::HashSet;
use std::io::ErrorKind;

use serde::Serialize;

use super::Repo;
use super::layout;
use super::objects::seal_object;
use crate::error::{Error, Result};
use crate::format::object::ObjectKind;
use crate::id::SnapshotId;

/// What is in such an object.
#[derive(Serialize)]
struct Protection {
    snapshot: String,
}

impl Repo {
    /// The protected snapshots, some of which may be gone.
    pub fn protected(&self) -> Result<HashSet<SnapshotId>> {
        let mut ids = HashSet::new();
        self.store().list(layout::STATE, &mut |name, _| {
            ids.extend(layout::protected_id(name));
            Ok(())
        })?;
        Ok(ids)
    }

    /// Protects snapshots.
    pub fn protect(&self, ids: &[SnapshotId]) -> Result<()> {
        self.still_locked()?;
        for id in ids {
            let plain = serde_json::to_vec(&Protection { snapshot: id.to_string() })
                .map_err(|_| Error::Internal("protection as JSON"))?;
            let bytes = seal_object(self.keys(), &self.id(), ObjectKind::State, &plain)?;
            match self.store().put(&layout::protected(id), &bytes) {
                Err(e) if e.io().is_some_and(|e| e.kind() == ErrorKind::AlreadyExists) => {}
                other => other?,
            }
        }
        self.store().barrier()
    }

    /// Protects them no longer.
    pub fn unprotect(&self, ids: &[SnapshotId]) -> Result<()> {
        self.still_locked()?;
        ids.iter().try_for_each(|id| self.store().remove(&layout::protected(id)))?;
        self.store().barrier()
    }
}
