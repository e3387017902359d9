//! Reading a live file once, in step with all contents that it may have.

use std::fs::File;
use std::ops::Range;

use super::Shared;
use super::contents::{Beginning, Content, beginning};
use crate::chunker::{is_zero, stretches};
use crate::dupes::compare::Member;
use crate::dupes::open::BytesRead;
use crate::error::{Error, Result};
use crate::format::BLOCK;
use crate::format::map::Extent;
use crate::id::ChunkId;
use crate::repo::nodes::Extents;
use crate::source::extents::{data_from, read_at};

/// Chunks that are looked up at once.
const BATCH: usize = 1 << 14;
/// Contents that a file is compared with at once: each holds a node of its map.
const TOGETHER: usize = 64;
/// What is read of a file at once.
const WINDOW: usize = 256 << 10;

/// What was read last of a file, from an offset on.
#[derive(Default)]
struct Window {
    bytes: Vec<u8>,
    at: u64,
    /// What is read at least.
    least: usize,
}

impl Window {
    /// Nothing of a new file yet.
    fn begin(&mut self, least: usize) {
        self.bytes.clear();
        self.least = least;
    }

    /// Bytes of a file of this length; what is read moves forward by a window's length.
    fn read(
        &mut self,
        file: &File,
        len: u64,
        at: u64,
        want: usize,
        counts: &BytesRead,
    ) -> std::io::Result<&[u8]> {
        let end = self.at + self.bytes.len() as u64;
        if at < self.at || at + want as u64 > end {
            let keep = if (self.at..end).contains(&at) { (at - self.at) as usize } else { self.bytes.len() };
            self.bytes.drain(..keep);
            self.at = at;
            let have = self.bytes.len();
            let whole = (len.saturating_sub(at)).min(self.least.max(want) as u64) as usize;
            self.bytes.resize(whole.max(want), 0);
            let read = read_at(file, self.bytes.get_mut(have..).unwrap_or_default(), at + have as u64)?;
            counts.add(read as u64);
            self.bytes.truncate(have + read);
        }
        let start = (at - self.at) as usize;
        let short = || std::io::Error::other("it became shorter while it was read");
        self.bytes.get(start..start + want).ok_or_else(short)
    }
}

/// Reads files, one after the other.
pub struct FileReader<'a> {
    shared: &'a Shared<'a>,
    window: Window,
    /// A range of the file that was found to be zeros.
    zeros: Range<u64>,
    path: Vec<u8>,
}

/// A content that a file may have, as far as they were compared.
struct Candidate<'a> {
    number: usize,
    extents: Extents<'a>,
    /// Chunks that were not looked up yet.
    ids: Vec<ChunkId>,
}

/// A file that is being read.
struct Open<'a> {
    file: &'a File,
    len: u64,
    is_sparse: bool,
    failed: &'a dyn Fn(std::io::Error) -> Error,
}

impl Open<'_> {
    /// Where data begins at or behind `at`, or up to a block before it; the end if nowhere.
    fn data_from(&self, at: u64) -> u64 {
        if !self.is_sparse {
            return at;
        }
        match data_from(self.file, at, self.len) {
            data if data == self.len => data,
            data => at.max(data / BLOCK * BLOCK),
        }
    }
}

impl<'a> FileReader<'a> {
    /// Reads with these keys and this cutting.
    pub fn new(shared: &'a Shared<'a>) -> Self {
        Self { shared, window: Window::default(), zeros: 0..0, path: Vec::new() }
    }

    /// What a file begins with.
    pub fn beginning(&mut self, member: &Member) -> Result<Beginning> {
        self.window.begin(0);
        self.opened(member, |reader, open| reader.first_chunk(open)).map(beginning)
    }

    /// The number of the content that a file has, of all that begin as it does.
    pub fn find(&mut self, member: &Member, contents: &[Content]) -> Result<Option<usize>> {
        if contents.is_empty() {
            return Ok(None);
        }
        // What begins with the chunk that is all of it is it.
        if let Some(id) = contents.iter().find_map(Content::only_chunk) {
            return Ok(self.are_there(&mut vec![id])?.then_some(0));
        }
        self.window.begin(WINDOW);
        self.opened(member, |reader, open| {
            for at in (0..contents.len()).step_by(TOGETHER) {
                let numbers = at..contents.len().min(at + TOGETHER);
                let candidates = numbers.filter_map(|number| {
                    let extents = Extents::of(reader.shared.catalog, &contents.get(number)?.map);
                    Some(Candidate { number, extents, ids: Vec::new() })
                });
                let found = reader.step(open, candidates.collect())?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            Ok(None)
        })
    }

    /// Does something with a file, which must not change meanwhile.
    fn opened<T>(
        &mut self,
        member: &Member,
        work: impl FnOnce(&mut Self, &Open) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let Some((dir, name)) = member.names.first() else { return Ok(None) };
        let opener = self.shared.opener;
        let file = opener.open(*dir, name, &mut self.path)?;
        let failed = |e| opener.failed(*dir, name, "read", e);
        self.zeros = 0..0;
        let inode = &member.inode;
        let done =
            work(self, &Open { file: &file, len: inode.len, is_sparse: inode.is_sparse, failed: &failed })?;
        opener.check(&file, *dir, name, inode)?;
        Ok(done)
    }

    fn read(&mut self, open: &Open, at: u64, len: usize) -> Result<&[u8]> {
        self.window.read(open.file, open.len, at, len, &self.shared.opener.counts).map_err(open.failed)
    }

    /// Where the first run of data begins, and its first chunk.
    fn first_chunk(&mut self, open: &Open) -> Result<Option<(u64, ChunkId)>> {
        let (chunker, key) = (&self.shared.chunker, self.shared.key);
        let window = (chunker.max_len() as u64).next_multiple_of(BLOCK);
        let mut at = 0;
        loop {
            at = open.data_from(at);
            if at >= open.len {
                return Ok(None);
            }
            let want = window.min(open.len - at);
            let bytes = self.read(open, at, want as usize)?;
            match stretches(bytes).first() {
                Some(zeros) if zeros.zero => at += zeros.end as u64,
                Some(data) => {
                    let run = bytes.get(..data.end).unwrap_or_default();
                    let run_ends = data.end < bytes.len() || at + want == open.len;
                    let cut = chunker.cut(run, at, run_ends).and_then(|cut| run.get(..cut));
                    return Ok(cut.map(|chunk| (at, ChunkId::of(key, chunk))));
                }
                None => return Ok(None),
            }
        }
    }

    /// Goes through the file once, along with all candidates; the first that is left at its end
    /// and whose chunks are all there.
    fn step(&mut self, open: &Open, mut candidates: Vec<Candidate<'a>>) -> Result<Option<usize>> {
        // Equal contents are cut at the same places, so all candidates that are left are mostly at
        // the same one, and ask for the same range.
        let mut done = Vec::new();
        let mut ahead: Vec<(u64, Candidate, Extent)> = Vec::new();
        for candidate in candidates.drain(..) {
            advance(candidate, &mut ahead, &mut done)?;
        }
        while let Some(at) = ahead.iter().map(|(at, ..)| *at).min() {
            self.shared.stop.check()?;
            let mut known: Option<(u32, ChunkId)> = None;
            let (now, later) = ahead.into_iter().partition(|(begin, ..)| *begin == at);
            ahead = later;
            let now: Vec<(u64, Candidate, Extent)> = now;
            for (_, mut candidate, extent) in now {
                let is_equal = match extent {
                    Extent::Data { id, len } => {
                        let own = match known {
                            Some((known_len, id)) if known_len == len => id,
                            _ => ChunkId::of(self.shared.key, self.read(open, at, len as usize)?),
                        };
                        known = Some((len, own));
                        candidate.ids.push(id);
                        own == id
                    }
                    Extent::Zero { len } | Extent::Hole { len } => self.is_zero(open, at, len)?,
                };
                if is_equal && (candidate.ids.len() < BATCH || self.are_there(&mut candidate.ids)?) {
                    advance(candidate, &mut ahead, &mut done)?;
                }
            }
        }
        for mut candidate in done {
            if self.are_there(&mut candidate.ids)? {
                return Ok(Some(candidate.number));
            }
        }
        Ok(None)
    }

    fn is_zero(&mut self, open: &Open, begin: u64, len: u64) -> Result<bool> {
        let end = begin + len;
        let is_known = self.zeros.contains(&begin) && end <= self.zeros.end;
        let mut at = if is_known { end } else { begin };
        loop {
            at = open.data_from(at).min(end);
            if at == end {
                if !is_known {
                    self.zeros = begin..end;
                }
                return Ok(true);
            }
            let piece = (end - at).min(WINDOW as u64);
            if !is_zero(self.read(open, at, piece as usize)?) {
                return Ok(false);
            }
            at += piece;
        }
    }

    fn are_there(&self, ids: &mut Vec<ChunkId>) -> Result<bool> {
        let found = self.shared.catalog.locate(ids)?;
        ids.clear();
        Ok(found.iter().all(Option::is_some))
    }
}

/// To the candidate's next extent, or to those that are done.
fn advance<'a>(
    mut candidate: Candidate<'a>,
    ahead: &mut Vec<(u64, Candidate<'a>, Extent)>,
    done: &mut Vec<Candidate<'a>>,
) -> Result<()> {
    match candidate.extents.next().transpose()? {
        Some((at, extent)) => ahead.push((at, candidate, extent)),
        None => done.push(candidate),
    }
    Ok(())
}
