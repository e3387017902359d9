//! Which files of live trees a repository has, by content, whatever their names are.
//!
//! Contents of snapshots and live files are sorted by length and met. A live file of a length
//! that no content has is nowhere, and is not read. Of others the first chunk is read, and they are
//! sorted by that and met again: the chunks of contents that begin so say where to cut and what
//! must come out. Where very many do, files meet some of them after the other.
//!
//! ```text
//! content   u64 length · 32 beginning · 32 digest · u32 root · u32 directory · u32 n · n bytes name · map
//! verdict   u32 root · path · u8 0 · varint length, 0 or 1 · varint root · bytes path
//! ```

mod contents;
mod reader;

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::bounded;

use super::compare::Member;
use super::found::Name;
use super::open::{BytesRead, Opener};
use super::paths::{DirId, Dirs, Root};
use super::record::FileRecord;
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
use contents::{Alike, Beginning, Content, Contents, Members, beginning_of};
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
    let mut begun = Begun::new(options);
    shared.begin(&scan.files, &contents, &mut taker, &mut begun)?;
    let mut round = 0;
    while begun.count > 0 {
        let files = std::mem::replace(&mut begun, Begun::new(options)).sorter.finish()?;
        shared.find(&files, &contents, round, &mut taker, &mut begun)?;
        round += 1;
    }
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
        out.extend_from_slice(&beginning_of(self.catalog, map)?);
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
    /// Reads what the files begin with whose length some content has, and gives verdicts on the
    /// others.
    fn begin(&self, files: &Sorted, contents: &Sorted, taker: &mut Taker, begun: &mut Begun) -> Result<()> {
        let mut contents = Contents::new(contents)?;
        let mut members = Members::found(files)?;
        let next = || {
            let Some((member, _)) = members.next()? else { return Ok(None) };
            let has_len = contents.has_len(member.inode.len)?;
            Ok(Some((member, has_len)))
        };
        let work = |reader: &mut FileReader, (member, has_len): &(Member, bool)| {
            has_len.then(|| reader.beginning(member)).transpose()
        };
        self.spread(next, work, |(member, _), beginning| match beginning {
            Some(beginning) => begun.put(&member, &beginning),
            None => taker.take(&member, None),
        })
    }

    /// Gives verdicts on files that were begun. Those that are none of the contents of this round,
    /// while there are more, are begun again.
    fn find(
        &self,
        files: &Sorted,
        contents: &Sorted,
        round: usize,
        taker: &mut Taker,
        again: &mut Begun,
    ) -> Result<()> {
        let mut contents = Contents::new(contents)?;
        let mut members = Members::begun(files)?;
        let mut met = (None, Arc::new(Alike::default()));
        let next = || {
            let Some((member, beginning)) = members.next()? else { return Ok(None) };
            let key = (member.inode.len, beginning);
            if met.0 != Some(key) {
                met = (Some(key), Arc::new(contents.of(key, round)?));
            }
            Ok(Some((member, beginning, Arc::clone(&met.1))))
        };
        let work = |reader: &mut FileReader, (member, _, alike): &(Member, Beginning, Arc<Alike>)| {
            reader.find(member, &alike.contents)
        };
        self.spread(next, work, |(member, beginning, alike), found| match found {
            None if alike.has_more => again.put(&member, &beginning),
            found => taker.take(&member, found.and_then(|number| alike.contents.get(number))),
        })
    }

    /// What `next` gives goes to threads that read, and what `work` makes of it to `take`, in no order.
    /// Files that cannot be read are problems.
    fn spread<J: Send, D: Send>(
        &self,
        mut next: impl FnMut() -> Result<Option<J>> + Send,
        work: impl Fn(&mut FileReader, &J) -> Result<D> + Sync,
        mut take: impl FnMut(J, D) -> Result<()>,
    ) -> Result<()> {
        std::thread::scope(|scope| {
            let (jobs, todo) = bounded::<J>(QUEUE);
            let (done, results) = bounded::<Result<(J, D)>>(QUEUE);
            for _ in 0..READERS {
                let (todo, done, work) = (todo.clone(), done.clone(), &work);
                scope.spawn(move || {
                    let mut reader = FileReader::new(self);
                    for job in todo {
                        let result = match work(&mut reader, &job) {
                            Err(error @ Error::Io { .. }) => {
                                self.problems.error(&error);
                                continue;
                            }
                            result => result,
                        };
                        if done.send(result.map(|found| (job, found))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(todo);
            // Whoever receives is gone once it has failed.
            scope.spawn(move || {
                while let Some(job) = self.stop.check().and_then(|()| next()).transpose() {
                    let is_taken = match job {
                        Ok(job) => jobs.send(job).is_ok(),
                        Err(error) => {
                            let _ = done.send(Err(error));
                            false
                        }
                    };
                    if !is_taken {
                        return;
                    }
                }
            });
            results.iter().try_for_each(|result| result.and_then(|(job, found)| take(job, found)))
        })
    }
}

/// Files with what they begin with.
struct Begun {
    sorter: Sorter,
    count: u64,
}

impl Begun {
    fn new(options: &Options) -> Self {
        Self { sorter: Sorter::new(&options.temporary), count: 0 }
    }

    fn put(&mut self, member: &Member, beginning: &Beginning) -> Result<()> {
        let mut record = Vec::new();
        for (dir, name) in &member.names {
            FileRecord { inode: member.inode, dir: *dir, name }.put_read(beginning, &mut record);
            self.sorter.push(&record)?;
        }
        self.count += 1;
        Ok(())
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
    fn take(&mut self, member: &Member, found: Option<&Content>) -> Result<()> {
        let stored = found.map(|content| {
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
