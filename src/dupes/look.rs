//! Reading a part of many files, so that those in which it differs are told apart.
//!
//! Files are read in the order of their inodes, which on most file systems is about that of
//! their places on the disk, by more threads than there are processors: a cold disk wants many
//! requests in flight, and a warm one does not mind.

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{Advice, fadvise};

use super::Problems;
use super::heads::{END_LEN, WHOLE_MAX};
use super::open::Opener;
use super::record::{Digest, FileRecord, Inode};
use super::sorter::{Sorted, Sorter};
use crate::chunker::is_zero;
use crate::error::{Error, Result};
use crate::id::{Hasher, checksum};
use crate::observe::Stop;
use crate::source::extents::{data_from, read_at};

/// Threads that read.
pub const READERS: usize = 8;
/// Names that are read for at once, as records in memory.
const BATCH_LEN: usize = 8 << 20;
/// Files that a thread takes at once: neighbours on the disk stay with one thread.
const TAKE: usize = 16;

/// Which part is read.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    /// Short files whole, of others the ends.
    Head,
    /// From the first place to the second, but not the end of the file that the head had.
    Range(u64, u64),
}

/// What reading needs.
#[derive(Clone, Copy)]
pub struct Reading<'a> {
    /// Opens files.
    pub opener: &'a Opener<'a>,
    /// Hears of those that cannot be read.
    pub problems: &'a Problems<'a>,
    /// Ends it.
    pub stop: &'a Stop,
}

/// Files that are read together, with what was read of them before; and those that were read.
pub struct Batch<'a> {
    reading: Reading<'a>,
    part: Part,
    bytes: Vec<u8>,
    /// Where each record ends.
    ends: Vec<u32>,
    /// The first record of each file.
    files: Vec<u32>,
    last: Option<(u64, u64)>,
    record: Vec<u8>,
    out: Sorter,
}

impl<'a> Batch<'a> {
    /// None yet. What was read of a part goes to `out`.
    pub fn new(reading: Reading<'a>, part: Part, out: Sorter) -> Self {
        let (bytes, ends, files, record) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { reading, part, bytes, ends, files, last: None, record, out }
    }

    /// Adds a name; those of one file follow each other.
    pub fn add(&mut self, file: &FileRecord, before: &Digest) -> Result<()> {
        let number = (file.inode.device, file.inode.inode);
        if self.last.replace(number) != Some(number) {
            if self.bytes.len() >= BATCH_LEN {
                self.read()?;
            }
            self.files.push(self.ends.len() as u32);
        }
        file.put_read(before, &mut self.record);
        self.bytes.extend_from_slice(&self.record);
        self.ends.push(self.bytes.len() as u32);
        Ok(())
    }

    /// Reads what is left; all that could be read, by length and digest.
    pub fn finish(mut self) -> Result<Sorted> {
        self.read()?;
        self.out.finish()
    }

    fn record(&self, number: u32) -> Result<(FileRecord<'_>, Digest)> {
        let end = |number: usize| self.ends.get(number).map_or(0, |end| *end as usize);
        let start = (number as usize).checked_sub(1).map_or(0, end);
        FileRecord::of_read(self.bytes.get(start..end(number as usize)).unwrap_or_default())
    }

    /// Reads all, and begins anew.
    fn read(&mut self) -> Result<()> {
        let digests = self.digests()?;
        let mut record = Vec::new();
        let ends = self.files.iter().skip(1).copied().chain([self.ends.len() as u32]);
        for ((first, end), digest) in self.files.iter().zip(ends).zip(digests) {
            let Some(digest) = digest else { continue };
            for name in *first..end {
                self.record(name)?.0.put_read(&digest, &mut record);
                self.out.push(&record)?;
            }
        }
        self.bytes.clear();
        self.ends.clear();
        self.files.clear();
        Ok(())
    }

    fn digests(&self) -> Result<Vec<Option<Digest>>> {
        let mut order = Vec::with_capacity(self.files.len());
        for (number, first) in self.files.iter().enumerate() {
            let Inode { device, inode, .. } = self.record(*first)?.0.inode;
            order.push((device, inode, number as u32));
        }
        order.sort_unstable();
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(u32, Digest)>> {
            let mut reader = Reader::new(self.reading, self.part);
            let mut done = Vec::new();
            loop {
                let begin = next.fetch_add(TAKE, Ordering::Relaxed);
                let Some(part) = order.get(begin..order.len().min(begin + TAKE)).filter(|p| !p.is_empty())
                else {
                    return Ok(done);
                };
                for (.., number) in part {
                    self.reading.stop.check()?;
                    let first = self.files.get(*number as usize).copied().unwrap_or_default();
                    let (file, before) = self.record(first)?;
                    match reader.look(&file, &before) {
                        Ok(digest) => done.push((*number, digest)),
                        Err(error @ Error::Io { .. }) => self.reading.problems.error(&error),
                        Err(error) => return Err(error),
                    }
                }
            }
        };
        let mut digests = vec![None; self.files.len()];
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..READERS.min(order.len().div_ceil(TAKE))).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                let done = thread.join().map_err(|_| Error::Internal("a reader ended early"))??;
                for (number, digest) in done {
                    if let Some(slot) = digests.get_mut(number as usize) {
                        *slot = Some(digest);
                    }
                }
            }
            Ok::<_, Error>(())
        })?;
        Ok(digests)
    }
}

/// Reads a part of files, one after the other.
struct Reader<'a> {
    reading: Reading<'a>,
    part: Part,
    path: Vec<u8>,
    buffer: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(reading: Reading<'a>, part: Part) -> Self {
        Self { reading, part, path: Vec::new(), buffer: vec![0; WHOLE_MAX as usize] }
    }

    /// What was read of a file, and before.
    fn look(&mut self, file: &FileRecord, before: &Digest) -> Result<Digest> {
        let FileRecord { inode, dir, name } = *file;
        if inode.len == 0 {
            return Ok(checksum(&[]));
        }
        let opener = self.reading.opener;
        let opened = opener.open(dir, name, &mut self.path)?;
        let failed = |e| opener.failed(dir, name, "read", e);
        let digest = match self.part {
            Part::Head => {
                let wanted = self.fill(&opened, inode.len).map_err(failed)?;
                opener.counts.add(wanted as u64);
                checksum(&[self.buffer.get(..wanted).unwrap_or_default()])
            }
            Part::Range(at, to) => {
                let to = to.min(inode.len.saturating_sub(END_LEN));
                checksum(&[before, &self.range(&opened, file, at, to)?])
            }
        };
        opener.check(&opened, dir, name, &inode)?;
        Ok(digest)
    }

    /// How many bytes of the buffer count.
    fn fill(&mut self, file: &File, len: u64) -> std::io::Result<usize> {
        if len <= WHOLE_MAX {
            // Whether the file ends here is seen by the stat that follows.
            let bytes = self.buffer.get_mut(..len as usize).unwrap_or_default();
            return read_all(file, bytes, 0);
        }
        // Without advice the kernel would read ahead of what may not be wanted. Advice may be refused.
        let _ = fadvise(file, 0, None, Advice::Random);
        let end = END_LEN as usize;
        let (first, rest) = self.buffer.split_at_mut(end);
        let last = rest.get_mut(..end).unwrap_or_default();
        Ok(read_all(file, first, 0)? + read_all(file, last, len - END_LEN)?)
    }

    /// Of the pieces from `at` to `to` that hold more than zeros, and where they are: the same
    /// whether zeros are holes or not.
    fn range(&mut self, opened: &File, file: &FileRecord, mut at: u64, to: u64) -> Result<Digest> {
        let Reading { opener, stop, .. } = self.reading;
        let mut hasher = Hasher::plain();
        let piece = self.buffer.len() as u64;
        while at < to {
            stop.check()?;
            if file.inode.is_sparse {
                at += (data_from(opened, at, to) - at) / piece * piece;
            }
            let Some(bytes) = self.buffer.get_mut(..piece.min(to - at) as usize).filter(|b| !b.is_empty())
            else {
                break;
            };
            let read = read_all(opened, bytes, at);
            opener.counts.add(read.map_err(|e| opener.failed(file.dir, file.name, "read", e))? as u64);
            if !is_zero(bytes) {
                hasher.update(&at.to_be_bytes()).update(bytes);
            }
            at += bytes.len() as u64;
        }
        Ok(hasher.finish())
    }
}

fn read_all(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<usize> {
    match read_at(file, bytes, at)? {
        read if read < bytes.len() => Err(std::io::Error::other("it became shorter while it was read")),
        read => Ok(read),
    }
}
