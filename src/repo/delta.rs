//! Delta frames: new chunks compressed against older ones that they are probably much like.
//!
//! What is gained is paid for when the frame is read: its bases' frames have to be decoded first,
//! and theirs. So the depth of the chains and the number of frames that one needs are limited,
//! and whether it gains anything is tried with a small part.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use super::catalog::{BASES_ADDING_MAX, Catalog, lock};
use super::frames::FrameReader;
use super::index::Location;
use super::packer::{Candidate, EncodedFrame, PackedBase, RawFrame};
use super::reader::{OpenPack, damaged_frame};
use crate::codec::frame::Encoder;
use crate::error::Result;
use crate::format::pack::{BASES_MAX, Base, Codec, Frame, PREFIX_MAX};
use crate::id::{ChunkId, PackId};

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
pub(super) const NEEDED_LEN_MAX: usize = BASES_ADDING_MAX;
/// How much of a frame is tried.
const SAMPLE_LEN: usize = 64 << 10;
/// Against how much of its bases.
const SAMPLE_PREFIX: usize = 192 << 10;
/// In 64ths of what compression alone leaves: a delta must stay below.
const WORTH_64THS: usize = 56;
/// After so many deltas in a row that were not worth it, a frame is not even tried, then two and so
/// on, …
const FAILURES_MAX: u32 = 2;
/// … doubled each time, up to this. Trying all of them makes a night of random bytes in place of
/// others a third slower, after six failures some nights of the VM a sixth; pausing at the first
/// one loses up to 2 % of the trees.
const PAUSE_MAX: u32 = 16;

/// Compresses frames, as delta frames where that gains something.
pub struct DeltaEncoder<'c> {
    catalog: &'c Catalog,
    frames: FrameReader<'c>,
    encoder: Encoder,
    level: i8,
    /// What the last frame was compressed against: memory to be used again.
    prefix: Vec<u8>,
    /// Packs that bases lie in, of all encoders.
    used: Arc<Mutex<HashSet<PackId>>>,
    pause: Pause,
}

/// How long to go on without trying.
#[derive(Debug, Default)]
struct Pause {
    /// Frames that are not tried.
    left: u32,
    /// Deltas in a row that were not worth it.
    failures: u32,
}

/// What a frame may be compressed against.
#[derive(Default)]
struct Bases {
    runs: Vec<Run>,
    /// Raw bytes of all of them.
    len: usize,
    depth: u8,
    /// Whether most candidates are too deep, and the runs what these are compressed against.
    is_main_deep: bool,
}

/// A run of bases that are neighbours in one frame.
struct Run {
    at: At,
    slot: u32,
    count: u32,
    /// Which of the new frame's chunks the first one is like, …
    like: u32,
    /// … and the last one.
    like_last: u32,
    /// Whether they are candidates, and not only what is in the place of some.
    is_direct: bool,
}

impl Run {
    fn packed(&self) -> PackedBase {
        PackedBase { pack: Some(self.at.pack.id), frame: self.at.number, slot: self.slot, count: self.count }
    }

    fn range(&self) -> Result<std::ops::Range<usize>> {
        let pack = &self.at.pack;
        let (first, last) = (pack.slot(self.slot)?, pack.slot(self.slot + self.count - 1)?);
        Ok(first.offset as usize..(last.offset + last.len) as usize)
    }
}

impl<'c> DeltaEncoder<'c> {
    /// The packs that bases lie in are added to `used`.
    pub fn new(catalog: &'c Catalog, used: Arc<Mutex<HashSet<PackId>>>) -> Result<Self> {
        let (frames, encoder) = (FrameReader::new(catalog)?, Encoder::new(0)?);
        Ok(Self { catalog, frames, encoder, level: 0, prefix: Vec::new(), used, pause: Pause::default() })
    }

    /// Compresses a frame at a zstd level, if that pays, and against its candidates, if that pays
    /// more. Its memory is given back.
    pub fn encode(&mut self, frame: RawFrame, level: i8) -> Result<(EncodedFrame, Vec<u8>)> {
        if level != self.level {
            (self.encoder, self.level) = (Encoder::new(level)?, level);
        }
        if let Some((stored, bases)) = self.delta(&frame)? {
            let packed = bases.runs.iter().map(Run::packed).collect();
            lock(&self.used)?.extend(bases.runs.iter().map(|run| run.at.pack.id));
            return Ok(frame.encoded(self.level, Codec::Zstd, stored, bases.depth, packed));
        }
        frame.encode(&mut self.encoder, self.level)
    }

    fn delta(&mut self, frame: &RawFrame) -> Result<Option<(Vec<u8>, Bases)>> {
        if frame.candidates.is_empty() || self.level == 0 || self.pause.skips() {
            return Ok(None);
        }
        // Where bases cannot be read the frame does without; what is damaged is for `check` to say.
        match self.try_delta(frame) {
            Err(e) if e.is_damage() => Ok(None),
            other => other,
        }
    }

    fn try_delta(&mut self, frame: &RawFrame) -> Result<Option<(Vec<u8>, Bases)>> {
        let bases = choose(self.catalog, &frame.candidates, &frame.chunks)?;
        if bases.runs.is_empty() {
            return Ok(None);
        }
        // What most of it is like was worth it; whether that still holds is seen by the result.
        let alone = match bases.is_main_deep {
            true => self.alone_len(&frame.raw)?,
            false => self.sample_gains(frame, &bases)?,
        };
        let Some(alone) = alone else {
            self.pause.note(false);
            return Ok(None);
        };
        self.prefix.clear();
        for run in &bases.runs {
            let base = self.frames.base(&run.at.pack, run.at.number)?;
            self.prefix.extend_from_slice(&base[run.range()?]);
        }
        let stored =
            self.encoder.encode_delta(&frame.raw, &self.prefix)?.filter(|stored| stored.len() < alone);
        self.pause.note(stored.is_some());
        Ok(stored.map(|stored| (stored, bases)))
    }

    /// About what a frame may take at most to be worth it.
    fn alone_len(&mut self, raw: &[u8]) -> Result<Option<usize>> {
        let sample = &raw[..raw.len().min(SAMPLE_LEN)];
        let alone = self.encoder.encode(sample)?.1.len();
        Ok(Some(raw.len() * alone / sample.len().max(1) * WORTH_64THS / 64))
    }

    /// Whether a part of the frame becomes smaller with its bases: what the longest run is like.
    fn sample_gains(&mut self, frame: &RawFrame, bases: &Bases) -> Result<Option<usize>> {
        let direct = bases.runs.iter().filter(|run| run.is_direct);
        let Some(run) = direct.max_by_key(|run| run.count) else { return Ok(None) };
        let raw = self.frames.base(&run.at.pack, run.at.number)?;
        let prefix = &raw[run.range()?];
        // The run may begin in the middle of what its first chunk is like.
        let first = (run.like + 1).min(run.like_last);
        let sample = &frame.raw[frame.offset_of(first)..frame.offset_of(run.like_last + 1)];
        let sample = &sample[..sample.len().min(SAMPLE_LEN)];
        let alone = self.encoder.encode(sample)?.1.len();
        let delta = self.encoder.encode_delta(sample, &prefix[..prefix.len().min(SAMPLE_PREFIX)])?;
        Ok(delta.filter(|delta| delta.len() < alone * WORTH_64THS / 64).map(|_| frame.raw.len()))
    }
}

impl Pause {
    fn skips(&mut self) -> bool {
        let skips = self.left > 0;
        self.left = self.left.saturating_sub(1);
        skips
    }

    fn note(&mut self, was_worth_it: bool) {
        if was_worth_it {
            *self = Self::default();
            return;
        }
        self.failures += 1;
        if let Some(doubled) = self.failures.checked_sub(FAILURES_MAX) {
            self.left = 1u32.checked_shl(doubled).unwrap_or(PAUSE_MAX).min(PAUSE_MAX);
        }
    }
}

/// What there is of the candidates, neighbours together: as they are in frames that are not too deep,
/// else what those are compressed against in their place.
fn choose(catalog: &Catalog, candidates: &[Candidate], chunks: &[(ChunkId, u32)]) -> Result<Bases> {
    let places = located(catalog, candidates)?;
    let frames = by_candidates(&places);
    let Some(depth_max) = depth_max(catalog, &frames, chance(chunks))? else { return Ok(Bases::default()) };
    let Some((main, most)) = frames.first() else { return Ok(Bases::default()) };
    let mut chooser = Chooser::new(catalog, depth_max);
    chooser.bases.is_main_deep = main.is_deeper(depth_max)?;
    for (at, count) in &frames {
        chooser.weigh(at, *count, *most)?;
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

/// The frames that the candidates lie in, those with most of them first.
fn by_candidates(places: &HashMap<ChunkId, Place>) -> Vec<(At, u32)> {
    let mut counts: HashMap<FrameName, (At, u32)> = HashMap::new();
    for place in places.values() {
        counts.entry(place.at.name()).or_insert_with(|| (place.at.clone(), 0)).1 += 1;
    }
    let mut frames: Vec<_> = counts.into_values().collect();
    frames.sort_unstable_by_key(|(at, count)| (Reverse(*count), at.name()));
    frames
}

/// How deep bases may be: as deep as the frames of most candidates. Where the chain is as long as it
/// may be, its base is the base again, as long as what is far from it takes less than the base itself
/// took, by a share that chance decides: each base is paid for by what is made against it. None if
/// that leads to the beginning: then it is time for another one.
fn depth_max(catalog: &Catalog, frames: &[(At, u32)], chance: u8) -> Result<Option<u8>> {
    let Some((main, most)) = frames.first() else { return Ok(None) };
    if main.frame()?.depth < DEPTH_LIMIT {
        let mut depth_max = 0;
        for (at, _) in frames.iter().filter(|(_, count)| count * MANY >= *most) {
            depth_max =
                depth_max.max(Some(at.frame()?.depth).filter(|depth| *depth < DEPTH_LIMIT).unwrap_or(0));
        }
        return Ok(Some(depth_max));
    }
    let share = REBASE_64THS.start + u64::from(chance) % (REBASE_64THS.end - REBASE_64THS.start);
    let mut at = main.clone();
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
    /// Frames whose candidates count.
    worth_it: HashSet<FrameName>,
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
    fn new(catalog: &'c Catalog, depth_max: u8) -> Self {
        Self {
            catalog,
            depth_max,
            worth_it: HashSet::new(),
            named: HashMap::new(),
            needed: Needed::default(),
            lists: HashMap::new(),
            met: HashSet::new(),
            passed: HashSet::new(),
            bases: Bases::default(),
        }
    }

    /// Whether a frame with so many candidates counts. One with few, beside that of a neighbour,
    /// would draw in what it needs, and with every night more.
    fn weigh(&mut self, at: &At, count: u32, most: u32) -> Result<()> {
        let depth = at.frame()?.depth;
        let is_worth_it = depth == 0 || count * FEW >= most || self.needed.has(at);
        if is_worth_it && (depth > self.depth_max || self.may_name(at)?) {
            self.worth_it.insert(at.name());
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

    fn may_name(&mut self, at: &At) -> Result<bool> {
        if let Some(is_named) = self.named.get(&at.name()) {
            return Ok(*is_named);
        }
        let is_named = self.named.values().filter(|is_named| **is_named).count() < NAMED_MAX
            && self.needed.add(self.catalog, at)?;
        self.named.insert(at.name(), is_named);
        Ok(is_named)
    }
}

/// A frame, by its pack and number.
type FrameName = (PackId, u32);

/// Where a frame is.
#[derive(Clone)]
struct At {
    pack: Arc<OpenPack>,
    number: u32,
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
    fn add(&mut self, catalog: &Catalog, at: &At) -> Result<bool> {
        let (before, mut added) = (self.len, Vec::new());
        let mut pending = vec![at.clone()];
        while let Some(at) = pending.pop() {
            if !self.frames.insert(at.name()) {
                continue;
            }
            added.push(at.name());
            self.len += at.frame()?.raw_len as usize;
            if self.len > NEEDED_LEN_MAX {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_something_is_gained() {
        let mut pause = Pause::default();
        let mut tried = Vec::new();
        for frame in 0..60 {
            if !pause.skips() {
                tried.push(frame);
                pause.note(frame == 20);
            }
        }
        assert_eq!(tried, [0, 1, 3, 6, 11, 20, 21, 22, 24, 27, 32, 41, 58]);
    }
}
