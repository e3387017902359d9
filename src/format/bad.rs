//! What is known to be bad: places in packs that cannot be read, and the snapshots that may need
//! them.
//!
//! ```text
//! "bad" 3 · u8 version (1)
//! varint packs · for each: 32 id · varint ranges, at least 1 · for each:
//!   varint first slot · varint number of slots
//! varint snapshots · 32 id each
//! ```
//!
//! Places are named, not chunks: a chunk whose place is bad is whole again as soon as it is in
//! another place too. A range may reach past a pack's last slot; that of a pack of which nothing
//! can be read begins at 0 and has 2³² − 1 slots.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::wire::{Decoded, Malformed, Reader, put_varint};
use crate::id::{PackId, SnapshotId};

const MAGIC: &[u8; 4] = b"bad\x01";

/// Slots of one pack: ranges in order, apart from each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slots(Vec<Range<u32>>);

impl Slots {
    /// All that a pack can have.
    pub fn all() -> Self {
        Self::range(0, u32::MAX)
    }

    /// `count` slots from `first` on.
    pub fn range(first: u32, count: u32) -> Self {
        let range = first..first.saturating_add(count);
        Self(if range.is_empty() { Vec::new() } else { vec![range] })
    }

    /// Whether these are all slots that a pack can have.
    pub fn is_all(&self) -> bool {
        matches!(self.0[..], [Range { start: 0, end: u32::MAX }])
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a slot is among them.
    pub fn contains(&self, slot: u32) -> bool {
        let after = self.0.partition_point(|range| range.start <= slot);
        after.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|range| range.contains(&slot))
    }

    /// Adds others; whether that made a difference.
    pub fn add(&mut self, other: &Slots) -> bool {
        let mut all: Vec<Range<u32>> = self.0.iter().chain(&other.0).cloned().collect();
        all.sort_unstable_by_key(|range| (range.start, range.end));
        let mut joined: Vec<Range<u32>> = Vec::with_capacity(all.len());
        for range in all {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        let is_new = joined != self.0;
        self.0 = joined;
        is_new
    }
}

/// What is known to be bad.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bad {
    /// Slots that cannot be read, by pack.
    pub packs: BTreeMap<PackId, Slots>,
    /// Snapshots that were there when something was found bad or missing.
    pub suspects: BTreeSet<SnapshotId>,
}

impl Bad {
    /// Whether nothing is bad.
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty() && self.suspects.is_empty()
    }

    /// Adds slots of a pack; whether that made a difference.
    pub fn add(&mut self, pack: &PackId, slots: &Slots) -> bool {
        !slots.is_empty() && self.packs.entry(*pack).or_default().add(slots)
    }

    /// Whether this place is bad.
    pub fn contains(&self, pack: &PackId, slot: u32) -> bool {
        self.packs.get(pack).is_some_and(|slots| slots.contains(slot))
    }

    /// Takes over what else is known to be bad.
    pub fn merge(&mut self, other: Self) {
        for (pack, slots) in &other.packs {
            self.add(pack, slots);
        }
        self.suspects.extend(other.suspects);
    }

    /// The plain bytes, to be sealed.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put_varint(&mut out, self.packs.len() as u64);
        for (pack, Slots(ranges)) in &self.packs {
            out.extend_from_slice(&pack.0);
            put_varint(&mut out, ranges.len() as u64);
            for range in ranges {
                put_varint(&mut out, range.start.into());
                put_varint(&mut out, (range.end - range.start).into());
            }
        }
        put_varint(&mut out, self.suspects.len() as u64);
        self.suspects.iter().for_each(|snapshot| out.extend_from_slice(&snapshot.0));
        out
    }

    /// From the plain bytes.
    pub fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != *MAGIC {
            return Err(Malformed("it is no list of what is bad that this varv knows"));
        }
        let mut bad = Bad::default();
        for _ in 0..reader.count(PackId::LEN + 3)? {
            let pack = PackId(reader.array()?);
            let mut slots = Slots::default();
            for _ in 0..reader.count(2)? {
                slots.0.push(range(&mut reader, slots.0.last().map_or(0, |last| last.end))?);
            }
            bad.packs.insert(pack, slots);
        }
        for _ in 0..reader.count(SnapshotId::LEN)? {
            bad.suspects.insert(SnapshotId(reader.array()?));
        }
        reader.end()?;
        Ok(bad)
    }
}

fn range(reader: &mut Reader, from: u32) -> Decoded<Range<u32>> {
    let first = reader.at_most(u32::MAX.into(), "a slot is too high")? as u32;
    let count = reader.at_most((u32::MAX - first).into(), "a slot is too high")? as u32;
    match first >= from && count > 0 {
        true => Ok(first..first + count),
        false => Err(Malformed("its slots are not in order")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn comes_back() {
        let mut bad = Bad::default();
        assert!(bad.add(&PackId([1; 32]), &Slots::all()));
        assert!(!bad.add(&PackId([1; 32]), &Slots::range(7, 1)));
        assert!(bad.add(&PackId([2; 32]), &Slots::range(7, 3)));
        assert!(bad.add(&PackId([2; 32]), &Slots::range(100, 1)));
        assert!(!bad.add(&PackId([3; 32]), &Slots::range(100, 0)));
        bad.suspects.insert(SnapshotId([9; 32]));
        assert_eq!(Bad::decode(&bad.encode()), Ok(bad.clone()));
        assert!(bad.packs[&PackId([1; 32])].is_all() && !bad.packs[&PackId([2; 32])].is_all());
        let found: Vec<u32> = (0..200).filter(|slot| bad.contains(&PackId([2; 32]), *slot)).collect();
        assert_eq!(found, [7, 8, 9, 100]);
        assert!(bad.contains(&PackId([1; 32]), 70_000) && !bad.contains(&PackId([3; 32]), 1));
        assert_eq!(Bad::decode(&Bad::default().encode()), Ok(Bad::default()));
    }

    proptest! {
        #[test]
        fn slots_are_as_those_of_a_plain_set(ranges: Vec<(u8, u8)>) {
            let (mut slots, mut plain) = (Slots::default(), BTreeSet::new());
            for (first, count) in ranges {
                let before = plain.len();
                plain.extend(u32::from(first)..u32::from(first) + u32::from(count));
                prop_assert_eq!(slots.add(&Slots::range(first.into(), count.into())), plain.len() > before);
            }
            for slot in 0..600 {
                prop_assert_eq!(slots.contains(slot), plain.contains(&slot));
            }
            let bad = Bad { packs: [(PackId([0; 32]), slots)].into(), ..Bad::default() };
            prop_assert!(plain.is_empty() || Bad::decode(&bad.encode()) == Ok(bad));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Bad::decode(&[&MAGIC[..], &bytes].concat());
        }
    }
}
