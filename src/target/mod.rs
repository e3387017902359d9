//! Where things are written when they are restored or copied: devices, files, directories and
//! their metadata.
//!
//! Nothing outside of the target is ever written, whatever names a repository holds and whatever
//! symlinks lie in the way: all is done relative to open directories, by plain names, and never
//! through a symlink. What to write, and in which order, is decided elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Result;

mod bytes;
mod claim;
mod device;
mod file;
mod in_use;
mod kind;
mod metadata;
mod nodes;
mod overlap;
mod owners;
mod place;
mod remove;
mod shortfalls;
#[cfg(test)]
mod testing;
mod thin;
mod tree;

pub use claim::{describe, run_tool};
pub use device::DeviceTarget;
pub use file::{FileOptions, FileTarget, write_whole};
pub use in_use::{is_swap, is_written_by_mount};
pub use kind::{TargetKind, check_target_path};
pub use metadata::Metadata;
pub use nodes::make_hard_link;
pub use overlap::{devices_below, overlap};
pub use owners::OwnerMap;
pub use place::is_temporary_name;
pub use shortfalls::{Missed, Shortfall, Shortfalls};
pub use tree::{Found, Identity, Kind, Names, TargetDir};

/// Content that is written in any order, from any thread, each range once.
pub trait Content: Sync {
    /// Length of what is being written, in bytes.
    fn size(&self) -> u64;

    /// Puts bytes in their place; in place, only those that differ.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Makes a range read as zeros.
    fn zero_at(&self, offset: u64, len: u64, empty: Empty) -> Result<()>;

    /// Fills `buffer` with what is there now.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// What was done so far.
    fn counts(&self) -> Counts;
}

/// The two ways in which a range can have no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Empty {
    /// Zeros that were allocated.
    Zero,
    /// Nothing was allocated.
    Hole,
}

/// What becomes of zeros and holes in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sparse {
    /// Both become holes.
    #[default]
    Always,
    /// Zeros are allocated, holes are holes.
    Exact,
    /// Both are allocated.
    Never,
}

impl Sparse {
    fn allocates(self, empty: Empty) -> bool {
        match self {
            Sparse::Always => false,
            Sparse::Exact => empty == Empty::Zero,
            Sparse::Never => true,
        }
    }
}

/// What becomes of something that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// It stays, and the new thing is refused.
    #[default]
    Refuse,
    /// The new thing is made beside it and takes its name when it is complete.
    Replace,
    /// A file keeps its inode and only what differs is written; other things are replaced if
    /// they differ.
    InPlace,
}

/// What was done to a content, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Written as data.
    pub written: u64,
    /// Found to be right already (in place only).
    pub equal: u64,
    /// Made zero, by whatever means, or left as the hole that it was.
    pub zeroed: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.written += more.written;
        self.equal += more.equal;
        self.zeroed += more.zeroed;
    }
}

/// [`Counts`] that threads share.
#[derive(Default)]
struct Counters {
    written: AtomicU64,
    equal: AtomicU64,
    zeroed: AtomicU64,
}

impl Counters {
    fn add(&self, counts: Counts) {
        self.written.fetch_add(counts.written, Ordering::Relaxed);
        self.equal.fetch_add(counts.equal, Ordering::Relaxed);
        self.zeroed.fetch_add(counts.zeroed, Ordering::Relaxed);
    }

    fn get(&self) -> Counts {
        Counts {
            written: self.written.load(Ordering::Relaxed),
            equal: self.equal.load(Ordering::Relaxed),
            zeroed: self.zeroed.load(Ordering::Relaxed),
        }
    }
}
