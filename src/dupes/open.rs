//! Opening files that a scan found, and seeing whether they are still what they were.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use super::paths::{DirId, Dirs, Root};
use super::record::Inode;
use crate::error::{Error, Result};
use crate::source::path_of;

/// Bytes that were read, counted by several threads.
#[derive(Debug, Default)]
pub struct BytesRead(AtomicU64);

impl BytesRead {
    /// Counts more.
    pub fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Opens what is in the directories of a scan.
pub struct Opener<'a> {
    /// The roots.
    pub roots: &'a [Root],
    /// The directories.
    pub dirs: &'a Dirs,
    /// What was read of the files.
    pub counts: BytesRead,
}

impl Opener<'_> {
    /// The path of a file below its root, and the root's number.
    pub fn below(&self, dir: DirId, name: &[u8], out: &mut Vec<u8>) -> u32 {
        let root = self.dirs.path(dir, out);
        out.extend_from_slice(name);
        root
    }

    /// The whole path.
    pub fn path(&self, dir: DirId, name: &[u8]) -> PathBuf {
        let mut below = Vec::new();
        let root = self.below(dir, name, &mut below);
        self.root(root).join(path_of(&below))
    }

    fn root(&self, root: u32) -> &Path {
        self.roots.get(root as usize).map_or(Path::new(""), |root| &root.path)
    }

    /// Opens a file for reading. `buffer` is for its path.
    pub fn open(&self, dir: DirId, name: &[u8], buffer: &mut Vec<u8>) -> Result<File> {
        let root = self.below(dir, name, buffer);
        let path = self.root(root).join(path_of(buffer));
        let opened = match open_file(CWD, &path) {
            Err(Errno::NAMETOOLONG) => self.open_stepwise(root, buffer),
            other => other,
        };
        opened.map(File::from).map_err(|e| self.failed(dir, name, "open", e.into()))
    }

    /// A path may be longer than the kernel takes in one call.
    fn open_stepwise(&self, root: u32, below: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = openat(CWD, self.root(root), flags, Mode::empty())?;
        let mut names = below.split(|&byte| byte == b'/').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                return open_file(at.as_fd(), path_of(name));
            }
            at = openat(&at, name, flags | OFlags::NOFOLLOW, Mode::empty())?;
        }
        Err(Errno::NOENT)
    }

    /// An error if the file is not as it was found.
    pub fn check(&self, file: &File, dir: DirId, name: &[u8], inode: &Inode) -> Result<()> {
        match fstat(file).is_ok_and(|stat| inode.is_unchanged(&stat)) {
            true => Ok(()),
            false => Err(self.failed(dir, name, "compare", std::io::Error::other("it changed meanwhile"))),
        }
    }

    /// An error about a file.
    pub fn failed(&self, dir: DirId, name: &[u8], action: &'static str, source: std::io::Error) -> Error {
        Error::Io { action, path: self.path(dir, name), source }
    }
}

/// Access times are left alone where that is allowed; opening a FIFO that took a file's place
/// does not wait for a writer.
pub fn open_file(dir: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NOFOLLOW;
    match openat(&dir, path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(&dir, path, flags, Mode::empty()),
        other => other,
    }
}
