//! Which ranges of an open file hold data, and reading them.
//!
//! A hole counts where it covers whole blocks of 4096 bytes or reaches the end of the file;
//! smaller ones are data. So every range begins at a multiple of the block.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, FileType, SeekFrom, Stat, fadvise, fstat, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::format::BLOCK;

/// A range of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Span {
    /// To be read.
    Data(Range<u64>),
    /// Not allocated.
    Hole(Range<u64>),
}

/// Lists the spans of a file from its start to its end, holes and data in turn.
pub struct Spans<'f> {
    file: BorrowedFd<'f>,
    len: u64,
    at: u64,
    block: u64,
    /// False once the file system has said that it does not know about holes.
    knows_holes: bool,
    /// What it said last. It finds an end by going through all up to it, so it is not asked again
    /// for each range.
    data: Range<u64>,
    hole: Range<u64>,
    #[cfg(test)]
    asked: u64,
}

impl<'f> Spans<'f> {
    /// Of the first `len` bytes. With `look_for_holes` off, all of them are data.
    pub fn new(file: &'f File, len: u64, look_for_holes: bool) -> Self {
        Self::within(file.as_fd(), 0..len, BLOCK, look_for_holes)
    }

    /// Of a range that begins at a multiple of `block` or amid data; a hole counts where it covers whole blocks
    /// of that many bytes, or reaches the end of the range.
    pub fn within(file: BorrowedFd<'f>, range: Range<u64>, block: u64, look_for_holes: bool) -> Self {
        Self {
            file,
            len: range.end,
            at: range.start,
            block,
            knows_holes: look_for_holes,
            data: 0..0,
            hole: 0..0,
            #[cfg(test)]
            asked: 0,
        }
    }

    /// Goes on with another range of the same file.
    pub fn over(&mut self, range: Range<u64>) -> &mut Self {
        (self.at, self.len) = (range.start, range.end);
        self
    }

    /// The first byte of data at or behind `from`; the range's end if there is none.
    fn data_from(&mut self, from: u64) -> u64 {
        if !self.knows_holes || from >= self.len || self.data.contains(&from) {
            return from.min(self.len);
        }
        if !self.hole.contains(&from) {
            match self.seek(SeekFrom::Data(from)) {
                Ok(at) => self.hole = from..at.max(from),
                Err(Errno::NXIO) => self.hole = from..u64::MAX,
                Err(_) => {
                    self.knows_holes = false;
                    return from;
                }
            }
        }
        self.hole.end.min(self.len)
    }

    /// The first hole behind `from`, where data is; the range's end if there is none before that.
    fn hole_from(&mut self, from: u64) -> u64 {
        if self.knows_holes && !self.data.contains(&from) {
            // Behind the file's end there is one, unless somebody has cut it short meanwhile.
            let end = self.seek(SeekFrom::Hole(from)).unwrap_or(u64::MAX);
            self.data = from..end.max(from);
        }
        if self.knows_holes { self.data.end.min(self.len) } else { self.len }
    }

    fn seek(&mut self, to: SeekFrom) -> rustix::io::Result<u64> {
        #[cfg(test)]
        {
            self.asked += 1;
        }
        seek(self.file, to)
    }

    /// Where the data at `start` ends: holes that are too small to count are taken along.
    fn data_end(&mut self, start: u64) -> u64 {
        let mut end = start;
        loop {
            let hole = self.hole_from(end);
            end = hole.next_multiple_of(self.block).min(self.len);
            let next = self.data_from(end);
            if end == self.len || next / self.block * self.block > end || next == self.len {
                return end;
            }
            end = next.max(end + 1).min(self.len);
        }
    }
}

impl Iterator for Spans<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        if self.at >= self.len {
            return None;
        }
        let start = self.at;
        let data = self.data_from(start);
        let hole_end = if data == self.len { data } else { data / self.block * self.block };
        if hole_end > start {
            self.at = hole_end;
            return Some(Span::Hole(start..hole_end));
        }
        self.at = self.data_end(data);
        Some(Span::Data(start..self.at))
    }
}

/// Where data begins at or behind `at`, `end` if not before that; `at` where the file system does
/// not tell.
pub fn data_from(file: impl AsFd, at: u64, end: u64) -> u64 {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => data.clamp(at, end),
        Err(Errno::NXIO) => end,
        Err(_) => at,
    }
}

/// Whether a file takes less room than its length, so that asking for holes may pay.
pub fn is_sparse(stat: &Stat) -> bool {
    (stat.st_blocks as u64) * 512 < stat.st_size as u64
}

/// The length of a file or block device, as the kernel says.
pub fn device_len(device: &File) -> std::io::Result<u64> {
    Ok(seek(device, SeekFrom::End(0))?)
}

/// Whether a file is the same and was not written to between two looks.
pub fn same(a: &Stat, b: &Stat) -> bool {
    (a.st_ino, a.st_size, a.st_mtime, a.st_mtime_nsec, a.st_ctime, a.st_ctime_nsec)
        == (b.st_ino, b.st_size, b.st_mtime, b.st_mtime_nsec, b.st_ctime, b.st_ctime_nsec)
}

/// Reads at `offset` until `buffer` is full or the file ends; how much was read.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    fill(buffer, offset, |rest, at| file.read_at(rest, at))
}

/// Reads like [`read_at`] what is read only once: what was not in memory before does not stay there, so
/// that a night does not push out what others work with, and the kernel needs no fresh pages for it.
/// It pays for ranges that begin and end at multiples of 2 MiB, the kernel's largest page, or with the
/// file's data: a page that was read in part is dropped whole.
pub fn read_once_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    fill(buffer, offset, |rest, at| match preadv2(file, &mut [IoSliceMut::new(rest)], at, DONT_CACHE) {
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => read_and_drop(file, rest, at),
        other => Ok(other?),
    })
}

/// Block devices do not know the flag. Of these, what was there before goes too: file systems keep
/// their files elsewhere.
fn read_and_drop(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let read = file.read_at(buffer, offset)?;
    if fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice) {
        // It is advice, and may be refused.
        let _ = fadvise(file, offset, NonZeroU64::new(read as u64), Advice::DontNeed);
    }
    Ok(read)
}

/// `RWF_DONTCACHE` of linux/fs.h, since Linux 6.14 and not for all file systems.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

fn fill(
    mut buffer: &mut [u8],
    mut offset: u64,
    read: impl Fn(&mut [u8], u64) -> std::io::Result<usize>,
) -> std::io::Result<usize> {
    let wanted = buffer.len();
    while !buffer.is_empty() {
        match read(buffer, offset) {
            Ok(0) => break,
            Ok(len) => {
                buffer = &mut buffer[len..];
                offset += len as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(wanted - buffer.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spans(file: &File, len: u64) -> Vec<Span> {
        Spans::new(file, len, true).collect()
    }

    fn check(layout: &[(u64, u64)], len: u64) {
        let file = tempfile::tempfile_in(".").unwrap();
        file.set_len(len).unwrap();
        for &(at, count) in layout {
            let count = count.min(len.saturating_sub(at));
            file.write_all_at(&vec![1; count as usize], at).unwrap();
        }
        let mut at = 0;
        let mut before_was_data = None;
        for span in spans(&file, len) {
            let (range, data) = match span {
                Span::Data(range) => (range, true),
                Span::Hole(range) => (range, false),
            };
            assert_eq!(range.start, at);
            assert!(range.end > range.start && range.start % BLOCK == 0);
            assert_ne!(before_was_data, Some(data), "neighbours of one kind");
            before_was_data = Some(data);
            if !data {
                let mut bytes = vec![9; (range.end - range.start) as usize];
                assert_eq!(read_at(&file, &mut bytes, range.start).unwrap(), bytes.len());
                assert!(bytes.iter().all(|b| *b == 0), "data in a hole");
            }
            at = range.end;
        }
        assert_eq!(at, len);
    }

    #[test]
    fn empty_full_and_sparse() {
        check(&[], 0);
        check(&[], 1);
        check(&[], 10 << 20);
        check(&[(0, 100)], 100);
        check(&[(1 << 20, 6)], 3 << 20);
        check(&[(0, 1), (1 << 20, 1)], (1 << 20) + 1);
    }

    #[test]
    fn a_huge_hole_takes_no_time() {
        let file = tempfile::tempfile_in(".").unwrap();
        file.set_len(8 << 40).unwrap();
        file.write_all_at(&[1; 4096], 4 << 40).unwrap();
        assert_eq!(spans(&file, 8 << 40).len(), 3);
    }

    /// Whatever the number of ranges, the file system is asked once for each end.
    #[test]
    fn ranges_of_one_file_are_asked_for_once() {
        const PART: u64 = 4 << 20;
        let file = tempfile::tempfile_in(".").unwrap();
        file.set_len(4 * PART).unwrap();
        file.write_all_at(&vec![1; PART as usize], PART).unwrap();
        file.write_all_at(&vec![1; PART as usize], 3 * PART).unwrap();
        let mut spans = Spans::new(&file, 0, true);
        let mut found = [0, 0];
        for at in (0..4 * PART).step_by(2 * BLOCK as usize) {
            for span in spans.over(at..at + BLOCK) {
                let (kind, range) = match span {
                    Span::Hole(range) => (0, range),
                    Span::Data(range) => (1, range),
                };
                assert_eq!(range, at..at + BLOCK);
                assert_eq!(kind, at / PART % 2);
                found[kind as usize] += 1;
            }
        }
        assert_eq!(found, [PART / BLOCK, PART / BLOCK]);
        // Two holes, two stretches of data; and once where a hole ends between two ranges.
        assert!((4..=6).contains(&spans.asked), "{}", spans.asked);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        #[test]
        fn any_layout(layout in proptest::collection::vec((0u64..600_000, 1u64..20_000), 0..12), len in 0u64..700_000) {
            check(&layout, len);
        }
    }
}
