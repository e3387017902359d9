//! The scan: what there is, what of it changed since the parent, and so what has to be read.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType, Stat, fstat};

use super::cut::Cutter;
use super::earlier::Earlier;
use super::read::open;
use super::step::{
    Change, FileToRead, Folder, LINKED_MAX, LargeEnd, PIECE_LEN, PieceSource, PieceToRead, Place, Step,
};
use crate::error::{Error, IoContext, Result};
use crate::format::map::Map;
use crate::format::tree::{Dir, Entry, Payload};
use crate::id::ChunkId;
use crate::observe::{Event, Observer, Stop};
use crate::ordered::Input;
use crate::repo::catalog::Catalog;
use crate::repo::nodes::{Entries, are_all_there};
use crate::source::extents::{Span, Spans, device_len, is_sparse, same};
use crate::source::metadata;
use crate::source::owners::Owners;
use crate::source::path_of;
use crate::source::walk::{DirHandle, LeftOut, Listed, Listing, Walker};

use super::step::Done;

mod volume;

/// Steps that are handed over together, …
const BATCH_STEPS: usize = 256;
/// … unless the files among them are longer than this.
const BATCH_BYTES: u64 = 2 << 20;

/// How to scan.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScanOptions {
    /// Read files that look unchanged too.
    pub force_read: bool,
    /// Read the content of block devices that are met inside of trees.
    pub read_devices: bool,
    /// Store zeros for ranges of volumes that cannot be read.
    pub zero_errors: bool,
}

/// Scans one root after the other and hands the steps on in the order of the tree.
pub struct Scan<'a> {
    options: ScanOptions,
    catalog: &'a Catalog,
    cutter: Cutter<'a>,
    owners: &'a Owners,
    observer: &'a dyn Observer,
    stop: &'a Stop,
    out: Input<Vec<Step>, Vec<Done>>,
    batch: Vec<Step>,
    batch_bytes: u64,
    /// Whether the parent may have lost chunks.
    suspect: bool,
    /// Device and inode of files with several names that were sent to be read.
    linked: HashSet<(u64, u64)>,
}

/// The entries that the parent had in a directory, the next one taken out.
struct Before<'a> {
    next: Option<Entry>,
    rest: Option<Entries<'a>>,
}

impl<'a> Scan<'a> {
    /// Steps go to `out`.
    pub fn new(
        options: ScanOptions,
        catalog: &'a Catalog,
        cutter: Cutter<'a>,
        owners: &'a Owners,
        observer: &'a dyn Observer,
        stop: &'a Stop,
        out: Input<Vec<Step>, Vec<Done>>,
    ) -> Self {
        Self {
            options,
            catalog,
            cutter,
            owners,
            observer,
            stop,
            out,
            batch: Vec::new(),
            batch_bytes: 0,
            suspect: false,
            linked: HashSet::new(),
        }
    }

    /// Hands over what is left.
    pub fn finish(mut self) -> Result<()> {
        self.flush()
    }

    fn send(&mut self, step: Step) -> Result<()> {
        self.batch_bytes += match &step {
            Step::Piece(piece) => piece.small_len().unwrap_or(BATCH_BYTES),
            step => step.file_len() as u64,
        };
        self.batch.push(step);
        if self.batch.len() >= BATCH_STEPS || self.batch_bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.stop.check()?;
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() || self.out.send(batch) {
            Ok(())
        } else {
            Err(Error::Internal("steps are not taken any more"))
        }
    }

    /// What follows belongs to another root, whose parent snapshot may have lost something.
    pub fn begin_root(&mut self, suspect: bool) {
        self.suspect = suspect;
    }

    /// A root that cannot be read.
    pub fn missing(&mut self, place: Place, what: String) -> Result<()> {
        self.send(Step::Missing(place, what))
    }

    /// A root that is no directory: a file, a block device, or something that is only a node.
    pub fn single(&mut self, path: &Path, name: Vec<u8>, stat: &Stat, before: Option<Entry>) -> Result<()> {
        let place = Place::root(path);
        if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
            return self.device(place, name, stat, before.as_ref());
        }
        self.entry(place, name, stat, before)
    }

    /// A root that is a directory.
    pub fn tree(&mut self, walker: &Walker, path: &Path, name: Vec<u8>, before: Option<Entry>) -> Result<()> {
        let place = Place::root(path);
        match walker.take(walker.root()) {
            Ok(listing) => self.dir(walker, place, name, listing, before),
            Err(e) => self.send(Step::Missing(place, cause(&e))),
        }
    }

    /// What asks it to stop.
    pub fn stop(&self) -> &'a Stop {
        self.stop
    }

    /// A root that is read from a stream.
    pub fn stream(&mut self, entry: Entry, stream: &mut dyn Read, before: Option<&Entry>) -> Result<()> {
        let place = Place::root(path_of(&entry.name));
        self.begin(place.clone(), entry, before, 0)?;
        let mut offset = 0;
        loop {
            let body = read_piece(stream);
            self.stop.check()?;
            let body = body.at("read", place.path())?;
            let len = body.len() as u64;
            let more_follows = len == PIECE_LEN;
            let source = PieceSource::Bytes(body);
            self.send(Step::Piece(PieceToRead::new(source, offset, more_follows)))?;
            offset += len;
            if !more_follows {
                return self.send(Step::End(LargeEnd { before: None, snapshot: None }));
            }
        }
    }

    fn dir(
        &mut self,
        walker: &Walker,
        place: Place,
        name: Vec<u8>,
        listing: Listing,
        before: Option<Entry>,
    ) -> Result<()> {
        if let Some(why) = listing.left_out.as_ref().and_then(left_out) {
            self.observer.event(Event::Notice(format!("{}: left out, {why}", place.path().display())));
        }
        let folder = Arc::new(Folder { path: place.nested(), fd: Some(Arc::clone(&listing.dir)) });
        self.enter(&place, name, &listing, before.as_ref())?;
        if let Some(file) = before.as_ref().filter(|before| before.dir().is_none()) {
            self.deleted(file)?;
        }
        let entries = before.as_ref().and_then(Entry::dir);
        let entries = entries.map(|dir| Entries::of(self.catalog, dir).remembering());
        let mut before = Before { next: None, rest: entries };
        self.advance(&mut before)?;
        for listed in listing.entries {
            let before = self.parent_entry(&mut before, &listed.name)?;
            let place = Place { folder: Arc::clone(&folder), name: listed.name.clone() };
            self.listed(walker, place, listed, before)?;
        }
        while let Some(gone) = before.next.take() {
            self.deleted(&gone)?;
            self.advance(&mut before)?;
        }
        self.send(Step::Leave)
    }

    fn enter(
        &mut self,
        place: &Place,
        name: Vec<u8>,
        listing: &Listing,
        before: Option<&Entry>,
    ) -> Result<()> {
        let xattrs = match before {
            Some(before) if metadata::unchanged(&listing.stat, before) => Ok(before.xattrs.clone()),
            _ => metadata::xattrs_of_fd(&listing.dir),
        };
        let xattrs = xattrs.unwrap_or_else(|e| {
            self.problem(place, format!("its attributes cannot be read: {e}"));
            Vec::new()
        });
        let dir = Dir { root: None, entries: 0, files: 0, bytes: 0, content: ChunkId([0; 20]) };
        let entry = metadata::entry(name, &listing.stat, self.owners, xattrs, Payload::Dir(dir));
        self.send(Step::Enter(entry))
    }

    fn problem(&self, place: &Place, what: String) {
        self.observer.event(Event::Problem { path: place.path(), what });
    }

    /// Takes the parent's next entry out. Where the parent is damaged it ends: what it had from
    /// there on is read again.
    fn advance(&mut self, before: &mut Before) -> Result<()> {
        let Some(entries) = &mut before.rest else { return Ok(()) };
        let next = entries.next().transpose();
        let seen = entries.take_seen();
        if !seen.is_empty() {
            self.send(Step::Known(seen))?;
        }
        before.next = match next {
            Ok(entry) => entry,
            Err(e) if e.is_damage() => {
                self.observer.event(Event::Notice(format!("the parent snapshot: {e}")));
                before.rest = None;
                None
            }
            Err(e) => return Err(e),
        };
        Ok(())
    }

    /// The parent's entry of this name; those before it are gone.
    fn parent_entry(&mut self, before: &mut Before, name: &[u8]) -> Result<Option<Entry>> {
        while let Some(entry) = before.next.take() {
            match entry.name.as_slice().cmp(name) {
                Ordering::Less => self.deleted(&entry)?,
                Ordering::Equal => {
                    self.advance(before)?;
                    return Ok(Some(entry));
                }
                Ordering::Greater => {
                    before.next = Some(entry);
                    return Ok(None);
                }
            }
            self.advance(before)?;
        }
        Ok(None)
    }

    fn deleted(&mut self, entry: &Entry) -> Result<()> {
        let (files, bytes) = match entry.dir() {
            Some(dir) => (dir.files, dir.bytes),
            None => (1, entry.size()),
        };
        self.send(Step::Deleted(files, bytes))
    }

    fn listed(&mut self, walker: &Walker, place: Place, listed: Listed, before: Option<Entry>) -> Result<()> {
        let Listed { name, stat, subdir } = listed;
        match (stat, subdir) {
            (Err(e), _) => self.send(Step::Missing(place, cause(&e))),
            (Ok(_), Some(handle)) => self.subdir(walker, place, name, handle, before),
            (Ok(stat), None) => self.entry(place, name, &stat, before),
        }
    }

    fn subdir(
        &mut self,
        walker: &Walker,
        place: Place,
        name: Vec<u8>,
        handle: DirHandle,
        before: Option<Entry>,
    ) -> Result<()> {
        match walker.take(handle) {
            Ok(listing) => self.dir(walker, place, name, listing, before),
            Err(e) => self.send(Step::Missing(place, cause(&e))),
        }
    }

    /// Anything but a directory.
    fn entry(&mut self, place: Place, name: Vec<u8>, stat: &Stat, before: Option<Entry>) -> Result<()> {
        let change = Change::since(before.as_ref());
        if let Some(dir) = before.as_ref().filter(|before| before.dir().is_some()) {
            self.deleted(dir)?;
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        // The parent may have its node only.
        let is_volume = kind == FileType::BlockDevice && self.options.read_devices;
        let unchanged = |before: &Entry| {
            !self.options.force_read
                && !is_volume
                && metadata::unchanged(stat, before)
                && self.is_whole(before)
        };
        let before = match before {
            Some(before) if unchanged(&before) => return self.send(Step::Ready(before, Change::Unchanged)),
            changed => changed,
        };
        match kind {
            FileType::RegularFile if self.went_by(stat) => {
                let payload = Payload::File(Map::default());
                let entry = metadata::entry(name, stat, self.owners, Vec::new(), payload);
                self.send(Step::Again(place, entry, change))
            }
            FileType::RegularFile if stat.st_size as u64 > PIECE_LEN => {
                self.large(place, name, before.as_ref())
            }
            FileType::RegularFile => {
                let earlier = before.as_ref().and_then(Entry::map).cloned().map(Box::new);
                self.send(Step::Read(FileToRead { place, name, stat: *stat, change, earlier }))
            }
            FileType::BlockDevice if is_volume => self.device(place, name, stat, before.as_ref()),
            _ => self.node(place, name, stat, change),
        }
    }

    /// Whether the file was read under another of its names; if not, it will have been.
    fn went_by(&mut self, stat: &Stat) -> bool {
        let key = (stat.st_dev, stat.st_ino);
        if stat.st_nlink < 2 || self.linked.contains(&key) {
            return stat.st_nlink > 1;
        }
        if self.linked.len() < LINKED_MAX {
            self.linked.insert(key);
        }
        false
    }

    /// Whether all chunks that the parent's entry needs are there. That is taken for granted
    /// unless something was lost since.
    fn is_whole(&self, entry: &Entry) -> bool {
        let map = entry.map().filter(|_| self.suspect);
        map.is_none_or(|map| are_all_there(self.catalog, map).is_ok())
    }

    fn node(&mut self, place: Place, name: Vec<u8>, stat: &Stat, change: Change) -> Result<()> {
        match self.node_entry(&place, name, stat) {
            Ok(entry) => self.send(Step::Ready(entry, change)),
            Err(e) => self.send(Step::Missing(place, e.to_string())),
        }
    }

    fn node_entry(&self, place: &Place, name: Vec<u8>, stat: &Stat) -> std::io::Result<Entry> {
        let (payload, xattrs) = match &place.folder.fd {
            Some(fd) => (
                metadata::payload_without_content(fd, &place.name, stat)?,
                metadata::xattrs_of_path(fd, &place.name)?,
            ),
            None => (
                metadata::payload_without_content(rustix::fs::CWD, &name, stat)?,
                metadata::xattrs_of_root(&place.path())?,
            ),
        };
        let payload = payload.ok_or_else(|| std::io::Error::other("its kind is unknown"))?;
        Ok(metadata::entry(name, stat, self.owners, xattrs, payload))
    }

    fn large(&mut self, place: Place, name: Vec<u8>, before: Option<&Entry>) -> Result<()> {
        let opened = open(&place).and_then(|file| {
            let stat = fstat(&file)?;
            let xattrs = metadata::xattrs_of_fd(&file)?;
            Ok((file, stat, xattrs))
        });
        let (file, stat, xattrs) = match opened {
            Ok(opened) => opened,
            Err(e) => return self.send(Step::Missing(place, e.to_string())),
        };
        let entry = metadata::entry(name, &stat, self.owners, xattrs, Payload::File(Map::default()));
        self.begin(place, entry, before, stat.st_size as u64)?;
        let file = Arc::new(file);
        let spans = Spans::new(&file, stat.st_size as u64, is_sparse(&stat));
        self.pieces(&file, spans, false, before.and_then(Entry::map))?;
        self.send(Step::End(LargeEnd { before: Some((file, stat)), snapshot: None }))
    }

    fn device(&mut self, place: Place, name: Vec<u8>, stat: &Stat, before: Option<&Entry>) -> Result<()> {
        let opened = open(&place).and_then(|file| Ok((device_len(&file)?, file)));
        let (len, file) = match opened {
            Ok(opened) => opened,
            Err(e) => return self.send(Step::Missing(place, e.to_string())),
        };
        let payload = Payload::Volume(Map::default());
        let entry = metadata::entry(name, stat, self.owners, Vec::new(), payload);
        self.begin(place, entry, before, len)?;
        let file = Arc::new(file);
        self.pieces(&file, Spans::new(&file, len, false), false, before.and_then(Entry::map))?;
        self.send(Step::End(LargeEnd { before: None, snapshot: None }))
    }

    fn begin(&mut self, place: Place, entry: Entry, before: Option<&Entry>, len: u64) -> Result<()> {
        let earlier = before.and_then(Entry::map).cloned().map(Box::new);
        self.send(Step::Begin(place, entry, Change::since(before), earlier, len))
    }

    /// All pieces of some spans; `more_follows` if they end amid data. The parent may have had an earlier
    /// state of the same.
    fn pieces(
        &mut self,
        file: &Arc<File>,
        spans: impl Iterator<Item = Span>,
        more_follows: bool,
        earlier: Option<&Map>,
    ) -> Result<()> {
        let mut earlier = earlier.map(|map| Earlier::of(self.catalog, map));
        let mut spans = spans.peekable();
        while let Some(span) = spans.next() {
            match span {
                Span::Hole(range) => {
                    let source = PieceSource::Hole(range.end - range.start);
                    self.send(Step::Piece(PieceToRead::new(source, range.start, false)))?;
                }
                Span::Data(range) => {
                    let more_follows = more_follows && spans.peek().is_none();
                    self.data_pieces(file, range, more_follows, &mut earlier)?;
                }
            }
        }
        Ok(())
    }

    fn data_pieces(
        &mut self,
        file: &Arc<File>,
        range: std::ops::Range<u64>,
        more_follows: bool,
        earlier: &mut Option<Earlier>,
    ) -> Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            // Pieces end at multiples of their length, so that a device sees aligned reads.
            let end = (offset / PIECE_LEN * PIECE_LEN + PIECE_LEN).min(range.end);
            let source = PieceSource::File { file: Arc::clone(file), len: end - offset };
            let piece = PieceToRead::new(source, offset, more_follows || end < range.end);
            let zero_errors = self.options.zero_errors;
            let expected = earlier.as_mut().map(|earlier| earlier.expected(offset..end)).unwrap_or_default();
            self.send(Step::Piece(PieceToRead { zero_errors, expected, ..piece }))?;
            offset = end;
        }
        Ok(())
    }
}

/// What happened, without the path that the caller shows already.
fn cause(error: &Error) -> String {
    match error {
        Error::Io { action, source, .. } => format!("cannot {action} it: {source}"),
        other => other.to_string(),
    }
}

fn left_out(why: &LeftOut) -> Option<String> {
    match why {
        LeftOut::KernelFileSystem(name) => Some(format!("it is a {name} file system")),
        LeftOut::OtherFileSystem | LeftOut::Marked(_) => None,
    }
}

/// The next piece of a stream; shorter only at its end.
fn read_piece(stream: &mut dyn Read) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(PIECE_LEN as usize);
    stream.take(PIECE_LEN).read_to_end(&mut body)?;
    Ok(body)
}

/// Whether a large file was written to since `before`.
pub fn changed_since(before: &(Arc<File>, Stat)) -> bool {
    fstat(&*before.0).map_or(true, |now| !same(&before.1, &now))
}
