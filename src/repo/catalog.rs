//! The chunks of an opened repository: where each is, and reading map and tree nodes.
//!
//! One value for all threads; the index and the caches are behind locks.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::codec::frame::Decoder;
use crate::error::{Error, Result};
use crate::format::bad::Slots;
use crate::format::hashtree::Root;
use crate::format::map;
use crate::format::pack::{Kind, Slot};
use crate::format::tree;
use crate::id::{ChunkId, PackId, SnapshotId};
use crate::observe::{Event, Observer};

use super::bounded::Bounded;
use super::index::{Index, Location, NewPack, PackRecord};
use super::packer::PublishedPack;
use super::reader::{OpenPack, PackReader};
use crate::store::Store;

/// Opened packs' tables of contents that are kept, in bytes.
const TRAILERS_MAX: usize = 24 << 20;
/// Decoded metadata frames that are kept, in bytes.
const NODES_MAX: usize = 24 << 20;

/// Decoded frames that delta frames have as bases are kept, in bytes: by who only reads, …
pub(super) const BASES_READING_MAX: usize = 64 << 20;
/// … and by who adds, which takes memory for other things too.
pub(super) const BASES_ADDING_MAX: usize = 32 << 20;

/// The raw bytes of a frame, once somebody has decoded it; others wait meanwhile.
pub(super) type BaseFrame = Mutex<Option<Arc<Vec<u8>>>>;

/// Which chunks there are, and how to read them.
pub struct Catalog {
    reader: PackReader,
    index: Mutex<Index>,
    packs: Mutex<Bounded<PackId, OpenPack>>,
    nodes: Mutex<NodeCache>,
    bases: Mutex<Bounded<(PackId, u32), BaseFrame>>,
}

impl Catalog {
    /// Over an index that knows just the packs of the store; so many bytes of decoded bases are kept.
    pub fn new(reader: PackReader, index: Index, bases_max: usize) -> Result<Self> {
        Ok(Self {
            reader,
            index: Mutex::new(index),
            packs: Mutex::new(Bounded::new(TRAILERS_MAX)),
            nodes: Mutex::new(NodeCache::new()?),
            bases: Mutex::new(Bounded::new(bases_max)),
        })
    }

    /// The index, for one look-up or change.
    pub fn index(&self) -> Result<MutexGuard<'_, Index>> {
        self.index.lock().map_err(|_| Error::Internal("a thread ended while it used the index"))
    }

    /// Whether chunks that a snapshot needs may be gone, so that nothing may be assumed of it.
    pub fn is_suspect(&self, snapshot: &SnapshotId) -> Result<bool> {
        self.index()?.is_suspect(snapshot)
    }

    /// Leads nobody to what is known to be bad, not even who would only read.
    pub fn shun_bad(&self) -> Result<()> {
        self.index()?.set_last_resort(false);
        Ok(())
    }

    /// What reads packs.
    pub fn reader(&self) -> &PackReader {
        &self.reader
    }

    /// Where each chunk is; `None` for those that are nowhere.
    pub fn locate(&self, ids: &[ChunkId]) -> Result<Vec<Option<Location>>> {
        self.index()?.locate(ids)
    }

    /// Adds packs that were published.
    pub fn add(&self, packs: &[PublishedPack]) -> Result<()> {
        let packs: Vec<NewPack> = packs
            .iter()
            .map(|PublishedPack { record, ids, .. }| NewPack {
                id: record.id,
                class: record.class,
                len: record.len,
                trailer_check: record.check,
                ids,
                before: None,
            })
            .collect();
        let mut index = self.index()?;
        index.add_packs(&packs)?;
        // A merge that is put off for lack of room, or done by another, is no failure.
        let free = free_bytes(index.folder());
        index.merge_if_due(free).map(drop)
    }

    /// Forgets packs that are to be removed from the store; durably, so that no power cut brings
    /// them back.
    pub fn remove(&self, packs: &[PackId]) -> Result<()> {
        let mut index = self.index()?;
        index.remove_packs(packs)?;
        index.settle()
    }

    /// Gives back the space of what was removed, as far as that is due.
    pub fn tidy(&self) -> Result<()> {
        let mut index = self.index()?;
        let free = free_bytes(index.folder());
        index.merge_if_due(free).map(drop)
    }

    /// The store that the packs are in.
    pub fn store(&self) -> &dyn Store {
        self.reader.store()
    }

    /// Leaves the index as one file, and tells if it had to be made anew.
    pub fn close(self, observer: &dyn Observer) -> Result<()> {
        let index = self.index.into_inner();
        let index = index.map_err(|_| Error::Internal("a thread ended while it used the index"))?;
        if let Some(why) = index.renewed() {
            observer.event(Event::Notice(format!("the index was made anew: {why}")));
        }
        index.close()
    }

    /// An opened pack, by its number in the index.
    pub fn pack(&self, number: u32) -> Result<Arc<OpenPack>> {
        let record = self
            .index()?
            .pack(number)
            .cloned()
            .ok_or(Error::Internal("the index names a pack that it does not have"))?;
        self.open_pack(&record)
    }

    /// An opened pack, by its name.
    pub fn pack_named(&self, id: &PackId) -> Result<Arc<OpenPack>> {
        if let Some(pack) = lock(&self.packs)?.get(id) {
            return Ok(Arc::clone(pack));
        }
        let record = self.index()?.packs().iter().find(|record| record.id == *id).cloned();
        self.open_pack(&record.ok_or_else(|| Error::missing(format!("pack {id}")))?)
    }

    fn open_pack(&self, record: &PackRecord) -> Result<Arc<OpenPack>> {
        if let Some(pack) = lock(&self.packs)?.get(&record.id) {
            return Ok(Arc::clone(pack));
        }
        let pack = Arc::new(self.reader.open(&record.id, record.len)?);
        lock(&self.packs)?.put(record.id, Arc::clone(&pack), pack.trailer.memory());
        Ok(pack)
    }

    /// Where the raw bytes of a frame that others have as base are kept, or will be; and memory for
    /// them, of what was forgotten instead, if there is some that fits.
    pub(super) fn base(&self, pack: &OpenPack, frame: u32) -> Result<(Arc<BaseFrame>, Vec<u8>)> {
        let key = (pack.id, frame);
        let mut bases = lock(&self.bases)?;
        if let Some(base) = bases.get(&key) {
            return Ok((Arc::clone(base), Vec::new()));
        }
        let base = Arc::new(BaseFrame::default());
        let len = pack.frame(frame)?.raw_len as usize;
        let gone = bases.put(key, Arc::clone(&base), len);
        drop(bases);
        let memory = gone.into_iter().filter_map(|(_, base)| memory_of(base));
        Ok((base, memory.into_iter().find(|memory| fits(memory, len)).unwrap_or_default()))
    }

    /// A decoded tree node.
    pub fn tree_node(&self, node: &Root<ChunkId>, roots: bool) -> Result<tree::Node> {
        self.with_node(Kind::Tree, &node.node, |bytes| tree::Node::decode(bytes, node.level, roots))?
            .map_err(|e| Error::damaged(format!("tree node {}", node.node), e))
    }

    /// A decoded map node.
    pub fn map_node(&self, id: &ChunkId, level: u8) -> Result<map::Node> {
        self.with_node(Kind::Map, id, |bytes| map::Node::decode(bytes, level))?
            .map_err(|e| Error::damaged(format!("map node {id}"), e))
    }

    fn with_node<T>(&self, kind: Kind, id: &ChunkId, use_it: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let mut nodes = lock(&self.nodes)?;
        if !nodes.has(id, |bytes| self.reader.is_chunk(kind, id, bytes)) {
            self.load_node(kind, id, &mut nodes)?;
        }
        let bytes = nodes.get(id).ok_or_else(|| missing_node(kind, id))?;
        Ok(use_it(bytes))
    }

    /// Reads a node from any place where it can be read. Nobody is led again to those where it
    /// cannot.
    fn load_node(&self, kind: Kind, id: &ChunkId, nodes: &mut NodeCache) -> Result<()> {
        let mut first_error = None;
        while let Some(place) = self.locate(std::slice::from_ref(id))?.pop().flatten() {
            let error = match self.load_frame(place, nodes) {
                Err((error, slots)) if error.is_damage() => {
                    let mut index = self.index()?;
                    let pack = index.pack(place.pack).map(|pack| pack.id);
                    if !pack.is_some_and(|pack| index.add_bad(&pack, &slots)) {
                        return Err(error);
                    }
                    error
                }
                done => return done.map_err(|(error, _)| error),
            };
            first_error.get_or_insert(error);
        }
        Err(first_error.unwrap_or_else(|| missing_node(kind, id)))
    }

    /// Reads the metadata frame that holds this place; with an error, the slots that it spoils.
    fn load_frame(&self, place: Location, nodes: &mut NodeCache) -> Result<(), (Error, Slots)> {
        let pack = self.pack(place.pack).map_err(|e| (e, Slots::all()))?;
        let one = |error| (error, Slots::range(place.slot, 1));
        let number = pack.slot(place.slot).map_err(one)?.frame;
        let frame = pack.frame(number).map_err(one)?;
        let all = |error| (error, Slots::range(frame.slot, frame.chunks));
        let (mut stored, mut raw) = (Vec::new(), Vec::new());
        let memory = [&mut stored, &mut raw];
        self.reader.frame(&pack, number, &[], &mut nodes.decoder, memory).map_err(all)?;
        // Others in the frame are checked once they are asked for: most never are.
        let wanted = pack.slot(place.slot).map_err(one)?;
        self.reader.chunk(&pack, wanted, &raw).map_err(one)?;
        nodes.put(raw, pack.trailer.slots_of(frame), wanted);
        Ok(())
    }
}

/// The memory of a frame that nobody uses any more.
fn memory_of(base: Arc<BaseFrame>) -> Option<Vec<u8>> {
    Arc::into_inner(base)?.into_inner().ok().flatten().and_then(Arc::into_inner)
}

/// Whether memory is enough for so many bytes, and not much more than is counted for them.
fn fits(memory: &Vec<u8>, len: usize) -> bool {
    (len..=len + len / 8).contains(&memory.capacity())
}

fn missing_node(kind: Kind, id: &ChunkId) -> Error {
    Error::missing(format!("{} {id}", if kind == Kind::Tree { "tree node" } else { "map node" }))
}

/// What the file system of a folder has left; 0 if it does not say.
fn free_bytes(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
}

/// The value behind a lock, unless a thread panicked while it held it.
pub fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    mutex.lock().map_err(|_| Error::Internal("a thread ended while it used a cache"))
}

/// A decoded metadata frame.
struct NodeFrame {
    raw: Vec<u8>,
    ids: Vec<ChunkId>,
}

/// Decoded metadata frames, and the nodes in them.
struct NodeCache {
    frames: Bounded<u64, NodeFrame>,
    /// The nodes in the frames that are kept.
    nodes: HashMap<ChunkId, CachedNode>,
    next_frame: u64,
    decoder: Decoder,
}

/// Where a node is.
#[derive(Clone, Copy)]
struct CachedNode {
    frame: u64,
    offset: u32,
    len: u32,
    /// Whether its bytes were seen to have its id.
    is_checked: bool,
}

impl NodeCache {
    fn new() -> Result<Self> {
        Ok(Self {
            frames: Bounded::new(NODES_MAX),
            nodes: HashMap::new(),
            next_frame: 0,
            decoder: Decoder::new()?,
        })
    }

    /// Whether a node is there and has its id, as `check` says of its bytes.
    fn has(&mut self, id: &ChunkId, check: impl FnOnce(&[u8]) -> bool) -> bool {
        match self.nodes.get(id) {
            None => false,
            Some(node) if node.is_checked => true,
            Some(_) => {
                let is_sound = self.get(id).is_some_and(check);
                if let Some(node) = self.nodes.get_mut(id) {
                    node.is_checked = is_sound;
                }
                is_sound
            }
        }
    }

    fn get(&mut self, id: &ChunkId) -> Option<&[u8]> {
        let CachedNode { frame, offset, len, .. } = *self.nodes.get(id)?;
        let frame = self.frames.get(&frame)?;
        frame.raw.get(offset as usize..(offset + len) as usize)
    }

    /// Keeps a frame with the nodes in these slots, of which one was checked.
    fn put(&mut self, raw: Vec<u8>, slots: &[Slot], checked: &Slot) {
        let number = self.next_frame;
        self.next_frame += 1;
        let node = |slot: &Slot, is_checked| {
            let node = CachedNode { frame: number, offset: slot.offset, len: slot.len, is_checked };
            (slot.id, node)
        };
        self.nodes.extend(slots.iter().map(|slot| node(slot, false)).chain([node(checked, true)]));
        let ids: Vec<ChunkId> = slots.iter().map(|slot| slot.id).collect();
        let size = raw.len() + ids.len() * 64;
        for (gone, frame) in self.frames.put(number, Arc::new(NodeFrame { raw, ids }), size) {
            for id in &frame.ids {
                if self.nodes.get(id).is_some_and(|node| node.frame == gone) {
                    self.nodes.remove(id);
                }
            }
        }
    }
}
