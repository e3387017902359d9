//! What can still be read of a damaged pack, and storing it anew.

use std::collections::HashSet;

use crate::codec::frame::Encoder;
use crate::error::{Error, Result};
use crate::format::config::Sizes;
use crate::format::pack::{Class, Kind};
use crate::id::{ChunkId, PackId};
use crate::repo::catalog::Catalog;
use crate::repo::frames::FrameReader;
use crate::repo::packer::{PackWriter, PublishedPack, RawFrame};
use crate::repo::{Repo, mend};
use crate::upkeep::check::is_damage;

/// The chunks of one frame.
pub struct Part<'a> {
    /// What they are.
    pub kind: Kind,
    /// The level that they were compressed with.
    pub level: i8,
    /// Each chunk, and its bytes if they can be read and have its id.
    pub chunks: &'a [(ChunkId, Option<&'a [u8]>)],
}

/// Shows all frames of a pack; false if it cannot be told what it holds.
pub fn visit(
    catalog: &Catalog,
    id: &PackId,
    len: u64,
    mut each: impl FnMut(&Part) -> Result<()>,
) -> Result<bool> {
    let reader = catalog.reader();
    let pack = match mend::open_pack(reader, id, len) {
        Ok(pack) => pack,
        Err(error) if is_damage(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut frames = FrameReader::new(catalog)?;
    for (number, frame) in (0..).zip(&pack.trailer.frames) {
        let raw = match frames.frame(&pack, number) {
            Ok(raw) => Some(raw),
            Err(error) if is_damage(&error) => None,
            Err(error) => return Err(error),
        };
        let slots = pack.trailer.slots_of(frame).iter();
        let bytes = |slot| raw.as_ref().and_then(|raw| reader.chunk(&pack, slot, raw).ok());
        let chunks: Vec<(ChunkId, Option<&[u8]>)> = slots.map(|slot| (slot.id, bytes(slot))).collect();
        each(&Part { kind: frame.kind, level: frame.level, chunks: &chunks })?;
    }
    Ok(true)
}

/// The chunks of a part that can be read and are in no other place that can.
pub fn only_here<'a>(catalog: &Catalog, part: &Part<'a>) -> Result<Vec<(ChunkId, &'a [u8])>> {
    let readable: Vec<(ChunkId, &[u8])> =
        part.chunks.iter().filter_map(|(id, bytes)| Some((*id, (*bytes)?))).collect();
    let ids: Vec<ChunkId> = readable.iter().map(|(id, _)| *id).collect();
    let found = catalog.locate(&ids)?;
    Ok(readable.into_iter().zip(found).filter(|(_, place)| place.is_none()).map(|(chunk, _)| chunk).collect())
}

/// Stores chunks in new packs.
pub struct Rescue<'a> {
    repo: &'a Repo,
    catalog: &'a Catalog,
    encoder: (i8, Encoder),
    frames: [Option<RawFrame>; Kind::ALL.len()],
    packs: [Option<PackWriter>; Class::ALL.len()],
    published: Vec<PublishedPack>,
    /// What was stored and is not in the index yet.
    taken: HashSet<ChunkId>,
}

impl<'a> Rescue<'a> {
    /// Into this repository, without what the catalog finds.
    pub fn new(repo: &'a Repo, catalog: &'a Catalog) -> Result<Self> {
        Ok(Self {
            repo,
            catalog,
            encoder: (0, Encoder::new(0)?),
            frames: [None, None, None],
            packs: [None, None],
            published: Vec::new(),
            taken: HashSet::new(),
        })
    }

    /// Stores what is needed of a part.
    pub fn take(&mut self, part: &Part) -> Result<()> {
        if self.encoder.0 != part.level {
            self.close_frames()?;
            self.encoder = (part.level, Encoder::new(part.level)?);
        }
        for (id, bytes) in only_here(self.catalog, part)? {
            if self.taken.insert(id) {
                self.push(part.kind, id, bytes)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, kind: Kind, id: ChunkId, bytes: &[u8]) -> Result<()> {
        let frame_len = frame_len(kind, &self.repo.config().sizes);
        let frame = &mut self.frames[kind as usize];
        if frame.as_ref().is_some_and(|frame| frame.raw.len() + bytes.len() > frame_len) {
            let full = frame.take();
            self.append(full)?;
        }
        self.frames[kind as usize].get_or_insert_with(|| RawFrame::new(kind, Vec::new())).push(id, bytes, []);
        Ok(())
    }

    fn append(&mut self, frame: Option<RawFrame>) -> Result<()> {
        let Some(frame) = frame else { return Ok(()) };
        let (level, encoder) = &mut self.encoder;
        let (encoded, _) = frame.encode(encoder, *level)?;
        let class = encoded.class();
        let open = &mut self.packs[class as usize];
        let pack = match open {
            Some(pack) => pack,
            None => {
                open.insert(PackWriter::new(&**self.repo.store(), self.repo.keys(), self.repo.id(), class)?)
            }
        };
        pack.append(encoded)?;
        let sizes = &self.repo.config().sizes;
        let limit = match class {
            Class::Data => sizes.data_pack,
            Class::Metadata => sizes.metadata_pack,
        };
        if pack.is_full(limit) { self.close(class) } else { Ok(()) }
    }

    fn close(&mut self, class: Class) -> Result<()> {
        if let Some(pack) = self.packs[class as usize].take() {
            self.repo.still_locked()?;
            self.published.push(pack.close()?.publish()?);
        }
        Ok(())
    }

    fn close_frames(&mut self) -> Result<()> {
        for kind in Kind::ALL {
            let frame = self.frames[kind as usize].take();
            self.append(frame)?;
        }
        Ok(())
    }

    /// Completes all packs. They are durable after the store's next barrier.
    pub fn finish(mut self) -> Result<Vec<PublishedPack>> {
        self.close_frames()?;
        Class::ALL.into_iter().try_for_each(|class| self.close(class))?;
        Ok(self.published)
    }
}

fn frame_len(kind: Kind, sizes: &Sizes) -> usize {
    (match kind {
        Kind::Data => sizes.tree_frame,
        Kind::Map | Kind::Tree => sizes.metadata_frame,
    }) as usize
}

/// An error of the store itself, that says nothing of what is in it.
pub fn unless_damage(error: Error) -> Result<()> {
    if is_damage(&error) { Ok(()) } else { Err(error) }
}
