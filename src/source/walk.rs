//! Walks directories, each listed sorted by name, with look-ahead.
//!
//! The consumer recurses by itself and asks for one directory at a time. A cold disk wants many
//! requests in flight, so a few threads list the directories that the consumer will ask for
//! next. The look-ahead is bounded; past the bound its threads rest and the consumer lists
//! what it needs itself. It never waits for anything but a listing that a thread is at work on,
//! so there is nothing to deadlock on.
//!
//! Everything is opened relative to the directory above it and without following symlinks: paths
//! may be longer than the kernel takes, and nobody can lead the walk elsewhere by swapping a
//! directory for a symlink. Names come and go while they are listed; what fails concerns one
//! entry or one directory.

mod ahead;

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, Scope};

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::metadata::kind;
use crate::error::{Error, IoContext, Result};
pub use ahead::{AHEAD_DIRS_MAX, AHEAD_ENTRIES_MAX, DirHandle};
use ahead::{Above, Board, Running, Slot, State};

/// How deep directories may be nested; each level keeps a descriptor open.
pub const DEPTH_MAX: usize = 2048;
/// Look-ahead threads, where nothing else is asked for: a cold disk wants many requests in flight,
/// while more threads only contend where all is cached (measured: 4, 8, 12, 24).
pub const THREADS_DEFAULT: usize = 8;
/// For reading directories: as much as the kernel fills in one call on most file systems.
const READ_BUFFER_LEN: usize = 32 << 10;

/// Decides what a walk leaves out. Called from any thread, also for what is never asked for.
pub trait Filter: Sync {
    /// Whether the entry is listed at all; `path` is relative to the walk's root.
    fn lists(&self, _path: &[u8], _stat: &Stat) -> bool {
        true
    }

    /// Why the content of this directory, just opened, is left out, if it is. `above` is the
    /// stat of the directory that it was met in; it is `None` for the root.
    fn empties(&self, _dir: BorrowedFd, _stat: &Stat, _above: Option<&Stat>) -> Option<LeftOut> {
        None
    }

    /// Looks at all entries of a directory and takes away what is to be left out.
    fn prunes(&self, _dir: BorrowedFd, _entries: &mut Vec<Listed>) -> Option<LeftOut> {
        None
    }
}

/// Leaves nothing out.
pub struct Everything;

impl Filter for Everything {}

/// Why a directory's content was left out; the directory itself is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftOut {
    /// Another file system is mounted here, and the walk was to stay on one.
    OtherFileSystem,
    /// A file system of the kernel's own, such as `proc`.
    KernelFileSystem(&'static str),
    /// It has an entry of this name, which marks it as not worth a backup.
    Marked(Vec<u8>),
}

/// A directory's content.
#[derive(Debug)]
pub struct Listing {
    /// The directory, open; what is in it is opened relative to it.
    pub dir: Arc<OwnedFd>,
    /// The directory's own stat, taken from the open descriptor.
    pub stat: Stat,
    /// Its entries in ascending byte order of their names.
    pub entries: Vec<Listed>,
    /// Why there are fewer entries than in the directory.
    pub left_out: Option<LeftOut>,
}

/// An entry of a directory.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: Vec<u8>,
    /// Its stat, of a symlink itself; the error if it vanished or cannot be read.
    pub stat: Result<Stat>,
    /// What to ask the walker for, if it is a directory.
    pub subdir: Option<DirHandle>,
}

/// Lists directories for one consumer; dropping it ends its threads.
pub struct Walker<'a> {
    lister: Arc<Lister<'a>>,
}

impl<'a> Walker<'a> {
    /// A walk below `root`, which is followed if it is a symlink, with `threads` that look ahead;
    /// 0 is allowed.
    pub fn new(
        scope: &'a Scope<'a, '_>,
        root: impl Into<PathBuf>,
        threads: usize,
        filter: &'a dyn Filter,
    ) -> Self {
        let lister = Arc::new(Lister { root: root.into(), filter, board: Arc::default() });
        for _ in 0..threads {
            let lister = lister.clone();
            // Without its threads a walk is slower, and nothing else.
            let _ = Builder::new().name("walk".into()).spawn_scoped(scope, move || lister.look_ahead());
        }
        Self { lister }
    }

    /// The handle of the root, to begin with.
    pub fn root(&self) -> DirHandle {
        DirHandle { slot: Arc::new(Slot::root()), board: self.lister.board.clone() }
    }

    /// The content of a directory.
    pub fn take(&self, handle: DirHandle) -> Result<Listing> {
        match handle.slot.claim() {
            State::Done(listing, _permit) => *listing,
            _ => {
                self.lister.board.withdraw(&handle.slot);
                self.lister.list(&handle.slot)
            }
        }
    }
}

impl Drop for Walker<'_> {
    fn drop(&mut self) {
        self.lister.board.stop();
    }
}

struct Lister<'a> {
    root: PathBuf,
    filter: &'a dyn Filter,
    board: Arc<Board>,
}

impl Lister<'_> {
    fn look_ahead(&self) {
        while let Some((slot, permit)) = self.board.next() {
            if slot.start() {
                Running { slot: &slot, permit: Some(permit) }.finish(self.list(&slot));
            }
        }
    }

    fn list(&self, slot: &Slot) -> Result<Listing> {
        let path = self.path(&slot.path.whole());
        if slot.path.depth() > DEPTH_MAX {
            let source = std::io::Error::other(format!("directories are nested more than {DEPTH_MAX} deep"));
            return Err(Error::Io { action: "read", path, source });
        }
        let dir = self.open(slot).at("open", &path)?;
        let stat = fs::fstat(&dir).at("read", &path)?;
        let above = Above { dir: Arc::new(dir), stat };
        let mut listing = self.content(slot, &above)?;
        if listing.left_out.is_none() {
            listing.left_out = self.filter.prunes(above.dir.as_fd(), &mut listing.entries);
        }
        let subdirs = listing.entries.iter().filter_map(|entry| entry.subdir.as_ref());
        self.board.offer(subdirs.map(|handle| handle.slot.clone()));
        Ok(listing)
    }

    /// Root may read without leaving an access time behind; others may do so with files of
    /// their own only.
    fn open(&self, slot: &Slot) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |more| match &slot.above {
            None => fs::openat(CWD, &self.root, flags | more, Mode::empty()),
            Some(above) => {
                fs::openat(&above.dir, slot.path.name(), flags | OFlags::NOFOLLOW | more, Mode::empty())
            }
        };
        match open(OFlags::NOATIME) {
            Err(Errno::PERM) => open(OFlags::empty()),
            result => result,
        }
    }

    fn content(&self, slot: &Slot, dir: &Above) -> Result<Listing> {
        let above = slot.above.as_ref().map(|above| &above.stat);
        let left_out = self.filter.empties(dir.dir.as_fd(), &dir.stat, above);
        let entries = match left_out {
            Some(_) => Vec::new(),
            None => self.entries(slot, dir)?,
        };
        Ok(Listing { dir: dir.dir.clone(), stat: dir.stat, entries, left_out })
    }

    fn entries(&self, slot: &Slot, dir: &Above) -> Result<Vec<Listed>> {
        let path = slot.path.whole();
        let mut names = read_names(&dir.dir).at("read", self.path(&path))?;
        // Inodes next to each other lie in the same blocks of the disk; names mostly do not.
        names.sort_unstable();
        let mut entries: Vec<_> =
            names.into_iter().filter_map(|(_, name)| self.entry(slot, &path, dir, name)).collect();
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        // A directory that changes while it is read may show an entry twice.
        entries.dedup_by(|a, b| a.name == b.name);
        Ok(entries)
    }

    fn entry(&self, slot: &Slot, above: &[u8], dir: &Above, name: Vec<u8>) -> Option<Listed> {
        let path = join(above, &name);
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let stat = match fs::statat(&dir.dir, &name[..], flags) {
            Ok(stat) => stat,
            failed => return Some(Listed { name, stat: failed.at("read", self.path(&path)), subdir: None }),
        };
        if !self.filter.lists(&path, &stat) {
            return None;
        }
        let subdir = (kind(&stat) == FileType::Directory)
            .then(|| DirHandle { slot: slot.child(&name, dir.clone()), board: self.board.clone() });
        Some(Listed { name, stat: Ok(stat), subdir })
    }

    fn path(&self, below: &[u8]) -> PathBuf {
        match below {
            b"" => self.root.clone(),
            below => self.root.join(Path::new(OsStr::from_bytes(below))),
        }
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// All names in a directory, with their inodes' numbers.
fn read_names(dir: &OwnedFd) -> rustix::io::Result<Vec<(u64, Vec<u8>)>> {
    let mut names = Vec::new();
    let mut buffer = Vec::with_capacity(READ_BUFFER_LEN);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !is_dots(entry.file_name()) {
            names.push((entry.ino(), entry.file_name().to_bytes().to_vec()));
        }
    }
    Ok(names)
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Raises the number of files that the process may have open to what the system allows, and
/// returns it. A walk holds one for each level of directories, and its look-ahead
/// [`AHEAD_DIRS_MAX`].
pub fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering as Atomic};
    use std::time::{Duration, Instant};

    use super::*;

    type Found = Vec<(Vec<u8>, FileType, u64)>;

    /// All that a walk finds, in its order; `wanted` says which directories are asked for.
    fn walk(root: &Path, threads: usize, wanted: impl Fn(&[u8]) -> bool) -> Found {
        let mut found = Found::new();
        std::thread::scope(|scope| {
            let walker = Walker::new(scope, root, threads, &Everything);
            collect(&walker, walker.root(), &wanted, &mut found);
            assert_given_back(&walker.lister.board);
        });
        found
    }

    /// Nothing is left of the look-ahead. A thread may still be at work on a directory that was
    /// not wanted, so this may take a moment.
    fn assert_given_back(board: &Board) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = board.under_way();
            if left == (0, 0, 0) {
                return;
            }
            assert!(Instant::now() < deadline, "waiting, directories, entries: {left:?}");
            std::thread::yield_now();
        }
    }

    fn collect(walker: &Walker, handle: DirHandle, wanted: &dyn Fn(&[u8]) -> bool, found: &mut Found) {
        let above = handle.path().whole();
        let listing = walker.take(handle).unwrap();
        assert_eq!(listing.left_out, None);
        for entry in listing.entries {
            let stat = entry.stat.unwrap();
            let path = join(&above, &entry.name);
            found.push((path, kind(&stat), stat.st_ino));
            if let Some(subdir) = entry.subdir
                && wanted(&subdir.path().whole())
            {
                collect(walker, subdir, wanted, found);
            }
        }
    }

    /// The same by other means.
    fn oracle(root: &Path, above: &[u8], wanted: &dyn Fn(&[u8]) -> bool, found: &mut Found) {
        use std::os::unix::fs::MetadataExt;
        let mut entries: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap()).collect();
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let metadata = entry.path().symlink_metadata().unwrap();
            let path = join(above, entry.file_name().as_bytes());
            found.push((path.clone(), FileType::from_raw_mode(metadata.mode()), metadata.ino()));
            if metadata.is_dir() && wanted(&path) {
                oracle(&entry.path(), &path, wanted, found);
            }
        }
    }

    /// Pseudo-random numbers, the same in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }
    }

    fn grow(dir: &Path, depth: u64, random: &mut Random) {
        for i in 0..random.below(12) {
            // Names that sort otherwise than whole paths would, and some that are not UTF-8.
            let ends: [&[u8]; 6] = [b"", b"!", b".x", b"-y", b"\xff", b" z"];
            let name = [format!("{}", i / 3).as_bytes(), ends[random.below(6) as usize]].concat();
            let path = dir.join(OsStr::from_bytes(&name));
            let _ = match random.below(6) {
                0 | 1 if depth > 0 => std::fs::create_dir(&path).map(|()| grow(&path, depth - 1, random)),
                2 => std::os::unix::fs::symlink("..", &path),
                _ => std::fs::File::create_new(&path).map(drop),
            };
        }
    }

    #[test]
    fn random_trees_are_found_whole() {
        for seed in 0..8 {
            let root = tempfile::tempdir().unwrap();
            for i in 0..8 {
                let dir = root.path().join(format!("d{i}"));
                std::fs::create_dir(&dir).unwrap();
                grow(&dir, 5, &mut Random(seed * 8 + i));
            }
            // In odd runs some directories are never asked for.
            let wanted = |path: &[u8]| seed.is_multiple_of(2) || !path.len().is_multiple_of(5);
            let mut expected = Found::new();
            oracle(root.path(), b"", &wanted, &mut expected);
            for threads in [0, 1, 8] {
                assert_eq!(walk(root.path(), threads, wanted), expected, "seed {seed}, {threads} threads");
            }
        }
    }

    #[test]
    fn a_large_directory() {
        let root = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(root.path()).unwrap();
        for i in 0..20_000 {
            let flags = OFlags::CREATE | OFlags::WRONLY;
            fs::openat(&dir, format!("{}", i * 7919 % 20_000), flags, Mode::RUSR).unwrap();
        }
        let found = walk(root.path(), 2, |_| true);
        assert_eq!(found.len(), 20_000);
        assert!(found.is_sorted_by(|a, b| a.0 < b.0));
    }

    /// Makes `name/name/…`; returns the innermost directory.
    fn nest(root: &Path, name: &str, depth: usize) -> OwnedFd {
        let open = |dir: &OwnedFd, name: &str| {
            fs::openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
        };
        let mut dir: OwnedFd = std::fs::File::open(root).unwrap().into();
        for _ in 0..depth {
            fs::mkdirat(&dir, name, Mode::RWXU).unwrap();
            dir = open(&dir, name);
        }
        dir
    }

    #[test]
    fn paths_may_be_longer_than_the_kernel_takes() {
        let root = tempfile::tempdir().unwrap();
        let name = "n".repeat(250);
        let dir = nest(root.path(), &name, 20);
        fs::openat(&dir, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        for threads in [0, 4] {
            let found = walk(root.path(), threads, |_| true);
            assert_eq!(found.len(), 21);
            assert!(found[20].0.len() > 5000 && found[20].0.ends_with(b"/file"));
        }
    }

    #[test]
    fn depth_is_bounded() {
        assert!(raise_file_limit() > 1000);
        let root = tempfile::tempdir().unwrap();
        nest(root.path(), "d", DEPTH_MAX + 1);
        std::thread::scope(|scope| {
            let walker = Walker::new(scope, root.path(), 1, &Everything);
            let mut handle = walker.root();
            for _ in 0..=DEPTH_MAX {
                handle = walker.take(handle).unwrap().entries.remove(0).subdir.unwrap();
            }
            let error = walker.take(handle).unwrap_err();
            assert!(error.to_string().contains("2048 deep"), "{error}");
        });
        // Too deep for a recursive removal on a test's stack.
        Builder::new().stack_size(64 << 20).spawn(|| root.close()).unwrap().join().unwrap().unwrap();
    }

    fn take_root<'a>(walker: &Walker<'a>) -> Vec<Listed> {
        walker.take(walker.root()).unwrap().entries
    }

    #[test]
    fn a_directory_that_vanished_is_one_error() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        std::thread::scope(|scope| {
            let walker = Walker::new(scope, root.path(), 0, &Everything);
            let entries = take_root(&walker);
            std::fs::remove_dir(root.path().join("a")).unwrap();
            std::fs::remove_dir(root.path().join("b")).unwrap();
            std::os::unix::fs::symlink("c", root.path().join("b")).unwrap();
            let mut results = entries.into_iter().map(|entry| walker.take(entry.subdir.unwrap()));
            let gone = results.next().unwrap().unwrap_err();
            assert_eq!(gone.io().unwrap().kind(), std::io::ErrorKind::NotFound);
            assert!(gone.to_string().contains(&format!("{}/a", root.path().display())), "{gone}");
            assert!(results.next().unwrap().is_err(), "the symlink was followed");
            assert!(results.next().unwrap().is_ok());
        });
        let root = root.path().join("missing");
        std::thread::scope(|scope| {
            let walker = Walker::new(scope, &root, 1, &Everything);
            assert!(walker.take(walker.root()).is_err());
        });
    }

    /// Removes all other files when it sees the first.
    struct Remover(PathBuf, AtomicBool);

    impl Filter for Remover {
        fn lists(&self, path: &[u8], _: &Stat) -> bool {
            if !self.1.swap(true, Atomic::Relaxed) {
                for entry in std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap()) {
                    if entry.file_name().as_bytes() != path {
                        std::fs::remove_file(entry.path()).unwrap();
                    }
                }
            }
            true
        }
    }

    #[test]
    fn a_file_that_vanished_is_one_error() {
        let root = tempfile::tempdir().unwrap();
        for i in 0..10 {
            std::fs::write(root.path().join(format!("{i}")), "").unwrap();
        }
        let filter = Remover(root.path().into(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let entries = take_root(&Walker::new(scope, root.path(), 0, &filter));
            assert_eq!(entries.len(), 10);
            let errors: Vec<_> = entries.into_iter().filter_map(|entry| entry.stat.err()).collect();
            assert_eq!(errors.len(), 9);
            assert!(errors.iter().all(|e| e.io().unwrap().kind() == std::io::ErrorKind::NotFound));
        });
    }

    #[test]
    fn directories_come_and_go_while_they_are_walked() {
        let root = tempfile::tempdir().unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in (0..40).cycle().take_while(|_| !stop.load(Atomic::Relaxed)) {
                    let dir = root.path().join(format!("{i}"));
                    let _ = std::fs::create_dir_all(dir.join("a/b"));
                    let _ = std::fs::remove_dir_all(root.path().join(format!("{}", (i + 20) % 40)));
                }
            });
            for _ in 0..100 {
                std::thread::scope(|inner| {
                    let walker = Walker::new(inner, root.path(), 4, &Everything);
                    let mut handles: Vec<_> = vec![walker.root()];
                    while let Some(handle) = handles.pop() {
                        let Ok(listing) = walker.take(handle) else { continue };
                        handles.extend(listing.entries.into_iter().filter_map(|entry| entry.subdir));
                    }
                });
            }
            stop.store(true, Atomic::Relaxed);
        });
    }

    /// Counts directories opened.
    #[derive(Default)]
    struct Counter(AtomicU64);

    impl Filter for Counter {
        fn empties(&self, _: BorrowedFd, _: &Stat, _: Option<&Stat>) -> Option<LeftOut> {
            self.0.fetch_add(1, Atomic::Relaxed);
            None
        }
    }

    fn eventually(condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(60), "it never happened");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn look_ahead_is_bounded() {
        let root = tempfile::tempdir().unwrap();
        for i in 0..AHEAD_DIRS_MAX + 100 {
            std::fs::create_dir(root.path().join(format!("{i:04}"))).unwrap();
        }
        let counter = Counter::default();
        std::thread::scope(|scope| {
            let walker = Walker::new(scope, root.path(), 4, &counter);
            let mut entries = take_root(&walker);
            let listed = || counter.0.load(Atomic::Relaxed) as usize;
            eventually(|| listed() == 1 + AHEAD_DIRS_MAX);
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(listed(), 1 + AHEAD_DIRS_MAX);
            // The last ones are beyond the bound: listed at once, by this thread.
            let last = entries.pop().unwrap();
            assert!(walker.take(last.subdir.unwrap()).unwrap().entries.is_empty());
            assert_eq!(listed(), 2 + AHEAD_DIRS_MAX);
            // Asked for or dropped, the first ones make room for others.
            let mut entries = entries.into_iter();
            walker.take(entries.next().unwrap().subdir.unwrap()).unwrap();
            drop(entries.next());
            eventually(|| listed() == 4 + AHEAD_DIRS_MAX);
        });
    }

    #[test]
    fn a_walk_may_end_at_any_time() {
        let root = tempfile::tempdir().unwrap();
        grow(root.path(), 5, &mut Random(3));
        for _ in 0..50 {
            std::thread::scope(|scope| {
                let walker = Walker::new(scope, root.path(), 4, &Everything);
                let entries = take_root(&walker);
                drop(walker);
                drop(entries);
            });
        }
    }

    #[test]
    fn a_root_may_be_a_symlink() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("dir")).unwrap();
        std::fs::write(root.path().join("dir/file"), "").unwrap();
        std::os::unix::fs::symlink("dir", root.path().join("link")).unwrap();
        assert_eq!(walk(&root.path().join("link"), 1, |_| true).len(), 1);
    }
}
