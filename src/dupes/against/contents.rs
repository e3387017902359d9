//! Contents of snapshots and live files, both in the order of their lengths.

use crate::dupes::compare::Member;
use crate::dupes::paths::DirId;
use crate::dupes::record::{Digest, FileRecord, take};
use crate::dupes::sorter::{Records, Sorted};
use crate::error::{Error, Result};
use crate::format::map::{Extent, Map};
use crate::format::wire::Reader;
use crate::id::ChunkId;
use crate::repo::catalog::Catalog;
use crate::repo::nodes::Extents;

/// A content of a snapshot.
pub struct Content {
    /// Its directory.
    pub dir: DirId,
    /// Its name there.
    pub name: Vec<u8>,
    /// What it is made of.
    pub map: Map,
    /// Where its first chunk begins, and which that is; `None` if all is zeros.
    pub first: Option<(u64, ChunkId)>,
}

/// Goes through contents by length.
pub struct Contents<'s> {
    catalog: &'s Catalog,
    records: Records<'s>,
    /// The next record, if it was read already.
    next: Option<(u64, Digest, Vec<u8>)>,
}

impl<'s> Contents<'s> {
    /// From the shortest on.
    pub fn new(catalog: &'s Catalog, sorted: &'s Sorted) -> Result<Self> {
        let mut contents = Self { catalog, records: sorted.records()?, next: None };
        contents.advance()?;
        Ok(contents)
    }

    fn advance(&mut self) -> Result<()> {
        let short = Error::Internal("a sorted record is too short");
        self.next = match self.records.next()? {
            None => None,
            Some(mut record) => {
                let (len, digest) = take(&mut record).zip(take(&mut record)).ok_or(short)?;
                Some((u64::from_be_bytes(len), digest, record.to_vec()))
            }
        };
        Ok(())
    }

    /// The distinct contents of a length, in the order of their first chunks; lengths are asked for in
    /// ascending order.
    pub fn of_len(&mut self, len: u64) -> Result<Vec<Content>> {
        let mut out = Vec::new();
        let mut before = None;
        while let Some((next, digest, rest)) = self.next.take_if(|(next, ..)| *next <= len) {
            if next == len && before.replace(digest) != Some(digest) {
                out.push(self.content(&rest)?);
            }
            self.advance()?;
        }
        // There may be millions, and each file looks for those that begin as it does.
        out.sort_by_key(|content| content.first);
        Ok(out)
    }

    fn content(&self, mut rest: &[u8]) -> Result<Content> {
        let short = || Error::Internal("a sorted record is too short");
        let rest = &mut rest;
        let _root: [u8; 4] = take(rest).ok_or_else(short)?;
        let dir = take(rest).map(u32::from_be_bytes).ok_or_else(short)?;
        let name_len = take(rest).map(u32::from_be_bytes).ok_or_else(short)?;
        let (name, map) = rest.split_at_checked(name_len as usize).ok_or_else(short)?;
        let map = Map::read(&mut Reader::new(map)).map_err(|_| short())?;
        let first = Extents::of(self.catalog, &map).find_map(|extent| match extent {
            Ok((offset, Extent::Data { id, .. })) => Some(Ok((offset, id))),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        Ok(Content { dir, name: name.to_vec(), first: first.transpose()?, map })
    }
}

/// Goes through found records file by file.
pub struct Members<'s> {
    records: Records<'s>,
    /// The first name of the next file.
    next: Option<Member>,
}

impl<'s> Members<'s> {
    /// From the shortest on.
    pub fn new(sorted: &'s Sorted) -> Result<Self> {
        Ok(Self { records: sorted.records()?, next: None })
    }

    /// The next file with all its names.
    pub fn next(&mut self) -> Result<Option<Member>> {
        loop {
            let Some(record) = self.records.next()? else { return Ok(self.next.take()) };
            if let Some(file) = Member::join(&mut self.next, &FileRecord::of_found(record)?) {
                return Ok(Some(file));
            }
        }
    }
}
