//! Long ranges that two volumes, or large files, share.
//!
//! Common chunks are sorted by pair, by how far apart they lie in the two, and by offset; those
//! that follow each other are one range.
//!
//! ```text
//! match    u32 content, u32 content · u64 distance · u64 offset in the first · u32 length
//! ```

use std::collections::BTreeSet;

use super::super::found::Name;
use super::super::record::take;
use super::super::sorter::{Sorter, Temporary};
use crate::error::Result;

/// Contents with fewer bytes in chunks are not looked at.
pub const DATA_MIN: u64 = 16 << 20;
/// Shorter ranges are not told.
pub const RANGE_MIN: u64 = 1 << 20;
/// Ranges that are told.
const RANGES_MAX: usize = 1000;
/// Of a chunk that is often in one content, so many places are matched with all such of another.
const PLACES_MAX: usize = 4;

/// A chunk in a content, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occurrence {
    /// Which content.
    pub content: u32,
    /// Where in it.
    pub offset: u64,
    /// How long the chunk is.
    pub len: u32,
}

/// One end of a range: a content and where in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// Which content.
    pub content: u64,
    /// Where in it.
    pub offset: u64,
}

/// A range in two contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unnamed {
    /// How long it is.
    pub len: u64,
    /// Where.
    pub ends: [End; 2],
}

/// A range that two volumes or files share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// How long it is.
    pub len: u64,
    /// In what, and where it begins there.
    pub ends: [(Name, u64); 2],
}

impl Unnamed {
    /// With names of the contents.
    pub fn named(&self, name: &impl Fn(&u64) -> Option<Name>) -> Option<Range> {
        let [a, b] = self.ends;
        Some(Range { len: self.len, ends: [(name(&a.content)?, a.offset), (name(&b.content)?, b.offset)] })
    }
}

/// Collects matches.
pub struct Ranges {
    sorter: Sorter,
}

impl Ranges {
    /// None yet.
    pub fn new(temporary: &Temporary) -> Self {
        Self { sorter: Sorter::new(temporary) }
    }

    /// Adds a chunk that is at these places of one content and at those of another, both in order.
    pub fn add(&mut self, a: &[Occurrence], b: &[Occurrence]) -> Result<()> {
        for a in a.iter().take(PLACES_MAX) {
            for b in b.iter().take(PLACES_MAX) {
                self.put(a, b)?;
            }
        }
        // What is filled with one pattern ends no range: of the further places those count that are
        // as far apart as the first ones, or not at all.
        let [Some(first), Some(other)] = [a.first(), b.first()] else { return Ok(()) };
        let apart = other.offset.wrapping_sub(first.offset);
        for distance in [Some(0), Some(apart).filter(|apart| *apart != 0)].into_iter().flatten() {
            for (number, a) in a.iter().enumerate() {
                let wanted = a.offset.wrapping_add(distance);
                let Ok(place) = b.binary_search_by_key(&wanted, |b| b.offset) else { continue };
                if let Some(b) = b.get(place).filter(|_| number.max(place) >= PLACES_MAX) {
                    self.put(a, b)?;
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, a: &Occurrence, b: &Occurrence) -> Result<()> {
        let mut record = Vec::with_capacity(28);
        record.extend_from_slice(&a.content.to_be_bytes());
        record.extend_from_slice(&b.content.to_be_bytes());
        record.extend_from_slice(&b.offset.wrapping_sub(a.offset).to_be_bytes());
        record.extend_from_slice(&a.offset.to_be_bytes());
        record.extend_from_slice(&a.len.to_be_bytes());
        self.sorter.push(&record)
    }

    /// The longest ranges, the longest first; contents by their numbers.
    pub fn finish(self) -> Result<Vec<Unnamed>> {
        let sorted = self.sorter.finish()?;
        let mut records = sorted.records()?;
        let mut longest: BTreeSet<Unnamed> = BTreeSet::new();
        let mut open: Option<Unnamed> = None;
        while let Some(record) = records.next()? {
            let Some(next) = read(record) else { continue };
            match &mut open {
                Some(range) if follows(range, &next) => range.len += next.len,
                other => {
                    keep(&mut longest, other.replace(next));
                }
            }
        }
        keep(&mut longest, open);
        Ok(longest.into_iter().rev().collect())
    }
}

fn read(mut record: &[u8]) -> Option<Unnamed> {
    let rest = &mut record;
    let [a, b] = [u32::from_be_bytes(take(rest)?), u32::from_be_bytes(take(rest)?)];
    let distance = u64::from_be_bytes(take(rest)?);
    let offset = u64::from_be_bytes(take(rest)?);
    let len = u32::from_be_bytes(take(rest)?);
    let end = |content: u32, offset| End { content: content.into(), offset };
    Some(Unnamed { len: len.into(), ends: [end(a, offset), end(b, offset.wrapping_add(distance))] })
}

fn follows(range: &Unnamed, next: &Unnamed) -> bool {
    let is_next = |(range_end, next_end): (&End, &End)| {
        range_end.content == next_end.content && range_end.offset + range.len == next_end.offset
    };
    range.ends.iter().zip(&next.ends).all(is_next)
}

fn keep(longest: &mut BTreeSet<Unnamed>, range: Option<Unnamed>) {
    if let Some(range) = range.filter(|range| range.len >= RANGE_MIN) {
        longest.insert(range);
        if longest.len() > RANGES_MAX {
            longest.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(content: u32, offset: u64) -> Occurrence {
        Occurrence { content, offset, len: 512 << 10 }
    }

    #[test]
    fn chunks_that_follow_each_other_in_both_are_one_range() {
        const HALF: u64 = 512 << 10;
        let mut ranges = Ranges::new(&Temporary::new(std::env::temp_dir()));
        for number in [2, 0, 1] {
            ranges.add(&[at(0, 10 * HALF + number * HALF)], &[at(1, number * HALF)]).unwrap();
        }
        ranges.add(&[at(0, 99 * HALF)], &[at(1, 50 * HALF)]).unwrap();
        let end = |content, offset| End { content, offset };
        let expected = Unnamed { len: 3 * HALF, ends: [end(0, 10 * HALF), end(1, 0)] };
        assert_eq!(ranges.finish().unwrap(), [expected], "and the short one is not told");
    }

    /// What is filled with one pattern is one chunk in many places.
    #[test]
    fn a_chunk_that_is_often_in_a_range_does_not_end_it() {
        const HALF: u64 = 512 << 10;
        for shift in [0, 5 * HALF] {
            let mut ranges = Ranges::new(&Temporary::new(std::env::temp_dir()));
            let filled = |content, shift| (1..20).map(move |number| at(content, shift + number * HALF));
            ranges.add(&[at(0, 0)], &[at(1, shift)]).unwrap();
            let (first, second): (Vec<_>, Vec<_>) = (filled(0, 0).collect(), filled(1, shift).collect());
            ranges.add(&first, &second).unwrap();
            ranges.add(&[at(0, 20 * HALF)], &[at(1, shift + 20 * HALF)]).unwrap();
            let end = |content, offset| End { content, offset };
            let expected = Unnamed { len: 21 * HALF, ends: [end(0, 0), end(1, shift)] };
            assert_eq!(ranges.finish().unwrap().first(), Some(&expected), "{shift}");
        }
    }
}
