//! Which files share their bytes on the disk already.

use std::collections::HashMap;
use std::fs::File;

use fiemap::{Fiemap, FiemapExtentFlags};
use rustix::fs::fstatfs;

use super::record::Digest;
use crate::id::Hasher;
use crate::source::extents::{Span, Spans};

/// File systems on which extents may be shared, by the numbers that the kernel's `magic.h` and
/// their sources give them: btrfs, XFS, OCFS2, bcachefs. On ZFS nobody can ask.
const CAN_SHARE: [u32; 4] = [0x9123_683e, 0x5846_5342, 0x7461_636f, 0xca45_1a4e];

/// Remembers which devices' file systems can share extents.
#[derive(Debug, Default)]
pub struct Sharing(HashMap<u64, bool>);

impl Sharing {
    /// Whether files of this device may share extents, and must be asked.
    pub fn is_possible(&mut self, device: u64, open: impl FnOnce() -> Option<File>) -> bool {
        *self.0.entry(device).or_insert_with(|| {
            let magic = open().and_then(|file| fstatfs(file).ok()).map(|found| found.f_type as u32);
            magic.is_some_and(|magic| CAN_SHARE.contains(&magic))
        })
    }
}

/// A value that is the same for files of one device whose bytes all lie in the same places;
/// `None` if any byte is the file's own, or nobody knows.
pub fn places(file: &File) -> Option<Digest> {
    let mut hasher = Hasher::plain();
    let mut is_empty = true;
    for extent in Fiemap::new(file) {
        let extent = extent.ok()?;
        let unknown =
            FiemapExtentFlags::UNKNOWN | FiemapExtentFlags::DELALLOC | FiemapExtentFlags::DATA_INLINE;
        if !extent.fe_flags.contains(FiemapExtentFlags::SHARED) || extent.fe_flags.intersects(unknown) {
            return None;
        }
        for number in [extent.fe_logical, extent.fe_physical, extent.fe_length] {
            hasher.update(&number.to_be_bytes());
        }
        is_empty = false;
    }
    (!is_empty).then(|| hasher.finish())
}

/// How many bytes of a file of this length are data, not holes.
pub fn data_len(file: &File, len: u64) -> u64 {
    Spans::new(file, len, true)
        .map(|span| match span {
            Span::Data(range) => range.end - range.start,
            Span::Hole(_) => 0,
        })
        .sum()
}
