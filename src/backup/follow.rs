//! Following an earlier state of a volume: between the stretches that are cut again, what it was
//! holds; and where a stretch ends is seen here, once its cuts are certain.
//!
//! A region is over at the first cut that lies behind its changes and at which the earlier state
//! had a boundary: from there on both agree up to the next region, since a cut depends only on
//! the bytes behind the cut before it. Where a region was read to its end and that has not
//! happened, reading goes on here.

use std::ops::Range;
use std::sync::Arc;

use super::cut::{Cutter, Joiner, Piece};
use super::read::Worker;
use super::step::{Done, PIECE_LEN, PieceRead, PieceSource, PieceToRead};
use super::update::{Basis, Boundaries, Region};
use crate::error::Result;
use crate::format::BLOCK;
use crate::repo::catalog::Catalog;

/// How far reading goes on at first where cuts have not met; then twice as far each time.
const READ_ON_LEN: u64 = 64 << 10;

/// Follows one volume.
pub struct Follower<'c> {
    catalog: &'c Catalog,
    worker: &'c Worker<'c>,
    basis: Arc<Basis>,
    /// Up to here all is certain: handed on as pieces or as kept.
    at: u64,
    /// Up to here the current region was read.
    read_to: u64,
    state: State<'c>,
}

enum State<'c> {
    /// From `at` on, what was holds.
    InStep,
    /// Cuts have to meet boundaries from `settled` on.
    Seeking { settled: u64, boundaries: Boundaries<'c> },
    /// Something cannot be read: the volume is left out.
    Failed,
}

impl<'c> Follower<'c> {
    /// From the start of a volume.
    pub fn new(catalog: &'c Catalog, worker: &'c Worker<'c>, basis: Arc<Basis>) -> Self {
        Self { catalog, worker, basis, at: 0, read_to: 0, state: State::InStep }
    }

    /// A region begins; its pieces come next.
    pub fn region(&mut self, region: &Region, joiner: &mut Joiner, out: &mut Vec<Done>) -> Result<()> {
        self.reach(region.range.start, joiner, out)?;
        if !matches!(self.state, State::Failed) {
            let boundaries = Boundaries::from(self.catalog, &self.basis.map, region.settled);
            self.state = State::Seeking { settled: region.settled, boundaries };
        }
        Ok(())
    }

    /// The volume ends.
    pub fn end(&mut self, joiner: &mut Joiner, out: &mut Vec<Done>) -> Result<()> {
        self.reach(self.basis.len, joiner, out)
    }

    /// A piece of the region, read and cut.
    pub fn piece(&mut self, mut read: PieceRead, joiner: &mut Joiner, out: &mut Vec<Done>) -> Result<()> {
        match read.piece {
            Ok(piece) if matches!(self.state, State::InStep) => {
                out.push(Done::InVain(piece.len()));
                return Ok(());
            }
            Ok(piece) => {
                self.read_to = read.offset + piece.len();
                let mut piece = joiner.join(&self.worker.cutter, piece, read.offset);
                self.cut_off(&mut piece, joiner, out)?;
                read.piece = Ok(piece);
            }
            Err(_) => {
                self.state = State::Failed;
                *joiner = Joiner::default();
            }
        }
        out.push(Done::Piece(read));
        Ok(())
    }

    /// Drops what of a piece lies behind the cut at which both agree again.
    fn cut_off(&mut self, piece: &mut Piece, joiner: &mut Joiner, out: &mut Vec<Done>) -> Result<()> {
        let mut used = 0;
        while !self.meets()? {
            let Some(part) = piece.parts.get(used) else { return Ok(()) };
            self.at += part.len();
            used += 1;
        }
        piece.parts.truncate(used);
        *joiner = Joiner::default();
        self.state = State::InStep;
        out.push(Done::InVain(self.read_to - self.at));
        Ok(())
    }

    fn meets(&mut self) -> Result<bool> {
        match &mut self.state {
            State::InStep => Ok(true),
            State::Failed => Ok(false),
            State::Seeking { settled, boundaries } => Ok(self.at >= *settled && boundaries.meet(self.at)?),
        }
    }

    /// Goes on up to `limit`, where a region or the volume's end is: what was holds, or cuts have
    /// still to meet.
    fn reach(&mut self, limit: u64, joiner: &mut Joiner, out: &mut Vec<Done>) -> Result<()> {
        let mut len = READ_ON_LEN;
        while matches!(self.state, State::Seeking { .. }) && self.read_to < limit {
            let offset = self.read_to;
            let end = ((offset + len) / BLOCK * BLOCK).min(limit);
            let read = self.read(offset..end);
            self.piece(read, joiner, out)?;
            len = (2 * len).min(PIECE_LEN);
        }
        if matches!(self.state, State::InStep) && self.at < limit {
            out.push(Done::Keep(self.at..limit));
            (self.at, self.read_to) = (limit, limit);
        }
        Ok(())
    }

    fn read(&self, range: Range<u64>) -> PieceRead {
        let source = PieceSource::File { file: Arc::clone(&self.basis.file), len: range.end - range.start };
        self.worker.read_piece(PieceToRead {
            source,
            offset: range.start,
            more_follows: range.end < self.basis.len,
            zero_errors: self.basis.zero_errors,
            expected: Vec::new(),
        })
    }
}

/// Makes the cuts between the pieces of large files certain, where nothing is followed.
pub fn join(cutter: &Cutter, joiner: &mut Joiner, mut read: PieceRead) -> Done {
    match &mut read.piece {
        Ok(piece) => *piece = joiner.join(cutter, std::mem::take(piece), read.offset),
        Err(_) => *joiner = Joiner::default(),
    }
    Done::Piece(read)
}
