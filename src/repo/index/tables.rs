//! The rows of the small tables: SQL in, values out, each checked against its seal.

use super::run::{ORDINAL_END, Run, Seal};
use super::{NewPack, PackRecord};
use crate::error::{Error, Result};
use crate::format::pack::Class;
use crate::id::{Key, PackId, RepositoryId, SnapshotId, mac};
use crate::repo::schema::{During, damaged};
use rusqlite::Connection;
use std::collections::HashMap;

/// The one row of `meta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Which repository it is the index of.
    pub repository: RepositoryId,
    /// The number that the next pack gets.
    pub next_pack: u32,
    /// The ordinal that the next chunk gets.
    pub next_ordinal: u64,
    /// The number that the next run gets.
    pub next_run: u64,
    /// How often packs were removed.
    pub removals: u64,
}

impl Meta {
    fn seal(&self, key: &Key) -> Seal {
        let numbers = [self.next_pack.into(), self.next_ordinal, self.next_run, self.removals];
        mac(key, &[b"meta", &self.repository.0, numbers.map(u64::to_le_bytes).as_flattened()])
    }

    /// Reads it, and checks its seal.
    pub fn read(db: &Connection, key: &Key) -> Result<Self> {
        let sql = "SELECT repository, next_pack, next_ordinal, next_run, removals, seal FROM meta";
        let row = |row: &rusqlite::Row| {
            let meta = Meta {
                repository: RepositoryId(row.get(0)?),
                next_pack: row.get(1)?,
                next_ordinal: unsigned(row, 2)?,
                next_run: unsigned(row, 3)?,
                removals: unsigned(row, 4)?,
            };
            Ok((meta, row.get::<_, Seal>(5)?))
        };
        let (meta, seal) = db.query_row(sql, [], row).during("be read")?;
        match seal == meta.seal(key) {
            true => Ok(meta),
            false => Err(damaged("its counters are not what was written, or it was made with another key")),
        }
    }

    /// Makes the row.
    pub fn insert(&self, db: &Connection, key: &Key) -> rusqlite::Result<()> {
        db.execute("INSERT INTO meta VALUES (zeroblob(16), 0, 0, 0, 0, zeroblob(16))", [])?;
        self.update(db, key)
    }

    /// Writes the row anew.
    pub fn update(&self, db: &Connection, key: &Key) -> rusqlite::Result<()> {
        let sql = "UPDATE meta SET repository = ?1, next_pack = ?2, next_ordinal = ?3, next_run = ?4,
                   removals = ?5, seal = ?6";
        let [ordinal, run, removals] = [self.next_ordinal, self.next_run, self.removals].map(|n| n as i64);
        db.execute(sql, (self.repository.0, self.next_pack, ordinal, run, removals, self.seal(key)))?;
        Ok(())
    }

    /// The record that `pack` gets if it is added next.
    pub fn record(&self, pack: &NewPack) -> Result<PackRecord> {
        let full = || Error::Refused("the index is full: its numbers are used up".into());
        self.next_pack.checked_add(1).ok_or_else(full)?;
        let record = PackRecord {
            number: self.next_pack,
            id: pack.id,
            class: pack.class,
            len: pack.len,
            first_ordinal: self.next_ordinal,
            chunks: u32::try_from(pack.ids.len()).map_err(|_| full())?,
            trailer_check: pack.trailer_check,
        };
        match record.end_ordinal() <= ORDINAL_END {
            true => Ok(record),
            false => Err(full()),
        }
    }
}

/// SQLite's number for what other connections committed.
pub fn data_version(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("PRAGMA data_version")?.query_one([], |row| row.get(0))
}

fn unsigned(row: &rusqlite::Row, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

/// False if the pack is there already.
pub fn insert_pack(db: &Connection, key: &Key, pack: &PackRecord, run: u64) -> rusqlite::Result<bool> {
    let sql = "INSERT INTO packs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (id) DO NOTHING";
    let [len, first, run] = [pack.len, pack.first_ordinal, run].map(|n| n as i64);
    let (class, check, seal) = (pack.class.code(), pack.trailer_check, pack.seal(key));
    let row = (pack.number, pack.id.0, class, len, first, pack.chunks, check, run, seal);
    Ok(db.prepare_cached(sql)?.execute(row)? == 1)
}

/// Those that are not there are skipped.
pub fn delete_packs(db: &Connection, packs: &[PackId]) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached("DELETE FROM packs WHERE id = ?1")?;
    packs.iter().try_for_each(|pack| statement.execute([pack.0]).map(drop))
}

/// Those that are there already are skipped.
pub fn insert_suspects(db: &Connection, snapshots: &[SnapshotId]) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached("INSERT INTO suspects VALUES (?1) ON CONFLICT DO NOTHING")?;
    snapshots.iter().try_for_each(|snapshot| statement.execute([snapshot.0]).map(drop))
}

/// Whether there is any.
pub fn has_suspects(db: &Connection) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM suspects LIMIT 1")?.exists([])
}

/// Whether the snapshot is there.
pub fn has_suspect(db: &Connection, snapshot: &SnapshotId) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM suspects WHERE snapshot = ?1")?.exists([snapshot.0])
}

/// Adds the packs with number `from` and above.
pub fn read_packs(db: &Connection, key: &Key, from: u32, packs: &mut Vec<PackRecord>) -> Result<()> {
    let sql = "SELECT number, id, class, len, first_ordinal, chunks, trailer_check, seal FROM packs
               WHERE number >= ?1 ORDER BY number";
    let mut statement = db.prepare_cached(sql).during("list its packs")?;
    let mut rows = statement.query([from]).during("list its packs")?;
    while let Some(row) = rows.next().during("list its packs")? {
        let (pack, seal) = pack_of(row).during("list its packs")?;
        match pack {
            Some(pack) if seal == pack.seal(key) => packs.push(pack),
            _ => return Err(damaged("an entry for a pack is not what was written")),
        }
    }
    Ok(())
}

/// No pack if its class is unknown.
fn pack_of(row: &rusqlite::Row) -> rusqlite::Result<(Option<PackRecord>, Seal)> {
    let class = Class::from_code(row.get(2)?).ok();
    let pack = match class {
        None => None,
        Some(class) => Some(PackRecord {
            number: row.get(0)?,
            id: PackId(row.get(1)?),
            class,
            len: unsigned(row, 3)?,
            first_ordinal: unsigned(row, 4)?,
            chunks: row.get(5)?,
            trailer_check: row.get(6)?,
        }),
    };
    Ok((pack, row.get(7)?))
}

/// That no two packs share an ordinal, and none is past the counters.
pub fn check_order(packs: &[PackRecord], meta: &Meta) -> Result<()> {
    let ordered = packs.windows(2).all(|pair| pair[0].end_ordinal() <= pair[1].first_ordinal);
    let counted = packs
        .last()
        .is_none_or(|last| last.number < meta.next_pack && last.end_ordinal() <= meta.next_ordinal);
    match ordered && counted {
        true => Ok(()),
        false => Err(damaged("its packs do not fit its counters")),
    }
}

/// Lists a run whose pages are written.
pub fn insert_run(db: &Connection, key: &Key, run: &Run) -> rusqlite::Result<()> {
    let [number, rows, blocks] = [run.number, run.rows, run.filter_blocks].map(|n| n as i64);
    let row = (number, run.level, rows, blocks, run.checksum, run.seal(key));
    db.execute("INSERT INTO runs VALUES (?1, ?2, ?3, ?4, ?5, ?6)", row)?;
    Ok(())
}

/// The runs by number.
pub fn read_runs(db: &Connection, key: &Key) -> Result<Vec<Run>> {
    let sql = "SELECT number, level, rows, filter_blocks, checksum, seal FROM runs ORDER BY number";
    let row = |row: &rusqlite::Row| {
        let run = Run {
            number: unsigned(row, 0)?,
            level: row.get(1)?,
            rows: unsigned(row, 2)?,
            filter_blocks: unsigned(row, 3)?,
            checksum: row.get(4)?,
        };
        Ok((run, row.get::<_, Seal>(5)?))
    };
    let mut statement = db.prepare_cached(sql).during("list its runs")?;
    let rows = statement.query_map([], row).during("list its runs")?;
    rows.map(|row| match row.during("list its runs")? {
        (run, seal) if seal == run.seal(key) => Ok(run),
        _ => Err(damaged("an entry for a run is not what was written")),
    })
    .collect()
}

/// For each run that has any, how many of its rows belong to packs that are there.
pub fn live_chunks(db: &Connection) -> rusqlite::Result<HashMap<u64, u64>> {
    let mut statement =
        db.prepare_cached("SELECT run, sum(chunks) FROM packs WHERE chunks > 0 GROUP BY run")?;
    let rows = statement.query_map([], |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)))?;
    rows.collect()
}
