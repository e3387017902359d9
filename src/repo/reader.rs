//! Chunks out of packs: open a pack, read a frame, check what it holds.
//!
//! Everything that comes from the store is checked here before anybody else sees it: the pack's
//! footer and seal, each frame's seal, and each chunk's id.

use std::sync::Arc;

use crate::codec::frame::Decoder;
use crate::codec::seal::Seal;
use crate::error::{Error, Result};
use crate::format::pack::{
    Class, FOOTER_LEN, Footer, Frame, HEADER_LEN, Header, Kind, SEAL_LEN, Slot, TRAILER_FRAME, Trailer,
    associated_data,
};
use crate::id::{ChunkId, PackId, RepositoryId};
use crate::store::Store;

use super::keys::Keys;
use super::layout;

/// So much of a pack's end is read at once, in the hope that the trailer is in it.
const TAIL_LEN: u64 = 64 << 10;

/// A pack whose trailer was read and found good.
pub struct OpenPack {
    /// Its name.
    pub id: PackId,
    /// Its class.
    pub class: Class,
    /// The checksum in its footer.
    pub check: [u8; 16],
    /// What it holds.
    pub trailer: Trailer,
    seal: Seal,
}

/// Reads packs of one repository.
#[derive(Clone)]
pub struct PackReader {
    store: Arc<dyn Store>,
    keys: Keys,
    repository: RepositoryId,
}

impl PackReader {
    /// From this store, with these keys.
    pub fn new(store: Arc<dyn Store>, keys: Keys, repository: RepositoryId) -> Self {
        Self { store, keys, repository }
    }

    /// Where it reads from.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Opens the pack `id` of `len` bytes by its header, footer and trailer.
    pub fn open(&self, id: &PackId, len: u64) -> Result<OpenPack> {
        let name = layout::pack(id);
        let damaged = |why: &str| Error::damaged(format!("pack {id}"), why);
        if len < (HEADER_LEN + FOOTER_LEN) as u64 {
            return Err(damaged("it is too short to be a pack"));
        }
        let mut header = [0; HEADER_LEN];
        self.store.get(&name, 0, &mut header)?;
        let mut tail = vec![0; len.min(TAIL_LEN) as usize];
        self.store.get(&name, len - tail.len() as u64, &mut tail)?;
        let footer_at = tail.len() - FOOTER_LEN;
        let footer = Footer::decode(&tail[footer_at..], len).map_err(|e| damaged(e.0))?;
        let mut trailer = self.trailer_bytes(&name, len, &tail[..footer_at], footer)?;
        self.open_parts(id, len, &header, &mut trailer, footer)
    }

    /// As [`PackReader::open`], of header, sealed trailer and footer that were read before.
    pub fn open_parts(
        &self,
        id: &PackId,
        len: u64,
        header: &[u8; HEADER_LEN],
        trailer: &mut [u8],
        footer: Footer,
    ) -> Result<OpenPack> {
        let damaged = |why: &str| Error::damaged(format!("pack {id}"), why);
        if !footer.fits(header, trailer) {
            return Err(damaged("its trailer's checksum does not fit"));
        }
        let header = Header::decode(header).map_err(|e| damaged(e.0))?;
        let seal = self.keys.pack_seal(header.class, &header.salt)?;
        let plain_len = (trailer.len().saturating_sub(SEAL_LEN)) as u32;
        let bound = associated_data(&self.repository, header.class, TRAILER_FRAME, 0, plain_len);
        let plain = seal
            .open(TRAILER_FRAME, &bound, trailer)
            .ok_or_else(|| damaged("its trailer cannot be opened with the repository's key"))?;
        let trailer = Trailer::decode(plain, len).map_err(|e| damaged(e.0))?;
        if trailer.frames.iter().any(|frame| frame.kind.class() != header.class) {
            return Err(damaged("it holds frames of another class"));
        }
        let around = (FOOTER_LEN as u64) + u64::from(footer.trailer_len);
        if trailer.frames_end() + around != len {
            return Err(damaged("its frames do not reach up to its trailer"));
        }
        Ok(OpenPack { id: *id, class: header.class, check: footer.check(), trailer, seal })
    }

    fn trailer_bytes(&self, name: &str, len: u64, tail: &[u8], footer: Footer) -> Result<Vec<u8>> {
        let trailer_len = footer.trailer_len as usize;
        if let Some(start) = tail.len().checked_sub(trailer_len) {
            return Ok(tail[start..].to_vec());
        }
        let mut bytes = vec![0; trailer_len];
        self.store.get(name, len - (FOOTER_LEN + trailer_len) as u64, &mut bytes)?;
        Ok(bytes)
    }

    /// The checksum in a pack's footer, without reading more.
    pub fn check(&self, id: &PackId, len: u64) -> Result<[u8; 16]> {
        let mut footer = [0; FOOTER_LEN];
        let at = len.saturating_sub(FOOTER_LEN as u64);
        self.store.get(&layout::pack(id), at, &mut footer)?;
        let footer = Footer::decode(&footer, len).map_err(|e| Error::damaged(format!("pack {id}"), e.0))?;
        Ok(footer.check())
    }

    /// Reads frame `number` of a pack: its bytes as they are in the store into `stored`, and what
    /// they stand for into `raw`, memory that may have been used before. `prefix` is what it is
    /// compressed against: its bases' chunks. Chunk ids are not checked here.
    pub fn frame(
        &self,
        pack: &OpenPack,
        number: u32,
        prefix: &[u8],
        decoder: &mut Decoder,
        [stored, raw]: [&mut Vec<u8>; 2],
    ) -> Result<()> {
        let frame = pack.frame(number)?;
        self.read(pack, frame, stored)?;
        let plain = self.unseal(pack, number, stored)?;
        decoder
            .decode(frame.codec, plain, prefix, frame.raw_len as usize, raw)
            .ok_or_else(|| damaged_frame(pack, number, NOT_DECODED))
    }

    /// Frame `number` of a pack as it was stored: opened, so surely what was written, and not
    /// decompressed.
    pub fn stored_frame(&self, pack: &OpenPack, number: u32) -> Result<Vec<u8>> {
        let mut stored = Vec::new();
        self.read(pack, pack.frame(number)?, &mut stored)?;
        let len = self.unseal(pack, number, &mut stored)?.len();
        stored.truncate(len);
        Ok(stored)
    }

    fn read(&self, pack: &OpenPack, frame: &Frame, stored: &mut Vec<u8>) -> Result<()> {
        stored.resize(frame.stored_len as usize, 0);
        self.store.get(&layout::pack(&pack.id), frame.offset, stored)
    }

    /// As [`PackReader::frame`], of bytes that were read already and in memory that can be used
    /// again.
    pub fn open_frame<'a>(
        &self,
        pack: &OpenPack,
        number: u32,
        stored: &'a mut [u8],
        prefix: &[u8],
        decoder: &mut Decoder,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8]> {
        let frame = pack.frame(number)?;
        let plain = self.unseal(pack, number, stored)?;
        decoder
            .decode_in(frame.codec, plain, prefix, frame.raw_len as usize, scratch)
            .ok_or_else(|| damaged_frame(pack, number, NOT_DECODED))
    }

    fn unseal<'a>(&self, pack: &OpenPack, number: u32, stored: &'a mut [u8]) -> Result<&'a [u8]> {
        let frame = pack.frame(number)?;
        let bound = associated_data(&self.repository, pack.class, number, frame.codec.code(), frame.raw_len);
        let plain = pack.seal.open(number, &bound, stored);
        plain.ok_or_else(|| damaged_frame(pack, number, "its seal is broken"))
    }

    /// Whether bytes have this id.
    pub fn is_chunk(&self, kind: Kind, id: &ChunkId, bytes: &[u8]) -> bool {
        ChunkId::of(self.keys.ids(kind), bytes) == *id
    }

    /// The bytes of the chunk in `slot` of a decoded frame, if they have its id.
    pub fn chunk<'a>(&self, pack: &OpenPack, slot: &Slot, raw: &'a [u8]) -> Result<&'a [u8]> {
        let kind = pack.frame(slot.frame)?.kind;
        let start = slot.offset as usize;
        raw.get(start..start + slot.len as usize)
            .filter(|bytes| self.is_chunk(kind, &slot.id, bytes))
            .ok_or_else(|| {
                let object = format!("chunk {} in frame {} of pack {}", slot.id, slot.frame, pack.id);
                Error::damaged(object, "its content has another id")
            })
    }
}

const NOT_DECODED: &str = "it does not decompress to what it should";

/// What is wrong with a frame.
pub fn damaged_frame(pack: &OpenPack, number: u32, why: &str) -> Error {
    Error::damaged(pack.frame_name(number), why)
}

impl OpenPack {
    /// What a frame is called in errors.
    pub fn frame_name(&self, number: u32) -> String {
        format!("frame {number} of pack {}", self.id)
    }

    /// A frame by its number.
    pub fn frame(&self, number: u32) -> Result<&Frame> {
        self.trailer.frames.get(number as usize).ok_or_else(|| self.out_of_range())
    }

    /// A chunk by its slot.
    pub fn slot(&self, number: u32) -> Result<&Slot> {
        self.trailer.slots.get(number as usize).ok_or_else(|| self.out_of_range())
    }

    fn out_of_range(&self) -> Error {
        Error::damaged(format!("pack {}", self.id), "the index names a chunk that it does not have")
    }
}
