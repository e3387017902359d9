//! Marks on chunks: a bitmap over the index's ordinals.

use std::collections::HashMap;

/// Words of a page; its bits are 64 Ki ordinals, about the chunks of one GiB.
const PAGE_WORDS: usize = 1 << 10;
const PAGE_BITS: u64 = PAGE_WORDS as u64 * 64;

/// Which ordinals are marked. Takes one bit for each ordinal of the pages that have a mark and are
/// not full: at most 8 MiB for the 70 million chunks of a TiB.
#[derive(Debug, Default)]
pub struct Marks {
    pages: HashMap<u64, Page>,
}

#[derive(Debug)]
enum Page {
    /// Some are marked, and so many are not.
    Part(Box<[u64; PAGE_WORDS]>, u64),
    /// All are.
    Full,
}

impl Page {
    fn word(&self, at: usize) -> u64 {
        match self {
            Page::Part(words, _) => words[at],
            Page::Full => u64::MAX,
        }
    }
}

impl Marks {
    /// Marks an ordinal; whether it was not marked before.
    pub fn insert(&mut self, ordinal: u64) -> bool {
        let (page, word, bit) = place(ordinal);
        let page = self.pages.entry(page).or_insert_with(|| Page::Part(Box::new([0; PAGE_WORDS]), PAGE_BITS));
        let Page::Part(words, left) = page else { return false };
        if words[word] & bit != 0 {
            return false;
        }
        words[word] |= bit;
        *left -= 1;
        if *left == 0 {
            *page = Page::Full;
        }
        true
    }

    /// Whether an ordinal is marked.
    pub fn contains(&self, ordinal: u64) -> bool {
        let (page, word, bit) = place(ordinal);
        self.pages.get(&page).is_some_and(|page| page.word(word) & bit != 0)
    }

    /// How many of `len` ordinals from `first` on are marked.
    pub fn count(&self, first: u64, len: u64) -> u64 {
        let end = first.saturating_add(len);
        let mut at = first;
        let mut count = 0;
        while at < end {
            let (page, word, bit) = place(at);
            let bits = (64 - bit.trailing_zeros() as u64).min(end - at);
            let mask = (u64::MAX >> (64 - bits)) << bit.trailing_zeros();
            let word = self.pages.get(&page).map_or(0, |page| page.word(word));
            count += u64::from((word & mask).count_ones());
            at += bits;
        }
        count
    }

    /// Takes all marks away.
    pub fn clear(&mut self) {
        self.pages.clear();
    }
}

fn place(ordinal: u64) -> (u64, usize, u64) {
    let within = ordinal % PAGE_BITS;
    (ordinal / PAGE_BITS, (within / 64) as usize, 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_a_range_are_counted() {
        let mut marks = Marks::default();
        let ordinals = [3, 63, 64, 200, PAGE_BITS - 1, PAGE_BITS, PAGE_BITS + 70];
        assert!(ordinals.iter().all(|ordinal| marks.insert(*ordinal)));
        for first in [0, 1, 3, 4, 63, 64, 65, 199, 201, PAGE_BITS - 1, PAGE_BITS] {
            for len in [0, 1, 2, 60, 64, 65, 128, PAGE_BITS, 2 * PAGE_BITS] {
                let expected = ordinals.iter().filter(|at| (first..first + len).contains(*at)).count();
                assert_eq!(marks.count(first, len), expected as u64, "{len} from {first}");
            }
        }
    }

    #[test]
    fn full_pages_take_no_room() {
        let mut marks = Marks::default();
        let all = 5..2 * PAGE_BITS + 5;
        assert!(all.clone().all(|ordinal| marks.insert(ordinal)));
        assert!(matches!(marks.pages[&1], Page::Full) && matches!(marks.pages[&0], Page::Part(_, 5)));
        assert!(!all.clone().any(|ordinal| marks.insert(ordinal)));
        assert_eq!(marks.count(0, 3 * PAGE_BITS), 2 * PAGE_BITS);
        assert_eq!(marks.count(PAGE_BITS + 7, 100), 100);
        assert!(marks.contains(PAGE_BITS) && !marks.contains(4) && !marks.contains(all.end));
    }

    #[test]
    fn each_ordinal_has_its_own_mark() {
        let mut marks = Marks::default();
        let ordinals = [0, 1, 63, 64, PAGE_BITS - 1, PAGE_BITS, 1 << 39, u64::MAX];
        for ordinal in ordinals {
            assert!(!marks.contains(ordinal));
            assert!(marks.insert(ordinal), "{ordinal}");
            assert!(!marks.insert(ordinal), "{ordinal}");
        }
        for ordinal in ordinals {
            assert!(marks.contains(ordinal));
        }
        assert!(!marks.contains(2));
        marks.clear();
        assert!(!marks.contains(0));
    }
}
