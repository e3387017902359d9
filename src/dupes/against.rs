//! Which files of live trees a repository has, by content, whatever their names are.
//!
//! Contents of snapshots and live files are sorted by length and met. A live file of a length
//! that no content has is nowhere, and is not read. Of others the first chunk chooses among the
//! contents of that length, and the chunks of those say where to cut and what must come out.
//!
//! ```text
//! content   u64 length · 32 digest · u32 root · u32 directory · u32 n · n bytes name · map
//! verdict   u32 root · path · u8 0 · varint length, 0 or 1 · varint root · bytes path
//! ```

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::compare::Member;
use super::found::Name;
use super::open::{BytesRead, Opener};
use super::paths::{DirId, Dirs, Root};
use super::record::{Digest, FileRecord, take};
use super::sorter::{Records, Sorted, Sorter};
use super::stored::{self, Key, Place, Visit, key_of};
use super::{Options, Problems, scan};
use crate::chunker::{Chunker, Params, is_zero, stretches};
use crate::error::{Error, Result};
use crate::format::map::{Extent, Map};
use crate::format::pack::Kind;
use crate::format::tree::Entry;
use crate::format::wire::{Malformed, Reader, put_bytes, put_varint};
use crate::id::{ChunkId, Key as HashKey};
use crate::observe::{Event, Observer, Stop};
use crate::repo::Repo;
use crate::repo::catalog::Catalog;
use crate::repo::nodes::Extents;
use crate::source::extents::read_at;

/// Threads that read.
const READERS: usize = 4;
/// Files that wait to be read, and verdicts that wait to be taken.
const QUEUE: usize = 64;
/// Chunks that are looked up at once.
const BATCH: usize = 1 << 14;
/// Contents that a file is compared with at once: each holds a node of its map.
const TOGETHER: usize = 64;
/// What is read of a file at once.
const WINDOW: usize = 256 << 10;
const BLOCK: u64 = 4096;

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Names of files that were looked at.
    pub files: u64,
    /// Their length.
    pub bytes: u64,
    /// Empty files that were passed over.
    pub empty: u64,
    /// Files that the repository has; each counts once whatever its names.
    pub safe: u64,
    /// Their length.
    pub bytes_safe: u64,
    /// Files that it does not have.
    pub nowhere: u64,
    /// Their length.
    pub bytes_nowhere: u64,
    /// What was read of files.
    pub bytes_read: u64,
    /// Paths that could not be read, or changed meanwhile.
    pub problems: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What came of it.
pub struct Against {
    /// The directories.
    pub roots: Vec<Root>,
    /// The snapshots.
    pub snapshots: Vec<Root>,
    /// What was counted.
    pub totals: Totals,
    /// What was left out, and why; at most 1000.
    pub left_out: Vec<(std::path::PathBuf, String)>,
    verdicts: Sorted,
}

/// A live file, and where the repository has its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// One of its names; further ones have verdicts of their own.
    pub name: Name,
    /// Its length.
    pub len: u64,
    /// A place in a snapshot, if there is one.
    pub stored: Option<Name>,
}

impl Against {
    /// Tells all names in the order of their paths.
    pub fn tell(&self, each: &mut dyn FnMut(&Verdict) -> Result<()>) -> Result<()> {
        let mut records = self.verdicts.records()?;
        while let Some(record) = records.next()? {
            let verdict = Verdict::read(record);
            each(&verdict.map_err(|_: Malformed| Error::Internal("a verdict cannot be read back"))?)?;
        }
        Ok(())
    }
}

impl Verdict {
    fn put(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.name.root.to_be_bytes());
        out.extend_from_slice(&self.name.path);
        out.push(0);
        put_varint(out, self.len);
        put_varint(out, self.stored.is_some().into());
        if let Some(stored) = &self.stored {
            put_varint(out, stored.root.into());
            put_bytes(out, &stored.path);
        }
    }

    fn read(record: &[u8]) -> std::result::Result<Self, Malformed> {
        let (root, rest) = record.split_first_chunk().ok_or(Malformed("it is too short"))?;
        let end = rest.iter().position(|&byte| byte == 0).ok_or(Malformed("it has no path"))?;
        let (path, rest) = rest.split_at(end);
        let mut reader = Reader::new(rest.get(1..).unwrap_or_default());
        let name = Name { root: u32::from_be_bytes(*root), path: path.to_vec() };
        let len = reader.varint()?;
        let stored = match reader.varint()? {
            0 => None,
            _ => Some(Name { root: reader.varint()? as u32, path: reader.bytes()?.to_vec() }),
        };
        Ok(Self { name, len, stored })
    }
}

/// Looks for the files below the roots of `options` in the places.
pub fn run(
    repo: &Repo,
    catalog: &Catalog,
    places: &[Place],
    options: &Options,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Against> {
    let begin = Instant::now();
    let problems = Problems::new(observer);
    let roots = scan::roots(options)?;
    observer.event(Event::Phase { name: "looking", bytes: None });
    let scan = scan::scan(&roots, options, &problems, stop)?;
    observer.event(Event::Phase { name: "walking snapshots", bytes: None });
    let mut recorder =
        Recorder { catalog, options, sorter: Sorter::new(&options.temporary), record: Vec::new() };
    let all = stored::Options { hidden: true, ..stored::Options::default() };
    let (dirs, _) = stored::visit(catalog, places, &all, stop, &mut recorder)?;
    let contents = recorder.sorter.finish()?;
    observer.event(Event::Phase { name: "reading", bytes: None });
    let opener = Opener { roots: &roots, dirs: &scan.dirs, counts: BytesRead::default() };
    let params = Params::parse(&repo.config().chunker).map_err(|why| Error::damaged("config", why))?;
    let chunker = Chunker::new(params, &repo.keys().chunker());
    let key = repo.keys().ids(Kind::Data);
    let shared = Shared { catalog, opener: &opener, problems: &problems, stop, chunker, key };
    let mut taker = Taker {
        opener: &opener,
        dirs: &dirs,
        sorter: Sorter::new(&options.temporary),
        totals: Totals::default(),
    };
    shared.read_all(&scan.files, &contents, &mut taker)?;
    let Taker { sorter, mut totals, .. } = taker;
    let (files, bytes, empty) = (scan.counts.files, scan.counts.bytes, scan.counts.empty);
    let bytes_read = opener.counts.get();
    let (count, left_out) = problems.finish();
    totals = Totals { files, bytes, empty, bytes_read, problems: count, ..totals };
    totals.seconds = begin.elapsed().as_secs_f64();
    Ok(Against { roots, snapshots: stored::roots(places), totals, left_out, verdicts: sorter.finish()? })
}

/// Writes records of contents.
struct Recorder<'a> {
    catalog: &'a Catalog,
    options: &'a Options,
    sorter: Sorter,
    record: Vec<u8>,
}

impl Visit for Recorder<'_> {
    fn file(&mut self, root: u32, dir: DirId, path: &[u8], entry: &Entry) -> Result<Key> {
        let Some(map) = entry.map() else { return Err(Error::Internal("a file without content")) };
        let key = key_of(self.catalog, map)?;
        if key.len > 0 && !(self.options.min_size..=self.options.max_size).contains(&key.len) {
            return Ok(key);
        }
        // What lies in no directory has its whole path as name.
        let name = if dir == root { path } else { &entry.name };
        let out = &mut self.record;
        out.clear();
        out.extend_from_slice(&key.len.to_be_bytes());
        out.extend_from_slice(&key.digest);
        out.extend_from_slice(&root.to_be_bytes());
        out.extend_from_slice(&dir.to_be_bytes());
        out.extend_from_slice(&(name.len() as u32).to_be_bytes());
        out.extend_from_slice(name);
        map.put(out);
        self.sorter.push(out)?;
        Ok(key)
    }
}

/// A content of a snapshot.
struct Content {
    dir: DirId,
    name: Vec<u8>,
    map: Map,
    /// Where its first chunk begins, and which that is; `None` if all is zeros.
    first: Option<(u64, ChunkId)>,
}

/// Goes through contents by length.
struct Contents<'s> {
    catalog: &'s Catalog,
    records: Records<'s>,
    /// The next record, if it was read already.
    next: Option<(u64, Digest, Vec<u8>)>,
}

impl<'s> Contents<'s> {
    fn new(catalog: &'s Catalog, sorted: &'s Sorted) -> Result<Self> {
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

    /// The distinct contents of a length; lengths are asked for in ascending order.
    fn of_len(&mut self, len: u64) -> Result<Vec<Content>> {
        let mut out = Vec::new();
        let mut before = None;
        while let Some((next, digest, rest)) = self.next.take_if(|(next, ..)| *next <= len) {
            if next == len && before.replace(digest) != Some(digest) {
                out.push(self.content(&rest)?);
            }
            self.advance()?;
        }
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

/// A file to be read, and the contents of its length.
type Job = (Member, Arc<Vec<Content>>);
/// A file that was read: the contents, and the number of its own.
type Done = (Member, Arc<Vec<Content>>, Option<usize>);

/// What all threads use.
struct Shared<'a> {
    catalog: &'a Catalog,
    opener: &'a Opener<'a>,
    problems: &'a Problems<'a>,
    stop: &'a Stop,
    chunker: Chunker,
    key: &'a HashKey,
}

impl Shared<'_> {
    fn read_all(&self, files: &Sorted, contents: &Sorted, taker: &mut Taker) -> Result<()> {
        std::thread::scope(|scope| {
            let (jobs, work) = bounded::<Job>(QUEUE);
            let (done, results) = bounded::<Result<Done>>(QUEUE);
            for _ in 0..READERS {
                let (work, done) = (work.clone(), done.clone());
                scope.spawn(move || self.read_some(&work, &done));
            }
            drop(work);
            scope.spawn(move || {
                if let Err(error) = self.send(files, contents, &jobs, &done) {
                    let _ = done.send(Err(error));
                }
            });
            results.iter().try_for_each(|result| taker.take(&result?))
        })
    }

    /// Sends files whose length some content has to those who read, and verdicts on the others.
    /// Whoever receives is gone once it has failed.
    fn send(
        &self,
        files: &Sorted,
        contents: &Sorted,
        jobs: &Sender<Job>,
        done: &Sender<Result<Done>>,
    ) -> Result<()> {
        let mut contents = Contents::new(self.catalog, contents)?;
        let mut of_len = (None, Arc::new(Vec::new()));
        let mut members = Members { records: files.records()?, next: None };
        while let Some(member) = members.next()? {
            self.stop.check()?;
            if of_len.0 != Some(member.inode.len) {
                of_len = (Some(member.inode.len), Arc::new(contents.of_len(member.inode.len)?));
            }
            let found = Arc::clone(&of_len.1);
            let sent = match found.is_empty() {
                true => done.send(Ok((member, found, None))).is_ok(),
                false => jobs.send((member, found)).is_ok(),
            };
            if !sent {
                return Ok(());
            }
        }
        Ok(())
    }

    fn read_some(&self, work: &Receiver<Job>, done: &Sender<Result<Done>>) {
        let mut reader =
            FileReader { shared: self, window: Window::default(), zeros: 0..0, path: Vec::new() };
        for (member, contents) in work {
            let result = match reader.find(&member, &contents) {
                Err(error @ Error::Io { .. }) => {
                    self.problems.error(&error);
                    continue;
                }
                result => result,
            };
            if done.send(result.map(|found| (member, contents, found))).is_err() {
                return;
            }
        }
    }
}

/// Goes through found records file by file.
struct Members<'s> {
    records: Records<'s>,
    /// The first name of the next file.
    next: Option<Member>,
}

impl Members<'_> {
    fn next(&mut self) -> Result<Option<Member>> {
        loop {
            let Some(record) = self.records.next()? else { return Ok(self.next.take()) };
            let FileRecord { inode, dir, name } = FileRecord::of_found(record)?;
            let name = (dir, name.to_vec());
            match &mut self.next {
                Some(file) if (file.inode.device, file.inode.inode) == (inode.device, inode.inode) => {
                    file.names.push(name);
                }
                next => {
                    if let Some(file) = next.replace(Member { inode, names: vec![name] }) {
                        return Ok(Some(file));
                    }
                }
            }
        }
    }
}

/// What was read last of a file, from an offset on.
#[derive(Default)]
struct Window {
    bytes: Vec<u8>,
    at: u64,
}

impl Window {
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
            let whole = (len.saturating_sub(at)).min(WINDOW.max(want) as u64) as usize;
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
struct FileReader<'a> {
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
        match seek(self.file, SeekFrom::Data(at)) {
            Ok(data) => at.max(data / BLOCK * BLOCK),
            Err(Errno::NXIO) => self.len,
            Err(_) => at,
        }
    }
}

impl<'a> FileReader<'a> {
    /// The number of the content that a file has.
    fn find(&mut self, member: &Member, contents: &[Content]) -> Result<Option<usize>> {
        let Some((dir, name)) = member.names.first() else { return Ok(None) };
        let opener = self.shared.opener;
        let file = opener.open(*dir, name, &mut self.path)?;
        let failed = |e| opener.failed(*dir, name, "read", e);
        self.window.bytes.clear();
        self.zeros = 0..0;
        let inode = &member.inode;
        let open = Open { file: &file, len: inode.len, is_sparse: inode.is_sparse, failed: &failed };
        let first = self.first_chunk(&open)?;
        let possible: Vec<usize> =
            (0..contents.len()).filter(|at| contents.get(*at).is_some_and(|of| of.first == first)).collect();
        let mut found = None;
        for some in possible.chunks(TOGETHER) {
            let candidates = some.iter().filter_map(|number| {
                let extents = Extents::of(self.shared.catalog, &contents.get(*number)?.map);
                Some(Candidate { number: *number, extents, ids: Vec::new() })
            });
            found = self.step(&open, candidates.collect())?;
            if found.is_some() {
                break;
            }
        }
        opener.check(&file, *dir, name, &member.inode)?;
        Ok(found)
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

/// Takes verdicts.
struct Taker<'a> {
    opener: &'a Opener<'a>,
    dirs: &'a Dirs,
    sorter: Sorter,
    totals: Totals,
}

impl Taker<'_> {
    fn take(&mut self, (member, contents, found): &Done) -> Result<()> {
        let stored = found.and_then(|number| contents.get(number)).map(|content| {
            let mut path = Vec::new();
            let root = self.dirs.path(content.dir, &mut path);
            path.extend_from_slice(&content.name);
            Name { root, path }
        });
        let len = member.inode.len;
        let totals = &mut self.totals;
        let (files, bytes) = match &stored {
            Some(_) => (&mut totals.safe, &mut totals.bytes_safe),
            None => (&mut totals.nowhere, &mut totals.bytes_nowhere),
        };
        *files += 1;
        *bytes += len;
        let mut record = Vec::new();
        for (dir, name) in &member.names {
            let mut path = Vec::new();
            let root = self.opener.below(*dir, name, &mut path);
            Verdict { name: Name { root, path }, len, stored: stored.clone() }.put(&mut record);
            self.sorter.push(&record)?;
        }
        Ok(())
    }
}
