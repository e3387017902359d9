//! Checking packs: all of their tables of contents, and the data of those that are to be read.
//!
//! One thread reads packs from their first byte to their last and hashes them, others open the
//! frames that it hands out and check each chunk.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread;

use jiff::Timestamp;

use super::clerk::Clerk;
use super::findings::{Findings, damage_of, pack_name, reason};
use super::frames::{Fault, Feed, open_frames};
use super::if_writable;
use super::part::{Chosen, Part};
use crate::error::{Error, Result};
use crate::format::bad::Bad;
use crate::format::ledger::Ledger;
use crate::format::pack::HEADER_LEN;
use crate::id::{Hasher, PackId};
use crate::observe::{Event, Observer, Stop};
use crate::repo::bases;
use crate::repo::catalog::Catalog;
use crate::repo::index::PackRecord;
use crate::repo::reader::OpenPack;
use crate::repo::{Repo, layout};

/// A pack's trailer is read in pieces of this length.
const PIECE_LEN: u64 = 1 << 20;
/// What was found good is written down each time so many bytes were read.
const ROUND_BYTES: u64 = 4 << 30;

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
    /// Packs that are due and were not read, …
    pub packs_left: u64,
    /// … and their length.
    pub bytes_left: u64,
}

/// Checks packs.
pub struct Packs<'a> {
    pub repo: &'a Repo,
    pub catalog: &'a Catalog,
    pub part: Option<Part>,
    pub now: Timestamp,
    /// What was known to be bad before.
    pub known: &'a Bad,
    pub findings: &'a mut Findings,
    pub observer: &'a dyn Observer,
    pub stop: &'a Stop,
}

/// A pack in the store, and what the index says of it.
pub struct Listed {
    pub id: PackId,
    len: u64,
    record: Option<PackRecord>,
}

impl Packs<'_> {
    /// Checks all; what was found good goes into the ledger as it goes on.
    pub fn check(mut self) -> Result<Counts> {
        let packs = self.list()?;
        let mut counts = Counts {
            packs: packs.len() as u64,
            bytes: packs.iter().map(|pack| pack.len).sum(),
            ..Counts::default()
        };
        let mut clerk = Clerk::new(self.repo, self.findings)?;
        let chosen = self.choose(&packs, clerk.ledger());
        (counts.packs_left, counts.bytes_left) = (chosen.packs_left, chosen.bytes_left);
        let expected = match self.part {
            Some(_) => packs.iter().filter(|pack| chosen.packs.contains(&pack.id)).map(|pack| pack.len).sum(),
            None => counts.bytes,
        };
        self.observer.event(Event::Phase { name: "checking packs", bytes: Some(expected) });
        let mut deltas = Vec::new();
        let mut rest = &packs[..];
        while !rest.is_empty() {
            let (round, after) = rest.split_at(round_len(rest, &chosen.packs));
            rest = after;
            let done = self.round(round, &chosen.packs)?;
            deltas.extend(done.deltas);
            counts.packs_read += done.read.len() as u64;
            counts.bytes_read += done.read.iter().map(|(_, len)| len).sum::<u64>();
            let bad = self.take(done.faults, done.misnamed);
            self.remember()?;
            let good = done.read.iter().map(|(id, _)| id).filter(|id| !bad.contains(*id));
            clerk.write(good, &bad, &packs, self.now, self.findings)?;
        }
        let all = packs.iter().map(|pack| pack.id).collect();
        bases::spread(self.catalog.reader(), &deltas, &all, self.findings, self.stop)?;
        Ok(counts)
    }

    /// Lets backups know at once; the check may be interrupted.
    fn remember(&self) -> Result<()> {
        let mut index = self.catalog.index()?;
        let found = self.findings.bad.packs.iter();
        let is_new = found.fold(false, |new, (pack, slots)| index.add_bad(pack, slots) || new);
        drop(index);
        match is_new && self.repo.is_locked() {
            true => if_writable(self.repo.remember_bad(self.catalog)),
            false => Ok(()),
        }
    }

    /// What is known to be bad is always read: perhaps it is not so any more.
    fn choose(&self, packs: &[Listed], ledger: &Ledger) -> Chosen {
        let all = packs.iter().map(|pack| (pack.id, pack.len));
        let mut chosen = match self.part {
            Some(part) => part.choose(all, ledger, self.now),
            None => Chosen::default(),
        };
        let known = |id: &PackId| self.known.packs.contains_key(id);
        chosen.packs.extend(packs.iter().map(|pack| pack.id).filter(known));
        chosen
    }

    fn round(&mut self, packs: &[Listed], chosen: &HashSet<PackId>) -> Result<Round> {
        let mut round = Round::default();
        let threads = match packs.iter().any(|pack| chosen.contains(&pack.id)) {
            true => thread::available_parallelism().map_or(1, usize::from),
            false => 0,
        };
        round.faults = open_frames(self.catalog, threads, |feed| {
            packs.iter().try_for_each(|pack| self.pack(pack, chosen.contains(&pack.id), feed, &mut round))
        })?;
        Ok(round)
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

    fn pack(&mut self, listed: &Listed, read: bool, feed: &Feed, round: &mut Round) -> Result<()> {
        self.stop.check()?;
        let pack = match self.catalog.reader().open(&listed.id, listed.len) {
            Ok(pack) => Arc::new(pack),
            Err(error) => return self.bad_pack(listed, error),
        };
        self.compare(listed, &pack);
        if bases::has_bases(&pack) {
            round.deltas.push((listed.id, listed.len));
        }
        if !read {
            if self.part.is_none() {
                self.observer.event(Event::Advance { bytes: listed.len, files: 0 });
            }
            return Ok(());
        }
        match self.read(&pack, listed.len, feed) {
            Ok(id) => {
                round.read.push((listed.id, listed.len));
                round.misnamed.extend((id != listed.id).then_some((listed.id, id)));
                Ok(())
            }
            Err(error) => self.bad_pack(listed, error),
        }
    }

    fn bad_pack(&mut self, listed: &Listed, error: Error) -> Result<()> {
        if damage_of(&error).is_none() {
            return Err(error);
        }
        self.findings.bad_pack(&listed.id, reason(&error));
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
    fn read(&self, pack: &Arc<OpenPack>, len: u64, feed: &Feed) -> Result<PackId> {
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
            feed.send(pack, frame, stored)?;
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

    /// Takes what was found; the packs that are not good.
    fn take(&mut self, mut faults: Vec<Fault>, misnamed: Vec<(PackId, PackId)>) -> HashSet<PackId> {
        faults.sort_by_key(|fault| (fault.pack, fault.frame));
        let mut bad: HashSet<PackId> = faults.iter().map(|fault| fault.pack).collect();
        for Fault { pack, slots, error, .. } in faults {
            let Some((object, why)) = damage_of(&error) else { continue };
            self.findings.bad_frame(&pack, &slots, object, why);
        }
        for (id, hash) in misnamed {
            if bad.insert(id) {
                let place = layout::pack(&hash);
                let why =
                    format!("its bytes have another hash than its name: if it was renamed, it was {place}");
                self.findings.add(&pack_name(&id), why);
            }
        }
        bad
    }
}

/// What became of some packs.
#[derive(Default)]
struct Round {
    faults: Vec<Fault>,
    /// Packs whose bytes have another hash than their names, and that hash.
    misnamed: Vec<(PackId, PackId)>,
    /// Packs that were read, and their lengths.
    read: Vec<(PackId, u64)>,
    /// Packs with frames that are compressed against others.
    deltas: Vec<(PackId, u64)>,
}

/// How many packs are dealt with before what they came to is written down.
fn round_len(packs: &[Listed], chosen: &HashSet<PackId>) -> usize {
    let mut bytes = 0;
    let is_full = |pack: &Listed| {
        bytes += if chosen.contains(&pack.id) { pack.len } else { 0 };
        bytes >= ROUND_BYTES
    };
    packs.iter().position(is_full).map_or(packs.len(), |last| last + 1)
}
