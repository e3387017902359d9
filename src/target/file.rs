//! A regular file that is written.
//!
//! A new file has its name at once, so that what an interrupted restore leaves can be completed
//! in place. A file that replaces another is made beside it, so that an interrupted restore leaves
//! the old one. Nothing here waits for the disk, unless it is told to.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, OFlags, fstat, fsync, ftruncate, openat};
use rustix::io::Errno;

use super::metadata::Metadata;
use super::place::Place;
use super::tree::{Found, Kind, TargetDir, checked};
use super::{Content, Counters, Counts, Empty, Existing, Sparse, bytes};
use crate::error::{Error, IoContext, Result};
use crate::format::tree::Entry;

/// Permissions of a file that gets its metadata later.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Permissions of a file that gets none, of which the process's mask is taken away.
const SHARED: Mode = Mode::from_raw_mode(0o666);

/// How a file is to be written.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileOptions {
    /// Its length in the end.
    pub size: u64,
    /// The length is not known yet, `size` is the most that it may be: see
    /// [`FileTarget::set_len`].
    pub open_ended: bool,
    /// A new file gets the permissions of other new files, not its owner's only.
    pub shared: bool,
    /// What becomes of zeros and holes.
    pub sparse: Sparse,
    /// What becomes of a file that has the name.
    pub existing: Existing,
}

/// A file being written. Dropped before [`FileTarget::finish`], it leaves what it was to replace.
pub struct FileTarget {
    dir: Arc<TargetDir>,
    fd: OwnedFd,
    path: PathBuf,
    size: u64,
    sparse: Sparse,
    /// Where it is, unless an existing file is written in place.
    place: Option<Place>,
    old: Old,
    counters: Counters,
}

/// What the file may hold already where something is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Old {
    /// A hole.
    Nothing,
    /// What is wanted, which is worth a look before writing.
    Alike,
    /// Anything.
    Anything,
}

impl FileTarget {
    /// Makes, or opens in place, the file `name`. Its length is set at once, its permissions are
    /// its owner's only until it gets its metadata, unless it is to be shared.
    pub fn create(dir: &Arc<TargetDir>, name: &[u8], options: &FileOptions) -> Result<Self> {
        let mode = if options.shared { SHARED } else { PRIVATE };
        let (fd, place) = open_file(dir, name, options.existing, mode)?;
        let file = Self {
            dir: Arc::clone(dir),
            fd,
            path: dir.path_of(name),
            size: options.size,
            sparse: options.sparse,
            old: if place.is_none() { Old::Alike } else { Old::Nothing },
            place,
            counters: Counters::default(),
        };
        if !options.open_ended
            && let Err(e) = file.set_len(options.size)
        {
            // Nobody misses a new file of no length.
            file.place.iter().for_each(|place| place.discard(dir));
            return Err(e);
        }
        Ok(file)
    }

    /// The same, but an existing file loses all that it holds.
    pub fn emptied(mut self) -> Result<Self> {
        let len = fstat(&self.fd).at("look at", &self.path)?.st_size;
        self.set_len(0)?;
        self.set_len(u64::try_from(len).unwrap_or(0))?;
        self.old = Old::Nothing;
        Ok(self)
    }

    /// The same, but what an existing file holds is not looked at before it is written over.
    #[must_use]
    pub fn unseen(mut self) -> Self {
        if self.old == Old::Alike {
            self.old = Old::Anything;
        }
        self
    }

    /// Gives the file a length.
    pub fn set_len(&self, len: u64) -> Result<()> {
        ftruncate(&self.fd, len).at("set the length of", &self.path)
    }

    /// Makes what was written so far durable.
    pub fn sync(&self) -> Result<()> {
        fsync(&self.fd).at("write out", &self.path)
    }

    /// Whether an existing file is written in place: what it holds is compared.
    pub fn is_in_place(&self) -> bool {
        self.place.is_none()
    }

    /// The file's path, for messages only.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Applies an entry's owner, permissions, attributes and times; after all is written.
    pub fn set_metadata(&self, metadata: &Metadata, entry: &Entry) -> Result<()> {
        metadata.apply_to_file(self.as_fd(), &self.path, entry)
    }

    /// Bytes that the file system has allocated for it so far.
    pub fn allocated(&self) -> Result<u64> {
        let stat = fstat(&self.fd).at("look at", &self.path)?;
        Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    }

    /// Gives the file its name.
    pub fn finish(mut self) -> Result<Counts> {
        if let Some(place) = self.place.take() {
            place.publish(&self.dir)?;
        }
        Ok(self.counters.get())
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Error::Internal("a range lies behind the end of the file")),
        }
    }

    /// Unwritten blocks: they read as zeros, and their space is taken.
    fn allocate_zeros(&self, offset: u64, len: u64) -> Result<()> {
        let flags = match self.old {
            Old::Nothing => FallocateFlags::empty(),
            Old::Alike | Old::Anything => FallocateFlags::ZERO_RANGE,
        };
        self.fallocate_or_write(flags, offset, len)
    }

    /// In a new file the hole is there already.
    fn make_hole(&self, offset: u64, len: u64) -> Result<()> {
        if self.old == Old::Nothing {
            return Ok(());
        }
        self.fallocate_or_write(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
    }

    fn fallocate_or_write(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<()> {
        if bytes::try_fallocate(self.as_fd(), flags, offset, len).at("allocate", &self.path)? {
            return Ok(());
        }
        bytes::write_zeros(self.as_fd(), offset, len).at("write zeros to", &self.path)
    }
}

impl Content for FileTarget {
    fn size(&self) -> u64 {
        self.size
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_range(offset, bytes.len() as u64)?;
        let counts = if self.old == Old::Alike {
            bytes::write_differing(self.as_fd(), offset, bytes).at("write to", &self.path)?
        } else {
            bytes::write_all_at(self.as_fd(), offset, bytes).at("write to", &self.path)?;
            Counts { written: bytes.len() as u64, ..Counts::default() }
        };
        self.counters.add(counts);
        Ok(())
    }

    fn zero_at(&self, offset: u64, len: u64, empty: Empty) -> Result<()> {
        self.check_range(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        match self.sparse.allocates(empty) {
            true => self.allocate_zeros(offset, len)?,
            false => self.make_hole(offset, len)?,
        }
        self.counters.add(Counts { zeroed: len, ..Counts::default() });
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        bytes::read_exact_at(self.as_fd(), offset, buffer).at("read", &self.path)
    }

    fn counts(&self) -> Counts {
        self.counters.get()
    }
}

impl AsFd for FileTarget {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for FileTarget {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            place.abandon(&self.dir);
        }
    }
}

/// Writes a whole file that is in memory, with its metadata: the short way for small files.
pub fn write_whole(
    dir: &TargetDir,
    bytes: &[u8],
    existing: Existing,
    metadata: &Metadata,
    entry: &Entry,
) -> Result<Counts> {
    let path = dir.path_of(&entry.name);
    let (fd, place) = open_file(dir, &entry.name, existing, PRIVATE)?;
    let filled = fill(fd.as_fd(), bytes, place.is_none())
        .at("write to", &path)
        .and_then(|counts| metadata.apply_to_file(fd.as_fd(), &path, entry).map(|()| counts));
    match (filled, place) {
        (Ok(counts), Some(place)) => place.publish(dir).map(|()| counts),
        (Err(e), Some(place)) => {
            place.abandon(dir);
            Err(e)
        }
        (filled, None) => filled,
    }
}

fn fill(fd: BorrowedFd, new: &[u8], in_place: bool) -> Result<Counts, Errno> {
    if in_place {
        ftruncate(fd, new.len() as u64)?;
        return bytes::write_differing(fd, 0, new);
    }
    bytes::write_all_at(fd, 0, new)?;
    Ok(Counts { written: new.len() as u64, ..Counts::default() })
}

/// Opens the existing file if it is to be kept, else makes a new one.
fn open_file(
    dir: &TargetDir,
    name: &[u8],
    existing: Existing,
    mode: Mode,
) -> Result<(OwnedFd, Option<Place>)> {
    if existing == Existing::InPlace
        && let Some(fd) = open_in_place(dir, name)?
    {
        return Ok((fd, None));
    }
    let (fd, place) = Place::make(dir, name, existing, |name| {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(dir, name, flags, mode)
    })?;
    Ok((fd, Some(place)))
}

/// The existing file, if it is one: devices and pipes are not even opened, as that alone can have
/// consequences.
fn open_in_place(dir: &TargetDir, name: &[u8]) -> Result<Option<OwnedFd>> {
    if dir.kind_of(name)? != Some(Kind::File) {
        return Ok(None);
    }
    match open_existing(dir, checked(name)?) {
        Ok(fd) => Ok(is_file(&fd).at("look at", dir.path_of(name))?.then_some(fd)),
        // It became something else, is a program that runs, or is read-only even for its owner: it
        // can be replaced, not written.
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::TXTBSY | Errno::ACCESS) => Ok(None),
        Err(e) => Err(e).at("open for writing", dir.path_of(name)),
    }
}

fn open_existing(dir: &TargetDir, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

fn is_file(fd: &OwnedFd) -> rustix::io::Result<bool> {
    Ok(Found::from_stat(&fstat(fd)?).kind == Kind::File)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::super::testing::{Victim, file_entry, target};
    use super::*;

    const MIB: u64 = 1 << 20;

    fn options(size: u64, sparse: Sparse, existing: Existing) -> FileOptions {
        FileOptions { size, sparse, existing, ..FileOptions::default() }
    }

    fn replacing(size: u64) -> FileOptions {
        options(size, Sparse::Always, Existing::Replace)
    }

    fn in_place(size: u64, sparse: Sparse) -> FileOptions {
        options(size, sparse, Existing::InPlace)
    }

    /// Data, zeros, data, a hole, a last byte of data; 4 MiB and a byte.
    fn write_pattern(file: &FileTarget) {
        file.write_at(2 * MIB, &vec![2; MIB as usize]).unwrap();
        file.zero_at(3 * MIB, MIB, Empty::Hole).unwrap();
        file.zero_at(MIB, MIB, Empty::Zero).unwrap();
        file.write_at(0, &vec![1; MIB as usize]).unwrap();
        file.write_at(4 * MIB, b"x").unwrap();
    }

    fn pattern() -> Vec<u8> {
        let mut bytes = vec![1; 4 * MIB as usize + 1];
        bytes[MIB as usize..2 * MIB as usize].fill(0);
        bytes[2 * MIB as usize..3 * MIB as usize].fill(2);
        bytes[3 * MIB as usize..4 * MIB as usize].fill(0);
        bytes[4 * MIB as usize] = b'x';
        bytes
    }

    fn allocated_mib(file: &FileTarget) -> u64 {
        fsync(file).unwrap();
        file.allocated().unwrap() / MIB
    }

    #[test]
    fn sparse_modes_of_a_new_file() {
        for (sparse, mib) in [(Sparse::Always, 2), (Sparse::Exact, 3), (Sparse::Never, 4)] {
            let (dir, target) = target();
            let options = options(4 * MIB + 1, sparse, Existing::Refuse);
            let file = FileTarget::create(&target, b"f", &options).unwrap();
            assert!(!file.is_in_place());
            write_pattern(&file);
            assert_eq!(allocated_mib(&file), mib, "{sparse:?}");
            let counts = file.finish().unwrap();
            assert_eq!(counts, Counts { written: 2 * MIB + 1, zeroed: 2 * MIB, equal: 0 });
            assert!(fs::read(dir.path().join("f")).unwrap() == pattern(), "{sparse:?}");
        }
    }

    #[test]
    fn sparse_modes_in_place() {
        for (sparse, mib) in [(Sparse::Always, 2), (Sparse::Exact, 3), (Sparse::Never, 4)] {
            let (dir, target) = target();
            let path = dir.path().join("f");
            fs::write(&path, vec![7; 5 * MIB as usize]).unwrap();
            let inode = fs::metadata(&path).unwrap().ino();
            let file = FileTarget::create(&target, b"f", &in_place(4 * MIB + 1, sparse)).unwrap();
            assert!(file.is_in_place());
            write_pattern(&file);
            assert_eq!(allocated_mib(&file), mib, "{sparse:?}");
            file.finish().unwrap();
            assert!(fs::read(&path).unwrap() == pattern(), "{sparse:?}");
            assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        }
    }

    #[test]
    fn odd_zeros_in_place() {
        for sparse in [Sparse::Always, Sparse::Exact, Sparse::Never] {
            let (dir, target) = target();
            let mut expected = vec![7; 300_000];
            fs::write(dir.path().join("f"), &expected).unwrap();
            let file = FileTarget::create(&target, b"f", &in_place(300_000, sparse)).unwrap();
            for (offset, len) in [(1, 1), (4095, 2), (10_001, 100_003), (299_999, 1), (5, 0)] {
                file.zero_at(offset, len, Empty::Zero).unwrap();
                expected[offset as usize..(offset + len) as usize].fill(0);
            }
            file.finish().unwrap();
            assert!(fs::read(dir.path().join("f")).unwrap() == expected, "{sparse:?}");
        }
    }

    #[test]
    fn in_place_counts_what_was_equal_and_keeps_links() {
        let (dir, target) = target();
        let path = dir.path().join("f");
        fs::write(&path, [1; 10_000]).unwrap();
        fs::hard_link(&path, dir.path().join("other")).unwrap();
        let file = FileTarget::create(&target, b"f", &in_place(20_000, Sparse::Always)).unwrap();
        let mut new = vec![1; 20_000];
        new[15_000] = 2;
        file.write_at(0, &new).unwrap();
        let mut back = vec![0; 20_000];
        file.read_at(0, &mut back).unwrap();
        assert!(back == new);
        let counts = file.finish().unwrap();
        // Equal are the two blocks that hold nothing but what was there.
        assert_eq!((counts.equal, counts.written), (8192, 20_000 - 8192));
        assert!(fs::read(dir.path().join("other")).unwrap() == new);
    }

    #[test]
    fn ranges_behind_the_end_are_refused() {
        let (_dir, target) = target();
        let file = FileTarget::create(&target, b"f", &replacing(10)).unwrap();
        assert!(file.write_at(9, b"ab").is_err());
        assert!(file.zero_at(u64::MAX, 2, Empty::Hole).is_err());
        file.write_at(8, b"ab").unwrap();
        assert_eq!(file.size(), 10);
    }

    #[test]
    fn an_existing_file_stays_until_the_new_one_is_complete() {
        let (dir, target) = target();
        let path = dir.path().join("f");
        fs::write(&path, "old").unwrap();
        let refused = options(3, Sparse::Always, Existing::Refuse);
        assert!(matches!(FileTarget::create(&target, b"f", &refused), Err(Error::Refused(_))));

        let file = FileTarget::create(&target, b"f", &replacing(3)).unwrap();
        file.write_at(0, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let names: Vec<_> = target.list().unwrap().map(Result::unwrap).collect();
        assert_eq!(names.iter().filter(|name| super::super::is_temporary_name(name)).count(), 1);
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let file = FileTarget::create(&target, b"f", &replacing(3)).unwrap();
        file.write_at(0, b"new").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_new_file_is_private_and_stays_when_interrupted() {
        let (dir, target) = target();
        let file = FileTarget::create(&target, b"f", &replacing(3)).unwrap();
        drop(file);
        let found = fs::metadata(dir.path().join("f")).unwrap();
        assert_eq!((found.permissions().mode() & 0o7777, found.len()), (0o600, 3));
    }

    #[test]
    fn directories_are_not_replaced() {
        let (dir, target) = target();
        fs::create_dir(dir.path().join("d")).unwrap();
        for existing in [Existing::Refuse, Existing::Replace, Existing::InPlace] {
            let made = FileTarget::create(&target, b"d", &options(1, Sparse::Always, existing));
            assert!(matches!(made, Err(Error::Refused(_))), "{existing:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn symlinks_in_the_way_lead_nowhere() {
        let victim = Victim::new();
        for existing in [Existing::Refuse, Existing::Replace, Existing::InPlace] {
            for to in [victim.file(), victim.dir().join("missing")] {
                let (dir, target) = target();
                symlink(&to, dir.path().join("f")).unwrap();
                let made = FileTarget::create(&target, b"f", &options(3, Sparse::Always, existing));
                if let Ok(file) = made {
                    file.write_at(0, b"new").unwrap();
                    file.set_metadata(&Metadata::default(), &file_entry("f")).unwrap();
                    file.finish().unwrap();
                    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"new");
                    assert!(!dir.path().join("f").is_symlink());
                } else {
                    assert_eq!(existing, Existing::Refuse);
                }
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
                victim.check();
            }
        }
    }

    #[test]
    fn pipes_and_devices_in_the_way_are_not_opened() {
        let (dir, target) = target();
        assert!(super::super::testing::run("mkfifo", &[dir.path().join("p").to_str().unwrap()]));
        let file = FileTarget::create(&target, b"p", &in_place(3, Sparse::Always)).unwrap();
        assert!(!file.is_in_place());
        file.finish().unwrap();
        assert!(fs::symlink_metadata(dir.path().join("p")).unwrap().is_file());
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        let (dir, target) = target();
        let outside = dir.path().join("../varv-escaped");
        for name in [&b"../varv-escaped"[..], b"/tmp/varv-escaped", b"", b".", b"..", b"a\0", b"a/b"] {
            let made = FileTarget::create(&target, name, &replacing(1));
            assert!(matches!(made, Err(Error::Refused(_))), "{name:?}");
        }
        assert!(!outside.exists());
    }

    #[test]
    fn a_program_that_runs_is_replaced() {
        let (dir, target) = target();
        let path = dir.path().join("sleep");
        fs::copy("/bin/sleep", &path).unwrap();
        let mut running = std::process::Command::new(&path).arg("20").spawn().unwrap();
        let file = FileTarget::create(&target, b"sleep", &in_place(3, Sparse::Always)).unwrap();
        assert!(!file.is_in_place());
        file.write_at(0, b"new").unwrap();
        file.finish().unwrap();
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn whole_files() {
        let (dir, target) = target();
        let path = dir.path().join("f");
        let metadata = Metadata::default();
        let entry = file_entry("f");
        let write = |bytes: &[u8], existing| write_whole(&target, bytes, existing, &metadata, &entry);
        write(b"one", Existing::Refuse).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o7777, found.mtime(), found.mtime_nsec()), (0o640, 1_000_000_000, 7));
        assert!(write(b"two", Existing::Refuse).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(write(b"three", Existing::Replace).unwrap().written, 5);
        assert_ne!(fs::metadata(&path).unwrap().ino(), found.ino());
        let inode = fs::metadata(&path).unwrap().ino();
        assert_eq!(write(b"thr", Existing::InPlace).unwrap().equal, 3);
        assert_eq!(fs::read(&path).unwrap(), b"thr");
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        write(b"", Existing::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(metadata.shortfalls().missed(), []);
    }

    #[test]
    fn whole_files_through_symlinks() {
        let victim = Victim::new();
        let (dir, target) = target();
        for existing in [Existing::Replace, Existing::InPlace] {
            let _ = fs::remove_file(dir.path().join("f"));
            symlink(victim.file(), dir.path().join("f")).unwrap();
            write_whole(&target, b"new", existing, &Metadata::default(), &file_entry("f")).unwrap();
            assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"new");
            victim.check();
        }
    }
}
