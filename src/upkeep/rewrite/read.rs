//! Reading the frames of packs that are written anew, in the order in which they can be written:
//! what others are compressed against comes first.

use std::collections::HashSet;

use super::groups::{Group, Member};
use super::{Fate, Round, Work};
use crate::error::{Error, Result};
use crate::format::pack::{Frame, Kind};
use crate::observe::Event;
use crate::ordered::Input;
use crate::repo::frames::FrameReader;
use crate::repo::index::PackRecord;
use crate::repo::packer::{EncodedFrame, RawFrame};
use crate::repo::reader::OpenPack;

/// Reads frames, and puts the one together that is being filled.
pub struct Reader<'r, 'a> {
    round: &'r Round<'r, 'a>,
    work: Input<Work, Result<EncodedFrame>>,
    frames: FrameReader<'r>,
    open: Option<Open>,
}

/// Chunks of frames that are not moved whole.
struct Open {
    frame: RawFrame,
    level: i8,
    /// As long as the longest frame that its chunks are from.
    len_max: usize,
}

/// A frame that does not go.
struct Step {
    depth: u8,
    /// Which of the packs.
    pack: usize,
    frame: u32,
    fate: Fate,
}

impl<'r, 'a> Reader<'r, 'a> {
    /// For a round; frames go to `work`.
    pub fn new(round: &'r Round<'r, 'a>, work: Input<Work, Result<EncodedFrame>>) -> Result<Self> {
        Ok(Self { round, work, frames: FrameReader::new(round.remover.catalog)?, open: None })
    }

    /// Reads all that does not go; the numbers of damaged packs, of which not all was read.
    pub fn read_all(mut self, packs: &Group) -> Result<HashSet<u32>> {
        let mut damaged = HashSet::new();
        for step in self.steps(packs, &mut damaged)? {
            self.round.stop.check()?;
            let pack = &packs[step.pack];
            if !damaged.contains(&pack.number) {
                let done = self.step(pack, &step);
                self.unless_damaged(pack, &mut damaged, done)?;
            }
        }
        self.flush()?;
        Ok(damaged)
    }

    fn unless_damaged<T>(
        &self,
        pack: &Member,
        damaged: &mut HashSet<u32>,
        done: Result<T>,
    ) -> Result<Option<T>> {
        match done {
            Err(error) if error.is_damage() => {
                let text = format!("{error}; pack {} is left as it is: run varv check", pack.id);
                self.round.remover.observer.event(Event::Notice(text));
                damaged.insert(pack.number);
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// The frames, in the order in which they are written.
    fn steps(&self, packs: &Group, damaged: &mut HashSet<u32>) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        for (at, pack) in packs.iter().enumerate() {
            let found = self.steps_of(at, pack);
            steps.extend(self.unless_damaged(pack, damaged, found)?.unwrap_or_default());
        }
        steps.sort_by_key(|step| (step.depth, step.pack, step.frame));
        Ok(steps)
    }

    fn steps_of(&self, at: usize, pack: &Member) -> Result<Vec<Step>> {
        let opened = self.round.remover.catalog.pack(pack.number)?;
        let fates = self.round.fates.of(&self.record(pack)?, &opened.trailer);
        let frames = (0..).zip(&opened.trailer.frames).zip(fates);
        let step =
            |((frame, of), fate): ((u32, &Frame), Fate)| Step { depth: of.depth, pack: at, frame, fate };
        Ok(frames.map(step).filter(|step| step.fate != Fate::Gone).collect())
    }

    fn record(&self, pack: &Member) -> Result<PackRecord> {
        let record = self.round.remover.catalog.index()?.pack(pack.number).cloned();
        record.ok_or(Error::Internal("a pack of the plan is not in the index"))
    }

    fn step(&mut self, pack: &Member, step: &Step) -> Result<()> {
        let opened = self.round.remover.catalog.pack(pack.number)?;
        let frame = opened.frame(step.frame)?;
        match step.fate {
            Fate::Gone => {}
            Fate::Whole => self.whole(&opened, step.frame)?,
            Fate::Level(level) => self.again(&opened, step.frame, level)?,
            Fate::Chunks => self.chunks(&self.record(pack)?, &opened, step.frame, frame)?,
        }
        let bytes = frame.stored_len.into();
        self.round.remover.observer.event(Event::Advance { bytes, files: 0 });
        Ok(())
    }

    fn stored(&self, pack: &OpenPack, number: u32) -> Result<EncodedFrame> {
        let stored = self.round.remover.catalog.reader().stored_frame(pack, number)?;
        Ok(EncodedFrame::moved(pack.id, &pack.trailer, number, pack.frame(number)?, stored))
    }

    fn whole(&mut self, pack: &OpenPack, number: u32) -> Result<()> {
        self.send(Work::Stored(self.stored(pack, number)?))
    }

    fn again(&mut self, pack: &OpenPack, number: u32, level: i8) -> Result<()> {
        let stored = self.stored(pack, number)?;
        let (raw, prefix) = self.frames.frame_and_prefix(pack, number)?;
        self.send(Work::Again { stored, raw, prefix, level })
    }

    fn chunks(&mut self, record: &PackRecord, pack: &OpenPack, number: u32, frame: &Frame) -> Result<()> {
        let reader = self.round.remover.catalog.reader();
        let raw = self.frames.frame(pack, number)?;
        for (at, slot) in (frame.slot..).zip(pack.trailer.slots_of(frame)) {
            if self.round.fates.keeps(record, at) {
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
            Some(open) => self.send(Work::Chunks(open.frame, open.level)),
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
