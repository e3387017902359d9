//! Encoded frames into packs, one open pack a class, synced while the next one fills up.

use std::collections::HashMap;

use crossbeam_channel::{Sender, bounded};

use super::keys::Keys;
use super::packer::{ClosedPack, EncodedFrame, FramePlace, PackWriter, PackedBase, PublishedPack};
use crate::error::{Error, Result};
use crate::format::config::Sizes;
use crate::format::pack::Class;
use crate::id::{PackId, RepositoryId};
use crate::ordered::Output;
use crate::store::Store;

/// Packs that are being made durable while the next ones fill up.
const PUBLISHING_MAX: usize = 1;

/// What was written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes in data packs.
    pub data: u64,
    /// Bytes in metadata packs.
    pub metadata: u64,
}

/// What comes to be packed.
pub enum ToPack {
    /// A frame.
    Frame(EncodedFrame),
    /// Open packs are closed, so that all frames before this are published soon.
    Close,
}

impl From<EncodedFrame> for ToPack {
    fn from(frame: EncodedFrame) -> Self {
        Self::Frame(frame)
    }
}

/// Writes packs of one repository.
pub struct Packs<'s> {
    store: &'s dyn Store,
    keys: &'s Keys,
    repository: RepositoryId,
    sizes: Sizes,
    open: [Option<PackWriter>; 2],
    moves: Moves,
}

/// Where frames of other packs are now, for those that are compressed against them.
#[derive(Default)]
struct Moves {
    /// By their old packs and numbers: the old and the new place.
    places: HashMap<(PackId, u32), (FramePlace, FramePlace)>,
    /// Those of the data pack that is open.
    open: Vec<(PackId, u32)>,
}

impl Moves {
    fn add(&mut self, from: FramePlace, to: FramePlace) {
        if let Some(pack) = from.pack {
            self.places.insert((pack, from.frame), (from, to));
            self.open.push((pack, from.frame));
        }
    }

    fn close(&mut self, pack: PackId) {
        for frame in self.open.drain(..) {
            if let Some((_, to)) = self.places.get_mut(&frame) {
                to.pack = Some(pack);
            }
        }
    }

    /// A base as it is found now. One that does not lie in the frame it names, since another pack has
    /// taken that pack's place, stays as it is: nobody can read what is compressed against it.
    fn follow(&self, base: &mut PackedBase) {
        let moved = base.pack.and_then(|pack| self.places.get(&(pack, base.frame)));
        if let Some((from, to)) = moved
            && let Some(first) = base.slot.checked_sub(from.slot)
        {
            *base = PackedBase { pack: to.pack, frame: to.frame, slot: to.slot + first, ..*base };
        }
    }
}

impl<'s> Packs<'s> {
    /// Into this store.
    pub fn new(store: &'s dyn Store, keys: &'s Keys, repository: RepositoryId, sizes: Sizes) -> Self {
        Self { store, keys, repository, sizes, open: [None, None], moves: Moves::default() }
    }

    /// Writes all frames that come; published packs are reported to `published`. The syncs go on
    /// in a thread of their own while the next pack fills up.
    pub fn write_all(
        mut self,
        frames: Output<Result<impl Into<ToPack> + Send>>,
        published: Sender<PublishedPack>,
    ) -> Result<Written> {
        std::thread::scope(|scope| {
            let (closed, to_publish) = bounded::<ClosedPack>(PUBLISHING_MAX);
            let publisher = scope.spawn(move || -> Result<Written> {
                let mut written = Written::default();
                for pack in to_publish {
                    // No loss of power leaves it without what it needs.
                    if pack.needs_others() {
                        self.store.barrier()?;
                    }
                    let pack = pack.publish()?;
                    match pack.record.class {
                        Class::Data => written.data += pack.record.len,
                        Class::Metadata => written.metadata += pack.record.len,
                    }
                    // Nobody listens after a failure elsewhere; the pack stays for the next run.
                    let _ = published.send(pack);
                }
                Ok(written)
            });
            let written = self.fill(frames, &closed);
            drop(closed);
            let published = publisher.join().map_err(|_| Error::Internal("the publisher ended early"))?;
            // If the publisher failed, its error is the cause of the other.
            let published = published?;
            written.map(|()| published)
        })
    }

    /// Only counts what the frames would take.
    pub fn count_all(self, frames: Output<Result<ToPack>>) -> Result<Written> {
        let mut written = Written::default();
        while let Some(next) = frames.next() {
            let ToPack::Frame(frame) = next?? else { continue };
            match frame.class() {
                Class::Data => written.data += frame.stored_len(),
                Class::Metadata => written.metadata += frame.stored_len(),
            }
        }
        Ok(written)
    }

    fn fill(&mut self, frames: Output<Result<impl Into<ToPack>>>, closed: &Sender<ClosedPack>) -> Result<()> {
        while let Some(next) = frames.next() {
            match next??.into() {
                ToPack::Frame(frame) => self.append(frame, closed)?,
                ToPack::Close => self.close_all(closed)?,
            }
        }
        self.close_all(closed)
    }

    fn close_all(&mut self, closed: &Sender<ClosedPack>) -> Result<()> {
        Class::ALL.into_iter().try_for_each(|class| self.close(class, closed))
    }

    fn append(&mut self, mut frame: EncodedFrame, closed: &Sender<ClosedPack>) -> Result<()> {
        let class = frame.class();
        let limit = match class {
            Class::Data => self.sizes.data_pack,
            Class::Metadata => self.sizes.metadata_pack,
        };
        let open = &mut self.open[class as usize];
        let pack = match open {
            Some(pack) => pack,
            None => open.insert(PackWriter::new(self.store, self.keys, self.repository, class)?),
        };
        for base in frame.bases_mut() {
            self.moves.follow(base);
        }
        // Only data frames are compressed against others.
        if let (Class::Data, Some(from)) = (class, frame.from()) {
            self.moves.add(from, pack.next());
        }
        pack.append(frame)?;
        if pack.is_full(limit) { self.close(class, closed) } else { Ok(()) }
    }

    fn close(&mut self, class: Class, closed: &Sender<ClosedPack>) -> Result<()> {
        let Some(pack) = self.open[class as usize].take() else { return Ok(()) };
        let pack = pack.close()?;
        if class == Class::Data {
            self.moves.close(pack.id());
        }
        closed.send(pack).map_err(|_| Error::Internal("packs are not published any more"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_follow_their_frame_and_others_stay() {
        let place = |pack, frame, slot| FramePlace { pack: Some(PackId([pack; 32])), frame, slot };
        let base = |pack, frame, slot| PackedBase { pack: Some(PackId([pack; 32])), frame, slot, count: 2 };
        let mut moves = Moves::default();
        moves.add(place(1, 3, 10), FramePlace { pack: None, ..place(0, 0, 4) });
        moves.close(PackId([2; 32]));
        for (before, after) in [
            (base(1, 3, 12), base(2, 0, 6)),
            (base(1, 2, 8), base(1, 2, 8)),
            // Another pack has taken that pack's place: there the frame begins later.
            (base(1, 3, 9), base(1, 3, 9)),
        ] {
            let mut moved = before;
            moves.follow(&mut moved);
            assert_eq!(moved, after);
        }
    }
}
