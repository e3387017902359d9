//! The index: which chunk is in which pack. A cache of hints, which the packs' trailers can rebuild.
//!
//! A chunk is known by an ordinal: its pack's first ordinal plus its slot in the pack. Ordinals and
//! pack numbers are never used twice, so a row whose pack is gone is recognised, ignored, and dropped
//! by the next merge. Additions become sorted runs; runs are merged into larger ones (`merge`).
//!
//! It knows no names, no sizes of chunks, and not whether a pack still is in the store: the caller
//! compares [`Index::packs`] with the store's list.

mod merge;
mod renew;
mod run;
mod state;
mod tables;
#[cfg(test)]
mod tests;

pub use super::schema::{Access, is_corrupt, is_unwritable};
pub use merge::Merge;
pub use renew::Renewal;

use super::schema::{self, During};
use crate::error::{IoContext, Result};
use crate::format::bad::{Bad, Slots};
use crate::format::pack::Class;
use crate::id::{ChunkId, Key, PackId, RepositoryId, SnapshotId, mac};
use run::Seal;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use state::{LoadedRun, State};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use tables::{Meta, delete_packs, has_suspect, has_suspects, insert_suspects};

/// What the filters may take of the memory: enough for 70 million chunks.
pub const FILTERS_MAX: u64 = 96 << 20;
/// Chunks that are best added at once: fewer make more runs to merge, more are sorted in memory.
pub const BATCH_CHUNKS: usize = 1 << 18;

/// A pack as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRecord {
    /// Its number in the index.
    pub number: u32,
    /// Its name.
    pub id: PackId,
    /// Its class.
    pub class: Class,
    /// Its length in bytes.
    pub len: u64,
    /// The ordinal of its first slot.
    pub first_ordinal: u64,
    /// How many slots it has.
    pub chunks: u32,
    /// What its trailer must be, as the caller said when it was added.
    pub trailer_check: [u8; 16],
}

impl PackRecord {
    fn end_ordinal(&self) -> u64 {
        self.first_ordinal + u64::from(self.chunks)
    }

    fn seal(&self, key: &Key) -> Seal {
        let numbers = [self.number.into(), self.class.code().into(), self.len, self.first_ordinal];
        let numbers = numbers.map(u64::to_le_bytes);
        let parts: [&[u8]; 5] =
            [b"pack", numbers.as_flattened(), &self.chunks.to_le_bytes(), &self.id.0, &self.trailer_check];
        mac(key, &parts)
    }
}

/// A pack to be added.
#[derive(Debug, Clone)]
pub struct NewPack<'a> {
    /// Its name.
    pub id: PackId,
    /// Its class.
    pub class: Class,
    /// Its length in bytes.
    pub len: u64,
    /// A checksum of its trailer, to be compared before the pack is relied on.
    pub trailer_check: [u8; 16],
    /// Its chunks in the order of their slots.
    pub ids: &'a [ChunkId],
    /// Its number and first ordinal, if it had some in an index that this one replaces.
    pub before: Option<(u32, u64)>,
}

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// The pack's number in the index.
    pub pack: u32,
    /// The chunk's slot in it.
    pub slot: u32,
}

/// How much the index holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexCounts {
    /// Packs.
    pub packs: u64,
    /// Chunks in them, copies counted.
    pub chunks: u64,
    /// Rows, those of vanished packs counted.
    pub rows: u64,
    /// Runs.
    pub runs: u64,
    /// Bytes on disk.
    pub file_bytes: u64,
}

/// What [`Index::open`] found.
pub enum Opened {
    /// An index of this repository.
    Usable(Box<Index>),
    /// None that can be used, and why: it is to be created anew and filled from the packs.
    Stale(String),
}

/// The open index. One process may have several, and several processes may have it open.
pub struct Index {
    db: Connection,
    path: PathBuf,
    access: Access,
    state: State,
    last_resort: bool,
    /// Whether it is looked at as a whole before something counts as missing.
    doubts: bool,
    renewal: Option<Renewal>,
    renewed: Option<String>,
}

impl Index {
    /// Opens the index at `path`; whatever is wrong with its file makes it stale.
    pub fn open(path: &Path, access: Access, key: &Key, repository: &RepositoryId) -> Result<Opened> {
        if let Some(why) = unusable_file(path, access)? {
            return Ok(Opened::Stale(why));
        }
        match Self::open_file(path, access, key, repository) {
            Err(error) if is_corrupt(&error) => Ok(Opened::Stale(error.to_string())),
            opened => opened,
        }
    }

    fn open_file(path: &Path, access: Access, key: &Key, repository: &RepositoryId) -> Result<Opened> {
        let db = schema::connect(path, access)?;
        if let Some(why) = schema::foreign(&db)? {
            return Ok(Opened::Stale(why));
        }
        let mut index = Self::over(db, path, access, key);
        index.refresh()?;
        if index.state.meta.repository != *repository {
            return Ok(Opened::Stale("it belongs to another repository".into()));
        }
        Ok(Opened::Usable(Box::new(index)))
    }

    /// Makes an empty index at `path`, in place of what is there. The caller sees to it that no two
    /// processes do so at once.
    pub fn create(path: &Path, key: &Key, repository: &RepositoryId) -> Result<Self> {
        Self::fill(schema::create(path)?, path, key, repository)
    }

    /// Makes an empty index in memory.
    pub fn in_memory(key: &Key, repository: &RepositoryId) -> Result<Self> {
        Self::fill(schema::create_in_memory()?, Path::new(""), key, repository)
    }

    fn fill(db: Connection, path: &Path, key: &Key, repository: &RepositoryId) -> Result<Self> {
        let meta = Meta { repository: *repository, next_pack: 1, next_ordinal: 0, next_run: 1, removals: 0 };
        meta.insert(&db, key).during("be created")?;
        let mut index = Self::over(db, path, Access::ReadWrite, key);
        index.refresh()?;
        Ok(index)
    }

    fn over(db: Connection, path: &Path, access: Access, key: &Key) -> Self {
        let (path, state) = (path.to_path_buf(), State::new(*key));
        Self { db, path, access, state, last_resort: false, doubts: false, renewal: None, renewed: None }
    }

    /// The packs, by number. What other processes did since the last call of anything that asks the
    /// database is not seen; [`Index::refresh`] sees it.
    pub fn packs(&self) -> &[PackRecord] {
        &self.state.packs
    }

    /// The pack with this number.
    pub fn pack(&self, number: u32) -> Option<&PackRecord> {
        let at = self.state.packs.binary_search_by_key(&number, |pack| pack.number).ok()?;
        self.state.packs.get(at)
    }

    /// The folder that its file is in.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Its file; an empty path if it is in memory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it was opened.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Follows what other processes did.
    pub fn refresh(&mut self) -> Result<()> {
        let tx = read(&self.db)?;
        self.state.follow(&tx)?;
        self.state.load_filters(&tx)
    }

    /// Keeps the filters in memory from now on, as many as fit [`FILTERS_MAX`], the smallest first.
    pub fn load_filters(&mut self) -> Result<()> {
        self.state.filters_max = FILTERS_MAX;
        self.sound(Self::refresh)
    }

    /// Adds packs and their chunks, in one transaction and one run; those that are there already are
    /// skipped. The chunks are sorted in memory, 32 bytes for each.
    pub fn add_packs(&mut self, packs: &[NewPack]) -> Result<()> {
        self.sound(|index| index.insert(packs))
    }

    fn insert(&mut self, packs: &[NewPack]) -> Result<()> {
        let tx = write(&self.db)?;
        self.state.follow(&tx)?;
        let added = self.state.add(&tx, packs)?;
        tx.commit().during("commit")?;
        self.state.meta = added.meta;
        self.state.packs.extend(added.packs);
        self.state.runs.extend(added.run.map(LoadedRun::new));
        self.refresh()
    }

    /// Forgets packs; their chunks are known no more, except where another pack has them too.
    pub fn remove_packs(&mut self, packs: &[PackId]) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        self.sound(|index| index.delete(packs))
    }

    fn delete(&mut self, packs: &[PackId]) -> Result<()> {
        let tx = write(&self.db)?;
        self.state.follow(&tx)?;
        let meta = Meta { removals: self.state.meta.removals + 1, ..self.state.meta };
        delete_packs(&tx, packs).and_then(|()| meta.update(&tx, &self.state.key)).during("remove packs")?;
        tx.commit().during("commit")?;
        let gone: HashSet<PackId> = packs.iter().copied().collect();
        self.state.meta = meta;
        self.state.forget(&gone);
        Ok(())
    }

    /// Makes all that was written so far durable, unless another process is in the way.
    pub fn settle(&mut self) -> Result<()> {
        merge::checkpoint(&self.db).during("be written")
    }

    /// Remembers that these snapshots may need chunks that are gone, since packs vanished when they
    /// were there already.
    pub fn add_suspects(&mut self, snapshots: &[SnapshotId]) -> Result<()> {
        self.sound(|Self { db, .. }| {
            let tx = write(db)?;
            insert_suspects(&tx, snapshots).and_then(|()| tx.commit()).during("remember what may be damaged")
        })
    }

    /// Forgets all suspects: somebody has looked, and all is there.
    pub fn clear_suspects(&mut self) -> Result<()> {
        self.sound(|Self { db, .. }| {
            let tx = write(db)?;
            tx.execute("DELETE FROM suspects", []).and_then(|_| tx.commit()).during("forget what was damaged")
        })
    }

    /// Whether anything may be gone that snapshots need.
    pub fn has_suspects(&mut self) -> Result<bool> {
        match self.state.bad().suspects.is_empty() {
            false => Ok(true),
            true => self.sound(|index| has_suspects(&index.db).during("be read")),
        }
    }

    /// Whether a snapshot may need chunks that are gone.
    pub fn is_suspect(&mut self, snapshot: &SnapshotId) -> Result<bool> {
        match self.state.bad().suspects.contains(snapshot) {
            true => Ok(true),
            false => self.sound(|index| has_suspect(&index.db, snapshot).during("be read")),
        }
    }

    /// What is known to be bad. Kept elsewhere; the index only leads nobody there.
    pub fn bad(&self) -> &Bad {
        self.state.bad()
    }

    /// From now on nobody is led to what is bad.
    pub fn set_bad(&mut self, bad: Bad) {
        *self.state.bad_mut() = bad;
    }

    /// Whether a chunk that is in no other place is looked for in bad ones: perhaps it can be read
    /// after all.
    pub fn set_last_resort(&mut self, on: bool) {
        self.last_resort = on;
    }

    /// Whether a chunk that is nowhere is damage. Then all of the index is checked before the first is
    /// said to be: a damaged page may lead past what is there.
    pub fn set_doubts(&mut self, on: bool) {
        self.doubts = on;
    }

    /// One more place that is bad; whether that was not known.
    pub fn add_bad(&mut self, pack: &PackId, slots: &Slots) -> bool {
        self.state.bad_mut().add(pack, slots)
    }

    /// Where each of these chunks is; any one place of several that is not known to be bad. Fastest
    /// in large batches.
    pub fn locate(&mut self, ids: &[ChunkId]) -> Result<Vec<Option<Location>>> {
        let found = self.sound(|index| index.look_up(ids))?;
        if !self.doubts || found.iter().all(Option::is_some) {
            return Ok(found);
        }
        self.doubts = false;
        self.sound(|index| index.verify().and_then(|()| index.look_up(ids)))
    }

    fn look_up(&mut self, ids: &[ChunkId]) -> Result<Vec<Option<Location>>> {
        let tx = read(&self.db)?;
        self.state.follow(&tx)?;
        let mut found = self.state.locate(&tx, ids)?;
        if self.last_resort && !self.state.bad().packs.is_empty() {
            for (place, id) in found.iter_mut().zip(ids).filter(|(place, _)| place.is_none()) {
                *place = self.state.copies(&tx, id)?.first().copied();
            }
        }
        Ok(found)
    }

    /// All places where a chunk is, bad ones too.
    pub fn copies(&mut self, id: &ChunkId) -> Result<Vec<Location>> {
        self.sound(|Self { db, state, .. }| {
            let tx = read(db)?;
            state.follow(&tx)?;
            state.copies(&tx, id)
        })
    }

    /// False if the chunk is surely unknown; by the filters alone, so without them always true
    /// unless the index is empty.
    pub fn may_contain(&self, id: &ChunkId) -> bool {
        self.state.runs.iter().any(|run| run.may_contain(id))
    }

    /// The ordinal of a chunk, if its pack is known.
    pub fn ordinal(&self, location: Location) -> Option<u64> {
        let pack = self.pack(location.pack)?;
        (location.slot < pack.chunks).then(|| pack.first_ordinal + u64::from(location.slot))
    }

    /// Where the chunk with this ordinal is, if its pack is known.
    pub fn location(&self, ordinal: u64) -> Option<Location> {
        self.state.location(ordinal)
    }

    /// All ordinals are below this.
    pub fn ordinal_end(&self) -> u64 {
        self.state.meta.next_ordinal
    }

    /// Calls `f` for each chunk in each place, run by run, in the order of ids in each.
    pub fn for_each_chunk(&mut self, mut f: impl FnMut(&ChunkId, Location) -> Result<()>) -> Result<()> {
        let tx = read(&self.db)?;
        self.state.follow(&tx)?;
        self.state.scan(&tx, |row| match self.state.location(row.ordinal) {
            Some(location) => f(&row.id, location),
            None => Ok(()),
        })
    }

    /// Reads all of the index, twice, and checks it; an error that [`is_corrupt`] knows asks for a new one.
    pub fn verify(&mut self) -> Result<()> {
        let tx = read(&self.db)?;
        self.state.data_version = None;
        self.state.follow(&tx)?;
        self.state.scan(&tx, |_| Ok(()))?;
        self.state.check_runs(&tx)?;
        schema::check_structure(&tx)
    }

    /// How much it holds.
    pub fn counts(&self) -> Result<IndexCounts> {
        Ok(IndexCounts {
            packs: self.state.packs.len() as u64,
            chunks: self.state.packs.iter().map(|pack| u64::from(pack.chunks)).sum(),
            rows: self.state.runs.iter().map(|run| run.entry.rows).sum(),
            runs: self.state.runs.len() as u64,
            file_bytes: file_len(&self.path)?.unwrap_or(0)
                + file_len(&schema::log_path(&self.path))?.unwrap_or(0),
        })
    }

    /// Closes it. The last of all processes to do so leaves one file, if there is room for it.
    pub fn close(self) -> Result<()> {
        if self.access == Access::ReadWrite {
            match merge::checkpoint(&self.db).during("be closed") {
                // What is in the log stays there.
                Err(e) if e.is_out_of_space() || is_unwritable(&e) => {}
                other => other?,
            }
        }
        self.db.close().map_err(|(_, e)| e).during("be closed")
    }
}

fn read(db: &Connection) -> Result<Transaction<'_>> {
    Transaction::new_unchecked(db, TransactionBehavior::Deferred).during("be read")
}

fn write(db: &Connection) -> Result<Transaction<'_>> {
    Transaction::new_unchecked(db, TransactionBehavior::Immediate).during("be written")
}

/// Why the file at `path` is out of the question, if it is.
fn unusable_file(path: &Path, access: Access) -> Result<Option<String>> {
    if file_len(path)?.is_none() {
        return Ok(Some("it is missing".into()));
    }
    // SQLite would wait for the other end of a pipe.
    if [path, &schema::log_path(path)].into_iter().any(|file| file.exists() && !file.is_file()) {
        return Ok(Some("it is not a file".into()));
    }
    // Who opens it read-only sees nothing of the log.
    let unclosed =
        access == Access::ReadOnly && file_len(&schema::log_path(path))?.is_some_and(|len| len > 0);
    Ok(unclosed.then(|| "it is in use or was not closed".into()))
}

fn file_len(path: &Path) -> Result<Option<u64>> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).at("read", path),
    }
}
