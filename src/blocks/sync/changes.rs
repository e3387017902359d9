//! Which blocks are looked at: all, or those that a change list names.

use std::ops::Range;

use super::message::{Message, RANGES_MAX};
use crate::format::wire::Malformed;
use crate::source::changes::Changes;

/// The most ranges that are kept; beyond that, neighbours are joined.
pub const KEPT_MAX: usize = 1 << 18;

/// Ranges of blocks in ascending order, no two of which touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks(Vec<Range<u64>>);

impl Blocks {
    /// All of so many.
    pub fn all(count: u64) -> Self {
        Self(if count > 0 { vec![0..count; 1] } else { Vec::new() })
    }

    /// The ranges.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }

    /// How many blocks these are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// Those in which something may have changed.
    pub fn of(changes: &Changes, block: u64) -> Self {
        let mut blocks = Joined::default();
        let mut at = 0;
        while let Some(range) = changes.next_changed(at) {
            blocks.add(range.start / block..range.end.div_ceil(block));
            at = range.end;
        }
        blocks.finish()
    }

    /// The messages that tell them to the other side.
    pub fn messages(&self) -> impl Iterator<Item = Message> + '_ {
        self.0.chunks(RANGES_MAX).map(|ranges| {
            Message::Ranges(ranges.iter().map(|range| (range.start, range.end - range.start)).collect())
        })
    }

    /// Adds what a message told: behind what is there, and within so many blocks.
    pub fn extend(&mut self, ranges: &[(u64, u64)], count: u64) -> Result<(), Malformed> {
        for &(first, len) in ranges {
            let at = self.0.last().map_or(0, |last| last.end);
            let end = first.checked_add(len).filter(|end| *end <= count && len > 0 && first >= at);
            let end = end.ok_or(Malformed("ranges that are out of order or too long"))?;
            if self.0.len() == KEPT_MAX {
                return Err(Malformed("too many ranges"));
            }
            self.0.push(first..end);
        }
        Ok(())
    }
}

/// Ranges in ascending order, of which near ones become one if there are too many.
#[derive(Default)]
struct Joined {
    ranges: Vec<Range<u64>>,
    /// How many blocks may lie between two ranges that are joined.
    gap: u64,
}

impl Joined {
    fn add(&mut self, range: Range<u64>) {
        match self.ranges.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(self.gap) => {
                last.end = range.end.max(last.end)
            }
            _ => self.ranges.push(range),
        }
        while self.ranges.len() > KEPT_MAX {
            self.gap = (self.gap * 2).max(1);
            self.join();
        }
    }

    fn join(&mut self) {
        let gap = self.gap;
        self.ranges.dedup_by(|next, last| {
            let is_near = next.start <= last.end.saturating_add(gap);
            if is_near {
                last.end = next.end;
            }
            is_near
        });
    }

    fn finish(self) -> Blocks {
        Blocks(self.ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_become_blocks() {
        let mut changes = Changes::none(1 << 20);
        for range in [0..1, 200_000..200_001, 204_800..204_801, (1 << 20) - 1..1 << 20] {
            changes.add(range);
        }
        let blocks = Blocks::of(&changes, 65_536);
        assert_eq!(blocks.ranges(), [0..1, 3..4, 15..16]);
        assert_eq!(Blocks::of(&changes, 4096).ranges(), [0..1, 48..49, 50..51, 255..256]);
        assert_eq!(Blocks::of(&changes, 8192).ranges(), [0..1, 24..26, 127..128]);
        assert_eq!(blocks.count(), 3);
        assert_eq!(Blocks::of(&Changes::none(1 << 20), 4096).count(), 0);
    }

    #[test]
    fn too_many_are_joined_and_cover_all() {
        let mut joined = Joined::default();
        for number in 0..3 * KEPT_MAX as u64 {
            joined.add(number * 2..number * 2 + 1);
        }
        let blocks = joined.finish();
        assert!(blocks.ranges().len() <= KEPT_MAX);
        assert!(blocks.ranges().is_sorted_by(|a, b| a.end < b.start));
        assert_eq!(blocks.ranges().first().unwrap().start, 0);
        assert_eq!(blocks.ranges().last().unwrap().end, 6 * KEPT_MAX as u64 - 1);
    }

    #[test]
    fn what_is_told_comes_in_order_and_within_bounds() {
        let mut blocks = Blocks::default();
        let told = Blocks(vec![0..3, 9..11]);
        for message in told.messages() {
            let Message::Ranges(ranges) = message else { panic!() };
            blocks.extend(&ranges, 11).unwrap();
        }
        assert_eq!(blocks, told);
        for wrong in [(10, 1), (11, 1), (11, 0), (u64::MAX, 2)] {
            assert!(blocks.extend(&[wrong], 11).is_err(), "{wrong:?}");
        }
    }
}
