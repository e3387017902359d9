//! What of the database is kept in memory, and asking the database with it.

use std::collections::{HashMap, HashSet};

use rusqlite::Connection;

use super::merge;
use super::run::{self, Finder, Pages, Row, Run, RunReader, RunWriter};
use super::tables::{
    Meta, check_order, data_version, insert_pack, insert_run, live_chunks, read_packs, read_runs,
};
use super::{Location, NewPack, PackRecord};
use crate::error::Result;
use crate::format::bad::Bad;
use crate::id::{ChunkId, Key, PackId, RepositoryId};
use crate::repo::filter::Filter;
use crate::repo::schema::{During, damaged};

/// So many single chunks are remembered, about 2 MiB.
const RECENT_MAX: usize = 1 << 15;

/// What of the database is kept in memory.
pub(super) struct State {
    pub(super) key: Key,
    pub(super) meta: Meta,
    pub(super) packs: Vec<PackRecord>,
    pub(super) runs: Vec<LoadedRun>,
    pub(super) filters_max: u64,
    /// SQLite's number for what other processes did; none before the first read.
    pub(super) data_version: Option<i64>,
    /// Places that no look-up leads to.
    bad: Bad,
    /// Where chunks are that were asked for one at a time: nodes, which one snapshot after the other
    /// leads to. A page of every run is read and checked for each otherwise.
    recent: HashMap<ChunkId, Location>,
    pages: Pages,
}

/// A run, and its filter if that is in memory.
pub(super) struct LoadedRun {
    pub(super) entry: Run,
    pub(super) filter: Option<Filter>,
}

impl LoadedRun {
    pub(super) fn new(entry: Run) -> Self {
        Self { entry, filter: None }
    }

    pub(super) fn may_contain(&self, id: &ChunkId) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.contains(id))
    }
}

/// What a transaction of additions will have added once it is committed.
pub(super) struct Added {
    pub(super) meta: Meta,
    pub(super) packs: Vec<PackRecord>,
    pub(super) run: Option<Run>,
}

impl State {
    pub(super) fn new(key: Key) -> Self {
        let meta = Meta {
            repository: RepositoryId([0; 16]),
            next_pack: 0,
            next_ordinal: 0,
            next_run: 0,
            removals: 0,
        };
        Self {
            key,
            meta,
            packs: Vec::new(),
            runs: Vec::new(),
            filters_max: 0,
            data_version: None,
            bad: Bad::default(),
            recent: HashMap::new(),
            pages: Pages::default(),
        }
    }

    pub(super) fn bad(&self) -> &Bad {
        &self.bad
    }

    /// To change what is bad.
    pub(super) fn bad_mut(&mut self) -> &mut Bad {
        self.recent.clear();
        &mut self.bad
    }

    /// Packs are known no more.
    pub(super) fn forget(&mut self, gone: &HashSet<PackId>) {
        self.recent.clear();
        self.packs.retain(|pack| !gone.contains(&pack.id));
    }

    /// Reads again what other processes changed; inside of the transaction that relies on it.
    pub(super) fn follow(&mut self, db: &Connection) -> Result<()> {
        let version = data_version(db).during("be read")?;
        if self.data_version != Some(version) {
            self.read(db)?;
            self.data_version = Some(version);
        }
        Ok(())
    }

    /// On an error, part of what was known is gone, and the next read is of everything.
    pub(super) fn read(&mut self, db: &Connection) -> Result<()> {
        let version = self.data_version.take();
        self.recent.clear();
        self.pages.clear();
        let meta = Meta::read(db, &self.key)?;
        // Packs are many and only ever added at the end, but for removals.
        let kept = match version.is_some() && meta.removals == self.meta.removals {
            true => self.meta.next_pack,
            false => 0,
        };
        let mut packs = Vec::new();
        read_packs(db, &self.key, kept, &mut packs)?;
        // What cannot be read any more is made anew of the packs that were known.
        self.packs.truncate(self.packs.partition_point(|pack| pack.number < kept));
        self.packs.append(&mut packs);
        check_order(&self.packs, &meta)?;
        let mut filters: HashMap<u64, Option<Filter>> =
            self.runs.drain(..).map(|run| (run.entry.number, run.filter)).collect();
        for entry in read_runs(db, &self.key)? {
            let filter = filters.remove(&entry.number).flatten();
            self.runs.push(LoadedRun { entry, filter });
        }
        self.meta = meta;
        self.data_version = version;
        Ok(())
    }

    pub(super) fn load_filters(&mut self, db: &Connection) -> Result<()> {
        let mut free = self.filters_max;
        self.runs.sort_by_key(|run| run.entry.rows);
        for run in &mut self.runs {
            let memory = run.entry.filter_memory();
            match memory <= free {
                true if run.filter.is_some() => {}
                true => run.filter = run::load_filter(db, &self.key, &run.entry)?,
                false => run.filter = None,
            }
            free = free.saturating_sub(memory);
        }
        Ok(())
    }

    pub(super) fn add(&self, db: &Connection, packs: &[NewPack]) -> Result<Added> {
        let mut added = Added { meta: self.meta, packs: Vec::new(), run: None };
        let mut rows = Vec::new();
        for pack in packs {
            if let Some((number, ordinal)) = pack.before {
                (added.meta.next_pack, added.meta.next_ordinal) = (number, ordinal);
            }
            let record = added.meta.record(pack)?;
            if insert_pack(db, &self.key, &record, added.meta.next_run).during("add packs")? {
                added.meta.next_pack += 1;
                added.meta.next_ordinal = record.end_ordinal();
                rows.extend((record.first_ordinal..).zip(pack.ids).map(|(ordinal, &id)| Row { id, ordinal }));
                added.packs.push(record);
            }
        }
        if !rows.is_empty() {
            rows.sort_unstable();
            added.run = Some(self.write_run(db, added.meta.next_run, &rows)?);
        }
        if !added.packs.is_empty() {
            added.meta.next_run += 1;
            added.meta.update(db, &self.key).during("add packs")?;
        }
        Ok(added)
    }

    pub(super) fn write_run(&self, db: &Connection, number: u64, rows: &[Row]) -> Result<Run> {
        let count = rows.len() as u64;
        let mut writer = RunWriter::create(db, &self.key, number, merge::level_of(count), count)?;
        for row in rows {
            writer.push(row)?;
        }
        let run = writer.finish()?;
        insert_run(db, &self.key, &run).during("add packs")?;
        Ok(run)
    }

    pub(super) fn location(&self, ordinal: u64) -> Option<Location> {
        let (pack, slot) = self.place(ordinal)?;
        Some(Location { pack: pack.number, slot })
    }

    pub(super) fn place(&self, ordinal: u64) -> Option<(&PackRecord, u32)> {
        let after = self.packs.partition_point(|pack| pack.first_ordinal <= ordinal);
        let pack = self.packs.get(after.checked_sub(1)?)?;
        let slot = u32::try_from(ordinal - pack.first_ordinal).ok()?;
        (slot < pack.chunks).then_some((pack, slot))
    }

    /// Where the chunk with this ordinal is, if that is not known to be bad.
    pub(super) fn good_location(&self, ordinal: u64) -> Option<Location> {
        let (pack, slot) = self.place(ordinal)?;
        let is_bad = !self.bad.packs.is_empty() && self.bad.contains(&pack.id, slot);
        (!is_bad).then_some(Location { pack: pack.number, slot })
    }

    pub(super) fn locate(&mut self, db: &Connection, ids: &[ChunkId]) -> Result<Vec<Option<Location>>> {
        let [id] = ids else { return self.search(db, ids) };
        if let Some(location) = self.recent.get(id) {
            return Ok(vec![Some(*location)]);
        }
        let found = self.search(db, ids)?;
        if let [Some(location)] = found[..] {
            if self.recent.len() == RECENT_MAX {
                self.recent.clear();
            }
            self.recent.insert(*id, location);
        }
        Ok(found)
    }

    fn search(&mut self, db: &Connection, ids: &[ChunkId]) -> Result<Vec<Option<Location>>> {
        let mut pages = std::mem::take(&mut self.pages);
        let found = self.search_with(&mut pages, db, ids);
        self.pages = pages;
        found
    }

    fn search_with(
        &self,
        pages: &mut Pages,
        db: &Connection,
        ids: &[ChunkId],
    ) -> Result<Vec<Option<Location>>> {
        let mut found = vec![None; ids.len()];
        let mut open: Vec<usize> = (0..ids.len()).collect();
        open.sort_unstable_by_key(|&at| ids[at]);
        for run in self.largest_first() {
            let mut finder = Finder::new(db, &self.key, run.entry.number)?;
            for &at in open.iter().filter(|&&at| run.may_contain(&ids[at])) {
                found[at] = finder.find(pages, &ids[at], |ordinal| self.good_location(ordinal))?;
            }
            open.retain(|&at| found[at].is_none());
        }
        Ok(found)
    }

    pub(super) fn copies(&self, db: &Connection, id: &ChunkId) -> Result<Vec<Location>> {
        let (mut found, mut pages) = (Vec::new(), Pages::default());
        for run in self.runs.iter().filter(|run| run.may_contain(id)) {
            Finder::new(db, &self.key, run.entry.number)?.find(&mut pages, id, |ordinal| {
                found.extend(self.location(ordinal));
                None::<()>
            })?;
        }
        Ok(found)
    }

    /// Most ids are in the largest run, and what was found there is looked up nowhere else.
    pub(super) fn largest_first(&self) -> Vec<&LoadedRun> {
        let mut runs: Vec<&LoadedRun> = self.runs.iter().collect();
        runs.sort_by_key(|run| std::cmp::Reverse(run.entry.rows));
        runs
    }

    pub(super) fn scan(&self, db: &Connection, mut f: impl FnMut(&Row) -> Result<()>) -> Result<()> {
        for run in &self.runs {
            let mut statement = run::scan(db, &run.entry)?;
            let mut reader = RunReader::new(&self.key, &run.entry, &mut statement)?;
            while let Some(row) = reader.next()? {
                f(&row)?;
            }
        }
        Ok(())
    }

    /// That the filters are whole, and no run is missing that a pack's chunks are in.
    pub(super) fn check_runs(&self, db: &Connection) -> Result<()> {
        for run in &self.runs {
            run::check_filter(db, &self.key, &run.entry)?;
        }
        let runs: HashSet<u64> = self.runs.iter().map(|run| run.entry.number).collect();
        let live = live_chunks(db).during("be checked")?;
        match live.keys().all(|run| runs.contains(run)) {
            true => Ok(()),
            false => Err(damaged("it lists packs without their chunks")),
        }
    }
}
