//! Delta frames: new chunks compressed against older ones that they are probably much like.
//!
//! What is gained is paid for when the frame is read: its bases' frames have to be decoded first,
//! and theirs. So the depth of the chains and the number of frames that one needs are limited,
//! and whether it gains anything is tried with a small part.

mod choose;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use super::catalog::{Catalog, lock};
use super::frames::FrameReader;
use super::packer::{EncodedFrame, RawFrame};
use crate::codec::frame::{Alike, Encoder};
use crate::error::Result;
use crate::format::pack::Codec;
use crate::id::PackId;
use choose::{Bases, Run, choose};

/// How much of a frame is tried.
const SAMPLE_LEN: usize = 64 << 10;
/// Against how much of its bases.
const SAMPLE_PREFIX: usize = 192 << 10;
/// As long as deltas are worth it, every so many frames; a sample costs a tenth of a delta.
const SAMPLE_EVERY: u32 = 8;
/// In 64ths of what compression alone leaves: a delta must stay below.
const WORTH_64THS: usize = 56;
/// After so many deltas in a row that were not worth it, a frame is not even tried, then two and so
/// on, …
const FAILURES_MAX: u32 = 2;
/// … doubled each time, up to this. Trying all of them makes a night of random bytes in place of
/// others a third slower, after six failures some nights of the VM a sixth; pausing at the first
/// one loses up to 2 % of the trees.
const PAUSE_MAX: u32 = 16;
/// A delta that leaves less than this part is of what is nearly equal, and so will the next one be.
const NEARLY: usize = 16;

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
    /// What compression alone left of the last sample, and how long that was.
    alone: (usize, usize),
    record: Record,
}

/// How deltas have fared, and what that means for the next.
#[derive(Debug, Default)]
struct Record {
    /// Frames that are not tried.
    pause: u32,
    /// Deltas in a row that were not worth it.
    failures: u32,
    /// Deltas in a row that were.
    successes: u32,
    /// Whether next to nothing was left by the last one.
    is_little: bool,
}

impl<'c> DeltaEncoder<'c> {
    /// The packs that bases lie in are added to `used`.
    pub fn new(catalog: &'c Catalog, used: Arc<Mutex<HashSet<PackId>>>) -> Result<Self> {
        let (frames, encoder) = (FrameReader::new(catalog)?, Encoder::new(0)?);
        Ok(Self {
            catalog,
            frames,
            encoder,
            level: 0,
            prefix: Vec::new(),
            used,
            alone: (0, 0),
            record: Record::default(),
        })
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
        if frame.candidates.is_empty() || self.level == 0 || self.record.skips() {
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
        // What most of it is like was worth it, or what came before it; whether that still holds is seen
        // by the result.
        let alone = match bases.is_main_deep || self.record.is_good() {
            true => Some(self.alone_len(&frame.raw)?),
            false => self.sample_gains(frame, &bases)?,
        };
        let Some(alone) = alone else {
            self.record.note(false);
            return Ok(None);
        };
        self.prefix.clear();
        for run in &bases.runs {
            let base = self.frames.base(&run.at.pack, run.at.number)?;
            self.prefix.extend_from_slice(&base[run.range()?]);
        }
        let delta = self.encoder.encode_delta(&frame.raw, &self.prefix, self.record.alike())?;
        let stored = delta.filter(|stored| stored.len() < alone);
        self.record.note(stored.is_some());
        self.record.is_little = stored.as_ref().is_some_and(|stored| stored.len() < frame.raw.len() / NEARLY);
        Ok(stored.map(|stored| (stored, bases)))
    }

    /// About what a frame may take at most to be worth it.
    fn alone_len(&mut self, raw: &[u8]) -> Result<usize> {
        if !self.record.is_good() {
            self.sample(&raw[..raw.len().min(SAMPLE_LEN)])?;
        }
        let (left, len) = self.alone;
        Ok(raw.len() * left / len.max(1) * WORTH_64THS / 64)
    }

    /// What compression alone leaves of a sample.
    fn sample(&mut self, sample: &[u8]) -> Result<usize> {
        let left = self.encoder.encode(sample)?.1.len();
        self.alone = (left, sample.len());
        Ok(left)
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
        let alone = self.sample(sample)?;
        let delta =
            self.encoder.encode_delta(sample, &prefix[..prefix.len().min(SAMPLE_PREFIX)], Alike::Partly)?;
        Ok(delta.filter(|delta| delta.len() < alone * WORTH_64THS / 64).map(|_| frame.raw.len()))
    }
}

impl Record {
    fn skips(&mut self) -> bool {
        let skips = self.pause > 0;
        self.pause = self.pause.saturating_sub(1);
        skips
    }

    /// Whether the next one is tried without a sample.
    fn is_good(&self) -> bool {
        !self.successes.is_multiple_of(SAMPLE_EVERY)
    }

    fn alike(&self) -> Alike {
        if self.is_little { Alike::Nearly } else { Alike::Partly }
    }

    fn note(&mut self, was_worth_it: bool) {
        if was_worth_it {
            *self = Self { successes: self.successes + 1, ..Self::default() };
            return;
        }
        self.successes = 0;
        self.failures += 1;
        if let Some(doubled) = self.failures.checked_sub(FAILURES_MAX) {
            self.pause = 1u32.checked_shl(doubled).unwrap_or(PAUSE_MAX).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_something_is_gained() {
        let mut record = Record::default();
        let mut tried = Vec::new();
        for frame in 0..60 {
            if !record.skips() {
                tried.push(frame);
                record.note(frame == 20);
            }
        }
        assert_eq!(tried, [0, 1, 3, 6, 11, 20, 21, 22, 24, 27, 32, 41, 58]);
    }
}
