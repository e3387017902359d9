//! Raw bytes of frames, of delta frames too: what they are compressed against is put together
//! first, from frames that may be delta frames themselves.

use std::sync::Arc;

use super::catalog::{Catalog, lock};
use super::reader::{OpenPack, damaged_frame};
use crate::codec::frame::Decoder;
use crate::error::Result;
use crate::format::pack::{Base, PREFIX_MAX, Slot};

/// Raw bytes of bases that are decoded for one frame, some of them again because others took their
/// place in the cache. Of the writer's frames none needs a tenth of it; forged ones could ask for more
/// than anybody has time for.
const DECODED_MAX: usize = 512 << 20;

/// Reads frames, for one thread.
pub struct FrameReader<'c> {
    catalog: &'c Catalog,
    decoder: Decoder,
    /// Of [`DECODED_MAX`], what is left for this frame.
    left: usize,
    memory: Memory,
}

/// What was used for one frame and can be for the next: fresh memory costs as much as decoding into it.
#[derive(Default)]
struct Memory {
    stored: Vec<u8>,
    prefix: Vec<u8>,
    raw: Vec<u8>,
}

impl<'c> FrameReader<'c> {
    /// Of a repository. Frames that are met as bases are kept in its catalog, for all threads.
    pub fn new(catalog: &'c Catalog) -> Result<Self> {
        Ok(Self { catalog, decoder: Decoder::new()?, left: 0, memory: Memory::default() })
    }

    /// Reads a frame; its raw bytes. Chunk ids are not checked here.
    pub fn frame(&mut self, pack: &OpenPack, number: u32) -> Result<Vec<u8>> {
        self.left = DECODED_MAX;
        let raw = std::mem::take(&mut self.memory.raw);
        self.decode(pack, number, raw)
    }

    /// Takes a frame's memory back, for the next one.
    pub fn reuse(&mut self, raw: Vec<u8>) {
        self.memory.raw = raw;
    }

    /// As [`FrameReader::frame`], and what it is compressed against.
    pub fn frame_and_prefix(&mut self, pack: &OpenPack, number: u32) -> Result<(Vec<u8>, Vec<u8>)> {
        let raw = self.frame(pack, number)?;
        Ok((raw, std::mem::take(&mut self.memory.prefix)))
    }

    /// Decodes a frame into `raw`; what it is compressed against stays in this reader's memory.
    fn decode(&mut self, pack: &OpenPack, number: u32, mut raw: Vec<u8>) -> Result<Vec<u8>> {
        self.prepare(pack, number)?;
        let Memory { stored, prefix, .. } = &mut self.memory;
        let memory = [stored, &mut raw];
        self.catalog.reader().frame(pack, number, prefix, &mut self.decoder, memory)?;
        Ok(raw)
    }

    /// As [`FrameReader::frame`], of bytes that were read already and in memory that can be used
    /// again.
    pub fn open<'a>(
        &mut self,
        pack: &OpenPack,
        number: u32,
        stored: &'a mut [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8]> {
        self.left = DECODED_MAX;
        self.prepare(pack, number)?;
        let (decoder, prefix) = (&mut self.decoder, &self.memory.prefix);
        self.catalog.reader().open_frame(pack, number, stored, prefix, decoder, scratch)
    }

    /// Puts together what a frame is compressed against: its bases' chunks, one after the other. All
    /// are decoded before any of it is put together: they may need others in turn, and held at
    /// every step that could be anything.
    fn prepare(&mut self, pack: &OpenPack, number: u32) -> Result<()> {
        let frame = pack.frame(number)?;
        let frames = || frame.bases.chunk_by(|a, b| (a.pack, a.frame) == (b.pack, b.frame));
        let len = self.prefix_len(pack, number)?;
        for bases in frames() {
            let holder = self.holder(pack, &bases[0])?;
            let holder = holder.as_deref().unwrap_or(pack);
            // Depths go down, so that this ends, and no two threads wait for each other.
            if holder.frame(bases[0].frame)?.depth >= frame.depth {
                return Err(damaged_frame(pack, number, "its bases are as deep as itself"));
            }
            self.base_of(holder, bases[0].frame)?;
        }
        let mut prefix = std::mem::take(&mut self.memory.prefix);
        prefix.clear();
        prefix.reserve_exact(len);
        for bases in frames() {
            let holder = self.holder(pack, &bases[0])?;
            let holder = holder.as_deref().unwrap_or(pack);
            let raw = self.base_of(holder, bases[0].frame)?;
            for base in bases {
                let bytes = chunks(holder, base).and_then(|range| raw.get(range));
                let bytes =
                    bytes.ok_or_else(|| damaged_frame(pack, number, "a base is shorter than it says"))?;
                prefix.extend_from_slice(bytes);
            }
        }
        self.memory.prefix = prefix;
        Ok(())
    }

    /// How long it will be, before anything is decoded for it.
    fn prefix_len(&self, pack: &OpenPack, number: u32) -> Result<usize> {
        let mut len = 0;
        for base in &pack.frame(number)?.bases {
            let holder = self.holder(pack, base)?;
            len += chunks(holder.as_deref().unwrap_or(pack), base)
                .filter(|range| len + range.len() <= PREFIX_MAX)
                .ok_or_else(|| damaged_frame(pack, number, "its bases are not where it says"))?
                .len();
        }
        Ok(len)
    }

    /// The pack that a base lies in, if it is another one.
    fn holder(&self, pack: &OpenPack, base: &Base) -> Result<Option<Arc<OpenPack>>> {
        match base.pack.checked_sub(1) {
            None => Ok(None),
            Some(number) => {
                let id = pack.trailer.packs.get(number as usize);
                let id =
                    id.ok_or_else(|| damaged_frame(pack, base.frame, "it names a pack that is not listed"))?;
                self.catalog.pack_named(id).map(Some)
            }
        }
    }

    /// The raw bytes of a frame that is a base; whoever comes first decodes it for all.
    pub fn base(&mut self, pack: &OpenPack, number: u32) -> Result<Arc<Vec<u8>>> {
        self.left = DECODED_MAX;
        self.base_of(pack, number)
    }

    fn base_of(&mut self, pack: &OpenPack, number: u32) -> Result<Arc<Vec<u8>>> {
        let (base, memory) = self.catalog.base(pack, number)?;
        let mut decoded = lock(&base)?;
        if let Some(raw) = &*decoded {
            return Ok(Arc::clone(raw));
        }
        let left = self.left.checked_sub(pack.frame(number)?.raw_len as usize);
        self.left = left.ok_or_else(|| damaged_frame(pack, number, "too much is to be decoded for it"))?;
        let raw = Arc::new(self.decode(pack, number, memory)?);
        *decoded = Some(Arc::clone(&raw));
        Ok(raw)
    }
}

#[cfg(test)]
mod tests;

/// Where a base's chunks lie in its frame's raw bytes, if they are all in that frame.
fn chunks(pack: &OpenPack, base: &Base) -> Option<std::ops::Range<usize>> {
    let last = base.slot.checked_add(base.count.checked_sub(1)?)?;
    let (first, last) = (pack.slot(base.slot).ok()?, pack.slot(last).ok()?);
    let is_there = |slot: &Slot| slot.frame == base.frame;
    (is_there(first) && is_there(last)).then(|| first.offset as usize..(last.offset + last.len) as usize)
}
