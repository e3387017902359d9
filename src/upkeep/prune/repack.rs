//! Writing packs anew without what nobody needs.
//!
//! ```text
//! read, open, decode ─frames→ encode (threads) ─in order→ packs → barrier → index → old packs go
//! ```
//!
//! In rounds, so that little room is needed beside what is there, and an interruption costs at
//! most a round. A frame that is moved whole is opened and sealed again, since each pack has a
//! key of its own, but not compressed again. A round that fails takes back what it wrote.

use std::collections::HashSet;
use std::thread;

use crossbeam_channel::{Sender, unbounded};

use super::frames::Fate;
use super::needs::Needs;
use super::plan::{PackUse, Plan};
use super::remove::Remover;
use super::{PruneOptions, Pruned};
use crate::codec::frame::{Decoder, Encoder};
use crate::error::{Error, Result};
use crate::format::pack::{Frame, Kind};
use crate::id::PackId;
use crate::observe::{Event, Stop};
use crate::ordered::{Input, ordered};
use crate::repo::index::PackRecord;
use crate::repo::layout;
use crate::repo::packer::{EncodedFrame, PublishedPack, RawFrame};
use crate::repo::packs::Packs;
use crate::repo::reader::OpenPack;

/// What is read before old packs go, at most, but for the pack that passes it.
const ROUND_BYTES: u64 = 512 << 20;
/// Frames between reading and packs: at most 8 MiB each.
const WINDOW: usize = 4;

/// Writes the chosen packs anew.
pub fn run(
    remover: &mut Remover,
    needs: &Needs,
    plan: &Plan,
    options: &PruneOptions,
    done: &mut Pruned,
    stop: &Stop,
) -> Result<()> {
    if plan.repack.is_empty() {
        return Ok(());
    }
    let bytes = plan.repack.iter().map(|pack| pack.len).sum();
    remover.observer.event(Event::Phase { name: "writing packs anew", bytes: Some(bytes) });
    for round in rounds(&plan.repack) {
        stop.check()?;
        Round { remover, needs, max_unused: options.max_unused, stop }.run(round, done)?;
    }
    Ok(())
}

/// Pieces of about [`ROUND_BYTES`].
fn rounds(packs: &[PackUse]) -> Vec<&[PackUse]> {
    let mut rounds = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, pack) in packs.iter().enumerate() {
        bytes += pack.len;
        if bytes >= ROUND_BYTES {
            rounds.push(&packs[start..=at]);
            (start, bytes) = (at + 1, 0);
        }
    }
    rounds.extend(Some(&packs[start..]).filter(|rest| !rest.is_empty()));
    rounds
}

struct Round<'r, 'a> {
    remover: &'r mut Remover<'a>,
    needs: &'r Needs,
    max_unused: f64,
    stop: &'r Stop,
}

/// What is on its way to the packs.
enum Work {
    /// A frame as it was stored.
    Stored(EncodedFrame),
    /// Chunks to be compressed at this level.
    Raw(RawFrame, i8),
}

impl Round<'_, '_> {
    fn run(self, packs: &[PackUse], done: &mut Pruned) -> Result<()> {
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
        let old: Vec<PackUse> = packs.iter().filter(|pack| !damaged.contains(&pack.id)).copied().collect();
        self.remover.remove(&old)?;
        done.packs_damaged += damaged.len() as u64;
        done.packs_repacked += old.len() as u64;
        done.bytes_repacked += old.iter().map(|pack| pack.len).sum::<u64>();
        done.packs_written += published.len() as u64;
        done.bytes_written += published.iter().map(|pack| pack.record.len).sum::<u64>();
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
            for id in &ids {
                let _ = repo.store().remove(&layout::pack(id));
            }
            let _ = repo.store().barrier();
        }
    }

    /// Writes new packs; those of the old ones that are damaged, and so have to stay.
    fn write(&self, old: &[PackUse], publish: Sender<PublishedPack>) -> Result<HashSet<PackId>> {
        let repo = self.remover.repo;
        let packs = Packs::new(&**repo.store(), repo.keys(), repo.id(), repo.config().sizes);
        let processors = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            let encoders = (0..processors).map(|_| encoder()).collect();
            let (work, encoded) = ordered(scope, encoders, WINDOW);
            let writer = scope.spawn(move || packs.write_all(encoded, publish));
            let read = self.read_all(old, work);
            let written = writer.join().map_err(|_| Error::Internal("the writer ended early"))?;
            match (read, written) {
                (Ok(damaged), Ok(_)) => Ok(damaged),
                // When writing fails, the reader only sees that nobody takes its frames.
                (Err(Error::Internal(_)), Err(cause)) | (Ok(_), Err(cause)) => Err(cause),
                (Err(cause), _) => Err(cause),
            }
        })
    }

    fn read_all(&self, old: &[PackUse], work: Input<Work, Result<EncodedFrame>>) -> Result<HashSet<PackId>> {
        let mut reader = Reader { round: self, work, decoder: Decoder::new()?, open: None };
        let mut damaged = HashSet::new();
        for pack in old {
            self.stop.check()?;
            match reader.pack(pack) {
                Err(error) if error.is_damage() => {
                    let text = format!("{error}; pack {} is left as it is: run varv check", pack.id);
                    self.remover.observer.event(Event::Notice(text));
                    damaged.insert(pack.id);
                }
                other => other?,
            }
            self.remover.observer.event(Event::Advance { bytes: pack.len, files: 0 });
        }
        reader.flush()?;
        Ok(damaged)
    }
}

/// Compresses; an encoder is made when a level is met that is not the one before.
fn encoder() -> impl FnMut(Work) -> Result<EncodedFrame> + Send {
    let mut encoder: Option<(i8, Encoder)> = None;
    move |work| match work {
        Work::Stored(frame) => Ok(frame),
        Work::Raw(frame, level) => {
            let (_, encoder) = match encoder.take_if(|(of, _)| *of == level) {
                Some(kept) => encoder.insert(kept),
                None => encoder.insert((level, Encoder::new(level)?)),
            };
            frame.encode(encoder, level).map(|(encoded, _)| encoded)
        }
    }
}

/// Frames being read, and the one that is being put together.
struct Reader<'r, 'a> {
    round: &'r Round<'r, 'a>,
    work: Input<Work, Result<EncodedFrame>>,
    decoder: Decoder,
    open: Option<Open>,
}

/// Chunks of frames that are not moved whole.
struct Open {
    frame: RawFrame,
    level: i8,
    /// As long as the longest frame that its chunks are from.
    len_max: usize,
}

impl Reader<'_, '_> {
    fn pack(&mut self, pack: &PackUse) -> Result<()> {
        let catalog = self.round.remover.catalog;
        let record = catalog.index()?.pack(pack.number).cloned();
        let record = record.ok_or(Error::Internal("a pack of the plan is not in the index"))?;
        let opened = catalog.reader().open(&record.id, record.len)?;
        let fates = self.round.needs.fates(&record, &opened.trailer, self.round.max_unused);
        for (number, fate) in (0..).zip(fates) {
            let frame = opened.frame(number)?;
            match fate {
                Fate::Gone => {}
                Fate::Whole => self.whole(&opened, number, frame)?,
                Fate::Chunks => self.chunks(&record, &opened, number, frame)?,
            }
        }
        Ok(())
    }

    fn whole(&mut self, pack: &OpenPack, number: u32, frame: &Frame) -> Result<()> {
        let stored = self.round.remover.catalog.reader().stored_frame(pack, number)?;
        let moved = EncodedFrame::moved(frame, pack.trailer.slots_of(frame), stored);
        self.send(Work::Stored(moved))
    }

    fn chunks(&mut self, record: &PackRecord, pack: &OpenPack, number: u32, frame: &Frame) -> Result<()> {
        let reader = self.round.remover.catalog.reader();
        let raw = reader.frame(pack, number, &[], &mut self.decoder)?;
        for (at, slot) in (frame.slot..).zip(pack.trailer.slots_of(frame)) {
            if self.round.needs.is_live(record, at) {
                let bytes = reader.chunk(pack, slot, &raw)?;
                self.make_room(frame, bytes.len())?.push(slot.id, bytes, []);
            }
        }
        Ok(())
    }

    /// The open frame, if chunks of `frame` fit into it, or a new one.
    fn make_room(&mut self, frame: &Frame, len: usize) -> Result<&mut RawFrame> {
        let frame_len = frame.raw_len as usize;
        let fits = self.open.as_ref().is_some_and(|open| {
            open.frame.kind == frame.kind
                && open.level == frame.level
                && open.frame.raw.len() + len <= open.len_max.max(frame_len)
        });
        if !fits {
            self.flush()?;
        }
        let open = self.open.get_or_insert_with(|| Open::new(frame.kind, frame.level));
        open.len_max = open.len_max.max(frame_len);
        Ok(&mut open.frame)
    }

    fn flush(&mut self) -> Result<()> {
        match self.open.take() {
            Some(open) => self.send(Work::Raw(open.frame, open.level)),
            None => Ok(()),
        }
    }

    fn send(&self, work: Work) -> Result<()> {
        match self.work.send(work) {
            true => Ok(()),
            false => Err(Error::Internal("packs are not written any more")),
        }
    }
}

impl Open {
    fn new(kind: Kind, level: i8) -> Self {
        Self { frame: RawFrame::new(kind, Vec::new()), level, len_max: 0 }
    }
}
