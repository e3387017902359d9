//! Reading back what was restored.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Advice, fadvise, fdatasync};

use super::{Context, Overwrite, Restored};
use crate::chunker::is_zero;
use crate::error::{Error, IoContext, Result};
use crate::format::map::{Extent, Map};
use crate::format::pack::Kind;
use crate::format::tree::Entry;
use crate::id::ChunkId;
use crate::observe::Event;
use crate::repo::nodes::{Entries, Extents};
use crate::source::extents::{data_from, device_len, read_at};
use crate::source::path_of;
use crate::target::TargetDir;

/// Ranges without data are read back in pieces of this length.
const ZEROS_LEN: u64 = 1 << 20;

/// Compares every file below a directory that was restored.
pub fn tree(context: &Context, entry: &Entry, root: &TargetDir, restored: &mut Restored) -> Result<()> {
    context.observer.event(Event::Phase { name: "verifying", bytes: entry.dir().map(|dir| dir.bytes) });
    let filter = context.filter;
    let mut pending = vec![(Vec::new(), entry.clone())];
    while let Some((path, entry)) = pending.pop() {
        let Some(dir) = entry.dir() else { continue };
        for child in Entries::of(context.catalog, dir) {
            let child = child?;
            let path: Vec<u8> = match path.is_empty() {
                true => child.name.clone(),
                false => [&path[..], b"/", &child.name].concat(),
            };
            let is_dir = child.dir().is_some();
            if filter.excludes(&path, is_dir) || (!is_dir && !filter.includes(&path, false)) {
                continue;
            }
            match is_dir {
                true => pending.push((path, child)),
                false => self::path(context, &child, &root.path().join(path_of(&path)), restored)?,
            }
        }
    }
    Ok(())
}

/// Compares one file or device that was restored.
pub fn path(context: &Context, entry: &Entry, path: &Path, restored: &mut Restored) -> Result<()> {
    context.stop.check()?;
    let Some(map) = entry.map().filter(|_| !stayed(context, entry, path)) else { return Ok(()) };
    match content(context, map, path) {
        Ok(()) => restored.verified += map.len(),
        Err(e @ Error::Stopped(_)) => return Err(e),
        Err(e) => context.problem(path.to_path_buf(), &e, restored),
    }
    Ok(())
}

/// Whether the file is one that was to stay: what is restored has the time of the snapshot's.
fn stayed(context: &Context, entry: &Entry, path: &Path) -> bool {
    let may_stay = matches!(context.options.overwrite, Overwrite::IfNewer | Overwrite::Never);
    may_stay
        && path.symlink_metadata().is_ok_and(|found| {
            let modified = (found.mtime(), found.mtime_nsec());
            found.len() != entry.size()
                || modified != (entry.modified.seconds, i64::from(entry.modified.nanos))
        })
}

/// What was just written would be read from memory; what counts is what the disk has. Pages must
/// be written out before the kernel lets go of them; where it does not, as in a file system in
/// memory, there is no other place to read from.
fn forget_cached(file: &File) -> std::io::Result<()> {
    fdatasync(file)?;
    fadvise(file, 0, None, Advice::DontNeed)?;
    Ok(())
}

fn content(context: &Context, map: &Map, path: &Path) -> Result<()> {
    let file = File::open(path).at("open", path)?;
    forget_cached(&file).at("write out", path)?;
    differing(context, map, &file, path, &mut |at, _| {
        Err(Error::NotFound(format!("it differs from the snapshot at byte {at}")))
    })
}

/// Calls `each` with offset and length of every extent, or piece of one, of which `file` has other
/// bytes; what it lacks at its end included. Chunks are compared by their ids.
pub fn differing(
    context: &Context,
    map: &Map,
    file: &File,
    path: &Path,
    each: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let key = context.repo.keys().ids(Kind::Data);
    let mut buffer = Vec::new();
    for item in Extents::of(context.catalog, map) {
        let (offset, extent) = item?;
        let Extent::Data { id, len } = extent else {
            differing_zeros(context, file, path, offset..offset + extent.len(), each)?;
            continue;
        };
        context.stop.check()?;
        buffer.resize(len as usize, 0);
        let read = read_at(file, &mut buffer, offset).at("read", path)?;
        if read < buffer.len() || ChunkId::of(key, &buffer) != id {
            each(offset, len.into())?;
        }
        context.observer.event(Event::Advance { bytes: len.into(), files: 0 });
    }
    Ok(())
}

/// As [`differing`], of a range that is zeros in the snapshot. Holes of the file are not read.
pub fn differing_zeros(
    context: &Context,
    file: &File,
    path: &Path,
    range: Range<u64>,
    each: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let len = device_len(file).at("find the length of", path)?;
    let mut at = range.start;
    let mut buffer = Vec::new();
    while at < range.end {
        context.stop.check()?;
        let data = if at < len { data_from(file, at, len) } else { at };
        if data > at {
            let end = data.min(range.end);
            context.observer.event(Event::Advance { bytes: end - at, files: 0 });
            at = end;
            continue;
        }
        buffer.resize((range.end - at).min(ZEROS_LEN) as usize, 0);
        let read = read_at(file, &mut buffer, at).at("read", path)?;
        if read < buffer.len() || !is_zero(&buffer) {
            each(at, buffer.len() as u64)?;
        }
        at += buffer.len() as u64;
        context.observer.event(Event::Advance { bytes: buffer.len() as u64, files: 0 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    /// What this process had read from disks, in bytes.
    fn read_from_disk() -> Option<u64> {
        let counts = std::fs::read_to_string("/proc/self/io").ok()?;
        counts.lines().find_map(|line| line.strip_prefix("read_bytes: "))?.parse().ok()
    }

    #[test]
    #[allow(clippy::print_stderr)]
    fn what_was_written_is_read_from_the_disk() {
        const LEN: usize = 8 << 20;
        // Not in the folder for temporary files, which may be in memory.
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let is_memory = rustix::fs::fstatfs(&file).unwrap().f_type as u32 == 0x0102_1994;
        let Some(before) = read_from_disk().filter(|_| !is_memory) else {
            return eprintln!("skipped: no disk whose reads are counted");
        };
        file.write_all(&vec![7; LEN]).unwrap();
        forget_cached(&file).unwrap();
        file.rewind().unwrap();
        file.read_to_end(&mut Vec::new()).unwrap();
        let read = read_from_disk().unwrap() - before;
        assert!(read >= LEN as u64, "only {read} bytes were read from the disk");
    }
}
