//! What is needed: marks on all that snapshots lead to, and on what delta frames are made against.
//!
//! Marks are bits over ordinals. Of a chunk that is stored twice, the place is marked to which a
//! look-up leads; the other one is not needed. Bases are needed in just the place that a frame
//! names, and are marked apart. A frame that nobody needs needs its bases too, as long as it is
//! there: a backup may find its chunks and use them again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::rewrite::groups::Member;
use crate::error::{Error, Result};
use crate::format::pack::{Base, Frame, Trailer};
use crate::id::{PackId, SnapshotId};
use crate::observe::{Event, Observer, Stop};
use crate::repo::catalog::Catalog;
use crate::repo::index::PackRecord;
use crate::repo::marks::Marks;
use crate::repo::snapshots::{Listed, Snapshots};
use crate::repo::walk::{Found, Visitor, walk};

/// What snapshots need.
#[derive(Default)]
pub struct Needs {
    live: Marks,
    bases: Marks,
    /// Of packs with bases, the numbers of other packs with frames that are made against these.
    dependants: BTreeMap<u32, BTreeSet<u32>>,
    /// Frames that are made against what is gone, by their first ordinals.
    baseless: BTreeMap<u64, Baseless>,
    /// Packs whose tables cannot be read and that no snapshot needs: as good as gone.
    unreadable: HashSet<PackId>,
    /// Whether packs that nobody needs need what they are made against too.
    of_all_packs: bool,
    /// Whose needs these are.
    snapshots: HashSet<SnapshotId>,
    /// The packs that there were.
    packs: HashMap<PackId, Place>,
    ordinal_end: u64,
}

/// A frame that cannot be read, since a pack is gone that it is made against, or that what it is made
/// against is.
#[derive(Clone, Copy)]
struct Baseless {
    chunks: u64,
    gone: PackId,
}

/// What a pack's chunks are called in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    number: u32,
    first_ordinal: u64,
    chunks: u32,
}

impl Place {
    fn of(pack: &PackRecord) -> Self {
        Self { number: pack.number, first_ordinal: pack.first_ordinal, chunks: pack.chunks }
    }
}

impl Needs {
    /// Of all these snapshots. Refused if they need what is not there: removing anything could
    /// make it worse. Unfinished ones that have lost something are left out.
    pub fn of(
        catalog: &Catalog,
        snapshots: &Snapshots,
        observer: &dyn Observer,
        stop: &Stop,
    ) -> Result<Self> {
        match Self::default().extended(catalog, snapshots, observer, stop) {
            Err(e) if e.is_damage() && !snapshots.unfinished.is_empty() => {
                let unfinished = whole(catalog, &snapshots.unfinished, observer, stop)?;
                let all = Snapshots { listed: snapshots.listed.clone(), unfinished, ..Snapshots::default() };
                Self::default().extended(catalog, &all, observer, stop)
            }
            other => other,
        }
    }

    /// Likewise, and of packs that no snapshot needs and that stay: a forgotten one may come back,
    /// and a backup may use their chunks again.
    pub fn with_all_packs(
        catalog: &Catalog,
        snapshots: &Snapshots,
        observer: &dyn Observer,
        stop: &Stop,
    ) -> Result<Self> {
        let needs = Self { of_all_packs: true, ..Self::default() };
        needs.extended(catalog, snapshots, observer, stop)
    }

    /// Whether nothing has come since, and nothing has moved.
    pub fn still_hold(&self, catalog: &Catalog, snapshots: &Snapshots) -> Result<bool> {
        let index = catalog.index()?;
        let same_packs = index.packs().len() == self.packs.len() && self.fits(index.packs());
        let mut all = snapshots.listed.iter().chain(&snapshots.unfinished);
        Ok(same_packs && all.all(|listed| self.has(&listed.id)))
    }

    /// Whether these are the needs of this snapshot too.
    pub fn has(&self, snapshot: &SnapshotId) -> bool {
        self.snapshots.contains(snapshot)
    }

    /// With what has come since.
    pub fn renewed(
        self,
        catalog: &Catalog,
        snapshots: &Snapshots,
        observer: &dyn Observer,
        stop: &Stop,
    ) -> Result<Self> {
        let fits = self.fits(catalog.index()?.packs());
        let extended = fits.then(|| self.extended(catalog, snapshots, observer, stop));
        match extended {
            Some(Err(e)) if e.is_damage() => Self::of(catalog, snapshots, observer, stop),
            Some(extended) => extended,
            // Somebody has made the index anew, or has moved or removed something.
            None => Self::of(catalog, snapshots, observer, stop),
        }
    }

    /// Whether marks mean now what they meant before. Of what was in a pack that is gone, other
    /// places are needed now, which are not marked.
    fn fits(&self, packs: &[PackRecord]) -> bool {
        let known = packs.iter().filter(|pack| self.packs.contains_key(&pack.id)).count();
        let is_same = |pack: &PackRecord| match self.packs.get(&pack.id) {
            Some(place) => *place == Place::of(pack),
            None => pack.first_ordinal >= self.ordinal_end,
        };
        known == self.packs.len() && packs.iter().all(is_same)
    }

    fn extended(
        mut self,
        catalog: &Catalog,
        snapshots: &Snapshots,
        observer: &dyn Observer,
        stop: &Stop,
    ) -> Result<Self> {
        observer.event(Event::Phase { name: "walking snapshots", bytes: None });
        for listed in &snapshots.listed {
            if !self.snapshots.contains(&listed.id) {
                walk(catalog, listed, &mut Marker(&mut self.live), stop)
                    .map_err(|error| explained(error, listed))?;
                self.snapshots.insert(listed.id);
            }
        }
        for listed in &snapshots.unfinished {
            if !self.snapshots.contains(&listed.id) {
                self.extend_by_unfinished(catalog, listed, stop)?;
            }
        }
        let index = catalog.index()?;
        let packs = index.packs().to_vec();
        self.ordinal_end = index.ordinal_end();
        drop(index);
        self.packs = packs.iter().map(|pack| (pack.id, Place::of(pack))).collect();
        self.mark_bases(catalog, &packs, observer, stop)?;
        Ok(self)
    }

    /// Nobody can go on with what has lost something: then it needs nothing. That is found out before
    /// anything is marked, as what is below a marked node counts as marked.
    fn extend_by_unfinished(&mut self, catalog: &Catalog, listed: &Listed, stop: &Stop) -> Result<()> {
        match walk(catalog, listed, &mut Marker(&mut Marks::default()), stop) {
            Err(e) if e.is_damage() => return Ok(()),
            other => other?,
        }
        walk(catalog, listed, &mut Marker(&mut self.live), stop)?;
        self.snapshots.insert(listed.id);
        Ok(())
    }

    /// Marks what the delta frames of needed packs are made against, and what that is made against.
    /// Frames that nobody can read need nothing; which these are is known once none has turned up.
    fn mark_bases(
        &mut self,
        catalog: &Catalog,
        packs: &[PackRecord],
        observer: &dyn Observer,
        stop: &Stop,
    ) -> Result<()> {
        self.baseless.clear();
        self.unreadable.clear();
        loop {
            let before = (self.baseless.len(), self.unreadable.len());
            (self.bases, self.dependants) = Default::default();
            self.mark_readable(catalog, packs, observer, stop)?;
            if (self.baseless.len(), self.unreadable.len()) == before {
                return self.refuse_baseless();
            }
        }
    }

    fn mark_readable(
        &mut self,
        catalog: &Catalog,
        packs: &[PackRecord],
        observer: &dyn Observer,
        stop: &Stop,
    ) -> Result<()> {
        let by_id: HashMap<PackId, &PackRecord> = packs.iter().map(|pack| (pack.id, pack)).collect();
        let by_number: HashMap<u32, &PackRecord> = packs.iter().map(|pack| (pack.number, pack)).collect();
        observer.event(Event::Phase {
            name: "reading tables of packs",
            bytes: Some(packs.iter().map(|pack| pack.len).sum()),
        });
        let is_open = |pack: &&PackRecord| self.of_all_packs || self.is_needed(pack);
        let mut open: BTreeSet<u32> = packs.iter().filter(is_open).map(|pack| pack.number).collect();
        let mut done = HashSet::new();
        while let Some(number) = open.pop_last() {
            stop.check()?;
            let Some(pack) = by_number.get(&number).filter(|_| done.insert(number)) else { continue };
            match catalog.reader().open(&pack.id, pack.len) {
                Ok(opened) => open.extend(self.mark_bases_of(pack, &opened.trailer, &by_id)?),
                Err(e) if e.is_damage() && self.live_in(pack) == 0 => drop(self.unreadable.insert(pack.id)),
                Err(e) => return Err(e),
            }
            observer.event(Event::Advance { bytes: pack.len, files: 0 });
        }
        Ok(())
    }

    /// What nobody can read and no snapshot needs may be as it is.
    fn refuse_baseless(&self) -> Result<()> {
        let is_live = |(first, frame): &(&u64, &Baseless)| self.live.count(**first, frame.chunks) > 0;
        match self.baseless.iter().find(is_live) {
            Some((_, frame)) => Err(Error::missing(format!("pack {}", frame.gone))),
            None => Ok(()),
        }
    }

    /// The frame with this ordinal, if nobody can read it.
    fn baseless_at(&self, ordinal: u64) -> Option<Baseless> {
        let (first, frame) = self.baseless.range(..=ordinal).next_back()?;
        (ordinal - first < frame.chunks).then_some(*frame)
    }

    fn count(&self, first: u64, chunks: u64) -> u64 {
        self.live.count(first, chunks) + self.bases.count(first, chunks)
    }

    /// The packs that a needed pack needs.
    fn mark_bases_of(
        &mut self,
        pack: &PackRecord,
        trailer: &Trailer,
        packs: &HashMap<PackId, &PackRecord>,
    ) -> Result<BTreeSet<u32>> {
        let mut needed = BTreeSet::new();
        for frame in &trailer.frames {
            let bases = match self.bases_of(pack, trailer, frame, packs)? {
                Ok(bases) => bases,
                Err(gone) => {
                    let first_ordinal = pack.first_ordinal + u64::from(frame.slot);
                    self.baseless.insert(first_ordinal, Baseless { chunks: frame.chunks.into(), gone });
                    continue;
                }
            };
            for (below, base) in bases {
                if below.number != pack.number {
                    self.dependants.entry(below.number).or_default().insert(pack.number);
                    needed.insert(below.number);
                }
                let first = below.first_ordinal + u64::from(base.slot);
                for ordinal in first..first + u64::from(base.count) {
                    self.bases.insert(ordinal);
                }
            }
        }
        Ok(needed)
    }

    /// What a frame is made against, and the packs that this lies in; or the name of one that is gone.
    fn bases_of<'p, 't>(
        &self,
        pack: &'p PackRecord,
        trailer: &Trailer,
        frame: &'t Frame,
        packs: &HashMap<PackId, &'p PackRecord>,
    ) -> Result<Result<Vec<(&'p PackRecord, &'t Base)>, PackId>> {
        let mut found = Vec::with_capacity(frame.bases.len());
        for base in &frame.bases {
            let below = match base_pack(pack, trailer, base, packs)? {
                Ok(below) if self.unreadable.contains(&below.id) => return Ok(Err(below.id)),
                Ok(below) => below,
                Err(gone) => return Ok(Err(gone)),
            };
            if let Some(frame) = self.baseless_at(below.first_ordinal + u64::from(base.slot)) {
                return Ok(Err(frame.gone));
            }
            found.push((below, base));
        }
        Ok(Ok(found))
    }

    /// Whether anything in a pack is needed.
    pub fn is_needed(&self, pack: &PackRecord) -> bool {
        self.count(pack.first_ordinal, pack.chunks.into()) > 0
    }

    /// Whether snapshots need all chunks of a pack.
    pub fn is_live_whole(&self, pack: &PackRecord) -> bool {
        self.live_in(pack) == u64::from(pack.chunks)
    }

    /// How many chunks of a pack snapshots need.
    fn live_in(&self, pack: &PackRecord) -> u64 {
        self.live.count(pack.first_ordinal, pack.chunks.into())
    }

    /// Whether snapshots need this chunk of a pack, in this place.
    pub fn is_live(&self, pack: &PackRecord, slot: u32) -> bool {
        self.live.contains(pack.first_ordinal + u64::from(slot))
    }

    /// Whether frames are made against chunks of this one.
    pub fn is_base(&self, pack: &PackRecord, frame: &Frame) -> bool {
        self.bases.count(pack.first_ordinal + u64::from(frame.slot), frame.chunks.into()) > 0
    }

    /// A pack, with those that have to be written anew with it.
    pub fn member(&self, pack: &PackRecord) -> Member {
        let dependants = self.dependants.get(&pack.number).into_iter().flatten().copied().collect();
        Member { id: pack.id, number: pack.number, len: pack.len, dependants }
    }
}

/// Those of the unfinished backups that have not even lost what their frames are made against.
fn whole(
    catalog: &Catalog,
    unfinished: &[Listed],
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Vec<Listed>> {
    let mut whole = Vec::new();
    for listed in unfinished {
        let alone = Snapshots { unfinished: vec![listed.clone()], ..Snapshots::default() };
        match Needs::default().extended(catalog, &alone, observer, stop) {
            Err(e) if e.is_damage() => {}
            other => whole.extend(other?.has(&listed.id).then(|| listed.clone())),
        }
    }
    Ok(whole)
}

/// The pack that a base lies in, or the name of one that is gone.
fn base_pack<'p>(
    pack: &'p PackRecord,
    trailer: &Trailer,
    base: &Base,
    packs: &HashMap<PackId, &'p PackRecord>,
) -> Result<Result<&'p PackRecord, PackId>> {
    let below = match base.pack.checked_sub(1) {
        None => pack,
        Some(at) => {
            let id = trailer.packs.get(at as usize).ok_or(Error::Internal("a base without a pack"))?;
            let Some(below) = packs.get(id) else { return Ok(Err(*id)) };
            below
        }
    };
    // Where another pack has taken its name, it is gone as well.
    let is_there = base.slot.checked_add(base.count).is_some_and(|end| end <= below.chunks);
    Ok(if is_there { Ok(below) } else { Err(below.id) })
}

fn explained(error: Error, listed: &Listed) -> Error {
    match error {
        Error::Missing { object } => Error::damaged(
            format!("snapshot {}", listed.id),
            format!("it needs {object}, which is missing; nothing is pruned before that is repaired"),
        ),
        other => other,
    }
}

struct Marker<'m>(&'m mut Marks);

impl Visitor for Marker<'_> {
    fn node(&mut self, found: Found) -> Result<bool> {
        Ok(self.0.insert(found.ordinal))
    }

    fn chunks(&mut self, found: &[Found]) -> Result<()> {
        for chunk in found {
            self.0.insert(chunk.ordinal);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::pack::{Class, Codec, Kind, Slot};
    use crate::id::ChunkId;

    /// Ten chunks in frames of two.
    fn record(number: u32) -> PackRecord {
        PackRecord {
            number,
            id: PackId([number as u8; 32]),
            class: Class::Data,
            len: 1000,
            first_ordinal: u64::from(number) * 100,
            chunks: 10,
            trailer_check: [0; 16],
        }
    }

    /// A trailer whose frames have these bases: frame, pack (0 is this one), first slot, count.
    fn trailer(packs: &[u32], bases: &[(u32, u32, u32, u32)]) -> Trailer {
        let frame = |number: u32| {
            let own = bases.iter().filter(|(frame, ..)| *frame == number);
            let bases: Vec<Base> =
                own.map(|&(_, pack, slot, count)| Base { pack, frame: slot / 2, slot, count }).collect();
            Frame {
                offset: 48 + u64::from(number) * 100,
                stored_len: 100,
                raw_len: 200,
                kind: Kind::Data,
                codec: Codec::Zstd,
                level: 3,
                depth: u8::from(!bases.is_empty()),
                bases,
                slot: number * 2,
                chunks: 2,
            }
        };
        let slot = |n: u32| Slot { id: ChunkId([n as u8; 20]), frame: n / 2, offset: n % 2 * 100, len: 100 };
        Trailer {
            packs: packs.iter().map(|number| record(*number).id).collect(),
            frames: (0..5).map(frame).collect(),
            slots: (0..10).map(slot).collect(),
        }
    }

    /// Follows bases through packs as [`Needs::mark_bases`] does.
    fn follow(needs: &mut Needs, trailers: &[(u32, Trailer)]) {
        let records: Vec<PackRecord> = trailers.iter().map(|(number, _)| record(*number)).collect();
        let by_id = records.iter().map(|record| (record.id, record)).collect();
        let mut open: BTreeSet<u32> =
            records.iter().filter(|pack| needs.is_needed(pack)).map(|pack| pack.number).collect();
        while let Some(number) = open.pop_last() {
            let at = records.iter().position(|record| record.number == number).unwrap();
            open.extend(needs.mark_bases_of(&records[at], &trailers[at].1, &by_id).unwrap());
        }
    }

    fn marked(needs: &Needs) -> Vec<u64> {
        (0..400).filter(|ordinal| needs.bases.contains(*ordinal)).collect()
    }

    #[test]
    fn bases_of_needed_packs_are_needed_and_so_on_down() {
        // Pack 3's frame 1 needs chunk 4 of pack 2, whose frame 2 needs chunks 6 and 7 of pack 1.
        let trailers = [
            (1, trailer(&[], &[])),
            (2, trailer(&[1], &[(2, 1, 6, 2)])),
            (3, trailer(&[2], &[(1, 1, 4, 1), (4, 1, 8, 1)])),
        ];
        let mut needs = Needs::default();
        needs.live.insert(302);
        follow(&mut needs, &trailers);
        assert_eq!(marked(&needs), [106, 107, 204, 208], "the unneeded frame 4 can still be found");
        assert_eq!(needs.dependants, BTreeMap::from([(1, [2].into()), (2, [3].into())]));
        assert!(needs.is_needed(&record(1)) && needs.is_needed(&record(2)));
        assert!(
            needs.is_base(&record(1), &trailers[0].1.frames[3])
                && !needs.is_base(&record(1), &trailers[0].1.frames[2])
        );
    }

    #[test]
    fn bases_in_the_same_pack_are_followed() {
        let trailers = [(1, trailer(&[], &[(4, 0, 4, 1), (2, 0, 0, 2)]))];
        let mut needs = Needs::default();
        needs.live.insert(108);
        follow(&mut needs, &trailers);
        assert_eq!(marked(&needs), [100, 101, 104]);
        assert!(needs.dependants.is_empty(), "no other pack's");
    }

    #[test]
    fn unneeded_packs_hold_nothing() {
        let trailers = [(1, trailer(&[], &[])), (2, trailer(&[1], &[(2, 1, 6, 2)])), (3, trailer(&[], &[]))];
        let mut needs = Needs::default();
        needs.live.insert(300);
        follow(&mut needs, &trailers);
        assert!(!needs.is_needed(&record(1)) && !needs.is_needed(&record(2)) && needs.dependants.is_empty());
    }

    #[test]
    fn bases_that_are_not_there_stop_it_if_somebody_needs_them() {
        let pack = record(3);
        let alone = HashMap::from([(pack.id, &pack)]);
        let mut needs = Needs::default();
        needs.live.insert(302);
        needs.mark_bases_of(&pack, &trailer(&[2], &[(2, 1, 4, 1)]), &alone).unwrap();
        assert!(needs.refuse_baseless().is_ok(), "frame 2 is damaged, but frame 1 is needed");
        needs.live.insert(304);
        assert!(matches!(needs.refuse_baseless(), Err(Error::Missing { .. })));
        for (slot, count) in [(9, 2), (u32::MAX, 1), (0, u32::MAX)] {
            let mut needs = Needs::default();
            needs.mark_bases_of(&pack, &trailer(&[], &[(2, 0, slot, count)]), &alone).unwrap();
            assert!(needs.refuse_baseless().is_ok(), "{slot} {count}");
            needs.live.insert(304);
            assert!(matches!(needs.refuse_baseless(), Err(Error::Missing { .. })), "{slot} {count}");
        }
    }

    /// Frame 2 cannot be read, nor can frame 3, which is made against it.
    #[test]
    fn frames_that_nobody_can_read_need_nothing() {
        let pack = record(3);
        let alone = HashMap::from([(pack.id, &pack)]);
        let trailer = trailer(&[2], &[(2, 1, 4, 1), (3, 0, 4, 1), (3, 0, 0, 1), (4, 0, 2, 1)]);
        let mut needs = Needs::default();
        needs.live.insert(302);
        needs.mark_bases_of(&pack, &trailer, &alone).unwrap();
        assert_eq!(marked(&needs), [302], "not those of frame 3");
        assert_eq!(needs.baseless.keys().copied().collect::<Vec<_>>(), [304, 306]);
        assert!(needs.refuse_baseless().is_ok());
        needs.live.insert(307);
        assert!(matches!(needs.refuse_baseless(), Err(Error::Missing { .. })));
    }

    #[test]
    fn marks_hold_as_long_as_ordinals_mean_the_same() {
        let packs = [1, 2].map(|n| (record(n).id, Place::of(&record(n)))).into();
        let needs = Needs { packs, ordinal_end: 210, ..Needs::default() };
        assert!(needs.fits(&[record(1), record(2)]));
        assert!(!needs.fits(&[record(2)]), "one is gone, and what was in it is elsewhere");
        assert!(needs.fits(&[record(1), record(2), record(3)]), "one has come");
        let moved = PackRecord { first_ordinal: 0, ..record(1) };
        assert!(!needs.fits(&[moved, record(2)]), "the index was made anew");
        let early = PackRecord { first_ordinal: 0, ..record(3) };
        assert!(!needs.fits(&[early, record(2)]), "likewise");
    }
}
