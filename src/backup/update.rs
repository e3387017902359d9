//! Reading a volume by what changed: which stretches of it have to be cut again.
//!
//! A change can move cuts around it. So cutting begins again at the last boundary before it that
//! no changed byte had a part in, and goes on until a cut is a boundary of the earlier state too
//! (`follow`); how far that is can be guessed only, since it depends on the bytes.

use std::fs::File;
use std::iter::Peekable;
use std::ops::Range;
use std::sync::Arc;

use crate::chunker::Chunker;
use crate::error::Result;
use crate::format::BLOCK;
use crate::format::map::{Extent, Map};
use crate::repo::catalog::Catalog;
use crate::repo::nodes::Extents;
use crate::source::changes::Changes;

/// What a volume is read on the basis of.
#[derive(Debug)]
pub struct Basis {
    /// The volume.
    pub file: Arc<File>,
    /// What it was.
    pub map: Map,
    /// Its length, which is the map's.
    pub len: u64,
    /// Whether what cannot be read becomes zeros.
    pub zero_errors: bool,
}

/// A stretch that is cut again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Where: a boundary of the earlier state, up to where both are expected to agree again.
    pub range: Range<u64>,
    /// Nothing has changed from here on, up to the next region.
    pub settled: u64,
    /// Whether the data at its end goes on behind it.
    pub more_follows: bool,
}

/// The regions of a volume, in order; they do not touch each other.
pub struct Regions<'a> {
    catalog: &'a Catalog,
    map: &'a Map,
    changes: &'a Changes,
    /// Boundaries of the earlier state that a region takes in behind a change.
    boundaries: usize,
    at: u64,
    pending: Option<Region>,
}

impl<'a> Regions<'a> {
    /// Around all `changes` of a volume that was as `map` says, and has its length.
    pub fn new(catalog: &'a Catalog, map: &'a Map, changes: &'a Changes, chunker: &Chunker) -> Self {
        let boundaries = chunker.boundaries_to_meet();
        Self { catalog, map, changes, boundaries, at: 0, pending: None }
    }

    fn around(&self, changed: &Range<u64>) -> Result<Region> {
        let start = self.start(changed.start)?;
        let (end, more_follows) = self.end(changed.end)?;
        Ok(Region { range: start..end, settled: changed.end, more_follows })
    }

    /// Where cutting begins again for a change at `at`. The byte before it is in a chunk whose
    /// beginning no changed byte had a part in; or it is a zero, so that a run begins here at the
    /// earliest. A boundary just at the change does not do: the byte behind a cut has a part in it.
    fn start(&self, at: u64) -> Result<u64> {
        let Some(before) = at.checked_sub(1) else { return Ok(0) };
        match Extents::from(self.catalog, self.map, before).next().transpose()? {
            Some((start, Extent::Data { .. })) => Ok(start),
            _ => Ok(at),
        }
    }

    /// How far to read on for a change that ends at `at`, and whether the run goes on from there.
    fn end(&self, at: u64) -> Result<(u64, bool)> {
        let len = self.changes.len();
        for (boundaries, extent) in Extents::from(self.catalog, self.map, at).enumerate() {
            let (start, extent) = extent?;
            if !matches!(extent, Extent::Data { .. }) {
                return Ok((start.max(at), false));
            }
            if boundaries == self.boundaries {
                // With the byte behind it, a cut at this boundary is certain.
                let end = (start + 1).next_multiple_of(BLOCK).min(len);
                return Ok((end, end < len));
            }
        }
        Ok((len, false))
    }
}

impl Iterator for Regions<'_> {
    type Item = Result<Region>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(changed) = self.changes.next_changed(self.at) {
            self.at = changed.end;
            let region = match self.around(&changed) {
                Ok(region) => region,
                Err(e) => {
                    (self.at, self.pending) = (u64::MAX, None);
                    return Some(Err(e));
                }
            };
            match &mut self.pending {
                Some(pending) if region.range.start <= pending.range.end => {
                    let start = pending.range.start;
                    *pending = Region { range: start..region.range.end, ..region };
                }
                pending => {
                    if let Some(done) = pending.replace(region) {
                        return Some(Ok(done));
                    }
                }
            }
        }
        self.pending.take().map(Ok)
    }
}

/// The boundaries of an earlier state, for questions in rising order.
pub struct Boundaries<'c>(Peekable<Extents<'c>>);

impl<'c> Boundaries<'c> {
    /// From `at` on.
    pub fn from(catalog: &'c Catalog, map: &Map, at: u64) -> Self {
        Self(Extents::from(catalog, map, at).peekable())
    }

    /// Whether cutting from `at` on gives what it gave before, if no byte from there on changed: a
    /// chunk began there, or it was amid zeros.
    pub fn meet(&mut self, at: u64) -> Result<bool> {
        while self
            .0
            .next_if(|extent| matches!(extent, Ok((start, extent)) if start + extent.len() <= at))
            .is_some()
        {}
        match self.0.peek() {
            Some(Ok((start, Extent::Data { .. }))) => Ok(*start == at),
            Some(Ok(_)) => Ok(true),
            None => Ok(true),
            Some(Err(_)) => self.0.next().map_or(Ok(true), |broken| broken.map(|_| false)),
        }
    }
}
