//! Which packs go, and which are written anew. Pure: from how packs are used to a plan.

use std::collections::HashMap;

use serde::Serialize;

use super::PruneOptions;
use crate::format::snapshot::Snapshot;
use crate::upkeep::rewrite::groups::{Group, Groups, Member};

/// Where packs have to be written anew with one, what all of them give back must be at least one
/// in so many of what is copied.
const WORTH: u64 = 8;

/// How a pack is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackUse {
    /// The pack.
    pub pack: Member,
    /// Whether anything in it is needed.
    pub is_needed: bool,
    /// About how much of it is not needed.
    pub unused: u64,
    /// About how much shorter it would be, written anew.
    pub gain: u64,
}

/// An interrupted backup that nobody can go on with: it is forgotten.
#[derive(Debug, Clone, PartialEq)]
pub struct Abandoned {
    /// What its snapshot would have been.
    pub snapshot: Snapshot,
    /// Whether nobody goes on with it since it is too old; else it has lost something of what it
    /// stored.
    pub is_too_old: bool,
}

/// What prune does.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Packs that nobody needs: they go.
    pub unused: Vec<Member>,
    /// Packs to be written anew without what nobody needs, those together that have to be.
    pub repack: Vec<Group>,
    /// Interrupted backups that are forgotten.
    pub abandoned: Vec<Abandoned>,
    /// About how much shorter they become.
    gain: u64,
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
            bytes: uses.iter().map(|used| used.pack.len).sum(),
            ..Plan::default()
        };
        let (needed, unused): (Vec<PackUse>, Vec<PackUse>) =
            uses.into_iter().partition(|used| used.is_needed);
        plan.unused = unused.into_iter().map(|used| used.pack).collect();
        let used: u64 = needed.iter().map(|used| used.pack.len.saturating_sub(used.unused)).sum();
        plan.bytes_left = needed.iter().map(|used| used.unused).sum();
        plan.choose(&needed, unused_max(used, options.max_unused), options.max_repack.unwrap_or(u64::MAX));
        plan
    }

    fn choose(&mut self, needed: &[PackUse], unused_max: u64, mut copy_max: u64) {
        let gains: HashMap<u32, u64> = needed.iter().map(|used| (used.pack.number, used.gain)).collect();
        let mut candidates: Vec<&PackUse> = needed.iter().filter(|used| used.gain > 0).collect();
        let share = |used: &PackUse| used.gain as f64 / used.pack.len.max(1) as f64;
        candidates.sort_by(|a, b| share(b).total_cmp(&share(a)).then(a.pack.number.cmp(&b.pack.number)));
        let mut groups = Groups::new(needed.iter().map(|used| &used.pack));
        for used in candidates {
            if self.bytes_left <= unused_max {
                break;
            }
            if groups.contains(used.pack.number) {
                continue;
            }
            let Some(addition) = groups.addition(used.pack.number, |_| true) else { continue };
            let gain: u64 = addition.numbers().filter_map(|number| gains.get(&number)).sum();
            let is_alone = addition.numbers().count() == 1;
            if addition.bytes() <= copy_max && (is_alone || gain * WORTH >= addition.bytes()) {
                copy_max -= addition.bytes();
                self.bytes_left = self.bytes_left.saturating_sub(gain);
                self.gain += gain;
                groups.add(addition);
            }
        }
        self.repack = groups.finish();
    }

    /// Length of the packs that nobody needs.
    pub fn bytes_unused(&self) -> u64 {
        self.unused.iter().map(|pack| pack.len).sum()
    }

    /// In numbers.
    pub fn summary(&self) -> Summary {
        let repack = || self.repack.iter().flatten();
        Summary {
            packs: self.packs,
            bytes: self.bytes,
            packs_unused: self.unused.len() as u64,
            bytes_unused: self.bytes_unused(),
            packs_repack: repack().count() as u64,
            bytes_repack: repack().map(|pack| pack.len).sum(),
            bytes_to_free: self.bytes_unused() + self.gain,
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

    use crate::id::PackId;

    fn pack(number: u32, len: u64, unused: u64) -> PackUse {
        let pack = Member { id: PackId([number as u8; 32]), number, len, dependants: Vec::new() };
        PackUse { pack, is_needed: unused < len, unused, gain: unused }
    }

    fn options(max_unused: f64) -> PruneOptions {
        PruneOptions { max_unused, max_repack: None }
    }

    fn below(used: PackUse, dependants: &[u32]) -> PackUse {
        PackUse { pack: Member { dependants: dependants.to_vec(), ..used.pack }, ..used }
    }

    fn numbers<'p>(packs: impl IntoIterator<Item = &'p Member>) -> Vec<u32> {
        packs.into_iter().map(|pack| pack.number).collect()
    }

    fn repacked(plan: &Plan) -> Vec<u32> {
        numbers(plan.repack.iter().flatten())
    }

    #[test]
    fn unused_packs_go_and_wasteful_ones_are_written_anew() {
        let uses =
            vec![pack(1, 100, 100), pack(2, 100, 90), pack(3, 100, 0), pack(4, 100, 4), pack(5, 100, 50)];
        let plan = Plan::new(uses.clone(), &options(5.0));
        assert_eq!((numbers(&plan.unused), repacked(&plan)), (vec![1], vec![2, 5]));
        let summary = plan.summary();
        assert_eq!((summary.bytes_to_free, summary.bytes_left_unused), (240, 4));
        assert_eq!((summary.bytes_unused, summary.bytes_repack), (100, 200));
        assert_eq!(repacked(&Plan::new(uses.clone(), &options(0.0))), [2, 4, 5]);
        assert!(Plan::new(uses.clone(), &options(100.0)).repack.is_empty());
        // 54 unused of 310 is less than a fifth.
        assert_eq!(repacked(&Plan::new(uses, &options(20.0))), [2]);
    }

    #[test]
    fn a_limit_on_copying_is_kept() {
        let uses = vec![pack(1, 100, 90), pack(2, 50, 40), pack(3, 60, 30)];
        let limited = |max| Plan::new(uses.clone(), &PruneOptions { max_unused: 0.0, max_repack: Some(max) });
        assert_eq!(repacked(&limited(99)), [2]);
        assert_eq!(repacked(&limited(160)), [1, 2], "those that give back the most");
        assert_eq!(repacked(&limited(210)), [1, 2, 3]);
        assert!(limited(0).repack.is_empty());
    }

    #[test]
    fn what_is_made_against_a_pack_comes_along_if_that_pays() {
        let uses = |gain| vec![below(pack(1, 100, gain), &[2]), pack(2, 100, 0), pack(3, 100, 10)];
        let plan = Plan::new(uses(90), &options(0.0));
        assert_eq!(plan.repack.iter().map(numbers).collect::<Vec<_>>(), [vec![1, 2], vec![3]]);
        assert_eq!((plan.summary().bytes_to_free, plan.summary().bytes_repack), (100, 300));
        let plan = Plan::new(uses(20), &options(0.0));
        assert_eq!(repacked(&plan), [3]);
        assert_eq!(plan.summary().bytes_left_unused, 20);
    }

    proptest! {
        #[test]
        fn what_is_needed_is_never_removed(
            packs in proptest::collection::vec((1u64..1000, 0u64..1000, 0u32..40), 0..40),
            max_unused in 0f64..100.0,
            max_repack in proptest::option::of(0u64..5000),
        ) {
            let uses: Vec<PackUse> = (0..).zip(packs)
                .map(|(number, (len, unused, above))| {
                    let dependants = Some(above).filter(|above| *above > number);
                    below(pack(number, len, unused.min(len)), &Vec::from_iter(dependants))
                })
                .collect();
            let plan = Plan::new(uses.clone(), &PruneOptions { max_unused, max_repack });
            let needed = |pack: &Member| uses[pack.number as usize].is_needed;
            prop_assert!(!plan.unused.iter().any(needed));
            prop_assert!(plan.repack.iter().flatten().all(needed));
            let summary = plan.summary();
            prop_assert!(summary.bytes_repack <= max_repack.unwrap_or(u64::MAX));
            let unused: u64 = uses.iter().map(|pack| pack.unused).sum();
            prop_assert_eq!(summary.bytes_to_free + summary.bytes_left_unused, unused);
        }
    }
}
