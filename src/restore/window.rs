//! A window of content to be restored: plan by frame, then read, decode and write in parallel.

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::{Context, Restored, incomplete};
use crate::error::{Error, Result};
use crate::format::map::Extent;
use crate::format::tree::Entry;
use crate::id::ChunkId;
use crate::observe::Event;
use crate::repo::frames::FrameReader;
use crate::repo::reader::OpenPack;
use crate::target::{Content, Counts, Existing, FileOptions, FileTarget, TargetDir, write_whole};

/// Chunks planned together.
const PIECES_MAX: usize = 64 << 10;
/// Bytes planned together.
const BYTES_MAX: u64 = 512 << 20;
/// Files and directories that a window may hold open.
const OPEN_MAX: usize = 600;
/// Threads that read, decode and write, at least: while one waits for the disk, others compute.
const WORKERS_MIN: usize = 3;

/// A chunk to be written.
struct Piece {
    id: ChunkId,
    len: u32,
    /// Which of the window's destinations.
    to: u32,
    /// Where in it.
    offset: u64,
}

/// Where pieces go.
enum Destination {
    /// Something that the caller opened and finishes.
    Open(Arc<dyn Content + Send>, PathBuf),
    /// A file of nothing but a few chunks: written in one go if they are all in one frame.
    Small(Box<SmallFile>),
}

struct SmallFile {
    dir: Arc<TargetDir>,
    entry: Entry,
    existing: Existing,
    /// Opened after all, because its chunks are in several frames.
    scattered: Option<FileTarget>,
}

impl Destination {
    fn path(&self) -> PathBuf {
        match self {
            Destination::Open(_, path) => path.clone(),
            Destination::Small(file) => file.dir.path_of(&file.entry.name),
        }
    }
}

/// What became of a window.
#[derive(Default)]
pub struct Written {
    /// What was done to small files' contents.
    counts: Counts,
    /// Small files that are complete.
    files: u64,
    /// What failed: path and reason.
    failed: Vec<(PathBuf, Error)>,
    /// The destinations concerned.
    spoilt: HashSet<u32>,
}

impl Written {
    /// One error a destination is enough.
    fn fail(&mut self, to: u32, path: PathBuf, error: Error) {
        if self.spoilt.insert(to) {
            self.failed.push((path, error));
        }
    }

    /// Reports the failures and counts the rest.
    pub fn note(self, context: &Context, restored: &mut Restored) {
        restored.files += self.files;
        restored.add_counts(self.counts);
        for (path, error) in self.failed {
            context.problem(path, &error, restored);
        }
    }
}

/// Content planned but not written.
#[derive(Default)]
pub struct Window {
    pieces: Vec<Piece>,
    destinations: Vec<Destination>,
    bytes: u64,
    open: usize,
}

impl Window {
    /// Whether it is time to write.
    pub fn is_full(&self) -> bool {
        self.pieces.len() >= PIECES_MAX || self.bytes >= BYTES_MAX || self.open >= OPEN_MAX
    }

    /// Counts something else that stays open as long as the window.
    pub fn hold_open(&mut self) {
        self.open += 1;
    }

    /// Adds a destination that is open; its pieces follow with [`Window::piece`].
    pub fn open(&mut self, content: Arc<dyn Content + Send>, path: PathBuf) -> u32 {
        self.open += 1;
        self.destinations.push(Destination::Open(content, path));
        self.destinations.len() as u32 - 1
    }

    /// Adds a file of nothing but a few chunks.
    pub fn small(&mut self, dir: Arc<TargetDir>, entry: Entry, existing: Existing, extents: &[Extent]) {
        let to = self.destinations.len() as u32;
        let mut offset = 0;
        for extent in extents {
            if let Extent::Data { id, len } = *extent {
                self.piece(to, offset, id, len);
            }
            offset += extent.len();
        }
        if extents.len() > 1 {
            self.open += 1;
        }
        self.destinations.push(Destination::Small(Box::new(SmallFile {
            dir,
            entry,
            existing,
            scattered: None,
        })));
    }

    /// Adds a chunk.
    pub fn piece(&mut self, to: u32, offset: u64, id: ChunkId, len: u32) {
        self.pieces.push(Piece { id, len, to, offset });
        self.bytes += u64::from(len);
    }

    /// Writes all of it. Failures of single destinations are in the result.
    pub fn write(self, context: &Context) -> Result<Written> {
        let mut plan =
            Plan { window: self, found: Vec::new(), has_deltas: false, written: Written::default() };
        plan.locate(context)?;
        plan.open_scattered();
        plan.execute(context)?;
        plan.finish(context);
        Ok(plan.written)
    }
}

/// A chunk that was found.
#[derive(Clone, Copy)]
struct Found {
    pack: u32,
    frame: u32,
    slot: u32,
    piece: u32,
}

/// Workers that go through frames of changes in different places do not wait for each other's bases;
/// those of more places than this do not fit into memory.
const DELTA_LANES: usize = 2;

/// A frame is kept if less than this part of it is wanted.
const KEPT_BELOW: u64 = 4;

/// A window by frames.
struct Plan {
    window: Window,
    /// By pack, frame, destination and offset there.
    found: Vec<Found>,
    /// Whether any of them is in a delta frame.
    has_deltas: bool,
    written: Written,
}

impl Plan {
    fn locate(&mut self, context: &Context) -> Result<()> {
        let ids: Vec<ChunkId> = self.window.pieces.iter().map(|piece| piece.id).collect();
        for (number, location) in context.catalog.locate(&ids)?.into_iter().enumerate() {
            match location {
                Some(at) => {
                    self.found.push(Found { pack: at.pack, frame: 0, slot: at.slot, piece: number as u32 });
                }
                None => {
                    let piece = &self.window.pieces[number];
                    self.fail(piece.to, Error::missing(format!("chunk {}", piece.id)));
                }
            }
        }
        self.find_frames(context)?;
        let pieces = &self.window.pieces;
        self.found.sort_unstable_by_key(|found| {
            let piece = &pieces[found.piece as usize];
            (found.pack, found.frame, piece.to, piece.offset)
        });
        Ok(())
    }

    /// One pack after the other, so that few tables of contents are in memory.
    fn find_frames(&mut self, context: &Context) -> Result<()> {
        self.found.sort_unstable_by_key(|found| found.pack);
        let mut broken = Vec::new();
        for run in self.found.chunk_by_mut(|a, b| a.pack == b.pack) {
            let pack = context.catalog.pack(run[0].pack);
            for found in run {
                let place = pack.as_ref().map_err(Error::duplicate).and_then(|pack| {
                    let number = pack.slot(found.slot)?.frame;
                    Ok((number, pack.frame(number)?.depth > 0))
                });
                match place {
                    Ok((number, is_delta)) => {
                        found.frame = number;
                        self.has_deltas |= is_delta;
                    }
                    Err(e) if e.is_damage() => broken.push((found.piece, e)),
                    Err(e) => return Err(e),
                }
            }
        }
        let unusable: HashSet<u32> = broken.iter().map(|(piece, _)| *piece).collect();
        self.found.retain(|found| !unusable.contains(&found.piece));
        for (piece, error) in broken {
            self.fail(self.window.pieces[piece as usize].to, error);
        }
        Ok(())
    }

    fn fail(&mut self, to: u32, error: Error) {
        let path = self.window.destinations[to as usize].path();
        self.written.fail(to, path, error);
    }

    /// Opens the small files whose chunks are in more than one frame.
    fn open_scattered(&mut self) {
        let mut frames: Vec<Option<(u32, u32)>> = vec![None; self.window.destinations.len()];
        let mut scattered = Vec::new();
        for found in &self.found {
            let to = self.window.pieces[found.piece as usize].to;
            let frame = (found.pack, found.frame);
            if *frames[to as usize].get_or_insert(frame) != frame {
                scattered.push(to);
            }
        }
        scattered.dedup();
        for to in scattered {
            let Destination::Small(file) = &mut self.window.destinations[to as usize] else { continue };
            if file.scattered.is_some() {
                continue;
            }
            let options =
                FileOptions { size: file.entry.size(), existing: file.existing, ..FileOptions::default() };
            match FileTarget::create(&file.dir, &file.entry.name, &options) {
                Ok(target) => file.scattered = Some(target),
                Err(e) => self.fail(to, e),
            }
        }
    }

    fn execute(&mut self, context: &Context) -> Result<()> {
        let mut jobs: Vec<Range<usize>> = Vec::new();
        for run in self.found.chunk_by(|a, b| (a.pack, a.frame) == (b.pack, b.frame)) {
            let start = jobs.last().map_or(0, |job| job.end);
            jobs.push(start..start + run.len());
        }
        // By what they are for: frames of the same range are made against the same bases, which are
        // decoded once if they are asked for one after the other.
        jobs.sort_by_key(|job| {
            let piece = &self.window.pieces[self.found[job.start].piece as usize];
            (piece.to, piece.offset)
        });
        let lanes = Lanes::new(jobs, if self.has_deltas { DELTA_LANES } else { 1 });
        let written = Mutex::new(std::mem::take(&mut self.written));
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let workers = processors.max(WORKERS_MIN).min(lanes.jobs.len());
        let plan = &*self;
        let work = |number: usize| -> Result<()> {
            let mut worker = Worker { plan, context, frames: FrameReader::new(context.catalog)? };
            while let Some(job) = lanes.next(number) {
                context.stop.check()?;
                worker.frame(&plan.found[job.clone()], &written)?;
            }
            Ok(())
        };
        let result = thread::scope(|scope| {
            let work = &work;
            let workers: Vec<_> = (0..workers).map(|number| scope.spawn(move || work(number))).collect();
            let ended = |worker: thread::ScopedJoinHandle<Result<()>>| {
                worker.join().map_err(|_| Error::Internal("a writer ended early"))?
            };
            workers.into_iter().map(ended).collect::<Result<Vec<()>>>()
        });
        self.written = written.into_inner().map_err(|_| Error::Internal("a writer ended early"))?;
        result.map(drop)
    }

    /// Gives scattered files their metadata and names.
    fn finish(&mut self, context: &Context) {
        for (to, destination) in std::mem::take(&mut self.window.destinations).into_iter().enumerate() {
            let path = destination.path();
            let Destination::Small(file) = destination else { continue };
            let Some(target) = file.scattered else { continue };
            if self.written.spoilt.contains(&(to as u32)) && file.existing == Existing::Replace {
                // What is there is better than what could be put in its place.
                continue;
            }
            let whole = !self.written.spoilt.contains(&(to as u32));
            let entry = if whole { file.entry } else { incomplete(&file.entry) };
            let finished = target.set_metadata(context.metadata, &entry).and_then(|()| target.finish());
            match finished {
                Ok(counts) => {
                    self.written.counts += counts;
                    self.written.files += u64::from(whole);
                }
                Err(e) => self.written.fail(to as u32, path, e),
            }
        }
    }
}

/// Jobs, as many one after the other in each lane.
struct Lanes {
    jobs: Vec<Range<usize>>,
    /// Where each lane goes on, and where it ends.
    lanes: Vec<(AtomicUsize, usize)>,
}

impl Lanes {
    fn new(jobs: Vec<Range<usize>>, count: usize) -> Self {
        let bounds =
            |lane: usize| (AtomicUsize::new(jobs.len() * lane / count), jobs.len() * (lane + 1) / count);
        let lanes = (0..count).map(bounds).collect();
        Self { jobs, lanes }
    }

    /// The next job of the lane that this worker goes along, or of another when that is at its end.
    fn next(&self, worker: usize) -> Option<&Range<usize>> {
        let lanes = self.lanes.iter().cycle().skip(worker % self.lanes.len()).take(self.lanes.len());
        let next =
            |(at, end): &(AtomicUsize, usize)| Some(at.fetch_add(1, Ordering::Relaxed)).filter(|at| at < end);
        self.jobs.get(lanes.filter_map(next).next()?)
    }
}

struct Worker<'a> {
    plan: &'a Plan,
    context: &'a Context<'a>,
    frames: FrameReader<'a>,
}

impl Worker<'_> {
    /// Writes the chunks of one frame.
    fn frame(&mut self, found: &[Found], written: &Mutex<Written>) -> Result<()> {
        let mut local = Written::default();
        let frame = self.decode(found);
        let piece = |found: &Found| &self.plan.window.pieces[found.piece as usize];
        for run in found.chunk_by(|a, b| piece(a).to == piece(b).to) {
            let number = piece(&run[0]).to;
            let to = &self.plan.window.destinations[number as usize];
            let done = match &frame {
                Ok((pack, raw)) => self.destination(to, pack, raw, run, &mut local),
                Err(e) => Err(e.duplicate()),
            };
            if let Err(e) = done {
                let mut written = written.lock().map_err(|_| Error::Internal("a writer ended early"))?;
                written.fail(number, to.path(), e);
            }
        }
        let bytes = found.iter().map(|found| u64::from(piece(found).len)).sum();
        if let Some(raw) = frame.ok().and_then(|(_, raw)| Arc::into_inner(raw)) {
            self.frames.reuse(raw);
        }
        self.context.observer.event(Event::Advance { bytes, files: local.files });
        let mut written = written.lock().map_err(|_| Error::Internal("a writer ended early"))?;
        written.counts += local.counts;
        written.files += local.files;
        Ok(())
    }

    /// A frame of which little is wanted now is likely to be wanted again: by the next window, or
    /// for the next file of an archive; a delta frame, or where there are some, for another one.
    fn decode(&mut self, found: &[Found]) -> Result<(Arc<OpenPack>, Arc<Vec<u8>>)> {
        let (pack, number) = (self.context.catalog.pack(found[0].pack)?, found[0].frame);
        let wanted: u64 =
            found.iter().map(|found| u64::from(self.plan.window.pieces[found.piece as usize].len)).sum();
        let is_kept = self.plan.has_deltas || wanted < u64::from(pack.frame(number)?.raw_len) / KEPT_BELOW;
        let raw = match is_kept {
            true => self.frames.base(&pack, number)?,
            false => Arc::new(self.frames.frame(&pack, number)?),
        };
        Ok((pack, raw))
    }

    fn destination(
        &self,
        to: &Destination,
        pack: &OpenPack,
        raw: &[u8],
        run: &[Found],
        local: &mut Written,
    ) -> Result<()> {
        match to {
            Destination::Open(content, _) => self.pieces(&**content, pack, raw, run),
            Destination::Small(file) => match &file.scattered {
                Some(target) => self.pieces(target, pack, raw, run),
                None => {
                    let bytes = self.whole(&file.entry, pack, raw, run)?;
                    let context = self.context;
                    local.counts +=
                        write_whole(&file.dir, &bytes, file.existing, context.metadata, &file.entry)?;
                    local.files += 1;
                    Ok(())
                }
            },
        }
    }

    /// Writes pieces of something that is open, neighbours together.
    fn pieces(&self, content: &dyn Content, pack: &OpenPack, raw: &[u8], run: &[Found]) -> Result<()> {
        let mut pending: Option<(u64, Range<usize>)> = None;
        for found in run {
            let offset = self.plan.window.pieces[found.piece as usize].offset;
            let range = self.checked(pack, raw, found)?;
            match &mut pending {
                Some((start, before))
                    if before.end == range.start && *start + before.len() as u64 == offset =>
                {
                    before.end = range.end;
                }
                _ => {
                    if let Some((start, before)) = pending.replace((offset, range)) {
                        content.write_at(start, &raw[before])?;
                    }
                }
            }
        }
        pending.map_or(Ok(()), |(start, range)| content.write_at(start, &raw[range]))
    }

    /// The whole content of a small file, all of whose pieces these are.
    fn whole(&self, entry: &Entry, pack: &OpenPack, raw: &[u8], run: &[Found]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        for found in run {
            bytes.extend_from_slice(&raw[self.checked(pack, raw, found)?]);
        }
        match bytes.len() as u64 == entry.size() {
            true => Ok(bytes),
            false => Err(Error::missing("a chunk of it")),
        }
    }

    /// Where a chunk lies in its frame; its bytes have its id and the length that the map says.
    fn checked(&self, pack: &OpenPack, raw: &[u8], found: &Found) -> Result<Range<usize>> {
        let piece = &self.plan.window.pieces[found.piece as usize];
        let slot = pack.slot(found.slot)?;
        self.context.catalog.reader().chunk(pack, slot, raw)?;
        if slot.len != piece.len || slot.id != piece.id {
            return Err(Error::damaged(format!("chunk {}", piece.id), "the map gives it another length"));
        }
        Ok(slot.offset as usize..(slot.offset + slot.len) as usize)
    }
}
