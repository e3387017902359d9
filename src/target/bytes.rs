//! Whole reads and writes at an offset: what the kernel does in part is repeated until it is done.

use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};

use super::Counts;

/// The most that is written as zeros, or read to be compared, at once.
const PIECE: usize = 256 << 10;

/// The unit of comparison: what file systems and most disks write at least.
const BLOCK: usize = 4096;

static ZEROS: [u8; PIECE] = [0; PIECE];

/// Writes all of `bytes`.
pub(super) fn write_all_at(fd: BorrowedFd, mut offset: u64, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match retry_on_intr(|| pwrite(fd, bytes, offset))? {
            0 => return Err(Errno::NOSPC),
            done => {
                bytes = bytes.get(done..).unwrap_or_default();
                offset += done as u64;
            }
        }
    }
    Ok(())
}

/// Fills the front of `buffer`; less than all of it only at the end of the file.
pub(super) fn read_up_to(fd: BorrowedFd, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..)
        && !rest.is_empty()
    {
        match retry_on_intr(|| pread(fd, &mut *rest, offset + filled as u64))? {
            0 => break,
            done => filled += done,
        }
    }
    Ok(filled)
}

/// Fills all of `buffer`.
pub(super) fn read_exact_at(fd: BorrowedFd, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
    if read_up_to(fd, offset, buffer)? < buffer.len() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Writes `len` zeros.
pub(super) fn write_zeros(fd: BorrowedFd, offset: u64, len: u64) -> Result<(), Errno> {
    for (at, piece) in pieces(offset, len) {
        write_all_at(fd, at, &ZEROS[..piece])?;
    }
    Ok(())
}

/// Reads what is there and writes the blocks that differ.
pub(super) fn write_differing(fd: BorrowedFd, offset: u64, bytes: &[u8]) -> Result<Counts, Errno> {
    let mut counts = Counts::default();
    let mut there = vec![0; bytes.len().min(PIECE)];
    for (index, new) in bytes.chunks(PIECE).enumerate() {
        let at = offset + (index * PIECE) as u64;
        let found = read_up_to(fd, at, &mut there[..new.len()])?;
        for (start, end) in differing_runs(at, &there[..found], new) {
            write_all_at(fd, at + start as u64, &new[start..end])?;
            counts.written += (end - start) as u64;
        }
    }
    counts.equal = bytes.len() as u64 - counts.written;
    Ok(counts)
}

/// Where `new`, which belongs at offset `at`, differs from what is `there`, in whole blocks.
fn differing_runs(at: u64, there: &[u8], new: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut start = 0;
    while start < new.len() {
        let into_block = ((at + start as u64) % BLOCK as u64) as usize;
        let end = new.len().min(start + BLOCK - into_block);
        if there.get(start..end) != Some(&new[start..end]) {
            match runs.last_mut() {
                Some((_, last)) if *last == start => *last = end,
                _ => runs.push((start, end)),
            }
        }
        start = end;
    }
    runs
}

/// A range in pieces of at most [`PIECE`] bytes: offset and length of each.
pub(super) fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..len).step_by(PIECE).map(move |done| (offset + done, (len - done).min(PIECE as u64) as usize))
}

/// Asks for an fallocate; false if it is not offered here.
pub(super) fn try_fallocate(
    fd: BorrowedFd,
    flags: FallocateFlags,
    offset: u64,
    len: u64,
) -> Result<bool, Errno> {
    match retry_on_intr(|| fallocate(fd, flags, offset, len)) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NODEV | Errno::NOSYS) => Ok(false),
        Err(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunker::is_zero;
    use proptest::prelude::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    #[test]
    fn pieces_cover_a_range_once() {
        let all: Vec<_> = pieces(7, PIECE as u64 * 2 + 1).collect();
        assert_eq!(all, [(7, PIECE), (7 + PIECE as u64, PIECE), (7 + 2 * PIECE as u64, 1)]);
        assert_eq!(pieces(7, 0).count(), 0);
    }

    #[test]
    fn runs_lie_on_blocks() {
        let (there, mut new) = (vec![1; 5 * BLOCK], vec![1; 5 * BLOCK]);
        assert_eq!(differing_runs(0, &there, &new), []);
        new[BLOCK] = 2;
        new[2 * BLOCK] = 2;
        new[5 * BLOCK - 1] = 2;
        assert_eq!(differing_runs(0, &there, &new), [(BLOCK, 3 * BLOCK), (4 * BLOCK, 5 * BLOCK)]);
        // Belonging 100 bytes into a block, the first one is shorter.
        assert_eq!(differing_runs(100, &there, &new)[0], (BLOCK - 100, 3 * BLOCK - 100));
        assert_eq!(differing_runs(0, &there[..10], &new), [(0, 5 * BLOCK)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn differing_writes_end_in_what_was_asked(
            old in proptest::collection::vec(0u8..2, 0..40_000),
            flips in proptest::collection::vec(any::<prop::sample::Index>(), 0..5),
            offset in 0u64..9000,
        ) {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&old, 0).unwrap();
            let mut new = old.clone();
            new.push(1);
            for flip in flips {
                let at = flip.index(new.len());
                new[at] ^= 1;
            }
            let counts = write_differing(file.as_fd(), offset, &new).unwrap();
            let mut back = vec![9; new.len()];
            read_exact_at(file.as_fd(), offset, &mut back).unwrap();
            prop_assert_eq!(&back, &new);
            prop_assert_eq!(counts.written + counts.equal, new.len() as u64);
            let again = write_differing(file.as_fd(), offset, &new).unwrap();
            prop_assert_eq!(again.written, 0);
        }
    }

    #[test]
    fn zeros_are_written_and_seen() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![7; PIECE + 10_000], 0).unwrap();
        write_zeros(file.as_fd(), 3, PIECE as u64 + 5).unwrap();
        let mut back = vec![1; PIECE + 10_000];
        read_exact_at(file.as_fd(), 0, &mut back).unwrap();
        assert!(is_zero(&back[3..PIECE + 8]) && back[2] == 7 && back[PIECE + 8] == 7);
        assert!(!is_zero(&back) && is_zero(&[]));
        assert!(read_exact_at(file.as_fd(), 10_001, &mut back).is_err());
    }
}
