//! A directory as a store.
//!
//! The folder is opened once and everything but the listing goes through that handle, so that
//! neither a rename of it nor a mount over it in mid-backup leads elsewhere. Opening writes nothing.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::fs::{self as sys, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use walkdir::{DirEntry, WalkDir};

use super::durable::{Durable, sync, unpoisoned};
use super::{Store, UNFINISHED, Upload, bounded, checked, is_name, is_plain, is_shard, shorter_than};
use crate::error::{Error, IoContext, Result};

/// Objects kept open, at most; reading a pack frame by frame should open it once.
const OPEN_FILES_MAX: usize = 32;

/// What may lie in a folder that is to become a repository: the file system's own folder, and
/// what an interrupted attempt leaves.
const EMPTY_MAY_HOLD: [&str; 3] = ["lost+found", "locks", UNFINISHED];

/// A directory as a store.
pub struct LocalStore {
    home: Arc<Durable>,
    /// The most recently used last.
    open: Mutex<VecDeque<(String, Arc<File>)>>,
}

impl LocalStore {
    /// Opens an existing folder; writes nothing.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match sys::open(root, flags, Mode::empty()) {
            Ok(folder) => Ok(Self { home: Durable::new(folder, root)?, open: Mutex::default() }),
            Err(Errno::NOENT) => Err(no_repository(root, "the folder does not exist")),
            Err(Errno::NOTDIR) => Err(no_repository(root, "it is not a folder")),
            Err(e) => Err(e).at("open", root),
        }
    }

    /// Makes the folder, or takes an empty one, and opens it.
    pub fn init(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        match DirBuilder::new().mode(0o700).create(root) {
            Ok(()) => sync_parent(root)?,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => refuse_unless_empty(root)?,
            Err(e) => return Err(e).at("create", root),
        }
        Self::open(root)
    }

    /// The object's file, from the cache or opened.
    fn opened(&self, name: &str) -> Result<Arc<File>> {
        if let Some(file) = self.cached(name) {
            return Ok(file);
        }
        let file = Arc::new(self.open_object(name)?);
        let mut open = unpoisoned(&self.open);
        if open.len() >= OPEN_FILES_MAX {
            open.pop_front();
        }
        open.push_back((name.to_owned(), Arc::clone(&file)));
        Ok(file)
    }

    fn cached(&self, name: &str) -> Option<Arc<File>> {
        let mut open = unpoisoned(&self.open);
        let entry = open.iter().position(|(cached, _)| cached == name).and_then(|at| open.remove(at))?;
        let file = Arc::clone(&entry.1);
        open.push_back(entry);
        Some(file)
    }

    /// What is under this name next is another file.
    fn close(&self, name: &str) {
        unpoisoned(&self.open).retain(|(cached, _)| cached != name);
    }

    fn open_object(&self, name: &str) -> Result<File> {
        // Looked at before it is opened: opening a pipe would wait for its other end.
        self.stat(name)?.ok_or_else(|| Error::missing(name))?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match sys::openat(self.home.root(), name, flags, Mode::empty()) {
            Ok(fd) => Ok(File::from(fd)),
            Err(Errno::NOENT) => Err(Error::missing(name)),
            Err(e) => Err(e).at("open", self.home.path().join(name)),
        }
    }

    fn stat(&self, name: &str) -> Result<Option<Stat>> {
        match sys::statat(self.home.root(), checked(name)?, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => Ok(Some(stat)),
            Ok(_) => Err(Error::damaged(name, "it is not a file")),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(e).at("look at", self.home.path().join(name)),
        }
    }

    fn read_at(&self, file: &File, name: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        if i64::try_from(end).is_err() {
            return Err(shorter_than(name, offset, buf.len()));
        }
        match file.read_exact_at(buf, offset) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Err(shorter_than(name, offset, buf.len())),
            other => other.at("read", self.home.path().join(name)),
        }
    }

    /// Listing goes by path; that must still be the folder that was opened. A list of another
    /// folder's packs, or of an empty mount point, would look like the loss of all.
    fn refuse_if_moved(&self) -> Result<()> {
        let opened = sys::fstat(self.home.root()).at("look at", self.home.path())?;
        match fs::metadata(self.home.path()) {
            Ok(now) if (now.dev(), now.ino()) == (opened.st_dev, opened.st_ino) => Ok(()),
            _ => Err(no_repository(self.home.path(), "the folder was moved or unmounted")),
        }
    }

    /// Calls `each` for the files below a folder, at most `depth` levels down.
    fn walk(&self, folder: &str, depth: usize, each: &mut dyn FnMut(&DirEntry) -> Result<()>) -> Result<()> {
        self.refuse_if_moved()?;
        let path = self.home.path().join(folder);
        let walk = WalkDir::new(&path).min_depth(1).max_depth(depth).into_iter();
        for entry in walk.filter_entry(|entry| entry.depth() == 0 || is_ours(entry)) {
            match entry {
                Ok(entry) if entry.file_type().is_file() => each(&entry)?,
                Ok(_) => {}
                Err(e) => ignore_vanished(e.into()).at("list", &path)?,
            }
        }
        Ok(())
    }
}

impl Store for LocalStore {
    fn create(&self) -> Result<Box<dyn Upload>> {
        Ok(Box::new(self.home.create()?))
    }

    fn get(&self, name: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let file = self.opened(checked(name)?)?;
        self.read_at(&file, name, offset, buf)
    }

    fn len(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.stat(name)?.map(|stat| stat.st_size.unsigned_abs()))
    }

    fn list(&self, folder: &str, each: &mut dyn FnMut(&str, u64) -> Result<()>) -> Result<()> {
        if !is_plain(folder) {
            checked(folder)?;
        }
        self.walk(folder, 2, &mut |entry| {
            let Some(name) = object_name(folder, entry) else { return Ok(()) };
            match entry.metadata() {
                Ok(metadata) => each(&name, metadata.len()),
                Err(e) => ignore_vanished(e.into()).at("look at", entry.path()),
            }
        })
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.close(name);
        self.home.remove(checked(name)?)
    }

    fn barrier(&self) -> Result<()> {
        self.home.barrier()
    }

    fn sweep(&self) -> Result<u64> {
        let mut swept = 0;
        self.walk(UNFINISHED, 1, &mut |entry| {
            swept += 1;
            fs::remove_file(entry.path()).or_else(ignore_vanished).at("remove", entry.path())
        })?;
        Ok(swept)
    }

    fn describe(&self, name: &str) -> String {
        self.home.path().join(name).display().to_string()
    }

    fn adopt(&self, name: &str) {
        if is_name(name) {
            self.home.mark(name);
        }
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut upload = self.create()?;
        upload.write(bytes)?;
        upload.replace(name)?;
        self.close(name);
        Ok(())
    }

    /// Opens the object anew, since small ones are read once, and one of them is replaced.
    fn read(&self, name: &str, len_max: u64) -> Result<Vec<u8>> {
        let file = self.open_object(name)?;
        let len = file.metadata().at("look at", self.home.path().join(name))?.len();
        let mut bytes = vec![0; bounded(name, len, len_max)?];
        self.read_at(&file, name, 0, &mut bytes)?;
        Ok(bytes)
    }
}

fn no_repository(path: &Path, why: &str) -> Error {
    Error::NoRepository { path: path.to_path_buf(), why: why.to_owned() }
}

fn refuse_unless_empty(root: &Path) -> Result<()> {
    for entry in fs::read_dir(root).at("list", root)? {
        let name = entry.at("list", root)?.file_name();
        if !EMPTY_MAY_HOLD.iter().any(|allowed| name == *allowed) {
            return Err(Error::Refused(format!(
                "{} is not empty: a new repository needs an empty folder; one that is there needs no varv init",
                root.display()
            )));
        }
    }
    Ok(())
}

/// So that a new repository's folder itself survives a loss of power.
fn sync_parent(root: &Path) -> Result<()> {
    let parent = match root.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|folder| sync(&folder)).at("sync", parent)
}

/// Whether this is a file, or a folder that may hold objects.
fn is_ours(entry: &DirEntry) -> bool {
    entry.file_type().is_file()
        || (entry.file_type().is_dir() && entry.file_name().to_str().is_some_and(is_shard))
}

/// The entry's name in the store, if it is one.
fn object_name(folder: &str, entry: &DirEntry) -> Option<String> {
    let mut name = folder.to_owned();
    if entry.depth() == 2 {
        name.push('/');
        name.push_str(entry.path().parent()?.file_name()?.to_str()?);
    }
    name.push('/');
    name.push_str(entry.file_name().to_str()?);
    is_name(&name).then_some(name)
}

/// What goes away while it is listed is not in the list; nor is a folder that was never made.
fn ignore_vanished(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn store() -> (tempfile::TempDir, LocalStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::init(folder.path()).unwrap();
        (folder, store)
    }

    fn names(store: &LocalStore, folder: &str) -> Vec<String> {
        let mut names = Vec::new();
        let mut push = |name: &str, _| {
            names.push(name.to_owned());
            Ok(())
        };
        store.list(folder, &mut push).unwrap();
        names
    }

    #[test]
    fn init_makes_a_private_folder_or_takes_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("new");
        LocalStore::init(&root).unwrap();
        assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
        fs::create_dir(root.join("lost+found")).unwrap();
        fs::create_dir(root.join("locks")).unwrap();
        let store = LocalStore::init(&root).unwrap();
        store.put("config", b"").unwrap();
        assert!(matches!(LocalStore::init(&root), Err(Error::Refused(_))));
        assert!(LocalStore::init(folder.path().join("a/b")).is_err());
    }

    #[test]
    fn opening_needs_a_folder_and_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        for path in [&file, &folder.path().join("absent")] {
            assert!(matches!(LocalStore::open(path), Err(Error::NoRepository { .. })));
        }
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        let store = LocalStore::open(&root).unwrap();
        assert!(names(&store, "packs").is_empty());
        assert_eq!(store.sweep().unwrap(), 0);
        store.barrier().unwrap();
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }

    #[test]
    fn reading_packs_keeps_few_files_open() {
        let (_folder, store) = store();
        for number in 0..OPEN_FILES_MAX + 9 {
            let name = format!("packs/00/{number}");
            store.put(&name, b"x").unwrap();
            store.get(&name, 0, &mut [0]).unwrap();
            store.get("packs/00/0", 0, &mut [0]).unwrap();
        }
        let open = unpoisoned(&store.open);
        assert_eq!(open.len(), OPEN_FILES_MAX);
        assert_eq!(open.back().unwrap().0, "packs/00/0");
    }

    #[test]
    fn a_pack_is_opened_once_and_a_small_object_each_time() {
        let (folder, store) = store();
        store.put("packs/00/a", b"old").unwrap();
        store.get("packs/00/a", 0, &mut [0]).unwrap();
        fs::remove_file(folder.path().join("packs/00/a")).unwrap();
        store.get("packs/00/a", 0, &mut [0; 3]).unwrap();
        assert!(matches!(store.read("packs/00/a", 3), Err(Error::Missing { .. })));
    }

    #[test]
    fn what_is_no_object_is_not_listed_and_not_read() {
        let (folder, store) = store();
        store.put("packs/00/real", b"x").unwrap();
        let packs = folder.path().join("packs");
        fs::create_dir_all(packs.join("00/folder")).unwrap();
        fs::create_dir(packs.join("other")).unwrap();
        fs::write(packs.join("other/file"), b"x").unwrap();
        fs::write(packs.join("00/.hidden"), b"x").unwrap();
        symlink("real", packs.join("00/link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, packs.join("00/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(names(&store, "packs"), ["packs/00/real"]);
        for name in ["packs/00/folder", "packs/00/link", "packs/00/pipe"] {
            assert!(matches!(store.get(name, 0, &mut [0]), Err(Error::Damaged { .. })), "{name}");
            assert!(matches!(store.len(name), Err(Error::Damaged { .. })), "{name}");
        }
    }

    #[test]
    fn a_moved_folder_is_not_listed_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        let store = LocalStore::init(&old).unwrap();
        store.put("config", b"x").unwrap();
        fs::rename(&old, new).unwrap();
        fs::create_dir(&old).unwrap();
        assert_eq!(store.read("config", 1).unwrap(), b"x");
        assert!(matches!(store.list("packs", &mut |_, _| Ok(())), Err(Error::NoRepository { .. })));
        assert!(matches!(store.sweep(), Err(Error::NoRepository { .. })));
    }

    #[test]
    fn messages_show_the_path() {
        let (folder, store) = store();
        assert_eq!(store.describe("packs/00/a"), folder.path().join("packs/00/a").display().to_string());
    }
}
