//! The first look at files of one length: short ones are read whole, of others the ends.
//!
//! Files are read in the order of their inodes, which on most file systems is about that of
//! their places on the disk, by more threads than there are processors: a cold disk wants many
//! requests in flight, and a warm one does not mind.

use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{Advice, fadvise, fstat};

use super::Problems;
use super::open::Opener;
use super::record::{Digest, FileRecord, Inode, file_key};
use super::sorter::{Sorted, Sorter};
use crate::error::{Error, Result};
use crate::id::checksum;
use crate::observe::Stop;
use crate::source::extents::read_at;

/// Files up to this length are read whole at once: what a second visit costs is more than what
/// reading less would save.
pub const WHOLE_MAX: u64 = 64 << 10;
/// What is read at each end of longer ones.
pub const END_LEN: u64 = 16 << 10;
/// Threads that read.
const READERS: usize = 8;
/// Names that are read for at once, as records in memory.
const BATCH_LEN: usize = 8 << 20;
/// Files that a thread takes at once: neighbours on the disk stay with one thread.
const TAKE: usize = 16;

/// What came of the first look.
pub struct Heads {
    /// Files whose length others have too, by length and digest.
    pub files: Sorted,
    /// What was counted.
    pub counts: Counts,
}

/// What is known once lengths are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files whose length others have too.
    pub collisions: u64,
    /// The most files of one length.
    pub longest_set: u64,
    /// Names of files beyond the first of each.
    pub hard_links: u64,
}

/// Reads all files whose length is not theirs alone; `unique` is called with the others.
pub fn read(
    found: Sorted,
    opener: &Opener,
    mut files: Sorter,
    problems: &Problems,
    stop: &Stop,
    unique: &mut dyn FnMut(&FileRecord) -> Result<()>,
) -> Result<Heads> {
    let mut counts = Counts::default();
    let mut batch = Batch::default();
    let mut records = found.records()?;
    // Names of the last file, while no other of its length was met.
    let mut alone: Vec<Vec<u8>> = Vec::new();
    let mut before: Vec<u8> = Vec::new();
    let mut set = 0u64;
    while let Some(record) = records.next()? {
        let is_link = file_key(record) == file_key(&before) && !before.is_empty();
        let same_len = !before.is_empty() && record.get(..8) == before.get(..8);
        counts.hard_links += u64::from(is_link);
        match (is_link, same_len) {
            (true, _) if set > 1 => batch.name(record),
            (true, _) => alone.push(record.to_vec()),
            (false, true) => {
                alone.drain(..).enumerate().for_each(|(i, name)| batch.add(&name, i == 0));
                counts.collisions += if set == 1 { 2 } else { 1 };
                set += 1;
                if batch.bytes.len() >= BATCH_LEN {
                    batch.read(opener, &mut files, problems, stop)?;
                }
                batch.file(record);
            }
            (false, false) => {
                alone_in_length(&mut alone, unique)?;
                alone.push(record.to_vec());
                set = 1;
            }
        }
        counts.longest_set = counts.longest_set.max(set);
        before.clear();
        before.extend_from_slice(record);
    }
    alone_in_length(&mut alone, unique)?;
    // Where one batch holds all, this halves what is in memory while it is read.
    drop(records);
    drop(found);
    batch.read(opener, &mut files, problems, stop)?;
    Ok(Heads { files: files.finish()?, counts })
}

fn alone_in_length(
    names: &mut Vec<Vec<u8>>,
    unique: &mut dyn FnMut(&FileRecord) -> Result<()>,
) -> Result<()> {
    names.drain(..).try_for_each(|record| unique(&FileRecord::of_found(&record)?))
}

/// Records of files that are read together.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Where each record ends.
    ends: Vec<u32>,
    /// The first record of each file.
    files: Vec<u32>,
}

impl Batch {
    fn add(&mut self, record: &[u8], is_first: bool) {
        if is_first {
            self.files.push(self.ends.len() as u32);
        }
        self.bytes.extend_from_slice(record);
        self.ends.push(self.bytes.len() as u32);
    }

    fn file(&mut self, record: &[u8]) {
        self.add(record, true);
    }

    fn name(&mut self, record: &[u8]) {
        self.add(record, false);
    }

    fn record(&self, number: u32) -> Result<FileRecord<'_>> {
        let end = |number: usize| self.ends.get(number).map_or(0, |end| *end as usize);
        let start = (number as usize).checked_sub(1).map_or(0, end);
        FileRecord::of_found(self.bytes.get(start..end(number as usize)).unwrap_or_default())
    }

    /// Reads all, and begins anew.
    fn read(&mut self, opener: &Opener, out: &mut Sorter, problems: &Problems, stop: &Stop) -> Result<()> {
        let digests = self.digests(opener, problems, stop)?;
        let mut record = Vec::new();
        let ends = self.files.iter().skip(1).copied().chain([self.ends.len() as u32]);
        for ((first, end), digest) in self.files.iter().zip(ends).zip(digests) {
            let Some(digest) = digest else { continue };
            for name in *first..end {
                self.record(name)?.put_read(&digest, &mut record);
                out.push(&record)?;
            }
        }
        self.bytes.clear();
        self.ends.clear();
        self.files.clear();
        Ok(())
    }

    fn digests(&self, opener: &Opener, problems: &Problems, stop: &Stop) -> Result<Vec<Option<Digest>>> {
        let mut order = Vec::with_capacity(self.files.len());
        for (number, first) in self.files.iter().enumerate() {
            let Inode { device, inode, .. } = self.record(*first)?.inode;
            order.push((device, inode, number as u32));
        }
        order.sort_unstable();
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(u32, Digest)>> {
            let mut reader = Reader::new(opener);
            let mut done = Vec::new();
            loop {
                let begin = next.fetch_add(TAKE, Ordering::Relaxed);
                let Some(part) = order.get(begin..order.len().min(begin + TAKE)).filter(|p| !p.is_empty())
                else {
                    return Ok(done);
                };
                stop.check()?;
                for (.., number) in part {
                    let first = self.files.get(*number as usize).copied().unwrap_or_default();
                    match reader.head(&self.record(first)?) {
                        Ok(digest) => done.push((*number, digest)),
                        Err(error) => problems.error(&error),
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

/// Reads the heads of files, one after the other.
struct Reader<'o> {
    opener: &'o Opener<'o>,
    path: Vec<u8>,
    buffer: Vec<u8>,
}

impl<'o> Reader<'o> {
    fn new(opener: &'o Opener<'o>) -> Self {
        Self { opener, path: Vec::new(), buffer: vec![0; WHOLE_MAX as usize] }
    }

    fn head(&mut self, file: &FileRecord) -> Result<Digest> {
        let len = file.inode.len;
        if len == 0 {
            return Ok(checksum(&[]));
        }
        let opened = self.opener.open(file.dir, file.name, &mut self.path)?;
        let wanted =
            self.fill(&opened, len).map_err(|e| self.opener.failed(file.dir, file.name, "read", e))?;
        self.opener.counts.add(wanted as u64);
        self.opener.check(&opened, file.dir, file.name, &file.inode)?;
        Ok(checksum(&[self.buffer.get(..wanted).unwrap_or_default()]))
    }

    /// How many bytes of the buffer count.
    fn fill(&mut self, file: &File, len: u64) -> std::io::Result<usize> {
        if len <= WHOLE_MAX {
            // Whether the file ends here is seen by the stat that follows.
            let bytes = self.buffer.get_mut(..len as usize).unwrap_or_default();
            return short(read_at(file, bytes, 0)?, bytes.len());
        }
        // Without advice the kernel would read ahead of what may not be wanted. Advice may be refused.
        let _ = fadvise(file, 0, None, Advice::Random);
        let end = END_LEN as usize;
        let (first, rest) = self.buffer.split_at_mut(end);
        short(read_at(file, first, 0)?, end)?;
        let last = rest.get_mut(..end).unwrap_or_default();
        short(read_at(file, last, len - END_LEN)?, end)?;
        Ok(2 * end)
    }
}

fn short(read: usize, wanted: usize) -> std::io::Result<usize> {
    if read < wanted { Err(std::io::Error::other("it became shorter while it was read")) } else { Ok(read) }
}

/// Makes sure that what was read is what was found.
pub fn same_as_found(file: &File, inode: &Inode) -> bool {
    fstat(file).is_ok_and(|stat| inode.is_unchanged(&stat))
}
