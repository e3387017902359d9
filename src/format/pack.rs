//! Packs: an immutable object of sealed frames and a sealed trailer that lists them.
//!
//! ```text
//! header   48   magic "varvpack" 8 · format u16 · class u8 · key wrap u8 · zero u32 · salt 32
//! frames        sealed, one after the other
//! trailer       sealed: frame table, chunk table (see `Trailer`)
//! footer   28   trailer's sealed length u32 · checksum 16 · magic "varvend\n" 8
//! ```
//!
//! The checksum is the first 16 bytes of the BLAKE3 of header, sealed trailer and its length.

use super::FORMAT;
use super::wire::{Decoded, Malformed, Reader, put_varint};
use crate::id::{ChunkId, PackId, RepositoryId, checksum};

/// Length of the header, and where the first frame begins.
pub const HEADER_LEN: usize = 48;
/// Length of the footer.
pub const FOOTER_LEN: usize = 28;
/// What sealing adds to a frame or trailer.
pub const SEAL_LEN: usize = 16;
/// The longest plain frame.
pub const FRAME_RAW_MAX: u32 = 8 << 20;
/// The longest trailer that is read; the writer closes packs long before.
pub const TRAILER_MAX: u32 = 64 << 20;
/// Frame numbers are below this; the trailer is sealed under the number itself.
pub const TRAILER_FRAME: u32 = u32::MAX;
/// The most bases of a delta frame.
pub const BASES_MAX: usize = 256;
/// The greatest depth of a delta frame.
pub const DEPTH_MAX: u8 = 15;
/// The most bytes that a delta frame's bases have together.
pub const PREFIX_MAX: usize = 2 * FRAME_RAW_MAX as usize;

const MAGIC: &[u8; 8] = b"varvpack";
/// The last bytes of a pack.
pub const MAGIC_END: &[u8; 8] = b"varvend\n";

/// Which key seals a pack, and how large it grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Chunks of files and volumes.
    Data,
    /// Map and tree nodes.
    Metadata,
}

impl Class {
    /// Both.
    pub const ALL: [Class; 2] = [Class::Data, Class::Metadata];

    /// The number on disk.
    pub fn code(self) -> u8 {
        match self {
            Class::Data => 1,
            Class::Metadata => 2,
        }
    }

    /// From the number on disk.
    pub fn from_code(code: u8) -> Decoded<Self> {
        match code {
            1 => Ok(Class::Data),
            2 => Ok(Class::Metadata),
            _ => Err(Malformed("its class is unknown")),
        }
    }
}

/// What a frame's chunks are, and so which key their ids are made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Pieces of files and volumes.
    Data,
    /// Map nodes.
    Map,
    /// Tree nodes.
    Tree,
}

impl Kind {
    /// All three.
    pub const ALL: [Kind; 3] = [Kind::Data, Kind::Map, Kind::Tree];

    /// The class of pack that holds such frames.
    pub fn class(self) -> Class {
        match self {
            Kind::Data => Class::Data,
            Kind::Map | Kind::Tree => Class::Metadata,
        }
    }

    fn code(self) -> u8 {
        match self {
            Kind::Data => 0,
            Kind::Map => 1,
            Kind::Tree => 2,
        }
    }

    fn from_code(code: u8) -> Decoded<Self> {
        match code {
            0 => Ok(Kind::Data),
            1 => Ok(Kind::Map),
            2 => Ok(Kind::Tree),
            _ => Err(Malformed("a frame's kind is unknown")),
        }
    }
}

/// How a frame's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As they are.
    Raw,
    /// One zstd frame; with bases, their chunks are its prefix.
    Zstd,
}

impl Codec {
    /// The number on disk.
    pub fn code(self) -> u8 {
        match self {
            Codec::Raw => 0,
            Codec::Zstd => 1,
        }
    }

    /// From the number on disk.
    pub fn from_code(code: u8) -> Decoded<Self> {
        match code {
            0 => Ok(Codec::Raw),
            1 => Ok(Codec::Zstd),
            _ => Err(Malformed("a frame's codec is unknown")),
        }
    }
}

/// A pack's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which class's key the pack's key is derived from.
    pub class: Class,
    /// Random, new for every attempt to write a pack.
    pub salt: [u8; 32],
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        out[10] = self.class.code();
        // Byte 11, the key wrap: 0 says that the pack's key is derived from its class's key.
        out[16..].copy_from_slice(&self.salt);
        out
    }

    /// From the first [`HEADER_LEN`] bytes of a pack.
    pub fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut reader = Reader::new(bytes);
        if reader.array::<8>()? != *MAGIC {
            return Err(Malformed("it does not begin as a pack"));
        }
        if reader.u16()? != FORMAT {
            return Err(Malformed("its format is unknown"));
        }
        let class = Class::from_code(reader.u8()?)?;
        if reader.u8()? != 0 || reader.u32()? != 0 {
            return Err(Malformed("its key wrap is unknown"));
        }
        Ok(Self { class, salt: reader.array()? })
    }
}

/// A run of chunks that a delta frame is compressed against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// 0 is this pack, n the trailer's n-th pack reference.
    pub pack: u32,
    /// The frame in that pack.
    pub frame: u32,
    /// The first chunk, by its slot in that pack.
    pub slot: u32,
    /// How many chunks from there, all of that frame.
    pub count: u32,
}

/// A frame as the trailer lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Where it begins in the pack, in bytes.
    pub offset: u64,
    /// Its length in the pack, seal included.
    pub stored_len: u32,
    /// Its length when decoded.
    pub raw_len: u32,
    /// What its chunks are.
    pub kind: Kind,
    /// How it is stored.
    pub codec: Codec,
    /// The zstd level asked for when it was written; 0 for tier store.
    pub level: i8,
    /// 0 without bases, else one more than the deepest of its bases' frames.
    pub depth: u8,
    /// What it is compressed against.
    pub bases: Vec<Base>,
    /// The slot of its first chunk.
    pub slot: u32,
    /// How many chunks it holds.
    pub chunks: u32,
}

/// How a frame is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// The zstd level asked for.
    pub level: i8,
    /// Whether it is compressed against older chunks.
    pub is_delta: bool,
}

impl Frame {
    /// How it is compressed.
    pub fn way(&self) -> Way {
        Way { level: self.level, is_delta: !self.bases.is_empty() }
    }
}

/// A chunk as the trailer lists it: one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The chunk's name.
    pub id: ChunkId,
    /// The frame that holds it.
    pub frame: u32,
    /// Where it begins in the decoded frame.
    pub offset: u32,
    /// Its length.
    pub len: u32,
}

/// A pack's table of contents.
///
/// ```text
/// varint number of pack references, then 32 bytes each
/// varint number of frames, then for each: varint stored length, raw length · u8 kind, codec,
///   level (two's complement), depth · varint number of bases, then for each: varint pack,
///   frame, slot, count · varint number of chunks, then a varint length for each
/// 20 bytes an id, for all chunks in order
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trailer {
    /// Packs that bases lie in.
    pub packs: Vec<PackId>,
    /// The frames in the order of their offsets.
    pub frames: Vec<Frame>,
    /// The chunks in the order of frames and offsets in them.
    pub slots: Vec<Slot>,
}

impl Trailer {
    /// The plain bytes, to be sealed.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.frames.len() * 16 + self.slots.len() * 23);
        put_varint(&mut out, self.packs.len() as u64);
        for pack in &self.packs {
            out.extend_from_slice(&pack.0);
        }
        put_varint(&mut out, self.frames.len() as u64);
        for frame in &self.frames {
            put_varint(&mut out, frame.stored_len.into());
            put_varint(&mut out, frame.raw_len.into());
            out.extend_from_slice(&[frame.kind.code(), frame.codec.code(), frame.level as u8, frame.depth]);
            put_varint(&mut out, frame.bases.len() as u64);
            for base in &frame.bases {
                for value in [base.pack, base.frame, base.slot, base.count] {
                    put_varint(&mut out, value.into());
                }
            }
            put_varint(&mut out, frame.chunks.into());
            for slot in self.slots_of(frame) {
                put_varint(&mut out, slot.len.into());
            }
        }
        for slot in &self.slots {
            out.extend_from_slice(&slot.id.0);
        }
        out
    }

    /// From the plain bytes of a pack of `pack_len` bytes.
    pub fn decode(bytes: &[u8], pack_len: u64) -> Decoded<Self> {
        let mut reader = Reader::new(bytes);
        let packs = (0..reader.count(PackId::LEN)?)
            .map(|_| reader.array().map(PackId))
            .collect::<Decoded<Vec<_>>>()?;
        let mut trailer = Trailer { packs, ..Trailer::default() };
        let mut offset = HEADER_LEN as u64;
        for number in 0..reader.count(8)? {
            let frame = trailer.decode_frame(&mut reader, number as u32, offset)?;
            offset += u64::from(frame.stored_len);
            if offset > pack_len {
                return Err(Malformed("its frames reach past its end"));
            }
            trailer.frames.push(frame);
        }
        if reader.remaining() != trailer.slots.len() * ChunkId::LEN {
            return Err(Malformed("its chunk table has another length than its frames say"));
        }
        for slot in &mut trailer.slots {
            slot.id = ChunkId(reader.array()?);
        }
        reader.end()?;
        Ok(trailer)
    }

    fn decode_frame(&mut self, reader: &mut Reader, number: u32, offset: u64) -> Decoded<Frame> {
        let stored_len = reader.at_most(u32::MAX.into(), "a frame is too long")? as u32;
        let raw_len = reader.at_most(FRAME_RAW_MAX.into(), "a frame is too long")? as u32;
        let kind = Kind::from_code(reader.u8()?)?;
        let codec = Codec::from_code(reader.u8()?)?;
        let level = reader.u8()? as i8;
        let depth = reader.u8()?;
        if depth > DEPTH_MAX {
            return Err(Malformed("a frame is too deep"));
        }
        let bases =
            (0..reader.count(4)?).map(|_| self.decode_base(reader, number)).collect::<Decoded<Vec<_>>>()?;
        if bases.len() > BASES_MAX {
            return Err(Malformed("a frame has too many bases"));
        }
        if !bases.is_empty() && kind != Kind::Data {
            return Err(Malformed("a frame of metadata has bases"));
        }
        if bases.is_empty() != (depth == 0) {
            return Err(Malformed("a frame's depth does not fit its bases"));
        }
        let slot = self.slots.len() as u32;
        // Each chunk takes its length here and its id at the trailer's end.
        let chunks = reader.count(1 + ChunkId::LEN)? as u32;
        let mut at = 0u32;
        for _ in 0..chunks {
            let len = reader.at_most((raw_len - at).into(), "a chunk reaches past its frame")? as u32;
            if len == 0 {
                return Err(Malformed("a chunk is empty"));
            }
            self.slots.push(Slot { id: ChunkId([0; ChunkId::LEN]), frame: number, offset: at, len });
            at += len;
        }
        if at != raw_len || chunks == 0 {
            return Err(Malformed("a frame is longer than its chunks"));
        }
        if stored_len > raw_len + SEAL_LEN as u32 {
            return Err(Malformed("a frame takes more than its chunks"));
        }
        Ok(Frame { offset, stored_len, raw_len, kind, codec, level, depth, bases, slot, chunks })
    }

    fn decode_base(&self, reader: &mut Reader, number: u32) -> Decoded<Base> {
        let pack = reader.at_most(self.packs.len() as u64, "a base's pack is not listed")? as u32;
        let frame = reader.at_most(u32::MAX.into(), "a base's frame is too high")? as u32;
        let slot = reader.at_most(u32::MAX.into(), "a base's slot is too high")? as u32;
        let count = reader.at_most(u32::MAX.into(), "a base is too long")? as u32;
        if pack == 0 && frame >= number {
            return Err(Malformed("a base does not come before its frame"));
        }
        Ok(Base { pack, frame, slot, count })
    }

    /// Where the last frame ends in the pack, in bytes.
    pub fn frames_end(&self) -> u64 {
        self.frames.last().map_or(HEADER_LEN as u64, |frame| frame.offset + u64::from(frame.stored_len))
    }

    /// The chunks of one of this trailer's frames.
    pub fn slots_of(&self, frame: &Frame) -> &[Slot] {
        let start = frame.slot as usize;
        self.slots.get(start..start + frame.chunks as usize).unwrap_or_default()
    }

    /// The bytes this value takes in memory, about.
    pub fn memory(&self) -> usize {
        self.slots.len() * size_of::<Slot>()
            + self.frames.len() * size_of::<Frame>()
            + self.frames.iter().map(|f| f.bases.len() * size_of::<Base>()).sum::<usize>()
            + self.packs.len() * PackId::LEN
    }
}

/// The end of a pack: where its trailer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// The sealed trailer's length.
    pub trailer_len: u32,
    checksum: [u8; 16],
}

impl Footer {
    /// For a pack with this header and sealed trailer.
    pub fn new(header: &[u8; HEADER_LEN], sealed_trailer: &[u8]) -> Self {
        let trailer_len = sealed_trailer.len() as u32;
        let checksum = checksum(&[header, sealed_trailer, &trailer_len.to_le_bytes()]);
        Self { trailer_len, checksum }
    }

    /// The checksum over header and sealed trailer: with its length, what a pack is recognised by.
    pub fn check(&self) -> [u8; 16] {
        self.checksum
    }

    /// The footer's bytes.
    pub fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut out = [0; FOOTER_LEN];
        out[..4].copy_from_slice(&self.trailer_len.to_le_bytes());
        out[4..20].copy_from_slice(&self.checksum);
        out[20..].copy_from_slice(MAGIC_END);
        out
    }

    /// From the last [`FOOTER_LEN`] bytes of a pack of `pack_len` bytes.
    pub fn decode(bytes: &[u8], pack_len: u64) -> Decoded<Self> {
        let mut reader = Reader::new(bytes);
        let trailer_len = reader.u32()?;
        let checksum = reader.array()?;
        if reader.array::<8>()? != *MAGIC_END {
            return Err(Malformed("it does not end as a pack"));
        }
        reader.end()?;
        let around = (HEADER_LEN + FOOTER_LEN) as u64;
        if trailer_len > TRAILER_MAX || u64::from(trailer_len) + around > pack_len {
            return Err(Malformed("its trailer is longer than itself"));
        }
        Ok(Self { trailer_len, checksum })
    }

    /// Whether header and sealed trailer are those that this footer was made for.
    pub fn fits(&self, header: &[u8; HEADER_LEN], sealed_trailer: &[u8]) -> bool {
        Self::new(header, sealed_trailer) == *self
    }
}

/// What a frame or trailer is bound to when it is sealed: changing any of it makes it unreadable.
pub fn associated_data(
    repository: &RepositoryId,
    class: Class,
    frame: u32,
    codec: u8,
    raw_len: u32,
) -> [u8; 28] {
    let mut out = [0; 28];
    out[..2].copy_from_slice(&FORMAT.to_le_bytes());
    out[2..18].copy_from_slice(&repository.0);
    out[18] = class.code();
    out[19..23].copy_from_slice(&frame.to_le_bytes());
    out[23] = codec;
    out[24..].copy_from_slice(&raw_len.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Trailer {
        let frame = |offset, slot, bases: Vec<Base>| Frame {
            offset,
            stored_len: 40,
            raw_len: 30,
            kind: Kind::Data,
            codec: Codec::Zstd,
            level: 3,
            depth: u8::from(!bases.is_empty()),
            bases,
            slot,
            chunks: 2,
        };
        let slot = |id, frame, offset, len| Slot { id: ChunkId([id; 20]), frame, offset, len };
        Trailer {
            packs: vec![PackId([9; 32])],
            frames: vec![
                frame(48, 0, vec![]),
                frame(88, 2, vec![Base { pack: 0, frame: 0, slot: 1, count: 1 }]),
            ],
            slots: vec![slot(1, 0, 0, 10), slot(2, 0, 10, 20), slot(3, 1, 0, 5), slot(4, 1, 5, 25)],
        }
    }

    #[test]
    fn round_trips() {
        let header = Header { class: Class::Metadata, salt: [5; 32] };
        assert_eq!(Header::decode(&header.encode()), Ok(header));
        let trailer = sample();
        assert_eq!(Trailer::decode(&trailer.encode(), 1000), Ok(trailer));
        let footer = Footer::new(&header.encode(), b"sealed");
        assert_eq!(Footer::decode(&footer.encode(), 1000), Ok(footer));
        assert!(footer.fits(&header.encode(), b"sealed"));
        assert!(!footer.fits(&header.encode(), b"Sealed"));
    }

    #[test]
    fn bases_must_come_first() {
        let mut trailer = sample();
        trailer.frames[1].bases[0].frame = 1;
        assert!(Trailer::decode(&trailer.encode(), 1000).is_err());
        trailer.frames[1].bases[0] = Base { pack: 2, frame: 0, slot: 0, count: 1 };
        assert!(Trailer::decode(&trailer.encode(), 1000).is_err());
    }

    #[test]
    fn frames_must_lie_inside_of_the_pack() {
        assert!(Trailer::decode(&sample().encode(), 127).is_err());
        assert!(Footer::decode(&Footer::new(&[0; 48], &[0; 100]).encode(), 100).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>, pack_len: u64) {
            let _ = Trailer::decode(&bytes, pack_len);
            let _ = Header::decode(&bytes);
            let _ = Footer::decode(&bytes, pack_len);
        }

        #[test]
        fn every_flip_is_an_error_or_another_value(at in 0usize..1000, bit in 0u8..8) {
            let plain = sample().encode();
            let mut bytes = plain.clone();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(trailer) = Trailer::decode(&bytes, 1000) {
                prop_assert_ne!(trailer, sample());
            }
        }
    }
}
