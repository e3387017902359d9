//! What one side has, block after block: zeros or a hash. Holes are not read.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::message::Hash;
use crate::blocks::input::{Input, fill};
use crate::blocks::output::Output;
use crate::chunker::is_zero;
use crate::error::Result;
use crate::id::checksum;
use crate::observe::Stop;
use crate::source::extents::{Span, Spans};

/// So many blocks of zeros that had to be read are told of at once.
const ZEROS_MAX: u64 = 64;

/// What is looked at.
#[derive(Clone, Copy)]
pub enum Side<'a> {
    /// Something to read.
    Input(&'a Input),
    /// Something to write.
    Output(&'a Output),
    /// There is nothing yet: all of it is zero.
    Nothing,
}

impl<'a> Side<'a> {
    fn len(self) -> u64 {
        match self {
            Side::Input(input) => input.known_len().unwrap_or(0),
            Side::Output(output) => output.content().size(),
            Side::Nothing => 0,
        }
    }

    fn spans(self, range: Range<u64>, block: u64) -> Option<Spans<'a>> {
        match self {
            Side::Input(input) => Some(input.spans(range, block)),
            Side::Output(output) => Some(output.spans(range, block)),
            Side::Nothing => None,
        }
    }

    fn read_at(self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self {
            Side::Input(input) => input.read_at(offset, buffer),
            Side::Output(output) => output.content().read_at(offset, buffer),
            Side::Nothing => Ok(()),
        }
    }
}

/// What was found.
pub enum Found<'b> {
    /// A number of blocks that are zero, from the first one on.
    Zeros {
        /// The first.
        first: u64,
        /// How many.
        count: u64,
    },
    /// A block of data; its bytes may be taken.
    Data {
        /// Its number.
        block: u64,
        /// Its hash.
        hash: Hash,
        /// Its bytes.
        bytes: &'b mut Vec<u8>,
    },
}

/// How a side is looked at.
#[derive(Clone, Copy)]
pub struct Scan<'a> {
    /// What is looked at.
    pub side: Side<'a>,
    /// Bytes a block.
    pub block: u64,
    /// How far: the source's length.
    pub len: u64,
    /// Asks to stop from outside.
    pub stop: &'a Stop,
    /// Asks to stop because the other half of this side has failed.
    pub quit: &'a AtomicBool,
}

/// A scan under way.
struct Walk<'a, F> {
    scan: Scan<'a>,
    found: F,
    buffer: Vec<u8>,
    zeros: Range<u64>,
    read: u64,
}

impl Scan<'_> {
    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.len.div_ceil(self.block)
    }

    /// Looks at ranges of blocks in their order. Ends early when `found` says false. Returns the
    /// bytes that were read.
    pub fn run(self, ranges: &[Range<u64>], found: impl FnMut(Found) -> Result<bool>) -> Result<u64> {
        let mut walk = Walk { scan: self, found, buffer: Vec::new(), zeros: 0..0, read: 0 };
        for range in ranges {
            if !walk.range(range.start..range.end.min(self.blocks()))? || !walk.tell_zeros()? {
                break;
            }
        }
        Ok(walk.read)
    }
}

impl<F: FnMut(Found) -> Result<bool>> Walk<'_, F> {
    fn range(&mut self, range: Range<u64>) -> Result<bool> {
        let Scan { side, block, len, .. } = self.scan;
        // Blocks of which the side has at least a byte.
        let there = range.start..range.end.min(side.len().div_ceil(block)).max(range.start);
        let bytes = there.start * block..(there.end * block).min(len).min(side.len());
        for span in side.spans(bytes, block).into_iter().flatten() {
            let goes_on = match span {
                Span::Hole(hole) => self.add_zeros(hole.start / block..hole.end.div_ceil(block), false)?,
                Span::Data(data) => self.data(data.start / block..data.end.div_ceil(block))?,
            };
            if !goes_on {
                return Ok(false);
            }
        }
        self.add_zeros(there.end..range.end, false)
    }

    fn data(&mut self, blocks: Range<u64>) -> Result<bool> {
        for block in blocks {
            self.scan.stop.check()?;
            let goes_on = match self.read(block)? {
                true => self.add_zeros(block..block + 1, true)?,
                false => {
                    let hash = checksum(&[&self.buffer]);
                    self.tell_zeros()? && (self.found)(Found::Data { block, hash, bytes: &mut self.buffer })?
                }
            };
            if !goes_on || self.scan.quit.load(Ordering::Relaxed) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a block into the buffer; whether it is zero.
    fn read(&mut self, block: u64) -> Result<bool> {
        let Scan { side, block: block_len, len, .. } = self.scan;
        let offset = block * block_len;
        let wanted = block_len.min(len - offset);
        let there = wanted.min(side.len().saturating_sub(offset));
        self.buffer.resize(wanted as usize, 0);
        let (front, rest) = self.buffer.split_at_mut(there as usize);
        rest.fill(0);
        let Some(spans) = side.spans(offset..offset + there, 1) else { return Ok(true) };
        let read = &mut self.read;
        let is_hole = fill(spans, offset, front, |at, part| {
            *read += part.len() as u64;
            side.read_at(at, part)
        })?;
        Ok(is_hole || is_zero(&self.buffer))
    }

    fn add_zeros(&mut self, blocks: Range<u64>, were_read: bool) -> Result<bool> {
        if blocks.is_empty() {
            return Ok(true);
        }
        if self.zeros.end != blocks.start || self.zeros.is_empty() {
            if !self.tell_zeros()? {
                return Ok(false);
            }
            self.zeros.start = blocks.start;
        }
        self.zeros.end = blocks.end;
        match were_read && self.zeros.end - self.zeros.start >= ZEROS_MAX {
            true => self.tell_zeros(),
            false => Ok(true),
        }
    }

    fn tell_zeros(&mut self) -> Result<bool> {
        let Range { start: first, end } = std::mem::take(&mut self.zeros);
        match end > first {
            true => (self.found)(Found::Zeros { first, count: end - first }),
            false => Ok(true),
        }
    }
}
