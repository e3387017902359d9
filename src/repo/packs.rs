//! Encoded frames into packs, one open pack a class, synced while the next one fills up.

use crossbeam_channel::{Sender, bounded};

use super::keys::Keys;
use super::packer::{ClosedPack, EncodedFrame, PackWriter, PublishedPack};
use crate::error::{Error, Result};
use crate::format::config::Sizes;
use crate::format::pack::Class;
use crate::id::RepositoryId;
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

/// Writes packs of one repository.
pub struct Packs<'s> {
    store: &'s dyn Store,
    keys: &'s Keys,
    repository: RepositoryId,
    sizes: Sizes,
    open: [Option<PackWriter>; 2],
}

impl<'s> Packs<'s> {
    /// Into this store.
    pub fn new(store: &'s dyn Store, keys: &'s Keys, repository: RepositoryId, sizes: Sizes) -> Self {
        Self { store, keys, repository, sizes, open: [None, None] }
    }

    /// Writes all frames that come; published packs are reported to `published`. The syncs go on
    /// in a thread of their own while the next pack fills up.
    pub fn write_all(
        mut self,
        frames: Output<Result<EncodedFrame>>,
        published: Sender<PublishedPack>,
    ) -> Result<Written> {
        std::thread::scope(|scope| {
            let (closed, to_publish) = bounded::<ClosedPack>(PUBLISHING_MAX);
            let publisher = scope.spawn(move || -> Result<Written> {
                let mut written = Written::default();
                for pack in to_publish {
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
    pub fn count_all(self, frames: Output<Result<EncodedFrame>>) -> Result<Written> {
        let mut written = Written::default();
        while let Some(frame) = frames.next() {
            let frame = frame??;
            match frame.class() {
                Class::Data => written.data += frame.stored_len(),
                Class::Metadata => written.metadata += frame.stored_len(),
            }
        }
        Ok(written)
    }

    fn fill(&mut self, frames: Output<Result<EncodedFrame>>, closed: &Sender<ClosedPack>) -> Result<()> {
        while let Some(frame) = frames.next() {
            self.append(frame??, closed)?;
        }
        for class in Class::ALL {
            self.close(class, closed)?;
        }
        Ok(())
    }

    fn append(&mut self, frame: EncodedFrame, closed: &Sender<ClosedPack>) -> Result<()> {
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
        pack.append(frame)?;
        if pack.len() >= limit { self.close(class, closed) } else { Ok(()) }
    }

    fn close(&mut self, class: Class, closed: &Sender<ClosedPack>) -> Result<()> {
        let Some(pack) = self.open[class as usize].take() else { return Ok(()) };
        closed.send(pack.close()?).map_err(|_| Error::Internal("packs are not published any more"))
    }
}
