//! Which older chunks a frame is compressed against.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::error::Result;
use crate::format::pack::{BASES_MAX, Base, Frame, PREFIX_MAX};
use crate::id::{ChunkId, PackId};
use crate::repo::catalog::{BASES_ADDING_MAX, Catalog};
use crate::repo::index::Location;
use crate::repo::packer::{Candidate, PackedBase};
use crate::repo::reader::{OpenPack, damaged_frame};

/// Chains are no deeper than this: each step is decoded again by who reads the last one.
const DEPTH_LIMIT: u8 = 4;
/// Where one is, the next is made against what is further up, until that takes this share, in
/// 64ths, of what that itself took: then it is time for another one to be made against. Chance
/// decides within these, so that not all is begun anew in one night.
const REBASE_64THS: std::ops::Range<u64> = 24..44;
/// Frames that a delta frame may name directly: restoring one file should not decode a hundred.
const NAMED_MAX: usize = 16;
/// A delta frame is not decoded for less than this part of the candidates that another one has: each
/// night leaves some behind in the frames of the night before.
const FEW: u32 = 4;
/// How far from its place in a frame something may be that is in its place in the frame's bases.
const NEAR: u64 = 32 << 10;
/// A frame has many of the candidates if it has this part of what the one with most has.
const MANY: u32 = 8;
/// Raw bytes of the frames that have to be decoded for it, its bases' bases included. Who reads it
/// keeps as much at least: with less the same frames would be decoded over and over.
const NEEDED_LEN_MAX: usize = BASES_ADDING_MAX;
/// Raw bytes that are decoded for each byte that the frame is like, at most: without that, small
/// files that change here and there make restoring a tree ten times as long.
const COST_MAX: usize = 12;
/// So much is decoded for a frame most of which is like it, however short that is: one change a night.
const COST_MIN: usize = 8 << 20;

/// What a frame may be compressed against.
#[derive(Default)]
pub(super) struct Bases {
    pub(super) runs: Vec<Run>,
    /// Raw bytes of all of them.
    pub(super) len: usize,
    pub(super) depth: u8,
    /// Whether most candidates are too deep, and the runs what these are compressed against.
    pub(super) is_main_deep: bool,
}

/// A run of bases that are neighbours in one frame.
pub(super) struct Run {
    pub(super) at: At,
    pub(super) slot: u32,
    pub(super) count: u32,
    /// Which of the new frame's chunks the first one is like, …
    pub(super) like: u32,
    /// … and the last one.
    pub(super) like_last: u32,
    /// Whether they are candidates, and not only what is in the place of some.
    pub(super) is_direct: bool,
}

impl Run {
    pub(super) fn packed(&self) -> PackedBase {
        PackedBase { pack: Some(self.at.pack.id), frame: self.at.number, slot: self.slot, count: self.count }
    }

    pub(super) fn range(&self) -> Result<std::ops::Range<usize>> {
        let pack = &self.at.pack;
        let (first, last) = (pack.slot(self.slot)?, pack.slot(self.slot + self.count - 1)?);
        Ok(first.offset as usize..(last.offset + last.len) as usize)
    }
}

/// What there is of the candidates, neighbours together: as they are in frames that are not too deep,
/// else what those are compressed against in their place.
pub(super) fn choose(
    catalog: &Catalog,
    candidates: &[Candidate],
    chunks: &[(ChunkId, u32)],
) -> Result<Bases> {
    let places = located(catalog, candidates)?;
    let holders = by_candidates(&places)?;
    let Some(depth_max) = depth_max(catalog, &holders, chance(chunks))? else { return Ok(Bases::default()) };
    let Some(main) = holders.first() else { return Ok(Bases::default()) };
    let raw_len = chunks.iter().map(|(_, len)| *len as usize).sum();
    let mut chooser = Chooser::new(catalog, depth_max, raw_len);
    chooser.bases.is_main_deep = main.at.is_deeper(depth_max)?;
    for holder in &holders {
        chooser.weigh(holder, main.count)?;
    }
    for candidate in candidates {
        let Some(Place { at, slot }) = places.get(&candidate.id) else { continue };
        match chooser.worth_it.contains(&at.name()) {
            true => chooser.reach(at, *slot, candidate.chunk, true)?,
            false => chooser.reach_above(at, *slot, candidate.chunk)?,
        }
    }
    Ok(chooser.bases)
}

impl Bases {
    fn push(&mut self, at: &At, slot: u32, like: u32, is_direct: bool) -> Result<()> {
        self.depth = self.depth.max(at.frame()?.depth + 1);
        self.len += at.pack.slot(slot)?.len as usize;
        match self.runs.last_mut() {
            Some(run)
                if run.at.name() == at.name()
                    && run.slot + run.count == slot
                    && run.is_direct == is_direct =>
            {
                run.count += 1;
                run.like_last = like;
            }
            _ => {
                let (at, like_last) = (at.clone(), like);
                self.runs.push(Run { at, slot, count: 1, like, like_last, is_direct });
            }
        }
        Ok(())
    }
}

/// A frame that candidates lie in.
struct Holder {
    at: At,
    /// How many of them.
    count: u32,
    /// Their length.
    len: usize,
}

/// The frames that the candidates lie in, those with most of them first.
fn by_candidates(places: &HashMap<ChunkId, Place>) -> Result<Vec<Holder>> {
    let mut holders: HashMap<FrameName, Holder> = HashMap::new();
    for Place { at, slot } in places.values() {
        let new = || Holder { at: at.clone(), count: 0, len: 0 };
        let holder = holders.entry(at.name()).or_insert_with(new);
        holder.count += 1;
        holder.len += at.pack.slot(*slot)?.len as usize;
    }
    let mut holders: Vec<_> = holders.into_values().collect();
    holders.sort_unstable_by_key(|holder| (Reverse(holder.count), holder.at.name()));
    Ok(holders)
}

/// How deep bases may be: as deep as the frames of most candidates. Where the chain is as long as it
/// may be, its base is the base again, as long as what is far from it takes less than the base itself
/// took, by a share that chance decides: each base is paid for by what is made against it. None if
/// that leads to the beginning: then it is time for another one.
fn depth_max(catalog: &Catalog, holders: &[Holder], chance: u8) -> Result<Option<u8>> {
    let Some(main) = holders.first() else { return Ok(None) };
    if main.at.frame()?.depth < DEPTH_LIMIT {
        let mut depth_max = 0;
        for holder in holders.iter().filter(|holder| holder.count * MANY >= main.count) {
            let depth = Some(holder.at.frame()?.depth).filter(|depth| *depth < DEPTH_LIMIT);
            depth_max = depth_max.max(depth.unwrap_or(0));
        }
        return Ok(Some(depth_max));
    }
    let share = REBASE_64THS.start + u64::from(chance) % (REBASE_64THS.end - REBASE_64THS.start);
    let mut at = main.at.clone();
    loop {
        let bases = at.bases(catalog)?;
        let mut counts: HashMap<FrameName, (u32, At)> = HashMap::new();
        for span in bases {
            counts.entry(span.at.name()).or_insert_with(|| (0, span.at.clone())).0 += span.count;
        }
        let main = counts.into_values().max_by_key(|(count, at)| (*count, at.name()));
        let Some((_, base)) = main else { return Ok(None) };
        if at.ratio()? * 64 < base.ratio()? * share {
            return Ok(Some(base.frame()?.depth));
        }
        at = base;
    }
}

/// The id of the first chunk is as good as chance.
fn chance(chunks: &[(ChunkId, u32)]) -> u8 {
    chunks.first().map_or(0, |(id, _)| id.0[0])
}

/// Chooses chunks to be compressed against.
struct Chooser<'c> {
    catalog: &'c Catalog,
    depth_max: u8,
    /// How long the frame is.
    raw_len: usize,
    /// Frames whose candidates count, …
    worth_it: HashSet<FrameName>,
    /// … and the length of these.
    wanted: usize,
    /// Frames that were asked for, and whether they may be bases.
    named: HashMap<FrameName, bool>,
    needed: Needed,
    /// What frames that are too deep are compressed against.
    lists: HashMap<FrameName, Arc<Vec<Span>>>,
    /// Chunks that were met, …
    met: HashSet<(PackId, u32)>,
    /// … and those that were passed by, on the way up.
    passed: HashSet<(PackId, u32)>,
    bases: Bases,
}

impl<'c> Chooser<'c> {
    fn new(catalog: &'c Catalog, depth_max: u8, raw_len: usize) -> Self {
        Self {
            catalog,
            depth_max,
            raw_len,
            worth_it: HashSet::new(),
            wanted: 0,
            named: HashMap::new(),
            needed: Needed::default(),
            lists: HashMap::new(),
            met: HashSet::new(),
            passed: HashSet::new(),
            bases: Bases::default(),
        }
    }

    /// Whether a frame with so many candidates counts. One with few, beside that of a neighbour,
    /// would draw in what it needs, and with every night more; one with little of what it holds
    /// is decoded for next to nothing.
    fn weigh(&mut self, Holder { at, count, len }: &Holder, most: u32) -> Result<()> {
        let depth = at.frame()?.depth;
        if depth > 0 && count * FEW < most && !self.needed.has(at) {
            return Ok(());
        }
        self.wanted += len;
        match depth > self.depth_max || self.may_name(at)? {
            true => _ = self.worth_it.insert(at.name()),
            false => self.wanted -= len,
        }
        Ok(())
    }

    /// Adds a chunk, or what is in its place further up if its frame is too deep.
    fn reach(&mut self, at: &At, slot: u32, like: u32, is_direct: bool) -> Result<()> {
        if !self.met.insert((at.pack.id, slot)) {
            return Ok(());
        }
        if at.is_deeper(self.depth_max)? {
            let list = self.list(at)?;
            for (at, slot) in at.in_place_of(slot, &list)? {
                self.reach(at, slot, like, false)?;
            }
            return Ok(());
        }
        let len = self.bases.len + at.pack.slot(slot)?.len as usize;
        if len <= PREFIX_MAX && self.bases.runs.len() < BASES_MAX && self.may_name(at)? {
            self.bases.push(at, slot, like, is_direct)?;
        }
        Ok(())
    }

    /// Adds what is in a chunk's place further up, in the first frames that are decoded anyway.
    fn reach_above(&mut self, at: &At, slot: u32, like: u32) -> Result<()> {
        if !self.passed.insert((at.pack.id, slot)) {
            return Ok(());
        }
        let list = self.list(at)?;
        for (at, slot) in at.in_place_of(slot, &list)? {
            match self.needed.has(at) {
                true => self.reach(at, slot, like, false)?,
                false => self.reach_above(at, slot, like)?,
            }
        }
        Ok(())
    }

    fn list(&mut self, at: &At) -> Result<Arc<Vec<Span>>> {
        if let Some(list) = self.lists.get(&at.name()) {
            return Ok(Arc::clone(list));
        }
        let list = Arc::new(at.bases(self.catalog)?);
        self.lists.insert(at.name(), Arc::clone(&list));
        Ok(list)
    }

    /// Raw bytes that may be decoded for what counts so far.
    fn cost_max(&self) -> usize {
        let least = if self.wanted >= self.raw_len / 2 { COST_MIN } else { 0 };
        (self.wanted * COST_MAX).max(least).min(NEEDED_LEN_MAX)
    }

    fn may_name(&mut self, at: &At) -> Result<bool> {
        if let Some(is_named) = self.named.get(&at.name()) {
            return Ok(*is_named);
        }
        let is_named = self.named.values().filter(|is_named| **is_named).count() < NAMED_MAX
            && self.needed.add(self.catalog, at, self.cost_max())?;
        self.named.insert(at.name(), is_named);
        Ok(is_named)
    }
}

/// A frame, by its pack and number.
type FrameName = (PackId, u32);

/// Where a frame is.
#[derive(Clone)]
pub(super) struct At {
    pub(super) pack: Arc<OpenPack>,
    pub(super) number: u32,
}

/// A run of chunks of one frame.
struct Span {
    at: At,
    slot: u32,
    count: u32,
}

impl At {
    fn name(&self) -> FrameName {
        (self.pack.id, self.number)
    }

    fn frame(&self) -> Result<&Frame> {
        self.pack.frame(self.number)
    }

    fn is_deeper(&self, depth: u8) -> Result<bool> {
        Ok(self.frame()?.depth > depth)
    }

    /// What it takes, in millionths of what it holds.
    fn ratio(&self) -> Result<u64> {
        let frame = self.frame()?;
        Ok(u64::from(frame.stored_len) * 1_000_000 / u64::from(frame.raw_len.max(1)))
    }

    /// About what one of its chunks was made of: frame and list have the same things in the same order,
    /// nearly.
    fn in_place_of<'s>(&self, slot: u32, list: &'s [Span]) -> Result<Vec<(&'s At, u32)>> {
        let (slot, raw_len) = (self.pack.slot(slot)?, u64::from(self.frame()?.raw_len).max(1));
        let mut chunks = Vec::new();
        let mut end = 0;
        for Span { at, slot, count } in list {
            for slot in *slot..slot.saturating_add(*count) {
                let start = end;
                end += u64::from(at.pack.slot(slot)?.len);
                chunks.push((start..end, at, slot));
            }
        }
        let scaled = |offset: u64| offset * end / raw_len;
        let from = scaled(slot.offset.into()).saturating_sub(NEAR);
        let to = scaled((slot.offset + slot.len).into()) + NEAR;
        let near = chunks.into_iter().filter(|(range, ..)| range.start < to && from < range.end);
        Ok(near.map(|(_, at, slot)| (at, slot)).collect())
    }

    /// What it is compressed against. All of that is less deep, so that going on from there ends.
    fn bases(&self, catalog: &Catalog) -> Result<Vec<Span>> {
        let frame = self.frame()?;
        let span = |base: &Base| {
            let pack = match base.pack.checked_sub(1).and_then(|n| self.pack.trailer.packs.get(n as usize)) {
                Some(id) => catalog.pack_named(id)?,
                None => Arc::clone(&self.pack),
            };
            let at = At { pack, number: base.frame };
            match at.frame()?.depth < frame.depth {
                true => Ok(Span { at, slot: base.slot, count: base.count }),
                false => Err(damaged_frame(&self.pack, self.number, "its bases are as deep as itself")),
            }
        };
        frame.bases.iter().map(span).collect()
    }
}

/// Where a candidate is.
struct Place {
    at: At,
    slot: u32,
}

fn located(catalog: &Catalog, candidates: &[Candidate]) -> Result<HashMap<ChunkId, Place>> {
    let mut ids: Vec<ChunkId> = candidates.iter().map(|candidate| candidate.id).collect();
    ids.sort_unstable();
    ids.dedup();
    let found = catalog.locate(&ids)?;
    let mut packs: HashMap<u32, Arc<OpenPack>> = HashMap::new();
    let mut places = HashMap::with_capacity(ids.len());
    for (id, Location { pack: number, slot }) in
        ids.into_iter().zip(found).filter_map(|(id, at)| Some((id, at?)))
    {
        let pack = match packs.get(&number) {
            Some(pack) => Arc::clone(pack),
            None => {
                let pack = catalog.pack(number)?;
                packs.insert(number, Arc::clone(&pack));
                pack
            }
        };
        let number = pack.slot(slot)?.frame;
        places.insert(id, Place { at: At { pack, number }, slot });
    }
    Ok(places)
}

/// The frames that have to be decoded for a delta frame.
#[derive(Default)]
struct Needed {
    frames: HashSet<FrameName>,
    /// Their raw bytes.
    len: usize,
}

impl Needed {
    fn has(&self, at: &At) -> bool {
        self.frames.contains(&at.name())
    }

    /// Adds what has to be decoded for a base, unless all would be too much; whether it was added.
    fn add(&mut self, catalog: &Catalog, at: &At, len_max: usize) -> Result<bool> {
        let (before, mut added) = (self.len, Vec::new());
        let mut pending = vec![at.clone()];
        while let Some(at) = pending.pop() {
            if !self.frames.insert(at.name()) {
                continue;
            }
            added.push(at.name());
            self.len += at.frame()?.raw_len as usize;
            if self.len > len_max {
                self.len = before;
                self.frames.retain(|frame| !added.contains(frame));
                return Ok(false);
            }
            let mut bases = at.bases(catalog)?;
            bases.dedup_by_key(|span| span.at.name());
            pending.extend(bases.into_iter().map(|span| span.at));
        }
        Ok(true)
    }
}
