//! The end of the line: chunks that were read become maps, entries become trees.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::checkpoint::Progress;
use super::cut::{Joiner, Part, Piece};
use super::follow::{Follower, join};
use super::frames::{Frames, Stream};
use super::read::Worker;
use super::step::{Change, Done, LINKED_MAX, PieceRead, Place, Step, is_same};
use super::tiers::Levels;
use crate::error::{Error, Result};
use crate::format::hashtree::{self, Root};
use crate::format::map::Map;
use crate::format::pack::Kind;
use crate::format::snapshot::{PROBLEMS_MAX, RootInfo, Stats, UnreadableRange, VolumeInfo};
use crate::format::tree::{self, ContentHasher, Dir, Entry, Payload, Xattr};
use crate::id::{ChunkId, Key, SnapshotId};
use crate::observe::{Event, Observer};
use crate::repo::catalog::Catalog;
use crate::repo::keys::Keys;
use crate::repo::map_parts::MapParts;
use crate::text::escape;
use content::Large;

use std::os::unix::ffi::OsStrExt;

mod content;
mod unfinished;

/// Nodes known from the parent that are remembered; beyond that, the index is asked.
const KNOWN_NODES_MAX: usize = 64 << 10;

/// Builds one snapshot's trees and maps from what was read, in order.
pub struct Assembler<'c> {
    catalog: &'c Catalog,
    nodes: Nodes<'c>,
    worker: &'c Worker<'c>,
    observer: &'c dyn Observer,
    /// Whether new chunks may be compressed against what the parent has in their place.
    levels: Levels<'c>,
    delta: bool,
    joiner: Joiner,
    follower: Option<Follower<'c>>,
    large: Option<Large<'c>>,
    /// Content and attributes of files with several names, by device and inode.
    linked: HashMap<(u64, u64), (Payload, Vec<Xattr>)>,
    /// Tells how far volumes are done, if that is wanted.
    checkpoints: Option<Progress<'c>>,
    /// Open directories, the roots' pseudo directory first.
    dirs: Vec<OpenDir>,
    /// Bytes of the source that were dealt with, for the progress.
    progress: u64,
    /// What goes into the snapshot.
    pub result: Assembled,
}

/// What an [`Assembler`] found.
#[derive(Debug, Default)]
pub struct Assembled {
    /// What was counted.
    pub stats: Stats,
    /// Length of all files and volumes without holes and zeros.
    pub bytes_data: u64,
    /// What was backed up.
    pub roots: Vec<RootInfo>,
    /// Paths that are left out.
    pub missing: Vec<String>,
    /// Ranges that are zeros because they could not be read.
    pub unreadable: Vec<UnreadableRange>,
    /// How volumes were read of which something was known.
    pub volumes: Vec<VolumeRead>,
}

/// How a volume was read, and what its new chunks take, which grows until all is written.
#[derive(Debug, Default)]
pub struct VolumeRead {
    info: VolumeInfo,
    /// The snapshot since which it is known what has changed.
    since: Option<SnapshotId>,
    stored: Arc<AtomicU64>,
}

impl VolumeRead {
    /// All of it, once all is written.
    pub fn counted(self) -> VolumeInfo {
        VolumeInfo { bytes_stored: self.stored.load(Ordering::Relaxed), ..self.info }
    }
}

struct OpenDir {
    entry: Option<Entry>,
    builder: hashtree::Builder<Entry>,
    content: ContentHasher,
    entries: u64,
    files: u64,
    bytes: u64,
}

/// Stores map and tree nodes.
struct Nodes<'c> {
    frames: Frames<'c>,
    keys: &'c Keys,
    level: i8,
    known: HashSet<ChunkId>,
}

impl Nodes<'_> {
    fn store(&mut self, stream: Stream, bytes: &[u8]) -> Result<ChunkId> {
        let id = ChunkId::of(self.keys.ids(stream.kind()), bytes);
        let known = self.known.contains(&id)
            || self.frames.has_taken(&id)
            || !self.frames.known(vec![id])?.is_empty();
        if !known {
            self.frames.take(stream, self.level, id, bytes, None)?;
        }
        Ok(id)
    }
}

impl<'c> Assembler<'c> {
    /// New chunks go to `frames`; what has to be read here is read and cut by `worker`. With
    /// `delta`, new chunks may be compressed against the parent's.
    pub fn new(
        catalog: &'c Catalog,
        frames: Frames<'c>,
        keys: &'c Keys,
        worker: &'c Worker<'c>,
        levels: Levels<'c>,
        delta: bool,
        observer: &'c dyn Observer,
    ) -> Self {
        let nodes = Nodes { frames, keys, level: levels.usual(), known: HashSet::new() };
        let roots = OpenDir::new(None, keys.ids(Kind::Tree));
        Self {
            catalog,
            nodes,
            worker,
            observer,
            levels,
            delta,
            joiner: Joiner::default(),
            follower: None,
            large: None,
            linked: HashMap::new(),
            checkpoints: None,
            dirs: vec![roots],
            progress: 0,
            result: Assembled::default(),
        }
    }

    /// Tells how far volumes are done.
    pub fn telling(self, checkpoints: Option<Progress<'c>>) -> Self {
        Self { checkpoints, ..self }
    }

    /// Takes a batch of steps whose reading is done.
    pub fn apply(&mut self, batch: Vec<Done>) -> Result<()> {
        let batch = self.join(batch)?;
        let known = self.nodes.frames.known(chunk_ids(&batch))?;
        let (files, progress) = (self.files_seen(), self.progress);
        for done in batch {
            match done {
                Done::Step(step) => self.step(step)?,
                Done::File(file) => self.file(*file, &known)?,
                Done::Piece(piece) => self.piece(piece, &known)?,
                Done::Keep(range) => self.keep(range)?,
                Done::InVain(len) => self.read_in_vain(len),
            }
        }
        self.observer
            .event(Event::Advance { bytes: self.progress - progress, files: self.files_seen() - files });
        self.nodes.frames.index_published()?;
        self.checkpoint_if_due()
    }

    fn files_seen(&self) -> u64 {
        let stats = &self.result.stats;
        stats.files_new + stats.files_changed + stats.files_unchanged
    }

    /// Makes the cuts between the pieces of large files certain.
    fn join(&mut self, batch: Vec<Done>) -> Result<Vec<Done>> {
        let (joiner, cutter) = (&mut self.joiner, &self.worker.cutter);
        let mut joined = Vec::with_capacity(batch.len() + 1);
        for done in batch {
            match (done, &mut self.follower) {
                (Done::Piece(read), None) => joined.push(join(cutter, joiner, read)),
                (Done::Piece(read), Some(follower)) => follower.piece(read, joiner, &mut joined)?,
                (Done::Step(Step::Region(region)), Some(follower)) => {
                    follower.region(&region, joiner, &mut joined)?;
                }
                (Done::Step(Step::Follow(basis)), follower) => {
                    *follower = Some(Follower::new(self.catalog, self.worker, Arc::clone(&basis)));
                    joined.push(Done::Step(Step::Follow(basis)));
                }
                (Done::Step(Step::End(end)), follower) => {
                    if let Some(mut follower) = follower.take() {
                        follower.end(joiner, &mut joined)?;
                    }
                    let piece = Ok(std::mem::take(joiner).finish(cutter));
                    joined.push(Done::Piece(PieceRead { offset: 0, piece, unreadable: Vec::new() }));
                    joined.push(Done::Step(Step::End(end)));
                }
                (done, _) => joined.push(done),
            }
        }
        Ok(joined)
    }

    fn step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Enter(entry) => {
                self.dirs.push(OpenDir::new(Some(entry), self.nodes.keys.ids(Kind::Tree)));
                self.result.stats.dirs += 1;
                Ok(())
            }
            Step::Leave => self.leave(),
            Step::Known(ids) => {
                if self.nodes.known.len() + ids.len() > KNOWN_NODES_MAX {
                    self.nodes.known.clear();
                }
                self.nodes.known.extend(ids);
                Ok(())
            }
            Step::Ready(entry, change) => {
                self.progress = self.progress.saturating_add(entry.size());
                self.complete(entry, change)
            }
            Step::Again(place, entry, change) => self.again(place, entry, change),
            Step::Begin(place, entry, change, earlier, len) => {
                let stream = match entry.payload {
                    Payload::File(_) => Stream::Files,
                    _ => Stream::Volumes,
                };
                let level = self.levels.of(&entry.name, len);
                let content = self.content(stream, level, earlier.as_deref());
                let (failed, before, volume) = (None, None, None);
                self.large = Some(Large {
                    place,
                    entry,
                    change,
                    content,
                    len,
                    failed,
                    has_gaps: false,
                    before,
                    volume,
                });
                Ok(())
            }
            Step::Volume(info, since) => {
                self.result.stats.bytes_read += info.bytes_spot_checked;
                let stored = Arc::default();
                self.nodes.frames.count_into(Some(Arc::clone(&stored)))?;
                self.large()?.volume = Some(VolumeRead { info: *info, since, stored });
                Ok(())
            }
            Step::Follow(basis) => {
                let parts = MapParts::of(self.catalog, &basis.map);
                self.large()?.before = Some((basis, parts));
                Ok(())
            }
            Step::End(end) => self.end(end),
            Step::Missing(place, what) => {
                self.missing(&place, what);
                Ok(())
            }
            Step::Deleted(files, bytes) => {
                self.result.stats.files_deleted += files;
                self.result.stats.bytes_files_deleted =
                    self.result.stats.bytes_files_deleted.saturating_add(bytes);
                Ok(())
            }
            Step::Read(_) | Step::Piece(_) | Step::Region(_) => Err(Error::Internal("a step was not read")),
        }
    }

    /// One more name of a file that was read, unless reading it failed.
    fn again(&mut self, place: Place, mut entry: Entry, change: Change) -> Result<()> {
        let key = entry.links.map(|links| (links.device, entry.inode));
        match key.and_then(|key| self.linked.get(&key)) {
            Some((payload, xattrs)) => {
                (entry.payload, entry.xattrs) = (payload.clone(), xattrs.clone());
                self.complete(entry, change)
            }
            None => {
                self.missing(&place, "it could not be read under another of its names".into());
                Ok(())
            }
        }
    }

    fn remember_linked(&mut self, entry: &Entry) {
        if let Some(links) = entry.links
            && self.linked.len() < LINKED_MAX
        {
            let content = (entry.payload.clone(), entry.xattrs.clone());
            self.linked.insert((links.device, entry.inode), content);
        }
    }

    /// An entry that is no directory has all that it needs.
    fn complete(&mut self, entry: Entry, change: Change) -> Result<()> {
        let stats = &mut self.result.stats;
        let size = entry.size();
        stats.bytes_source = stats.bytes_source.saturating_add(size);
        let data = entry.map().map_or(0, Map::data_len);
        self.result.bytes_data = self.result.bytes_data.saturating_add(data);
        match change {
            Change::New => {
                stats.files_new += 1;
                stats.bytes_files_new = stats.bytes_files_new.saturating_add(size);
            }
            // It was read, and turned out to be as it was.
            Change::Changed(before) if is_same(&before, &entry) => stats.files_unchanged += 1,
            Change::Changed(before) => {
                stats.files_changed += 1;
                stats.bytes_files_changed_before =
                    stats.bytes_files_changed_before.saturating_add(before.size());
                stats.bytes_files_changed = stats.bytes_files_changed.saturating_add(size);
            }
            Change::Unchanged => stats.files_unchanged += 1,
        }
        self.add(entry, 1, size)
    }

    fn add(&mut self, entry: Entry, files: u64, bytes: u64) -> Result<()> {
        if self.dirs.len() == 1 {
            self.result.roots.push(root_info(&entry));
        }
        let dir = self.dirs.last_mut().ok_or(Error::Internal("an entry without a directory"))?;
        entry.hash_content(&mut dir.content);
        dir.entries += 1;
        dir.files += files;
        dir.bytes = dir.bytes.saturating_add(bytes);
        dir.builder.push(entry, &mut |bytes| self.nodes.store(Stream::Trees, &bytes))
    }

    fn leave(&mut self) -> Result<()> {
        let Some(OpenDir { entry: Some(mut entry), builder, content, entries, files, bytes }) =
            self.dirs.pop()
        else {
            return Err(Error::Internal("an end without a directory"));
        };
        let root = self.finish_dir(builder)?;
        entry.payload = Payload::Dir(Dir { root, entries, files, bytes, content: content.finish() });
        self.add(entry, files, bytes)
    }

    fn finish_dir(&mut self, builder: hashtree::Builder<Entry>) -> Result<Option<Root<ChunkId>>> {
        let root = builder.finish(&mut |bytes| self.nodes.store(Stream::Trees, &bytes))?;
        Ok(root.map(|Root { level, node }: Root<tree::Child>| Root { level, node: node.id }))
    }

    fn problem(&mut self, place: &Place, what: String) {
        self.result.stats.errors += 1;
        self.observer.event(Event::Problem { path: place.path(), what });
    }

    fn missing(&mut self, place: &Place, what: String) {
        if self.result.missing.len() < PROBLEMS_MAX {
            self.result.missing.push(escape(place.path().as_os_str().as_bytes()));
        }
        self.problem(place, what);
    }

    fn unreadable(&mut self, place: &Place, offset: u64, len: u64) {
        if self.result.unreadable.len() < PROBLEMS_MAX {
            let path = escape(place.path().as_os_str().as_bytes());
            self.result.unreadable.push(UnreadableRange { path, offset, len });
        }
        self.problem(place, format!("{len} bytes at {offset} cannot be read; zeros are stored instead"));
    }

    /// Completes the tree of roots and all packs; the tree and the older packs that are needed.
    pub fn finish(mut self) -> Result<(Option<Root<ChunkId>>, HashSet<u32>, Assembled)> {
        let roots = self.dirs.pop().filter(|_| self.dirs.is_empty());
        let roots = roots.ok_or(Error::Internal("a directory was not ended"))?;
        let root = self.finish_dir(roots.builder)?;
        let frames = self.nodes.frames;
        self.result.stats.chunks_new = frames.chunks;
        self.result.stats.bytes_new = frames.bytes;
        let reused = frames.finish()?;
        Ok((root, reused, self.result))
    }

    /// Completes the packs after a stop, so that the next run finds what this one read.
    pub fn abandon(self) -> Result<()> {
        self.nodes.frames.finish().map(drop)
    }
}

impl OpenDir {
    fn new(entry: Option<Entry>, key: &Key) -> Self {
        let content = ContentHasher::new(key);
        Self { entry, builder: hashtree::Builder::default(), content, entries: 0, files: 0, bytes: 0 }
    }
}

fn root_info(entry: &Entry) -> RootInfo {
    RootInfo { path: escape(&entry.name), kind: entry.kind().to_string() }
}

fn chunk_ids(batch: &[Done]) -> Vec<ChunkId> {
    let of_piece = |piece: &Piece| -> Vec<ChunkId> {
        let id = |part: &Part| if let Part::Chunk { id, .. } = part { Some(*id) } else { None };
        piece.parts.iter().filter_map(id).collect()
    };
    let mut ids = Vec::new();
    for done in batch {
        match done {
            Done::File(file) => ids.extend(of_piece(&file.piece)),
            Done::Piece(PieceRead { piece: Ok(piece), .. }) => ids.extend(of_piece(piece)),
            _ => {}
        }
    }
    ids
}
