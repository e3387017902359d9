//! A block device that is overwritten.
//!
//! A device that anything uses is refused, and so is one that is too small. Zeros are made by
//! what guarantees them: a punched or zeroed range, else written zeros. Discard is never used, but
//! for whole blocks of thin volumes (`thin`): a device may ignore it and keep the old bytes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom, fstat, fsync, ioctl_blksszget, seek};

use super::claim::claim;
use super::in_use::Number;
use super::thin::{ThinVolume, discard};
use super::{Content, Counters, Counts, Empty, bytes};
use crate::chunker::is_zero;
use crate::error::{Error, IoContext, Result};
use crate::text::format_size;

/// Below this, writing zeros costs less than a command to the device, of which each waits for the
/// device; and no thin pool has blocks smaller than this that could be given back.
const ZERO_COMMAND_MIN: u64 = 64 << 10;

/// A block device, claimed for writing.
pub struct DeviceTarget {
    fd: OwnedFd,
    path: PathBuf,
    /// Length of the device.
    device_len: u64,
    /// Length of what is written to it.
    len: u64,
    /// What the device addresses at least, in bytes.
    block: u64,
    compare: bool,
    zeroing: Zeroing,
    thin: Option<ThinVolume>,
    counters: Counters,
}

impl DeviceTarget {
    /// Claims the device for `need_len` bytes. Refused if it is in use or too small.
    pub fn open(path: &Path, need_len: u64) -> Result<Self> {
        let fd = claim(path)?;
        let device_len = seek(&fd, SeekFrom::End(0)).at("measure", path)?;
        if device_len < need_len {
            return Err(too_small(path, device_len, need_len));
        }
        // A wrong size would only cost the better methods of making zeros.
        let block = ioctl_blksszget(&fd).map_or(512, u64::from).max(512);
        Ok(Self {
            path: path.to_path_buf(),
            device_len,
            len: need_len,
            block,
            compare: false,
            zeroing: Zeroing::default(),
            thin: fstat(&fd).ok().and_then(|stat| ThinVolume::of(Number::from_raw(stat.st_rdev))),
            counters: Counters::default(),
            fd,
        })
    }

    /// Claims all of the device, however much will be written to it.
    pub fn open_whole(path: &Path) -> Result<Self> {
        let target = Self::open(path, 0)?;
        Ok(Self { len: target.device_len, ..target })
    }

    /// The same, but what is there is read, and only what differs is written.
    #[must_use]
    pub fn in_place(mut self) -> Self {
        self.compare = true;
        self
    }

    /// The device's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the device, which may be more than is needed.
    pub fn device_len(&self) -> u64 {
        self.device_len
    }

    /// Makes zero what lies behind the bytes that were asked for, up to the device's end.
    pub fn wipe_rest(&self) -> Result<()> {
        self.zero_range(self.len, self.device_len - self.len)
    }

    /// Makes what was written so far durable.
    pub fn sync(&self) -> Result<()> {
        fsync(&self.fd).at("write out", &self.path)
    }

    /// Makes all that was written durable.
    pub fn finish(self) -> Result<Counts> {
        self.sync()?;
        Ok(self.counters.get())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes behind the volume's end stay as they are, whatever a map says.
    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(Error::Internal("a range lies behind the end of the volume")),
        }
    }

    fn zero_range(&self, offset: u64, len: u64) -> Result<()> {
        if !self.compare {
            self.make_zero(offset, len)?;
            self.counters.add(Counts { zeroed: len, ..Counts::default() });
            return Ok(());
        }
        // Of thin volumes block by block, since only whole ones can be unmapped.
        let (blocks, end) = self.thin.map_or((offset, offset), |thin| thin.whole_blocks(offset, len));
        if blocks >= end {
            return self.zero_pieces(offset, len);
        }
        self.zero_pieces(offset, blocks - offset)?;
        let block = self.thin.map_or(end - blocks, |thin| thin.block);
        for at in (blocks..end).step_by(block as usize) {
            self.zero_differing(at, block)?;
        }
        self.zero_pieces(end, offset + len - end)
    }

    fn zero_pieces(&self, offset: u64, len: u64) -> Result<()> {
        for (at, piece) in bytes::pieces(offset, len) {
            self.zero_differing(at, piece as u64)?;
        }
        Ok(())
    }

    fn zero_differing(&self, offset: u64, len: u64) -> Result<()> {
        let counts = if self.reads_zero(offset, len)? {
            Counts { equal: len, ..Counts::default() }
        } else {
            self.make_zero(offset, len)?;
            Counts { zeroed: len, ..Counts::default() }
        };
        self.counters.add(counts);
        Ok(())
    }

    fn reads_zero(&self, offset: u64, len: u64) -> Result<bool> {
        let mut buffer = Vec::new();
        for (at, piece) in bytes::pieces(offset, len) {
            buffer.resize(piece, 0);
            bytes::read_exact_at(self.fd(), at, &mut buffer).at("read", &self.path)?;
            if !is_zero(&buffer) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn make_zero(&self, offset: u64, len: u64) -> Result<()> {
        let Some(thin) = self.thin else { return self.overwrite_with_zeros(offset, len) };
        let (inner, inner_end) = thin.whole_blocks(offset, len);
        if inner >= inner_end {
            return self.overwrite_with_zeros(offset, len);
        }
        self.overwrite_with_zeros(offset, inner - offset)?;
        // Each range is dealt with once, so that nothing has come into a fresh one.
        if !thin.is_fresh {
            self.unmap(inner, inner_end - inner)?;
        }
        self.overwrite_with_zeros(inner_end, offset + len - inner_end)
    }

    /// What was not unmapped is written.
    fn unmap(&self, offset: u64, len: u64) -> Result<()> {
        discard(self.fd(), &self.path, offset, len);
        for (at, piece) in bytes::pieces(offset, len) {
            if !self.reads_zero(at, piece as u64)? {
                self.overwrite_with_zeros(at, piece as u64)?;
            }
        }
        Ok(())
    }

    /// The whole blocks by the best method that works here, the edges by writing.
    fn overwrite_with_zeros(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset + len;
        let (inner, inner_end) = (offset.next_multiple_of(self.block), end - end % self.block);
        if inner >= inner_end || inner_end - inner < ZERO_COMMAND_MIN {
            return self.write_zeros(offset, len);
        }
        self.write_zeros(offset, inner - offset)?;
        self.zero_blocks(inner, inner_end - inner)?;
        self.write_zeros(inner_end, end - inner_end)
    }

    fn zero_blocks(&self, offset: u64, len: u64) -> Result<()> {
        while let Some((method, flags)) = self.zeroing.method() {
            let done = bytes::try_fallocate(self.fd(), flags, offset, len).at("zero", &self.path)?;
            if done && (self.zeroing.is_proven(method) || self.proves_zero(method, offset, len)?) {
                return Ok(());
            }
            self.zeroing.give_up(method);
        }
        self.write_zeros(offset, len)
    }

    /// Reads a sample of what a method made zero for the first time. The kernel has dropped its
    /// own copy, so this comes from the device.
    fn proves_zero(&self, method: u8, offset: u64, len: u64) -> Result<bool> {
        let last = offset + len - self.block;
        let proven = self.reads_zero(offset, self.block)? && self.reads_zero(last, self.block)?;
        if proven {
            self.zeroing.prove(method);
        }
        Ok(proven)
    }

    fn write_zeros(&self, offset: u64, len: u64) -> Result<()> {
        bytes::write_zeros(self.fd(), offset, len).at("write zeros to", &self.path)
    }
}

impl Content for DeviceTarget {
    fn size(&self) -> u64 {
        self.len
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_range(offset, bytes.len() as u64)?;
        let counts = if self.compare {
            bytes::write_differing(self.fd(), offset, bytes).at("write to", &self.path)?
        } else {
            bytes::write_all_at(self.fd(), offset, bytes).at("write to", &self.path)?;
            Counts { written: bytes.len() as u64, ..Counts::default() }
        };
        self.counters.add(counts);
        Ok(())
    }

    /// A device knows no holes: both kinds become real zeros.
    fn zero_at(&self, offset: u64, len: u64, _: Empty) -> Result<()> {
        self.check_range(offset, len)?;
        self.zero_range(offset, len)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        bytes::read_exact_at(self.fd(), offset, buffer).at("read", &self.path)
    }

    fn counts(&self) -> Counts {
        self.counters.get()
    }
}

impl AsFd for DeviceTarget {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

/// Which way of making zeros works on this device, best first, as threads find out.
#[derive(Default)]
struct Zeroing {
    /// How many methods were given up.
    given_up: AtomicU8,
    /// A bit for each method that was seen to work.
    proven: AtomicU8,
}

impl Zeroing {
    /// The method to try, and its number; `None` if only writing is left.
    fn method(&self) -> Option<(u8, FallocateFlags)> {
        match self.given_up.load(Ordering::Relaxed) {
            // Gives the space back where the device can do so and still read zeros.
            0 => Some((0, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE)),
            1 => Some((1, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE)),
            _ => None,
        }
    }

    fn is_proven(&self, method: u8) -> bool {
        self.proven.load(Ordering::Relaxed) & 1 << method != 0
    }

    fn prove(&self, method: u8) {
        self.proven.fetch_or(1 << method, Ordering::Relaxed);
    }

    fn give_up(&self, method: u8) {
        self.given_up.fetch_max(method + 1, Ordering::Relaxed);
    }
}

fn too_small(path: &Path, has: u64, needs: u64) -> Error {
    Error::Refused(format!(
        "{} is too small: it has {} ({has} bytes), {} ({needs} bytes) are needed; enlarge it, or name another \
         device",
        path.display(),
        format_size(has),
        format_size(needs)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::claim::describe;
    use super::super::testing::{Loop, Mount, run};
    use super::*;

    const MIB: usize = 1 << 20;

    fn noise(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8 | 1).collect()
    }

    /// Starts with the method of this number, as if those before it had failed.
    fn open_from(device: &Loop, len: u64, method: u8) -> DeviceTarget {
        let target = DeviceTarget::open(&device.path, len).unwrap();
        target.zeroing.given_up.store(method, Ordering::Relaxed);
        target
    }

    fn refusal(result: Result<DeviceTarget>) -> String {
        match result {
            Err(Error::Refused(why)) => why,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("not refused"),
        }
    }

    /// One primary partition from the first MiB on.
    fn with_partition_table(len: usize, sector: usize) -> Vec<u8> {
        let mut image = noise(len);
        image[..512].fill(0);
        let (start, count) = ((MIB / sector) as u32, ((len - MIB) / sector) as u32);
        image[446 + 4] = 0x83;
        image[446 + 8..446 + 12].copy_from_slice(&start.to_le_bytes());
        image[446 + 12..446 + 16].copy_from_slice(&count.to_le_bytes());
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        image
    }

    #[test]
    fn zeros_are_exact_by_every_method() {
        const RANGES: [(usize, usize); 8] = [
            (1, 1),
            (4095, 2),
            (10_000, 65_536),
            (100_001, 200_003),
            (400_000, 0),
            (MIB - 1, MIB + 2),
            (3 * MIB, 65_536),
            (4 * MIB - 70_001, 70_001),
        ];
        for (sector, method) in [(512, 0), (512, 1), (512, 2), (4096, 0), (4096, 1), (4096, 2)] {
            let mut expected = noise(4 * MIB);
            let Some(device) = Loop::new(&expected, sector) else { return };
            let target = open_from(&device, 4 * MIB as u64, method);
            assert_eq!(target.block, u64::from(sector));
            for (offset, len) in RANGES {
                target.zero_at(offset as u64, len as u64, Empty::Hole).unwrap();
                expected[offset..offset + len].fill(0);
            }
            assert_eq!(target.zeroing.given_up.load(Ordering::Relaxed), method, "sectors of {sector}");
            let mut back = vec![1; 4 * MIB];
            target.read_at(0, &mut back).unwrap();
            assert!(back == expected, "sectors of {sector}, method {method}");
            assert_eq!(target.finish().unwrap().zeroed, RANGES.iter().map(|r| r.1 as u64).sum::<u64>());
            assert!(device.content() == expected, "sectors of {sector}, method {method}, image");
        }
    }

    #[test]
    fn threads_write_and_zero_side_by_side() {
        let len = 8 * MIB;
        let Some(device) = Loop::new(&noise(len), 512) else { return };
        let target = DeviceTarget::open(&device.path, len as u64).unwrap();
        // Odd ranges, so that neighbours of different threads share blocks and pages.
        let cuts: Vec<usize> = (0..=64).map(|i| (i * 131_071).min(len)).collect();
        let mut expected = noise(len);
        for (index, range) in cuts.windows(2).enumerate() {
            expected[range[0]..range[1]].fill((index % 3) as u8);
        }
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (target, cuts) = (&target, &cuts);
                scope.spawn(move || {
                    for (index, range) in cuts.windows(2).enumerate().filter(|(i, _)| i % 4 == thread) {
                        let (at, len) = (range[0] as u64, range[1] - range[0]);
                        match index % 3 {
                            0 => target.zero_at(at, len as u64, Empty::Zero).unwrap(),
                            fill => target.write_at(at, &vec![fill as u8; len]).unwrap(),
                        }
                    }
                });
            }
        });
        target.finish().unwrap();
        assert!(device.content() == expected);
    }

    #[test]
    fn in_place_writes_only_what_differs() {
        let mut expected = noise(2 * MIB);
        expected[MIB..].fill(0);
        let Some(device) = Loop::new(&expected, 4096) else { return };
        let target = DeviceTarget::open(&device.path, 2 * MIB as u64).unwrap().in_place();
        target.write_at(0, &expected[..MIB]).unwrap();
        target.zero_at(MIB as u64, MIB as u64, Empty::Zero).unwrap();
        assert_eq!(target.counts(), Counts { equal: 2 * MIB as u64, ..Counts::default() });
        expected[5000] = 0;
        target.write_at(4999, &expected[4999..6000]).unwrap();
        target.zero_at(10, 20, Empty::Zero).unwrap();
        expected[10..30].fill(0);
        let counts = target.finish().unwrap();
        assert_eq!((counts.written, counts.zeroed), (1001, 20));
        assert!(device.content() == expected);
    }

    #[test]
    fn the_rest_stays_unless_wiped() {
        let mut expected = noise(MIB);
        let Some(device) = Loop::new(&expected, 512) else { return };
        let target = DeviceTarget::open(&device.path, 700_001).unwrap();
        assert_eq!((target.size(), target.device_len()), (700_001, MIB as u64));
        assert!(target.write_at(700_000, b"ab").is_err());
        assert!(target.zero_at(0, 700_002, Empty::Zero).is_err());
        assert!(target.zero_at(u64::MAX, 2, Empty::Zero).is_err());
        target.write_at(700_000, b"a").unwrap();
        expected[700_000] = b'a';
        fsync(&target.fd).unwrap();
        assert!(device.content() == expected);
        target.wipe_rest().unwrap();
        expected[700_001..].fill(0);
        target.finish().unwrap();
        assert!(device.content() == expected);
    }

    #[test]
    fn too_small_is_refused_with_both_sizes() {
        let Some(device) = Loop::new(&noise(MIB), 512) else { return };
        let why = refusal(DeviceTarget::open(&device.path, MIB as u64 + 1));
        assert!(why.contains("(1048576 bytes)") && why.contains("(1048577 bytes)"), "{why}");
        assert!(DeviceTarget::open(&device.path, MIB as u64).is_ok());
    }

    #[test]
    fn a_claimed_device_is_refused() {
        let Some(device) = Loop::new(&noise(MIB), 512) else { return };
        let first = DeviceTarget::open(&device.path, 0).unwrap();
        let why = refusal(DeviceTarget::open(&device.path, 0));
        assert!(why.contains("in use: another program"), "{why}");
        drop(first);
        DeviceTarget::open(&device.path, 0).unwrap();
    }

    #[test]
    fn a_mounted_device_is_refused_and_described() {
        let Some(device) = Loop::new(&vec![0; 8 * MIB], 4096) else { return };
        if !run("mkfs.ext4", &["-q", "-F", device.path.to_str().unwrap()]) {
            return;
        }
        let seen = describe(&device.path).unwrap();
        assert!(seen.contains("8.0 MiB (8388608 bytes)"), "{seen}");
        assert!(seen.contains("ext4") || seen.contains("not installed"), "{seen}");
        let point = tempfile::tempdir().unwrap();
        let Some(mount) = Mount::new(&[device.path.to_str().unwrap()], point.path()) else { return };
        let why = refusal(DeviceTarget::open(&device.path, 0));
        assert!(why.contains(&format!("mounted at {}", point.path().display())), "{why}");
        drop(mount);
        DeviceTarget::open(&device.path, 0).unwrap();
    }

    #[test]
    fn a_mounted_partition_keeps_its_disk() {
        for sector in [512, 4096] {
            let Some(device) = Loop::new(&with_partition_table(9 * MIB, sector), sector as u32) else {
                return;
            };
            let partition = device.partition(1);
            if !partition.exists() || !run("mkfs.ext4", &["-q", "-F", partition.to_str().unwrap()]) {
                return;
            }
            let whole = DeviceTarget::open(&device.path, 0).unwrap();
            assert!(refusal(DeviceTarget::open(&partition, 0)).contains("in use"));
            drop(whole);
            let point = tempfile::tempdir().unwrap();
            let Some(mount) = Mount::new(&[partition.to_str().unwrap()], point.path()) else { return };
            for path in [&device.path, &partition] {
                assert!(refusal(DeviceTarget::open(path, 0)).contains("mounted at"));
            }
            drop(mount);
            let target = DeviceTarget::open(&partition, 8 * MIB as u64).unwrap();
            assert_eq!((target.block, target.device_len()), (sector as u64, 8 * MIB as u64));
            target.zero_at(0, 8 * MIB as u64, Empty::Hole).unwrap();
            target.finish().unwrap();
            let (kept, zeroed) = (&device.content()[..MIB], &device.content()[MIB..]);
            assert!(*kept == with_partition_table(9 * MIB, sector)[..MIB] && is_zero(zeroed));
        }
    }

    #[test]
    fn what_is_no_block_device_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(refusal(DeviceTarget::open(file.path(), 0)).contains("no block device"));
        assert!(refusal(DeviceTarget::open(Path::new("/dev/null"), 0)).contains("no block device"));
        assert!(DeviceTarget::open(Path::new("/dev/no-such-device"), 0).is_err());
    }

    #[test]
    fn methods_are_given_up_in_order() {
        let zeroing = Zeroing::default();
        assert!(!zeroing.is_proven(0));
        zeroing.prove(0);
        assert!(zeroing.is_proven(0) && !zeroing.is_proven(1));
        zeroing.give_up(1);
        zeroing.give_up(0);
        assert_eq!(zeroing.method(), None);
    }
}
