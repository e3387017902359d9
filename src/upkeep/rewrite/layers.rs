//! In which order packs may go: none before those whose frames are compressed against it. Pure.

use std::collections::HashMap;
use std::mem;

use crate::id::PackId;

/// Packs in layers: no pack is needed by one of its own layer or of a later one. Each comes with
/// the packs that it needs, of which some may not be among these.
pub fn layers(packs: &[(PackId, Vec<PackId>)]) -> Vec<Vec<PackId>> {
    let mut needed_by: HashMap<PackId, usize> = packs.iter().map(|(id, _)| (*id, 0)).collect();
    let needs: HashMap<PackId, &Vec<PackId>> = packs.iter().map(|(id, needs)| (*id, needs)).collect();
    for need in packs.iter().flat_map(|(_, needs)| needs) {
        needed_by.entry(*need).and_modify(|count| *count += 1);
    }
    let mut layer: Vec<PackId> = packs.iter().map(|(id, _)| *id).filter(|id| needed_by[id] == 0).collect();
    let mut layers = Vec::new();
    while !layer.is_empty() {
        let mut next = Vec::new();
        for id in &layer {
            needed_by.remove(id);
            for need in needs[id] {
                if let Some(count) = needed_by.get_mut(need) {
                    *count -= 1;
                    next.extend((*count == 0).then_some(*need));
                }
            }
        }
        layers.push(mem::replace(&mut layer, next));
    }
    // Packs that need each other: no writer makes them, and nobody can read them.
    layers.extend(Some(needed_by.into_keys().collect()).filter(|rest: &Vec<PackId>| !rest.is_empty()));
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> PackId {
        PackId([number; 32])
    }

    fn layered(packs: &[(u8, &[u8])]) -> Vec<Vec<u8>> {
        let packs: Vec<(PackId, Vec<PackId>)> = packs
            .iter()
            .map(|(pack, needs)| (id(*pack), needs.iter().map(|need| id(*need)).collect()))
            .collect();
        let sorted = |layer: Vec<PackId>| {
            let mut numbers: Vec<u8> = layer.iter().map(|id| id.0[0]).collect();
            numbers.sort_unstable();
            numbers
        };
        layers(&packs).into_iter().map(sorted).collect()
    }

    #[test]
    fn dependants_go_before_what_they_need() {
        assert_eq!(layered(&[(1, &[]), (2, &[1]), (3, &[2, 1]), (4, &[])]), [vec![3, 4], vec![2], vec![1]]);
        assert_eq!(layered(&[(1, &[]), (2, &[1]), (3, &[1])]), [vec![2, 3], vec![1]]);
    }

    #[test]
    fn what_stays_is_of_no_matter() {
        assert_eq!(layered(&[(2, &[1, 9]), (1, &[8])]), [[2], [1]]);
        assert!(layered(&[]).is_empty());
    }

    #[test]
    fn what_needs_itself_goes_last() {
        assert_eq!(layered(&[(1, &[2]), (2, &[1]), (3, &[1])]), [vec![3], vec![1, 2]]);
        assert_eq!(layered(&[(1, &[1])]), [[1]]);
    }
}
