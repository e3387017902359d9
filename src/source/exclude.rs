//! What is left out of a backup.
//!
//! Patterns follow gitignore, rooted at each SOURCE; one that begins with a SOURCE's path means
//! that path. What a pattern matches is not listed at all. Directories that are left out for
//! what they are or hold (a mount point of the kernel's file systems or, if asked for, of any
//! other; one with a marker) stay in the backup without their content: a restored system needs
//! its mount points, and a restored cache its place, owner and marker. restic and tar do likewise.

mod kernel;
mod listed;
mod pattern;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs as std_fs;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ignore::gitignore::Gitignore;
use rustix::fs::{self, FileType, Mode, OFlags, Stat};

use super::metadata::kind;
use super::walk::{Filter, LeftOut, Listed};
use crate::error::{Error, Result};
use crate::text::escape;
use kernel::kernel_file_system;
pub use pattern::Patterns;
use pattern::{Pattern, add, build, builder, patterns, strip_source};

/// The name of the file that marks a cache.
pub const CACHE_TAG: &[u8] = b"CACHEDIR.TAG";
/// What that file begins with.
pub const CACHE_SIGNATURE: &[u8; 43] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// What was asked to be left out.
#[derive(Debug, Clone, Default)]
pub struct ExcludeOptions {
    /// Patterns; of several that match the last one decides, and those of files come first.
    pub patterns: Vec<OsString>,
    /// Files with one pattern a line; empty lines and lines that begin with `#` do not count.
    pub pattern_files: Vec<PathBuf>,
    /// Files with paths, each ended by a zero byte, that are left out whatever patterns say.
    pub path_files: Vec<PathBuf>,
    /// Directories with an entry of such a name are kept empty but for that entry.
    pub if_present: Vec<OsString>,
    /// So are directories that carry a cache tag.
    pub caches: bool,
    /// Files with more bytes are left out.
    pub larger_than: Option<u64>,
    /// Mount points are kept empty.
    pub one_file_system: bool,
    /// Directories that are never entered, by whatever path they are met: the repository and its
    /// cache. They need not exist.
    pub never: Vec<PathBuf>,
}

/// A directory that is never entered.
#[derive(Debug)]
struct Never {
    path: PathBuf,
    met: AtomicBool,
}

/// The options, read and checked; shared between threads.
#[derive(Debug)]
pub struct Excludes {
    patterns: Vec<Pattern>,
    listed: Vec<Pattern>,
    sources: Vec<PathBuf>,
    markers: BTreeSet<Vec<u8>>,
    caches: bool,
    larger_than: Option<u64>,
    one_file_system: bool,
    /// By device and inode.
    never: HashMap<(u64, u64), Never>,
}

impl Excludes {
    /// Reads the files with patterns and paths and checks all patterns. `sources` are the backup's, absolute.
    pub fn new(options: &ExcludeOptions, sources: &[PathBuf]) -> Result<Self> {
        let excludes = Self {
            patterns: patterns(options)?,
            listed: listed::listed(&options.path_files)?,
            sources: sources.to_vec(),
            markers: options.if_present.iter().map(marker).collect::<Result<_>>()?,
            caches: options.caches,
            larger_than: options.larger_than,
            one_file_system: options.one_file_system,
            never: options.never.iter().filter_map(|path| never(path)).collect(),
        };
        for source in sources {
            excludes.below(source)?;
        }
        Ok(excludes)
    }

    /// What applies below one of the sources.
    pub fn below(&self, source: &Path) -> Result<SourceExcludes<'_>> {
        let mut all = builder();
        let mut each = Vec::new();
        for pattern in &self.patterns {
            if let Some(line) = self.line_below(source, &pattern.line) {
                add(&mut all, &line, pattern)?;
                let mut alone = builder();
                add(&mut alone, &line, pattern)?;
                each.push((pattern, build(&alone)?));
            }
        }
        let listed = listed::below(&self.listed, source);
        Ok(SourceExcludes { shared: self, all: build(&all)?, each, listed })
    }

    /// The patterns and listed paths that matched nothing below any source.
    pub fn unused(&self) -> Vec<String> {
        let patterns = self.patterns.iter().filter(|pattern| !pattern.has_matched());
        patterns.chain(listed::unused(&self.listed)).map(Pattern::text).collect()
    }

    /// Which of the directories that are never entered were met.
    pub fn met(&self) -> impl Iterator<Item = &Path> {
        self.never.values().filter(|never| never.met.load(Ordering::Relaxed)).map(|never| &*never.path)
    }

    /// A pattern as it is below `source`: one that begins with a source's path means that path
    /// and nothing below other sources. The path of the source itself means nothing: what was
    /// named is wanted.
    fn line_below(&self, source: &Path, line: &[u8]) -> Option<Vec<u8>> {
        let (not, pattern) = match line.strip_prefix(b"!") {
            Some(rest) => (&b"!"[..], rest),
            None => (&b""[..], line),
        };
        match strip_source(pattern, source) {
            Some(b"" | b"/") => None,
            Some(rest) => Some([not, rest].concat()),
            None if self.sources.iter().any(|other| strip_source(pattern, other).is_some()) => None,
            None => Some(line.to_vec()),
        }
    }
}

fn marker(name: &OsString) -> Result<Vec<u8>> {
    let name = name.clone().into_vec();
    if name.is_empty() || name.contains(&b'/') {
        let name = escape(&name);
        return Err(Error::Refused(format!("'{name}' is not a name that a directory can contain")));
    }
    Ok(name)
}

fn never(path: &Path) -> Option<((u64, u64), Never)> {
    let found = std_fs::metadata(path).ok()?;
    Some(((found.dev(), found.ino()), Never { path: path.to_path_buf(), met: AtomicBool::new(false) }))
}

/// What is left out below one source.
#[derive(Debug)]
pub struct SourceExcludes<'a> {
    shared: &'a Excludes,
    all: Gitignore,
    /// Each pattern alone. The matcher of all names only the one that decides, but those that it
    /// outranks have matched too.
    each: Vec<(&'a Pattern, Gitignore)>,
    /// Paths that are left out as they are.
    listed: HashMap<Vec<u8>, &'a Pattern>,
}

impl SourceExcludes<'_> {
    /// Whether patterns or lists leave out the entry at this path below the source. The directories above
    /// it must have been asked about before: what is in one that is left out is not reached.
    pub fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        if let Some(listed) = self.listed.get(path) {
            listed.note_match();
            return true;
        }
        let path = Path::new(OsStr::from_bytes(path));
        let decision = self.all.matched(path, is_dir);
        if !decision.is_none() {
            self.count(path, is_dir);
        }
        decision.is_ignore()
    }

    /// Whether an entry as a snapshot has it would be left out: for itself, or with a directory that
    /// it is in.
    pub fn would_exclude(&self, path: &[u8], is_dir: bool, len: u64) -> bool {
        let folders = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
        (!is_dir && len > self.shared.larger_than.unwrap_or(u64::MAX))
            || folders.into_iter().any(|folder| self.excludes(folder, true))
            || self.excludes(path, is_dir)
    }

    /// Most patterns match soon or never; those that did are not tried again.
    fn count(&self, path: &Path, is_dir: bool) {
        let open = self.each.iter().filter(|(pattern, _)| !pattern.has_matched());
        for (pattern, alone) in open {
            if !alone.matched(path, is_dir).is_none() {
                pattern.note_match();
            }
        }
    }

    fn is_too_large(&self, stat: &Stat) -> bool {
        let limit = self.shared.larger_than.unwrap_or(u64::MAX);
        kind(stat) == FileType::RegularFile && stat.st_size as u64 > limit
    }

    fn may_be_marker(&self, name: &[u8]) -> bool {
        self.shared.markers.contains(name) || (self.shared.caches && name == CACHE_TAG)
    }

    fn is_marker(&self, dir: BorrowedFd, name: &[u8]) -> bool {
        self.shared.markers.contains(name) || (self.shared.caches && name == CACHE_TAG && is_cache_tag(dir))
    }
}

impl Filter for SourceExcludes<'_> {
    /// Markers are always listed: a pattern that matches them must not hide what they say.
    fn lists(&self, path: &[u8], stat: &Stat) -> bool {
        if let Some(never) = self.shared.never.get(&(stat.st_dev, stat.st_ino)) {
            never.met.store(true, Ordering::Relaxed);
            return false;
        }
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        let is_dir = kind(stat) == FileType::Directory;
        self.may_be_marker(name) || !(self.excludes(path, is_dir) || self.is_too_large(stat))
    }

    fn empties(&self, dir: BorrowedFd, stat: &Stat, above: Option<&Stat>) -> Option<LeftOut> {
        // What was named as a source is wanted, whatever it is.
        if above.is_none_or(|above| above.st_dev == stat.st_dev) {
            return None;
        }
        match self.shared.one_file_system {
            true => Some(LeftOut::OtherFileSystem),
            false => kernel_file_system(dir, stat).map(LeftOut::KernelFileSystem),
        }
    }

    fn prunes(&self, dir: BorrowedFd, entries: &mut Vec<Listed>) -> Option<LeftOut> {
        let marker = entries.iter().find(|entry| self.is_marker(dir, &entry.name))?.name.clone();
        entries.retain(|entry| self.may_be_marker(&entry.name));
        Some(LeftOut::Marked(marker))
    }
}

/// Whether the directory's cache tag is one. One that cannot be read is none: better a cache in
/// the backup than a directory missing from it.
fn is_cache_tag(dir: BorrowedFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    fs::openat(dir, CACHE_TAG, flags, Mode::empty()).is_ok_and(begins_with_signature)
}

fn begins_with_signature(file: OwnedFd) -> bool {
    let mut start = [0; CACHE_SIGNATURE.len()];
    fs::fstat(&file).is_ok_and(|stat| kind(&stat) == FileType::RegularFile)
        && std_fs::File::from(file).read_exact(&mut start).is_ok()
        && start == *CACHE_SIGNATURE
}
