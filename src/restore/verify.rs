//! Reading back what was restored.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, fadvise, fdatasync};

use super::{Context, Overwrite, Restored};
use crate::chunker::is_zero;
use crate::error::{Error, IoContext, Result};
use crate::format::map::{Extent, Map};
use crate::format::pack::Kind;
use crate::format::tree::Entry;
use crate::id::ChunkId;
use crate::nested::Nested;
use crate::observe::Event;
use crate::repo::nodes::{Entries, Extents};
use crate::source::extents::{data_from, device_len, read_at};
use crate::source::open::open_file;
use crate::source::path_of;
use crate::target::TargetDir;

/// Ranges without data are read back in pieces of this length.
const ZEROS_LEN: u64 = 1 << 20;

/// Compares every file below a directory that was restored.
pub fn tree(context: &Context, entry: &Entry, root: &Arc<TargetDir>, restored: &mut Restored) -> Result<()> {
    context.observer.event(Event::Phase { name: "verifying", bytes: entry.dir().map(|dir| dir.bytes) });
    let filter = context.filter;
    // Each with the directory that it is in: paths may be longer than the kernel takes.
    let mut pending: Vec<(Nested, Entry, Option<Arc<TargetDir>>)> =
        vec![(Nested::root(b""), entry.clone(), None)];
    while let Some((path, entry, above)) = pending.pop() {
        let Some(below) = entry.dir() else { continue };
        let dir = match path.depth() == 0 {
            true => Some(Arc::clone(root)),
            // One that nothing was selected of need not be there.
            false => above.and_then(|above| above.open_dir(&entry.name).ok()).map(Arc::new),
        };
        for child in Entries::of(context.catalog, below) {
            let child = child?;
            let path = path.child(&child.name);
            let whole = path.whole();
            let is_dir = child.dir().is_some();
            if filter.excludes(&whole, is_dir) || (!is_dir && !filter.includes(&whole, false)) {
                continue;
            }
            match (&dir, is_dir) {
                (dir, true) => pending.push((path, child, dir.clone())),
                (Some(dir), false) => file(context, &child, dir, restored)?,
                (None, false) => {
                    let error = Error::NotFound("its directory cannot be opened".into());
                    context.problem(root.path().join(path_of(&whole)), &error, restored);
                }
            }
        }
    }
    Ok(())
}

fn file(context: &Context, entry: &Entry, dir: &TargetDir, restored: &mut Restored) -> Result<()> {
    let path = dir.path_of(&entry.name);
    let open = || open_file(dir, path_of(&entry.name), false).at("open", &path);
    compare(context, entry, &path, open, restored)
}

/// Compares one file or device that was restored.
pub fn path(context: &Context, entry: &Entry, path: &Path, restored: &mut Restored) -> Result<()> {
    compare(context, entry, path, || File::open(path).at("open", path), restored)
}

fn compare(
    context: &Context,
    entry: &Entry,
    path: &Path,
    open: impl FnOnce() -> Result<File>,
    restored: &mut Restored,
) -> Result<()> {
    context.stop.check()?;
    let Some(map) = entry.map() else { return Ok(()) };
    match open().and_then(|file| content(context, entry, map, &file, path)) {
        Ok(verified) => restored.verified = restored.verified.saturating_add(verified),
        Err(e @ Error::Stopped(_)) => return Err(e),
        Err(e) => context.problem(path.to_path_buf(), &e, restored),
    }
    Ok(())
}

/// Whether the file is one that was to stay: what is restored has the time of the snapshot's.
fn stayed(context: &Context, entry: &Entry, file: &File) -> std::io::Result<bool> {
    if !matches!(context.options.overwrite, Overwrite::IfNewer | Overwrite::Never) {
        return Ok(false);
    }
    let found = file.metadata()?;
    let modified = (found.mtime(), found.mtime_nsec());
    let is_other =
        found.len() != entry.size() || modified != (entry.modified.seconds, i64::from(entry.modified.nanos));
    Ok(found.is_file() && is_other)
}

/// What was just written would be read from memory; what counts is what the disk has. Pages must
/// be written out before the kernel lets go of them; where it does not, as in a file system in
/// memory, there is no other place to read from.
fn forget_cached(file: &File) -> std::io::Result<()> {
    fdatasync(file)?;
    fadvise(file, 0, None, Advice::DontNeed)?;
    Ok(())
}

/// How much was compared.
fn content(context: &Context, entry: &Entry, map: &Map, file: &File, path: &Path) -> Result<u64> {
    if stayed(context, entry, file).at("look at", path)? {
        return Ok(0);
    }
    forget_cached(file).at("write out", path)?;
    differing(context, map, file, path, &mut |at, _| {
        Err(Error::NotFound(format!("it differs from the snapshot at byte {at}")))
    })?;
    Ok(map.len())
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
