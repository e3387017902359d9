//! Buffers into chunks, and pieces that were cut in parallel into one sequence.
//!
//! A large file is read in pieces, each cut on its own as if a run of data began with it. Where a
//! run goes on from one piece into the next, the [`Joiner`] cuts again from the last boundary
//! that is certain until it meets a boundary of the next piece: from there on both agree, since
//! a cut depends only on the bytes behind the cut before it.

use std::ops::Range;
use std::sync::Arc;

use super::buffers::Buffer;
use super::expect::{Expected, Guess};
use crate::chunker::{Chunker, Stretch, stretches};
use crate::format::BLOCK;
use crate::id::{ChunkId, Key};

/// A part of a piece, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A chunk: where it begins in the piece's bytes, and its length.
    Chunk {
        /// Its name.
        id: ChunkId,
        /// Where it begins.
        start: usize,
        /// How long it is.
        len: usize,
    },
    /// So many bytes of zeros that were read.
    Zero(u64),
    /// So many bytes that were not allocated.
    Hole(u64),
    /// From here to the end of the piece, maybe nothing, no cut is certain yet; the run goes on
    /// in the next piece. Always the last part.
    Open {
        /// Where it begins.
        start: usize,
    },
}

/// A stretch of a file, cut.
#[derive(Debug, Default)]
pub struct Piece {
    /// Bytes that the first parts lie in, if the piece was joined to the one before.
    head: Vec<u8>,
    /// The bytes that were read, maybe with those of other files.
    body: Arc<Buffer>,
    /// What they are made of.
    pub parts: Vec<Part>,
}

impl Part {
    /// Its length in bytes; that of an open part is not known.
    pub fn len(&self) -> u64 {
        match *self {
            Part::Chunk { len, .. } => len as u64,
            Part::Zero(len) | Part::Hole(len) => len,
            Part::Open { .. } => 0,
        }
    }

    /// Whether it stands for no bytes, as far as that is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Piece {
    /// A piece that is not allocated.
    pub fn hole(len: u64) -> Self {
        Self { parts: vec![Part::Hole(len)], ..Self::default() }
    }

    /// Parts of a shared buffer.
    pub fn new(body: Arc<Buffer>, parts: Vec<Part>) -> Self {
        Self { head: Vec::new(), body, parts }
    }

    /// The length of a piece that was not joined yet.
    pub fn len(&self) -> u64 {
        let open = match self.parts.last() {
            Some(&Part::Open { start }) => self.body.len() - start,
            _ => 0,
        };
        self.parts.iter().map(Part::len).sum::<u64>() + open as u64
    }

    /// Whether it stands for no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A chunk's bytes. Positions count over head, then body; no chunk lies in both.
    pub fn bytes(&self, start: usize, len: usize) -> &[u8] {
        match start.checked_sub(self.head.len()) {
            Some(start) => &self.body[start..start + len],
            None => &self.head[start..start + len],
        }
    }
}

/// Cuts buffers.
#[derive(Clone, Copy)]
pub struct Cutter<'c> {
    /// Where to cut.
    pub chunker: &'c Chunker,
    /// What names chunks of data.
    pub key: &'c Key,
}

impl Cutter<'_> {
    /// Cuts a buffer that lies at `offset` in the file. With `more_follows`, the data at its end may
    /// go on behind it. A buffer that begins within a block, or ends within one and is not the
    /// file's end, has to do so amid a run of data.
    /// What is `expected` there spares work if it comes true, and changes nothing.
    pub fn cut(&self, body: Buffer, offset: u64, more_follows: bool, expected: &[Expected]) -> Piece {
        let (mut parts, mut guess) = (Vec::new(), Guess::new(expected, self.key));
        self.cut_range(&body, 0..body.len(), offset, more_follows, &mut guess, &mut parts);
        Piece::new(Arc::new(body), parts)
    }

    /// Cuts a file of length `len` whose data was read into `body` from `start` on: spans of
    /// offset and length, in order, with holes between.
    pub fn cut_spans(&self, body: &[u8], mut start: usize, spans: &[(u64, u64)], len: u64) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = 0;
        for &(offset, span_len) in spans {
            if offset > at {
                parts.push(Part::Hole(offset - at));
            }
            let end = start + span_len as usize;
            self.cut_range(body, start..end, offset, false, &mut Guess::new(&[], self.key), &mut parts);
            (at, start) = (offset + span_len, end);
        }
        if len > at {
            parts.push(Part::Hole(len - at));
        }
        parts
    }

    fn cut_range(
        &self,
        body: &[u8],
        range: Range<usize>,
        offset: u64,
        more_follows: bool,
        guess: &mut Guess,
        parts: &mut Vec<Part>,
    ) {
        let bytes = &body[range.clone()];
        let mut at = 0;
        for stretch in stretches_at(bytes, offset, more_follows) {
            if stretch.zero {
                parts.push(Part::Zero((stretch.end - at) as u64));
                at = stretch.end;
                continue;
            }
            let run_ends = !more_follows || stretch.end < bytes.len();
            let run = RunRead { bytes: &bytes[at..stretch.end], offset: offset + at as u64, ends: run_ends };
            at += self.cut_run(run, range.start + at, guess, parts);
            // Open even where a cut falls on the piece's end: the run goes on, and cuts before
            // this one must not take it for the run's end.
            if !run_ends {
                parts.push(Part::Open { start: range.start + at });
                at = stretch.end;
            }
        }
    }

    /// Cuts a run that lies at `start` in the piece's bytes; how much of it is certain.
    fn cut_run(&self, run: RunRead, start: usize, guess: &mut Guess, parts: &mut Vec<Part>) -> usize {
        let mut at = 0;
        // Where the last chunk begins, if the byte behind it may be another than was expected.
        let mut unsure = None;
        loop {
            if let Some(Expected { len, id, .. }) = guess.come_true(run.offset + at as u64, &run.bytes[at..])
            {
                parts.push(Part::Chunk { id, start: start + at, len });
                unsure = Some(at);
                at += len;
                continue;
            }
            if let Some(again) = unsure.take() {
                parts.pop();
                at = again;
            }
            let (offset, bytes) = (run.offset + at as u64, &run.bytes[at..]);
            let Some(len) = self.chunker.cut(bytes, offset, run.ends) else { return at };
            let id = ChunkId::of(self.key, &bytes[..len]);
            parts.push(Part::Chunk { id, start: start + at, len });
            guess.note(offset, id);
            at += len;
        }
    }
}

/// A run of data, or what of it was read.
struct RunRead<'b> {
    bytes: &'b [u8],
    /// Where it begins in the file.
    offset: u64,
    /// Whether it ends here.
    ends: bool,
}

/// Stretches of a buffer that may begin and end within blocks, which are data then.
fn stretches_at(bytes: &[u8], offset: u64, more_follows: bool) -> Vec<Stretch> {
    let block = BLOCK as usize;
    let head = (offset.next_multiple_of(BLOCK) - offset).min(bytes.len() as u64) as usize;
    let tail = if more_follows { (bytes.len() - head) % block } else { 0 };
    if head + tail == 0 {
        return stretches(bytes);
    }
    let middle = stretches(&bytes[head..bytes.len() - tail]);
    let middle = middle.into_iter().map(|stretch| Stretch { end: stretch.end + head, ..stretch });
    let mut out: Vec<Stretch> = Vec::new();
    let head = (head > 0).then_some(Stretch { end: head, zero: false });
    let tail = (tail > 0).then_some(Stretch { end: bytes.len(), zero: false });
    for stretch in head.into_iter().chain(middle).chain(tail) {
        match out.last_mut() {
            Some(last) if last.zero == stretch.zero => last.end = stretch.end,
            _ => out.push(stretch),
        }
    }
    out
}

/// Joins the pieces of one file, handed in in order.
#[derive(Default)]
pub struct Joiner {
    /// Bytes of a run behind the last certain cut.
    tail: Vec<u8>,
    /// Where they begin in the file.
    offset: u64,
}

impl Joiner {
    /// The next piece, beginning at `offset` in the file; what comes out has no open part.
    pub fn join(&mut self, cutter: &Cutter, mut piece: Piece, offset: u64) -> Piece {
        if !self.tail.is_empty() {
            piece = self.join_tail(cutter, piece, offset);
        }
        if let Some(&Part::Open { start }) = piece.parts.last() {
            piece.parts.pop();
            let start = start - piece.head.len();
            self.offset = offset + start as u64;
            self.tail = piece.body[start..].to_vec();
        }
        piece
    }

    /// What is left when the file has ended.
    pub fn finish(self, cutter: &Cutter) -> Piece {
        let mut piece = Piece { head: self.tail, ..Piece::default() };
        let mut at = 0;
        while let Some(len) = cutter.chunker.cut(&piece.head[at..], self.offset + at as u64, true) {
            piece.push_head_chunk(cutter, at, len);
            at += len;
        }
        piece
    }

    fn join_tail(&mut self, cutter: &Cutter, piece: Piece, offset: u64) -> Piece {
        debug_assert_eq!(self.offset + self.tail.len() as u64, offset);
        let run = Run::at_start_of(&piece);
        let mut joined = Piece { head: std::mem::take(&mut self.tail), ..Piece::default() };
        let tail_len = joined.head.len();
        let mut at = 0usize;
        loop {
            if let Some(part) = at.checked_sub(tail_len).and_then(|at| run.part_at(&piece, at)) {
                return joined.adopt(piece, part);
            }
            // A cut needs the bytes of a largest chunk: the head grows by no more than that.
            let have = joined.head.len() - tail_len;
            let wanted = (at + cutter.chunker.max_len()).saturating_sub(tail_len).min(run.len);
            joined.head.extend_from_slice(&piece.body[have..wanted.max(have)]);
            let run_ends = run.ends && joined.head.len() == tail_len + run.len;
            match cutter.chunker.cut(&joined.head[at..], self.offset + at as u64, run_ends) {
                Some(len) => {
                    joined.push_head_chunk(cutter, at, len);
                    at += len;
                }
                None => {
                    // The run goes on behind this piece, which holds nothing else.
                    self.tail = joined.head.split_off(at);
                    self.offset += at as u64;
                    return joined;
                }
            }
        }
    }
}

impl Piece {
    fn push_head_chunk(&mut self, cutter: &Cutter, start: usize, len: usize) {
        let id = ChunkId::of(cutter.key, &self.head[start..start + len]);
        self.parts.push(Part::Chunk { id, start, len });
    }

    /// Takes the parts of `piece` from number `from` on, and its bytes.
    fn adopt(mut self, piece: Piece, from: usize) -> Piece {
        let shift = self.head.len();
        self.parts.extend(piece.parts[from..].iter().map(|part| match *part {
            Part::Chunk { id, start, len } => Part::Chunk { id, start: start + shift, len },
            Part::Open { start } => Part::Open { start: start + shift },
            other => other,
        }));
        self.body = piece.body;
        self
    }
}

/// The run of data that a piece begins with.
struct Run {
    /// Its length in the piece.
    len: usize,
    /// The number of parts that it is made of.
    parts: usize,
    /// Whether it ends in this piece.
    ends: bool,
}

impl Run {
    fn at_start_of(piece: &Piece) -> Self {
        let mut run = Run { len: 0, parts: 0, ends: true };
        for part in &piece.parts {
            match *part {
                Part::Chunk { start, len, .. } => run.len = start + len,
                Part::Open { .. } => {
                    run.len = piece.body.len();
                    run.ends = false;
                }
                Part::Zero(_) | Part::Hole(_) => break,
            }
            run.parts += 1;
        }
        run
    }

    /// The number of the part that begins at `at` in the run, or behind it at its end.
    fn part_at(&self, piece: &Piece, at: usize) -> Option<usize> {
        if at == self.len {
            return Some(self.parts);
        }
        let start = |part: &Part| match *part {
            Part::Chunk { start, .. } | Part::Open { start } => start,
            Part::Zero(_) | Part::Hole(_) => usize::MAX,
        };
        piece.parts[..self.parts].binary_search_by_key(&at, start).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunker::Params;
    use crate::id::expand;
    use proptest::prelude::*;

    const KEY: Key = [3; 32];

    /// Noise with stretches of zeros and of one repeated byte, to make cutting hard.
    fn content(layout: &[(u8, usize)], seed: u8) -> Vec<u8> {
        let mut out = Vec::new();
        for (i, &(kind, len)) in layout.iter().enumerate() {
            let start = out.len();
            out.resize(start + len, 0);
            match kind {
                0 => {}
                1 => out[start..].fill(seed | 1),
                _ => expand("varv test noise", &[seed ^ i as u8; 32], &mut out[start..]),
            }
        }
        out
    }

    fn described(piece: &Piece, out: &mut Vec<(Option<ChunkId>, u64)>) {
        for part in &piece.parts {
            match *part {
                Part::Chunk { id, start, len } => {
                    assert_eq!(ChunkId::of(&KEY, piece.bytes(start, len)), id);
                    out.push((Some(id), len as u64));
                }
                Part::Zero(len) => match out.last_mut() {
                    Some((None, before)) => *before += len,
                    _ => out.push((None, len)),
                },
                Part::Hole(_) | Part::Open { .. } => panic!("{part:?}"),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn pieces_give_what_the_whole_gives(
            layout in proptest::collection::vec((0u8..4, 1usize..200_000), 0..8),
            seed: u8,
            piece_blocks in 1usize..40,
            fixed: bool,
        ) {
            let bytes = content(&layout, seed);
            let params = if fixed { "fixed:12K" } else { "fastcdc:4K,16K,64K" };
            let chunker = Chunker::new(Params::parse(params).unwrap(), &[1; 32]);
            let cutter = Cutter { chunker: &chunker, key: &KEY };
            let mut whole = Vec::new();
            described(&cutter.cut(bytes.clone().into(), 0, false, &[]), &mut whole);

            let mut joiner = Joiner::default();
            let mut joined = Vec::new();
            let mut at = 0;
            for body in bytes.chunks(piece_blocks * 4096) {
                let end = at + body.len();
                let piece = cutter.cut(body.to_vec().into(), at as u64, end < bytes.len(), &[]);
                described(&joiner.join(&cutter, piece, at as u64), &mut joined);
                at = end;
            }
            described(&joiner.finish(&cutter), &mut joined);
            prop_assert_eq!(joined, whole);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        /// Whatever was there before, in its place, moved, or cut off by zeros.
        #[test]
        fn what_is_expected_changes_no_cut(
            layout in proptest::collection::vec((0u8..4, 1usize..200_000), 1..8),
            changes in proptest::collection::vec((0usize..1_000_000, 1usize..30_000, any::<bool>()), 0..6),
            moved in 0usize..5000,
            is_moved: bool,
            piece_blocks in 1usize..80,
            fixed: bool,
        ) {
            let params = if fixed { "fixed:12K" } else { "fastcdc:4K,16K,64K" };
            let chunker = Chunker::new(Params::parse(params).unwrap(), &[1; 32]);
            let cutter = Cutter { chunker: &chunker, key: &KEY };
            let before = content(&layout, 9);
            let mut after = before.clone();
            for (at, len, zero) in changes {
                let start = at % after.len();
                let end = (start + len).min(after.len());
                after[start..end].fill(if zero { 0 } else { 77 });
            }
            if is_moved {
                after.rotate_right(moved % before.len());
            }
            let mut offset = 0;
            let mut chunks = Vec::new();
            for part in &cutter.cut(before.into(), 0, false, &[]).parts {
                if let Part::Chunk { id, len, .. } = *part {
                    chunks.push(Expected { offset, len, id });
                }
                offset += part.len();
            }
            let mut at = 0;
            for body in after.chunks(piece_blocks * 4096) {
                let end = at + body.len();
                let cut = |expected| cutter.cut(body.to_vec().into(), at as u64, end < after.len(), expected);
                prop_assert_eq!(cut(&chunks).parts, cut(&[]).parts);
                at = end;
            }
        }
    }

    #[test]
    fn a_cut_at_the_end_of_a_piece_does_not_end_the_run() {
        // One repeated byte is cut at the maximum, so the second piece is one chunk on its own.
        let bytes = content(&[(0, 4096), (1, 126_977)], 0);
        let chunker = Chunker::new(Params::parse("fastcdc:4K,16K,64K").unwrap(), &[1; 32]);
        let cutter = Cutter { chunker: &chunker, key: &KEY };
        let mut joiner = Joiner::default();
        let mut joined = Vec::new();
        for (number, body) in bytes.chunks(65_536).enumerate() {
            let at = number as u64 * 65_536;
            let piece = cutter.cut(body.to_vec().into(), at, at + 65_536 < bytes.len() as u64, &[]);
            described(&joiner.join(&cutter, piece, at), &mut joined);
        }
        described(&joiner.finish(&cutter), &mut joined);
        let lens: Vec<u64> = joined.iter().map(|(_, len)| *len).collect();
        assert_eq!(lens, [4096, 65_536, 61_441]);
    }

    #[test]
    fn holes_are_zeros_to_the_chunks() {
        let chunker = Chunker::new(Params::parse("fastcdc:4K,16K,64K").unwrap(), &[1; 32]);
        let cutter = Cutter { chunker: &chunker, key: &KEY };
        let bytes = content(&[(2, 40_960), (0, 40_960), (2, 50_000)], 5);
        let dense = cutter.cut(bytes.clone().into(), 0, false, &[]);
        let body = [&bytes[..40_960], &bytes[81_920..]].concat();
        let parts = cutter.cut_spans(&body, 0, &[(0, 40_960), (81_920, 50_000)], 131_920);
        let sparse = Piece::new(Arc::new(body.into()), parts);
        let ids = |piece: &Piece| -> Vec<_> {
            piece
                .parts
                .iter()
                .filter_map(|p| if let Part::Chunk { id, .. } = p { Some(*id) } else { None })
                .collect()
        };
        assert_eq!(ids(&dense), ids(&sparse));
        assert!(sparse.parts.contains(&Part::Hole(40_960)));
        assert!(dense.parts.contains(&Part::Zero(40_960)));
    }
}
