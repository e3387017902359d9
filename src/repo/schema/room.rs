//! Room for the file beside the index that SQLite maps into memory, `index.sqlite-shm`.
//!
//! SQLite sees to it that each of its pages has a block on the disk. Where blocks are smaller than
//! pages, the others are only got when they are first written to, and where the disk is full then
//! the process gets a signal (SIGBUS), not an error. So all of them are got beforehand.

use std::fs::File;
use std::path::Path;

use rusqlite::Connection;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::error::{IoContext, Result};

/// SQLite takes one block of each page of this length (`walIndexPage` in wal.c, `unixShmMap` in os_unix.c).
const PAGE: u64 = 4096;
/// Places of 32,000 pages of the log: of the 16 MiB at which it is cut back, and seven times that for
/// who adds much at once.
const SHARED_LEN: u64 = 256 << 10;
/// Below this much room nothing is begun: SQLite itself writes to the file when it opens the index.
const ROOM_MIN: u64 = 1 << 20;

/// Whether there is room to open the database at `path` for writing, or none is needed.
pub fn check(path: &Path) -> Result<()> {
    match small_blocks(path) {
        Some(free) if free < ROOM_MIN => Err(Errno::NOSPC).at("write", path),
        _ => Ok(()),
    }
}

/// Gets all blocks of the file, which is there once something was read from the database.
pub fn take(path: &Path, db: &Connection) -> Result<()> {
    if small_blocks(path).is_none() {
        return Ok(());
    }
    // What is wrong with the database shows later.
    let _ = db.pragma_query_value(None, "schema_version", |row| row.get::<_, i64>(0));
    let Some(name) = db.path().map(|name| format!("{name}-shm")) else { return Ok(()) };
    let Ok(file) = File::options().read(true).write(true).open(&name) else { return Ok(()) };
    let taken = fallocate(&file, FallocateFlags::empty(), 0, SHARED_LEN);
    // POSIX locks: closing this file would give SQLite's locks on it back, of all connections of this
    // process. It stays open until that ends.
    std::mem::forget(file);
    match taken {
        Err(Errno::NOSPC | Errno::DQUOT) => Err(Errno::NOSPC).at("write", &name),
        _ => Ok(()),
    }
}

/// How much room this process has where `path` is, if blocks are smaller than pages there.
fn small_blocks(path: &Path) -> Option<u64> {
    let found = statvfs(path).ok().filter(|found| found.f_frsize < PAGE)?;
    let blocks = if geteuid().is_root() { found.f_bfree } else { found.f_bavail };
    Some(blocks.saturating_mul(found.f_frsize))
}
