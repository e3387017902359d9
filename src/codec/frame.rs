//! Compression of whole frames, and finding out cheaply where it does not pay.

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::zstd_sys::ZSTD_strategy as Strategy;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, compress_bound};

use crate::error::{Error, Result};
use crate::format::pack::{Codec, SEAL_LEN};

/// Of a frame that is to be compressed, so many pieces are tried first, …
const PROBE_PIECES: usize = 8;
/// … of this length each.
const PROBE_LEN: usize = 4096;
/// Frames that are not longer are compressed without a probe.
const PROBE_FROM: usize = 128 << 10;
/// What compression must leave at most, in 64ths, to be kept.
const WORTH_64THS: usize = 63;

/// How much of a frame its prefix is thought to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alike {
    /// Some of it.
    Partly,
    /// Nearly all of it: what is left is found by long matches alone, with a quarter less time.
    Nearly,
}

/// Compresses frames; holds zstd's working memory.
pub struct Encoder {
    level: i32,
    main: Compressor<'static>,
    probe: Compressor<'static>,
    /// Room for the longest result: fresh memory for each frame would cost more than copying.
    scratch: Vec<u8>,
}

impl Encoder {
    /// For a zstd level; 0 stores everything.
    pub fn new(level: i8) -> Result<Self> {
        let level = i32::from(level);
        let internal = |_| Error::Internal("zstd level");
        let mut main = Compressor::new(level).map_err(internal)?;
        if level > 0 {
            // A window as long as the longest frame, so that its end can point at its beginning.
            main.set_parameter(CParameter::WindowLog(WINDOW_LOG)).map_err(internal)?;
        }
        Ok(Self { level, main, probe: Compressor::new(1).map_err(internal)?, scratch: Vec::new() })
    }

    /// The frame's stored form, before sealing, with room for the seal.
    pub fn encode(&mut self, raw: &[u8]) -> Result<(Codec, Vec<u8>)> {
        if self.level > 0 && self.looks_compressible(raw)? {
            let bound = compress_bound(raw.len());
            if self.scratch.len() < bound {
                self.scratch.resize(bound, 0);
            }
            let len = self
                .main
                .compress_to_buffer(raw, &mut self.scratch[..])
                .map_err(|_| Error::Internal("zstd compression"))?;
            if len < raw.len() / 64 * WORTH_64THS + raw.len() % 64 {
                return Ok((Codec::Zstd, with_room(&self.scratch[..len])));
            }
        }
        Ok((Codec::Raw, with_room(raw)))
    }

    /// The stored form of a frame that is compressed against `prefix`, with room for the seal;
    /// `None` where that gains nothing. The two must not share memory: zstd then takes the frame for
    /// what overwrites the prefix.
    pub fn encode_delta(&mut self, raw: &[u8], prefix: &[u8], alike: Alike) -> Result<Option<Vec<u8>>> {
        let bound = compress_bound(raw.len());
        if self.scratch.len() < bound {
            self.scratch.resize(bound, 0);
        }
        // A context that refers to a prefix lives no longer than it. The allocator has the last
        // one's memory at hand.
        let compress = |scratch: &mut [u8]| {
            let mut context = CCtx::create();
            for parameter in delta_parameters(self.level, raw.len() + prefix.len(), alike) {
                context.set_parameter(parameter)?;
            }
            context.ref_prefix(prefix)?;
            context.compress2(scratch, raw)
        };
        let len = compress(&mut self.scratch[..]).map_err(|_| Error::Internal("zstd compression"))?;
        let worth = len < raw.len() / 64 * WORTH_64THS + raw.len() % 64;
        Ok(worth.then(|| with_room(&self.scratch[..len])))
    }

    /// Whether pieces spread over the frame shrink at the fastest level.
    fn looks_compressible(&mut self, raw: &[u8]) -> Result<bool> {
        if raw.len() <= PROBE_FROM {
            return Ok(true);
        }
        let mut sample = Vec::with_capacity(PROBE_PIECES * PROBE_LEN);
        for piece in 0..PROBE_PIECES {
            let at = (raw.len() - PROBE_LEN) / (PROBE_PIECES - 1) * piece;
            sample.extend_from_slice(&raw[at..at + PROBE_LEN]);
        }
        let len = self.probe.compress(&sample).map_err(|_| Error::Internal("zstd probe"))?.len();
        Ok(len < sample.len() / 64 * WORTH_64THS)
    }
}

/// zstd's own tables for fast levels are too small to find a prefix's bytes again at a distance
/// of megabytes: one night of a database takes 67 MiB with them and 19 MiB with these. Larger
/// ones cost time and gain nothing (`docs/benchmarks.md`).
fn delta_parameters(level: i32, reach: usize, alike: Alike) -> Vec<CParameter> {
    let reach_log = usize::BITS - reach.leading_zeros();
    let mut parameters = vec![
        CParameter::CompressionLevel(level),
        CParameter::WindowLog(reach_log.clamp(WINDOW_LOG_MIN, DELTA_WINDOW_LOG)),
    ];
    let long = CParameter::HashLog(reach_log.saturating_sub(1).clamp(SHORT_TABLE_LOG, LONG_TABLE_LOG));
    parameters.extend(match alike {
        _ if level > SMALL_TABLES_UP_TO => vec![],
        Alike::Partly => vec![long, CParameter::ChainLog(SHORT_TABLE_LOG)],
        Alike::Nearly => vec![
            CParameter::Strategy(Strategy::ZSTD_fast),
            long,
            CParameter::MinMatch(LONG_MATCH),
            CParameter::TargetLength(EVERY_BYTE),
        ],
    });
    parameters
}

/// A copy that a seal can be appended to without moving it.
fn with_room(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + SEAL_LEN);
    out.extend_from_slice(bytes);
    out
}

/// The longest frame is 8 MiB.
const WINDOW_LOG: u32 = 23;
/// A window over the longest frame and the longest prefix.
const DELTA_WINDOW_LOG: u32 = 25;
/// zstd's smallest window.
const WINDOW_LOG_MIN: u32 = 10;
/// Levels whose own tables are made for short distances.
const SMALL_TABLES_UP_TO: i32 = 5;
/// The largest table of long matches for them, …
const LONG_TABLE_LOG: u32 = 19;
/// … and that of short ones, which are near.
const SHORT_TABLE_LOG: u32 = 16;
/// The longest that zstd's fast strategy can be told to find …
const LONG_MATCH: u32 = 7;
/// … and the smallest of its steps.
const EVERY_BYTE: u32 = 1;

/// The most bytes that one block of a zstd frame stands for (RFC 8878, 3.1.1.2) …
const BLOCK_RAW_MAX: usize = 128 << 10;
/// … and the fewest that it takes: a header and one byte to be repeated.
const BLOCK_STORED_MIN: usize = 4;

/// Decompresses frames; holds zstd's working memory.
pub struct Decoder(Decompressor<'static>);

impl Decoder {
    /// With empty working memory.
    pub fn new() -> Result<Self> {
        let mut decoder = Decompressor::new().map_err(|_| Error::Internal("zstd decoder"))?;
        decoder.window_log_max(WINDOW_LOG).map_err(|_| Error::Internal("zstd window"))?;
        Ok(Self(decoder))
    }

    /// The frame's raw bytes, `raw_len` of them, of a frame that was compressed against `prefix`, into
    /// memory that may have been used before; `None` if `stored` is not such a frame.
    pub fn decode(
        &mut self,
        codec: Codec,
        stored: &[u8],
        prefix: &[u8],
        raw_len: usize,
        raw: &mut Vec<u8>,
    ) -> Option<()> {
        raw.clear();
        match codec {
            Codec::Raw => raw.extend_from_slice(stored),
            Codec::Zstd => {
                // What is claimed and cannot be there is not allocated.
                if raw_len > (stored.len() / BLOCK_STORED_MIN + 1) * BLOCK_RAW_MAX {
                    return None;
                }
                raw.reserve_exact(raw_len);
                if prefix.is_empty() {
                    self.0.decompress_to_buffer(stored, raw).ok()?;
                } else {
                    let mut context = DCtx::try_create()?;
                    context.ref_prefix(prefix).ok()?;
                    context.decompress(raw, stored).ok()?;
                }
            }
        }
        (raw.len() == raw_len).then_some(())
    }

    /// The same, but what is not compressed is not even copied.
    pub fn decode_in<'a>(
        &mut self,
        codec: Codec,
        stored: &'a [u8],
        prefix: &[u8],
        raw_len: usize,
        scratch: &'a mut Vec<u8>,
    ) -> Option<&'a [u8]> {
        match codec {
            Codec::Raw => (stored.len() == raw_len).then_some(stored),
            Codec::Zstd => {
                self.decode(codec, stored, prefix, raw_len, scratch)?;
                Some(scratch)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::expand;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        expand("varv test noise", &[0; 32], &mut bytes);
        bytes
    }

    fn encode(level: i8, raw: &[u8]) -> (Codec, Vec<u8>) {
        Encoder::new(level).unwrap().encode(raw).unwrap()
    }

    fn decode(codec: Codec, stored: &[u8], prefix: &[u8], raw_len: usize) -> Option<Vec<u8>> {
        let mut raw = Vec::new();
        Decoder::new().unwrap().decode(codec, stored, prefix, raw_len, &mut raw).map(|()| raw)
    }

    #[test]
    fn frames_come_back_at_every_level() {
        let text: Vec<u8> = (0..400_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        for level in [0, 1, 3, 6, 14] {
            let (codec, stored) = encode(level, &text);
            assert_eq!(codec == Codec::Raw, level == 0);
            assert_eq!(decode(codec, &stored, &[], text.len()).as_ref(), Some(&text));
            assert_eq!(decode(codec, &stored, &[], text.len() - 1), None);
            assert_eq!(decode(codec, &stored, &[], text.len() + 1), None);
            assert_eq!(decode(Codec::Zstd, &text[..100], &[], 100), None);
        }
    }

    #[test]
    fn a_delta_is_as_long_as_the_difference() {
        let before = noise(1 << 20);
        // Shifted, and changed in the middle.
        let mut after = [b"more", &before[..]].concat();
        after[500_000..500_100].fill(7);
        for (level, alike) in [(3, Alike::Partly), (3, Alike::Nearly), (9, Alike::Nearly)] {
            let stored = Encoder::new(level).unwrap().encode_delta(&after, &before, alike).unwrap().unwrap();
            assert!(stored.len() < 2000, "{}", stored.len());
            assert_eq!(decode(Codec::Zstd, &stored, &before, after.len()).as_ref(), Some(&after));
            assert_eq!(decode(Codec::Zstd, &stored, &before[1..], after.len()), None);
            assert_eq!(decode(Codec::Zstd, &stored, &before, after.len() + 1), None);
            assert_eq!(decode(Codec::Zstd, &stored[1..], &before, after.len()), None);
        }
    }

    #[test]
    fn a_prefix_that_looks_like_a_dictionary_is_none() {
        let before = [&[0x37, 0xa4, 0x30, 0xec][..], &noise(100_000)].concat();
        let stored =
            Encoder::new(3).unwrap().encode_delta(&before.clone(), &before, Alike::Partly).unwrap().unwrap();
        let decoded = decode(Codec::Zstd, &stored, &before, before.len());
        assert_eq!(decoded, Some(before));
    }

    #[test]
    fn a_delta_that_gains_nothing_is_none() {
        let before = noise(100_000);
        let after: Vec<u8> = before.iter().rev().copied().collect();
        assert_eq!(Encoder::new(3).unwrap().encode_delta(&after, &before, Alike::Partly).unwrap(), None);
    }

    #[test]
    fn the_densest_frame_comes_back_and_a_denser_one_is_not_believed() {
        let zeros = vec![0; 8 << 20];
        let (codec, stored) = encode(3, &zeros);
        assert_eq!(decode(codec, &stored, &[], zeros.len()), Some(zeros));
        let (mut decoder, mut scratch) = (Decoder::new().unwrap(), Vec::new());
        assert_eq!(decoder.decode_in(codec, &stored[..20], &[], 8 << 20, &mut scratch), None);
        assert_eq!(scratch.capacity(), 0);
    }

    #[test]
    fn noise_is_stored_as_it_is() {
        for len in [1, 1000, 100_000, 1 << 20] {
            let noise = noise(len);
            assert_eq!(encode(3, &noise), (Codec::Raw, noise), "{len}");
        }
    }

    #[test]
    fn a_compressible_half_is_found() {
        let mut raw = noise(1 << 19);
        raw.extend(vec![b'x'; 1 << 19]);
        assert_eq!(encode(3, &raw).0, Codec::Zstd);
    }
}
