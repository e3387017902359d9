//! Packs that have to be written anew together. Pure.
//!
//! A delta frame names the pack, frame and slots that it is compressed against. So if a pack is
//! written anew, those whose frames are compressed against frames in it have to be too, and so on.

use std::collections::{HashMap, HashSet};

use crate::id::PackId;

/// A group is not longer: it needs so much room beside what is there.
pub const GROUP_BYTES_MAX: u64 = 4 << 30;

/// A pack that may be written anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The pack.
    pub id: PackId,
    /// Its number in the index.
    pub number: u32,
    /// Its length.
    pub len: u64,
    /// The numbers of other packs with frames that are compressed against frames in it.
    pub dependants: Vec<u32>,
}

/// Packs that are written anew together.
pub type Group = Vec<Member>;

/// Collects groups; each pack is in one at most.
pub struct Groups<'p> {
    packs: HashMap<u32, &'p Member>,
    groups: Vec<Option<Group>>,
    group_of: HashMap<u32, usize>,
}

/// What has to be written anew for one pack, beside what is to be written anyway.
pub struct Addition<'p> {
    packs: Vec<&'p Member>,
    /// Groups that become one.
    joined: Vec<usize>,
}

impl Addition<'_> {
    /// The packs that are added.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.packs.iter().map(|pack| pack.number)
    }

    /// Their length.
    pub fn bytes(&self) -> u64 {
        self.packs.iter().map(|pack| pack.len).sum()
    }
}

impl<'p> Groups<'p> {
    /// None yet; `packs` are all that there are.
    pub fn new(packs: impl Iterator<Item = &'p Member>) -> Self {
        let packs = packs.map(|pack| (pack.number, pack)).collect();
        Self { packs, groups: Vec::new(), group_of: HashMap::new() }
    }

    /// Whether a pack is in a group.
    pub fn contains(&self, number: u32) -> bool {
        self.group_of.contains_key(&number)
    }

    /// What comes along with a pack that is in no group; `None` if that would be too much, or
    /// something that must stay: what `may_move` denies.
    pub fn addition(&self, number: u32, may_move: impl Fn(u32) -> bool) -> Option<Addition<'p>> {
        let mut found = Addition { packs: Vec::new(), joined: Vec::new() };
        let mut seen = HashSet::new();
        let mut open = vec![number];
        let mut bytes = 0;
        while let Some(number) = open.pop() {
            if !seen.insert(number) {
                continue;
            }
            if let Some(group) = self.group_of.get(&number) {
                if !found.joined.contains(group) {
                    found.joined.push(*group);
                    bytes += self.groups[*group].iter().flatten().map(|pack| pack.len).sum::<u64>();
                }
            } else {
                let pack = self.packs.get(&number).filter(|_| may_move(number))?;
                bytes += pack.len;
                found.packs.push(pack);
                open.extend(&pack.dependants);
            }
            if bytes > GROUP_BYTES_MAX && seen.len() > 1 {
                return None;
            }
        }
        Some(found)
    }

    /// Puts it into one group.
    pub fn add(&mut self, addition: Addition<'p>) {
        let mut group: Group = addition.packs.into_iter().cloned().collect();
        for joined in addition.joined {
            group.extend(self.groups[joined].take().into_iter().flatten());
        }
        let at = self.groups.len();
        self.group_of.extend(group.iter().map(|pack| (pack.number, at)));
        self.groups.push(Some(group));
    }

    /// The groups, and the packs of each, in the order of their numbers.
    pub fn finish(self) -> Vec<Group> {
        let mut groups: Vec<Group> = self.groups.into_iter().flatten().collect();
        for group in &mut groups {
            group.sort_by_key(|pack| pack.number);
        }
        groups.sort_by_key(|group| group.first().map(|pack| pack.number));
        groups
    }
}

/// The packs of a round that must not go: `damaged` ones, and those that they need.
pub fn staying(packs: &Group, damaged: HashSet<u32>) -> HashSet<u32> {
    let mut staying = damaged;
    loop {
        let before = staying.len();
        for pack in packs {
            if pack.dependants.iter().any(|number| staying.contains(number)) {
                staying.insert(pack.number);
            }
        }
        if staying.len() == before {
            return staying;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(number: u32, len: u64, dependants: &[u32]) -> Member {
        Member { id: PackId([number as u8; 32]), number, len, dependants: dependants.to_vec() }
    }

    fn numbers(groups: &[Group]) -> Vec<Vec<u32>> {
        groups.iter().map(|group| group.iter().map(|pack| pack.number).collect()).collect()
    }

    fn grouped(packs: &[Member], chosen: &[u32]) -> Vec<Vec<u32>> {
        let mut groups = Groups::new(packs.iter());
        for number in chosen {
            if !groups.contains(*number) {
                let addition = groups.addition(*number, |_| true).unwrap();
                groups.add(addition);
            }
        }
        numbers(&groups.finish())
    }

    #[test]
    fn what_depends_on_a_pack_comes_along() {
        let packs = [pack(1, 10, &[2, 3]), pack(2, 10, &[3]), pack(3, 10, &[]), pack(4, 10, &[])];
        assert_eq!(grouped(&packs, &[1]), [[1, 2, 3]]);
        assert_eq!(grouped(&packs, &[2]), [[2, 3]]);
        assert_eq!(grouped(&packs, &[4, 3]), [[3], [4]]);
    }

    #[test]
    fn groups_that_touch_become_one() {
        let packs =
            [pack(1, 10, &[3]), pack(2, 10, &[3]), pack(3, 10, &[]), pack(4, 10, &[1, 5]), pack(5, 1, &[])];
        assert_eq!(grouped(&packs, &[1, 2]), [[1, 2, 3]]);
        assert_eq!(grouped(&packs, &[3, 5, 4]), [[1, 3, 4, 5]]);
    }

    #[test]
    fn what_is_too_long_or_must_stay_is_none() {
        let packs = [pack(1, 10, &[2]), pack(2, GROUP_BYTES_MAX, &[]), pack(3, 10, &[4]), pack(4, 10, &[])];
        let groups = Groups::new(packs.iter());
        assert!(groups.addition(1, |_| true).is_none());
        assert!(groups.addition(2, |_| true).is_some());
        assert!(groups.addition(3, |number| number != 4).is_none());
        assert!(groups.addition(4, |_| true).is_some());
        assert!(groups.addition(9, |_| true).is_none(), "there is none");
    }

    #[test]
    fn what_damaged_packs_need_stays() {
        let packs = vec![pack(1, 10, &[2]), pack(2, 10, &[3]), pack(3, 10, &[]), pack(4, 10, &[])];
        assert_eq!(staying(&packs, HashSet::from([3])), HashSet::from([1, 2, 3]));
        assert_eq!(staying(&packs, HashSet::from([1])), HashSet::from([1]));
        assert!(staying(&packs, HashSet::new()).is_empty());
    }
}
