//! Removing packs: first the index forgets them, durably, then they go, none before those whose
//! frames are compressed against it.
//!
//! Interrupted in between, the next command finds packs that the index does not know, and takes
//! them in again: all that they need is still there. Any other order would look like a loss.

use std::collections::HashMap;

use super::layers::layers;
use crate::error::Result;
use crate::id::PackId;
use crate::observe::{Event, Observer, Stop};
use crate::repo::Repo;
use crate::repo::catalog::Catalog;
use crate::repo::layout;

/// Packs that the index forgets at once.
const BATCH: usize = 4096;

/// Removes packs.
pub struct Remover<'a> {
    /// From this repository, whose exclusive lock is held.
    pub repo: &'a Repo,
    /// Its chunks.
    pub catalog: &'a Catalog,
    /// Whether there is an index on disk to be kept in step.
    pub has_index: bool,
    /// Told of what is done.
    pub observer: &'a dyn Observer,
    /// Ends it before anything is removed.
    pub stop: &'a Stop,
}

impl Remover<'_> {
    /// Removes these, durably; each with its length.
    pub fn remove(&mut self, packs: &[(PackId, u64)]) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        let bytes = packs.iter().map(|(_, len)| len).sum();
        self.observer.event(Event::Phase { name: "removing packs", bytes: Some(bytes) });
        let lens: HashMap<PackId, u64> = packs.iter().copied().collect();
        let layers = layers(&self.with_needs(packs)?);
        for batch in packs.chunks(BATCH) {
            self.repo.still_locked()?;
            self.forget(&batch.iter().map(|(id, _)| *id).collect::<Vec<_>>())?;
        }
        for layer in layers {
            self.repo.still_locked()?;
            for id in &layer {
                self.repo.store().remove(&layout::pack(id))?;
                self.observer.event(Event::Advance { bytes: lens[id], files: 0 });
            }
            self.repo.store().barrier()?;
        }
        Ok(())
    }

    /// The packs that each of these needs. One that cannot be read is of no use to anybody.
    fn with_needs(&self, packs: &[(PackId, u64)]) -> Result<Vec<(PackId, Vec<PackId>)>> {
        let reader = self.catalog.reader();
        let with_needs = |(id, len): &(PackId, u64)| {
            self.stop.check()?;
            Ok((*id, reader.open(id, *len).map(|pack| pack.trailer.packs).unwrap_or_default()))
        };
        packs.iter().map(with_needs).collect()
    }

    /// An index that cannot be written must not stay, or it would name packs that are gone. It can
    /// be made anew, and gives its own room back first.
    fn forget(&mut self, packs: &[PackId]) -> Result<()> {
        if self.has_index {
            match self.catalog.remove(packs) {
                Err(e) if e.is_out_of_space() || self.repo.is_full() => {
                    self.observer
                        .event(Event::Notice(format!("{e}: the index is removed, and made anew later")));
                    self.has_index = false;
                }
                other => return other,
            }
        }
        self.repo.remove_index()
    }
}
