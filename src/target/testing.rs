//! What the tests of this room share: loop devices, mounts, entries, and a thread without rights.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Gid, Uid};
use tempfile::TempDir;

use super::TargetDir;
use crate::format::map::Map;
use crate::format::tree::{Entry, Owner, Payload, Time};

/// The same as the tests of the whole program have, so that there is one of each.
#[path = "../../tests/support/system.rs"]
#[allow(dead_code, clippy::print_stderr)]
mod system;

pub use system::{Loop, Mount, NOBODY, root_or_skip, run, skip};

pub fn entry(name: &str, payload: Payload) -> Entry {
    Entry {
        name: name.into(),
        mode: 0o640,
        owner: Arc::new(me()),
        modified: Time { seconds: 1_000_000_000, nanos: 7 },
        changed: Time::default(),
        inode: 1,
        xattrs: vec![],
        links: None,
        payload,
    }
}

pub fn file_entry(name: &str) -> Entry {
    entry(name, Payload::File(Map::Inline(vec![])))
}

/// The owner that needs no rights to be set.
fn me() -> Owner {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    Owner { uid: uid.as_raw(), gid: gid.as_raw(), ..Owner::default() }
}

/// A directory, open as a target.
pub fn target() -> (TempDir, Arc<TargetDir>) {
    let dir = tempfile::tempdir().unwrap();
    let target = Arc::new(TargetDir::open_root(dir.path()).unwrap());
    (dir, target)
}

/// Runs in a thread that has lost root's rights, with `dir` as its own directory.
pub fn as_nobody(dir: &TargetDir, work: impl FnOnce() + Send) {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::fs::fchown(dir.as_fd(), Some(user), Some(group)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(group, group, group).unwrap();
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            work();
        });
    });
}

/// A victim outside of the target, that must come out of it untouched.
pub struct Victim {
    dir: TempDir,
    before: (u64, i64, u32, u32),
}

impl Victim {
    const CONTENT: &'static [u8] = b"do not touch";

    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), Self::CONTENT).unwrap();
        let before = Self::state(dir.path());
        Self { dir, before }
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn state(dir: &Path) -> (u64, i64, u32, u32) {
        use std::os::unix::fs::MetadataExt;
        let (file, dir) = (fs::metadata(dir.join("file")).unwrap(), fs::metadata(dir).unwrap());
        (file.nlink(), file.mtime(), file.mode(), dir.mode())
    }

    /// Panics if anything about it changed.
    pub fn check(&self) {
        assert_eq!(fs::read(self.file()).unwrap(), Self::CONTENT);
        assert_eq!(fs::read_dir(self.dir()).unwrap().count(), 1);
        assert_eq!(Self::state(self.dir()), self.before);
    }
}
