//! Opening files to read their content, leaving no traces.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

/// Opens `name`, relative to a directory, for reading; the last part of it may be a symlink only
/// with `follow`. Access times are left alone where that is allowed, and opening a FIFO that took
/// a file's place does not wait for a writer.
pub fn open_file(dir: impl AsFd, name: impl rustix::path::Arg + Copy, follow: bool) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let flags = if follow { flags } else { flags | OFlags::NOFOLLOW };
    match openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => Ok(openat(&dir, name, flags, Mode::empty())?.into()),
        other => Ok(other?.into()),
    }
}
