//! What each way of storing data saved: frames are counted, and a few of each kind are compressed
//! again in the plainer ways, so that what cannot be known otherwise is at least measured.
//!
//! A frame's bytes become fewer in four steps: each chunk compressed alone, all of them as one
//! frame, that at another level than tier hot's, and against older chunks. The steps between
//! what is known, its raw and its stored length, are taken from the sample of its kind; so their sum
//! is right whatever the sample is like.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::catalog::lock;
use super::packer::EncodedFrame;
use crate::codec::frame::Encoder;
use crate::error::Result;
use crate::format::pack::{Kind, SEAL_LEN, Way};
use crate::format::snapshot::Saved;

/// While data is stored, one frame of so many is looked at …
const EVERY: u64 = 64;
/// … and of that, one chunk of so many.
const EVERY_CHUNK: usize = 4;

/// How many bytes those of one way have and take.
#[derive(Debug, Clone, Copy, Default)]
pub struct Group {
    frames: u64,
    /// Their length when decoded.
    raw: u64,
    /// Their length in packs, seals included.
    stored: u64,
    sample: Sample,
}

/// Of some frames of a group, in bytes without seals.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    raw: u64,
    stored: u64,
    /// What the chunks take if each is compressed alone, …
    chunks: u64,
    /// … and as one frame; both at the level of tier hot.
    frames: u64,
}

impl Group {
    /// Adds a frame of this raw and this stored length, its seal included.
    pub fn add(&mut self, raw: u64, stored: u64) {
        self.frames += 1;
        self.raw += raw;
        self.stored += stored;
    }

    /// Adds what is known of some of its frames.
    pub fn add_sample(&mut self, sample: Sample) {
        self.sample.raw += sample.raw;
        self.sample.stored += sample.stored;
        self.sample.chunks += sample.chunks;
        self.sample.frames += sample.frames;
    }

    /// Adds to what was saved.
    fn save(&self, way: Way, hot: i8, saved: &mut Saved) {
        let stored = self.stored.saturating_sub(self.frames * SEAL_LEN as u64);
        let Sample { raw, stored: sampled, chunks, frames } = self.sample;
        // A delta's length says little about what it would be alone, its raw length more.
        let scaled = |part: u64| match way.is_delta {
            true => scale(self.raw, part, raw),
            false => scale(stored, part, sampled),
        };
        let frames = match (way.is_delta, way.level == hot) {
            (false, true) => stored,
            // Against older chunks is not how it would be stored if that took more.
            (true, _) => scaled(frames).unwrap_or(stored).min(self.raw).max(stored),
            (false, false) => scaled(frames).unwrap_or(stored).min(self.raw),
        };
        // Where a frame saves nothing, as of noise, the sample may be off by a little either way.
        let chunks = scaled(chunks).unwrap_or(stored).min(self.raw).max(frames);
        let (raw, chunks, frames) = (self.raw as i64, chunks as i64, frames as i64);
        saved.bytes_compressed += raw - chunks;
        saved.bytes_frames += chunks - frames;
        let rest = frames - stored as i64;
        match way.is_delta {
            true => saved.bytes_deltas += rest,
            false => saved.bytes_tiers += rest,
        }
    }
}

/// `whole` · `part` / `of`; none of nothing.
fn scale(whole: u64, part: u64, of: u64) -> Option<u64> {
    u128::from(whole).saturating_mul(part.into()).checked_div(of.into()).map(|scaled| scaled as u64)
}

/// Looks at a frame with chunks of these lengths that takes `stored` bytes without its seal.
pub fn sample(hot: i8, way: Way, raw: &[u8], lens: &[u32], stored: u64) -> Result<Sample> {
    let mut encoder = Encoder::new(hot)?;
    let (mut at, mut looked_at, mut alone) = (0, 0, 0);
    for (number, len) in lens.iter().enumerate() {
        let chunk = raw.get(at..at + *len as usize).unwrap_or_default();
        at += *len as usize;
        if number % EVERY_CHUNK == 0 {
            looked_at += chunk.len() as u64;
            alone += encoder.encode(chunk)?.1.len() as u64;
        }
    }
    let frames = match way.level == hot && !way.is_delta {
        true => stored,
        false => encoder.encode(raw)?.1.len() as u64,
    };
    let raw = raw.len() as u64;
    Ok(Sample { raw, stored, chunks: scale(raw, alone, looked_at).unwrap_or(raw), frames })
}

/// What all these saved, at the level of tier hot.
pub fn add_up<'g>(groups: impl IntoIterator<Item = (&'g Way, &'g Group)>, hot: i8) -> Saved {
    let mut saved = Saved::default();
    for (way, group) in groups {
        group.save(*way, hot, &mut saved);
    }
    saved
}

/// Counts frames of data as they are stored, by several threads.
pub struct Counting {
    hot: i8,
    groups: Mutex<BTreeMap<Way, Group>>,
}

impl Counting {
    /// Of nothing yet; `hot` is the level of tier hot.
    pub fn new(hot: i8) -> Self {
        Self { hot, groups: Mutex::default() }
    }

    /// Takes a frame and what it holds.
    pub fn add(&self, frame: &EncodedFrame, raw: &[u8]) -> Result<()> {
        if frame.kind() != Kind::Data {
            return Ok(());
        }
        let way = frame.way();
        let is_looked_at = {
            let mut groups = lock(&self.groups)?;
            let group = groups.entry(way).or_default();
            group.add(raw.len() as u64, frame.stored_len());
            group.frames % EVERY == 1
        };
        if is_looked_at {
            let stored = frame.stored_len() - SEAL_LEN as u64;
            let sample = sample(self.hot, way, raw, &frame.chunk_lens(), stored)?;
            lock(&self.groups)?.entry(way).or_default().add_sample(sample);
        }
        Ok(())
    }

    /// What was saved.
    pub fn saved(&self) -> Result<Saved> {
        Ok(add_up(&*lock(&self.groups)?, self.hot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOT: Way = Way { level: 3, is_delta: false };
    const COLD: Way = Way { level: 14, is_delta: false };
    const DELTA: Way = Way { level: 3, is_delta: true };

    fn group(raw: u64, stored: u64, sample: Sample) -> Group {
        Group { frames: 1, raw, stored: stored + SEAL_LEN as u64, sample }
    }

    fn sum(saved: &Saved) -> i64 {
        saved.bytes_compressed + saved.bytes_frames + saved.bytes_deltas + saved.bytes_tiers
    }

    #[test]
    fn the_steps_add_up_to_what_is_known() {
        let groups = BTreeMap::from([
            (HOT, group(1000, 300, Sample { raw: 100, stored: 30, chunks: 40, frames: 30 })),
            (COLD, group(1000, 200, Sample { raw: 100, stored: 20, chunks: 40, frames: 30 })),
            (DELTA, group(1000, 10, Sample { raw: 100, stored: 2, chunks: 40, frames: 30 })),
        ]);
        let saved = add_up(&groups, 3);
        assert_eq!(saved.bytes_compressed, 3 * 600);
        assert_eq!(saved.bytes_frames, 3 * 100);
        assert_eq!(saved.bytes_tiers, 100);
        assert_eq!(saved.bytes_deltas, 290);
        assert_eq!(sum(&saved), 3000 - 510);
    }

    #[test]
    fn without_a_sample_all_is_compression() {
        let groups = BTreeMap::from([(DELTA, group(1000, 10, Sample::default()))]);
        let saved = add_up(&groups, 3);
        assert_eq!((saved.bytes_compressed, sum(&saved)), (990, 990));
    }

    /// A sample in which frames or deltas took more than what they are made of.
    #[test]
    fn no_estimate_is_below_zero() {
        let groups = BTreeMap::from([
            (HOT, group(1000, 900, Sample { raw: 100, stored: 91, chunks: 90, frames: 91 })),
            (DELTA, group(1000, 500, Sample { raw: 100, stored: 60, chunks: 40, frames: 45 })),
            (COLD, group(1000, 800, Sample { raw: 100, stored: 80, chunks: 84, frames: 85 })),
        ]);
        let saved = add_up(&groups, 3);
        let steps = [saved.bytes_compressed, saved.bytes_frames, saved.bytes_deltas, saved.bytes_tiers];
        assert!(steps.iter().all(|step| *step >= 0), "{saved:?}");
        assert_eq!(sum(&saved), 3000 - 2200);
    }

    #[test]
    fn what_is_not_compressed_costs_what_the_tier_hot_would_save() {
        let text: Vec<u8> = (0..100_000u32).flat_map(|i| (i / 9).to_le_bytes()).collect();
        let way = Way { level: 0, is_delta: false };
        let lens = vec![10_000; text.len() / 10_000];
        let sample = sample(3, way, &text, &lens, text.len() as u64).unwrap();
        assert!(sample.frames < sample.chunks && sample.chunks < sample.raw, "{sample:?}");
        let groups = BTreeMap::from([(way, group(sample.raw, sample.raw, sample))]);
        let saved = add_up(&groups, 3);
        assert!(saved.bytes_tiers < 0);
        assert_eq!(sum(&saved), 0);
    }
}
