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

/// Contents that begin alike and are in memory at once; each file that waits may have others.
pub const ALIKE_MAX: usize = 1 << 13;

const TOO_SHORT: Error = Error::Internal("a sorted record is too short");

/// What a content or a file begins with, as a part of records.
pub type Beginning = Digest;

/// Of where the first chunk begins, and which that is; `None` if all is zeros.
pub fn beginning(first: Option<(u64, ChunkId)>) -> Beginning {
    let mut bytes = Beginning::default();
    if let Some((offset, id)) = first {
        let fields = [&[1][..], &offset.to_be_bytes(), &id.0].concat();
        bytes[..fields.len()].copy_from_slice(&fields);
    }
    bytes
}

/// That of a map.
pub fn beginning_of(catalog: &Catalog, map: &Map) -> Result<Beginning> {
    for extent in Extents::of(catalog, map) {
        if let (offset, Extent::Data { id, .. }) = extent? {
            return Ok(beginning(Some((offset, id))));
        }
    }
    Ok(beginning(None))
}

/// A content of a snapshot.
pub struct Content {
    /// Its directory.
    pub dir: DirId,
    /// Its name there.
    pub name: Vec<u8>,
    /// What it is made of.
    pub map: Map,
}

impl Content {
    /// The chunk that is all of it, if one is.
    pub fn only_chunk(&self) -> Option<ChunkId> {
        match &self.map {
            Map::Inline(extents) => match extents[..] {
                [Extent::Data { id, .. }] => Some(id),
                _ => None,
            },
            Map::Tree(_) => None,
        }
    }

    fn read(mut rest: &[u8]) -> Option<Self> {
        let rest = &mut rest;
        let _root: [u8; 4] = take(rest)?;
        let dir = take(rest).map(u32::from_be_bytes)?;
        let name_len = take(rest).map(u32::from_be_bytes)?;
        let (name, map) = rest.split_at_checked(name_len as usize)?;
        let map = Map::read(&mut Reader::new(map)).ok()?;
        Some(Self { dir, name: name.to_vec(), map })
    }
}

/// Contents of one length that begin alike.
#[derive(Default)]
pub struct Alike {
    /// Those of a round.
    pub contents: Vec<Content>,
    /// Whether there are more.
    pub has_more: bool,
}

/// Goes through contents by length, then by what they begin with.
pub struct Contents<'s> {
    records: Records<'s>,
    /// The next record, if it was read already.
    next: Option<Next>,
}

struct Next {
    key: (u64, Beginning),
    digest: Digest,
    rest: Vec<u8>,
}

impl<'s> Contents<'s> {
    /// From the shortest on.
    pub fn new(sorted: &'s Sorted) -> Result<Self> {
        let mut contents = Self { records: sorted.records()?, next: None };
        contents.advance()?;
        Ok(contents)
    }

    fn advance(&mut self) -> Result<()> {
        self.next = self.records.next()?.map(Next::read).transpose()?;
        Ok(())
    }

    /// Whether any has this length; lengths are asked for in ascending order.
    pub fn has_len(&mut self, len: u64) -> Result<bool> {
        while self.next.as_ref().is_some_and(|next| next.key.0 < len) {
            self.advance()?;
        }
        Ok(self.next.as_ref().is_some_and(|next| next.key.0 == len))
    }

    /// The distinct contents of a length and beginning, which are asked for in ascending order:
    /// of all of them those of a round.
    pub fn of(&mut self, key: (u64, Beginning), round: usize) -> Result<Alike> {
        let begin = round.saturating_mul(ALIKE_MAX);
        let (mut contents, mut count, mut before) = (Vec::new(), 0, None);
        while let Some(next) = self.next.take_if(|next| next.key <= key) {
            if next.key == key && before.replace(next.digest) != Some(next.digest) {
                if count >= begin && contents.len() < ALIKE_MAX {
                    contents.push(Content::read(&next.rest).ok_or(TOO_SHORT)?);
                }
                count += 1;
            }
            self.advance()?;
        }
        Ok(Alike { has_more: count > begin + contents.len(), contents })
    }
}

impl Next {
    fn read(mut record: &[u8]) -> Result<Self> {
        let rest = &mut record;
        let len = take(rest).map(u64::from_be_bytes).ok_or(TOO_SHORT)?;
        let beginning = take(rest).ok_or(TOO_SHORT)?;
        let digest = take(rest).ok_or(TOO_SHORT)?;
        Ok(Self { key: (len, beginning), digest, rest: rest.to_vec() })
    }
}

/// Goes through records of files, file by file.
pub struct Members<'s> {
    records: Records<'s>,
    read: fn(&[u8]) -> Result<(FileRecord<'_>, Beginning)>,
    /// The first name of the next file, …
    next: Option<Member>,
    /// … and what that begins with.
    beginning: Beginning,
}

impl<'s> Members<'s> {
    /// Of files that were found, from the shortest on; what they begin with is not known.
    pub fn found(sorted: &'s Sorted) -> Result<Self> {
        Self::new(sorted, |record| Ok((FileRecord::of_found(record)?, Beginning::default())))
    }

    /// Of files with what they begin with, in the order of contents.
    pub fn begun(sorted: &'s Sorted) -> Result<Self> {
        Self::new(sorted, |record| FileRecord::of_read(record))
    }

    fn new(sorted: &'s Sorted, read: fn(&[u8]) -> Result<(FileRecord<'_>, Beginning)>) -> Result<Self> {
        Ok(Self { records: sorted.records()?, read, next: None, beginning: Beginning::default() })
    }

    /// The next file with all its names.
    pub fn next(&mut self) -> Result<Option<(Member, Beginning)>> {
        loop {
            let Some(record) = self.records.next()? else {
                return Ok(self.next.take().map(|file| (file, self.beginning)));
            };
            let (name, beginning) = (self.read)(record)?;
            let done = Member::join(&mut self.next, &name);
            let before = std::mem::replace(&mut self.beginning, beginning);
            if let Some(file) = done {
                return Ok(Some((file, before)));
            }
        }
    }
}
