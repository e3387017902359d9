//! Partly equal files: contents with common chunks.
//!
//! Records of chunks are sorted by id, so that the contents of each chunk come together. What the
//! shorter of two contents has in common chunks, each as often as it is there, is added up for
//! pairs; pairs with enough of it join contents to groups.
//!
//! ```text
//! chunk    20 id · u64 content · u64 offset · u32 length
//! pair     u32 content, u32 content · u64 bytes
//! ```

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use super::super::found::{File, Name};
use super::super::record::take;
use super::super::sorter::{Sorter, Temporary};
use super::Options;
use super::content::Key;
use super::ranges::{self, Occurrence, Range, Ranges};
use crate::error::{Error, Result};
use crate::format::map::{Extent, Map};
use crate::id::{ChunkId, checksum};
use crate::observe::Stop;
use crate::repo::catalog::Catalog;
use crate::repo::nodes::Extents;

/// Contents with fewer bytes in chunks are not looked at: they have few chunks.
pub const DATA_MIN: u64 = 64 << 10;
/// Contents that are looked at; beyond it the shortest are left out.
const CONTENTS_MAX: usize = 1 << 20;
/// Of a chunk that more contents have, only neighbours by digest count as pairs: else a chunk
/// that everybody has would make as many pairs as there are contents, squared.
const POPULAR: usize = 16;
/// Sums of pairs that are held before they are sorted.
const SUMS_MAX: usize = 1 << 16;
/// Groups, and files of each, that are told.
const GROUPS_MAX: usize = 1000;
const FILES_MAX: usize = 200;
/// Paths of each file that are told; beyond so many in all, one of each.
const NAMES_MAX: usize = 20;
const NAMES_TOLD_MAX: usize = 1 << 18;

/// Contents of which each has enough in common with another one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Partly {
    /// Bytes in the chunks of each, added up.
    pub bytes: u64,
    /// What is saved where each common chunk is kept once.
    pub bytes_shared: u64,
    /// How many contents.
    pub count: u64,
    /// Those with the most in common; at most 200.
    pub files: Vec<PartlyFile>,
}

/// A content in such a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartlyFile {
    /// Its length.
    pub len: u64,
    /// How much of it is in chunks.
    pub data: u64,
    /// How much of it is in chunks that others of the group have too.
    pub shared: u64,
    /// In how many places it is.
    pub places: u64,
    /// Where; at most 20.
    pub names: Vec<Name>,
}

/// A content.
#[derive(Debug, Clone, Copy)]
struct Content {
    data: u64,
    /// Names the path that it was first met at: two contents of one path are versions.
    path: u64,
}

/// Collects the chunks of contents.
pub struct Chunks {
    contents: HashMap<u64, Content>,
    data_min: u64,
    sorter: Sorter,
    temporary: Temporary,
}

/// The part of a digest that names a content here.
fn short(digest: &[u8]) -> u64 {
    digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

impl Chunks {
    /// None yet.
    pub fn new(temporary: &Temporary) -> Self {
        let (contents, sorter) = (HashMap::new(), Sorter::new(temporary));
        Self { contents, data_min: DATA_MIN, sorter, temporary: temporary.clone() }
    }

    /// Adds a content, met at `path`, unless it was met before.
    pub fn add(&mut self, catalog: &Catalog, key: &Key, map: &Map, path: &[u8]) -> Result<()> {
        let (content, data) = (short(&key.digest), map.data_len());
        if data < self.data_min || self.contents.contains_key(&content) {
            return Ok(());
        }
        self.contents.insert(content, Content { data, path: short(&checksum::<8>(&[path])) });
        let mut record = Vec::with_capacity(40);
        for extent in Extents::of(catalog, map) {
            let (offset, extent) = extent?;
            let Extent::Data { id, len } = extent else { continue };
            record.clear();
            record.extend_from_slice(&id.0);
            record.extend_from_slice(&content.to_be_bytes());
            record.extend_from_slice(&offset.to_be_bytes());
            record.extend_from_slice(&len.to_be_bytes());
            self.sorter.push(&record)?;
        }
        while self.contents.len() > CONTENTS_MAX {
            self.data_min = self.data_min.saturating_mul(2);
            let data_min = self.data_min;
            self.contents.retain(|_, content| content.data >= data_min);
        }
        Ok(())
    }
}

/// A chunk in a content.
struct Chunk {
    id: ChunkId,
    content: u64,
    offset: u64,
    len: u32,
}

fn read_chunk(record: &[u8]) -> Result<Chunk> {
    let read = |mut rest: &[u8]| {
        let rest = &mut rest;
        let id = ChunkId(take(rest)?);
        let content = u64::from_be_bytes(take(rest)?);
        let offset = u64::from_be_bytes(take(rest)?);
        Some(Chunk { id, content, offset, len: u32::from_be_bytes(take(rest)?) })
    };
    read(record).ok_or(Error::Internal("a sorted record is too short"))
}

/// What was found, while the paths are still missing.
#[derive(Default)]
pub struct Found {
    groups: Vec<Partly>,
    /// For contents, their group and place in it.
    places: HashMap<u64, (usize, usize)>,
    ranges: Vec<ranges::Unnamed>,
    /// The first name of contents that ranges are in.
    named: HashMap<u64, Option<Name>>,
    /// Names of all files so far.
    told: usize,
}

/// Finds groups and ranges.
pub fn find(chunks: Chunks, options: &Options, stop: &Stop) -> Result<Found> {
    let Chunks { contents, sorter, temporary, .. } = chunks;
    let mut ids: Vec<u64> = contents.keys().copied().collect();
    ids.sort_unstable();
    let content = |number: usize| ids.get(number).and_then(|id| contents.get(id)).copied();
    let sorted = sorter.finish()?;
    let for_each_run = |each: &mut dyn FnMut(&[Occurrence]) -> Result<()>| -> Result<()> {
        let mut run: Vec<Occurrence> = Vec::new();
        let mut before = None;
        let mut records = sorted.records()?;
        while let Some(record) = records.next()? {
            let chunk = read_chunk(record)?;
            let Ok(number) = ids.binary_search(&chunk.content) else { continue };
            if before.replace(chunk.id) != Some(chunk.id) {
                if run.len() > 1 {
                    stop.check()?;
                    each(&run)?;
                }
                run.clear();
            }
            run.push(Occurrence { content: number as u32, offset: chunk.offset, len: chunk.len });
        }
        if run.len() > 1 { each(&run) } else { Ok(()) }
    };
    let mut pairs = Pairs { sums: HashMap::new(), sorter: Sorter::new(&temporary) };
    let mut long = Ranges::new(&temporary);
    for_each_run(&mut |run| {
        let len = run.first().map_or(0, |first| u64::from(first.len));
        let distinct: Vec<&[Occurrence]> = run.chunk_by(|a, b| a.content == b.content).collect();
        for (a, b) in pairs_of(distinct.len()) {
            let (Some(a), Some(b)) = (distinct.get(a), distinct.get(b)) else { continue };
            let (Some(first), Some(other)) = (a.first(), b.first()) else { continue };
            let (Some(x), Some(y)) = (content(first.content as usize), content(other.content as usize))
            else {
                continue;
            };
            let of_shorter = match x.data.cmp(&y.data) {
                Ordering::Less => a.len(),
                Ordering::Equal => a.len().max(b.len()),
                Ordering::Greater => b.len(),
            };
            pairs.add(first.content, other.content, len * of_shorter as u64)?;
            if x.data.min(y.data) >= ranges::DATA_MIN && x.path != y.path {
                long.add(a, b)?;
            }
        }
        Ok(())
    })?;
    let mut joined = Joined::new(ids.len());
    let share_min = options.share_min.unwrap_or(100);
    pairs.finish(&mut |a, b, bytes| {
        let shorter = content(a as usize).zip(content(b as usize)).map_or(0, |(a, b)| a.data.min(b.data));
        if u128::from(bytes) * 100 >= u128::from(shorter) * u128::from(share_min) {
            joined.join(a, b);
        }
    })?;
    let mut own = vec![0u64; ids.len()];
    let mut saved: BTreeMap<u32, u64> = BTreeMap::new();
    for_each_run(&mut |run| {
        let mut met: Vec<(u32, u32)> = run.iter().map(|at| (joined.top(at.content), at.content)).collect();
        met.sort_unstable();
        let len = run.first().map_or(0, |first| u64::from(first.len));
        // A chunk that one content alone has, however often, is not in common.
        let is_common = |class: &&[(u32, u32)]| class.first() != class.last();
        for class in met.chunk_by(|a, b| a.0 == b.0).filter(is_common) {
            let Some((top, _)) = class.first() else { continue };
            *saved.entry(*top).or_default() += len * (class.len() as u64 - 1);
            for (_, content) in class {
                if let Some(own) = own.get_mut(*content as usize) {
                    *own += len;
                }
            }
        }
        Ok(())
    })?;
    let mut found = Found { ranges: long.finish()?, ..Found::default() };
    for range in &mut found.ranges {
        for end in &mut range.ends {
            end.content = ids.get(end.content as usize).copied().unwrap_or_default();
            found.named.insert(end.content, None);
        }
    }
    found
        .choose(&mut joined, &saved, &own, &ids, &|number| content(number).map_or(0, |content| content.data));
    Ok(found)
}

/// Which of so many contents of a chunk are looked at in pairs.
fn pairs_of(count: usize) -> Box<dyn Iterator<Item = (usize, usize)>> {
    match count {
        0..=POPULAR => Box::new((0..count).flat_map(move |a| (a + 1..count).map(move |b| (a, b)))),
        _ => Box::new((1..count).map(|b| (b - 1, b))),
    }
}

/// Adds up common bytes of pairs.
struct Pairs {
    sums: HashMap<(u32, u32), u64>,
    sorter: Sorter,
}

impl Pairs {
    fn add(&mut self, a: u32, b: u32, bytes: u64) -> Result<()> {
        *self.sums.entry((a, b)).or_default() += bytes;
        if self.sums.len() >= SUMS_MAX { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        for ((a, b), bytes) in self.sums.drain() {
            let mut record = [0; 16];
            record[..4].copy_from_slice(&a.to_be_bytes());
            record[4..8].copy_from_slice(&b.to_be_bytes());
            record[8..].copy_from_slice(&bytes.to_be_bytes());
            self.sorter.push(&record)?;
        }
        Ok(())
    }

    fn finish(mut self, each: &mut dyn FnMut(u32, u32, u64)) -> Result<()> {
        self.flush()?;
        let sorted = self.sorter.finish()?;
        let mut records = sorted.records()?;
        let mut sum: Option<(u32, u32, u64)> = None;
        while let Some(mut record) = records.next()? {
            let rest = &mut record;
            let (Some(a), Some(b), Some(bytes)) = (take(rest), take(rest), take(rest)) else { continue };
            let next = (u32::from_be_bytes(a), u32::from_be_bytes(b), u64::from_be_bytes(bytes));
            match &mut sum {
                Some((a, b, bytes)) if (*a, *b) == (next.0, next.1) => *bytes += next.2,
                other => {
                    if let Some((a, b, bytes)) = other.replace(next) {
                        each(a, b, bytes);
                    }
                }
            }
        }
        if let Some((a, b, bytes)) = sum {
            each(a, b, bytes);
        }
        Ok(())
    }
}

/// Contents that were joined to groups (a forest with path halving).
struct Joined(Vec<u32>);

impl Joined {
    fn new(count: usize) -> Self {
        Self((0..count as u32).collect())
    }

    fn above(&self, at: u32) -> u32 {
        self.0.get(at as usize).copied().unwrap_or(at)
    }

    fn top(&mut self, mut at: u32) -> u32 {
        while self.above(at) != at {
            let next = self.above(self.above(at));
            if let Some(slot) = self.0.get_mut(at as usize) {
                *slot = next;
            }
            at = next;
        }
        at
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.top(a), self.top(b));
        if let Some(slot) = self.0.get_mut(a as usize) {
            *slot = b;
        }
    }
}

impl Found {
    fn choose(
        &mut self,
        joined: &mut Joined,
        saved: &BTreeMap<u32, u64>,
        own: &[u64],
        ids: &[u64],
        data: &dyn Fn(usize) -> u64,
    ) {
        let mut tops: Vec<(u64, u32)> = saved.iter().map(|(top, bytes)| (*bytes, *top)).collect();
        tops.sort_unstable_by_key(|(bytes, top)| (std::cmp::Reverse(*bytes), *top));
        tops.truncate(GROUPS_MAX);
        let group_of: HashMap<u32, usize> = tops.iter().enumerate().map(|(i, (_, top))| (*top, i)).collect();
        let mut members: Vec<Vec<(u64, usize)>> = vec![Vec::new(); tops.len()];
        for (number, own) in own.iter().enumerate() {
            if let Some(group) = group_of.get(&joined.top(number as u32)).and_then(|at| members.get_mut(*at))
            {
                group.push((*own, number));
            }
        }
        for ((bytes_shared, _), mut files) in tops.into_iter().zip(members) {
            let bytes = files.iter().map(|(_, number)| data(*number)).sum();
            let count = files.len() as u64;
            files.sort_unstable_by_key(|(own, number)| (std::cmp::Reverse(*own), *number));
            files.truncate(FILES_MAX);
            for (place, (_, number)) in files.iter().enumerate() {
                self.places.insert(ids.get(*number).copied().unwrap_or_default(), (self.groups.len(), place));
            }
            let file = |(shared, number): &(u64, usize)| PartlyFile {
                shared: *shared,
                data: data(*number),
                ..PartlyFile::default()
            };
            self.groups.push(Partly { bytes, bytes_shared, count, files: files.iter().map(file).collect() });
        }
    }

    /// Takes the names of a file of a content; those of all its files one after the other.
    pub fn name(&mut self, key: &Key, file: &File) {
        let content = short(&key.digest);
        if let Some(slot) = self.named.get_mut(&content)
            && slot.is_none()
        {
            *slot = file.names.first().cloned();
        }
        let Some((group, place)) = self.places.get(&content) else { return };
        if let Some(told) = self.groups.get_mut(*group).and_then(|group| group.files.get_mut(*place)) {
            told.len = key.len;
            let most = if self.told < NAMES_TOLD_MAX { NAMES_MAX } else { 1 };
            let room = most.saturating_sub(told.names.len()).min(file.names.len());
            told.names.extend(file.names.iter().take(room).cloned());
            self.told += room;
            told.places += file.names.len() as u64;
        }
    }

    /// All with their names.
    pub fn finish(self) -> (Vec<Partly>, Vec<Range>) {
        let Self { groups, ranges, named, .. } = self;
        let name = |content: &u64| named.get(content).cloned().flatten();
        let ranges = ranges.into_iter().filter_map(|range| range.named(&name)).collect();
        (groups, ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_that_all_have_makes_few_pairs() {
        assert_eq!(pairs_of(1).count(), 0);
        assert_eq!(pairs_of(POPULAR).count(), POPULAR * (POPULAR - 1) / 2);
        assert_eq!(pairs_of(1000).count(), 999);
    }

    #[test]
    fn sums_are_added_up_across_flushes() {
        let mut pairs =
            Pairs { sums: HashMap::new(), sorter: Sorter::new(&Temporary::new(std::env::temp_dir())) };
        for round in 0..3u64 {
            for b in 1..=SUMS_MAX as u32 {
                pairs.add(0, b, round).unwrap();
            }
        }
        let mut count = 0;
        pairs
            .finish(&mut |a, _, bytes| {
                assert_eq!((a, bytes), (0, 3));
                count += 1;
            })
            .unwrap();
        assert_eq!(count, SUMS_MAX);
    }

    #[test]
    fn groups_are_what_pairs_join() {
        let mut joined = Joined::new(6);
        joined.join(0, 1);
        joined.join(4, 5);
        joined.join(1, 4);
        let tops: Vec<u32> = (0..6).map(|at| joined.top(at)).collect();
        assert!(tops[0] == tops[1] && tops[0] == tops[4] && tops[0] == tops[5]);
        assert_eq!((tops[2], tops[3]), (2, 3));
    }
}
