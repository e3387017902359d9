//! Walking the directories that were named, and sorting what is found by length.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};

use super::apply::leftover::is_leftover;
use super::paths::{DirId, Dirs, Root};
use super::record::{FileRecord, Inode};
use super::sorter::{Sorted, Sorter};
use super::{Options, Problems};
use crate::error::{Error, IoContext, Result};
use crate::format::config::CONFIG_START;
use crate::nested::Nested;
use crate::observe::Stop;
use crate::repo::layout::{CONFIGS, PACKS};
use crate::source::exclude::{ExcludeOptions, Excludes, Patterns, SourceExcludes};
use crate::source::metadata::kind;
use crate::source::open::open_file;
use crate::source::path_of;
use crate::source::walk::{DirHandle, Filter, LeftOut, Listed, Listing, Walker};
use crate::text::escape;

/// Threads that list directories ahead: a cold disk wants more than there are processors.
const WALK_THREADS: usize = 8;

/// What is there.
pub struct Scan {
    /// The files, by length and inode.
    pub files: Sorted,
    /// Their directories.
    pub dirs: Dirs,
    /// What was counted.
    pub counts: Counts,
    /// A file that a killed run of `apply` left.
    leftover: Option<PathBuf>,
}

/// What a scan counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Names of files that were looked at.
    pub files: u64,
    /// Their length; a file with several names counts as often.
    pub bytes: u64,
    /// Empty ones that were passed over.
    pub empty: u64,
    /// What killed runs of `apply` left.
    pub leftovers: u64,
}

/// Walks.
pub fn scan(roots: &[Root], options: &Options, problems: &Problems, stop: &Stop) -> Result<Scan> {
    let files = Sorter::new(&options.temporary);
    let dirs = Dirs::new(roots.len());
    let include = options.filters.included()?;
    let sources: Vec<_> = roots.iter().map(|root| root.path.clone()).collect();
    let scan = Scan { files: Sorted::empty(), dirs, counts: Counts::default(), leftover: None };
    let mut scanner = Scanner { options, include, problems, stop, files, scan, record: Vec::new() };
    for (number, root) in roots.iter().enumerate() {
        // One root below another is walked for itself, once.
        let never = sources.iter().filter(|other| **other != root.path).cloned().collect();
        let excludes = ExcludeOptions {
            patterns: options.filters.exclude.clone(),
            one_file_system: options.one_file_system,
            never,
            ..Default::default()
        };
        let excludes = Excludes::new(&excludes, &sources)?;
        scanner.root(number as DirId, &root.path, &excludes.below(&root.path)?)?;
    }
    let Scanner { files, scan, .. } = scanner;
    if let Some(first) = &scan.leftover {
        problems.notice(format!(
            "{} files were set aside by a run of --apply that was killed, the first is {}: --apply with a new \
             report removes those that others are equal to; others may be renamed to what their names end with",
            scan.counts.leftovers,
            first.display()
        ));
    }
    Ok(Scan { files: files.finish()?, ..scan })
}

/// Excludes, and names that begin with a dot.
struct Wanted<'a> {
    excludes: &'a SourceExcludes<'a>,
    hidden: bool,
}

impl Filter for Wanted<'_> {
    fn lists(&self, path: &[u8], stat: &Stat) -> bool {
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        (self.hidden || !name.starts_with(b".")) && self.excludes.lists(path, stat)
    }

    fn empties(&self, dir: std::os::fd::BorrowedFd, stat: &Stat, above: Option<&Stat>) -> Option<LeftOut> {
        self.excludes.empties(dir, stat, above)
    }
}

struct Scanner<'a> {
    options: &'a Options,
    include: Option<Patterns>,
    problems: &'a Problems<'a>,
    stop: &'a Stop,
    files: Sorter,
    scan: Scan,
    record: Vec<u8>,
}

/// A directory that is being gone through.
struct Open {
    id: DirId,
    /// Below the root.
    path: Nested,
    /// Whether all below it is included.
    is_included: bool,
    entries: std::vec::IntoIter<Listed>,
}

impl Scanner<'_> {
    fn root(&mut self, id: DirId, root: &Path, excludes: &SourceExcludes) -> Result<()> {
        let wanted = Wanted { excludes, hidden: self.options.filters.hidden };
        std::thread::scope(|scope| {
            let walker = Walker::new(scope, root, WALK_THREADS, &wanted);
            let Some(listing) = self.enter(&walker, walker.root()) else { return Ok(()) };
            let entries = listing.entries.into_iter();
            let is_included = self.include.is_none();
            let mut open = vec![Open { id, path: Nested::root(b""), is_included, entries }];
            while let Some(dir) = open.last_mut() {
                let Some(entry) = dir.entries.next() else {
                    open.pop();
                    self.stop.check()?;
                    continue;
                };
                if let Some(below) = self.entry(root, dir, entry, &walker)? {
                    open.push(below);
                }
            }
            Ok(())
        })
    }

    fn enter(&self, walker: &Walker, dir: DirHandle) -> Option<Listing> {
        match walker.take(dir) {
            Ok(listing) => Some(listing),
            Err(error) => {
                self.problems.error(&error);
                None
            }
        }
    }

    fn entry(&mut self, root: &Path, dir: &Open, entry: Listed, walker: &Walker) -> Result<Option<Open>> {
        let stat = match entry.stat {
            Ok(stat) => stat,
            Err(error) => {
                self.problems.error(&error);
                return Ok(None);
            }
        };
        let path = || dir.path.child(&entry.name).whole();
        match (kind(&stat), entry.subdir) {
            (FileType::RegularFile, _) => {
                if is_leftover(&entry.name) {
                    self.scan.counts.leftovers += 1;
                    self.scan.leftover.get_or_insert_with(|| root.join(path_of(&path())));
                }
                let is_included = dir.is_included || self.includes(&path(), false);
                if is_included && stat.st_size < 0 {
                    self.problems.say(&root.join(path_of(&path())), "its length is negative");
                } else if is_included {
                    self.file(dir.id, &entry.name, &stat)?;
                }
                Ok(None)
            }
            (FileType::Directory, Some(handle)) => {
                let is_included = dir.is_included || self.includes(&path(), true);
                let path = dir.path.child(&entry.name);
                let Some(listing) = self.enter(walker, handle) else { return Ok(None) };
                if is_repository(&listing) {
                    let path = escape(root.join(path_of(&path.whole())).as_os_str().as_bytes());
                    let what =
                        format!("{path} is a repository: left out, since its files are not to be changed");
                    self.problems.notice(what);
                    return Ok(None);
                }
                let entries = listing.entries.into_iter();
                let id = self.scan.dirs.add(dir.id, &entry.name);
                Ok(Some(Open { id, path, is_included, entries }))
            }
            _ => Ok(None),
        }
    }

    fn includes(&self, path: &[u8], is_dir: bool) -> bool {
        self.include.as_ref().is_none_or(|patterns| patterns.matches(path, is_dir))
    }

    fn file(&mut self, dir: DirId, name: &[u8], stat: &Stat) -> Result<()> {
        let inode = Inode::new(stat);
        if !self.options.filters.takes(inode.len) {
            self.scan.counts.empty += u64::from(inode.len == 0);
            return Ok(());
        }
        self.scan.counts.files += 1;
        self.scan.counts.bytes = self.scan.counts.bytes.saturating_add(inode.len);
        FileRecord { inode, dir, name }.put_found(&mut self.record);
        self.files.push(&self.record)
    }
}

/// Whether this is the folder of a repository. Its two copies of the configuration are equal on purpose.
fn is_repository(listing: &Listing) -> bool {
    let has = |name: &str| {
        listing.entries.binary_search_by(|entry| entry.name.as_slice().cmp(name.as_bytes())).is_ok()
    };
    let begins_as_one = |name: &str| {
        let mut start = [0; CONFIG_START.len()];
        let file = open_file(&listing.dir, name, false);
        file.and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *CONFIG_START.as_bytes()
    };
    let is_whole = has(PACKS) || CONFIGS.into_iter().all(has);
    is_whole && CONFIGS.into_iter().any(|name| has(name) && begins_as_one(name))
}

/// The roots by their real paths; one that was named twice counts once.
pub fn roots(options: &Options) -> Result<Vec<Root>> {
    let named = options.roots.iter().map(|path| (path, false));
    let references = options.references.iter().map(|path| (path, true));
    let mut roots: Vec<Root> = Vec::new();
    for (shown, is_reference) in named.chain(references) {
        let path = std::fs::canonicalize(shown).at("find", shown)?;
        if !std::fs::metadata(&path).at("look at", &path)?.is_dir() {
            return Err(Error::Refused(format!("{} is not a directory", shown.display())));
        }
        match roots.iter_mut().find(|root| root.path == path) {
            Some(root) => root.is_reference |= is_reference,
            None => roots.push(Root { shown: shown.clone(), path, is_reference, origin: None }),
        }
    }
    // What lies in a directory of references is one.
    let above: Vec<_> = roots.iter().filter(|root| root.is_reference).map(|root| root.path.clone()).collect();
    for root in &mut roots {
        root.is_reference = above.iter().any(|reference| root.path.starts_with(reference));
    }
    Ok(roots)
}
