//! Frames into packs: encode, seal, append, close, publish.

use crate::codec::frame::Encoder;
use crate::codec::seal::Seal;
use crate::error::{Error, Result};
use crate::format::pack::{
    Base, Class, Codec, FOOTER_LEN, Footer, Frame, HEADER_LEN, Header, Kind, SEAL_LEN, Slot, TRAILER_FRAME,
    TRAILER_MAX, Trailer, Way, associated_data,
};
use crate::id::{ChunkId, Hasher, PackId, RepositoryId};
use crate::store::{Store, Upload};

use super::keys::{Keys, random};
use super::layout;

/// What a chunk takes in a trailer: id and length.
const SLOT_LEN: usize = 23;
/// What a frame takes in a trailer, without bases.
const FRAME_ENTRY_LEN: usize = 16;
/// A pack with so many chunks takes no more frames. Files of some bytes each would make tables that
/// are longer than the files, and all of a table is in memory at once, several times.
const PACK_CHUNKS_FULL: usize = 128 << 10;
/// So many candidates back it is seen that one is named twice.
const NEIGHBOURS: usize = 16;

/// Consecutive new chunks, to be compressed together.
pub struct RawFrame {
    /// What the chunks are.
    pub kind: Kind,
    /// Their bytes, one after the other.
    pub raw: Vec<u8>,
    /// Their names and lengths.
    pub chunks: Vec<(ChunkId, u32)>,
    /// What they may be compressed against: older chunks, in the order of what they resemble.
    pub candidates: Vec<Candidate>,
}

/// An older chunk that is probably much like a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub id: ChunkId,
    /// Which of the frame's chunks it is like.
    pub chunk: u32,
}

/// A run of chunks of one frame that a delta frame is compressed against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedBase {
    /// The pack; none is the one that the delta frame itself lies in.
    pub pack: Option<PackId>,
    /// The frame in it.
    pub frame: u32,
    /// The slot of the first chunk.
    pub slot: u32,
    /// How many chunks.
    pub count: u32,
}

impl RawFrame {
    /// Of no chunks yet, in this memory.
    pub fn new(kind: Kind, mut raw: Vec<u8>) -> Self {
        raw.clear();
        Self { kind, raw, chunks: Vec::new(), candidates: Vec::new() }
    }

    /// Adds a chunk, and older ones that it is probably like.
    pub fn push(&mut self, id: ChunkId, bytes: &[u8], like: impl IntoIterator<Item = ChunkId>) {
        let chunk = self.chunks.len() as u32;
        self.raw.extend_from_slice(bytes);
        self.chunks.push((id, bytes.len() as u32));
        for id in like {
            // Neighbours have neighbours in common.
            if !self.candidates.iter().rev().take(NEIGHBOURS).any(|before| before.id == id) {
                self.candidates.push(Candidate { id, chunk });
            }
        }
    }

    /// Where one of its chunks begins.
    pub fn offset_of(&self, chunk: u32) -> usize {
        self.chunks.iter().take(chunk as usize).map(|(_, len)| *len as usize).sum()
    }

    /// Compresses it, if that pays. Its memory is given back.
    pub fn encode(self, encoder: &mut Encoder, level: i8) -> Result<(EncodedFrame, Vec<u8>)> {
        let (codec, stored) = encoder.encode(&self.raw)?;
        Ok(self.encoded(level, codec, stored, 0, Vec::new()))
    }

    /// As it was compressed, against these bases.
    pub fn encoded(
        self,
        level: i8,
        codec: Codec,
        stored: Vec<u8>,
        depth: u8,
        bases: Vec<PackedBase>,
    ) -> (EncodedFrame, Vec<u8>) {
        let Self { kind, raw, chunks, .. } = self;
        let raw_len = raw.len() as u32;
        (EncodedFrame { kind, level, codec, raw_len, stored, chunks, depth, bases, from: None }, raw)
    }
}

/// A frame ready to be sealed into a pack.
pub struct EncodedFrame {
    kind: Kind,
    level: i8,
    codec: Codec,
    raw_len: u32,
    stored: Vec<u8>,
    chunks: Vec<(ChunkId, u32)>,
    depth: u8,
    bases: Vec<PackedBase>,
    from: Option<FramePlace>,
}

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePlace {
    /// The pack; none is one that is not closed yet.
    pub pack: Option<PackId>,
    /// Its number there.
    pub frame: u32,
    /// Its first slot there.
    pub slot: u32,
}

impl EncodedFrame {
    /// A frame of another pack as it was stored there, opened and not decompressed.
    pub fn moved(id: PackId, trailer: &Trailer, number: u32, frame: &Frame, mut stored: Vec<u8>) -> Self {
        stored.reserve_exact(SEAL_LEN);
        let listed = |pack: u32| trailer.packs.get(pack as usize).copied();
        let base = |base: &Base| PackedBase {
            pack: base.pack.checked_sub(1).map_or(Some(id), listed),
            frame: base.frame,
            slot: base.slot,
            count: base.count,
        };
        Self {
            kind: frame.kind,
            level: frame.level,
            codec: frame.codec,
            raw_len: frame.raw_len,
            stored,
            chunks: trailer.slots_of(frame).iter().map(|slot| (slot.id, slot.len)).collect(),
            depth: frame.depth,
            bases: frame.bases.iter().map(base).collect(),
            from: Some(FramePlace { pack: Some(id), frame: number, slot: frame.slot }),
        }
    }

    /// The same frame, compressed again: the shorter of the two. It counts as tried at that level.
    pub fn recompressed(self, level: i8, again: Option<(Codec, Vec<u8>)>) -> Self {
        match again.filter(|(_, stored)| stored.len() < self.stored.len()) {
            Some((codec, stored)) => Self { level, codec, stored, ..self },
            None => Self { level, ..self },
        }
    }

    /// Where it lay before.
    pub fn from(&self) -> Option<FramePlace> {
        self.from
    }

    /// What it is compressed against.
    pub fn bases_mut(&mut self) -> &mut [PackedBase] {
        &mut self.bases
    }

    /// What it takes in a pack.
    pub fn stored_len(&self) -> u64 {
        (self.stored.len() + SEAL_LEN) as u64
    }

    /// What its chunks are.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How it is stored.
    pub fn way(&self) -> Way {
        Way { level: self.level, is_delta: !self.bases.is_empty() }
    }

    /// The lengths of its chunks.
    pub fn chunk_lens(&self) -> Vec<u32> {
        self.chunks.iter().map(|(_, len)| *len).collect()
    }

    /// Which packs it belongs into.
    pub fn class(&self) -> Class {
        self.kind.class()
    }
}

/// A pack being written. Nothing of it is visible before [`ClosedPack::publish`].
pub struct PackWriter {
    class: Class,
    repository: RepositoryId,
    seal: Seal,
    header: [u8; HEADER_LEN],
    upload: Box<dyn Upload>,
    hasher: Hasher,
    len: u64,
    trailer: Trailer,
}

impl PackWriter {
    /// Begins a pack, under a key of its own.
    pub fn new(store: &dyn Store, keys: &Keys, repository: RepositoryId, class: Class) -> Result<Self> {
        let header = Header { class, salt: random()? };
        let mut writer = Self {
            class,
            repository,
            seal: keys.pack_seal(class, &header.salt)?,
            header: header.encode(),
            upload: store.create()?,
            hasher: Hasher::plain(),
            len: 0,
            trailer: Trailer::default(),
        };
        let header = writer.header;
        writer.write(&header)?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        self.upload.write(bytes)
    }

    /// About its length if it were closed now.
    pub fn len(&self) -> u64 {
        let table = self.trailer.slots.len() * SLOT_LEN + self.trailer.frames.len() * FRAME_ENTRY_LEN;
        self.len + table as u64
    }

    /// Whether it is to be closed: it has this length, or its table of contents is long enough.
    pub fn is_full(&self, len: u64) -> bool {
        self.len() >= len || self.trailer.slots.len() >= PACK_CHUNKS_FULL
    }

    /// Whether it has no frame yet.
    pub fn is_empty(&self) -> bool {
        self.trailer.frames.is_empty()
    }

    /// Where the next frame will lie.
    pub fn next(&self) -> FramePlace {
        FramePlace {
            pack: None,
            frame: self.trailer.frames.len() as u32,
            slot: self.trailer.slots.len() as u32,
        }
    }

    /// Seals and appends a frame; what it takes in the pack is returned.
    pub fn append(&mut self, mut frame: EncodedFrame) -> Result<u64> {
        let number = self.trailer.frames.len() as u32;
        let bound = associated_data(&self.repository, self.class, number, frame.codec.code(), frame.raw_len);
        self.seal.seal(number, &bound, &mut frame.stored)?;
        let offset = self.len;
        self.write(&frame.stored)?;
        let slot = self.trailer.slots.len() as u32;
        let mut at = 0;
        for (id, len) in &frame.chunks {
            self.trailer.slots.push(Slot { id: *id, frame: number, offset: at, len: *len });
            at += len;
        }
        let bases = frame.bases.iter().map(|base| self.base(base)).collect();
        self.trailer.frames.push(Frame {
            offset,
            stored_len: frame.stored.len() as u32,
            raw_len: frame.raw_len,
            kind: frame.kind,
            codec: frame.codec,
            level: frame.level,
            depth: frame.depth,
            bases,
            slot,
            chunks: frame.chunks.len() as u32,
        });
        Ok(frame.stored.len() as u64)
    }

    fn base(&mut self, base: &PackedBase) -> Base {
        let pack = base.pack.map_or(0, |id| {
            let listed = self.trailer.packs.iter().position(|pack| *pack == id);
            let place = listed.unwrap_or_else(|| {
                self.trailer.packs.push(id);
                self.trailer.packs.len() - 1
            });
            place as u32 + 1
        });
        Base { pack, frame: base.frame, slot: base.slot, count: base.count }
    }

    /// Appends the trailer. The pack's name is known from here on.
    pub fn close(mut self) -> Result<ClosedPack> {
        let mut trailer = self.trailer.encode();
        if trailer.len() + SEAL_LEN > TRAILER_MAX as usize {
            return Err(Error::Internal("a pack's table of contents is too long"));
        }
        let bound = associated_data(&self.repository, self.class, TRAILER_FRAME, 0, trailer.len() as u32);
        self.seal.seal(TRAILER_FRAME, &bound, &mut trailer)?;
        self.write(&trailer)?;
        let footer = Footer::new(&self.header, &trailer);
        self.write(&footer.encode())?;
        let record = Packed {
            id: PackId(self.hasher.finish()),
            class: self.class,
            len: self.len,
            check: footer.check(),
        };
        let needs_others = !self.trailer.packs.is_empty();
        let ids = self.trailer.slots.iter().map(|slot| slot.id).collect();
        let overhead = (HEADER_LEN + FOOTER_LEN + trailer.len()) as u64;
        Ok(ClosedPack { record, ids, overhead, needs_others, upload: self.upload })
    }
}

/// A pack as it is known from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Its name.
    pub id: PackId,
    /// Its class.
    pub class: Class,
    /// Its length.
    pub len: u64,
    /// The checksum in its footer.
    pub check: [u8; 16],
}

/// A complete pack that is not visible yet.
pub struct ClosedPack {
    record: Packed,
    ids: Vec<ChunkId>,
    overhead: u64,
    needs_others: bool,
    upload: Box<dyn Upload>,
}

/// A pack that is in the store, and what it holds.
pub struct PublishedPack {
    /// The pack.
    pub record: Packed,
    /// Its chunks in the order of their slots.
    pub ids: Vec<ChunkId>,
    /// Bytes that are not frames.
    pub overhead: u64,
}

impl ClosedPack {
    /// Its name.
    pub fn id(&self) -> PackId {
        self.record.id
    }

    /// Whether frames in it are compressed against frames of other packs.
    pub fn needs_others(&self) -> bool {
        self.needs_others
    }

    /// Makes it visible; it is durable after the store's next barrier.
    pub fn publish(self) -> Result<PublishedPack> {
        self.upload.publish(&layout::pack(&self.record.id))?;
        Ok(PublishedPack { record: self.record, ids: self.ids, overhead: self.overhead })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn tiny_chunks_fill_a_pack_too() {
        let (store, keys) = (MemoryStore::new(), Keys::generate(false).unwrap());
        let mut pack = PackWriter::new(&store, &keys, RepositoryId([3; 16]), Class::Data).unwrap();
        let mut encoder = Encoder::new(1).unwrap();
        for full in [false, true] {
            assert_eq!(pack.is_full(32 << 20), full);
            let mut frame = RawFrame::new(Kind::Data, Vec::new());
            (0..PACK_CHUNKS_FULL as u32).for_each(|_| frame.push(ChunkId([1; 20]), b"tiny", []));
            pack.append(frame.encode(&mut encoder, 1).unwrap().0).unwrap();
        }
        assert!(pack.close().unwrap().ids.len() == 2 * PACK_CHUNKS_FULL);
    }
}
