//! Which ranges of a volume may differ from an earlier state of it, and which are known to hold
//! nothing.
//!
//! Two bitmaps: ranges may be added in any order and any number, and the memory that they take is
//! bounded by the number of granules. Above that number granules double, so that of a very large
//! volume somewhat more is taken for changed.

use std::ops::Range;

use super::extents::Span;
use crate::format::BLOCK;

/// Granules of a bitmap of changes: 16 MiB of them, so blocks of 4096 bytes up to 512 GiB.
const CHANGED_GRANULES_MAX: u64 = 128 << 20;
/// Granules of a bitmap of holes: 4 MiB of them, so the smallest blocks of pools up to 2 TiB.
const HOLE_GRANULES_MAX: u64 = 32 << 20;
/// The smallest block that a thin pool allocates.
const HOLE_GRANULE_MIN: u64 = 64 << 10;

/// What is known of a volume before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    len: u64,
    changed: Bits,
    /// Within what changed, so that it is looked at only there.
    holes: Option<Bits>,
}

impl Changes {
    /// Nothing has changed in a volume of `len` bytes.
    pub fn none(len: u64) -> Self {
        Self { len, changed: Bits::new(len, BLOCK, CHANGED_GRANULES_MAX), holes: None }
    }

    /// All of it may have.
    pub fn all(len: u64) -> Self {
        let mut changes = Self::none(len);
        changes.add(0..len);
        changes
    }

    /// The volume's length.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.next_changed(0).is_none()
    }

    /// A range may have changed; what of it lies behind the volume's end is passed over.
    pub fn add(&mut self, range: Range<u64>) {
        let range = range.start.min(self.len)..range.end.min(self.len);
        if range.is_empty() {
            return;
        }
        self.changed.set_outward(&range);
        if let Some(holes) = &mut self.holes {
            holes.clear_outward(&range);
        }
    }

    /// A range has changed so that nothing is allocated there now: it need not be read. Ranges
    /// that were added as changed by [`Changes::add`] must not overlap with it.
    pub fn add_hole(&mut self, range: Range<u64>) {
        let range = range.start.min(self.len)..range.end.min(self.len);
        if range.is_empty() {
            return;
        }
        self.changed.set_outward(&range);
        let len = self.len;
        self.holes().set_inward(&range, len);
    }

    /// What is not among `used` need not be read, whatever is there.
    pub fn leave_out(&mut self, used: &Changes) {
        let mut at = 0;
        while at < self.len {
            let next = used.next_changed(at).unwrap_or(self.len..self.len);
            self.holes().set_inward(&(at..next.start), used.len);
            at = next.end;
        }
    }

    fn holes(&mut self) -> &mut Bits {
        self.holes.get_or_insert_with(|| Bits::new(self.len, HOLE_GRANULE_MIN, HOLE_GRANULES_MAX))
    }

    /// What lies before `done` is dealt with; from there up to `settled` all counts as changed. What
    /// is known to hold nothing still does.
    pub fn go_on_from(&mut self, done: u64, settled: u64) {
        let granule = self.changed.granule;
        self.changed.write(0..done.min(self.len) / granule, false);
        if done < settled {
            self.changed.set_outward(&(done.min(self.len)..settled.min(self.len)));
        }
    }

    /// The first range at or behind `from` that may have changed, up to the next that has not. It
    /// begins and ends at a multiple of the block, or at the volume's end.
    pub fn next_changed(&self, from: u64) -> Option<Range<u64>> {
        let run = self.changed.next_run(from.min(self.len))?;
        let run = run.start..run.end.min(self.len);
        (!run.is_empty()).then_some(run)
    }

    /// How many bytes may have changed.
    pub fn bytes(&self) -> u64 {
        let mut total = 0;
        let mut at = 0;
        while let Some(range) = self.next_changed(at) {
            total += range.end - range.start;
            at = range.end;
        }
        total
    }

    /// A range as data and holes in turn.
    pub fn spans(&self, range: Range<u64>) -> Spans<'_> {
        self.spans_of_blocks(range, BLOCK)
    }

    /// Likewise, of a range that begins at a multiple of `block`: holes are whole blocks of that many
    /// bytes, or reach the end of the range.
    pub fn spans_of_blocks(&self, range: Range<u64>, block: u64) -> Spans<'_> {
        Spans { holes: self.holes.as_ref(), range, block }
    }
}

/// The spans of a range, holes and data in turn.
pub struct Spans<'c> {
    holes: Option<&'c Bits>,
    range: Range<u64>,
    block: u64,
}

impl Spans<'_> {
    /// The first hole that counts; empty, at the end, if there is none.
    fn next_hole(&self) -> Range<u64> {
        let Range { start: mut at, end } = self.range;
        while let Some(run) = self.holes.and_then(|holes| holes.next_run(at)).filter(|run| run.start < end) {
            let hole_end = if run.end >= end { end } else { run.end / self.block * self.block };
            let hole = run.start.next_multiple_of(self.block)..hole_end;
            if !hole.is_empty() {
                return hole;
            }
            at = run.end;
        }
        end..end
    }
}

impl Iterator for Spans<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        let Range { start, end } = self.range;
        if start >= end {
            return None;
        }
        let hole = self.next_hole();
        let span = match hole.start == start {
            true => Span::Hole(hole),
            false => Span::Data(start..hole.start),
        };
        let (Span::Hole(range) | Span::Data(range)) = &span;
        self.range.start = range.end;
        Some(span)
    }
}

/// A bit for each granule of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bits {
    granule: u64,
    count: u64,
    words: Vec<u64>,
}

impl Bits {
    fn new(len: u64, granule_min: u64, granules_max: u64) -> Self {
        let mut granule = granule_min;
        while len.div_ceil(granule) > granules_max {
            granule *= 2;
        }
        let count = len.div_ceil(granule);
        Self { granule, count, words: vec![0; count.div_ceil(64) as usize] }
    }

    /// Granules that the range touches.
    fn outward(&self, range: &Range<u64>) -> Range<u64> {
        range.start / self.granule..range.end.div_ceil(self.granule).min(self.count)
    }

    fn set_outward(&mut self, range: &Range<u64>) {
        self.write(self.outward(range), true);
    }

    fn clear_outward(&mut self, range: &Range<u64>) {
        self.write(self.outward(range), false);
    }

    /// Granules that lie within the range, the last of a volume of `len` bytes being shorter.
    fn set_inward(&mut self, range: &Range<u64>, len: u64) {
        let end = if range.end == len { self.count } else { range.end / self.granule };
        self.write(range.start.div_ceil(self.granule)..end, true);
    }

    fn write(&mut self, granules: Range<u64>, value: bool) {
        let mut at = granules.start;
        while at < granules.end {
            let (word, bit) = ((at / 64) as usize, at % 64);
            let count = (64 - bit).min(granules.end - at);
            let mask = (u64::MAX >> (64 - count)) << bit;
            match value {
                true => self.words[word] |= mask,
                false => self.words[word] &= !mask,
            }
            at += count;
        }
    }

    /// The first run of set granules at or behind `from`, in bytes; it begins no earlier than
    /// `from`.
    fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let first = self.find(from / self.granule, true)?;
        let end = self.find(first, false).unwrap_or(self.count);
        Some((first * self.granule).max(from)..end * self.granule)
    }

    /// The first granule at or behind `from` that is set, or is not.
    fn find(&self, from: u64, set: bool) -> Option<u64> {
        let mut number = (from / 64) as usize;
        let mut mask = u64::MAX << (from % 64);
        while let Some(&word) = self.words.get(number) {
            let found = if set { word } else { !word } & mask;
            if found != 0 {
                let granule = number as u64 * 64 + u64::from(found.trailing_zeros());
                return (granule < self.count).then_some(granule);
            }
            (number, mask) = (number + 1, u64::MAX);
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // one range is what is meant
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(changes: &Changes) -> Vec<Range<u64>> {
        let mut out = Vec::new();
        let mut at = 0;
        while let Some(range) = changes.next_changed(at) {
            at = range.end;
            out.push(range);
        }
        out
    }

    #[test]
    fn ranges_are_rounded_to_blocks_merged_and_cut_at_the_end() {
        let mut changes = Changes::none(20_000);
        assert!(changes.is_empty());
        changes.add(9000..9001);
        changes.add(100..200);
        changes.add(4096..4097);
        changes.add(19_000..1 << 40);
        changes.add(1 << 40..1 << 41);
        assert_eq!(ranges(&changes), [0..12_288, 16_384..20_000]);
        assert_eq!(changes.bytes(), 12_288 + 3616);
        assert_eq!(ranges(&Changes::all(20_000)), [0..20_000]);
        assert!(Changes::all(0).is_empty());
    }

    #[test]
    fn bitmaps_are_bounded() {
        for len in [1 << 30, 5 << 40, 1 << 60] {
            let mut changes = Changes::none(len);
            changes.add(len - 1..len);
            changes.add_hole(0..len / 2);
            assert!(changes.changed.words.len() as u64 * 64 <= CHANGED_GRANULES_MAX);
            assert!(changes.holes.as_ref().unwrap().words.len() as u64 * 64 <= HOLE_GRANULES_MAX);
            assert_eq!(ranges(&changes).len(), 2);
        }
    }

    #[test]
    fn holes_are_rounded_inward() {
        let len = 10 * 65_536 + 100;
        let mut changes = Changes::none(len);
        changes.add_hole(1..3 * 65_536 + 5);
        changes.add_hole(9 * 65_536..len);
        changes.add(5 * 65_536..5 * 65_536 + 1);
        let spans: Vec<Span> = changes.spans(0..len).collect();
        let expected = [
            Span::Data(0..65_536),
            Span::Hole(65_536..3 * 65_536),
            Span::Data(3 * 65_536..9 * 65_536),
            Span::Hole(9 * 65_536..len),
        ];
        assert_eq!(spans, expected);
        changes.add(2 * 65_536..2 * 65_536 + 1);
        assert_eq!(changes.spans(0..4 * 65_536).filter(|span| matches!(span, Span::Hole(_))).count(), 1);
    }

    #[test]
    fn holes_of_larger_blocks() {
        const MIB: u64 = 1 << 20;
        let mut changes = Changes::none(10 * MIB + 5);
        changes.add_hole(MIB / 2..3 * MIB + 65_536);
        changes.add_hole(4 * MIB + 65_536..5 * MIB - 65_536);
        changes.add_hole(9 * MIB - 65_536..10 * MIB + 5);
        let spans: Vec<Span> = changes.spans_of_blocks(0..changes.len(), MIB).collect();
        let expected = [
            Span::Data(0..MIB),
            Span::Hole(MIB..3 * MIB),
            Span::Data(3 * MIB..9 * MIB),
            Span::Hole(9 * MIB..10 * MIB + 5),
        ];
        assert_eq!(spans, expected);
    }

    proptest! {
        #[test]
        fn as_the_obvious_way(
            len in 1u64..3_000_000,
            added in proptest::collection::vec((0u64..3_000_000, 1u64..100_000), 0..20),
            from in 0u64..3_000_000,
        ) {
            let mut changes = Changes::none(len);
            let mut blocks = vec![false; len.div_ceil(4096) as usize];
            for (start, count) in added {
                changes.add(start..start + count);
                for (number, block) in blocks.iter_mut().enumerate() {
                    let at = number as u64 * 4096;
                    let end = (at + 4096).min(len);
                    *block |= start < end && at < start + count;
                }
            }
            for range in ranges(&changes) {
                prop_assert!(range.start % 4096 == 0 && (range.end % 4096 == 0 || range.end == len));
                for at in range.step_by(512) {
                    prop_assert!(std::mem::replace(&mut blocks[(at / 4096) as usize], true));
                }
            }
            let mut count = 0;
            for range in ranges(&changes) {
                count += range.end.div_ceil(4096) - range.start / 4096;
            }
            prop_assert_eq!(count, blocks.iter().filter(|block| **block).count() as u64);
            if let Some(next) = changes.next_changed(from) {
                prop_assert!(next.start >= from);
            }
        }
    }
}
