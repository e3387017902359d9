//! Reading the frames that hold chunks which are needed, and no others.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;

use super::findings::{Findings, damage_of, reason};
use super::frames::{Fault, Feed, open_frames};
use crate::error::Result;
use crate::id::PackId;
use crate::observe::{Event, Observer, Stop};
use crate::repo::catalog::Catalog;
use crate::repo::index::PackRecord;
use crate::repo::layout;
use crate::repo::marks::Marks;
use crate::repo::reader::OpenPack;

/// Reads frames, in the order in which packs were written.
pub struct Needed<'a> {
    pub catalog: &'a Catalog,
    pub observer: &'a dyn Observer,
    pub stop: &'a Stop,
    /// Chunks whose frames were read.
    pub seen: Marks,
    /// Packs of which something was read.
    pub packs_read: u64,
    /// Bytes of frames that were read.
    pub bytes_read: u64,
}

impl Needed<'_> {
    /// Reads the frames of these chunks that it did not read before; whether all are good.
    pub fn read(&mut self, needed: &Marks, findings: &mut Findings) -> Result<bool> {
        let records: HashMap<PackId, PackRecord> = {
            let index = self.catalog.index()?;
            let some = |pack: &&PackRecord| needed.count(pack.first_ordinal, pack.chunks.into()) > 0;
            index.packs().iter().filter(some).map(|pack| (pack.id, pack.clone())).collect()
        };
        let mut packs: Vec<&PackRecord> = records.values().collect();
        packs.sort_unstable_by_key(|pack| pack.number);
        self.observer.event(Event::Phase { name: "reading what is needed", bytes: None });
        let mut is_good = true;
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let mut faults = open_frames(self.catalog, threads, |feed| {
            for pack in packs {
                self.stop.check()?;
                match self.pack(pack, needed, feed) {
                    Err(error) if damage_of(&error).is_some() => {
                        is_good = false;
                        findings.bad_pack(&pack.id, reason(&error));
                    }
                    done => done?,
                }
            }
            Ok(())
        })?;
        faults.sort_by_key(|fault| (fault.pack, fault.frame));
        for fault in faults {
            let counts = records.get(&fault.pack).is_none_or(|pack| concerns(&fault, pack, needed));
            if counts {
                is_good = false;
                let (pack, slots) = (fault.pack, fault.slots.clone());
                let (name, why) = self.name(fault)?;
                findings.bad_frame(&pack, &slots, name, why);
            }
        }
        Ok(is_good)
    }

    fn pack(&mut self, record: &PackRecord, needed: &Marks, feed: &Feed) -> Result<()> {
        let pack = self.catalog.pack_named(&record.id)?;
        let name = layout::pack(&pack.id);
        let mut is_read = false;
        for (number, frame) in (0..).zip(&pack.trailer.frames) {
            let ordinals = (frame.slot..frame.slot.saturating_add(frame.chunks))
                .map(|slot| record.first_ordinal + u64::from(slot));
            let new = ordinals.filter(|ordinal| needed.contains(*ordinal) && self.seen.insert(*ordinal));
            if new.count() == 0 {
                continue;
            }
            self.stop.check()?;
            let mut stored = feed.buffer(frame.stored_len as usize);
            self.catalog.store().get(&name, frame.offset, &mut stored)?;
            self.bytes_read += u64::from(frame.stored_len);
            self.observer.event(Event::Advance { bytes: frame.stored_len.into(), files: 0 });
            feed.send(&pack, number, stored)?;
            is_read = true;
        }
        self.packs_read += u64::from(is_read);
        Ok(())
    }

    /// What is damaged and why: the frame itself, even if one that it is compressed against is.
    fn name(&self, fault: Fault) -> Result<(String, String)> {
        let Some((object, why)) = damage_of(&fault.error) else { return Err(fault.error) };
        let pack: Arc<OpenPack> = self.catalog.pack_named(&fault.pack)?;
        let own = pack.frame_name(fault.frame);
        Ok(match object.ends_with(&own) {
            true => (object, why),
            false => (own, format!("it needs {object}: {why}")),
        })
    }
}

/// Whether what is bad is needed.
fn concerns(fault: &Fault, pack: &PackRecord, needed: &Marks) -> bool {
    let slots = (0..pack.chunks).filter(|slot| fault.slots.contains(*slot));
    slots.map(|slot| pack.first_ordinal + u64::from(slot)).any(|ordinal| needed.contains(ordinal))
}
