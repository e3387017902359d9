//! What a repair will do.

use std::collections::HashSet;

use serde::Serialize;

use super::rescue::{only_here, unless_damage, visit};
use crate::error::{Error, Result};
use crate::format::bad::{Bad, Slots};
use crate::format::pack::HEADER_LEN;
use crate::id::{ChunkId, PackId, SnapshotId};
use crate::observe::{Event, Observer, Stop};
use crate::repo::catalog::Catalog;
use crate::repo::objects::OBJECT_MAX;
use crate::repo::{Repo, layout, mend};
use crate::upkeep::check::{self, CheckOptions, Damage, Lost};

/// What a repair will do.
#[derive(Debug, Default, Serialize)]
pub struct Plan {
    /// Copies of the configuration that are written anew.
    pub configs: Vec<String>,
    /// Packs that are written anew just as they were: one bit had flipped in what tells what they hold,
    /// or something was added behind their end.
    #[serde(serialize_with = "as_texts")]
    pub packs_mended: Vec<PackId>,
    /// Other damaged packs.
    pub packs: Vec<PackPlan>,
    /// Snapshots whose objects are damaged.
    pub snapshots: Vec<SnapshotPlan>,
    /// What is known to be bad.
    #[serde(skip)]
    pub bad: Bad,
}

/// What becomes of a damaged pack.
#[derive(Debug, Serialize)]
pub struct PackPlan {
    /// Its id.
    #[serde(serialize_with = "as_text")]
    pub id: PackId,
    /// Its length.
    pub bytes: u64,
    /// Chunks that can be read.
    pub chunks_readable: u64,
    /// Of those, the ones that are nowhere else and are stored anew.
    pub chunks_saved: u64,
    /// Their length.
    pub bytes_saved: u64,
    /// Chunks that are known to be in it and cannot be read.
    pub chunks_unreadable: u64,
    /// Whether it goes, once what can be read of it is safe.
    pub removed: bool,
    /// Why it stays, if it does.
    pub kept_because: Option<&'static str>,
    /// Chunks that cannot be read.
    #[serde(skip)]
    unreadable: Vec<ChunkId>,
    /// Whether it is known what it holds.
    #[serde(skip)]
    is_known: bool,
}

/// What becomes of a snapshot whose object is damaged.
#[derive(Debug, Serialize)]
pub struct SnapshotPlan {
    /// Its id.
    #[serde(serialize_with = "as_text")]
    pub id: SnapshotId,
    /// `mend`: one bit had flipped, and is put right. `put aside`: it cannot be read, and moves to
    /// `damaged/`. `leave`: the medium does not give it.
    pub action: &'static str,
    /// Its bytes, as they will be.
    #[serde(skip)]
    bytes: Vec<u8>,
}

fn as_texts<T: ToString, S: serde::Serializer>(ids: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ids.iter().map(T::to_string))
}

fn as_text<T: ToString, S: serde::Serializer>(id: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&id.to_string())
}

/// Checks, and plans what to do; also what is damaged now.
pub fn plan(
    repo: &Repo,
    options: &CheckOptions,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<(Plan, Vec<Damage>)> {
    let examined = check::examine(repo, options, observer, stop)?;
    let is_damaged = |name: &&str| examined.report.damaged.iter().any(|damage| damage.object == *name);
    let configs = layout::CONFIGS.iter().copied().filter(is_damaged).map(str::to_owned).collect();
    let snapshots = examined.snapshots.iter().map(|id| SnapshotPlan::new(repo, id)).collect::<Result<_>>()?;
    let mut plan = Plan { configs, snapshots, bad: examined.bad, ..Plan::default() };
    if !plan.bad.packs.is_empty() {
        plan.look_into(repo, examined.lost, observer, stop)?;
    }
    Ok((plan, examined.report.damaged))
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let idle = |pack: &PackPlan| pack.chunks_saved == 0 && !pack.removed;
        self.configs.is_empty()
            && self.packs_mended.is_empty()
            && self.packs.iter().all(idle)
            && self.snapshots.iter().all(|snapshot| snapshot.action == "leave")
    }

    /// From now on nobody is led to damaged packs at all.
    pub fn lead_elsewhere(&self, catalog: &Catalog) -> Result<()> {
        let mut index = catalog.index()?;
        for pack in &self.packs {
            index.add_bad(&pack.id, &Slots::all());
        }
        Ok(())
    }

    /// Reads the damaged packs, and decides what becomes of each.
    fn look_into(&mut self, repo: &Repo, mut lost: Lost, observer: &dyn Observer, stop: &Stop) -> Result<()> {
        let catalog = repo.catalog(observer, stop)?;
        catalog.shun_bad()?;
        let listed = repo.list_packs()?;
        for id in self.bad.packs.keys() {
            stop.check()?;
            let Some(len) = listed.get(id) else { continue };
            match is_mendable(&catalog, id, *len)? {
                true => self.packs_mended.push(*id),
                false => self.packs.push(PackPlan::new(*id, *len)),
            }
        }
        self.lead_elsewhere(&catalog)?;
        let bytes = self.packs.iter().map(|pack| pack.bytes).sum();
        observer.event(Event::Phase { name: "reading damaged packs", bytes: Some(bytes) });
        let mut saved = HashSet::new();
        for pack in &mut self.packs {
            stop.check()?;
            pack.read(&catalog, &mut lost, &mut saved)?;
            observer.event(Event::Advance { bytes: pack.bytes, files: 0 });
        }
        let wanted = Wanted::new(&catalog, &lost)?;
        let bases = self.bases_of_others(repo, &catalog, stop)?;
        for pack in &mut self.packs {
            pack.kept_because = wanted.reason_to_keep(pack, &lost, &catalog, &bases)?;
            pack.removed = pack.kept_because.is_none();
        }
        catalog.close(observer)
    }

    /// Packs that frames of sound packs are compressed against.
    fn bases_of_others(&self, repo: &Repo, catalog: &Catalog, stop: &Stop) -> Result<HashSet<PackId>> {
        let mut bases = HashSet::new();
        for (id, len) in repo.list_packs()? {
            stop.check()?;
            if self.bad.packs.get(&id).is_some_and(Slots::is_all) {
                continue;
            }
            match catalog.reader().open(&id, len) {
                Ok(pack) => bases.extend(pack.trailer.packs.into_iter().filter(|base| *base != id)),
                Err(error) => unless_damage(error)?,
            }
        }
        Ok(bases)
    }

    /// How many damaged packs still have readable chunks that are nowhere else.
    pub fn saved(&self, catalog: &Catalog) -> Result<u64> {
        let mut missing = 0;
        for pack in self.packs.iter().filter(|pack| pack.removed && pack.chunks_saved > 0) {
            visit(catalog, &pack.id, pack.bytes, |part| {
                missing += only_here(catalog, part)?.len() as u64;
                Ok(())
            })?;
        }
        Ok(missing)
    }
}

/// Whether a pack can be put right as a whole.
fn is_mendable(catalog: &Catalog, id: &PackId, len: u64) -> Result<bool> {
    match mend::pack(catalog.reader(), id, len) {
        Ok(mended) => Ok(mended.is_some()),
        Err(error) => unless_damage(error).map(|()| false),
    }
}

/// What is missing, by where it might be.
struct Wanted {
    /// Packs that have it in their tables of contents.
    packs: HashSet<PackId>,
    /// Whether something is in no pack whose table of contents is known.
    elsewhere: bool,
}

impl Wanted {
    fn new(catalog: &Catalog, lost: &Lost) -> Result<Self> {
        let mut wanted = Wanted { packs: HashSet::new(), elsewhere: false };
        let mut index = catalog.index()?;
        for id in &lost.ids {
            let places = index.copies(id)?;
            wanted.elsewhere |= places.is_empty();
            wanted.packs.extend(places.into_iter().filter_map(|at| index.pack(at.pack).map(|pack| pack.id)));
        }
        Ok(wanted)
    }

    fn reason_to_keep(
        &self,
        pack: &PackPlan,
        lost: &Lost,
        catalog: &Catalog,
        bases: &HashSet<PackId>,
    ) -> Result<Option<&'static str>> {
        if pack.bytes <= HEADER_LEN as u64 {
            return Ok(None);
        }
        let is_indexed = catalog.index()?.packs().iter().any(|record| record.id == pack.id);
        let needed = match pack.is_known {
            true => {
                lost.are_more && pack.chunks_unreadable > 0
                    || pack.unreadable.iter().any(|id| lost.ids.contains(id))
            }
            false if is_indexed => lost.are_more || self.packs.contains(&pack.id),
            false => lost.are_more || self.elsewhere,
        };
        Ok(match (needed, bases.contains(&pack.id)) {
            (true, _) if pack.is_known || is_indexed => Some("snapshots need what cannot be read in it"),
            (true, _) => Some("it may hold what snapshots need"),
            (false, true) => Some("frames of other packs are compressed against it"),
            (false, false) => None,
        })
    }
}

impl PackPlan {
    fn new(id: PackId, bytes: u64) -> Self {
        Self {
            id,
            bytes,
            chunks_readable: 0,
            chunks_saved: 0,
            bytes_saved: 0,
            chunks_unreadable: 0,
            removed: false,
            kept_because: None,
            unreadable: Vec::new(),
            is_known: false,
        }
    }

    /// Reads it; what can be read is not lost.
    fn read(&mut self, catalog: &Catalog, lost: &mut Lost, saved: &mut HashSet<ChunkId>) -> Result<()> {
        let (id, len) = (self.id, self.bytes);
        self.is_known = visit(catalog, &id, len, |part| {
            for (id, bytes) in part.chunks {
                match bytes {
                    Some(_) => {
                        self.chunks_readable += 1;
                        lost.ids.remove(id);
                    }
                    None => self.unreadable.push(*id),
                }
            }
            for (id, bytes) in only_here(catalog, part)? {
                if saved.insert(id) {
                    self.chunks_saved += 1;
                    self.bytes_saved += bytes.len() as u64;
                }
            }
            Ok(())
        })?;
        self.chunks_unreadable = self.unreadable.len() as u64;
        Ok(())
    }
}

impl SnapshotPlan {
    fn new(repo: &Repo, id: &SnapshotId) -> Result<Self> {
        let bytes = match repo.store().read(&layout::snapshot(id), OBJECT_MAX) {
            Ok(bytes) => bytes,
            Err(error) => {
                unless_damage(error)?;
                return Ok(Self { id: *id, action: "leave", bytes: Vec::new() });
            }
        };
        Ok(match mend::snapshot(id, bytes.clone()) {
            Some(bytes) => Self { id: *id, action: "mend", bytes },
            None => Self { id: *id, action: "put aside", bytes },
        })
    }

    /// Mends it or puts it aside.
    pub fn execute(&self, repo: &Repo) -> Result<()> {
        let (store, name) = (repo.store(), layout::snapshot(&self.id));
        repo.still_locked()?;
        match self.action {
            "mend" => store.replace(&name, &self.bytes)?,
            "put aside" => {
                if !self.bytes.is_empty() {
                    put_once(repo, &layout::damaged_snapshot(&self.id), &self.bytes)?;
                }
                store.remove(&name)?;
            }
            _ => {}
        }
        store.barrier()
    }
}

/// Puts an object, unless a repair before was interrupted after it had.
fn put_once(repo: &Repo, name: &str, bytes: &[u8]) -> Result<()> {
    match repo.store().put(name, bytes) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {}
        done => done?,
    }
    repo.store().barrier()
}
