//! The first look at files of one length: short ones are read whole, of others the ends.

use super::compare::Member;
use super::look::{Batch, Part, Reading};
use super::record::{Digest, FileRecord, file_key};
use super::sorter::{Sorted, Sorter};
use crate::error::Result;

/// Files up to this length are read whole at once: what a second visit costs is more than what
/// reading less would save.
pub const WHOLE_MAX: u64 = 64 << 10;
/// What is read at each end of longer ones.
pub const END_LEN: u64 = 16 << 10;
/// What is known of a file's bytes before any was read.
const NOTHING: Digest = [0; 32];

/// What came of the first look.
pub struct Heads {
    /// Files whose length others have too, by length and digest.
    pub files: Sorted,
    /// What was counted.
    pub counts: Counts,
}

/// What is known once lengths are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files whose length others have too.
    pub collisions: u64,
    /// The most files of one length.
    pub longest_set: u64,
    /// Names of files beyond the first of each.
    pub hard_links: u64,
}

/// Reads all files whose length is not theirs alone; `unique` is called with the others.
pub fn read(
    found: Sorted,
    reading: Reading,
    files: Sorter,
    unique: &mut dyn FnMut(Member) -> Result<()>,
) -> Result<Heads> {
    let mut counts = Counts::default();
    let mut batch = Batch::new(reading, Part::Head, files);
    let mut records = found.records()?;
    // Names of the last file, while no other of its length was met.
    let mut alone: Vec<Vec<u8>> = Vec::new();
    let mut before: Vec<u8> = Vec::new();
    let mut set = 0u64;
    while let Some(record) = records.next()? {
        let is_link = file_key(record) == file_key(&before) && !before.is_empty();
        let same_len = !before.is_empty() && record.get(..8) == before.get(..8);
        counts.hard_links += u64::from(is_link);
        match (is_link, same_len) {
            (true, _) if set > 1 => batch.add(&FileRecord::of_found(record)?, &NOTHING)?,
            (true, _) => alone.push(record.to_vec()),
            (false, true) => {
                for name in alone.drain(..) {
                    batch.add(&FileRecord::of_found(&name)?, &NOTHING)?;
                }
                counts.collisions += if set == 1 { 2 } else { 1 };
                set += 1;
                batch.add(&FileRecord::of_found(record)?, &NOTHING)?;
            }
            (false, false) => {
                alone_in_length(&mut alone, unique)?;
                alone.push(record.to_vec());
                set = 1;
            }
        }
        counts.longest_set = counts.longest_set.max(set);
        before.clear();
        before.extend_from_slice(record);
    }
    alone_in_length(&mut alone, unique)?;
    // Where one batch holds all, this halves what is in memory while it is read.
    drop(records);
    drop(found);
    Ok(Heads { files: batch.finish()?, counts })
}

fn alone_in_length(names: &mut Vec<Vec<u8>>, unique: &mut dyn FnMut(Member) -> Result<()>) -> Result<()> {
    let mut file: Option<Member> = None;
    for record in names.drain(..) {
        Member::join(&mut file, &FileRecord::of_found(&record)?);
    }
    file.map_or(Ok(()), unique)
}
