//! Thin volumes: whole blocks of their pool that must be zero are unmapped, not written.
//!
//! The device-mapper makes no zeros there by itself, so that punching a hole fails, and written
//! zeros would take room of the pool. A discard of whole blocks takes their mapping away, and what
//! is not mapped reads as zeros. It is not relied on: what was discarded is read again.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use super::claim::run_tool;
use super::in_use::Number;

/// The smallest block that a pool can have.
const BLOCK_MIN: u64 = 64 << 10;

/// What is known of a thin volume that is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ThinVolume {
    /// Bytes of its pool's blocks.
    pub block: u64,
    /// Whether nothing at all was mapped when it was claimed.
    pub is_fresh: bool,
}

impl ThinVolume {
    /// If the device is one, and nothing else's blocks show where it has none. Only dmsetup can
    /// tell; without it, it is a device as any other.
    pub fn of(device: Number) -> Option<Self> {
        let ask = |what: &str| {
            let (major, minor) = (device.major.to_string(), device.minor.to_string());
            let output = run_tool("dmsetup", &[what, "-j", &major, "-m", &minor].map(AsRef::as_ref))?;
            String::from_utf8(output.stdout).ok()
        };
        if !is_thin(&ask("table")?) {
            return None;
        }
        let granularity =
            format!("/sys/dev/block/{}:{}/queue/discard_granularity", device.major, device.minor);
        let block = fs::read_to_string(granularity).ok()?.trim().parse().ok()?;
        let is_possible = block >= BLOCK_MIN && block % BLOCK_MIN == 0;
        is_possible.then_some(Self { block, is_fresh: mapped(&ask("status")?) == Some(0) })
    }

    /// The whole blocks in a range.
    pub fn whole_blocks(&self, offset: u64, len: u64) -> (u64, u64) {
        let end = offset + len;
        (offset.next_multiple_of(self.block), end - end % self.block)
    }
}

/// A table's words: start, length, `thin`, pool, number, and the device that shows where nothing
/// is mapped, if there is one.
fn is_thin(table: &str) -> bool {
    let words: Vec<&str> = table.split_whitespace().collect();
    words.len() == 5 && words.get(2) == Some(&"thin")
}

/// A status line's words: start, length, `thin`, mapped sectors, highest one.
fn mapped(status: &str) -> Option<u64> {
    status.split_whitespace().nth(3)?.parse().ok()
}

/// Asks that whole blocks be unmapped, by whichever way this kernel has.
pub(super) fn discard(fd: BorrowedFd, path: &Path, offset: u64, len: u64) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE | FallocateFlags::NO_HIDE_STALE;
    if fallocate(fd, flags, offset, len).is_err() {
        let (offset, len) = (offset.to_string(), len.to_string());
        let words = ["-f", "-o", &offset, "-l", &len].map(AsRef::as_ref);
        let _ = run_tool("blkdiscard", &[&words[..], &[path.as_os_str()]].concat());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thin_volumes_are_known_by_their_table() {
        assert!(is_thin("0 262144 thin 254:3 1\n"));
        assert!(!is_thin("0 262144 thin 254:3 1 254:9\n"), "an external origin");
        assert!(!is_thin("0 262144 linear 254:3 1\n"));
        assert!(!is_thin(""));
        assert_eq!(mapped("0 262144 thin 6144 16383\n"), Some(6144));
        assert_eq!(mapped("0 262144 thin 0 -\n"), Some(0));
        assert_eq!(mapped("0 262144 thin Fail\n"), None);
    }

    #[test]
    fn only_whole_blocks_are_unmapped() {
        let thin = ThinVolume { block: 65_536, is_fresh: true };
        assert_eq!(thin.whole_blocks(0, 65_536), (0, 65_536));
        assert_eq!(thin.whole_blocks(1, 3 * 65_536), (65_536, 3 * 65_536));
        let (start, end) = thin.whole_blocks(5, 100);
        assert!(start >= end);
    }
}
