//! Raw bytes of frames, of delta frames too: what they are compressed against is put together
//! first, from frames that may be delta frames themselves.

use std::sync::Arc;

use super::catalog::{Catalog, lock};
use super::reader::{OpenPack, damaged_frame};
use crate::codec::frame::Decoder;
use crate::error::Result;
use crate::format::pack::{Base, PREFIX_MAX, Slot};

/// Reads frames, for one thread.
pub struct FrameReader<'c> {
    catalog: &'c Catalog,
    decoder: Decoder,
}

impl<'c> FrameReader<'c> {
    /// Of a repository. Frames that are met as bases are kept in its catalog, for all threads.
    pub fn new(catalog: &'c Catalog) -> Result<Self> {
        Ok(Self { catalog, decoder: Decoder::new()? })
    }

    /// Reads a frame; its raw bytes. Chunk ids are not checked here.
    pub fn frame(&mut self, pack: &OpenPack, number: u32) -> Result<Vec<u8>> {
        let prefix = self.prefix(pack, number)?;
        self.catalog.reader().frame(pack, number, &prefix, &mut self.decoder)
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
        let prefix = self.prefix(pack, number)?;
        self.catalog.reader().open_frame(pack, number, stored, &prefix, &mut self.decoder, scratch)
    }

    /// What a frame is compressed against: its bases' chunks, one after the other.
    pub fn prefix(&mut self, pack: &OpenPack, number: u32) -> Result<Vec<u8>> {
        let frame = pack.frame(number)?;
        let mut bases = Vec::with_capacity(frame.bases.len());
        let mut last: Option<(&Base, Arc<Vec<u8>>)> = None;
        let mut len = 0;
        for base in &frame.bases {
            let holder = self.holder(pack, base)?;
            let holder = holder.as_deref().unwrap_or(pack);
            let range = chunks(holder, base)
                .filter(|range| len + range.len() <= PREFIX_MAX)
                .ok_or_else(|| damaged_frame(pack, number, "its bases are not where it says"))?;
            len += range.len();
            let raw = match last.take() {
                Some((before, raw)) if (before.pack, before.frame) == (base.pack, base.frame) => raw,
                // Depths go down, so that this ends, and no two threads wait for each other.
                _ if holder.frame(base.frame)?.depth < frame.depth => self.base(holder, base.frame)?,
                _ => return Err(damaged_frame(pack, number, "its bases are as deep as itself")),
            };
            bases.push((Arc::clone(&raw), range));
            last = Some((base, raw));
        }
        let mut prefix = Vec::with_capacity(len);
        for (raw, range) in bases {
            let bytes = raw.get(range);
            let bytes = bytes.ok_or_else(|| damaged_frame(pack, number, "a base is shorter than it says"))?;
            prefix.extend_from_slice(bytes);
        }
        Ok(prefix)
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
        let base = self.catalog.base(pack, number)?;
        let mut decoded = lock(&base)?;
        if let Some(raw) = &*decoded {
            return Ok(Arc::clone(raw));
        }
        let raw = Arc::new(self.frame(pack, number)?);
        *decoded = Some(Arc::clone(&raw));
        Ok(raw)
    }
}

/// Where a base's chunks lie in its frame's raw bytes, if they are all in that frame.
fn chunks(pack: &OpenPack, base: &Base) -> Option<std::ops::Range<usize>> {
    let last = base.slot.checked_add(base.count.checked_sub(1)?)?;
    let (first, last) = (pack.slot(base.slot).ok()?, pack.slot(last).ok()?);
    let is_there = |slot: &Slot| slot.frame == base.frame;
    (is_there(first) && is_there(last)).then(|| first.offset as usize..(last.offset + last.len) as usize)
}
