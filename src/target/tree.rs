//! Open directories, and what can be done in them by plain name.
//!
//! A name is never a path, and no symlink is ever followed: only the part of the path that the
//! user named is resolved as usual, once, when the root is opened.

use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fchmod, fstat, mkdirat, open, openat, stat, statat,
};
use rustix::io::Errno;

use super::remove;
use crate::error::{Error, IoContext, Result};
use crate::format::tree::Time;
use crate::nested::Nested;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A block device node.
    BlockDevice,
    /// A character device node.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A socket, or something newer.
    Socket,
}

impl Kind {
    /// From a file type as the kernel tells it.
    pub(super) fn of(file_type: FileType) -> Self {
        match file_type {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket | FileType::Unknown => Kind::Socket,
        }
    }
}

/// Which file or directory something is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The file system it is on.
    device: u64,
    /// Its inode there.
    inode: u64,
}

impl Identity {
    /// Of what a path leads to; `None` if that cannot be looked at.
    pub fn of(path: &Path) -> Option<Self> {
        stat(path).ok().map(|stat| Self::from_stat(&stat))
    }

    pub(super) fn from_stat(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// What was found under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub kind: Kind,
    /// Its length.
    pub size: u64,
    /// When its content was modified.
    pub modified: Time,
    /// Which one it is.
    pub identity: Identity,
    /// How many names it has.
    pub links: u64,
}

impl Found {
    pub(super) fn from_stat(stat: &Stat) -> Self {
        Self {
            kind: Kind::of(FileType::from_raw_mode(stat.st_mode)),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: Time { seconds: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) },
            identity: Identity::from_stat(stat),
            links: links(stat),
        }
    }
}

#[allow(clippy::unnecessary_cast)]
fn links(stat: &Stat) -> u64 {
    stat.st_nlink as u64
}

/// An open directory. Made ones are private to their owner until they get their metadata.
#[derive(Debug)]
pub struct TargetDir {
    fd: OwnedFd,
    path: Nested,
    created: bool,
}

impl TargetDir {
    /// Opens the directory that the user named; it and its parents are made if they are missing.
    pub fn open_root(path: &Path) -> Result<Self> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            DirBuilder::new().recursive(true).create(parent).at("make the directory", parent)?;
        }
        let created = match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => true,
            Err(_) if path.is_dir() => false,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Err(no_directory(path)),
            Err(e) => return Err(e).at("make the directory", path),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).at("open", path)?;
        Ok(Self { fd, path: Nested::root(path.as_os_str().as_bytes()), created })
    }

    /// Opens the directory of the file that the user named; gives the file's name as well.
    pub fn open_parent(path: &Path) -> Result<(Self, Vec<u8>)> {
        let Some(name) = path.file_name() else {
            return Err(Error::Refused(format!("{} does not name a file", path.display())));
        };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Ok((Self::open_root(parent.unwrap_or(Path::new(".")))?, name.as_bytes().to_vec()))
    }

    /// The directory's path, for messages only.
    pub fn path(&self) -> PathBuf {
        OsString::from_vec(self.path.whole()).into()
    }

    /// The path of a name in it, for messages only.
    pub fn path_of(&self, name: &[u8]) -> PathBuf {
        self.path().join(OsStr::from_bytes(name))
    }

    /// Whether it was made when it was opened.
    pub fn was_created(&self) -> bool {
        self.created
    }

    /// Opens a directory, which is made if the name is free.
    pub fn mkdir(&self, name: &[u8]) -> Result<Self> {
        let created = match mkdirat(&self.fd, checked(name)?, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e).at("make the directory", self.path_of(name)),
        };
        Ok(Self { created, ..self.open_dir(name)? })
    }

    /// Opens a directory; a symlink to one is refused.
    pub fn open_dir(&self, name: &[u8]) -> Result<Self> {
        match open_dir_at(self.as_fd(), checked(name)?) {
            Ok(fd) => Ok(Self { fd, path: self.path.child(name), created: false }),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(no_directory(&self.path_of(name))),
            Err(e) => Err(e).at("open", self.path_of(name)),
        }
    }

    /// Lets its owner write to a directory that was read-only. It gets its own permissions when all
    /// is restored; where this is not allowed, what needs it says so.
    pub fn make_writable(&self) {
        let Ok(stat) = fstat(&self.fd) else { return };
        let mode = Mode::from_raw_mode(stat.st_mode);
        if !mode.contains(Mode::RWXU) {
            let _ = fchmod(&self.fd, mode | Mode::RWXU);
        }
    }

    /// Removes a name with all that is below it. Refused, before anything is removed, if
    /// something is mounted there, or `kept` is in it.
    pub fn remove(&self, name: &[u8], kept: Option<Identity>) -> Result<()> {
        remove::remove(self, checked(name)?, kept)
    }

    /// Which directory it is.
    pub fn identity(&self) -> Result<Identity> {
        Ok(Identity::from_stat(&fstat(&self.fd).at("look at", self.path())?))
    }

    /// Whether a file system is mounted here, as far as the kernel tells.
    pub fn is_mount_root(&self) -> bool {
        remove::is_mount_root(self.as_fd())
    }

    /// What a name stands for, if it is there.
    pub fn kind_of(&self, name: &[u8]) -> Result<Option<Kind>> {
        Ok(self.look(name)?.map(|found| found.kind))
    }

    /// The same with size, time and inode.
    pub fn look(&self, name: &[u8]) -> Result<Option<Found>> {
        match statat(&self.fd, checked(name)?, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Found::from_stat(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e).at("look at", self.path_of(name)),
        }
    }

    /// The names in it, in no order, as they are read. Names may be removed meanwhile.
    pub fn list(&self) -> Result<Names> {
        let path = self.path();
        let dir = Dir::read_from(&self.fd).at("list", &path)?;
        Ok(Names { dir, path })
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.list()?.next().transpose()?.is_none())
    }
}

impl AsFd for TargetDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The names in a directory, but for `.` and `..`.
pub struct Names {
    dir: Dir,
    path: PathBuf,
}

impl Iterator for Names {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.dir.read()?.at("list", &self.path) {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(entry) => return Some(Ok(entry.file_name().to_bytes().to_vec())),
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

/// The name, if it cannot lead out of its directory.
pub(super) fn checked(name: &[u8]) -> Result<&OsStr> {
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|c| matches!(c, b'/' | 0)) {
        let shown = crate::text::escape(name);
        return Err(Error::Refused(format!(
            "'{shown}' is no file name; nothing is written outside of the target"
        )));
    }
    Ok(OsStr::from_bytes(name))
}

/// Opens a directory by name, never through a symlink.
pub(super) fn open_dir_at(dir: BorrowedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

fn no_directory(path: &Path) -> Error {
    Error::Refused(format!("{} is no directory; remove it, or allow overwriting", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::testing::{Victim, target};
    use super::*;

    fn is_refused<T>(result: Result<T>) -> bool {
        matches!(result, Err(Error::Refused(_)))
    }

    #[test]
    fn the_root_is_made_with_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        let root = TargetDir::open_root(&path).unwrap();
        assert!(root.was_created() && path.is_dir());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!TargetDir::open_root(&path).unwrap().was_created());
        // What the user named is resolved as usual.
        symlink(&path, dir.path().join("link")).unwrap();
        let through = TargetDir::open_root(&dir.path().join("link/d")).unwrap();
        through.mkdir(b"e").unwrap();
        assert!(path.join("d/e").is_dir());
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(is_refused(TargetDir::open_root(&dir.path().join("file"))));
        symlink("nowhere", dir.path().join("dangling")).unwrap();
        assert!(is_refused(TargetDir::open_root(&dir.path().join("dangling"))));
    }

    #[test]
    fn parents_and_names() {
        let dir = tempfile::tempdir().unwrap();
        let (parent, name) = TargetDir::open_parent(&dir.path().join("x/y")).unwrap();
        assert_eq!((parent.path(), &name[..]), (dir.path().join("x"), &b"y"[..]));
        assert!(is_refused(TargetDir::open_parent(Path::new("/"))));
        assert!(is_refused(TargetDir::open_parent(Path::new("a/.."))));
        assert_eq!(TargetDir::open_parent(Path::new("y")).unwrap().0.path(), Path::new("."));
    }

    #[test]
    fn directories_are_made_and_opened_by_name() {
        let (dir, target) = target();
        let made = target.mkdir(b"d").unwrap();
        assert!(made.was_created());
        assert_eq!(fs::metadata(dir.path().join("d")).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!target.mkdir(b"d").unwrap().was_created());
        fs::write(dir.path().join("f"), "12345").unwrap();
        assert!(is_refused(target.mkdir(b"f")) && is_refused(target.open_dir(b"f")));
        assert!(target.open_dir(b"none").is_err());
        assert_eq!(target.look(b"f").unwrap().unwrap().size, 5);
        assert_eq!(target.kind_of(b"d").unwrap(), Some(Kind::Dir));
        assert_eq!(target.kind_of(b"none").unwrap(), None);
        let mut names: Vec<_> = target.list().unwrap().map(Result::unwrap).collect();
        names.sort();
        assert_eq!(names, [b"d", b"f"]);
        assert!(made.is_empty().unwrap() && !target.is_empty().unwrap());
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        let (_dir, target) = target();
        for name in [&b".."[..], b".", b"", b"/", b"/etc", b"a/b", b"../x", b"a\0b"] {
            assert!(is_refused(target.mkdir(name)), "{name:?}");
            assert!(is_refused(target.open_dir(name)), "{name:?}");
            assert!(is_refused(target.remove(name, None)), "{name:?}");
            assert!(is_refused(target.kind_of(name)), "{name:?}");
        }
    }

    #[test]
    fn symlinks_in_the_way_lead_nowhere() {
        let victim = Victim::new();
        let (dir, target) = target();
        for (name, to) in [("dir", victim.dir().to_path_buf()), ("new", victim.dir().join("new"))] {
            symlink(&to, dir.path().join(name)).unwrap();
            assert!(is_refused(target.mkdir(name.as_bytes())));
            assert!(is_refused(target.open_dir(name.as_bytes())) || name == "new");
            assert_eq!(target.kind_of(name.as_bytes()).unwrap(), Some(Kind::Symlink));
            target.remove(name.as_bytes(), None).unwrap();
        }
        victim.check();
        assert!(target.is_empty().unwrap());
    }

    #[test]
    fn an_open_directory_stays_itself() {
        // Exchanging a directory for a symlink while it is restored moves nothing elsewhere.
        let victim = Victim::new();
        let (dir, target) = target();
        let inner = target.mkdir(b"d").unwrap();
        fs::rename(dir.path().join("d"), dir.path().join("moved")).unwrap();
        symlink(victim.dir(), dir.path().join("d")).unwrap();
        inner.mkdir(b"e").unwrap();
        inner.remove(b"file", None).unwrap();
        victim.check();
        assert!(dir.path().join("moved/e").is_dir());
    }
}
