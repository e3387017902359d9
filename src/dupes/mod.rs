//! Duplicate files: on live trees and in the repository.
//!
//! A live tree is walked and its files are sorted by length. Files whose length others have are
//! read: short ones whole, of longer ones the ends. What is still equal is compared in step, only
//! until it differs. All that grows with the number of files is sorted in bounded memory and a
//! temporary file, so that ten million files need no more than a hundred thousand.

pub mod against;
pub mod apply;
mod compare;
mod found;
mod heads;
mod open;
mod paths;
mod record;
pub mod report;
mod scan;
mod shared;
mod sorter;
pub mod stored;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::{Error, Result};
use crate::observe::{Event, Observer, Stop};
use crate::source::exclude::Patterns;
use compare::{Comparer, Member};
use found::Findings;
use open::{BytesRead, Opener};
use record::{Digest, FileRecord};
use sorter::{Sorted, Sorter};

pub use found::{File, Found, Group, Name, Sink};
pub use heads::WHOLE_MAX;
pub use paths::Root;
pub use record::Inode;

/// Threads that compare: with what one of them opens, 64 files are open at once.
const COMPARERS: usize = 4;
/// Sets that wait for a thread, and classes that wait to be told.
const QUEUE: usize = 64;
/// Problems that are listed; beyond that they are counted.
const PROBLEMS_MAX: usize = 1000;

/// What is looked for, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directories.
    pub roots: Vec<PathBuf>,
    /// Directories whose files are kept: only groups with one of theirs are told.
    pub references: Vec<PathBuf>,
    /// Where a temporary file is made, if one is needed.
    pub temporary: PathBuf,
    /// Which files count.
    pub filters: Filters,
    /// Whether to stay on the roots' file systems.
    pub one_file_system: bool,
    /// Whether only groups count that have files below more than one root.
    pub isolate: bool,
    /// Whether to tell files that have no equal.
    pub unique: bool,
}

/// Which files count, in live trees and in snapshots.
#[derive(Debug, Clone)]
pub struct Filters {
    /// Files of fewer bytes are passed over; what equal directories are does not depend on it.
    pub min_size: u64,
    /// So are files of more.
    pub max_size: u64,
    /// Whether empty files count; then `min_size` does not concern them.
    pub empty: bool,
    /// Whether names that begin with a dot count.
    pub hidden: bool,
    /// Patterns; if there are any, only files count that match or lie below what matches.
    pub include: Vec<OsString>,
    /// Patterns of what is passed over.
    pub exclude: Vec<OsString>,
}

/// All files that are not empty.
impl Default for Filters {
    fn default() -> Self {
        let (include, exclude) = (Vec::new(), Vec::new());
        Self { min_size: 1, max_size: u64::MAX, empty: false, hidden: true, include, exclude }
    }
}

impl Filters {
    /// Whether files of this length count.
    pub fn takes(&self, len: u64) -> bool {
        match len {
            0 => self.empty,
            len => (self.min_size..=self.max_size).contains(&len),
        }
    }

    /// What is to be included; `None` for all.
    fn included(&self) -> Result<Option<Patterns>> {
        (!self.include.is_empty()).then(|| Patterns::new(&self.include)).transpose()
    }
}

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Totals {
    /// Names of files that were looked at.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// The files' length.
    pub bytes: u64,
    /// Empty files that were passed over.
    pub empty: u64,
    /// Names beyond the first of each file.
    pub hard_links: u64,
    /// Files whose length others have too.
    pub collisions: u64,
    /// The most files of one length.
    pub longest_set: u64,
    /// What was read of files.
    pub bytes_read: u64,
    /// Groups of equal files.
    pub groups: u64,
    /// Files in them beyond the first of each.
    pub redundant: u64,
    /// Bytes that those files take.
    pub wasted: u64,
    /// Files without an equal, if they were asked for.
    pub unique: u64,
    /// Paths that could not be read, or changed meanwhile.
    pub problems: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What came of it.
pub struct Report {
    /// The directories, in the order of their numbers.
    pub roots: Vec<Root>,
    /// The groups.
    pub found: Found,
    /// What was counted.
    pub totals: Totals,
    /// What was left out, and why; at most 1000.
    pub left_out: Vec<(PathBuf, String)>,
    /// What else is equal, of a report on snapshots.
    pub relations: Option<stored::Relations>,
}

/// What failed so far; told to the observer at once.
pub struct Problems<'a> {
    observer: &'a dyn Observer,
    listed: Mutex<(u64, Vec<(PathBuf, String)>)>,
}

impl<'a> Problems<'a> {
    /// None yet.
    pub fn new(observer: &'a dyn Observer) -> Self {
        Self { observer, listed: Mutex::default() }
    }

    /// Counts an error, which names its path.
    pub fn error(&self, error: &Error) {
        match error {
            Error::Io { action, path, source } => self.say(path, &format!("cannot {action} it: {source}")),
            other => self.say(Path::new(""), &other.to_string()),
        }
    }

    /// Counts a problem.
    pub fn say(&self, path: &Path, what: &str) {
        self.observer.event(Event::Problem { path: path.to_path_buf(), what: what.to_owned() });
        if let Ok(mut listed) = self.listed.lock() {
            listed.0 += 1;
            if listed.1.len() < PROBLEMS_MAX {
                listed.1.push((path.to_path_buf(), what.to_owned()));
            }
        }
    }

    fn finish(self) -> (u64, Vec<(PathBuf, String)>) {
        self.listed.into_inner().unwrap_or_default()
    }
}

/// Finds equal files below the roots.
pub fn run(options: &Options, observer: &dyn Observer, stop: &Stop) -> Result<Report> {
    let begin = Instant::now();
    let problems = Problems::new(observer);
    let roots = scan::roots(options)?;
    observer.event(Event::Phase { name: "looking", bytes: None });
    let scan = scan::scan(&roots, options, &problems, stop)?;
    let opener = Opener { roots: &roots, dirs: &scan.dirs, counts: BytesRead::default() };
    let mut collector = Collector::new(options, &opener);
    observer.event(Event::Phase { name: "reading", bytes: None });
    let sorter = Sorter::new(&options.temporary);
    let unique = &mut |file: &FileRecord| collector.unique(file);
    let heads = heads::read(scan.files, &opener, sorter, &problems, stop, unique)?;
    observer.event(Event::Phase { name: "comparing", bytes: None });
    compare_all(&heads.files, &opener, &problems, stop, &mut collector)?;
    let Collector { findings, mut totals, .. } = collector;
    totals.files = scan.counts.files;
    totals.bytes = scan.counts.bytes;
    totals.empty = scan.counts.empty;
    totals.dirs = scan.dirs.count();
    totals.hard_links = heads.counts.hard_links;
    totals.collisions = heads.counts.collisions;
    totals.longest_set = heads.counts.longest_set;
    totals.bytes_read = opener.counts.get();
    let found = findings.finish()?;
    let (count, left_out) = problems.finish();
    totals.problems = count;
    totals.seconds = begin.elapsed().as_secs_f64();
    Ok(Report { roots, found, totals, left_out, relations: None })
}

/// Tells apart what has one length and one digest, in several threads.
fn compare_all(
    heads: &Sorted,
    opener: &Opener,
    problems: &Problems,
    stop: &Stop,
    collector: &mut Collector,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (sets, work) = bounded(QUEUE);
        let (classes, results) = bounded::<Result<Vec<Member>>>(QUEUE);
        let wants_unique = collector.options.unique;
        for _ in 0..COMPARERS {
            let (work, classes) = (work.clone(), classes.clone());
            scope.spawn(move || compare_sets(&work, &classes, &mut Comparer::new(opener, problems, stop)));
        }
        drop(work);
        scope.spawn(move || {
            if let Err(error) = send_sets(heads, wants_unique, &sets, &classes) {
                let _ = classes.send(Err(error));
            }
        });
        results.iter().try_for_each(|class| collector.class(class?))
    })
}

/// Whoever receives is gone once it has failed.
fn compare_sets(work: &Receiver<Vec<Member>>, out: &Sender<Result<Vec<Member>>>, comparer: &mut Comparer) {
    for set in work {
        let sent = match comparer.classes(set) {
            Ok(classes) => classes.into_iter().try_for_each(|class| out.send(Ok(class))),
            Err(error) => out.send(Err(error)),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Sends sets of files that were not read whole to those who compare, and classes of files that
/// were to the collector.
fn send_sets(
    heads: &Sorted,
    wants_unique: bool,
    sets: &Sender<Vec<Member>>,
    classes: &Sender<Result<Vec<Member>>>,
) -> Result<()> {
    let mut set: Vec<Member> = Vec::new();
    let mut before: Option<(u64, Digest)> = None;
    let send = |set: Vec<Member>| match set.first() {
        None => true,
        Some(_) if set.len() == 1 && !wants_unique => true,
        Some(member) if set.len() == 1 || member.inode.len <= WHOLE_MAX => classes.send(Ok(set)).is_ok(),
        Some(_) => sets.send(set).is_ok(),
    };
    let mut records = heads.records()?;
    while let Some(record) = records.next()? {
        let (FileRecord { inode, dir, name }, digest) = FileRecord::of_read(record)?;
        if before.replace((inode.len, digest)) != Some((inode.len, digest)) && !send(std::mem::take(&mut set))
        {
            return Ok(());
        }
        let name = (dir, name.to_vec());
        match set.last_mut() {
            Some(last) if (last.inode.device, last.inode.inode) == (inode.device, inode.inode) => {
                last.names.push(name);
            }
            _ => set.push(Member { inode, names: vec![name] }),
        }
    }
    send(set);
    Ok(())
}

/// Makes groups of classes.
struct Collector<'a> {
    options: &'a Options,
    opener: &'a Opener<'a>,
    findings: Findings,
    sharing: shared::Sharing,
    totals: Totals,
    path: Vec<u8>,
}

impl<'a> Collector<'a> {
    fn new(options: &'a Options, opener: &'a Opener<'a>) -> Self {
        let findings = Findings::new(Sorter::new(&options.temporary));
        let sharing = shared::Sharing::default();
        Self { options, opener, findings, sharing, totals: Totals::default(), path: Vec::new() }
    }

    fn unique(&mut self, file: &FileRecord) -> Result<()> {
        if !self.options.unique {
            return Ok(());
        }
        self.class(vec![Member { inode: file.inode, names: vec![(file.dir, file.name.to_vec())] }])
    }

    fn class(&mut self, class: Vec<Member>) -> Result<()> {
        let mut files: Vec<_> = class.into_iter().map(|member| (self.file(&member), member)).collect();
        files.sort_unstable_by(|(a, _), (b, _)| a.names.cmp(&b.names));
        match files.as_slice() {
            [(file, _)] if self.options.unique => {
                self.totals.unique += 1;
                self.findings.add_unique(file)
            }
            [_, _, ..] if self.is_wanted(&files) => self.group(files),
            _ => Ok(()),
        }
    }

    fn file(&mut self, member: &Member) -> File {
        let names = member.names.iter().map(|(dir, name)| {
            let root = self.opener.below(*dir, name, &mut self.path);
            Name { root, path: self.path.clone() }
        });
        let mut names: Vec<Name> = names.collect();
        names.sort_unstable();
        File { inode: member.inode, copy: 0, names }
    }

    fn is_wanted(&self, files: &[(File, Member)]) -> bool {
        let roots = || files.iter().flat_map(|(file, _)| &file.names).map(|name| name.root);
        let is_reference =
            |root: u32| self.opener.roots.get(root as usize).is_some_and(|root| root.is_reference);
        let spans_roots = || roots().collect::<BTreeSet<_>>().len() > 1;
        let has_both = || roots().any(is_reference) && roots().any(|root| !is_reference(root));
        (!self.options.isolate || spans_roots()) && (self.options.references.is_empty() || has_both())
    }

    fn group(&mut self, mut files: Vec<(File, Member)>) -> Result<()> {
        let len = files.first().map_or(0, |(file, _)| file.inode.len);
        let copies = self.find_copies(&mut files);
        let data = match files.iter().find(|(file, _)| file.inode.is_sparse && len > WHOLE_MAX) {
            Some((_, sparse)) => self.open(sparse).map_or(len, |file| shared::data_len(&file, len)),
            None => len,
        };
        let files: Vec<File> = files.into_iter().map(|(file, _)| file).collect();
        let names = files.iter().map(|file| file.names.len() as u64).sum();
        let wasted = data.saturating_mul(copies.saturating_sub(1));
        let count = files.len() as u64;
        let group = Group { len, data, files: count, names, copies, wasted, implied: false };
        self.totals.groups += 1;
        self.totals.redundant += group.files - 1;
        self.totals.wasted += wasted;
        self.findings.add(&group, &files)
    }

    /// Numbers the places that the files' bytes are in; how many there are.
    fn find_copies(&mut self, files: &mut [(File, Member)]) -> u64 {
        let mut known: HashMap<(u64, Digest), u64> = HashMap::new();
        let mut count = 0;
        for (file, member) in files {
            let place = self.places(member).map(|digest| (member.inode.device, digest));
            let is_new = place.is_none_or(|place| !known.contains_key(&place));
            file.copy = match place {
                Some(place) => *known.entry(place).or_insert(count),
                None => count,
            };
            count += u64::from(is_new);
        }
        count
    }

    fn places(&mut self, member: &Member) -> Option<Digest> {
        let Self { sharing, opener, .. } = self;
        let open = || open_member(opener, member);
        sharing
            .is_possible(member.inode.device, open)
            .then(open)
            .flatten()
            .and_then(|file| shared::places(&file))
    }

    fn open(&self, member: &Member) -> Option<std::fs::File> {
        open_member(self.opener, member)
    }
}

fn open_member(opener: &Opener, member: &Member) -> Option<std::fs::File> {
    let (dir, name) = member.names.first()?;
    opener.open(*dir, name, &mut Vec::new()).ok()
}
