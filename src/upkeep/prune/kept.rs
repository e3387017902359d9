//! How packs are used, and what becomes of their frames.

use super::frames::{fate, len_after};
use super::plan::PackUse;
use crate::error::Result;
use crate::format::pack::Trailer;
use crate::observe::{Event, Observer, Stop};
use crate::repo::catalog::Catalog;
use crate::repo::index::PackRecord;
use crate::upkeep::needs::Needs;
use crate::upkeep::rewrite::{Fate, Fates};

/// What becomes of frames if so many per cent may stay unused.
pub struct Kept<'n> {
    /// What snapshots need.
    pub needs: &'n Needs,
    /// In per cent.
    pub max_unused: f64,
}

impl Fates for Kept<'_> {
    fn of(&self, pack: &PackRecord, trailer: &Trailer) -> Vec<Fate> {
        let needs = self.needs;
        let fate = |frame| {
            let is_live = |slot| needs.is_live(pack, slot);
            fate(trailer, frame, is_live, needs.is_base(pack, frame), self.max_unused)
        };
        trailer.frames.iter().map(fate).collect()
    }

    fn keeps(&self, pack: &PackRecord, slot: u32) -> bool {
        self.needs.is_live(pack, slot)
    }
}

impl Kept<'_> {
    /// How each pack is used.
    pub fn uses(&self, catalog: &Catalog, observer: &dyn Observer, stop: &Stop) -> Result<Vec<PackUse>> {
        let packs: Vec<PackRecord> = catalog.index()?.packs().to_vec();
        observer.event(Event::Phase { name: "planning", bytes: None });
        let mut uses = Vec::with_capacity(packs.len());
        for pack in &packs {
            stop.check()?;
            uses.push(self.use_of(catalog, pack)?);
        }
        Ok(uses)
    }

    fn use_of(&self, catalog: &Catalog, pack: &PackRecord) -> Result<PackUse> {
        let is_needed = self.needs.is_needed(pack);
        let mut found = PackUse { pack: self.needs.member(pack), is_needed, unused: 0, gain: 0 };
        if !found.is_needed || self.needs.is_live_whole(pack) {
            found.unused = if found.is_needed { 0 } else { pack.len };
            return Ok(found);
        }
        let trailer = catalog.reader().open(&pack.id, pack.len)?.trailer;
        let gain = |max_unused| Kept { max_unused, ..*self }.gain(pack, &trailer);
        found.unused = gain(0.0);
        found.gain = gain(self.max_unused);
        Ok(found)
    }

    /// About how much shorter it becomes: what is kept whole is as long as it was.
    fn gain(&self, pack: &PackRecord, trailer: &Trailer) -> u64 {
        let is_live = |slot| self.needs.is_live(pack, slot);
        let len = |frame, fate| len_after(trailer, frame, fate, is_live);
        let gain = |(frame, fate)| len(frame, Fate::Whole).saturating_sub(len(frame, fate));
        trailer.frames.iter().zip(self.of(pack, trailer)).map(gain).sum()
    }
}
