//! Keeping the index in step with the packs, down to making it anew from them alone.
//!
//! Packs are the truth. Whenever the index is opened, the list of packs is compared with it:
//! trailers of unknown packs are read, packs that vanished are dropped.

use std::collections::{HashMap, HashSet};

use super::bases;
use super::catalog::{BASES_ADDING_MAX, BASES_READING_MAX, Catalog};
use super::index::{Access, BATCH_CHUNKS, Index, NewPack, Opened, Renewal, is_corrupt, is_unwritable};
use super::reader::{OpenPack, PackReader};
use super::snapshots::snapshot_ids;
use super::{Intent, Repo, cannot_write, layout, place};
use crate::error::{Error, Result};
use crate::format::pack::Class;
use crate::id::{ChunkId, Key, PackId, RepositoryId};
use crate::observe::{Event, Observer, Stop};
use crate::text::format_size;

/// Packs whose chunks are indexed in memory where the disk has no room, in bytes: at 2 KiB a chunk,
/// which is few, they take 110 MiB.
pub const MEMORY_PACKS_MAX: u64 = 8 << 30;

impl Repo {
    /// As [`Repo::catalog`], with an index in memory that is made from the packs and is gone
    /// afterwards: for a full disk. Refused for more than [`MEMORY_PACKS_MAX`] bytes of packs.
    pub fn catalog_in_memory(&self, observer: &dyn Observer, stop: &Stop) -> Result<Catalog> {
        check_fits_memory(self.list_packs()?.values().sum())?;
        let index = Index::in_memory(&self.keys().index(), &self.id())?;
        self.update(index, observer, stop)
    }

    /// Brings an index in step with the packs, and with what is known to be bad.
    pub(super) fn update(&self, mut index: Index, observer: &dyn Observer, stop: &Stop) -> Result<Catalog> {
        let reader = self.pack_reader();
        index.set_bad(self.known_bad(observer)?);
        // Who only reads has nothing to lose by trying.
        index.set_last_resort(self.intent == Intent::Read);
        // What is new to a backup is nowhere.
        index.set_doubts(self.intent != Intent::Add);
        index.renew_by(self.renewal(&reader));
        Update { repo: self, reader: &reader, observer, stop }.run(&mut index)?;
        let bases_max = match self.intent {
            Intent::Read => BASES_READING_MAX,
            Intent::Add | Intent::Change => BASES_ADDING_MAX,
        };
        Catalog::new(reader, index, bases_max)
    }

    /// What makes an index anew while it is used.
    fn renewal(&self, reader: &PackReader) -> Renewal {
        let (reader, key, id) = (reader.clone(), self.keys().index(), self.id());
        Box::new(move |damaged| {
            let filled = |index| filled(index, damaged, &reader);
            let in_memory = || in_memory(damaged, &key, &id).and_then(filled);
            match damaged.access() {
                Access::ReadOnly => in_memory(),
                Access::ReadWrite => match place::remade(damaged.path(), &key, &id, filled) {
                    // The next one makes it of the packs.
                    Err(e) if cannot_write(&e) || is_unwritable(&e) => in_memory(),
                    made => made,
                },
            }
        })
    }

    /// The index as it is, before anything brings it up to date.
    pub fn inspect_index(&self) -> Result<IndexState> {
        let mut state = IndexState::default();
        let index = match self.open_index_as_it_is()? {
            Opened::Usable(index) => *index,
            Opened::Stale(why) => return Ok(IndexState { stale: Some(why), ..state }),
        };
        state.compare(&index, &self.list_packs()?);
        state.verify(index)?;
        Ok(state)
    }

    /// Reads its packs.
    pub fn pack_reader(&self) -> PackReader {
        PackReader::new(self.store().clone(), self.keys().clone(), self.id())
    }

    /// All packs in the store and their lengths.
    pub fn list_packs(&self) -> Result<HashMap<PackId, u64>> {
        let mut packs = HashMap::new();
        self.store().list(layout::PACKS, &mut |name, len| {
            if let Some(id) = layout::pack_id(name) {
                packs.insert(id, len);
            }
            Ok(())
        })?;
        Ok(packs)
    }
}

/// Refuses more than [`MEMORY_PACKS_MAX`] bytes of packs.
fn check_fits_memory(bytes: u64) -> Result<()> {
    if bytes <= MEMORY_PACKS_MAX {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "the index cannot be written, and one of {} of packs does not fit into memory: make some room, or name a folder on another disk with --cache-dir",
        format_size(bytes)
    )))
}

/// What [`Repo::inspect_index`] found.
#[derive(Debug, Default)]
pub struct IndexState {
    /// Why it is to be made anew before it can be used, if it is.
    pub stale: Option<String>,
    /// Why it must not be relied on, although it can be used.
    pub damaged: Option<Error>,
    /// Packs that it knows and that are not there any more.
    pub vanished: Vec<PackId>,
    /// How many packs it does not know.
    pub unknown: usize,
}

impl IndexState {
    fn compare(&mut self, index: &Index, packs: &HashMap<PackId, u64>) {
        let known: HashSet<PackId> = index.packs().iter().map(|pack| pack.id).collect();
        self.unknown = packs.keys().filter(|id| !known.contains(*id)).count();
        self.vanished.extend(known.into_iter().filter(|id| !packs.contains_key(id)));
        self.vanished.sort_unstable();
    }

    fn verify(&mut self, mut index: Index) -> Result<()> {
        match index.verify() {
            Ok(()) => index.close(),
            Err(error) if is_corrupt(&error) => {
                self.damaged = Some(error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Brings an index in step with the packs.
struct Update<'a> {
    repo: &'a Repo,
    reader: &'a PackReader,
    observer: &'a dyn Observer,
    stop: &'a Stop,
}

impl Update<'_> {
    /// Snapshots that may have lost chunks are remembered before the packs are forgotten.
    fn run(&self, index: &mut Index) -> Result<()> {
        let mut packs = self.repo.list_packs()?;
        let all: HashSet<PackId> = packs.keys().copied().collect();
        let mut vanished = Vec::new();
        for record in index.packs() {
            if packs.remove(&record.id) != Some(record.len) {
                vanished.push(record.id);
            }
        }
        if !vanished.is_empty() {
            self.notice(format!(
                "{} pack(s) are gone or have another length: run varv check",
                vanished.len()
            ));
            index.add_suspects(&self.repo.snapshot_ids()?)?;
            index.remove_packs(&vanished)?;
        }
        if self.read_unknown(index, packs, &all)? {
            index.add_suspects(&self.repo.snapshot_ids()?)?;
        }
        if self.repo.intent != Intent::Read && index.has_suspects()? {
            self.shun_what_lacks_bases(index, &all)?;
        }
        Ok(())
    }

    /// Whoever adds must not rely on chunks that nobody can read any more. A check names them.
    fn shun_what_lacks_bases(&self, index: &mut Index, all: &HashSet<PackId>) -> Result<()> {
        let data = index.packs().iter().filter(|pack| pack.class == Class::Data);
        let packs: Vec<(PackId, u64)> = data.map(|pack| (pack.id, pack.len)).collect();
        self.observer.event(Event::Phase { name: "reading tables of packs", bytes: None });
        bases::spread(self.reader, &packs, all, index, self.stop)
    }

    fn notice(&self, text: String) {
        self.observer.event(Event::Notice(text));
    }

    /// Adds packs that the index does not know; whether some could not be read, or lack what they need.
    fn read_unknown(
        &self,
        index: &mut Index,
        packs: HashMap<PackId, u64>,
        all: &HashSet<PackId>,
    ) -> Result<bool> {
        if packs.is_empty() {
            return Ok(false);
        }
        self.observer
            .event(Event::Phase { name: "reading tables of packs", bytes: Some(packs.values().sum()) });
        let mut batch = Vec::new();
        let (mut chunks, mut broken) = (0, false);
        for (id, len) in packs {
            self.stop.check()?;
            match self.reader.open(&id, len) {
                Ok(pack) => {
                    // Whoever wrote it may have been killed before it was durable.
                    self.repo.store().adopt(&layout::pack(&id));
                    if pack.trailer.packs.iter().any(|base| !all.contains(base)) {
                        self.notice(format!("what pack {id} is compressed against is gone: run varv check"));
                        broken = true;
                    }
                    chunks += pack.trailer.slots.len();
                    batch.push((pack, len, None));
                }
                Err(e) if e.is_damage() && index.bad().contains(&id, 0) => drop(e),
                Err(e) if e.is_damage() => {
                    self.notice(format!("{e}; run varv check"));
                    broken = true;
                }
                Err(e) => return Err(e),
            }
            self.observer.event(Event::Advance { bytes: len, files: 0 });
            if chunks >= BATCH_CHUNKS {
                add(index, &batch)?;
                batch.clear();
                chunks = 0;
            }
        }
        add(index, &batch)?;
        Ok(broken)
    }
}

/// An empty index in memory in place of a damaged one, if there is room for what that knew.
fn in_memory(damaged: &Index, key: &Key, id: &RepositoryId) -> Result<Index> {
    check_fits_memory(damaged.packs().iter().map(|pack| pack.len).sum())?;
    Index::in_memory(key, id)
}

/// Takes over all packs but those that cannot be read. Which vanished before, only the damaged one
/// could have told.
fn filled(mut index: Index, damaged: &Index, reader: &PackReader) -> Result<Index> {
    index.add_suspects(&snapshot_ids(reader.store())?)?;
    let mut batch = Vec::new();
    let mut chunks = 0;
    for record in damaged.packs() {
        match reader.open(&record.id, record.len) {
            Ok(pack) if pack.check == record.trailer_check => {
                chunks += pack.trailer.slots.len();
                batch.push((pack, record.len, Some((record.number, record.first_ordinal))));
            }
            Ok(_) => {}
            Err(e) if e.is_damage() => {}
            Err(e) => return Err(e),
        }
        if chunks >= BATCH_CHUNKS {
            add(&mut index, &batch)?;
            batch.clear();
            chunks = 0;
        }
    }
    add(&mut index, &batch)?;
    index.continue_from(damaged)?;
    Ok(index)
}

/// A pack, its length, and the number and first ordinal that it is to have, if not the next ones.
type Found = (OpenPack, u64, Option<(u32, u64)>);

fn add(index: &mut Index, batch: &[Found]) -> Result<()> {
    let ids: Vec<Vec<ChunkId>> =
        batch.iter().map(|(pack, ..)| pack.trailer.slots.iter().map(|slot| slot.id).collect()).collect();
    let packs: Vec<NewPack> = batch
        .iter()
        .zip(&ids)
        .map(|((pack, len, before), ids)| NewPack {
            id: pack.id,
            class: pack.class,
            len: *len,
            trailer_check: pack.check,
            ids,
            before: *before,
        })
        .collect();
    index.add_packs(&packs)
}
