//! Duplicate files: on live trees and in the repository.
//!
//! A live tree is walked and its files are sorted by length. Files whose length others have are
//! read: short ones whole, of longer ones the ends. What is still equal is compared in step, only
//! until it differs. All that grows with the number of files is sorted in bounded memory and a
//! temporary file, so that ten million files need no more than a hundred thousand.

pub mod against;
pub mod apply;
mod class;
mod collector;
mod compare;
mod found;
mod heads;
mod look;
mod open;
mod paths;
mod record;
pub mod report;
mod scan;
mod sets;
mod shared;
mod sorter;
pub mod stored;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::observe::{Event, Observer, Stop};
use crate::source::exclude::Patterns;
use collector::Collector;
use look::Reading;
use open::{BytesRead, Opener};
use sorter::Sorter;

pub use found::{File, Found, Group, Name, Sink};
pub use heads::WHOLE_MAX;
pub use paths::Root;
pub use record::Inode;
pub use sorter::Temporary;

/// Problems that are listed; beyond that they are counted.
const PROBLEMS_MAX: usize = 1000;

/// What is looked for, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directories.
    pub roots: Vec<PathBuf>,
    /// Directories whose files are kept: only groups with one of theirs are told.
    pub references: Vec<PathBuf>,
    /// Where what does not fit in memory goes.
    pub temporary: Temporary,
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
        (!self.include.is_empty()).then(|| Patterns::new(&self.include, Path::new("/"))).transpose()
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

    /// Tells what is no problem.
    fn notice(&self, what: String) {
        self.observer.event(Event::Notice(what));
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
    let reading = Reading { opener: &opener, problems: &problems, stop };
    let sorter = Sorter::new(&options.temporary);
    let heads = heads::read(scan.files, reading, sorter, &mut |member| collector.unique(&member))?;
    observer.event(Event::Phase { name: "comparing", bytes: None });
    let tell = |told| collector.take(told);
    sets::tell_apart(heads.files, reading, &options.temporary, options.unique, tell)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Silent;
    use std::collections::{BTreeMap, BTreeSet};

    #[derive(Default)]
    struct Listed(Vec<BTreeSet<Vec<u8>>>, u64);

    impl Sink for Listed {
        fn group(&mut self, group: &Group) -> Result<()> {
            self.0.push(BTreeSet::new());
            self.1 += group.wasted;
            Ok(())
        }

        fn file(&mut self, file: &File) -> Result<()> {
            let names = file.names.iter().map(|name| name.path.clone());
            self.0.last_mut().unwrap().extend(names);
            Ok(())
        }

        fn end(&mut self) -> Result<()> {
            Ok(())
        }

        fn unique(&mut self, _: &File) -> Result<()> {
            Ok(())
        }
    }

    /// Sets of one content, of one length, of one length and equal ends, and pairs; each larger
    /// than all that a sorter holds.
    #[test]
    fn sets_that_do_not_fit_in_memory_are_found_too() {
        let root = tempfile::tempdir().unwrap();
        let long = |middle: usize| {
            let mut bytes = vec![b'l'; 200_000];
            bytes[150_000..150_008].copy_from_slice(&(middle as u64).to_be_bytes());
            bytes
        };
        let mut expected: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>> = BTreeMap::new();
        for number in 0..600usize {
            let shapes = [
                ("one", b"one content".to_vec()),
                ("length", format!("{number:08}").into_bytes()),
                ("pair", vec![b'p'; 100 + number / 2]),
            ];
            let few = (number < 120).then(|| ("long", long(number / 40)));
            for (shape, bytes) in shapes.into_iter().chain(few) {
                let name = format!("{shape}-{number}");
                std::fs::write(root.path().join(&name), &bytes).unwrap();
                expected.entry(bytes).or_default().insert(name.into_bytes());
            }
        }
        expected.retain(|_, class| class.len() > 1);
        let wasted: usize = expected.iter().map(|(bytes, class)| bytes.len() * (class.len() - 1)).sum();
        for memory_max in [4 << 10, 48 << 20] {
            let options = Options {
                roots: vec![root.path().to_path_buf()],
                references: Vec::new(),
                temporary: Temporary::with_memory(std::env::temp_dir(), memory_max),
                filters: Filters::default(),
                one_file_system: false,
                isolate: false,
                unique: true,
            };
            let report = run(&options, &Silent, &Stop::default()).unwrap();
            let mut listed = Listed::default();
            report.found.tell(&mut listed).unwrap();
            assert_eq!(listed.0.len(), 1 + 3 + 300, "{memory_max}");
            let found: BTreeSet<_> = listed.0.into_iter().collect();
            assert_eq!(found, expected.values().cloned().collect(), "{memory_max}");
            assert_eq!((report.totals.wasted, listed.1), (wasted as u64, wasted as u64));
            assert_eq!((report.totals.unique, report.totals.longest_set), (600, 600), "{memory_max}");
        }
    }
}
