//! New chunks into frames, and which chunks are new.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crossbeam_channel::Receiver;

use crate::error::{Error, Result};
use crate::format::config::Sizes;
use crate::format::pack::{FRAME_RAW_MAX, Kind};
use crate::id::ChunkId;
use crate::ordered::Input;
use crate::repo::catalog::Catalog;
use crate::repo::packer::{PublishedPack, RawFrame};
use crate::repo::packs::ToPack;

/// Chunks of published packs are put into the index when there are so many.
const UNINDEXED_MAX: usize = 128 << 10;

/// The writer has failed, and its error is the cause.
const NOT_WRITTEN: Error = Error::Internal("packs are not written any more");

/// Where new chunks go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Chunks of files.
    Files,
    /// Chunks of volumes and of other large content.
    Volumes,
    /// Chunks of either, where the parent has something else in their place.
    Changes,
    /// Map nodes.
    Maps,
    /// Tree nodes.
    Trees,
}

impl Stream {
    /// What its chunks are.
    pub fn kind(self) -> Kind {
        match self {
            Stream::Files | Stream::Volumes | Stream::Changes => Kind::Data,
            Stream::Maps => Kind::Map,
            Stream::Trees => Kind::Tree,
        }
    }

    fn frame_len(self, sizes: &Sizes) -> usize {
        (match self {
            Stream::Files => sizes.tree_frame,
            Stream::Volumes | Stream::Changes => sizes.volume_frame,
            Stream::Maps | Stream::Trees => sizes.metadata_frame,
        }) as usize
    }
}

/// What is on its way to be compressed and packed.
pub enum ToEncode {
    /// A frame.
    Frame {
        /// The frame.
        frame: RawFrame,
        /// The zstd level.
        level: i8,
        /// Where what it takes when stored is counted, if somebody asks.
        stored: Option<Arc<AtomicU64>>,
    },
    /// Packs are closed behind the frames before this.
    Close,
}

/// Takes new chunks, and knows those that it took.
pub struct Frames<'c> {
    catalog: &'c Catalog,
    sizes: Sizes,
    /// One of each stream and level that was met.
    open: BTreeMap<(Stream, i8), RawFrame>,
    encode: Input<ToEncode, Result<ToPack>>,
    /// Where what open frames of data take is counted.
    stored: Option<Arc<AtomicU64>>,
    /// Memory of frames that were encoded.
    reusable: Receiver<Vec<u8>>,
    published: Receiver<PublishedPack>,
    /// Published, but not in the index.
    unindexed: Vec<PublishedPack>,
    unindexed_chunks: usize,
    /// Chunks taken that are not in a published pack.
    unpublished: usize,
    /// Chunks taken that are not in the index.
    taken: HashSet<ChunkId>,
    /// Packs that this run relies on.
    reused: HashSet<u32>,
    /// Chunks taken in all, …
    pub chunks: u64,
    /// … and their length.
    pub bytes: u64,
}

impl<'c> Frames<'c> {
    /// Frames go to `encode`; their memory comes back by `reusable`, packs that were published by
    /// `published`.
    pub fn new(
        catalog: &'c Catalog,
        sizes: Sizes,
        encode: Input<ToEncode, Result<ToPack>>,
        reusable: Receiver<Vec<u8>>,
        published: Receiver<PublishedPack>,
    ) -> Self {
        Self {
            catalog,
            sizes,
            open: BTreeMap::new(),
            encode,
            stored: None,
            reusable,
            published,
            unindexed: Vec::new(),
            unindexed_chunks: 0,
            unpublished: 0,
            taken: HashSet::new(),
            reused: HashSet::new(),
            chunks: 0,
            bytes: 0,
        }
    }

    /// Of `ids`, those that the repository had before this run.
    pub fn known(&mut self, ids: Vec<ChunkId>) -> Result<HashSet<ChunkId>> {
        let mut candidates = ids;
        candidates.retain(|id| !self.taken.contains(id));
        candidates.sort_unstable();
        candidates.dedup();
        let mut index = self.catalog.index()?;
        candidates.retain(|id| index.may_contain(id));
        let found = index.locate(&candidates)?;
        drop(index);
        let mut known = HashSet::with_capacity(candidates.len());
        for (id, location) in candidates.into_iter().zip(found) {
            if let Some(location) = location {
                self.reused.insert(location.pack);
                known.insert(id);
            }
        }
        Ok(known)
    }

    /// Whether this run took the chunk already.
    pub fn has_taken(&self, id: &ChunkId) -> bool {
        self.taken.contains(id)
    }

    /// Takes a chunk that is new, and what it may be like.
    pub fn take(
        &mut self,
        stream: Stream,
        level: i8,
        id: ChunkId,
        bytes: &[u8],
        like: impl IntoIterator<Item = ChunkId>,
    ) -> Result<()> {
        if bytes.len() > FRAME_RAW_MAX as usize {
            return Err(Error::Internal("a chunk is longer than any frame"));
        }
        let frame_len = stream.frame_len(&self.sizes);
        let is_full = |frame: &RawFrame| frame.raw.len() + bytes.len() > frame_len;
        if self.open.get(&(stream, level)).is_some_and(is_full) {
            self.close((stream, level))?;
        }
        self.open
            .entry((stream, level))
            .or_insert_with(|| RawFrame::new(stream.kind(), self.reusable.try_recv().unwrap_or_default()))
            .push(id, bytes, like);
        self.taken.insert(id);
        self.unpublished += 1;
        if stream.kind() == Kind::Data {
            self.chunks += 1;
            self.bytes += bytes.len() as u64;
        }
        Ok(())
    }

    /// Closes an open frame that is at least half full: what comes next is not to be in it.
    pub fn cut(&mut self, stream: Stream, level: i8) -> Result<()> {
        let half = stream.frame_len(&self.sizes) / 2;
        match self.open.get(&(stream, level)).is_some_and(|frame| frame.raw.len() >= half) {
            true => self.close((stream, level)),
            false => Ok(()),
        }
    }

    fn close(&mut self, place: (Stream, i8)) -> Result<()> {
        let Some(frame) = self.open.remove(&place) else { return Ok(()) };
        let stored = self.stored.clone().filter(|_| frame.kind == Kind::Data);
        self.send(ToEncode::Frame { frame, level: place.1, stored })
    }

    fn close_all(&mut self) -> Result<()> {
        self.open.keys().copied().collect::<Vec<_>>().into_iter().try_for_each(|place| self.close(place))
    }

    fn send(&self, work: ToEncode) -> Result<()> {
        if self.encode.send(work) { Ok(()) } else { Err(NOT_WRITTEN) }
    }

    /// From here on, what frames of data take when stored is added to `stored`. Open ones are
    /// closed, so that what they take is counted where it belongs.
    pub fn count_into(&mut self, stored: Option<Arc<AtomicU64>>) -> Result<()> {
        let data = self.open.keys().filter(|(stream, _)| stream.kind() == Kind::Data);
        for place in data.copied().collect::<Vec<_>>() {
            self.close(place)?;
        }
        self.stored = stored;
        Ok(())
    }

    /// Puts packs that were published meanwhile into the index, once there are enough.
    pub fn index_published(&mut self) -> Result<()> {
        while let Ok(pack) = self.published.try_recv() {
            self.note(pack);
        }
        if self.unindexed_chunks < UNINDEXED_MAX { Ok(()) } else { self.index_now() }
    }

    fn note(&mut self, pack: PublishedPack) {
        self.unpublished -= pack.ids.len();
        self.unindexed_chunks += pack.ids.len();
        self.unindexed.push(pack);
    }

    /// Waits until all that was taken so far is durable and in the index.
    pub fn publish(&mut self) -> Result<()> {
        self.close_all()?;
        self.send(ToEncode::Close)?;
        while self.unpublished > 0 {
            let pack = self.published.recv().map_err(|_| NOT_WRITTEN)?;
            self.note(pack);
        }
        self.index_now()
    }

    fn index_now(&mut self) -> Result<()> {
        self.catalog.store().barrier()?;
        self.catalog.add(&self.unindexed)?;
        for pack in self.unindexed.drain(..) {
            for id in &pack.ids {
                self.taken.remove(id);
            }
        }
        self.unindexed_chunks = 0;
        Ok(())
    }

    /// Closes the open frames, waits until all packs are published, and puts them into the
    /// index. The packs of older runs that this one relies on are returned.
    pub fn finish(mut self) -> Result<HashSet<u32>> {
        self.close_all()?;
        let Self { catalog, encode, published, mut unindexed, reused, .. } = self;
        drop(encode);
        unindexed.extend(published.iter());
        catalog.store().barrier()?;
        catalog.add(&unindexed)?;
        Ok(reused)
    }
}
