//! Merging runs, so that look-ups ask few, and giving back the space.
//!
//! Eight runs of a level become one of the next, so a row is written once a level, and there are at
//! most seven runs a level; levels are for sizes eight times apart. A run of which more than half
//! belongs to vanished packs is written anew by itself.

use super::run::{self, Row, Run, RunReader, RunWriter};
use super::state::State;
use super::tables::{Meta, insert_run, live_chunks};
use super::{Index, read};
use crate::error::Result;
use crate::repo::schema::{During, without_waiting};
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// So many runs of a level are merged.
const MERGE_RUNS: usize = 8;
/// At most so many at once, where more have gathered.
const MERGE_RUNS_MAX: usize = 64;
/// Runs below this are of level 0.
const SMALL_ROWS: u64 = 4096;
/// What a row takes on disk, filter and all, rounded up.
const ROW_BYTES: u64 = 28;
/// What a merge takes besides, at most.
const MERGE_BYTES: u64 = 1 << 20;
/// Free pages are given back once they are one in so many.
const FREE_SHARE: i64 = 4;
/// So many at a time, so that others may write in between.
const VACUUM_PAGES: u32 = 4096;

/// What [`Index::merge_if_due`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// Nothing is left to do; so many rows were written.
    Done(u64),
    /// Another process writes just now.
    Busy,
    /// Put off until so many bytes are free.
    NoSpace(u64),
}

/// A merge to be made.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    sources: Vec<Run>,
    /// The level of the run that comes out.
    level: u32,
}

impl Plan {
    fn rows(&self) -> u64 {
        self.sources.iter().map(|run| run.rows).sum()
    }

    /// The new run is written to the log, then to the database, before the old ones can go.
    fn space_needed(&self) -> u64 {
        2 * self.rows() * ROW_BYTES + MERGE_BYTES
    }
}

/// The level of a new run of so many rows.
pub fn level_of(rows: u64) -> u32 {
    (rows / SMALL_ROWS).checked_ilog(MERGE_RUNS as u64).map_or(0, |level| level + 1)
}

impl Index {
    /// Merges runs as long as some are due. `free_bytes` is what the file system has left. Others can
    /// look up meanwhile; those that add wait for the merge at hand.
    pub fn merge_if_due(&mut self, free_bytes: u64) -> Result<Merge> {
        self.sound(|index| index.merge_all(free_bytes))
    }

    fn merge_all(&mut self, free_bytes: u64) -> Result<Merge> {
        let mut written = 0;
        loop {
            let step = self.merge_once(free_bytes)?;
            match step {
                Step::Merged(rows) => written += rows,
                Step::NothingDue => break,
                Step::Stopped(why) => return Ok(why),
            }
        }
        give_back(&self.db).during("give space back")?;
        Ok(Merge::Done(written))
    }

    fn merge_once(&mut self, free_bytes: u64) -> Result<Step> {
        let begin = || Transaction::new_unchecked(&self.db, TransactionBehavior::Immediate);
        let tx = match without_waiting(&self.db, begin) {
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                return Ok(Step::Stopped(Merge::Busy));
            }
            begun => begun.during("begin a merge")?,
        };
        self.state.follow(&tx)?;
        let runs: Vec<Run> = self.state.runs.iter().map(|run| run.entry.clone()).collect();
        let Some(plan) = plan(runs, &live_chunks(&tx).during("plan a merge")?) else {
            return Ok(Step::NothingDue);
        };
        if plan.space_needed() > free_bytes {
            return Ok(Step::Stopped(Merge::NoSpace(plan.space_needed())));
        }
        let rows = self.state.merge(&tx, &plan)?;
        tx.commit().during("commit a merge")?;
        self.db.flush_prepared_statement_cache();
        let tx = read(&self.db)?;
        self.state.read(&tx)?;
        self.state.load_filters(&tx)?;
        Ok(Step::Merged(rows))
    }
}

enum Step {
    Merged(u64),
    NothingDue,
    Stopped(Merge),
}

/// What to merge next, if anything; `live` counts the rows of each run that still mean something.
fn plan(mut runs: Vec<Run>, live: &HashMap<u64, u64>) -> Option<Plan> {
    runs.sort_by_key(|run| (run.level, run.number));
    let full = runs
        .chunk_by(|a, b| a.level == b.level)
        .find(|level| level.len() >= MERGE_RUNS)
        .map(|level| &level[..level.len().min(MERGE_RUNS_MAX)]);
    if let Some(sources) = full {
        let rows = sources.iter().map(|run| run.rows).sum();
        return Some(Plan { sources: sources.to_vec(), level: level_of(rows).max(sources[0].level + 1) });
    }
    let dead = |run: &Run| run.rows / 2 > live.get(&run.number).copied().unwrap_or(0);
    let run = runs.into_iter().find(dead)?;
    Some(Plan { level: run.level, sources: vec![run] })
}

impl State {
    /// Writes the planned run in place of its sources; the number of its rows.
    fn merge(&self, db: &Connection, plan: &Plan) -> Result<u64> {
        let number = self.meta.next_run;
        let mut writer = RunWriter::create(db, &self.key, number, plan.level, plan.rows())?;
        self.for_each_merged(db, &plan.sources, |row| match self.location(row.ordinal) {
            Some(_) => writer.push(row),
            None => Ok(()),
        })?;
        let run = writer.finish()?;
        self.replace(db, &plan.sources, &run).during("replace merged runs")?;
        Ok(run.rows)
    }

    fn for_each_merged(
        &self,
        db: &Connection,
        sources: &[Run],
        mut f: impl FnMut(&Row) -> Result<()>,
    ) -> Result<()> {
        let mut statements = sources.iter().map(|run| run::scan(db, run)).collect::<Result<Vec<_>>>()?;
        let mut readers = sources
            .iter()
            .zip(&mut statements)
            .map(|(run, statement)| RunReader::new(&self.key, run, statement))
            .collect::<Result<Vec<_>>>()?;
        let mut heads = BinaryHeap::new();
        for (reader, source) in readers.iter_mut().zip(0..) {
            heads.extend(reader.next()?.map(|row| Reverse((row, source))));
        }
        while let Some(mut head) = heads.peek_mut() {
            let Reverse((row, source)) = &mut *head;
            f(row)?;
            match readers.get_mut::<usize>(*source).map(RunReader::next).transpose()?.flatten() {
                Some(next) => *row = next,
                None => drop(std::collections::binary_heap::PeekMut::pop(head)),
            }
        }
        Ok(())
    }

    fn replace(&self, db: &Connection, sources: &[Run], run: &Run) -> rusqlite::Result<()> {
        let mut statement = db.prepare("UPDATE packs SET run = ?1 WHERE run = ?2")?;
        for source in sources {
            source.drop_tables(db)?;
            statement.execute([run.number as i64, source.number as i64])?;
            db.execute("DELETE FROM runs WHERE number = ?1", [source.number as i64])?;
        }
        match run.rows {
            0 => run.drop_tables(db)?,
            _ => insert_run(db, &self.key, run)?,
        }
        Meta { next_run: run.number + 1, ..self.meta }.update(db, &self.key)
    }
}

/// Makes the file smaller if much of it is unused.
fn give_back(db: &Connection) -> rusqlite::Result<()> {
    let number = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    if number("freelist_count")? * FREE_SHARE < number("page_count")? {
        return Ok(());
    }
    while number("freelist_count")? > 0 {
        if !unless_busy(without_waiting(db, || vacuum(db)))? {
            return Ok(());
        }
    }
    checkpoint(db)
}

fn vacuum(db: &Connection) -> rusqlite::Result<()> {
    let mut statement = db.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

/// Copies the log into the database and cuts it off, unless others need it.
pub fn checkpoint(db: &Connection) -> rusqlite::Result<()> {
    let truncate = || db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    unless_busy(without_waiting(db, truncate)).map(drop)
}

/// False if another process was in the way.
fn unless_busy(result: rusqlite::Result<()>) -> rusqlite::Result<bool> {
    match result {
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(false),
        other => other.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(number: u64, level: u32, rows: u64) -> Run {
        Run { number, level, rows, filter_blocks: 1, checksum: [0; 16] }
    }

    #[test]
    fn levels_are_eight_times_apart() {
        let levels = [0, 4095, 4096, 32_767, 32_768, 50_000_000].map(level_of);
        assert_eq!(levels, [0, 0, 1, 1, 2, 5]);
    }

    #[test]
    fn eight_of_a_level_are_merged() {
        let live = (0..9).map(|number| (number, 100)).collect();
        let mut runs: Vec<Run> = (1..8).map(|number| run(number, 0, 100)).collect();
        runs.push(run(0, 1, 100));
        assert_eq!(plan(runs.clone(), &live), None);
        runs.push(run(8, 0, 100));
        let plan = plan(runs.clone(), &live).unwrap();
        assert_eq!((plan.level, plan.rows()), (1, 800));
        assert!(plan.sources.iter().all(|run| run.level == 0));
    }

    #[test]
    fn mostly_dead_runs_are_rewritten() {
        let runs = vec![run(1, 2, 100), run(2, 3, 100)];
        assert_eq!(plan(runs.clone(), &HashMap::from([(1, 50), (2, 100)])), None);
        let plan = plan(runs.clone(), &HashMap::from([(1, 100), (2, 49)])).unwrap();
        assert_eq!((plan.level, &plan.sources), (3, &runs[1..].to_vec()));
    }
}
