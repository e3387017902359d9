//! What was found: groups of equal files, those that waste most first.
//!
//! Groups are sorted like the rest: a group of a million files is read back file by file.
//!
//! ```text
//! key      u64 !wasted · u64 device · u64 inode, both of the group's first file · u8 kind
//! group    key, kind 0 · varint length, data, files, names, copies, implied
//! file     key, kind 1 · u32 root · path · u8 0 · inode · further names · varint copy
//! unique   key, all but the kind 255, kind 2 · as a file
//! ```

use super::class::Files;
use super::record::Inode;
use super::sorter::{Sorted, Sorter};
use crate::error::{Error, Result};
use crate::format::tree::Time;
use crate::format::wire::{Malformed, Reader, put_bytes, put_varint};

/// Equal files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Group {
    /// The length of each.
    pub len: u64,
    /// How much of it is not holes.
    pub data: u64,
    /// Files, each counted once whatever its names.
    pub files: u64,
    /// All their names.
    pub names: u64,
    /// How many of them take room of their own.
    pub copies: u64,
    /// Bytes that one copy alone would not take.
    pub wasted: u64,
    /// Whether it follows from equal directories that are told.
    pub implied: bool,
}

/// A name: the root's number and the path below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Which root.
    pub root: u32,
    /// Below it.
    pub path: Vec<u8>,
}

/// A file of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// What was known of it when it was compared.
    pub inode: Inode,
    /// Files with the same number share their bytes on the disk.
    pub copy: u64,
    /// Its names, in order; the first one stands for it.
    pub names: Vec<Name>,
}

/// Listens to what was found.
pub trait Sink {
    /// A group begins.
    fn group(&mut self, group: &Group) -> Result<()>;
    /// A file of it.
    fn file(&mut self, file: &File) -> Result<()>;
    /// It ends.
    fn end(&mut self) -> Result<()>;
    /// A file that has no equal; after all groups.
    fn unique(&mut self, file: &File) -> Result<()>;
}

const GROUP: u8 = 0;
const FILE: u8 = 1;
const UNIQUE: u8 = 2;
const KEY_LEN: usize = 25;

/// Collects groups.
pub struct Findings {
    sorter: Sorter,
    record: Vec<u8>,
}

impl Findings {
    /// Sorted by this.
    pub fn new(sorter: Sorter) -> Self {
        Self { sorter, record: Vec::new() }
    }

    /// Adds a group of files with so many bytes, `data` of which are not holes.
    pub fn add(&mut self, (len, data): (u64, u64), implied: bool, files: &Files) -> Result<Group> {
        let Files { first, count, names, copies, .. } = *files;
        let wasted = data.saturating_mul(copies.saturating_sub(1));
        self.key(wasted, first, GROUP);
        for number in [len, data, count, names, copies, implied.into()] {
            put_varint(&mut self.record, number);
        }
        self.sorter.push(&self.record)?;
        files.for_each(|copy, file| {
            self.key(wasted, first, FILE);
            self.file(file, copy)
        })?;
        Ok(Group { len, data, files: count, names, copies, wasted, implied })
    }

    /// Adds a file that has no equal.
    pub fn add_unique(&mut self, file: &File) -> Result<()> {
        self.key(0, (u64::MAX, u64::MAX), UNIQUE);
        let mut written = Vec::new();
        put_file(file, &mut written);
        self.file(&written, 0)
    }

    fn key(&mut self, wasted: u64, (device, inode): (u64, u64), kind: u8) {
        self.record.clear();
        for number in [!wasted, device, inode] {
            self.record.extend_from_slice(&number.to_be_bytes());
        }
        self.record.push(kind);
    }

    fn file(&mut self, file: &[u8], copy: u64) -> Result<()> {
        self.record.extend_from_slice(file);
        put_varint(&mut self.record, copy);
        self.sorter.push(&self.record)
    }

    /// All of them, sorted.
    pub fn finish(self) -> Result<Found> {
        Ok(Found(self.sorter.finish()?))
    }
}

/// Appends a file, all but the number of its bytes. In order these are the files in the order of
/// their first names.
pub fn put_file(file: &File, out: &mut Vec<u8>) {
    let Some((first, further)) = file.names.split_first() else { return };
    out.extend_from_slice(&first.root.to_be_bytes());
    out.extend_from_slice(&first.path);
    out.push(0);
    let Inode { len, device, inode, modified, changed, links, is_sparse } = file.inode;
    let times = [modified, changed].map(|time| [time.seconds as u64, time.nanos.into()]);
    let numbers = [len, device, inode, links.into(), is_sparse.into()];
    for number in times.into_iter().flatten().chain(numbers) {
        put_varint(out, number);
    }
    put_varint(out, further.len() as u64);
    for name in further {
        put_varint(out, name.root.into());
        put_bytes(out, &name.path);
    }
}

/// Groups of equal files, sorted.
pub struct Found(Sorted);

impl Found {
    /// Tells all; may be asked for more than once.
    pub fn tell(&self, sink: &mut dyn Sink) -> Result<()> {
        let wrong = |_: Malformed| Error::Internal("a finding cannot be read back");
        let mut records = self.0.records()?;
        let mut is_open = false;
        while let Some(record) = records.next()? {
            let Some((key, rest)) = record.split_at_checked(KEY_LEN) else { continue };
            let kind = key.last().copied().unwrap_or_default();
            if kind != FILE && std::mem::replace(&mut is_open, kind == GROUP) {
                sink.end()?;
            }
            match kind {
                GROUP => sink.group(&read_group(key, rest).map_err(wrong)?)?,
                FILE => sink.file(&read_file(rest).map_err(wrong)?)?,
                _ => sink.unique(&read_file(rest).map_err(wrong)?)?,
            }
        }
        if is_open { sink.end() } else { Ok(()) }
    }
}

fn read_group(key: &[u8], rest: &[u8]) -> Result<Group, Malformed> {
    let wasted = key.first_chunk().map_or(0, |bytes| !u64::from_be_bytes(*bytes));
    let mut reader = Reader::new(rest);
    let [len, data, files, names, copies, implied] = numbers(&mut reader)?;
    Ok(Group { len, data, files, names, copies, wasted, implied: implied != 0 })
}

fn read_file(rest: &[u8]) -> Result<File, Malformed> {
    let short = Malformed("a finding is too short");
    let (root, rest) = rest.split_first_chunk().ok_or(short)?;
    let end = rest.iter().position(|&byte| byte == 0).ok_or(Malformed("a finding has no path"))?;
    let (path, rest) = rest.split_at(end);
    let mut names = vec![Name { root: u32::from_be_bytes(*root), path: path.to_vec() }];
    let mut reader = Reader::new(rest.get(1..).unwrap_or_default());
    let [s, ns, changed_s, changed_ns, len, device, inode, links, sparse] = numbers(&mut reader)?;
    let time = |seconds: u64, nanos: u64| Time { seconds: seconds as i64, nanos: nanos as u32 };
    let (modified, changed) = (time(s, ns), time(changed_s, changed_ns));
    let inode = Inode { len, device, inode, modified, changed, links: links as u32, is_sparse: sparse != 0 };
    for _ in 0..reader.count(1)? {
        names.push(Name { root: reader.varint()? as u32, path: reader.bytes()?.to_vec() });
    }
    Ok(File { inode, copy: reader.varint()?, names })
}

fn numbers<const N: usize>(reader: &mut Reader) -> Result<[u64; N], Malformed> {
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = reader.varint()?;
    }
    Ok(numbers)
}
