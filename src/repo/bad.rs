//! What is known to be bad: nobody is led there, and it outlives the index.

use super::Repo;
use super::catalog::Catalog;
use super::state::Remembered;
use crate::error::Result;
use crate::format::bad::Bad;
use crate::observe::{Event, Observer};

impl Repo {
    /// What is remembered to be bad. Where that is damaged itself, no snapshot is relied on.
    pub fn known_bad(&self, observer: &dyn Observer) -> Result<Bad> {
        let Remembered { mut value, damaged, .. } = self.remembered::<Bad>()?;
        if !damaged.is_empty() {
            for (_, error) in damaged {
                observer.event(Event::Notice(format!("{error}; run varv check --read-data")));
            }
            value.suspects.extend(self.snapshot_ids()?);
        }
        Ok(value)
    }

    /// Remembers what was found to be bad since the catalog was opened. All snapshots that are
    /// there may need it.
    pub fn remember_bad(&self, catalog: &Catalog) -> Result<()> {
        let before = self.remembered::<Bad>()?;
        let mut bad = catalog.index()?.bad().clone();
        bad.merge(before.value.clone());
        if bad.packs == before.value.packs {
            return Ok(());
        }
        bad.suspects.extend(self.snapshot_ids()?);
        self.remember(&bad, &before)
    }

    /// Remembers just this; an object is written only if that is something else than before.
    pub fn set_bad(&self, bad: &Bad) -> Result<()> {
        let before = self.remembered::<Bad>()?;
        match *bad == before.value {
            true => Ok(()),
            false if bad.is_empty() => self.forget_state(&before),
            false => self.remember(bad, &before),
        }
    }
}
