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
use super::reader::OpenPack;
use crate::codec::frame::Encoder;
use crate::error::Result;
use crate::format::pack::{BASES_MAX, Codec, PREFIX_MAX};
use crate::id::{ChunkId, PackId};

/// A chain may always be so deep, …
const DEPTH_SURE: u8 = 12;
/// … and never deeper than this. Where it ends in between is left to chance, so that not all
/// chains that began in one night are begun anew in one night.
const DEPTH_LIMIT: u8 = 15;
/// Frames that a delta frame may name directly: restoring one file should not decode a hundred.
const NAMED_MAX: usize = 16;
/// A delta frame is not decoded for less than this part of the candidates that another one has.
const FEW: u32 = 32;
/// Raw bytes of the frames that have to be decoded for it, its bases' bases included. Who reads it
/// keeps as much at least: with less the same frames would be decoded over and over.
const NEEDED_LEN_MAX: usize = BASES_ADDING_MAX;
/// How much of a frame is tried.
const SAMPLE_LEN: usize = 64 << 10;
/// Against how much of its bases.
const SAMPLE_PREFIX: usize = 192 << 10;
/// In 64ths of what compression alone leaves: a delta must stay below.
const WORTH_64THS: usize = 56;
/// After so many deltas in a row that were not worth it, a frame is not even tried, then two and so
/// on, …
const FAILURES_MAX: u32 = 6;
/// … doubled each time, up to this. Trying all of them makes a night of random bytes in place of
/// others a third slower; pausing at the first failure loses 2 % of the trees.
const PAUSE_MAX: u32 = 16;

/// Compresses frames, as delta frames where that gains something.
pub struct DeltaEncoder<'c> {
    catalog: &'c Catalog,
    frames: FrameReader<'c>,
    encoder: Encoder,
    level: i8,
    /// Packs that bases lie in, of all encoders.
    used: Arc<Mutex<HashSet<u32>>>,
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
struct Bases {
    runs: Vec<Run>,
    depth: u8,
}

/// A run of candidates that are neighbours in one frame.
struct Run {
    pack: Arc<OpenPack>,
    number: u32,
    frame: u32,
    slot: u32,
    count: u32,
    /// Which of the new frame's chunks the first one is like, …
    like: u32,
    /// … and the last one.
    like_last: u32,
}

impl Run {
    fn packed(&self) -> PackedBase {
        PackedBase { pack: Some(self.pack.id), frame: self.frame, slot: self.slot, count: self.count }
    }

    fn range(&self) -> Result<std::ops::Range<usize>> {
        let (first, last) = (self.pack.slot(self.slot)?, self.pack.slot(self.slot + self.count - 1)?);
        Ok(first.offset as usize..(last.offset + last.len) as usize)
    }
}

impl<'c> DeltaEncoder<'c> {
    /// The numbers of packs that bases lie in are added to `used`.
    pub fn new(catalog: &'c Catalog, used: Arc<Mutex<HashSet<u32>>>) -> Result<Self> {
        let (frames, encoder) = (FrameReader::new(catalog)?, Encoder::new(0)?);
        Ok(Self { catalog, frames, encoder, level: 0, used, pause: Pause::default() })
    }

    /// Compresses a frame at a zstd level, if that pays, and against its candidates, if that pays
    /// more. Its memory is given back.
    pub fn encode(&mut self, frame: RawFrame, level: i8) -> Result<(EncodedFrame, Vec<u8>)> {
        if level != self.level {
            (self.encoder, self.level) = (Encoder::new(level)?, level);
        }
        if let Some((stored, bases)) = self.delta(&frame)? {
            let packed = bases.runs.iter().map(Run::packed).collect();
            lock(&self.used)?.extend(bases.runs.iter().map(|run| run.number));
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
        let is_worth_it = self.sample_gains(frame, &bases)?;
        self.pause.note(is_worth_it);
        if !is_worth_it {
            return Ok(None);
        }
        let mut prefix = Vec::new();
        for run in &bases.runs {
            prefix.extend_from_slice(&self.frames.base(&run.pack, run.frame)?[run.range()?]);
        }
        Ok(self.encoder.encode_delta(&frame.raw, &prefix)?.map(|stored| (stored, bases)))
    }

    /// Whether a part of the frame becomes smaller with its bases: what the longest run is like.
    fn sample_gains(&mut self, frame: &RawFrame, bases: &Bases) -> Result<bool> {
        let Some(run) = bases.runs.iter().max_by_key(|run| run.count) else { return Ok(false) };
        let raw = self.frames.base(&run.pack, run.frame)?;
        let prefix = &raw[run.range()?];
        // The run may begin in the middle of what its first chunk is like.
        let first = (run.like + 1).min(run.like_last);
        let sample = &frame.raw[frame.offset_of(first)..frame.offset_of(run.like_last + 1)];
        let sample = &sample[..sample.len().min(SAMPLE_LEN)];
        let alone = self.encoder.encode(sample)?.1.len();
        let delta = self.encoder.encode_delta(sample, &prefix[..prefix.len().min(SAMPLE_PREFIX)])?;
        Ok(delta.is_some_and(|delta| delta.len() < alone * WORTH_64THS / 64))
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

/// The candidates that are there and in frames that are chosen, neighbours together.
fn choose(catalog: &Catalog, candidates: &[Candidate], chunks: &[(ChunkId, u32)]) -> Result<Bases> {
    let mut bases = Bases { runs: Vec::new(), depth: 0 };
    let places = located(catalog, candidates)?;
    let chosen = choose_frames(&places, depth_limit(chunks), catalog)?;
    let mut len = 0;
    for candidate in candidates {
        let Some(Place { pack, number, slot, frame }) = places.get(&candidate.id) else { continue };
        if !chosen.contains(&(*number, *frame)) {
            continue;
        }
        len += pack.slot(*slot)?.len as usize;
        if len > PREFIX_MAX || bases.runs.len() == BASES_MAX {
            break;
        }
        bases.depth = bases.depth.max(pack.frame(*frame)?.depth + 1);
        match bases.runs.last_mut() {
            Some(run) if run.number == *number && run.frame == *frame && run.slot + run.count == *slot => {
                run.count += 1;
                run.like_last = candidate.chunk;
            }
            _ => {
                let (like, like_last) = (candidate.chunk, candidate.chunk);
                let (pack, number, slot, frame) = (Arc::clone(pack), *number, *slot, *frame);
                bases.runs.push(Run { pack, number, frame, slot, count: 1, like, like_last });
            }
        }
    }
    Ok(bases)
}

/// The frames that are worth decoding, those with most candidates first. One with few, beside that
/// of a neighbour, would draw in what it needs, and with every night more.
fn choose_frames(
    places: &HashMap<ChunkId, Place>,
    depth_limit: u8,
    catalog: &Catalog,
) -> Result<HashSet<(u32, u32)>> {
    let mut counts: HashMap<(u32, u32), (u32, &Arc<OpenPack>)> = HashMap::new();
    for place in places.values() {
        counts.entry((place.number, place.frame)).or_insert((0, &place.pack)).0 += 1;
    }
    let mut frames: Vec<_> = counts.into_iter().collect();
    frames.sort_unstable_by_key(|(frame, (count, _))| (Reverse(*count), *frame));
    let most = frames.first().map_or(0, |(_, (count, _))| *count);
    // Where most was begun anew, the rest follows: with what is deep still, all would be deep again.
    let main = match frames.first() {
        Some(((_, frame), (_, pack))) => pack.frame(*frame)?.depth,
        None => 0,
    };
    let depth_limit = if main < DEPTH_SURE / 2 { depth_limit.min(DEPTH_SURE) } else { depth_limit };
    let (mut chosen, mut needed) = (HashSet::new(), Needed::default());
    for ((number, frame), (count, pack)) in frames {
        let depth = pack.frame(frame)?.depth;
        let is_worth_it = depth == 0 || count * FEW >= most || needed.frames.contains(&(pack.id, frame));
        if chosen.len() < NAMED_MAX
            && is_worth_it
            && depth < depth_limit
            && needed.add(catalog, pack, frame)?
        {
            chosen.insert((number, frame));
        }
    }
    Ok(chosen)
}

/// The id of the first chunk is as good as chance.
fn depth_limit(chunks: &[(ChunkId, u32)]) -> u8 {
    let chance = chunks.first().map_or(0, |(id, _)| id.0[0]);
    DEPTH_SURE + chance % (DEPTH_LIMIT - DEPTH_SURE + 1)
}

/// Where a candidate is.
struct Place {
    pack: Arc<OpenPack>,
    number: u32,
    slot: u32,
    frame: u32,
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
        let frame = pack.slot(slot)?.frame;
        places.insert(id, Place { pack, number, slot, frame });
    }
    Ok(places)
}

/// The frames that have to be decoded for a delta frame.
#[derive(Default)]
struct Needed {
    frames: HashSet<(PackId, u32)>,
    /// Their raw bytes.
    len: usize,
}

impl Needed {
    /// Adds what has to be decoded for a base, unless all would be too much; whether it was added.
    fn add(&mut self, catalog: &Catalog, pack: &Arc<OpenPack>, frame: u32) -> Result<bool> {
        let (before, mut added) = (self.len, Vec::new());
        let mut pending = vec![(Arc::clone(pack), frame)];
        while let Some((pack, number)) = pending.pop() {
            if !self.frames.insert((pack.id, number)) {
                continue;
            }
            added.push((pack.id, number));
            let frame = pack.frame(number)?;
            self.len += frame.raw_len as usize;
            if self.len > NEEDED_LEN_MAX {
                self.len = before;
                self.frames.retain(|frame| !added.contains(frame));
                return Ok(false);
            }
            for bases in frame.bases.chunk_by(|a, b| (a.pack, a.frame) == (b.pack, b.frame)) {
                let base = &bases[0];
                let holder = match base.pack.checked_sub(1).and_then(|n| pack.trailer.packs.get(n as usize)) {
                    Some(id) => catalog.pack_named(id)?,
                    None => Arc::clone(&pack),
                };
                pending.push((holder, base.frame));
            }
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
                pause.note(frame == 24);
            }
        }
        let after = [25, 26, 27, 28, 29, 30, 32, 35, 40, 49];
        assert_eq!(tried, [&[0, 1, 2, 3, 4, 5, 7, 10, 15, 24][..], &after].concat());
    }

    #[test]
    fn chains_end_at_different_depths() {
        let limits: HashSet<u8> = (0..=255).map(|n| depth_limit(&[(ChunkId([n; 20]), 1)])).collect();
        assert_eq!(limits, (DEPTH_SURE..=DEPTH_LIMIT).collect());
    }
}
