//! Reading ahead: one thread reads into buffers that are used again, the caller's writes.

use std::ops::Range;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::input::Input;
use crate::error::{Error, Result};
use crate::observe::Stop;
use crate::source::extents::Span;

/// How much is read at once: small enough to be in the cache still when it is written.
const PIECE_LEN: usize = 512 << 10;
/// How many pieces are read ahead.
const AHEAD: usize = 4;

/// What comes out, from front to back, offsets counted from the input's start.
pub enum Piece<'b> {
    /// Bytes, beginning at a multiple of the block.
    Data(u64, &'b [u8]),
    /// Nothing is allocated here.
    Hole(Range<u64>),
}

enum Sent {
    Data(u64, Vec<u8>),
    Hole(Range<u64>),
}

/// Reads the first `take` bytes of the input, all of a stream if that is not given, and hands
/// them to `put` in pieces of whole blocks.
pub fn feed(
    input: &Input,
    take: Option<u64>,
    block: usize,
    stop: &Stop,
    mut put: impl FnMut(Piece) -> Result<()>,
) -> Result<()> {
    let (pieces, incoming) = bounded(AHEAD);
    let (give_back, free) = bounded(AHEAD + 1);
    let piece_len = PIECE_LEN.next_multiple_of(block);
    for _ in 0..AHEAD {
        let _ = give_back.send(vec![0; piece_len]);
    }
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let line = Line { input, stop, piece_len, pieces, free };
            match input.known_len() {
                Some(len) => line.spans(take.map_or(len, |take| take.min(len)), block as u64),
                None => line.stream(take.unwrap_or(u64::MAX)),
            }
        });
        let put_all = || -> Result<()> {
            for sent in incoming {
                match sent {
                    Sent::Hole(range) => put(Piece::Hole(range))?,
                    Sent::Data(offset, buffer) => {
                        put(Piece::Data(offset, &buffer))?;
                        // The reader may have ended.
                        let _ = give_back.send(buffer);
                    }
                }
            }
            Ok(())
        };
        let put = put_all();
        drop(give_back);
        let read = reader.join().map_err(|_| Error::Internal("the reader ended early"))?;
        put.and(read)
    })
}

/// The reader's side. Its sends fail once the other side has failed, which has the reason.
struct Line<'i> {
    input: &'i Input,
    stop: &'i Stop,
    piece_len: usize,
    pieces: Sender<Sent>,
    free: Receiver<Vec<u8>>,
}

impl Line<'_> {
    fn spans(self, len: u64, block: u64) -> Result<()> {
        for span in self.input.spans(0..len, block) {
            self.stop.check()?;
            let goes_on = match span {
                Span::Hole(range) => self.pieces.send(Sent::Hole(range)).is_ok(),
                Span::Data(range) => self.range(range)?,
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    fn range(&self, range: Range<u64>) -> Result<bool> {
        let mut at = range.start;
        while at < range.end {
            self.stop.check()?;
            let Ok(mut buffer) = self.free.recv() else { return Ok(false) };
            buffer.resize((range.end - at).min(self.piece_len as u64) as usize, 0);
            self.input.read_at(at, &mut buffer)?;
            let len = buffer.len() as u64;
            if self.pieces.send(Sent::Data(at, buffer)).is_err() {
                return Ok(false);
            }
            at += len;
        }
        Ok(true)
    }

    fn stream(self, take: u64) -> Result<()> {
        let mut at = 0;
        while at < take {
            self.stop.check()?;
            let Ok(mut buffer) = self.free.recv() else { break };
            buffer.resize((take - at).min(self.piece_len as u64) as usize, 0);
            let read = self.input.read_on(&mut buffer)?;
            let is_end = read < buffer.len();
            buffer.truncate(read);
            if self.pieces.send(Sent::Data(at, buffer)).is_err() || is_end {
                break;
            }
            at += read as u64;
        }
        Ok(())
    }
}
