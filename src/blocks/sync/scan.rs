//! What one side has, block after block: zeros or a hash. Holes are not read.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::message::Hash;
use crate::blocks::input::Input;
use crate::blocks::output::Output;
use crate::chunker::is_zero;
use crate::error::Result;
use crate::id::Hasher;
use crate::observe::Stop;
use crate::source::extents::Span;

/// So many blocks of zeros that had to be read are told of at once.
const ZEROS_MAX: u64 = 64;
/// What is read and hashed at once: it fits beside other things in a processor's own cache.
const PIECE_LEN: usize = 64 << 10;
static ZEROS: [u8; PIECE_LEN] = [0; PIECE_LEN];

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
            Side::Output(output) => Some(Box::new(output.spans(range, block))),
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

    /// Fills a buffer, which belongs at `offset`; how many bytes were read. Holes, and what lies
    /// behind the side's end, are not.
    fn fill(self, offset: u64, buffer: &mut [u8], layout: &mut Layout) -> Result<u64> {
        let end = offset + buffer.len() as u64;
        let (mut at, mut read) = (offset, 0);
        while at < end {
            let (to, is_data) = match layout.at(at) {
                Some(Span::Data(data)) => (data.end.min(end), true),
                Some(Span::Hole(hole)) => (hole.end.min(end), false),
                None => (end, false),
            };
            let part = &mut buffer[(at - offset) as usize..(to - offset) as usize];
            match is_data {
                true => {
                    read += part.len() as u64;
                    self.read_at(at, part)?;
                }
                false => part.fill(0),
            }
            at = to;
        }
        Ok(read)
    }
}

/// Data and holes in turn.
type Spans<'a> = Box<dyn Iterator<Item = Span> + 'a>;

/// Where a side's data and holes are, gone through once and forwards: asking anew for each block
/// would look through all data behind it each time.
struct Layout<'a> {
    spans: Option<Spans<'a>>,
    span: Option<Span>,
}

impl<'a> Layout<'a> {
    fn new(spans: Option<Spans<'a>>) -> Self {
        Self { spans, span: None }
    }

    /// The span in which `offset` lies, which is never before the last one asked for; `None`
    /// behind the last.
    fn at(&mut self, offset: u64) -> Option<&Span> {
        let is_behind = |span: &Span| match span {
            Span::Data(range) | Span::Hole(range) => range.end <= offset,
        };
        while self.span.as_ref().is_none_or(is_behind) {
            self.span = Some(self.spans.as_mut()?.next()?);
        }
        self.span.as_ref()
    }
}

/// A hash that was fed so many zeros.
fn zeros_hashed(mut len: usize) -> Hasher {
    let mut hasher = Hasher::plain();
    while len > 0 {
        let piece = &ZEROS[..len.min(PIECE_LEN)];
        hasher.update(piece);
        len -= piece.len();
    }
    hasher
}

/// What was found.
pub enum Found {
    /// A number of blocks that are zero, from the first one on.
    Zeros {
        /// The first.
        first: u64,
        /// How many.
        count: u64,
    },
    /// A block of data.
    Data {
        /// Its number.
        block: u64,
        /// Its hash.
        hash: Hash,
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
        let mut walk = Walk { scan: self, found, buffer: vec![0; PIECE_LEN], zeros: 0..0, read: 0 };
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
        let mut layout = Layout::new(side.spans(bytes.clone(), 1));
        let mut number = there.start;
        while number < there.end {
            self.scan.stop.check()?;
            let hole_end = match layout.at(number * block) {
                None => there.end,
                Some(Span::Hole(hole)) if hole.end == bytes.end => there.end,
                Some(Span::Hole(hole)) => hole.end / block,
                Some(Span::Data(_)) => number,
            };
            let goes_on = match hole_end > number {
                true => self.add_zeros(number..hole_end, false)?,
                false => self.block(number, &mut layout)?,
            };
            if !goes_on || self.scan.quit.load(Ordering::Relaxed) {
                return Ok(false);
            }
            number = hole_end.max(number + 1);
        }
        self.add_zeros(there.end..range.end, false)
    }

    fn block(&mut self, block: u64, layout: &mut Layout) -> Result<bool> {
        let Some(hash) = self.read(block, layout)? else { return self.add_zeros(block..block + 1, true) };
        Ok(self.tell_zeros()? && (self.found)(Found::Data { block, hash })?)
    }

    /// Reads a block piece by piece, each hashed while it is still in the processor's cache; the
    /// block's hash, `None` if it is zero.
    fn read(&mut self, block: u64, layout: &mut Layout) -> Result<Option<Hash>> {
        let Scan { side, block: block_len, len, .. } = self.scan;
        let offset = block * block_len;
        let wanted = block_len.min(len - offset) as usize;
        let mut hasher = None;
        for at in (0..wanted).step_by(PIECE_LEN) {
            let piece = &mut self.buffer[..PIECE_LEN.min(wanted - at)];
            self.read += side.fill(offset + at as u64, piece, layout)?;
            if hasher.is_none() && is_zero(piece) {
                continue;
            }
            hasher.get_or_insert_with(|| zeros_hashed(at)).update(piece);
        }
        Ok(hasher.map(|hasher| hasher.finish()))
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
