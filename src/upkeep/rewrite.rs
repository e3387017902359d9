//! Writing packs anew: without what nobody needs, or compressed otherwise.
//!
//! ```text
//! read, open ─frames, by depth→ encode (threads) ─in order→ packs → barrier → index → old packs go
//! ```
//!
//! In rounds, so that little room is needed beside what is there, and an interruption costs at
//! most a round. A frame that is moved whole is opened and sealed again, since each pack has a
//! key of its own, but not compressed again. Packs whose frames are compressed against frames of
//! another one are written anew in the same round as that one, after what they need. A round that
//! fails takes back what it wrote.

pub mod groups;
mod layers;
mod read;
pub mod remove;

use std::collections::HashSet;
use std::thread;

use crossbeam_channel::{Sender, unbounded};

use crate::codec::frame::{Alike, Encoder};
use crate::error::{Error, Result};
use crate::format::pack::{Codec, Trailer};
use crate::id::PackId;
use crate::observe::Stop;
use crate::ordered::ordered;
use crate::repo::index::PackRecord;
use crate::repo::layout;
use crate::repo::packer::{EncodedFrame, PublishedPack, RawFrame};
use crate::repo::packs::Packs;

use groups::{Group, staying};
use read::Reader;
use remove::Remover;

/// Frames between reading and packs: at most 8 MiB each, and 16 MiB of what a delta frame needs.
const WINDOW: usize = 4;

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nobody needs any of its chunks.
    Gone,
    /// It is moved as it is, with what little of it is not needed.
    Whole,
    /// Its needed chunks go into new frames.
    Chunks,
    /// It is compressed again at this level, with what it is compressed against.
    Level(i8),
}

/// What becomes of the frames of a pack, and of their chunks.
pub trait Fates {
    /// Of each frame.
    fn of(&self, pack: &PackRecord, trailer: &Trailer) -> Vec<Fate>;
    /// Whether the chunk in a slot is kept, where the frame's fate is [`Fate::Chunks`].
    fn keeps(&self, pack: &PackRecord, slot: u32) -> bool;
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// Packs that were written anew.
    pub packs_before: u64,
    /// Their length before.
    pub bytes_before: u64,
    /// Packs that took their place.
    pub packs_after: u64,
    /// Their length.
    pub bytes_after: u64,
    /// Packs that were left since they, or what needs them, are damaged.
    pub packs_damaged: u64,
}

/// Pieces of so many bytes, but for the group that passes them: what is read before old packs go.
pub fn rounds(groups: &[Group], round_bytes: u64) -> Vec<&[Group]> {
    let mut rounds = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, group) in groups.iter().enumerate() {
        bytes += group.iter().map(|pack| pack.len).sum::<u64>();
        if bytes >= round_bytes {
            rounds.push(&groups[start..=at]);
            (start, bytes) = (at + 1, 0);
        }
    }
    rounds.extend(Some(&groups[start..]).filter(|rest| !rest.is_empty()));
    rounds
}

/// Writes the packs of these groups anew; those that others need are in the same group as these.
pub fn round(
    remover: &mut Remover,
    groups: &[Group],
    fates: &dyn Fates,
    done: &mut Rewritten,
    stop: &Stop,
) -> Result<()> {
    stop.check()?;
    let packs: Group = groups.iter().flatten().cloned().collect();
    Round { remover, fates, stop }.run(&packs, done)
}

struct Round<'r, 'a> {
    remover: &'r mut Remover<'a>,
    fates: &'r dyn Fates,
    stop: &'r Stop,
}

/// What is on its way to the packs.
enum Work {
    /// A frame as it was stored.
    Stored(EncodedFrame),
    /// Chunks to be compressed at this level.
    Chunks(RawFrame, i8),
    /// A frame to be compressed again.
    Again { stored: EncodedFrame, raw: Vec<u8>, prefix: Vec<u8>, level: i8 },
}

impl Round<'_, '_> {
    fn run(self, packs: &Group, done: &mut Rewritten) -> Result<()> {
        let (publish, published) = unbounded();
        let written = self.write(packs, publish);
        let published: Vec<PublishedPack> = published.try_iter().collect();
        let damaged = match written.and_then(|damaged| self.add(&published).map(|()| damaged)) {
            Ok(damaged) => damaged,
            Err(e) => {
                self.take_back(&published);
                return Err(e);
            }
        };
        let staying = staying(packs, damaged);
        let old: Group = packs.iter().filter(|pack| !staying.contains(&pack.number)).cloned().collect();
        self.remover.remove(&old.iter().map(|pack| (pack.id, pack.len)).collect::<Vec<_>>())?;
        done.packs_damaged += staying.len() as u64;
        done.packs_before += old.len() as u64;
        done.bytes_before += old.iter().map(|pack| pack.len).sum::<u64>();
        done.packs_after += published.len() as u64;
        done.bytes_after += published.iter().map(|pack| pack.record.len).sum::<u64>();
        Ok(())
    }

    /// What was published becomes durable, and then known.
    fn add(&self, published: &[PublishedPack]) -> Result<()> {
        self.remover.repo.still_locked()?;
        self.remover.repo.store().barrier()?;
        self.remover.catalog.add(published)
    }

    /// The old packs are all there, so the new ones would only take up room. Where the index knows
    /// them and cannot forget them, they stay.
    fn take_back(&self, published: &[PublishedPack]) {
        let (repo, catalog) = (self.remover.repo, self.remover.catalog);
        let ids: Vec<PackId> = published.iter().map(|pack| pack.record.id).collect();
        let are_unknown = || -> Result<bool> {
            let index = catalog.index()?;
            Ok(!index.packs().iter().any(|pack| ids.contains(&pack.id)))
        };
        let forgotten = are_unknown().is_ok_and(|unknown| unknown || catalog.remove(&ids).is_ok());
        if forgotten && repo.still_locked().is_ok() {
            // The last one first: it may need those before it.
            for id in ids.iter().rev() {
                let gone = repo.store().remove(&layout::pack(id)).and_then(|()| repo.store().barrier());
                if gone.is_err() {
                    return;
                }
            }
        }
    }

    /// Writes new packs; the numbers of those of the old ones that are damaged, and so have to stay.
    fn write(&self, old: &Group, publish: Sender<PublishedPack>) -> Result<HashSet<u32>> {
        let repo = self.remover.repo;
        let packs = Packs::new(&**repo.store(), repo.keys(), repo.id(), repo.config().sizes);
        let processors = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            let encoders = (0..processors).map(|_| encoder()).collect();
            let (work, encoded) = ordered(scope, encoders, WINDOW);
            let writer = scope.spawn(move || packs.write_all(encoded, publish));
            let read = Reader::new(self, work).and_then(|reader| reader.read_all(old));
            let written = writer.join().map_err(|_| Error::Internal("the writer ended early"))?;
            match (read, written) {
                (Ok(damaged), Ok(_)) => Ok(damaged),
                // When writing fails, the reader only sees that nobody takes its frames.
                (Err(Error::Internal(_)), Err(cause)) | (Ok(_), Err(cause)) => Err(cause),
                (Err(cause), _) => Err(cause),
            }
        })
    }
}

/// Compresses; an encoder is made when a level is met that is not the one before.
fn encoder() -> impl FnMut(Work) -> Result<EncodedFrame> + Send {
    let mut kept: Option<(i8, Encoder)> = None;
    move |work| match work {
        Work::Stored(frame) => Ok(frame),
        Work::Chunks(frame, level) => {
            let encoder = of_level(&mut kept, level)?;
            frame.encode(encoder, level).map(|(encoded, _)| encoded)
        }
        Work::Again { stored, raw, prefix, level } => {
            let encoder = of_level(&mut kept, level)?;
            let again = match prefix.is_empty() {
                true => Some(encoder.encode(&raw)?),
                false => {
                    encoder.encode_delta(&raw, &prefix, Alike::Partly)?.map(|stored| (Codec::Zstd, stored))
                }
            };
            Ok(stored.recompressed(level, again))
        }
    }
}

fn of_level(kept: &mut Option<(i8, Encoder)>, level: i8) -> Result<&mut Encoder> {
    let (_, encoder) = match kept.take_if(|(of, _)| *of == level) {
        Some(same) => kept.insert(same),
        None => kept.insert((level, Encoder::new(level)?)),
    };
    Ok(encoder)
}
