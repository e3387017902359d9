//! Spot checks: a part of what is said to be unchanged is read and compared all the same.
//!
//! The volume is divided into ranges, which are visited by a step that has no divisor in common
//! with their number; where the next run goes on is kept in the snapshot. So every range has its
//! turn before any has a second one, wherever changes lie.

use std::fs::File;
use std::ops::Range;

use crate::chunker::is_zero;
use crate::error::{Error, Result};
use crate::format::map::{CHUNK_LEN_MAX, Extent, Map};
use crate::format::snapshot::SpotCheck;
use crate::id::{ChunkId, Key};
use crate::repo::catalog::Catalog;
use crate::repo::nodes::Extents;
use crate::source::changes::Changes;
use crate::source::extents::read_at;

/// Length of a range.
const UNIT: u64 = 256 << 10;
/// Of the volume, by default: one part in a thousand, …
const SHARE_DEFAULT: u64 = 1000;
/// … but at least so much, …
const BYTES_MIN: u64 = 4 << 20;
/// … and at most so much.
const BYTES_MAX: u64 = 256 << 20;

/// How much is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Share {
    /// 0.1 %, at least 4 MiB and at most 256 MiB.
    #[default]
    Default,
    /// So many percent of the volume.
    Percent(f64),
}

impl Share {
    fn bytes(self, len: u64) -> u64 {
        match self {
            Share::Default => (len / SHARE_DEFAULT).clamp(BYTES_MIN, BYTES_MAX),
            Share::Percent(percent) => (len as f64 * percent / 100.0).ceil() as u64,
        }
    }
}

/// What a spot check came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked {
    /// How much was read and compared.
    pub bytes: u64,
    /// Where the next run goes on.
    pub next: SpotCheck,
    /// Where the volume is not what it should be.
    pub mismatch: Option<Mismatch>,
}

/// A place that is said to be unchanged, and is not.
#[derive(Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Where.
    pub offset: u64,
    /// What was seen there.
    pub what: String,
}

/// Compares a part of what has not changed in `device` since it was as `map` says.
pub struct Spots<'a> {
    /// Reads the map.
    pub catalog: &'a Catalog,
    /// What names chunks of data.
    pub key: &'a Key,
    /// The volume.
    pub device: &'a File,
    /// What it was.
    pub map: &'a Map,
    /// What changed since.
    pub changes: &'a Changes,
    /// Whether there may be anything where the map has holes.
    pub skips_holes: bool,
}

impl Spots<'_> {
    /// Goes on where the run before ended, for as many bytes as `share` says.
    pub fn check(&self, share: Share, before: Option<SpotCheck>) -> Result<Checked> {
        let len = self.changes.len();
        let count = len.div_ceil(UNIT).max(1);
        let mut next = order(count, before)?;
        let wanted = share.bytes(len);
        let (mut bytes, mut mismatch) = (0, None);
        let mut buffer = Vec::new();
        for _ in 0..count {
            if bytes >= wanted || mismatch.is_some() {
                break;
            }
            let start = next.next * UNIT;
            mismatch = self.range(start..(start + UNIT).min(len), &mut buffer, &mut bytes)?;
            next.next = (next.next + next.step) % count;
        }
        Ok(Checked { bytes, next, mismatch })
    }

    /// All chunks that begin in a range, and the zeros in it, as far as they have not changed.
    fn range(&self, range: Range<u64>, buffer: &mut Vec<u8>, bytes: &mut u64) -> Result<Option<Mismatch>> {
        for extent in Extents::from(self.catalog, self.map, range.start) {
            let (at, extent) = extent?;
            if at >= range.end {
                break;
            }
            let found = match extent {
                Extent::Data { .. } if at < range.start || self.has_changed(at..at + extent.len()) => None,
                Extent::Data { id, len } => self.compare(at, len.into(), Some(id), buffer, bytes)?,
                Extent::Hole { .. } if self.skips_holes => None,
                Extent::Zero { len } | Extent::Hole { len } => {
                    let zeros = at.max(range.start)..(at + len).min(range.end);
                    self.zeros(zeros, buffer, bytes)?
                }
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn has_changed(&self, range: Range<u64>) -> bool {
        // A block that only touches the range counts too.
        self.changes.next_changed(range.start).is_some_and(|changed| changed.start < range.end)
    }

    fn zeros(&self, range: Range<u64>, buffer: &mut Vec<u8>, bytes: &mut u64) -> Result<Option<Mismatch>> {
        let mut at = range.start;
        while at < range.end {
            let changed = self.changes.next_changed(at).filter(|changed| changed.start < range.end);
            let (end, after) = changed.map_or((range.end, range.end), |changed| (changed.start, changed.end));
            if end > at {
                let found = self.compare(at, end - at, None, buffer, bytes)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            at = after;
        }
        Ok(None)
    }

    /// Compares with a chunk, or with zeros.
    fn compare(
        &self,
        offset: u64,
        len: u64,
        id: Option<ChunkId>,
        buffer: &mut Vec<u8>,
        bytes: &mut u64,
    ) -> Result<Option<Mismatch>> {
        let wanted = usize::try_from(len.min(CHUNK_LEN_MAX)).unwrap_or_default();
        buffer.resize(wanted, 0);
        let what = match read_at(self.device, buffer, offset) {
            Ok(read) if read < wanted => Some("it ends there".to_string()),
            Ok(_) => {
                let is_same = id.map_or_else(|| is_zero(buffer), |id| ChunkId::of(self.key, buffer) == id);
                (!is_same).then(|| format!("{wanted} bytes differ"))
            }
            Err(e) => Some(format!("it cannot be read: {e}")),
        };
        *bytes += wanted as u64;
        Ok(what.map(|what| Mismatch { offset, what }))
    }
}

/// The order among `count` ranges: as it was, or a new one if their number or length is another.
fn order(count: u64, before: Option<SpotCheck>) -> Result<SpotCheck> {
    if let Some(before) = before
        && before.unit == UNIT
        && before.next < count
        && before.step > 0
        && greatest_divisor(before.step, count) == 1
    {
        return Ok(before);
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|_| Error::Internal("the system gives no random bytes"))?;
    let next = u64::from_le_bytes(random) % count;
    // Steps near the golden section's share spread over the volume whatever their number is.
    let mut step = (count / 100 * 62).max(count * 62 / 100).max(1);
    while greatest_divisor(step, count) != 1 {
        step += 1;
    }
    Ok(SpotCheck { unit: UNIT, step, next })
}

fn greatest_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_range_has_its_turn_before_any_has_a_second() {
        for count in [1, 2, 3, 16, 97, 1000, 65_536] {
            let mut spots = order(count, None).unwrap();
            let mut seen = HashSet::new();
            for turn in 0..count {
                assert!(seen.insert(spots.next), "{count}: {} comes again in turn {turn}", spots.next);
                spots.next = (spots.next + spots.step) % count;
                spots = order(count, Some(spots)).unwrap();
            }
        }
    }

    #[test]
    fn an_order_that_does_not_fit_is_made_anew() {
        let before = SpotCheck { unit: UNIT, step: 4, next: 1 };
        assert_eq!(greatest_divisor(order(8, Some(before)).unwrap().step, 8), 1);
        assert!(order(1, Some(SpotCheck { step: 1, next: 7, ..before })).unwrap().next < 1);
        assert_eq!(order(9, Some(before)).unwrap(), before);
    }

    #[test]
    fn the_default_is_bounded() {
        assert_eq!(Share::Default.bytes(1 << 20), BYTES_MIN);
        assert_eq!(Share::Default.bytes(64 << 30), (64 << 30) / 1000);
        assert_eq!(Share::Default.bytes(5 << 40), BYTES_MAX);
        assert_eq!(Share::Percent(50.0).bytes(1000), 500);
        assert_eq!(Share::Percent(0.0).bytes(1000), 0);
    }
}
