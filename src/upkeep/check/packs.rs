//! Checking packs: all of their tables of contents, and the data of those that are to be read.
//!
//! One thread reads packs from their first byte to their last and hashes them, others open the
//! frames that it hands out and check each chunk. Between them are a few frames at most, and
//! their buffers go round.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::findings::{Findings, damage_of, pack_name, reason};
use crate::error::{Error, Result};
use crate::format::pack::HEADER_LEN;
use crate::id::{Hasher, PackId};
use crate::observe::{Event, Observer, Stop};
use crate::repo::catalog::Catalog;
use crate::repo::frames::FrameReader;
use crate::repo::index::{Location, PackRecord};
use crate::repo::reader::OpenPack;
use crate::repo::{Repo, layout};

/// Frames that were read and wait to be opened: a few for each thread, each 8 MiB at most.
const QUEUE: usize = 6;
/// A pack's trailer is read in pieces of this length.
const PIECE_LEN: u64 = 1 << 20;

/// Which packs are read: a share of them, another one each day.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    percent: f64,
    day: u64,
}

impl Part {
    /// All packs.
    pub const WHOLE: Part = Part { percent: 100.0, day: 0 };

    /// `percent` of the packs, as `day` has it: days that follow each other read all in turn.
    pub fn of_day(percent: f64, day: u64) -> Self {
        Self { percent, day }
    }

    /// Whether it is all packs.
    pub fn is_whole(&self) -> bool {
        self.percent >= 100.0
    }

    /// Packs' names are evenly spread; each day reads the arc of them that follows on the last
    /// day's.
    fn contains(&self, id: &PackId) -> bool {
        let head = id.0.first_chunk().map_or(0, |head| u32::from_be_bytes(*head));
        let place = f64::from(head) / (f64::from(u32::MAX) + 1.0);
        let share = self.percent / 100.0;
        let begin = (self.day as f64 * share).fract();
        self.is_whole() || (place - begin).rem_euclid(1.0) < share
    }
}

/// What was checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packs there are.
    pub packs: u64,
    /// Their length.
    pub bytes: u64,
    /// Packs whose data was read.
    pub packs_read: u64,
    /// Their length.
    pub bytes_read: u64,
}

/// Checks packs.
pub struct Packs<'a> {
    pub repo: &'a Repo,
    pub catalog: &'a Catalog,
    pub part: Option<Part>,
    pub findings: &'a mut Findings,
    pub observer: &'a dyn Observer,
    pub stop: &'a Stop,
}

/// A frame to be opened.
struct Job {
    pack: Arc<OpenPack>,
    number: u32,
    frame: u32,
    stored: Vec<u8>,
}

/// A frame that could not be opened, or a chunk in it that is not what it should be.
struct Fault {
    pack: PackId,
    number: u32,
    frame: u32,
    slot: Option<u32>,
    error: Error,
}

/// A pack in the store, and what the index says of it.
struct Listed {
    id: PackId,
    len: u64,
    record: Option<PackRecord>,
}

impl Packs<'_> {
    /// Checks all.
    pub fn check(mut self) -> Result<Counts> {
        let packs = self.list()?;
        let mut counts = Counts {
            packs: packs.len() as u64,
            bytes: packs.iter().map(|pack| pack.len).sum(),
            ..Counts::default()
        };
        let expected = match self.part {
            Some(part) => packs.iter().filter(|pack| part.contains(&pack.id)).map(|pack| pack.len).sum(),
            None => counts.bytes,
        };
        self.observer.event(Event::Phase { name: "checking packs", bytes: Some(expected) });
        let mut misnamed = Vec::new();
        let faults = thread::scope(|scope| {
            let (jobs, work) = bounded(QUEUE);
            let (give_back, spare) = bounded(QUEUE);
            let workers: Vec<_> = (0..self.threads())
                .map(|_| {
                    let (catalog, work, give_back) = (self.catalog, work.clone(), give_back.clone());
                    scope.spawn(move || open_all(catalog, work, give_back))
                })
                .collect();
            drop(work);
            let done = packs.iter().try_for_each(|pack| {
                self.pack(pack, &mut Feed { jobs: &jobs, spare: &spare }, &mut counts, &mut misnamed)
            });
            drop(jobs);
            collect(workers, done)
        })?;
        self.take(faults, misnamed);
        Ok(counts)
    }

    fn threads(&self) -> usize {
        match self.part {
            Some(_) => thread::available_parallelism().map_or(1, usize::from),
            None => 0,
        }
    }

    /// In the order in which they were written, which is most likely how they lie on the disk.
    fn list(&self) -> Result<Vec<Listed>> {
        let records: HashMap<PackId, PackRecord> =
            self.catalog.index()?.packs().iter().map(|record| (record.id, record.clone())).collect();
        let mut packs: Vec<Listed> = self
            .repo
            .list_packs()?
            .into_iter()
            .map(|(id, len)| Listed { id, len, record: records.get(&id).cloned() })
            .collect();
        packs.sort_by_key(|pack| (pack.record.as_ref().map(|record| record.number), pack.id));
        Ok(packs)
    }

    fn pack(
        &mut self,
        listed: &Listed,
        feed: &mut Feed,
        counts: &mut Counts,
        misnamed: &mut Vec<PackId>,
    ) -> Result<()> {
        self.stop.check()?;
        let number = listed.record.as_ref().map(|record| record.number);
        let pack = match self.catalog.reader().open(&listed.id, listed.len) {
            Ok(pack) => Arc::new(pack),
            Err(error) => return self.bad_pack(listed, number, error),
        };
        self.compare(listed, &pack);
        let Some(number) = number else { return Ok(()) };
        match self.part {
            None => self.observer.event(Event::Advance { bytes: listed.len, files: 0 }),
            Some(part) if part.contains(&listed.id) => match self.read(&pack, number, listed.len, feed) {
                Ok(id) => {
                    counts.packs_read += 1;
                    counts.bytes_read += listed.len;
                    misnamed.extend((id != listed.id).then_some(listed.id));
                }
                Err(error) => return self.bad_pack(listed, Some(number), error),
            },
            Some(_) => {}
        }
        Ok(())
    }

    fn bad_pack(&mut self, listed: &Listed, number: Option<u32>, error: Error) -> Result<()> {
        if damage_of(&error).is_none() {
            return Err(error);
        }
        self.findings.bad_pack(&listed.id, number, reason(&error));
        Ok(())
    }

    /// Whether the index says of a pack what the pack says of itself.
    fn compare(&mut self, listed: &Listed, pack: &OpenPack) {
        let same = listed.record.as_ref().is_some_and(|record| {
            record.len == listed.len
                && record.class == pack.class
                && record.trailer_check == pack.check
                && record.chunks as usize == pack.trailer.slots.len()
        });
        if !same {
            let object = format!("{}/{}", layout::INDEX, layout::INDEX_FILE);
            let why =
                format!("what it says of {} is wrong; varv index rebuild makes it anew", pack_name(&pack.id));
            self.findings.add(&object, why);
        }
    }

    /// Reads a pack from end to end and hands out its frames; the name that its bytes have.
    fn read(&self, pack: &Arc<OpenPack>, number: u32, len: u64, feed: &mut Feed) -> Result<PackId> {
        let (store, name) = (self.catalog.store(), layout::pack(&pack.id));
        let mut hasher = Hasher::plain();
        let mut header = [0; HEADER_LEN];
        store.get(&name, 0, &mut header)?;
        hasher.update(&header);
        for (frame, place) in (0..).zip(&pack.trailer.frames) {
            self.stop.check()?;
            let mut stored = feed.buffer(place.stored_len as usize);
            store.get(&name, place.offset, &mut stored)?;
            hasher.update(&stored);
            self.observer.event(Event::Advance { bytes: place.stored_len.into(), files: 0 });
            feed.jobs
                .send(Job { pack: Arc::clone(pack), number, frame, stored })
                .map_err(|_| Error::Internal("the threads that open frames ended early"))?;
        }
        let mut at = pack.trailer.frames_end();
        while at < len {
            let mut piece = feed.buffer((len - at).min(PIECE_LEN) as usize);
            store.get(&name, at, &mut piece)?;
            hasher.update(&piece);
            at += piece.len() as u64;
        }
        Ok(PackId(hasher.finish()))
    }

    fn take(&mut self, mut faults: Vec<Fault>, misnamed: Vec<PackId>) {
        faults.sort_by_key(|fault| (fault.number, fault.frame, fault.slot));
        let explained: HashSet<PackId> = faults.iter().map(|fault| fault.pack).collect();
        for Fault { number, frame, slot, error, .. } in faults {
            let Some((object, why)) = damage_of(&error) else { continue };
            match slot {
                None => self.findings.bad_frame(number, frame, object, why),
                Some(slot) => self.findings.bad_chunk(Location { pack: number, slot }, object, why),
            }
        }
        for id in misnamed.iter().filter(|id| !explained.contains(*id)) {
            self.findings.add(&pack_name(id), "its bytes have another hash than its name".into());
        }
    }
}

/// Where frames go, and where their buffers come back from.
struct Feed<'a> {
    jobs: &'a Sender<Job>,
    spare: &'a Receiver<Vec<u8>>,
}

impl Feed<'_> {
    fn buffer(&self, len: usize) -> Vec<u8> {
        let mut buffer = self.spare.try_recv().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }
}

fn collect(workers: Vec<ScopedJoinHandle<'_, Result<Vec<Fault>>>>, done: Result<()>) -> Result<Vec<Fault>> {
    let mut faults = Vec::new();
    for worker in workers {
        // If a worker failed, its error is the cause of the other.
        faults.extend(worker.join().map_err(|_| Error::Internal("a thread that opens frames ended early"))??);
    }
    done.map(|()| faults)
}

fn open_all(catalog: &Catalog, work: Receiver<Job>, give_back: Sender<Vec<u8>>) -> Result<Vec<Fault>> {
    let (mut frames, mut scratch) = (FrameReader::new(catalog)?, Vec::new());
    let mut faults = Vec::new();
    for mut job in work {
        let (pack, frame) = (&*job.pack, job.frame);
        let fault = |slot, error| Fault { pack: pack.id, number: job.number, frame, slot, error };
        match frames.open(pack, frame, &mut job.stored, &mut scratch) {
            Err(error) => faults.push(fault(None, error)),
            Ok(raw) => {
                let first = pack.frame(frame)?.slot;
                for (slot, chunk) in (first..).zip(pack.trailer.slots_of(pack.frame(frame)?)) {
                    if let Err(error) = catalog.reader().chunk(pack, chunk, raw) {
                        faults.push(fault(Some(slot), error));
                    }
                }
            }
        }
        // With enough buffers on their way, this one is not needed any more.
        let _ = give_back.try_send(job.stored);
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(place: f64) -> PackId {
        let mut id = PackId([0; 32]);
        id.0[..4].copy_from_slice(&((place * f64::from(u32::MAX)) as u32).to_be_bytes());
        id
    }

    #[test]
    fn days_in_turn_read_everything() {
        for percent in [10.0, 30.0, 7.5] {
            let days = (100.0_f64 / percent).ceil() as u64;
            for place in 0..1000 {
                let id = id(f64::from(place) / 1000.0);
                for first in [0, 20_000, 20_001] {
                    let read = (first..first + days).filter(|&day| Part::of_day(percent, day).contains(&id));
                    assert!(read.count() >= 1, "{percent} % {place} from day {first}");
                }
            }
        }
    }

    #[test]
    fn a_day_reads_its_share() {
        let count = |part: Part| (0..1000).filter(|n| part.contains(&id(f64::from(*n) / 1000.0))).count();
        assert!((95..=105).contains(&count(Part::of_day(10.0, 20_123))));
        assert_eq!(count(Part::of_day(100.0, 3)), 1000);
        assert_eq!(count(Part::WHOLE), 1000);
    }
}
