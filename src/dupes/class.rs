//! The files of one content, which may be more than fit in memory.
//!
//! ```text
//! record   u8 0 · file                            its bytes are its own
//!          u8 1 · u64 device · 32 digest · file   it shares them with whatever has these places
//! ```

use std::collections::BTreeSet;

use super::found::{File, put_file};
use super::record::Digest;
use super::sorter::{Sorted, Sorter, Temporary};
use crate::error::{Error, Result};

/// What stands before the file in a record.
const OWN: u8 = 0;
const SHARED: u8 = 1;
const SHARED_LEN: usize = 41;

/// A device, and where on it a file's bytes lie.
pub type Place = (u64, Digest);

/// Takes files in any order.
pub struct Class {
    sorter: Sorter,
    record: Vec<u8>,
    roots: BTreeSet<u32>,
    first: Option<(u64, u64)>,
    count: u64,
    names: u64,
    shares: bool,
}

impl Class {
    /// None yet.
    pub fn new(temporary: &Temporary) -> Self {
        Self {
            sorter: Sorter::of_class(temporary),
            record: Vec::new(),
            roots: BTreeSet::new(),
            first: None,
            count: 0,
            names: 0,
            shares: false,
        }
    }

    /// Adds a file; with the place of its bytes if others may have them too.
    pub fn add(&mut self, file: &File, place: Option<Place>) -> Result<()> {
        self.record.clear();
        match place {
            None => self.record.push(OWN),
            Some((device, digest)) => {
                self.record.push(SHARED);
                self.record.extend_from_slice(&device.to_be_bytes());
                self.record.extend_from_slice(&digest);
                self.shares = true;
            }
        }
        put_file(file, &mut self.record);
        self.sorter.push(&self.record)?;
        let number = (file.inode.device, file.inode.inode);
        self.first = Some(self.first.map_or(number, |first| first.min(number)));
        self.roots.extend(file.names.iter().map(|name| name.root));
        self.count += 1;
        self.names += file.names.len() as u64;
        Ok(())
    }

    /// The roots that have names of it.
    pub fn roots(&self) -> &BTreeSet<u32> {
        &self.roots
    }

    /// How many files it has.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All files, those first that have bytes of their own.
    pub fn finish(self) -> Result<Files> {
        let Self { sorter, first, count, names, shares, .. } = self;
        let (sorted, first) = (sorter.finish()?, first.unwrap_or_default());
        let mut files = Files { sorted, first, count, names, copies: count };
        if shares {
            files.copies = 0;
            let mut copies = 0;
            files.for_each(|copy, _| {
                copies = copy + 1;
                Ok(())
            })?;
            files.copies = copies;
        }
        Ok(files)
    }
}

/// The files of a class, which can be gone through more than once.
pub struct Files {
    sorted: Sorted,
    /// The least device and inode.
    pub first: (u64, u64),
    /// How many there are.
    pub count: u64,
    /// All their names.
    pub names: u64,
    /// How many of them take room of their own.
    pub copies: u64,
}

impl Files {
    /// Calls `each` with the number of each file's bytes, counted from 0, and the file as
    /// [`put_file`] wrote it.
    pub fn for_each(&self, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut records = self.sorted.records()?;
        let mut before: Option<Vec<u8>> = None;
        let mut count = 0;
        while let Some(record) = records.next()? {
            let head = if record.first() == Some(&SHARED) { SHARED_LEN } else { 1 };
            let (head, file) =
                record.split_at_checked(head).ok_or(Error::Internal("a record of a class is too short"))?;
            let is_known = head.first() == Some(&SHARED) && before.as_deref() == Some(head);
            if !is_known {
                count += 1;
                before = Some(head.to_vec());
            }
            each(count - 1, file)?;
        }
        Ok(())
    }
}
