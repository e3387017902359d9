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

mod contents;
mod reader;

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::compare::Member;
use super::found::Name;
use super::open::{BytesRead, Opener};
use super::paths::{DirId, Dirs, Root};
use super::sorter::{Sorted, Sorter};
use super::stored::{self, Key, Place, Visit, key_of};
use super::{Filters, Options, Problems, scan};
use crate::chunker::{Chunker, Params};
use crate::error::{Error, Result};
use crate::format::pack::Kind;
use crate::format::tree::Entry;
use crate::format::wire::{Malformed, Reader, put_bytes, put_varint};
use crate::id::Key as HashKey;
use crate::observe::{Event, Observer, Stop};
use crate::repo::Repo;
use crate::repo::catalog::Catalog;
use contents::{Content, Contents, Members};
use reader::FileReader;

/// Threads that read.
const READERS: usize = 4;
/// Files that wait to be read, and verdicts that wait to be taken.
const QUEUE: usize = 64;

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
    let all = Filters::default();
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
        if !self.options.filters.takes(key.len) {
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
        let mut members = Members::new(files)?;
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
        let mut reader = FileReader::new(self);
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
