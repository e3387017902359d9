//! The ledger: when each pack was last read and found good.
//!
//! ```text
//! "ledger" 6 · u8 version (1)
//! varint groups · for each, the older ones first:
//!   varint seconds since 1970 − those of the group before · varint packs, at least 1
//!   · 8 first bytes of each pack's id, ascending
//! ```
//!
//! A check reads many packs and says of all of them the same time, so a pack takes eight bytes.
//! Two packs that begin alike share an entry; that costs nothing but a pack that is read later.

use std::collections::BTreeMap;

use super::wire::{Decoded, Malformed, Reader, put_varint};
use crate::id::PackId;

/// The most packs that are remembered: 128 TiB of them, in half of what an object may hold. The
/// ones read longest ago are forgotten first, and so are due.
pub const LEDGER_PACKS_MAX: usize = 4 << 20;

const MAGIC: &[u8; 7] = b"ledger\x01";
const PREFIX_LEN: usize = 8;

/// When each pack was last read and found good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger(BTreeMap<[u8; PREFIX_LEN], u64>);

impl Ledger {
    /// Notes that a pack was found good at a time, in seconds since 1970; later times count.
    pub fn insert(&mut self, pack: &PackId, seconds: u64) {
        self.set(prefix(pack), seconds);
    }

    fn set(&mut self, prefix: [u8; PREFIX_LEN], seconds: u64) {
        let last = self.0.entry(prefix).or_default();
        *last = seconds.max(*last);
    }

    /// When a pack was last found good, in seconds since 1970.
    pub fn last(&self, pack: &PackId) -> Option<u64> {
        self.0.get(&prefix(pack)).copied()
    }

    /// Takes over what another ledger knows.
    pub fn merge(&mut self, other: Self) {
        other.0.into_iter().for_each(|(prefix, seconds)| self.set(prefix, seconds));
    }

    /// Forgets all packs but these, and those that were found bad.
    pub fn retain(&mut self, keep: impl Fn(&[u8; 8]) -> bool) {
        self.0.retain(|prefix, _| keep(prefix));
    }

    /// Forgets that a pack was good.
    pub fn remove(&mut self, pack: &PackId) {
        self.0.remove(&prefix(pack));
    }

    /// The plain bytes, to be sealed.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_newest(LEDGER_PACKS_MAX)
    }

    fn encode_newest(&self, packs_max: usize) -> Vec<u8> {
        let mut groups: BTreeMap<u64, Vec<&[u8; PREFIX_LEN]>> = BTreeMap::new();
        self.0.iter().for_each(|(prefix, seconds)| groups.entry(*seconds).or_default().push(prefix));
        let mut surplus = self.0.len().saturating_sub(packs_max);
        while let Some(oldest) = groups.first_entry().filter(|oldest| oldest.get().len() <= surplus) {
            surplus -= oldest.remove().len();
        }
        if let Some(mut oldest) = groups.first_entry() {
            oldest.get_mut().drain(..surplus);
        }
        let mut out = MAGIC.to_vec();
        put_varint(&mut out, groups.len() as u64);
        let mut before = 0;
        for (seconds, packs) in groups {
            put_varint(&mut out, seconds - before);
            put_varint(&mut out, packs.len() as u64);
            packs.into_iter().for_each(|prefix| out.extend_from_slice(prefix));
            before = seconds;
        }
        out
    }

    /// From the plain bytes.
    pub fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != *MAGIC {
            return Err(Malformed("it is no ledger that this varv knows"));
        }
        let mut ledger = Ledger::default();
        let mut seconds = 0u64;
        for _ in 0..reader.count(2 + PREFIX_LEN)? {
            seconds = seconds.checked_add(reader.varint()?).ok_or(Malformed("its times are too late"))?;
            for _ in 0..reader.count(PREFIX_LEN)? {
                ledger.set(reader.array()?, seconds);
            }
        }
        reader.end()?;
        Ok(ledger)
    }
}

fn prefix(pack: &PackId) -> [u8; PREFIX_LEN] {
    let mut prefix = [0; PREFIX_LEN];
    prefix.copy_from_slice(&pack.0[..PREFIX_LEN]);
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(number: u64) -> PackId {
        let mut id = PackId([7; 32]);
        id.0[..8].copy_from_slice(&number.to_be_bytes());
        id
    }

    #[test]
    fn comes_back_and_takes_eight_bytes_a_pack() {
        let mut ledger = Ledger::default();
        (0..1000).for_each(|number| ledger.insert(&pack(number), 1_795_219_200 + number % 3));
        let bytes = ledger.encode();
        assert_eq!(Ledger::decode(&bytes), Ok(ledger));
        assert!(bytes.len() < 8 * 1000 + 40, "{}", bytes.len());
        assert_eq!(Ledger::decode(&Ledger::default().encode()), Ok(Ledger::default()));
    }

    #[test]
    fn the_later_time_counts() {
        let mut ledger = Ledger::default();
        ledger.insert(&pack(1), 5);
        ledger.insert(&pack(1), 3);
        let mut other = Ledger::default();
        other.insert(&pack(1), 9);
        other.insert(&pack(2), 1);
        ledger.merge(other);
        assert_eq!([1, 2, 3].map(|number| ledger.last(&pack(number))), [Some(9), Some(1), None]);
        ledger.remove(&pack(2));
        ledger.retain(|prefix| *prefix != pack(1).0[..8]);
        assert_eq!(ledger, Ledger::default());
    }

    #[test]
    fn beyond_its_bound_the_oldest_are_forgotten() {
        let mut ledger = Ledger::default();
        let number = |number: usize| pack(number as u64);
        (0..105).for_each(|n| ledger.insert(&number(n), if n < 3 { 1 } else { 2 }));
        let read = Ledger::decode(&ledger.encode_newest(100)).unwrap();
        assert_eq!(read.0.len(), 100);
        assert_eq!((read.last(&number(2)), read.last(&number(4))), (None, None));
        assert_eq!(read.last(&number(5)), Some(2));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Ledger::decode(&[&MAGIC[..], &bytes].concat());
        }
    }
}
