//! Keeping the index in step with the packs, down to making it anew from them alone.
//!
//! Packs are the truth. Whenever the index is opened, the list of packs is compared with it:
//! trailers of unknown packs are read, packs that vanished are dropped.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, accessat, flock};

use super::catalog::Catalog;
use super::index::{self, BATCH_CHUNKS, Index, NewPack, Opened, is_corrupt};
use super::lock::LockMode;
use super::reader::{OpenPack, PackReader};
use super::{Intent, Repo, cache_folder, layout};
use crate::error::{Error, IoContext, Result};
use crate::id::{ChunkId, PackId};
use crate::observe::{Event, Observer, Stop};
use crate::text::format_size;

/// Packs whose chunks are indexed in memory where the disk has no room, in bytes: at 2 KiB a chunk,
/// which is few, they take 110 MiB.
pub const MEMORY_PACKS_MAX: u64 = 8 << 30;

impl Repo {
    /// The repository's chunks: opens the index, or makes it anew, and brings it up to date.
    pub fn catalog(&self, observer: &dyn Observer, stop: &Stop) -> Result<Catalog> {
        let reader = PackReader::new(self.store().clone(), self.keys().clone(), self.id());
        let mut index = self.open_index(observer)?;
        index.set_bad(self.known_bad(observer)?);
        // Who only reads has nothing to lose by trying.
        index.set_last_resort(self.intent == Intent::Read);
        Update { repo: self, reader: &reader, observer, stop }.run(&mut index)?;
        Catalog::new(reader, index)
    }

    /// As [`Repo::catalog`], with an index in memory that is made from the packs and is gone
    /// afterwards: for a full disk. Refused for more than [`MEMORY_PACKS_MAX`] bytes of packs.
    pub fn catalog_in_memory(&self, observer: &dyn Observer, stop: &Stop) -> Result<Catalog> {
        let bytes: u64 = self.list_packs()?.values().sum();
        if bytes > MEMORY_PACKS_MAX {
            return Err(Error::Refused(format!(
                "the disk is full, and an index of {} of packs does not fit into memory: make some room",
                format_size(bytes)
            )));
        }
        let reader = PackReader::new(self.store().clone(), self.keys().clone(), self.id());
        let mut index = Index::in_memory(&self.keys().index(), &self.id())?;
        Update { repo: self, reader: &reader, observer, stop }.run(&mut index)?;
        Catalog::new(reader, index)
    }

    /// Removes the index; the next command makes it anew. For the holder of the exclusive lock.
    pub fn remove_index(&self) -> Result<()> {
        remove_index(&self.index_path()?)
    }

    /// Makes the index anew from the packs alone.
    pub fn rebuild_index(&self, observer: &dyn Observer, stop: &Stop) -> Result<Catalog> {
        let path = self.index_path()?;
        if let Some(folder) = path.parent() {
            make_private_folder(folder)?;
            let _turn = take_turn(folder)?;
            remove_index(&path)?;
        }
        self.catalog(observer, stop)
    }

    /// The index as it is, before anything brings it up to date.
    pub fn inspect_index(&self) -> Result<IndexState> {
        let mut state = IndexState::default();
        let opened = match self.index_on_read_only_medium()? {
            Some(index) => Opened::Usable(Box::new(index)),
            None => {
                let path = self.index_path()?;
                Index::open(&path, index::Access::ReadWrite, &self.keys().index(), &self.id())?
            }
        };
        let index = match opened {
            Opened::Usable(index) => *index,
            Opened::Stale(why) => return Ok(IndexState { stale: Some(why), ..state }),
        };
        state.compare(&index, &self.list_packs()?);
        state.verify(index)?;
        Ok(state)
    }

    /// Where the index is: beside the packs, unless these lie where a database is not safe or
    /// cannot be written.
    pub fn index_path(&self) -> Result<PathBuf> {
        if self.lock_mode() == LockMode::Flock && self.is_writable() {
            return Ok(self.root().join(layout::INDEX).join(layout::INDEX_FILE));
        }
        self.cache_index_path()
    }

    fn cache_index_path(&self) -> Result<PathBuf> {
        let dir = self.cache_dir.as_deref().ok_or_else(|| {
            Error::Refused("the index needs a cache folder here: name one with --cache-dir".into())
        })?;
        Ok(cache_folder(dir, &self.id()).join(layout::INDEX_FILE))
    }

    /// A lock says little: a file that can be read can be locked, on a read-only medium too.
    fn is_writable(&self) -> bool {
        let folder = self.root().join(layout::INDEX);
        let is_open = || match folder.exists() {
            true => may_write(&folder) && may_write_or_make(&folder.join(layout::INDEX_FILE)),
            false => may_write(self.root()),
        };
        self.intent != Intent::Read || (self.lock.is_some() && is_open())
    }

    fn open_index(&self, observer: &dyn Observer) -> Result<Index> {
        if let Some(index) = self.index_on_read_only_medium()? {
            return Ok(index);
        }
        let path = self.index_path()?;
        let folder = path.parent().ok_or(Error::Internal("an index without a folder"))?;
        make_private_folder(folder)?;
        // Who finds no index makes one, and must not take away what another is just making.
        let _turn = take_turn(folder)?;
        let key = self.keys().index();
        match Index::open(&path, index::Access::ReadWrite, &key, &self.id())? {
            Opened::Usable(index) => Ok(*index),
            Opened::Stale(why) => {
                if path.exists() || !self.list_packs()?.is_empty() {
                    observer.event(Event::Notice(format!("the index is made anew: {why}")));
                }
                remove_index(&path)?;
                let mut index = Index::create(&path, &key, &self.id())?;
                // Which packs vanished before, only the old one could have told.
                index.add_suspects(&self.snapshot_ids()?)?;
                Ok(index)
            }
        }
    }

    /// The repository's own index, if it is there and just must not be written.
    fn index_on_read_only_medium(&self) -> Result<Option<Index>> {
        if self.is_writable() {
            return Ok(None);
        }
        let path = self.root().join(layout::INDEX).join(layout::INDEX_FILE);
        match Index::open(&path, index::Access::ReadOnly, &self.keys().index(), &self.id()) {
            Ok(Opened::Usable(index)) if self.knows_all_packs(&index)? => Ok(Some(*index)),
            _ => Ok(None),
        }
    }

    fn knows_all_packs(&self, index: &Index) -> Result<bool> {
        let packs = self.list_packs()?;
        let known = index.packs().iter().filter(|pack| packs.get(&pack.id) == Some(&pack.len)).count();
        Ok(known == packs.len() && known == index.packs().len())
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

fn may_write(path: &Path) -> bool {
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

fn may_write_or_make(file: &Path) -> bool {
    !file.exists() || may_write(file)
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

fn make_private_folder(folder: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).at("create", folder)
}

/// Waits until no other process opens or makes the index; lasts until it is dropped.
fn take_turn(folder: &Path) -> Result<File> {
    let path = folder.join(layout::INDEX_TURN);
    let file = File::options().create(true).append(true).mode(0o600).open(&path).at("open", &path)?;
    flock(&file, FlockOperation::LockExclusive).at("lock", &path)?;
    Ok(file)
}

fn remove_index(path: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(&name) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at("remove", &name),
            _ => {}
        }
    }
    Ok(())
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
        if self.read_unknown(index, packs)? {
            index.add_suspects(&self.repo.snapshot_ids()?)?;
        }
        Ok(())
    }

    fn notice(&self, text: String) {
        self.observer.event(Event::Notice(text));
    }

    /// Adds packs that the index does not know; whether some could not be read.
    fn read_unknown(&self, index: &mut Index, packs: HashMap<PackId, u64>) -> Result<bool> {
        if packs.is_empty() {
            return Ok(false);
        }
        self.observer
            .event(Event::Phase { name: "reading tables of packs", bytes: Some(packs.values().sum()) });
        let mut batch: Vec<(OpenPack, u64)> = Vec::new();
        let (mut chunks, mut broken) = (0, false);
        for (id, len) in packs {
            self.stop.check()?;
            match self.reader.open(&id, len) {
                Ok(pack) => {
                    // Whoever wrote it may have been killed before it was durable.
                    self.repo.store().adopt(&layout::pack(&id));
                    chunks += pack.trailer.slots.len();
                    batch.push((pack, len));
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

fn add(index: &mut Index, batch: &[(OpenPack, u64)]) -> Result<()> {
    let ids: Vec<Vec<ChunkId>> =
        batch.iter().map(|(pack, _)| pack.trailer.slots.iter().map(|slot| slot.id).collect()).collect();
    let packs: Vec<NewPack> = batch
        .iter()
        .zip(&ids)
        .map(|((pack, len), ids)| NewPack {
            id: pack.id,
            class: pack.class,
            len: *len,
            trailer_check: pack.check,
            ids,
        })
        .collect();
    index.add_packs(&packs)
}
