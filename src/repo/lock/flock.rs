//! Locks that the kernel drops when their holder dies.
//!
//! The lock is a flock on `locks/repository`, a file that is never removed. What others should
//! know of a holder is in a file of its own, which the holder keeps flocked exclusively: if
//! anybody else can flock it, its holder is dead. Those files only inform, so a full disk does
//! without them; otherwise nothing could be pruned from it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::FOLDER;
use super::{
    Holder, Occupants, Tried, describe_all, is_out_of_space, is_read_only, lock_files, make_folder,
    read_bounded,
};
use crate::error::{IoContext, Result};

const REPOSITORY: &str = "repository";
const EXTENSION: &str = "json";
/// Attempts to make a file that nobody removes before it is flocked.
const ATTEMPTS_MAX: usize = 100;

/// Given back from top to bottom: others see a lock without a name rather than a name without a lock.
#[derive(Debug)]
pub(super) struct Held {
    _info: Option<Info>,
    _repository: Flocked,
}

#[derive(Debug)]
struct Flocked(File);

impl Drop for Flocked {
    fn drop(&mut self) {
        // Closing would do, but for a child that was just forked and still has a copy.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// One attempt to get the lock, without waiting.
pub(super) fn attempt(dir: &Path, holder: &Holder) -> Result<Tried<Held>> {
    let path = dir.join(FOLDER).join(REPOSITORY);
    let repository = match open_repository(dir) {
        Err(e) if is_read_only(&e) && !holder.exclusive => match File::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Tried::ReadOnly),
            other => other.at("open", &path)?,
        },
        other => other.at("open", &path)?,
    };
    if !flock_now(&repository, holder.exclusive).at("lock", &path)? {
        return busy(dir, holder);
    }
    let repository = Flocked(repository);
    let info = match write_info(dir, holder) {
        Err(e) if is_out_of_space(&e) || is_read_only(&e) => None,
        other => Some(other.at("write", dir.join(FOLDER))?),
    };
    Ok(Tried::Got(Held { _info: info, _repository: repository }))
}

fn open_repository(dir: &Path) -> io::Result<File> {
    let path = make_folder(dir)?.join(REPOSITORY);
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn busy(dir: &Path, wanted: &Holder) -> Result<Tried<Held>> {
    let in_the_way: Vec<Holder> =
        occupants(dir)?.living.into_iter().filter(|holder| holder.conflicts(wanted.exclusive)).collect();
    Ok(Tried::Busy { holder: describe_all(&in_the_way), suspect: false })
}

/// Whether the flock could be had at once.
fn flock_now(file: &File, exclusive: bool) -> io::Result<bool> {
    let operation = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// What others can read about a holder; removed when the lock is given back.
#[derive(Debug)]
struct Info {
    path: PathBuf,
    /// Keeps the flock that says that the holder lives.
    file: File,
}

impl Drop for Info {
    fn drop(&mut self) {
        // If this fails, the next one who looks finds the flock gone and removes the file.
        let _ = fs::remove_file(&self.path);
    }
}

fn write_info(dir: &Path, holder: &Holder) -> io::Result<Info> {
    let info = create_info(dir.join(FOLDER).join(holder.file_name(EXTENSION)))?;
    let text = serde_json::to_vec(holder)?;
    (&info.file).write_all(&text)?;
    Ok(info)
}

/// Between making the file and flocking it, another process may look, find it without a flock
/// and remove it; then it is made again.
fn create_info(path: PathBuf) -> io::Result<Info> {
    for _ in 0..ATTEMPTS_MAX {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        if file.metadata()?.nlink() > 0 {
            return Ok(Info { path, file });
        }
    }
    Err(io::Error::other("the file is removed again and again"))
}

/// All who live, and all who died; what these left is removed.
pub(super) fn occupants(dir: &Path) -> Result<Occupants> {
    let mut found = Occupants::default();
    for (path, _) in lock_files(dir, EXTENSION)? {
        match look_at(&path).at("read", &path)? {
            Some((holder, true)) => found.living.push(holder),
            Some((holder, false)) => found.dead.push(holder),
            None => {}
        }
    }
    Ok(found)
}

/// The holder, and whether it lives.
fn look_at(path: &Path) -> io::Result<Option<(Holder, bool)>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    // Shared, so that two who look at once do not take each other for the holder.
    let is_dead = flock_now(&file, false)?;
    if is_dead && file.metadata()?.nlink() == 0 {
        // Its holder removed it in the meantime: it has ended well.
        return Ok(None);
    }
    if is_dead {
        // Removed while it is flocked, so that its maker, if it lives after all, notices.
        let _ = fs::remove_file(path);
    }
    // What cannot be read is not written yet.
    let holder = serde_json::from_slice(&read_bounded(&file)?).ok();
    Ok(holder.map(|holder| (holder, !is_dead)))
}
