//! Reading both sides again after a copy, and comparing them.

use std::io;
use std::ops::Range;

use super::input::Input;
use super::output::Output;
use crate::error::{Error, IoContext, Result};
use crate::id::Hasher;
use crate::observe::Stop;
use crate::source::extents::Span;

const PIECE_LEN: usize = 256 << 10;

/// Compares the first `len` bytes of the input with the output from `seek` on. Holes of the input
/// are not read, and what is a hole on both sides on neither.
pub fn compare(input: &Input, output: &Output, len: u64, seek: u64, stop: &Stop) -> Result<()> {
    let (mut here, mut there) = (vec![0; PIECE_LEN], vec![0; PIECE_LEN]);
    for span in input.spans(0..len, 4096) {
        match span {
            Span::Hole(range) => {
                output.nonzero(shifted(&range, seek)?, |part| Err(differs(output, &part)))?
            }
            Span::Data(range) => {
                for at in range.clone().step_by(PIECE_LEN) {
                    stop.check()?;
                    let len = (range.end - at).min(PIECE_LEN as u64) as usize;
                    input.read_at(at, &mut here[..len])?;
                    output.content().read_at(at + seek, &mut there[..len])?;
                    if here[..len] != there[..len] {
                        return Err(differs(output, &(at + seek..at + seek + len as u64)));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Compares `len` bytes of the output from `seek` on with a hash of what a stream gave.
pub fn compare_hash(wanted: &Hasher, output: &Output, len: u64, seek: u64, stop: &Stop) -> Result<()> {
    let mut hasher = Hasher::plain();
    let mut buffer = vec![0; PIECE_LEN];
    for at in (0..len).step_by(PIECE_LEN) {
        stop.check()?;
        let piece = &mut buffer[..(len - at).min(PIECE_LEN as u64) as usize];
        output.content().read_at(seek + at, piece)?;
        hasher.update(piece);
    }
    match hasher.finish::<32>() == wanted.finish::<32>() {
        true => Ok(()),
        false => Err(differs(output, &(seek..seek + len))),
    }
}

fn shifted(range: &Range<u64>, by: u64) -> Result<Range<u64>> {
    let end = super::output::checked_end(by, range.end)?;
    Ok(range.start + by..end)
}

fn differs(output: &Output, range: &Range<u64>) -> Error {
    let why = format!(
        "bytes {} to {} are not those of the source: either the source has changed meanwhile, or the target \
         does not keep what is written to it",
        range.start, range.end
    );
    let failed: Result<()> = Err(io::Error::other(why)).at("verify", output.path());
    failed.err().unwrap_or(Error::Internal("no error"))
}
