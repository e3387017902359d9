//! Compressing harder what only older snapshots need.
//!
//! A pack is taken if no newer snapshot needs anything in it, nor anything that is made against
//! it; and if nothing is made against it that nobody needs now and that would stay behind. Frames keep their chunks and what they are made against; each is compressed again at the
//! level of the tier, and stored as it comes out shorter. So each is tried once a level.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use super::needs::Needs;
use super::rewrite::groups::{Group, Groups, Member};
use super::rewrite::remove::Remover;
use super::rewrite::{self, Fate, Fates, Rewritten};
use crate::codec::frame::{Alike, Encoder};
use crate::error::{Error, Result};
use crate::format::pack::{Class, Codec, Frame, Trailer};
use crate::observe::{Event, Observer, Stop};
use crate::repo::Repo;
use crate::repo::catalog::Catalog;
use crate::repo::frames::FrameReader;
use crate::repo::index::PackRecord;
use crate::repo::snapshots::Snapshots;

/// What is read before old packs go: so long after the time is up it may go on.
const ROUND_BYTES: u64 = 64 << 20;
/// Frames that are tried to tell what all of them would save and cost.
const SAMPLE_FRAMES: usize = 16;
/// Of a pack, so much must be in frames to be compressed again, one in …
const WORTH: u64 = 8;

/// What to compress how, and how far to go.
#[derive(Debug, Clone, Copy)]
pub struct RetierOptions {
    /// What no snapshot needs that is from then or later.
    pub older_than: Timestamp,
    /// To this zstd level.
    pub level: i8,
    /// So many bytes of packs at most.
    pub limit: Option<u64>,
    /// Nothing is begun after this time.
    pub max_time: Option<Duration>,
}

/// What is to be done, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Packs to be written anew.
    pub packs: u64,
    /// Their length.
    pub bytes: u64,
    /// Of them, frames to be compressed again.
    pub bytes_to_compress: u64,
    /// Packs that the limit leaves for later.
    pub packs_left: u64,
    /// Their length.
    pub bytes_left: u64,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Retiered {
    /// Packs that were written anew.
    pub packs: u64,
    /// Their length before.
    pub bytes_before: u64,
    /// Their length now.
    pub bytes_after: u64,
    /// Packs that were left since they are damaged.
    pub packs_damaged: u64,
    /// Packs of the plan for which no time was left.
    pub packs_left: u64,
}

/// What a plan saves and costs, by a sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// About how much shorter the packs become.
    pub bytes_to_save: u64,
    /// About how long it takes.
    pub seconds: f64,
}

/// Packs to be written anew, those together that have to be.
#[derive(Debug, Default)]
pub struct Plan {
    groups: Vec<Group>,
    /// What it comes to.
    pub summary: Summary,
}

/// Plans; nothing is changed.
pub fn plan(
    repo: &Repo,
    catalog: &Catalog,
    options: &RetierOptions,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Plan> {
    let snapshots = repo.snapshots()?;
    if let Some((id, _)) = snapshots.damaged.first() {
        let why = "what it needs is not known: forget it, by its id, to go on without it";
        return Err(Error::damaged(format!("snapshot {id}"), why));
    }
    let is_new = |time: Timestamp| time >= options.older_than;
    let newer = snapshots.listed.iter().filter(|listed| is_new(listed.snapshot.time)).cloned().collect();
    let hot = Needs::of(catalog, &Snapshots { listed: newer, ..Snapshots::default() }, observer, stop)?;
    let all = Needs::with_all_packs(catalog, &snapshots, observer, stop)?;
    let packs: Vec<PackRecord> = catalog.index()?.packs().to_vec();
    observer.event(Event::Phase { name: "planning", bytes: None });
    let mut cold: Vec<(Member, u64)> = Vec::new();
    for pack in packs.iter().filter(|pack| pack.class == Class::Data) {
        stop.check()?;
        if all.is_needed(pack) && !hot.is_needed(pack) {
            let trailer = &catalog.pack(pack.number)?.trailer;
            let frames = trailer.frames.iter().filter(|frame| is_due(frame, options.level));
            cold.push((all.member(pack), frames.map(|frame| u64::from(frame.stored_len)).sum()));
        }
    }
    Ok(chosen(&cold, options.limit.unwrap_or(u64::MAX)))
}

/// Frames at a lower level. What was stored as it is was so on purpose (level 0), or did not
/// shrink when it was tried.
fn is_due(frame: &Frame, level: i8) -> bool {
    frame.codec == Codec::Zstd && frame.level < level
}

/// The oldest first. Pure: from packs, and how much of each is due, to a plan.
fn chosen(cold: &[(Member, u64)], mut limit: u64) -> Plan {
    let due: HashMap<u32, u64> = cold.iter().map(|(pack, due)| (pack.number, *due)).collect();
    let mut groups = Groups::new(cold.iter().map(|(pack, _)| pack));
    let mut summary = Summary::default();
    for (pack, own) in cold {
        if groups.contains(pack.number) || own * WORTH < pack.len {
            continue;
        }
        let Some(addition) = groups.addition(pack.number, |_| true) else { continue };
        let to_compress: u64 = addition.numbers().filter_map(|number| due.get(&number)).sum();
        if to_compress * WORTH < addition.bytes() {
            continue;
        }
        let packs = addition.numbers().count() as u64;
        if addition.bytes() > limit {
            summary.packs_left += packs;
            summary.bytes_left += addition.bytes();
            continue;
        }
        limit -= addition.bytes();
        summary.packs += packs;
        summary.bytes += addition.bytes();
        summary.bytes_to_compress += to_compress;
        groups.add(addition);
    }
    Plan { groups: groups.finish(), summary }
}

/// Compresses some frames to tell what all would save and cost.
pub fn estimate(catalog: &Catalog, level: i8, plan: &Plan, stop: &Stop) -> Result<Estimate> {
    let packs: Vec<&Member> = plan.groups.iter().flatten().collect();
    let (mut frames, mut encoder) = (FrameReader::new(catalog)?, Encoder::new(level)?);
    let (mut before, mut after) = (0, 0);
    let begun = Instant::now();
    for pack in packs.iter().step_by(packs.len().div_ceil(SAMPLE_FRAMES).max(1)) {
        stop.check()?;
        let opened = catalog.pack(pack.number)?;
        let due = (0..).zip(&opened.trailer.frames).find(|(_, frame)| is_due(frame, level));
        let Some((number, frame)) = due else { continue };
        let (raw, prefix) = frames.frame_and_prefix(&opened, number)?;
        let len = match prefix.is_empty() {
            true => Some(encoder.encode(&raw)?.1.len()),
            false => encoder.encode_delta(&raw, &prefix, Alike::Partly)?.map(|stored| stored.len()),
        };
        before += u64::from(frame.stored_len);
        after += len.map_or(frame.stored_len.into(), |len| (len as u64).min(frame.stored_len.into()));
    }
    let share = plan.summary.bytes_to_compress as f64 / before.max(1) as f64;
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    Ok(Estimate {
        bytes_to_save: ((before - after) as f64 * share) as u64,
        seconds: begun.elapsed().as_secs_f64() * share / threads,
    })
}

/// Executes a plan, under the exclusive lock. Interrupted, it is taken up by the next run. The index
/// is left tidy, unless it had to go for lack of room.
pub fn execute(
    repo: &Repo,
    catalog: Catalog,
    plan: &Plan,
    options: &RetierOptions,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Retiered> {
    observer.event(Event::Phase { name: "compressing again", bytes: Some(plan.summary.bytes) });
    let begun = Instant::now();
    let is_over = || options.max_time.is_some_and(|max| begun.elapsed() >= max);
    let mut remover = Remover { repo, catalog: &catalog, has_index: true, observer, stop };
    let (mut rewritten, mut left) = (Rewritten::default(), 0);
    for groups in rewrite::rounds(&plan.groups, ROUND_BYTES) {
        if is_over() || !remover.has_index {
            left += groups.iter().flatten().count() as u64;
            continue;
        }
        rewrite::round(&mut remover, groups, &Harder(options.level), &mut rewritten, stop)?;
    }
    if remover.has_index {
        catalog.tidy()?;
        catalog.close(observer)?;
    }
    Ok(Retiered {
        packs: rewritten.packs_before,
        bytes_before: rewritten.bytes_before,
        bytes_after: rewritten.bytes_after,
        packs_damaged: rewritten.packs_damaged,
        packs_left: left,
    })
}

/// All frames stay, those of lower levels compressed at this one.
struct Harder(i8);

impl Fates for Harder {
    fn of(&self, _: &PackRecord, trailer: &Trailer) -> Vec<Fate> {
        let fate = |frame| if is_due(frame, self.0) { Fate::Level(self.0) } else { Fate::Whole };
        trailer.frames.iter().map(fate).collect()
    }

    fn keeps(&self, _: &PackRecord, _: u32) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PackId;

    fn pack(number: u32, len: u64, dependants: &[u32]) -> Member {
        Member { id: PackId([number as u8; 32]), number, len, dependants: dependants.to_vec() }
    }

    fn numbers(plan: &Plan) -> Vec<u32> {
        plan.groups.iter().flatten().map(|pack| pack.number).collect()
    }

    #[test]
    fn what_is_due_is_chosen_up_to_the_limit() {
        let cold = [(pack(1, 100, &[]), 90), (pack(2, 100, &[]), 0), (pack(3, 100, &[]), 90)];
        assert_eq!(numbers(&chosen(&cold, u64::MAX)), [1, 3]);
        let plan = chosen(&cold, 150);
        assert_eq!(numbers(&plan), [1]);
        assert_eq!((plan.summary.packs_left, plan.summary.bytes_left), (1, 100));
    }

    #[test]
    fn what_newer_snapshots_are_made_against_stays() {
        // Pack 9 is not cold.
        let cold = [(pack(1, 100, &[9]), 90), (pack(2, 100, &[1]), 90), (pack(3, 100, &[]), 90)];
        assert_eq!(numbers(&chosen(&cold, u64::MAX)), [3]);
    }

    #[test]
    fn much_to_copy_for_little_is_not_worth_it() {
        let cold = [(pack(1, 100, &[2]), 90), (pack(2, 1000, &[]), 0)];
        assert!(numbers(&chosen(&cold, u64::MAX)).is_empty());
    }
}
