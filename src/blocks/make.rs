//! A sparse file with a pattern, to see how a file system treats it.

use std::fs;
use std::path::Path;

use super::measure::Sizes;
use super::output::{checked_end, open_file, target_kind};
use super::plan::check_block;
use crate::error::{Error, IoContext, Result};
use crate::id::expand;
use crate::observe::{Event, Observer, Stop};
use crate::target::{Content, FileTarget, TargetKind};

/// sparsetest's block, length and distance, where none are given.
const BLOCK_DEFAULT: u64 = 512;
const LEN_DEFAULT: u64 = 1 << 30;
const EVERY_DEFAULT: u64 = 1 << 20;

/// The order of the writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// From front to back.
    #[default]
    Ascending,
    /// From back to front.
    Descending,
    /// Without any; each block once.
    Random,
}

impl Order {
    /// Its name, as sparsetest prints it.
    pub fn name(self) -> &'static str {
        match self {
            Order::Ascending => "ascending",
            Order::Descending => "descending",
            Order::Random => "random",
        }
    }
}

/// What to write. Sizes are in bytes; those that are not given are sparsetest's, and more if the
/// others demand it.
#[derive(Debug, Clone, Copy, Default)]
pub struct MakeOptions {
    /// How much is written at once.
    pub block: Option<u64>,
    /// The file's length.
    pub len: Option<u64>,
    /// The distance from one write to the next.
    pub every: Option<u64>,
    /// The order of the writes.
    pub order: Order,
    /// The length is set before the first write, not after the last.
    pub len_first: bool,
    /// Write over what is there.
    pub overwrite: bool,
}

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// The sizes; the optimum is what was written.
    pub sizes: Sizes,
    /// How many writes there were.
    pub writes: u64,
    /// The distance from one to the next.
    pub every: u64,
}

/// Writes the pattern to a new file, or over an old one.
pub fn make(path: &Path, options: &MakeOptions, observer: &dyn Observer, stop: &Stop) -> Result<Made> {
    let pattern = Pattern::new(options)?;
    let file = open(path, &pattern, options)?;
    let bytes = pattern.count * pattern.block;
    observer.event(Event::Phase { name: "writing", bytes: Some(bytes) });
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(std::io::Error::other).at("read", Path::new("/dev/urandom"))?;
    let mut buffer = vec![0; pattern.block as usize];
    for number in 0..pattern.count {
        stop.check()?;
        key[..8].copy_from_slice(&number.to_le_bytes());
        expand("varv sparse make 2026-11", &key, &mut buffer);
        file.write_at(pattern.offset(number), &buffer)?;
        observer.event(Event::Advance { bytes: pattern.block, files: 0 });
    }
    if !options.len_first {
        file.set_len(pattern.len)?;
    }
    // What is not written yet may have no blocks yet.
    file.sync()?;
    let physical = Some(file.allocated()?);
    file.finish()?;
    let sizes = Sizes { block: pattern.block, logical: pattern.len, optimum: bytes, physical };
    Ok(Made { sizes, writes: pattern.count, every: pattern.every })
}

fn open(path: &Path, pattern: &Pattern, options: &MakeOptions) -> Result<FileTarget> {
    let exists = match target_kind(path)? {
        TargetKind::Missing => false,
        TargetKind::File if fs::metadata(path).at("look at", path)?.is_file() => true,
        _ => return Err(Error::Refused(format!("{} is no file: only a file can be sparse", path.display()))),
    };
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if exists && !options.overwrite {
        match fs::metadata(path).at("look at", path)?.len() {
            0 => {}
            len => {
                return Err(Error::Refused(format!(
                    "{} exists and has {len} bytes: use --overwrite always to write over it",
                    path.display()
                )));
            }
        }
    }
    let file = open_file(path, exists, None)?;
    file.set_len(0)?;
    if options.len_first {
        file.set_len(pattern.len)?;
    }
    Ok(file.unseen())
}

/// Where blocks are written.
#[derive(Debug, PartialEq, Eq)]
struct Pattern {
    block: u64,
    len: u64,
    every: u64,
    order: Order,
    count: u64,
    /// In random order, how many blocks lie from one write to the next: no divisor of the count in
    /// common with it, so that each has its turn.
    step: u64,
}

impl Pattern {
    fn new(options: &MakeOptions) -> Result<Self> {
        let block = options.block.unwrap_or(BLOCK_DEFAULT);
        check_block(block)?;
        let len = options.len.unwrap_or(LEN_DEFAULT.max(block * 4));
        let every = options.every.unwrap_or(EVERY_DEFAULT.max(block * 2));
        checked_end(len, every)?;
        for (name, size) in [("size", len), ("distance", every)] {
            if size < block {
                return Err(Error::Refused(format!(
                    "a {name} of {size} bytes is less than the block of {block}"
                )));
            }
        }
        let count = (len - block) / every + 1;
        Ok(Self { block, len, every, order: options.order, count, step: step(count) })
    }

    /// Where the write of this number goes.
    fn offset(&self, number: u64) -> u64 {
        let index = match self.order {
            Order::Ascending => number,
            Order::Descending => self.count - 1 - number,
            Order::Random => (u128::from(number) * u128::from(self.step) % u128::from(self.count)) as u64,
        };
        index * self.every
    }
}

/// About the golden part of `count`, which leaves no two neighbours near each other in time.
fn step(count: u64) -> u64 {
    let golden = (count as f64 * 0.618_033_988_749_895) as u64;
    (golden..count).find(|step| gcd(*step, count) == 1).unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pattern(options: MakeOptions) -> Pattern {
        Pattern::new(&options).unwrap()
    }

    #[test]
    fn what_is_not_given_is_as_in_sparsetest() {
        let plain = pattern(MakeOptions::default());
        assert_eq!((plain.block, plain.len, plain.every, plain.count), (512, 1 << 30, 1 << 20, 1024));
        let long = pattern(MakeOptions { block: Some(1 << 20), ..MakeOptions::default() });
        assert_eq!((long.len, long.every), (1 << 30, 2 << 20));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let plain = MakeOptions::default();
        for options in [
            MakeOptions { block: Some(0), ..plain },
            MakeOptions { block: Some(1 << 30), ..plain },
            MakeOptions { len: Some(511), ..plain },
            MakeOptions { every: Some(511), ..plain },
            MakeOptions { every: Some(u64::MAX), ..plain },
            MakeOptions { len: Some(u64::MAX), ..plain },
        ] {
            assert!(Pattern::new(&options).is_err(), "{options:?}");
        }
    }

    proptest! {
        #[test]
        fn every_block_has_its_turn(len in 512u64..200_000, every in 512u64..5000) {
            let mut seen: Vec<BTreeSet<u64>> = Vec::new();
            for order in [Order::Ascending, Order::Descending, Order::Random] {
                let options = MakeOptions { len: Some(len), every: Some(every), order, ..MakeOptions::default() };
                let pattern = pattern(options);
                let offsets: Vec<u64> = (0..pattern.count).map(|number| pattern.offset(number)).collect();
                seen.push(offsets.iter().copied().collect());
                prop_assert_eq!(seen.last().unwrap().len(), offsets.len());
            }
            // As sparsetest goes: while the block still fits.
            let wanted: BTreeSet<u64> = (0..).map(|i| i * every).take_while(|at| at + 512 <= len).collect();
            prop_assert!(seen.iter().all(|seen| *seen == wanted));
        }
    }
}
