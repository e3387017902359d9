//! Sorting more records than fit in memory.
//!
//! Records are byte strings, ordered as such. Up to a bound they are sorted where they are;
//! beyond it sorted runs go to a file without a name, and are merged when they are read.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::error::{Error, IoContext, Result};

/// Bytes that one sorter holds before it writes a run.
const MEMORY_MAX: usize = 48 << 20;
/// The part of that which a sorter has for the files of one content: beside it others sort.
const CLASS_SHARE: usize = 3;
/// Bytes in memory for reading all runs of one sorter, and the least for each.
const MERGE_MEMORY: usize = 16 << 20;
const RUN_BUFFER_MIN: usize = 16 << 10;
/// The longest record.
const RECORD_LEN_MAX: usize = 64 << 20;

/// Where what does not fit in memory goes.
#[derive(Debug, Clone)]
pub struct Temporary {
    folder: PathBuf,
    /// Bytes that one sorter holds.
    memory_max: usize,
}

impl Temporary {
    /// To a file in `folder`, beyond 48 MiB.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), memory_max: MEMORY_MAX }
    }

    /// The same with another bound, in bytes.
    #[cfg(test)]
    pub fn with_memory(folder: impl Into<PathBuf>, memory_max: usize) -> Self {
        Self { folder: folder.into(), memory_max }
    }
}

/// Takes records in any order.
pub struct Sorter {
    folder: PathBuf,
    memory_max: usize,
    run: Run,
    spilled: Option<Spilled>,
}

/// Records that are in memory, each after its length.
#[derive(Default)]
struct Run {
    bytes: Vec<u8>,
    /// The first bytes of each record, which mostly decide, and where it begins.
    order: Vec<(u64, u32)>,
}

struct Spilled {
    file: BufWriter<File>,
    len: u64,
    /// Where each run ends.
    ends: Vec<u64>,
}

impl Run {
    fn push(&mut self, record: &[u8]) {
        self.order.push((prefix(record), self.bytes.len() as u32));
        self.bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(record);
    }

    fn memory(&self) -> usize {
        self.bytes.len() + self.order.len() * size_of::<(u64, u32)>()
    }

    fn framed(&self, at: u32) -> &[u8] {
        let rest = self.bytes.get(at as usize..).unwrap_or_default();
        let len = rest.first_chunk().map_or(0, |len| u32::from_le_bytes(*len) as usize);
        rest.get(..4 + len).unwrap_or_default()
    }

    fn record(&self, number: usize) -> Option<&[u8]> {
        self.order.get(number).and_then(|(_, at)| self.framed(*at).get(4..))
    }

    fn sort(&mut self) {
        let mut order = std::mem::take(&mut self.order);
        order.sort_unstable_by(|a, b| {
            a.0.cmp(&b.0).then_with(|| self.framed(a.1)[4..].cmp(&self.framed(b.1)[4..]))
        });
        self.order = order;
    }
}

/// The first eight bytes as a number of the same order.
fn prefix(record: &[u8]) -> u64 {
    let mut first = [0; 8];
    let len = record.len().min(8);
    first[..len].copy_from_slice(&record[..len]);
    u64::from_be_bytes(first)
}

impl Sorter {
    /// With all of the memory.
    pub fn new(Temporary { folder, memory_max }: &Temporary) -> Self {
        Self { folder: folder.clone(), memory_max: *memory_max, run: Run::default(), spilled: None }
    }

    /// For the files of one content.
    pub fn of_class(temporary: &Temporary) -> Self {
        Self { memory_max: temporary.memory_max / CLASS_SHARE, ..Self::new(temporary) }
    }

    /// Takes a record.
    pub fn push(&mut self, record: &[u8]) -> Result<()> {
        if record.len() > RECORD_LEN_MAX {
            return Err(Error::Internal("a record is too long to be sorted"));
        }
        if !self.run.order.is_empty() && self.run.memory() + record.len() + 20 > self.memory_max {
            self.spill()?;
        }
        self.run.push(record);
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        let spilled = match &mut self.spilled {
            Some(spilled) => spilled,
            none => none.insert(Spilled {
                file: BufWriter::with_capacity(256 << 10, nameless(&self.folder)?),
                len: 0,
                ends: Vec::new(),
            }),
        };
        self.run.sort();
        for (_, at) in &self.run.order {
            let framed = self.run.framed(*at);
            spilled.file.write_all(framed).at("write a temporary file in", &self.folder)?;
            spilled.len += framed.len() as u64;
        }
        spilled.ends.push(spilled.len);
        self.run.bytes.clear();
        self.run.order.clear();
        Ok(())
    }

    /// All records, sorted.
    pub fn finish(mut self) -> Result<Sorted> {
        if self.spilled.is_none() {
            self.run.sort();
            return Ok(Sorted::Memory(self.run));
        }
        self.spill()?;
        let Some(Spilled { file, ends, .. }) = self.spilled else {
            return Err(Error::Internal("a sorter lost its runs"));
        };
        let file =
            file.into_inner().map_err(|e| e.into_error()).at("write a temporary file in", &self.folder)?;
        Ok(Sorted::Spilled(file, ends, self.folder))
    }
}

/// A file in `folder` that is gone when it is closed, however that comes about.
fn nameless(folder: &Path) -> Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(file) = openat(CWD, folder, flags | OFlags::TMPFILE, mode) {
        return Ok(file.into());
    }
    // Not every file system can.
    let random = getrandom::u64().map_err(std::io::Error::other).at("make a temporary file in", folder)?;
    let path = folder.join(format!(".varv-sort-{random:016x}"));
    let file = openat(CWD, &path, flags | OFlags::CREATE | OFlags::EXCL, mode).at("make", &path)?;
    std::fs::remove_file(&path).at("remove", &path)?;
    Ok(file.into())
}

/// Records in order, which can be gone through more than once.
pub enum Sorted {
    /// They fit.
    #[allow(private_interfaces)]
    Memory(Run),
    /// Runs in a file, where each ends, and the folder that it is in.
    Spilled(File, Vec<u64>, PathBuf),
}

impl Sorted {
    /// None.
    pub fn empty() -> Self {
        Sorted::Memory(Run::default())
    }

    /// From the first record on.
    pub fn records(&self) -> Result<Records<'_>> {
        match self {
            Sorted::Memory(run) => Ok(Records::Memory(run, 0)),
            Sorted::Spilled(file, ends, folder) => {
                let buffer_len = (MERGE_MEMORY / ends.len()).max(RUN_BUFFER_MIN);
                let starts = std::iter::once(0).chain(ends.iter().copied());
                let mut heads = BinaryHeap::with_capacity(ends.len());
                for (start, end) in starts.zip(ends) {
                    let mut run = RunReader::new(file, start, *end, buffer_len);
                    if run.advance().at("read a temporary file in", folder)? {
                        heads.push(run);
                    }
                }
                Ok(Records::Merged { heads, is_first: true, folder })
            }
        }
    }
}

/// Hands records out one by one.
pub enum Records<'s> {
    /// From memory.
    #[allow(private_interfaces)]
    Memory(&'s Run, usize),
    /// From runs.
    #[allow(private_interfaces)]
    Merged {
        /// The runs, that with the least record first.
        heads: BinaryHeap<RunReader<'s>>,
        /// Whether none was handed out yet.
        is_first: bool,
        /// Where the file is.
        folder: &'s Path,
    },
}

impl Records<'_> {
    /// The next record.
    pub fn next(&mut self) -> Result<Option<&[u8]>> {
        match self {
            Records::Memory(run, number) => {
                *number += 1;
                Ok(run.record(*number - 1))
            }
            Records::Merged { heads, is_first, folder } => {
                if !std::mem::replace(is_first, false)
                    && let Some(mut head) = heads.peek_mut()
                    && !head.advance().at("read a temporary file in", folder)?
                {
                    PeekMut::pop(head);
                }
                Ok(heads.peek().map(RunReader::record))
            }
        }
    }
}

struct RunReader<'s> {
    file: &'s File,
    at: u64,
    end: u64,
    buffer_len: usize,
    buffer: Vec<u8>,
    /// The current record in the buffer.
    record: std::ops::Range<usize>,
}

impl<'s> RunReader<'s> {
    fn new(file: &'s File, at: u64, end: u64, buffer_len: usize) -> Self {
        Self { file, at, end, buffer_len, buffer: Vec::new(), record: 0..0 }
    }

    fn record(&self) -> &[u8] {
        &self.buffer[self.record.clone()]
    }

    /// Goes to the next record; false behind the last.
    fn advance(&mut self) -> std::io::Result<bool> {
        let mut begin = self.record.end;
        if !self.holds(&mut begin, 4)? {
            return Ok(false);
        }
        let len = self.buffer[begin..].first_chunk().map_or(0, |len| u32::from_le_bytes(*len) as usize);
        if !self.holds(&mut begin, 4 + len)? {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.record = begin + 4..begin + 4 + len;
        Ok(true)
    }

    /// Whether so many bytes from `begin` on are in the buffer, after reading them if need be.
    fn holds(&mut self, begin: &mut usize, len: usize) -> std::io::Result<bool> {
        if self.buffer.len() - *begin >= len {
            return Ok(true);
        }
        self.buffer.drain(..*begin);
        *begin = 0;
        self.record = 0..0;
        let have = self.buffer.len();
        let wanted = (self.buffer_len.max(len) - have).min((self.end - self.at) as usize);
        self.buffer.resize(have + wanted, 0);
        self.file.read_exact_at(&mut self.buffer[have..], self.at)?;
        self.at += wanted as u64;
        Ok(self.buffer.len() >= len)
    }
}

/// The heap has its greatest first: that is the run with the least record.
impl Ord for RunReader<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.record().cmp(self.record())
    }
}

impl PartialOrd for RunReader<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for RunReader<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.record() == other.record()
    }
}

impl Eq for RunReader<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted(records: &[Vec<u8>], memory: usize) -> Vec<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::new(&Temporary::with_memory(folder.path(), memory));
        records.iter().for_each(|record| sorter.push(record).unwrap());
        let sorted = sorter.finish().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has a name");
        let read = || {
            let mut records = sorted.records().unwrap();
            let mut all = Vec::new();
            while let Some(record) = records.next().unwrap() {
                all.push(record.to_vec());
            }
            all
        };
        assert_eq!(read(), read());
        read()
    }

    #[test]
    fn long_and_empty_records() {
        let records = [vec![7; 100_000], Vec::new(), vec![7; 99_999], vec![1; 3]];
        let expected = [Vec::new(), vec![1; 3], vec![7; 99_999], vec![7; 100_000]];
        for memory in [1, 1000, 1 << 20] {
            assert_eq!(sorted(&records, memory), expected);
        }
        assert!(sorted(&[], 1).is_empty());
    }

    proptest! {
        #[test]
        fn sorts_as_in_memory(records: Vec<Vec<u8>>, memory in 1usize..500) {
            let mut expected = records.clone();
            expected.sort();
            prop_assert_eq!(sorted(&records, memory), expected);
        }
    }
}
