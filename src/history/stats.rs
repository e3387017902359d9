//! What a repository holds, what it costs, and what each snapshot holds alone.
//!
//! All snapshots are walked once to mark what one and what more than one of them needs: a node
//! that a second snapshot needs is walked a second time, then never again, since all below it
//! is needed twice as well. Then each snapshot is walked for what it alone needs. Marks are bits
//! over ordinals, so that memory does not grow with the snapshots.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::error::{IoContext, Result};
use crate::format::config::Tier;
use crate::format::pack::{Class, Codec, Kind, SEAL_LEN, Way};
use crate::format::snapshot::Saved;
use crate::id::PackId;
use crate::observe::{Event, Observer, Stop};
use crate::repo::Repo;
use crate::repo::catalog::Catalog;
use crate::repo::frames::FrameReader;
use crate::repo::index::PackRecord;
use crate::repo::marks::Marks;
use crate::repo::savings::{self, Group, Sample};
use crate::repo::snapshots::Listed;
use crate::repo::walk::{Found, Visitor, walk};

/// Nodes whose packs are looked into at once.
const BATCH: usize = 1 << 16;
/// Of frames that are stored in the same way, fewer than so many are looked at.
const LOOKED_AT_MAX: usize = 16;

/// A repository in numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Snapshots.
    pub snapshots: u64,
    /// Packs.
    pub packs: u64,
    /// Chunks in them, second copies counted.
    pub chunks: u64,
    /// Length of the sources of all snapshots.
    pub bytes_source: u64,
    /// Length of the distinct chunks of their files and volumes.
    pub bytes_deduplicated: u64,
    /// Length of chunks in packs that no snapshot needs, and of second copies.
    pub bytes_unused: u64,
    /// Data packs.
    pub bytes_data: u64,
    /// Packs of map and tree nodes.
    pub bytes_metadata: u64,
    /// The index.
    pub bytes_index: u64,
    /// All files in the repository's folder.
    pub bytes_repository: u64,
    /// How often the source is longer than the repository.
    pub ratio: f64,
    /// What was saved by what.
    pub saved: Saved,
    /// What frames take, by how they are stored.
    pub levels: Vec<Level>,
}

/// Frames that are stored in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Level {
    /// `data` or `metadata`.
    pub kind: &'static str,
    /// `zstd` or `raw`, which is what did not shrink.
    pub codec: &'static str,
    /// The zstd level asked for.
    pub level: i8,
    /// The tiers that ask for this level.
    pub tiers: Vec<&'static str>,
    /// Whether they are compressed against older chunks.
    pub delta: bool,
    /// How many frames.
    pub frames: u64,
    /// Their length when decoded.
    pub bytes_raw: u64,
    /// Their length in packs.
    pub bytes_stored: u64,
}

/// What a snapshot holds alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Alone {
    /// Length of the chunks of files and volumes that no other snapshot needs.
    pub bytes: u64,
    /// About what these, and the map and tree nodes that no other snapshot needs, take in packs.
    pub bytes_stored: u64,
}

/// Counts a repository with these snapshots, and what each of the `chosen` ones holds alone.
pub fn run(
    repo: &Repo,
    catalog: &Catalog,
    all: &[Listed],
    chosen: &[&Listed],
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<(Totals, Vec<Alone>)> {
    observer.event(Event::Phase { name: "walking snapshots", bytes: None });
    let mut marker = Marker::default();
    for listed in all {
        marker.this.clear();
        walk(catalog, listed, &mut marker, stop)?;
    }
    let Marker { more, bytes, .. } = marker;
    let alone =
        chosen.iter().map(|listed| alone(catalog, listed, &more, stop)).collect::<Result<Vec<_>>>()?;
    let mut totals = Totals {
        snapshots: all.len() as u64,
        bytes_source: saturating_sum(all.iter().map(|listed| Some(listed.snapshot.stats.bytes_source)))
            .unwrap_or_default(),
        bytes_deduplicated: bytes,
        ..Totals::default()
    };
    let looked_at = totals.count_packs(repo, catalog, observer, stop)?;
    totals.saved = saved(repo, catalog, looked_at, stop)?;
    totals.count_sparse(all);
    totals.count_folder(repo, catalog)?;
    Ok((totals, alone))
}

/// `None` if one is not known. Sparse files of some exbibytes add up to more than there are numbers.
fn saturating_sum(mut all: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    all.try_fold(0, |sum: u64, one| Some(sum.saturating_add(one?)))
}

impl Totals {
    fn count_packs(
        &mut self,
        repo: &Repo,
        catalog: &Catalog,
        observer: &dyn Observer,
        stop: &Stop,
    ) -> Result<BTreeMap<Way, (Group, Thinned)>> {
        let packs: Vec<PackRecord> = catalog.index()?.packs().to_vec();
        let bytes = packs.iter().map(|pack| pack.len).sum();
        observer.event(Event::Phase { name: "reading tables of packs", bytes: Some(bytes) });
        let (mut levels, mut ways) = (BTreeMap::new(), BTreeMap::<Way, (Group, Thinned)>::new());
        for record in &packs {
            stop.check()?;
            let pack = catalog.reader().open(&record.id, record.len)?;
            for (number, frame) in pack.trailer.frames.iter().enumerate() {
                let key = (record.class, frame.level, frame.codec.code(), !frame.bases.is_empty());
                let level = levels
                    .entry(key)
                    .or_insert_with(|| Level::new(repo, record.class, frame.codec, frame.level, key.3));
                level.frames += 1;
                level.bytes_raw += u64::from(frame.raw_len);
                level.bytes_stored += u64::from(frame.stored_len);
                if frame.kind == Kind::Data {
                    self.bytes_unused += u64::from(frame.raw_len);
                    let (group, looked_at) = ways.entry(frame.way()).or_default();
                    group.add(frame.raw_len.into(), frame.stored_len.into());
                    looked_at.offer((record.id, number as u32));
                }
            }
            match record.class {
                Class::Data => self.bytes_data += record.len,
                Class::Metadata => self.bytes_metadata += record.len,
            }
            observer.event(Event::Advance { bytes: record.len, files: 0 });
        }
        self.bytes_unused = self.bytes_unused.saturating_sub(self.bytes_deduplicated);
        self.packs = packs.len() as u64;
        self.levels = levels.into_values().collect();
        Ok(ways)
    }

    /// What is in maps and takes no place, and what takes only one for all who need it.
    fn count_sparse(&mut self, all: &[Listed]) {
        let sparse =
            |listed: &Listed| listed.snapshot.stats.saved.as_ref().and_then(|saved| saved.bytes_sparse);
        self.saved.bytes_sparse = saturating_sum(all.iter().map(sparse));
        self.saved.bytes_duplicate = self
            .saved
            .bytes_sparse
            .map(|sparse| self.bytes_source.saturating_sub(sparse).saturating_sub(self.bytes_deduplicated));
    }

    fn count_folder(&mut self, repo: &Repo, catalog: &Catalog) -> Result<()> {
        let counts = catalog.index()?.counts()?;
        self.chunks = counts.chunks;
        self.bytes_index = counts.file_bytes;
        self.bytes_repository = folder_len(repo.root())?;
        self.ratio = self.bytes_source as f64 / self.bytes_repository.max(1) as f64;
        Ok(())
    }
}

impl Level {
    fn new(repo: &Repo, class: Class, codec: Codec, level: i8, delta: bool) -> Self {
        let tiers = Tier::ALL.into_iter().filter(|tier| repo.config().level(*tier) == level);
        Self {
            kind: match class {
                Class::Data => "data",
                Class::Metadata => "metadata",
            },
            codec: match codec {
                Codec::Raw => "raw",
                Codec::Zstd => "zstd",
            },
            level,
            tiers: tiers.map(Tier::name).collect(),
            delta,
            frames: 0,
            bytes_raw: 0,
            bytes_stored: 0,
        }
    }
}

/// A few of very many frames, evenly spread.
struct Thinned {
    taken: Vec<(PackId, u32)>,
    /// One of so many is taken.
    every: u64,
    met: u64,
}

impl Default for Thinned {
    fn default() -> Self {
        Self { taken: Vec::new(), every: 1, met: 0 }
    }
}

impl Thinned {
    fn offer(&mut self, frame: (PackId, u32)) {
        if self.met.is_multiple_of(self.every) {
            self.taken.push(frame);
        }
        self.met += 1;
        if self.taken.len() == LOOKED_AT_MAX {
            let mut number = 0;
            self.taken.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.every *= 2;
        }
    }
}

/// Decodes a few frames stored in each way, to see what they would take otherwise.
fn saved(
    repo: &Repo,
    catalog: &Catalog,
    ways: BTreeMap<Way, (Group, Thinned)>,
    stop: &Stop,
) -> Result<Saved> {
    let hot = repo.config().level(Tier::Hot);
    let mut frames = FrameReader::new(catalog)?;
    let mut groups = BTreeMap::new();
    for (way, (mut group, looked_at)) in ways {
        for (pack, number) in looked_at.taken {
            stop.check()?;
            match look_at(catalog, &mut frames, &pack, number, hot) {
                Ok(sample) => group.add_sample(sample),
                // It is for `check` to say what is damaged.
                Err(e) if e.is_damage() => {}
                Err(e) => return Err(e),
            }
        }
        groups.insert(way, group);
    }
    Ok(savings::add_up(&groups, hot))
}

fn look_at(
    catalog: &Catalog,
    frames: &mut FrameReader,
    pack: &PackId,
    number: u32,
    hot: i8,
) -> Result<Sample> {
    let pack = catalog.pack_named(pack)?;
    let frame = pack.frame(number)?;
    let raw = frames.frame(&pack, number)?;
    let lens: Vec<u32> = pack.trailer.slots_of(frame).iter().map(|slot| slot.len).collect();
    let stored = frame.stored_len.saturating_sub(SEAL_LEN as u32);
    savings::sample(hot, frame.way(), &raw, &lens, stored.into())
}

/// The length of all files below a folder; what goes away meanwhile does not count.
fn folder_len(folder: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(folder).at("list", folder)? {
        let entry = entry.at("list", folder)?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => total += folder_len(&entry.path())?,
            Ok(metadata) => total += metadata.len(),
            Err(_) => {}
        }
    }
    Ok(total)
}

/// Marks what one snapshot needs, and what more than one.
#[derive(Default)]
struct Marker {
    once: Marks,
    more: Marks,
    /// What was met in this snapshot, which may need something in several places.
    this: Marks,
    /// Length of the chunks that were met.
    bytes: u64,
}

impl Marker {
    /// Whether that is news about what is below.
    fn mark(&mut self, ordinal: u64) -> bool {
        if self.more.contains(ordinal) || !self.this.insert(ordinal) {
            return false;
        }
        if !self.once.insert(ordinal) {
            self.more.insert(ordinal);
        }
        true
    }
}

impl Visitor for Marker {
    fn node(&mut self, found: Found) -> Result<bool> {
        Ok(self.mark(found.ordinal))
    }

    fn chunks(&mut self, found: &[Found]) -> Result<()> {
        for chunk in found {
            let is_first = !self.once.contains(chunk.ordinal);
            self.mark(chunk.ordinal);
            self.bytes += if is_first { u64::from(chunk.len) } else { 0 };
        }
        Ok(())
    }
}

fn alone(catalog: &Catalog, listed: &Listed, more: &Marks, stop: &Stop) -> Result<Alone> {
    let mut counter =
        Counter { catalog, more, this: Marks::default(), nodes: Vec::new(), sum: Alone::default() };
    walk(catalog, listed, &mut counter, stop)?;
    counter.count_nodes()?;
    Ok(counter.sum)
}

/// Counts what a snapshot needs and no other one does.
struct Counter<'a> {
    catalog: &'a Catalog,
    more: &'a Marks,
    this: Marks,
    nodes: Vec<Found>,
    sum: Alone,
}

impl Counter<'_> {
    fn is_alone(&mut self, found: &Found) -> bool {
        !self.more.contains(found.ordinal) && self.this.insert(found.ordinal)
    }

    /// About what these take in packs: of a frame their share by length.
    fn stored(&self, found: &[Found]) -> Result<u64> {
        let mut stored = 0.0;
        for in_pack in found.chunk_by(|a, b| a.location.pack == b.location.pack) {
            let Some(first) = in_pack.first() else { continue };
            let pack = self.catalog.pack(first.location.pack)?;
            for chunk in in_pack {
                let slot = pack.slot(chunk.location.slot)?;
                let frame = pack.frame(slot.frame)?;
                let share = f64::from(slot.len) / f64::from(frame.raw_len.max(1));
                stored += f64::from(frame.stored_len) * share;
            }
        }
        Ok(stored.round() as u64)
    }

    fn count_nodes(&mut self) -> Result<()> {
        let mut nodes = std::mem::take(&mut self.nodes);
        nodes.sort_unstable();
        self.sum.bytes_stored += self.stored(&nodes)?;
        Ok(())
    }
}

impl Visitor for Counter<'_> {
    fn node(&mut self, found: Found) -> Result<bool> {
        if !self.is_alone(&found) {
            return Ok(false);
        }
        self.nodes.push(found);
        if self.nodes.len() >= BATCH {
            self.count_nodes()?;
        }
        Ok(true)
    }

    fn chunks(&mut self, found: &[Found]) -> Result<()> {
        let alone: Vec<Found> = found.iter().filter(|chunk| self.is_alone(chunk)).copied().collect();
        self.sum.bytes += alone.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>();
        self.sum.bytes_stored += self.stored(&alone)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_frames_of_many_are_spread_over_them() {
        let mut thinned = Thinned::default();
        (0..1000).for_each(|number| thinned.offer((PackId([0; 32]), number)));
        let taken: Vec<u32> = thinned.taken.iter().map(|(_, number)| *number).collect();
        assert_eq!(taken, (0..1000).step_by(128).collect::<Vec<_>>());
        let mut few = Thinned::default();
        (0..3).for_each(|number| few.offer((PackId([0; 32]), number)));
        assert_eq!(few.taken.len(), 3);
    }

    #[test]
    fn what_is_needed_twice_by_one_snapshot_is_still_its_own() {
        let mut marker = Marker::default();
        assert!(marker.mark(1));
        assert!(!marker.mark(1), "met before in this snapshot");
        assert!(!marker.more.contains(1));
        marker.this.clear();
        assert!(marker.mark(1), "a second snapshot has it: what is below is needed twice");
        assert!(marker.more.contains(1));
        marker.this.clear();
        assert!(!marker.mark(1), "nothing new about what is below");
    }
}
