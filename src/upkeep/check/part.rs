//! Which packs' data a check reads.

use std::collections::HashSet;

use jiff::Timestamp;

use crate::format::ledger::Ledger;
use crate::id::PackId;
use crate::time::Interval;

/// A part of the packs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Part {
    /// A share of them, another one each day.
    Share {
        /// Above 0 and up to 100.
        percent: f64,
        /// The day's number.
        day: u64,
    },
    /// Those that were not read for longest, the ones never read first.
    Due {
        /// None that was read and found good since.
        max_age: Option<Interval>,
        /// No more bytes than this, but for one pack that may exceed it.
        limit: Option<u64>,
    },
}

/// Which packs are read, and which should be but are too many.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Those that are read.
    pub packs: HashSet<PackId>,
    /// How many are due and not read.
    pub packs_left: u64,
    /// Their length.
    pub bytes_left: u64,
}

impl Part {
    /// All packs.
    pub const WHOLE: Part = Part::Share { percent: 100.0, day: 0 };

    /// `percent` of the packs, as `day` has it: days that follow each other read all in turn.
    pub fn of_day(percent: f64, day: u64) -> Self {
        Part::Share { percent, day }
    }

    /// Whether it is all packs.
    pub fn is_whole(&self) -> bool {
        matches!(self, Part::Share { percent, .. } if *percent >= 100.0)
    }

    /// Chooses among packs, given with their lengths.
    pub fn choose(
        &self,
        packs: impl Iterator<Item = (PackId, u64)>,
        ledger: &Ledger,
        now: Timestamp,
    ) -> Chosen {
        match *self {
            Part::Share { percent, day } => {
                let packs = packs.map(|(id, _)| id).filter(|id| in_share(id, percent, day)).collect();
                Chosen { packs, ..Chosen::default() }
            }
            Part::Due { max_age, limit } => {
                // Where no calendar reaches back so far, none is older.
                let since = max_age.map(|age| age.before(now).map_or(0, seconds));
                choose_due(packs, ledger, since, limit.unwrap_or(u64::MAX))
            }
        }
    }
}

/// A moment in seconds since 1970, not before.
pub fn seconds(moment: Timestamp) -> u64 {
    moment.as_second().try_into().unwrap_or(0)
}

/// Packs' names are evenly spread; each day reads the arc of them that follows on the last day's.
fn in_share(id: &PackId, percent: f64, day: u64) -> bool {
    let head = id.0.first_chunk().map_or(0, |head| u32::from_be_bytes(*head));
    let place = f64::from(head) / (f64::from(u32::MAX) + 1.0);
    let share = percent / 100.0;
    let begin = (day as f64 * share).fract();
    percent >= 100.0 || (place - begin).rem_euclid(1.0) < share
}

fn choose_due(
    packs: impl Iterator<Item = (PackId, u64)>,
    ledger: &Ledger,
    since: Option<u64>,
    limit: u64,
) -> Chosen {
    let mut due: Vec<(Option<u64>, PackId, u64)> = packs
        .map(|(id, len)| (ledger.last(&id), id, len))
        .filter(|(last, ..)| last.is_none_or(|last| since.is_none_or(|since| last < since)))
        .collect();
    due.sort_unstable();
    let (mut chosen, mut bytes) = (Chosen::default(), 0u64);
    for (_, id, len) in due {
        bytes = bytes.saturating_add(len);
        if chosen.packs_left == 0 && (bytes <= limit || chosen.packs.is_empty()) {
            chosen.packs.insert(id);
        } else {
            chosen.packs_left += 1;
            chosen.bytes_left += len;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_219_200;
    const DAY: u64 = 86_400;

    fn id(place: f64) -> PackId {
        let mut id = PackId([0; 32]);
        id.0[..4].copy_from_slice(&((place * f64::from(u32::MAX)) as u32).to_be_bytes());
        id
    }

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    fn packs(count: u32) -> impl Iterator<Item = (PackId, u64)> + Clone {
        (0..count).map(move |n| (id(f64::from(n) / f64::from(count)), 100))
    }

    #[test]
    fn days_in_turn_read_everything() {
        for percent in [10.0, 30.0, 7.5] {
            let days = (100.0_f64 / percent).ceil() as u64;
            for (id, _) in packs(1000) {
                for first in [0, 20_000, 20_001] {
                    let read = (first..first + days).filter(|&day| in_share(&id, percent, day));
                    assert!(read.count() >= 1, "{percent} % {id} from day {first}");
                }
            }
        }
    }

    #[test]
    fn a_day_reads_its_share() {
        let count = |part: Part| part.choose(packs(1000), &Ledger::default(), now()).packs.len();
        assert!((95..=105).contains(&count(Part::of_day(10.0, 20_123))));
        assert_eq!(count(Part::of_day(100.0, 3)), 1000);
        assert_eq!(count(Part::WHOLE), 1000);
    }

    #[test]
    fn the_never_read_come_first_then_the_oldest() {
        let mut ledger = Ledger::default();
        let all: Vec<PackId> = packs(6).map(|(id, _)| id).collect();
        for (pack, days) in [(0, 40), (1, 50), (2, 10), (3, 45)] {
            ledger.insert(&all[pack], NOW as u64 - days * DAY);
        }
        let choose = |limit| {
            let max_age = Some(Interval::parse("30D").unwrap());
            let chosen = Part::Due { max_age, limit }.choose(packs(6), &ledger, now());
            let mut numbers: Vec<usize> =
                all.iter().enumerate().filter(|(_, id)| chosen.packs.contains(id)).map(|(n, _)| n).collect();
            numbers.sort_unstable();
            (numbers, chosen.packs_left, chosen.bytes_left)
        };
        assert_eq!(choose(None), (vec![0, 1, 3, 4, 5], 0, 0));
        assert_eq!(choose(Some(350)), (vec![1, 4, 5], 2, 200));
        assert_eq!(choose(Some(1)).0.len(), 1, "one pack at least, or it would never go on");
        let chosen = Part::Due { max_age: None, limit: Some(500) }.choose(packs(6), &ledger, now());
        assert!(!chosen.packs.contains(&all[2]) && chosen.packs.len() == 5);
    }

    #[test]
    fn a_nightly_limit_covers_all_in_a_month() {
        let mut ledger = Ledger::default();
        let part = Part::Due { max_age: Some(Interval::parse("30D").unwrap()), limit: Some(1000) };
        for night in 0..90 {
            let now = Timestamp::from_second(NOW + night * DAY as i64).unwrap();
            let chosen = part.choose(packs(280), &ledger, now);
            chosen.packs.iter().for_each(|id| ledger.insert(id, seconds(now)));
            let late = packs(280)
                .filter(|(id, _)| ledger.last(id).is_none_or(|last| last + 30 * DAY < seconds(now)));
            assert!(night < 28 || late.count() == 0, "night {night}");
        }
    }
}
