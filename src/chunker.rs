//! Where a run of data is cut into chunks, and what counts as zeros.
//!
//! FastCDC v2020 (Xia et al., "The Design of Fast Content-Defined Chunking for Data
//! Deduplication Based Storage Systems", 2020) with a gear table of its own for each repository:
//! all 256 values come from the repository's secret, so that cut points tell a stranger little.

use std::fmt;

use fastcdc::v2020::{Normalization, cut_gear, select_masks};

use crate::id::{Key, expand};
use crate::text::{format_size, parse_size};

/// The chunker of new repositories.
pub const DEFAULT: &str = "fastcdc:4K,16K,64K";
/// The largest chunk that can be asked for.
pub const CHUNK_MAX: usize = 4 << 20;

const BLOCK: usize = 4096;

/// How to cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Params {
    /// By content: smallest, average, largest chunk.
    FastCdc {
        /// The smallest chunk, but for the last of a run.
        min: usize,
        /// The average.
        avg: usize,
        /// The largest.
        max: usize,
    },
    /// At multiples of a size, counted from the start of the file or volume.
    Fixed {
        /// That size, a multiple of 4096.
        size: usize,
    },
}

impl Params {
    /// Reads `fastcdc:MIN,AVG,MAX` or `fixed:SIZE`; the error says what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a chunker; write fastcdc:4K,16K,64K or fixed:64K");
        let (kind, sizes) = text.split_once(':').ok_or_else(wrong)?;
        let sizes = sizes
            .split(',')
            .map(|size| Ok(usize::try_from(parse_size(size, 1)?).unwrap_or(usize::MAX)))
            .collect::<Result<Vec<_>, String>>()?;
        match (kind, sizes.as_slice()) {
            ("fastcdc", &[min, avg, max]) => Self::fastcdc(min, avg, max),
            ("fixed", &[size]) => Self::fixed(size),
            _ => Err(wrong()),
        }
    }

    fn fastcdc(min: usize, avg: usize, max: usize) -> Result<Self, String> {
        let even = [min, avg, max].iter().all(|size| size % 2 == 0);
        if even && 64 <= min && min < avg && avg < max && max <= CHUNK_MAX && (256..=1 << 20).contains(&avg) {
            Ok(Params::FastCdc { min, avg, max })
        } else {
            Err("fastcdc takes three even sizes MIN < AVG < MAX, MIN from 64, AVG from 256 to 1M, MAX to 4M"
                .into())
        }
    }

    fn fixed(size: usize) -> Result<Self, String> {
        if size > 0 && size.is_multiple_of(BLOCK) && size <= CHUNK_MAX {
            Ok(Params::Fixed { size })
        } else {
            Err("fixed takes one size, a multiple of 4096 up to 4M".into())
        }
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Params::FastCdc { min, avg, max } => write!(f, "fastcdc:{min},{avg},{max}"),
            Params::Fixed { size } => write!(f, "fixed:{size}"),
        }
    }
}

/// Cuts runs of data.
pub struct Chunker {
    params: Params,
    masks: (u64, u64),
    gear: [u64; 256],
    gear_shifted: [u64; 256],
}

impl Chunker {
    /// For a repository with this secret.
    pub fn new(params: Params, secret: &Key) -> Self {
        let mut bytes = [0; 256 * 8];
        expand("varv 2026-11 gear table", secret, &mut bytes);
        let mut gear = [0; 256];
        for (value, bytes) in gear.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *value = u64::from_le_bytes(*bytes);
        }
        let masks = match params {
            Params::FastCdc { avg, .. } => select_masks(avg, Normalization::Level1),
            Params::Fixed { .. } => (0, 0),
        };
        Self { params, masks, gear, gear_shifted: gear.map(|value| value << 1) }
    }

    /// The longest chunk.
    pub fn max_len(&self) -> usize {
        match self.params {
            Params::FastCdc { max, .. } => max,
            Params::Fixed { size } => size,
        }
    }

    /// The length of the first chunk of `bytes`, which begin a run or follow a cut, `offset`
    /// bytes into the file. `None` if that depends on bytes that are not seen yet: a cut is final
    /// when the byte behind it or the bytes of a largest chunk were seen, or when the run ends
    /// behind `bytes`. (FastCDC decides on a cut by the bytes up to the one behind it.)
    pub fn cut(&self, bytes: &[u8], offset: u64, run_ends: bool) -> Option<usize> {
        let wanted = match self.params {
            Params::FastCdc { max, .. } => max,
            Params::Fixed { size } => size - (offset % size as u64) as usize,
        };
        if bytes.is_empty() {
            return None;
        }
        let window = &bytes[..wanted.min(bytes.len())];
        let len = match self.params {
            Params::FastCdc { min, avg, max } => self.cut_by_content(window, min, avg, max),
            Params::Fixed { .. } => window.len(),
        };
        (run_ends || window.len() == wanted || len < window.len()).then_some(len)
    }

    /// Boundaries of an earlier state behind a change at which cuts of the new one may be expected
    /// to be the same again.
    pub fn boundaries_to_meet(&self) -> usize {
        match self.params {
            Params::FastCdc { .. } => 2,
            Params::Fixed { .. } => 1,
        }
    }

    fn cut_by_content(&self, window: &[u8], min: usize, avg: usize, max: usize) -> usize {
        let (strict, loose) = self.masks;
        let (gear, shifted) = (&self.gear, &self.gear_shifted);
        cut_gear(window, min, avg, max, strict, loose, strict << 1, loose << 1, gear, shifted).1
    }
}

impl fmt::Debug for Chunker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The gear table is a secret.
        write!(f, "Chunker({}, up to {})", self.params, format_size(self.max_len() as u64))
    }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // A wide OR over fixed blocks becomes vector instructions; stopping at each block makes the
    // common case, data in its first bytes, cheap.
    let (blocks, rest) = bytes.as_chunks::<256>();
    blocks.iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// A stretch of a buffer: zeros or data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Where it ends in the buffer; it begins where the one before ended.
    pub end: usize,
    /// Whether it is zeros.
    pub zero: bool,
}

/// Splits a buffer that begins at a multiple of 4096 in the file into stretches of all-zero
/// blocks and of others.
pub fn stretches(buffer: &[u8]) -> Vec<Stretch> {
    stretches_by(BLOCK, buffer)
}

/// The same with blocks of another length, which must not be 0.
pub fn stretches_by(block_len: usize, buffer: &[u8]) -> Vec<Stretch> {
    let mut out: Vec<Stretch> = Vec::new();
    let mut end = 0;
    for block in buffer.chunks(block_len) {
        end += block.len();
        let zero = is_zero(block);
        match out.last_mut() {
            Some(last) if last.zero == zero => last.end = end,
            _ => out.push(Stretch { end, zero }),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes that look random, the same on any machine.
    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        expand("varv test noise", &[0; 32], &mut bytes);
        bytes
    }

    fn lengths(chunker: &Chunker, mut bytes: &[u8]) -> Vec<usize> {
        let mut out = Vec::new();
        while let Some(len) = chunker.cut(bytes, 0, true) {
            out.push(len);
            bytes = &bytes[len..];
        }
        out
    }

    #[test]
    fn golden_boundaries() {
        let chunker = Chunker::new(Params::parse(DEFAULT).unwrap(), &[7; 32]);
        let lengths = lengths(&chunker, &noise(200_000));
        assert_eq!(lengths.iter().sum::<usize>(), 200_000);
        assert_eq!(lengths, GOLDEN, "chunks of existing repositories would not be found again");
    }

    const GOLDEN: &[usize] = &[35139, 25259, 16409, 16432, 16484, 19040, 26758, 21620, 22859];

    #[test]
    fn the_average_is_as_asked() {
        let chunker = Chunker::new(Params::parse(DEFAULT).unwrap(), &[7; 32]);
        let count = lengths(&chunker, &noise(32 << 20)).len();
        let average = (32 << 20) / count;
        assert!((12_000..24_000).contains(&average), "{average}");
    }

    #[test]
    fn a_cut_waits_until_it_is_final() {
        let chunker = Chunker::new(Params::parse("fastcdc:64,256,1024").unwrap(), &[7; 32]);
        let bytes = noise(2000);
        let len = chunker.cut(&bytes, 0, false).unwrap();
        assert!(len < 1024);
        for seen in 0..2000 {
            let expected = (seen > len).then_some(len);
            assert_eq!(chunker.cut(&bytes[..seen], 0, false), expected, "{seen} bytes seen");
        }
        // Found nowhere: at the largest, and no sooner.
        assert_eq!(chunker.cut(&[1; 1023], 0, false), None);
        assert_eq!(chunker.cut(&[1; 1024], 0, false), Some(1024));
        assert_eq!(chunker.cut(&[1; 1023], 0, true), Some(1023));
        assert_eq!(chunker.cut(&[], 0, true), None);
    }

    proptest! {
        #[test]
        fn what_is_not_seen_yet_changes_no_cut(seed: u8, seen in 0usize..3000, ends: bool) {
            let chunker = Chunker::new(Params::parse("fastcdc:64,256,1024").unwrap(), &[seed; 32]);
            let bytes = noise(3000);
            if let Some(len) = chunker.cut(&bytes[..seen], 0, false) {
                prop_assert_eq!(chunker.cut(&bytes, 0, ends), Some(len));
            }
        }
    }

    #[test]
    fn fixed_chunks_end_at_multiples_of_the_size() {
        let chunker = Chunker::new(Params::parse("fixed:8K").unwrap(), &[7; 32]);
        assert_eq!(chunker.cut(&[1; 10_000], 0, false), Some(8192));
        assert_eq!(chunker.cut(&[1; 10_000], 4096, false), Some(4096));
        assert_eq!(chunker.cut(&[1; 100], 8192, false), None);
        assert_eq!(chunker.cut(&[1; 100], 8192, true), Some(100));
    }

    #[test]
    fn parameters_are_checked_and_come_back() {
        for text in ["fastcdc:4K,16K,64K", "fastcdc:64,256,1K", "fixed:4K", "fixed:4M"] {
            let params = Params::parse(text).unwrap();
            assert_eq!(Params::parse(&params.to_string()), Ok(params));
        }
        for text in [
            "",
            "rabin:1",
            "fastcdc:4K",
            "fastcdc:4K,2K,64K",
            "fixed:5000",
            "fixed:0",
            "fixed:8M",
            "fastcdc:63,256,999999999",
        ] {
            assert!(Params::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn zeros_are_found_like_the_obvious_way(
            blocks in proptest::collection::vec(prop_oneof![Just(0u8), Just(0), Just(1)], 0..12),
            tail in 0usize..4096,
            at in 0usize..4096,
        ) {
            let mut buffer = Vec::new();
            for block in &blocks {
                let mut bytes = vec![0; 4096];
                bytes[at] = *block;
                buffer.extend(bytes);
            }
            buffer.truncate(buffer.len().saturating_sub(tail));
            let mut from = 0;
            let mut zero_before = None;
            for stretch in stretches(&buffer) {
                prop_assert!(stretch.end > from);
                prop_assert_ne!(zero_before, Some(stretch.zero));
                for block in buffer[from..stretch.end].chunks(4096) {
                    prop_assert_eq!(block.iter().all(|b| *b == 0), stretch.zero);
                }
                from = stretch.end;
                zero_before = Some(stretch.zero);
            }
            prop_assert_eq!(from, buffer.len());
        }
    }
}
