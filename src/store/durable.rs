//! The one atomic write, and what makes it last.
//!
//! | step | after a loss of power at this point |
//! |---|---|
//! | a file of a unique name in `tmp/` is written | nothing is visible; the exclusive lock's holder sweeps it |
//! | the file is synced | the same |
//! | it is renamed to its name, which must be free | the object is there, whole, or not there |
//! | [`Durable::barrier`] syncs the folder | the object is there |
//!
//! Folders are synced late and each once, because a backup publishes thousands of packs and only
//! the snapshot that names them needs them to last.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{self as sys, Advice, AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{UNFINISHED, Upload, checked, parent};
use crate::error::{Error, IoContext, Result};

/// Bytes collected before the kernel is asked to write.
const BUFFER_LEN: usize = 256 << 10;
/// Bytes after which writing to the disk begins, so that the sync at the end has little to wait for.
const WRITEBACK_LEN: u64 = 8 << 20;
const FOLDER_MODE: Mode = Mode::RWXU;

/// A folder in which objects are made to appear and vanish.
pub(super) struct Durable {
    root: OwnedFd,
    path: PathBuf,
    session: u64,
    count: AtomicU64,
    marks: Mutex<Marks>,
    /// Held throughout a barrier: a second one must not return while the first still syncs what
    /// both have to wait for.
    syncing: Mutex<()>,
}

/// What the next barrier has to sync.
#[derive(Default)]
struct Marks {
    dirty: BTreeSet<String>,
    /// Folders whose own entries are known to be durable, up to the root. A folder that was
    /// merely found may have been made by a process that was killed before its barrier.
    anchored: BTreeSet<String>,
    /// Why a barrier failed. The kernel tells of a lost write once; the next sync would succeed
    /// although nothing was written, so it is not tried.
    broken: Option<Error>,
}

/// Gives a temporary file its name.
type Way = fn(&Durable, temporary: &str, name: &str) -> rustix::io::Result<()>;

/// How to publish under a free name, best first; the next is tried where the file system does
/// not know one.
const IF_FREE: &[Way] = &[Durable::rename_if_free, Durable::link_if_free, Durable::rename_if_absent];

impl Durable {
    /// Writes nothing. `path` is for messages.
    pub fn new(root: OwnedFd, path: &Path) -> Result<Arc<Self>> {
        let session = getrandom::u64().map_err(io::Error::other).at("name temporary files in", path)?;
        Ok(Arc::new(Self {
            root,
            path: path.to_path_buf(),
            session,
            count: AtomicU64::new(0),
            marks: Mutex::default(),
            syncing: Mutex::default(),
        }))
    }

    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins an object.
    pub fn create(self: &Arc<Self>) -> Result<Temporary> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let name = format!("{UNFINISHED}/{}-{:016x}-{count}", std::process::id(), self.session);
        let path = self.path.join(&name);
        let file = self.in_folder(&name, || self.open_new(&name)).at("create", &path)?;
        let file = BufWriter::with_capacity(BUFFER_LEN, File::from(file));
        Ok(Temporary {
            home: Arc::clone(self),
            name,
            path,
            file,
            written: 0,
            started: 0,
            failed: false,
            ways: IF_FREE,
        })
    }

    fn open_new(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        sys::openat(&self.root, name, flags, Mode::RUSR | Mode::WUSR)
    }

    /// Does `what` to `name`, making its folders first if they turn out to be absent.
    fn in_folder<T>(&self, name: &str, what: impl Fn() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
        match what() {
            Err(Errno::NOENT) => {
                self.make_folder(parent(name))?;
                what()
            }
            other => other,
        }
    }

    fn make_folder(&self, folder: &str) -> rustix::io::Result<()> {
        match sys::mkdirat(&self.root, folder, FOLDER_MODE) {
            Err(Errno::NOENT) if folder.contains('/') => {
                self.make_folder(parent(folder))?;
                self.make_folder(folder)
            }
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    /// Removes an object, if it is there.
    pub fn remove(&self, name: &str) -> Result<()> {
        let removed = sys::unlinkat(&self.root, name, AtFlags::empty());
        self.mark(name);
        match removed {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(e) => Err(e).at("remove", self.path.join(name)),
        }
    }

    /// Lets the next barrier make `name` durable, or its absence. The mark must come after the
    /// change: a barrier in between would sync too early and take the mark away.
    pub fn mark(&self, name: &str) {
        let mut marks = unpoisoned(&self.marks);
        let mut folder = parent(name);
        marks.dirty.insert(folder.to_owned());
        while !folder.is_empty() && !marks.anchored.contains(folder) {
            folder = parent(folder);
            marks.dirty.insert(folder.to_owned());
        }
    }

    /// Makes all names published and removed so far durable.
    pub fn barrier(&self) -> Result<()> {
        let _alone = unpoisoned(&self.syncing);
        let folders = self.take_marks()?;
        let synced = folders.iter().try_for_each(|folder| self.sync_folder(folder));
        let mut marks = unpoisoned(&self.marks);
        match synced {
            Ok(()) => marks.anchored.extend(folders),
            Err(e) => marks.broken = Some(e),
        }
        check(&marks)
    }

    fn take_marks(&self) -> Result<BTreeSet<String>> {
        let mut marks = unpoisoned(&self.marks);
        check(&marks)?;
        Ok(std::mem::take(&mut marks.dirty))
    }

    fn sync_folder(&self, folder: &str) -> Result<()> {
        let path = self.path.join(folder);
        let name = if folder.is_empty() { "." } else { folder };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match sys::openat(&self.root, name, flags, Mode::empty()) {
            Ok(fd) => sync(&File::from(fd)).at("sync", path),
            // Something was to be removed from a folder that never was.
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e).at("open", path),
        }
    }

    /// The rename that fails if the name is taken.
    fn rename_if_free(&self, temporary: &str, name: &str) -> rustix::io::Result<()> {
        sys::renameat_with(&self.root, temporary, &self.root, name, RenameFlags::NOREPLACE)
    }

    /// For NFS and older FUSE file systems. A temporary name that stays behind is swept later.
    fn link_if_free(&self, temporary: &str, name: &str) -> rustix::io::Result<()> {
        match sys::linkat(&self.root, temporary, &self.root, name, AtFlags::empty()) {
            // An NFS server whose answer was lost is asked again and finds its own work.
            Err(Errno::EXIST) if self.is_linked_twice(temporary) => {}
            other => other?,
        }
        let _ = sys::unlinkat(&self.root, temporary, AtFlags::empty());
        Ok(())
    }

    fn is_linked_twice(&self, temporary: &str) -> bool {
        sys::statat(&self.root, temporary, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_nlink == 2)
    }

    /// For file systems without links. Two processes may both find the name free, but names are
    /// hashes of content: the second puts the same bytes in place of the first's.
    fn rename_if_absent(&self, temporary: &str, name: &str) -> rustix::io::Result<()> {
        match sys::statat(&self.root, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => self.rename_over(temporary, name),
            Err(e) => Err(e),
        }
    }

    fn rename_over(&self, temporary: &str, name: &str) -> rustix::io::Result<()> {
        sys::renameat(&self.root, temporary, &self.root, name)
    }
}

/// A file in `tmp/`, removed when it is dropped before it got its name.
pub(super) struct Temporary {
    home: Arc<Durable>,
    name: String,
    path: PathBuf,
    file: BufWriter<File>,
    written: u64,
    /// How much of it the kernel was asked to write to the disk.
    started: u64,
    /// A write failed, so that content is missing.
    failed: bool,
    ways: &'static [Way],
}

impl Upload for Temporary {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes);
        self.failed |= written.is_err();
        written.at("write", &self.path)?;
        self.written += bytes.len() as u64;
        if self.written - self.started >= WRITEBACK_LEN {
            self.start_writeback();
        }
        Ok(())
    }

    fn publish(self: Box<Self>, name: &str) -> Result<()> {
        let ways = self.ways;
        self.finish(name, ways)
    }

    fn replace(self: Box<Self>, name: &str) -> Result<()> {
        self.finish(name, &[Durable::rename_over])
    }
}

impl Temporary {
    /// "Not needed soon" makes the kernel begin to write dirty pages without waiting for them,
    /// and keeps packs, which nobody reads again soon, from driving out what others have cached.
    /// What fails then is reported by the sync.
    fn start_writeback(&mut self) {
        let len = NonZeroU64::new(self.written - self.started);
        let _ = sys::fadvise(self.file.get_ref(), self.started, len, Advice::DontNeed);
        self.started = self.written;
    }

    fn finish(mut self, name: &str, ways: &[Way]) -> Result<()> {
        checked(name)?;
        if self.failed {
            return Err(Error::Internal("an object was to be published after a write to it failed"));
        }
        self.file.flush().and_then(|()| sync(self.file.get_ref())).at("write", &self.path)?;
        let named = self.home.in_folder(name, || self.try_ways(name, ways));
        // Also if it failed: the name may be taken by an object that is not durable yet.
        self.home.mark(name);
        named.at("publish", self.home.path.join(name))?;
        self.name.clear();
        Ok(())
    }

    fn try_ways(&self, name: &str, ways: &[Way]) -> rustix::io::Result<()> {
        let mut result = Err(Errno::NOSYS);
        for way in ways {
            if !matches!(result, Err(e) if is_unknown(e)) {
                break;
            }
            result = way(&self.home, &self.name, name);
        }
        result
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            let _ = sys::unlinkat(&self.home.root, &self.name, AtFlags::empty());
        }
    }
}

/// What file systems answer to a way of naming they do not know; EPERM is FAT's answer to links.
fn is_unknown(error: Errno) -> bool {
    [Errno::NOSYS, Errno::INVAL, Errno::OPNOTSUPP, Errno::PERM].contains(&error)
}

/// Syncs a file or folder, unless its file system has no such notion, as some network ones.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(e) if [Some(Errno::INVAL), Some(Errno::OPNOTSUPP)].contains(&Errno::from_io_error(&e)) => Ok(()),
        other => other,
    }
}

fn check(marks: &Marks) -> Result<()> {
    marks.broken.as_ref().map_or(Ok(()), |e| Err(e.duplicate()))
}

/// What these mutexes guard is whole between any two statements, so a panic elsewhere is no
/// reason to give up.
pub(crate) fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn home() -> (tempfile::TempDir, Arc<Durable>) {
        let folder = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(File::open(folder.path()).unwrap());
        let durable = Durable::new(root, folder.path()).unwrap();
        (folder, durable)
    }

    fn put(home: &Arc<Durable>, name: &str, ways: &'static [Way]) -> Result<()> {
        let mut upload = Box::new(home.create()?);
        upload.ways = ways;
        upload.write(name.as_bytes())?;
        upload.publish(name)
    }

    fn unfinished(folder: &tempfile::TempDir) -> usize {
        fs::read_dir(folder.path().join(UNFINISHED)).unwrap().count()
    }

    fn dirty(home: &Durable) -> Vec<String> {
        unpoisoned(&home.marks).dirty.iter().cloned().collect()
    }

    fn unknown(_: &Durable, _: &str, _: &str) -> rustix::io::Result<()> {
        Err(Errno::INVAL)
    }

    #[test]
    fn every_way_publishes_once() {
        const WAYS: [&[Way]; 3] =
            [IF_FREE, &[unknown, Durable::link_if_free], &[unknown, unknown, Durable::rename_if_absent]];
        for ways in WAYS {
            let (folder, home) = home();
            put(&home, "packs/ab/x", ways).unwrap();
            let error = put(&home, "packs/ab/x", ways).unwrap_err();
            assert_eq!(error.io().unwrap().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read(folder.path().join("packs/ab/x")).unwrap(), b"packs/ab/x");
            assert_eq!(unfinished(&folder), 0);
        }
    }

    #[test]
    fn what_no_way_can_do_is_an_error_and_leaves_nothing() {
        let (folder, home) = home();
        assert!(put(&home, "packs/ab/x", &[unknown]).is_err());
        assert_eq!(unfinished(&folder), 0);
    }

    #[test]
    fn a_link_whose_answer_was_lost_counts_as_made() {
        let (folder, home) = home();
        let upload = home.create().unwrap();
        fs::hard_link(&upload.path, folder.path().join("x")).unwrap();
        Box::new(upload).finish("x", &[Durable::link_if_free]).unwrap();
        assert_eq!(unfinished(&folder), 0);
    }

    #[test]
    fn a_full_disk_is_reported_and_nothing_stays() {
        for len in [1, BUFFER_LEN * 3] {
            let (folder, home) = home();
            let mut upload = Box::new(home.create().unwrap());
            let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            upload.file = BufWriter::with_capacity(BUFFER_LEN, full);
            // Small objects fail when they are flushed, large ones while they are written.
            let error = upload.write(&vec![1; len]).and_then(|()| upload.publish("x")).unwrap_err();
            assert!(error.is_out_of_space(), "{error}");
            assert!(!folder.path().join("x").exists());
            assert_eq!(unfinished(&folder), 0);
        }
    }

    #[test]
    fn an_object_with_a_failed_write_cannot_be_published() {
        let (folder, home) = home();
        let mut upload = Box::new(home.create().unwrap());
        let good = std::mem::replace(
            &mut upload.file,
            BufWriter::new(fs::OpenOptions::new().write(true).open("/dev/full").unwrap()),
        );
        upload.write(&vec![1; BUFFER_LEN]).unwrap_err();
        upload.file = good;
        assert!(matches!(upload.publish("x"), Err(Error::Internal(_))));
        assert_eq!(unfinished(&folder), 0);
    }

    #[test]
    fn nobody_else_may_read() {
        let (folder, home) = home();
        put(&home, "packs/ab/x", IF_FREE).unwrap();
        for (name, mode) in [("packs", 0o700), ("packs/ab", 0o700), ("packs/ab/x", 0o600), ("tmp", 0o700)] {
            let found = fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode, "{name}");
        }
    }

    #[test]
    fn a_barrier_covers_folders_up_to_the_root_once() {
        let (_folder, home) = home();
        put(&home, "packs/ab/x", IF_FREE).unwrap();
        assert_eq!(dirty(&home), ["", "packs", "packs/ab"]);
        home.barrier().unwrap();
        assert!(dirty(&home).is_empty());
        put(&home, "packs/ab/y", IF_FREE).unwrap();
        assert_eq!(dirty(&home), ["packs/ab"]);
        home.remove("packs/cd/z").unwrap();
        assert_eq!(dirty(&home), ["packs", "packs/ab", "packs/cd"]);
        home.barrier().unwrap();
    }

    #[test]
    fn a_taken_name_is_covered_by_the_barrier_too() {
        let (_folder, home) = home();
        put(&home, "packs/ab/x", IF_FREE).unwrap();
        home.barrier().unwrap();
        put(&home, "packs/ab/x", IF_FREE).unwrap_err();
        assert_eq!(dirty(&home), ["packs/ab"]);
    }

    #[test]
    fn a_failed_barrier_fails_for_good() {
        let (folder, home) = home();
        fs::write(folder.path().join("packs"), b"").unwrap();
        home.mark("packs/x");
        assert!(home.barrier().is_err());
        fs::remove_file(folder.path().join("packs")).unwrap();
        assert!(home.barrier().is_err());
    }
}
