//! Which packs go, and which are written anew. Pure: from how packs are used to a plan.

use serde::Serialize;

use super::PruneOptions;
use crate::id::PackId;

/// How a pack is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackUse {
    /// The pack.
    pub id: PackId,
    /// Its number in the index.
    pub number: u32,
    /// Its length.
    pub len: u64,
    /// Whether anything in it is needed.
    pub is_needed: bool,
    /// About how much of it is not needed.
    pub unused: u64,
    /// About how much shorter it would be, written anew.
    pub gain: u64,
    /// Whether it has to stay where it is: other frames are made against frames in it.
    pub is_fixed: bool,
}

/// What prune does.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Packs that nobody needs: they go.
    pub unused: Vec<PackUse>,
    /// Packs to be written anew without what nobody needs, in the order of their numbers.
    pub repack: Vec<PackUse>,
    /// How many packs there are.
    packs: u64,
    /// Their length.
    bytes: u64,
    /// About how much of the packs that stay as they are is not needed.
    bytes_left: u64,
}

/// A plan in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All packs.
    pub packs: u64,
    /// Their length.
    pub bytes: u64,
    /// Packs that nobody needs.
    pub packs_unused: u64,
    /// Their length: what is sure to be freed.
    pub bytes_unused: u64,
    /// Packs to be written anew.
    pub packs_repack: u64,
    /// Their length.
    pub bytes_repack: u64,
    /// About what will be freed in all.
    pub bytes_to_free: u64,
    /// About what is not needed and stays.
    pub bytes_left_unused: u64,
}

impl Plan {
    /// Chooses: the packs that give back the most for what has to be copied, until what is unused
    /// is no more than it may be.
    pub fn new(uses: Vec<PackUse>, options: &PruneOptions) -> Self {
        let mut plan = Plan {
            packs: uses.len() as u64,
            bytes: uses.iter().map(|pack| pack.len).sum(),
            ..Plan::default()
        };
        let (needed, unused): (Vec<PackUse>, Vec<PackUse>) =
            uses.into_iter().partition(|pack| pack.is_needed);
        plan.unused = unused;
        let used: u64 = needed.iter().map(|pack| pack.len.saturating_sub(pack.unused)).sum();
        plan.bytes_left = needed.iter().map(|pack| pack.unused).sum();
        plan.choose(needed, unused_max(used, options.max_unused), options.max_repack.unwrap_or(u64::MAX));
        plan
    }

    fn choose(&mut self, needed: Vec<PackUse>, unused_max: u64, mut copy_max: u64) {
        let mut candidates: Vec<PackUse> =
            needed.into_iter().filter(|pack| pack.gain > 0 && !pack.is_fixed).collect();
        let share = |pack: &PackUse| pack.gain as f64 / pack.len.max(1) as f64;
        candidates.sort_by(|a, b| share(b).total_cmp(&share(a)).then(a.number.cmp(&b.number)));
        for pack in candidates {
            if self.bytes_left <= unused_max {
                break;
            }
            if pack.len <= copy_max {
                copy_max -= pack.len;
                self.bytes_left = self.bytes_left.saturating_sub(pack.gain);
                self.repack.push(pack);
            }
        }
        self.repack.sort_by_key(|pack| pack.number);
    }

    /// Length of the packs that nobody needs.
    pub fn bytes_unused(&self) -> u64 {
        self.unused.iter().map(|pack| pack.len).sum()
    }

    /// In numbers.
    pub fn summary(&self) -> Summary {
        let gain: u64 = self.repack.iter().map(|pack| pack.gain).sum();
        Summary {
            packs: self.packs,
            bytes: self.bytes,
            packs_unused: self.unused.len() as u64,
            bytes_unused: self.bytes_unused(),
            packs_repack: self.repack.len() as u64,
            bytes_repack: self.repack.iter().map(|pack| pack.len).sum(),
            bytes_to_free: self.bytes_unused() + gain,
            bytes_left_unused: self.bytes_left,
        }
    }
}

/// What may be unused beside `used` bytes, so that it is this share of both.
fn unused_max(used: u64, per_cent: f64) -> u64 {
    match per_cent {
        per_cent if per_cent >= 100.0 => u64::MAX,
        per_cent => (used as f64 * per_cent / (100.0 - per_cent)) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(number: u32, len: u64, unused: u64) -> PackUse {
        let id = PackId([number as u8; 32]);
        PackUse { id, number, len, is_needed: unused < len, unused, gain: unused, is_fixed: false }
    }

    fn options(max_unused: f64) -> PruneOptions {
        PruneOptions { max_unused, max_repack: None }
    }

    fn numbers(packs: &[PackUse]) -> Vec<u32> {
        packs.iter().map(|pack| pack.number).collect()
    }

    #[test]
    fn unused_packs_go_and_wasteful_ones_are_written_anew() {
        let uses =
            vec![pack(1, 100, 100), pack(2, 100, 90), pack(3, 100, 0), pack(4, 100, 4), pack(5, 100, 50)];
        let plan = Plan::new(uses.clone(), &options(5.0));
        assert_eq!((numbers(&plan.unused), numbers(&plan.repack)), (vec![1], vec![2, 5]));
        let summary = plan.summary();
        assert_eq!((summary.bytes_to_free, summary.bytes_left_unused), (240, 4));
        assert_eq!((summary.bytes_unused, summary.bytes_repack), (100, 200));
        assert_eq!(numbers(&Plan::new(uses.clone(), &options(0.0)).repack), [2, 4, 5]);
        assert!(Plan::new(uses.clone(), &options(100.0)).repack.is_empty());
        // 54 unused of 310 is less than a fifth.
        assert_eq!(numbers(&Plan::new(uses, &options(20.0)).repack), [2]);
    }

    #[test]
    fn a_limit_on_copying_is_kept() {
        let uses = vec![pack(1, 100, 90), pack(2, 50, 40), pack(3, 60, 30)];
        let limited = |max| Plan::new(uses.clone(), &PruneOptions { max_unused: 0.0, max_repack: Some(max) });
        assert_eq!(numbers(&limited(99).repack), [2]);
        assert_eq!(numbers(&limited(160).repack), [1, 2], "those that give back the most");
        assert_eq!(numbers(&limited(210).repack), [1, 2, 3]);
        assert!(limited(0).repack.is_empty());
    }

    #[test]
    fn packs_that_others_are_made_against_stay() {
        let fixed = PackUse { is_fixed: true, ..pack(1, 100, 90) };
        let plan = Plan::new(vec![fixed, pack(2, 100, 0)], &options(0.0));
        assert!(plan.repack.is_empty() && plan.unused.is_empty());
        assert_eq!(plan.summary().bytes_left_unused, 90);
    }

    proptest! {
        #[test]
        fn what_is_needed_is_never_removed(
            packs in proptest::collection::vec((1u64..1000, 0u64..1000, any::<bool>()), 0..40),
            max_unused in 0f64..100.0,
            max_repack in proptest::option::of(0u64..5000),
        ) {
            let uses: Vec<PackUse> = (0..).zip(packs)
                .map(|(number, (len, unused, is_fixed))| PackUse { is_fixed, ..pack(number, len, unused.min(len)) })
                .collect();
            let plan = Plan::new(uses.clone(), &PruneOptions { max_unused, max_repack });
            prop_assert!(plan.unused.iter().all(|pack| !pack.is_needed));
            prop_assert!(plan.repack.iter().all(|pack| pack.is_needed && pack.gain > 0 && !pack.is_fixed));
            let summary = plan.summary();
            prop_assert!(summary.bytes_repack <= max_repack.unwrap_or(u64::MAX));
            let unused: u64 = uses.iter().map(|pack| pack.unused).sum();
            prop_assert_eq!(summary.bytes_to_free + summary.bytes_left_unused, unused);
        }
    }
}
