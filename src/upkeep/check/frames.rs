//! Opening frames on all processors, and checking each chunk in them.
//!
//! One thread reads frames and hands them out. Between it and the others are a few frames at
//! most, and their buffers go round.

use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::{Error, Result};
use crate::format::bad::Slots;
use crate::id::PackId;
use crate::repo::catalog::Catalog;
use crate::repo::frames::FrameReader;
use crate::repo::reader::OpenPack;

/// Frames that were read and wait to be opened: a few for each thread, each 8 MiB at most.
const QUEUE: usize = 6;

/// A frame to be opened.
struct Job {
    pack: Arc<OpenPack>,
    frame: u32,
    stored: Vec<u8>,
}

/// A frame that could not be opened, or a chunk in it that is not what it should be.
pub struct Fault {
    pub pack: PackId,
    pub frame: u32,
    pub slots: Slots,
    pub error: Error,
}

/// Where frames go, and where their buffers come back from.
pub struct Feed<'a> {
    jobs: &'a Sender<Job>,
    spare: &'a Receiver<Vec<u8>>,
}

impl Feed<'_> {
    /// A buffer of this length, with anything in it.
    pub fn buffer(&self, len: usize) -> Vec<u8> {
        let mut buffer = self.spare.try_recv().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    /// Hands out a frame as it is stored.
    pub fn send(&self, pack: &Arc<OpenPack>, frame: u32, stored: Vec<u8>) -> Result<()> {
        self.jobs
            .send(Job { pack: Arc::clone(pack), frame, stored })
            .map_err(|_| Error::Internal("the threads that open frames ended early"))
    }
}

/// Opens all frames that `read` hands out; what is wrong with them. Without threads, `read` must
/// hand out none.
pub fn open_frames(
    catalog: &Catalog,
    threads: usize,
    read: impl FnOnce(&Feed) -> Result<()>,
) -> Result<Vec<Fault>> {
    thread::scope(|scope| {
        let (jobs, work) = bounded(QUEUE);
        let (give_back, spare) = bounded(QUEUE);
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let (work, give_back) = (work.clone(), give_back.clone());
                scope.spawn(move || open_all(catalog, work, give_back))
            })
            .collect();
        drop(work);
        let done = read(&Feed { jobs: &jobs, spare: &spare });
        drop(jobs);
        collect(workers, done)
    })
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
        let fault = |slots, error| Fault { pack: pack.id, frame, slots, error };
        let place = pack.frame(frame)?;
        match frames.open(pack, frame, &mut job.stored, &mut scratch) {
            Err(error) => faults.push(fault(Slots::range(place.slot, place.chunks), error)),
            Ok(raw) => {
                for (slot, chunk) in (place.slot..).zip(pack.trailer.slots_of(place)) {
                    if let Err(error) = catalog.reader().chunk(pack, chunk, raw) {
                        faults.push(fault(Slots::range(slot, 1), error));
                    }
                }
            }
        }
        // With enough buffers on their way, this one is not needed any more.
        let _ = give_back.try_send(job.stored);
    }
    Ok(faults)
}
