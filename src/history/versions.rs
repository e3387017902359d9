//! Every version of a path through the snapshots of one host and label.
//!
//! Each snapshot costs a descent to the path, less where its tree is the one before's. What a
//! version stored anew is in what differs from the version before.

use super::diff::{Aspects, Change, Side, compare, diff};
use super::resolve::{Series, find_path};
use crate::error::{Error, Result};
use crate::format::tree::Entry;
use crate::observe::Stop;
use crate::repo::catalog::Catalog;
use crate::repo::marks::Marks;
use crate::repo::snapshots::Listed;
use crate::repo::walk::{Found, Visitor, walk_entries};

/// Files that differ whose chunks are looked up at once.
const CHANGED_MAX: usize = 4096;

/// What a version differs in from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// There was none.
    Created,
    /// It was otherwise.
    Changed(Aspects),
    /// From here on there is none.
    Deleted,
}

/// A version of a path.
#[derive(Debug, Clone, PartialEq)]
pub struct Version<'s> {
    /// The first snapshot that has it.
    pub first: &'s Listed,
    /// The last one in a row that has it.
    pub last: &'s Listed,
    /// How many have it, first and last included.
    pub snapshots: u64,
    /// What differs.
    pub happened: Happened,
    /// What is there; `None` if nothing is.
    pub entry: Option<Entry>,
    /// Length of its chunks that no earlier version of this path had; `None` if what it is made
    /// of is damaged.
    pub bytes_new: Option<u64>,
}

/// Calls `each` with every version, oldest first, and `damaged` with the error of each snapshot
/// that could not be looked into and is passed over.
pub fn versions<'s>(
    catalog: &Catalog,
    series: &Series<'s>,
    stop: &Stop,
    each: &mut dyn FnMut(Version<'s>) -> Result<()>,
    damaged: &mut dyn FnMut(&Listed, Error),
) -> Result<()> {
    let mut anew = Anew::default();
    let mut open: Option<Version<'s>> = None;
    for &listed in &series.snapshots {
        stop.check()?;
        match step(catalog, &series.path, listed, open.as_ref(), &mut anew, stop) {
            Ok(None) => {
                if let Some(open) = &mut open {
                    open.last = listed;
                    open.snapshots += 1;
                }
            }
            Ok(Some(version)) => {
                if let Some(done) = open.replace(version) {
                    each(done)?;
                }
            }
            Err(error) if error.is_damage() => damaged(listed, error),
            Err(error) => return Err(error),
        }
    }
    open.map_or(Ok(()), each)
}

/// The version that begins with a snapshot, if it is another than the one before.
fn step<'s>(
    catalog: &Catalog,
    path: &[u8],
    listed: &'s Listed,
    before: Option<&Version<'s>>,
    anew: &mut Anew,
    stop: &Stop,
) -> Result<Option<Version<'s>>> {
    if before.is_some_and(|before| before.last.snapshot.tree == listed.snapshot.tree) {
        return Ok(None);
    }
    let entry = find_path(catalog, &listed.snapshot, path)?;
    let before = before.and_then(|before| before.entry.as_ref());
    let happened = match (before, &entry) {
        (None, None) => return Ok(None),
        (None, Some(_)) => Happened::Created,
        (Some(_), None) => Happened::Deleted,
        (Some(old), Some(new)) => match compare(catalog, old, new, stop)?.0 {
            aspects if aspects.any() => Happened::Changed(aspects),
            _ => return Ok(None),
        },
    };
    let bytes_new = entry.as_ref().map_or(Ok(Some(0)), |entry| anew.count(catalog, before, entry, stop))?;
    Ok(Some(Version { first: listed, last: listed, snapshots: 1, happened, entry, bytes_new }))
}

/// What earlier versions had.
#[derive(Default)]
struct Anew {
    seen: Marks,
    bytes: u64,
    /// Whether all of the version before was seen.
    has_before: bool,
}

impl Anew {
    fn count(
        &mut self,
        catalog: &Catalog,
        before: Option<&Entry>,
        entry: &Entry,
        stop: &Stop,
    ) -> Result<Option<u64>> {
        self.bytes = 0;
        let counted = match before.filter(|_| self.has_before) {
            Some(before) => self.differing(catalog, before, entry, stop),
            None => walk_entries(catalog, std::slice::from_ref(entry), self, stop),
        };
        // What is damaged may be needed by the version before alone.
        let counted = match counted {
            Err(error) if error.is_damage() => walk_entries(catalog, std::slice::from_ref(entry), self, stop),
            other => other,
        };
        self.has_before = counted.is_ok();
        match counted {
            Ok(()) => Ok(Some(self.bytes)),
            Err(error) if error.is_damage() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn differing(&mut self, catalog: &Catalog, before: &Entry, entry: &Entry, stop: &Stop) -> Result<()> {
        let [before, after] = [before, entry].map(|entry| Side::Entry(entry.clone()));
        let mut changed = Vec::new();
        diff(catalog, b"", before, after, stop, &mut |_, change| {
            changed.extend(match change {
                Change::New(entry) => Some(entry),
                Change::Changed { after, .. } => Some(*after),
                Change::Deleted(_) => None,
            });
            // What is in directories comes by itself.
            if changed.last().is_some_and(|entry| entry.map().is_none()) {
                changed.pop();
            }
            match changed.len() >= CHANGED_MAX {
                true => walk_entries(catalog, &std::mem::take(&mut changed), self, stop),
                false => Ok(()),
            }
        })?;
        walk_entries(catalog, &changed, self, stop)
    }
}

impl Visitor for Anew {
    fn node(&mut self, found: Found) -> Result<bool> {
        Ok(self.seen.insert(found.ordinal))
    }

    fn chunks(&mut self, found: &[Found]) -> Result<()> {
        for chunk in found {
            self.bytes += if self.seen.insert(chunk.ordinal) { u64::from(chunk.len) } else { 0 };
        }
        Ok(())
    }
}
