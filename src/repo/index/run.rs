//! A sorted run: rows of chunk id and ordinal in the order of both, and a filter over the ids.
//!
//! One SQL row an id would take 33 bytes for each. Here a SQL row is a page of up
//! to 161 ids that just fills a page of the database: 25.6 bytes and 0.25 µs for each.
//!
//! ```text
//! page      seal 16 · rows; key: first 47 bits of the first id << 16 | counter where these are equal
//! row       id 20 · ordinal 5, little-endian
//! piece     seal 16 · up to 63 blocks of the filter; all but the last have 63
//! ```
//!
//! A seal covers the run's number and the page's key, or the piece's, so every page that is read is
//! known to be what was written in its place; the run's checksum covers that none is missing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::error::Result;
use crate::id::{ChunkId, Hasher, Key, mac};
use crate::repo::filter::{BLOCK_LEN, Block, Filter, block_of, blocks_for};
use crate::repo::schema::{During, damaged};
use rusqlite::{CachedStatement, Connection, Rows, Statement};

/// A checksum under the index's key.
pub type Seal = [u8; SEAL_LEN];

const SEAL_LEN: usize = 16;
const ORDINAL_LEN: usize = 5;
const ROW_LEN: usize = ChunkId::LEN + ORDINAL_LEN;
/// A longer page would spill: 4096 bytes less what SQLite adds, 4057 are left.
const PAGE_ROWS_MAX: usize = 161;
/// So many pages are kept in memory, 4 MiB: the index of 10 GB of data.
const PAGES_MAX: usize = 1024;
const PIECE_BLOCKS_MAX: usize = 63;
/// Low bits of a page's key, which count pages whose first ids begin alike.
const COUNTER_BITS: u32 = 16;
const PIECE_BITS: u32 = 24;

/// Ordinals are below this.
pub const ORDINAL_END: u64 = 1 << (8 * ORDINAL_LEN);

/// One chunk, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The chunk.
    pub id: ChunkId,
    /// Its number in the index, of which its pack and slot follow.
    pub ordinal: u64,
}

/// A run as the table of runs lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its number, never used twice.
    pub number: u64,
    /// How often its rows were merged, about.
    pub level: u32,
    /// How many rows it has.
    pub rows: u64,
    /// How many blocks its filter has.
    pub filter_blocks: u64,
    /// Over the seals of all its pages.
    pub checksum: Seal,
}

impl Run {
    /// The checksum of this entry in the table of runs.
    pub fn seal(&self, key: &Key) -> Seal {
        let numbers = [self.number, self.level.into(), self.rows, self.filter_blocks].map(u64::to_le_bytes);
        mac(key, &[b"run ", numbers.as_flattened(), &self.checksum])
    }

    /// The bytes its filter takes in memory.
    pub fn filter_memory(&self) -> u64 {
        self.filter_blocks.saturating_mul(BLOCK_LEN as u64)
    }

    /// Removes its pages and its filter.
    pub fn drop_tables(&self, db: &Connection) -> rusqlite::Result<()> {
        db.execute_batch(&format!("DROP TABLE run_{}", self.number))?;
        let (from, to) = (piece_key(self.number, 0), piece_key(self.number + 1, 0));
        db.execute("DELETE FROM filters WHERE piece >= ?1 AND piece < ?2", [from, to])?;
        Ok(())
    }
}

fn page_key(id: &ChunkId) -> i64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&id.0[..8]);
    (u64::from_be_bytes(bytes) >> (COUNTER_BITS + 1) << COUNTER_BITS) as i64
}

fn last_page_key(id: &ChunkId) -> i64 {
    page_key(id) | ((1 << COUNTER_BITS) - 1)
}

fn piece_key(run: u64, piece: u64) -> i64 {
    (run << PIECE_BITS | piece) as i64
}

/// The content comes first, so that its blocks of 1024 bytes are hashed side by side: with the
/// others in front, hashing was two fifths of a look-up.
fn seal(key: &Key, kind: &[u8; 4], run: u64, at: i64, content: &[u8]) -> Seal {
    mac(key, &[content, kind, &run.to_le_bytes(), &at.to_le_bytes()])
}

/// The content of a page or piece, if its seal fits.
fn unseal<'a>(key: &Key, kind: &[u8; 4], run: u64, at: i64, bytes: &'a [u8]) -> Result<(Seal, &'a [u8])> {
    match bytes.split_first_chunk::<SEAL_LEN>() {
        Some((stored, content)) if *stored == seal(key, kind, run, at, content) => Ok((*stored, content)),
        _ => Err(damaged("a page is not what was written")),
    }
}

/// Writes a run, row by row in their order; never holds more than a page and a piece.
pub struct RunWriter<'a> {
    key: &'a Key,
    run: Run,
    insert_page: Statement<'a>,
    insert_piece: CachedStatement<'a>,
    page: Vec<u8>,
    page_first: i64,
    page_last_key: i64,
    seals: Hasher,
    piece: Vec<Block>,
    piece_number: u64,
}

impl<'a> RunWriter<'a> {
    /// Begins run `number`, of `rows` rows at most.
    pub fn create(db: &'a Connection, key: &'a Key, number: u64, level: u32, rows: u64) -> Result<Self> {
        let sql = format!("CREATE TABLE run_{number} (first INTEGER PRIMARY KEY, rows BLOB NOT NULL)");
        db.execute_batch(&sql).during("create a run")?;
        let insert_page =
            db.prepare(&format!("INSERT INTO run_{number} VALUES (?1, ?2)")).during("create a run")?;
        let insert_piece = db.prepare_cached("INSERT INTO filters VALUES (?1, ?2)").during("create a run")?;
        let run = Run { number, level, rows: 0, filter_blocks: blocks_for(rows), checksum: Seal::default() };
        Ok(Self {
            key,
            run,
            insert_page,
            insert_piece,
            page: vec![0; SEAL_LEN],
            page_first: 0,
            page_last_key: -1,
            seals: Hasher::keyed(key),
            piece: Vec::new(),
            piece_number: 0,
        })
    }

    /// Adds a row, which comes after all before it.
    pub fn push(&mut self, row: &Row) -> Result<()> {
        if self.page.len() == SEAL_LEN {
            self.page_first = page_key(&row.id);
        }
        self.page.extend_from_slice(&row.id.0);
        self.page.extend_from_slice(&row.ordinal.to_le_bytes()[..ORDINAL_LEN]);
        if self.page.len() == SEAL_LEN + PAGE_ROWS_MAX * ROW_LEN {
            self.write_page()?;
        }
        self.push_filter(&row.id)
    }

    /// The finished run.
    pub fn finish(mut self) -> Result<Run> {
        if self.page.len() > SEAL_LEN {
            self.write_page()?;
        }
        while self.pieces_written_blocks() < self.run.filter_blocks {
            self.write_piece()?;
        }
        self.run.checksum = self.seals.finish();
        Ok(self.run)
    }

    fn write_page(&mut self) -> Result<()> {
        let at = self.page_first.max(self.page_last_key + 1);
        // Ten million copies of one id, or as many ids that begin alike, are no backup but a forged
        // pack; what is too much of them is not indexed.
        if at >> COUNTER_BITS == self.page_first >> COUNTER_BITS {
            let (head, content) = self.page.split_at_mut(SEAL_LEN);
            head.copy_from_slice(&seal(self.key, b"rows", self.run.number, at, content));
            self.insert_page.execute((at, &self.page)).during("write a run")?;
            self.seals.update(&self.page[..SEAL_LEN]);
            self.run.rows += ((self.page.len() - SEAL_LEN) / ROW_LEN) as u64;
            self.page_last_key = at;
        }
        self.page.truncate(SEAL_LEN);
        Ok(())
    }

    fn pieces_written_blocks(&self) -> u64 {
        self.piece_number * PIECE_BLOCKS_MAX as u64
    }

    fn push_filter(&mut self, id: &ChunkId) -> Result<()> {
        let block = block_of(id, self.run.filter_blocks);
        while block >= self.pieces_written_blocks() + PIECE_BLOCKS_MAX as u64 {
            self.write_piece()?;
        }
        let at = (block - self.pieces_written_blocks()) as usize;
        if self.piece.len() <= at {
            self.piece.resize(at + 1, Block::EMPTY);
        }
        self.piece[at].insert(id);
        Ok(())
    }

    fn write_piece(&mut self) -> Result<()> {
        let blocks = (self.run.filter_blocks - self.pieces_written_blocks()).min(PIECE_BLOCKS_MAX as u64);
        self.piece.resize(blocks as usize, Block::EMPTY);
        let mut bytes = vec![0; SEAL_LEN];
        for block in &self.piece {
            bytes.extend_from_slice(&block.0);
        }
        let at = piece_key(self.run.number, self.piece_number);
        let seal = seal(self.key, b"bits", self.run.number, at, &bytes[SEAL_LEN..]);
        bytes[..SEAL_LEN].copy_from_slice(&seal);
        self.insert_piece.execute((at, &bytes)).during("write a run")?;
        self.piece.clear();
        self.piece_number += 1;
        Ok(())
    }
}

/// A page's rows.
#[derive(Default)]
struct Page {
    rows: Vec<u8>,
}

impl Page {
    /// Takes over a page of `run`, and says its seal.
    fn load(&mut self, key: &Key, run: u64, row: &rusqlite::Row) -> Result<Seal> {
        self.rows.clear();
        let at = row.get(0).during("read a run")?;
        let bytes =
            row.get_ref(1).during("read a run")?.as_blob().map_err(|_| damaged("a page is no bytes"))?;
        let (seal, rows) = unseal(key, b"rows", run, at, bytes)?;
        self.rows.extend_from_slice(rows);
        Ok(seal)
    }

    fn len(&self) -> usize {
        self.rows.len() / ROW_LEN
    }

    fn get(&self, at: usize) -> Option<Row> {
        let (id, ordinal) = self.bytes(at)?.split_first_chunk()?;
        let mut bytes = [0; 8];
        bytes[..ORDINAL_LEN].copy_from_slice(ordinal);
        Some(Row { id: ChunkId(*id), ordinal: u64::from_le_bytes(bytes) })
    }

    fn bytes(&self, at: usize) -> Option<&[u8]> {
        self.rows.get(at * ROW_LEN..(at + 1) * ROW_LEN)
    }

    /// Whether some row's id is less than `id`.
    fn begins_before(&self, id: &ChunkId) -> bool {
        self.bytes(0).is_some_and(|row| row[..ChunkId::LEN] < id.0[..])
    }

    /// Whether no other page has rows with this id.
    fn surrounds(&self, id: &ChunkId) -> bool {
        let last = self.len().checked_sub(1).and_then(|last| self.bytes(last));
        self.begins_before(id) && last.is_some_and(|row| row[..ChunkId::LEN] > id.0[..])
    }

    /// The ordinals of all rows with this id.
    fn ordinals(&self, id: &ChunkId) -> impl Iterator<Item = u64> {
        let (rows, _) = self.rows.as_chunks::<ROW_LEN>();
        let start = rows.partition_point(|row| row[..ChunkId::LEN] < id.0[..]);
        (start..).map_while(|at| self.get(at)).take_while(|row| row.id == *id).map(|row| row.ordinal)
    }
}

/// Pages that were read and whose seals fitted, by run and key; forgotten once there are too many.
/// With a page of its own for each chunk, checking it was half of a look-up.
#[derive(Default)]
pub struct Pages(HashMap<(u64, i64), Page>);

impl Pages {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    fn page(&mut self, key: &Key, run: u64, first: i64, row: &rusqlite::Row) -> Result<&Page> {
        if self.0.len() == PAGES_MAX && !self.0.contains_key(&(run, first)) {
            self.clear();
        }
        match self.0.entry((run, first)) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => {
                let mut page = Page::default();
                page.load(key, run, row)?;
                Ok(place.insert(page))
            }
        }
    }
}

/// Looks ids up in one run; fastest when they come in order.
pub struct Finder<'a> {
    key: &'a Key,
    run: u64,
    statement: CachedStatement<'a>,
    /// The page that was looked into last.
    last: i64,
}

impl<'a> Finder<'a> {
    /// For run `run`.
    pub fn new(db: &'a Connection, key: &'a Key, run: u64) -> Result<Self> {
        let sql = format!("SELECT first, rows FROM run_{run} WHERE first <= ?1 ORDER BY first DESC");
        let statement = db.prepare_cached(&sql).during("look chunks up")?;
        Ok(Self { key, run, statement, last: -1 })
    }

    /// The first of `id`'s ordinals that `accept` makes something of.
    pub fn find<T>(
        &mut self,
        pages: &mut Pages,
        id: &ChunkId,
        mut accept: impl FnMut(u64) -> Option<T>,
    ) -> Result<Option<T>> {
        if let Some(page) = pages.0.get(&(self.run, self.last)).filter(|page| page.surrounds(id)) {
            return Ok(page.ordinals(id).find_map(accept));
        }
        let mut rows = self.statement.query([last_page_key(id)]).during("look chunks up")?;
        while let Some(row) = rows.next().during("look chunks up")? {
            self.last = row.get(0).during("look chunks up")?;
            let page = pages.page(self.key, self.run, self.last, row)?;
            let found = page.ordinals(id).find_map(&mut accept);
            // Copies of one chunk may begin a page or more before.
            if found.is_some() || page.begins_before(id) {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// The statement that a [`RunReader`] steps through.
pub fn scan<'a>(db: &'a Connection, run: &Run) -> Result<Statement<'a>> {
    db.prepare(&format!("SELECT first, rows FROM run_{} ORDER BY first", run.number)).during("read a run")
}

/// Reads a run from front to back, and checks all of it.
pub struct RunReader<'a> {
    key: &'a Key,
    run: &'a Run,
    pages: Rows<'a>,
    page: Page,
    at: usize,
    rows: u64,
    seals: Hasher,
    last: Option<Row>,
}

impl<'a> RunReader<'a> {
    /// Begins at the first row; `statement` comes from [`scan`].
    pub fn new(key: &'a Key, run: &'a Run, statement: &'a mut Statement) -> Result<Self> {
        let pages = statement.query([]).during("read a run")?;
        let seals = Hasher::keyed(key);
        Ok(Self { key, run, pages, page: Page::default(), at: 0, rows: 0, seals, last: None })
    }

    /// The next row; after the last, whether the run is whole was checked.
    pub fn next(&mut self) -> Result<Option<Row>> {
        if self.at == self.page.len() && !self.next_page()? {
            return Ok(None);
        }
        let row = self.page.get(self.at);
        if row <= self.last {
            return Err(damaged("a run is not in order"));
        }
        self.at += 1;
        self.last = row;
        Ok(row)
    }

    fn next_page(&mut self) -> Result<bool> {
        let Some(row) = self.pages.next().during("read a run")? else {
            self.check_whole()?;
            return Ok(false);
        };
        let seal = self.page.load(self.key, self.run.number, row)?;
        if self.page.rows.is_empty() || !self.page.rows.len().is_multiple_of(ROW_LEN) {
            return Err(damaged("a page has an odd length"));
        }
        self.seals.update(&seal);
        self.rows += self.page.len() as u64;
        self.at = 0;
        Ok(true)
    }

    fn check_whole(&self) -> Result<()> {
        match self.rows == self.run.rows && self.seals.finish() == self.run.checksum {
            true => Ok(()),
            false => Err(damaged("pages of a run are missing or too many")),
        }
    }
}

/// Reads a run's filter, and checks it.
pub fn load_filter(db: &Connection, key: &Key, run: &Run) -> Result<Option<Filter>> {
    let mut blocks = Vec::with_capacity(run.filter_blocks as usize);
    for_each_piece(db, key, run, |piece| blocks.extend(piece.iter().copied().map(Block)))?;
    Ok(Filter::new(blocks))
}

/// Reads a run's filter without keeping it.
pub fn check_filter(db: &Connection, key: &Key, run: &Run) -> Result<()> {
    for_each_piece(db, key, run, |_| {})
}

fn for_each_piece(
    db: &Connection,
    key: &Key,
    run: &Run,
    mut f: impl FnMut(&[[u8; BLOCK_LEN]]),
) -> Result<()> {
    let mut statement =
        db.prepare_cached("SELECT bits FROM filters WHERE piece = ?1").during("read a filter")?;
    let mut left = run.filter_blocks;
    for piece in 0..run.filter_blocks.div_ceil(PIECE_BLOCKS_MAX as u64) {
        let at = piece_key(run.number, piece);
        let bytes: Vec<u8> = statement.query_one([at], |row| row.get(0)).during("read a filter")?;
        let (_, bits) = unseal(key, b"bits", run.number, at, &bytes)?;
        let (blocks, rest) = bits.as_chunks();
        if !rest.is_empty() || blocks.len() as u64 != left.min(PIECE_BLOCKS_MAX as u64) {
            return Err(damaged("a piece of a filter has an odd length"));
        }
        left -= blocks.len() as u64;
        f(blocks);
    }
    Ok(())
}
