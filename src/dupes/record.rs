//! Files as records to be sorted: by length, then by inode, then by what was read.
//!
//! ```text
//! found    u64 length · u64 device · u64 inode · rest
//! read     u64 length · 32 digest · u64 device · u64 inode · rest
//! rest     u32 directory · i64 s, u32 ns modified · i64 s, u32 ns changed · u32 links · u8 sparse · name
//! ```
//!
//! Numbers are big-endian, so that they sort as bytes do.

use rustix::fs::Stat;

use super::paths::DirId;
use crate::error::{Error, Result};
use crate::format::tree::Time;
use crate::source::extents::is_sparse;

/// What was read of a file, or all of it, as one value.
pub type Digest = [u8; 32];

const FOUND_KEY_LEN: usize = 24;

/// A file, whatever its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Its length in bytes.
    pub len: u64,
    /// The file system's device number.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// When its content was modified.
    pub modified: Time,
    /// When its inode was changed.
    pub changed: Time,
    /// How many names it has.
    pub links: u32,
    /// Whether it takes less room than its length.
    pub is_sparse: bool,
}

impl Inode {
    /// As it is now.
    pub fn new(stat: &Stat) -> Self {
        Self {
            len: stat.st_size as u64,
            device: stat.st_dev,
            inode: stat.st_ino,
            modified: Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
            changed: Time { seconds: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 },
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            is_sparse: is_sparse(stat),
        }
    }

    /// Whether it is the same file and was not written to since. Blocks may be allocated later
    /// than bytes are written, so they do not count.
    pub fn is_unchanged(&self, stat: &Stat) -> bool {
        let now = Self { is_sparse: self.is_sparse, ..Self::new(stat) };
        *self == now
    }
}

/// One name of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRecord<'r> {
    /// The file.
    pub inode: Inode,
    /// The directory.
    pub dir: DirId,
    /// The name in it.
    pub name: &'r [u8],
}

impl<'r> FileRecord<'r> {
    /// Writes it as it was found.
    pub fn put_found(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.inode.len.to_be_bytes());
        self.put_rest(out);
    }

    /// Writes it with what was read.
    pub fn put_read(&self, digest: &Digest, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.inode.len.to_be_bytes());
        out.extend_from_slice(digest);
        self.put_rest(out);
    }

    fn put_rest(&self, out: &mut Vec<u8>) {
        let Inode { device, inode, modified, changed, links, is_sparse, .. } = self.inode;
        out.extend_from_slice(&device.to_be_bytes());
        out.extend_from_slice(&inode.to_be_bytes());
        out.extend_from_slice(&self.dir.to_be_bytes());
        for time in [modified, changed] {
            out.extend_from_slice(&time.seconds.to_be_bytes());
            out.extend_from_slice(&time.nanos.to_be_bytes());
        }
        out.extend_from_slice(&links.to_be_bytes());
        out.push(is_sparse.into());
        out.extend_from_slice(self.name);
    }

    /// Reads what [`Self::put_found`] wrote.
    pub fn of_found(record: &'r [u8]) -> Result<Self> {
        Self::read(record, None).ok_or(TOO_SHORT)
    }

    /// Reads what [`Self::put_read`] wrote.
    pub fn of_read(record: &'r [u8]) -> Result<(Self, Digest)> {
        let mut digest = Digest::default();
        let file = Self::read(record, Some(&mut digest)).ok_or(TOO_SHORT)?;
        Ok((file, digest))
    }

    fn read(record: &'r [u8], digest: Option<&mut Digest>) -> Option<Self> {
        let mut rest = record;
        let len = u64::from_be_bytes(take(&mut rest)?);
        if let Some(digest) = digest {
            *digest = take(&mut rest)?;
        }
        let device = u64::from_be_bytes(take(&mut rest)?);
        let inode = u64::from_be_bytes(take(&mut rest)?);
        let dir = u32::from_be_bytes(take(&mut rest)?);
        let modified = take_time(&mut rest)?;
        let changed = take_time(&mut rest)?;
        let links = u32::from_be_bytes(take(&mut rest)?);
        let [sparse] = take(&mut rest)?;
        let inode = Inode { len, device, inode, modified, changed, links, is_sparse: sparse != 0 };
        Some(Self { inode, dir, name: rest })
    }
}

const TOO_SHORT: Error = Error::Internal("a sorted record is too short");

/// Takes the first bytes of what is left.
pub fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*first)
}

/// Takes a time.
pub fn take_time(rest: &mut &[u8]) -> Option<Time> {
    Some(Time { seconds: i64::from_be_bytes(take(rest)?), nanos: u32::from_be_bytes(take(rest)?) })
}

/// The part of a found record that all names of one file share.
pub fn file_key(record: &[u8]) -> &[u8] {
    record.get(..FOUND_KEY_LEN).unwrap_or(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(len: u64) -> Inode {
        let time = |seconds| Time { seconds, nanos: 5 };
        Inode { len, device: 1, inode: 2, modified: time(-3), changed: time(4), links: 6, is_sparse: true }
    }

    #[test]
    fn records_are_read_as_written() {
        let file = FileRecord { inode: inode(7), dir: 8, name: b"n\xff" };
        let mut out = Vec::new();
        file.put_found(&mut out);
        assert_eq!(FileRecord::of_found(&out).unwrap(), file);
        assert!(FileRecord::of_found(&out[..40]).is_err());
        file.put_read(&[9; 32], &mut out);
        assert_eq!(FileRecord::of_read(&out).unwrap(), (file, [9; 32]));
    }

    #[test]
    fn length_sorts_first() {
        let written = |len| {
            let mut out = Vec::new();
            FileRecord { inode: inode(len), dir: 0, name: b"" }.put_found(&mut out);
            out
        };
        assert!(written(255) < written(256));
    }
}
