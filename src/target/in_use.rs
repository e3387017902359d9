//! Whether a block device is used by something that O_EXCL may not tell of, or tells without
//! saying what: mounts, swap, and devices on top of it (RAID, LVM, encryption).
//!
//! All of it is read from /proc and /sys, so that it works in a rescue system without udev.

use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, major, minor, statx};

/// A block device's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Number {
    pub(super) fn from_raw(raw: u64) -> Self {
        Self { major: major(raw), minor: minor(raw) }
    }

    /// From the form that /sys and mountinfo have: `8:1`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// The block device at a path, if there is one.
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        meta.file_type().is_block_device().then(|| Self::from_raw(meta.rdev()))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A line of mountinfo.
struct Mount {
    id: u64,
    number: Number,
    point: PathBuf,
    /// What was mounted, if that is a device.
    from: Option<Number>,
    is_writable: bool,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&c| c == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let number = Number::parse(std::str::from_utf8(fields.nth(1)?).ok()?)?;
        let point = unescaped(fields.nth(1)?);
        let mut rest = fields.skip_while(|field| *field != b"-").skip(2);
        let source = rest.next().map(unescaped);
        let from = source.filter(|path| path.starts_with("/dev")).and_then(|path| Number::of(&path));
        let is_writable = rest.next().and_then(|options| options.split(|&c| c == b',').next()) == Some(b"rw");
        Some(Self { id, number, point, from, is_writable })
    }

    fn is_of(&self, devices: &[Number]) -> bool {
        devices.contains(&self.number) || self.from.is_some_and(|from| devices.contains(&from))
    }
}

/// What the kernel says about its block devices.
pub(super) struct Kernel {
    /// /sys/dev/block, or a likeness of it in tests.
    sys: PathBuf,
    mountinfo: Vec<u8>,
    swaps: Vec<u8>,
}

impl Kernel {
    /// As it is now. What cannot be read is taken as empty: O_EXCL still stands.
    pub(super) fn read() -> Self {
        Self {
            sys: PathBuf::from("/sys/dev/block"),
            mountinfo: fs::read("/proc/self/mountinfo").unwrap_or_default(),
            swaps: fs::read("/proc/swaps").unwrap_or_default(),
        }
    }

    /// What uses the device or a partition of it, as a part of a sentence.
    pub(super) fn user_of(&self, device: Number) -> Option<String> {
        let numbers = self.with_partitions(device);
        self.mount(&numbers)
            .map(|at| format!("it is mounted at {}", at.display()))
            .or_else(|| self.swap(&numbers).map(|path| format!("{} is used as swap", path.display())))
            .or_else(|| self.holder(&numbers).map(|name| format!("it is a part of {name}")))
    }

    /// Whether the device-mapper made this device.
    pub(super) fn is_mapped(&self, device: Number) -> bool {
        self.dir(device).join("dm").is_dir()
    }

    fn dir(&self, device: Number) -> PathBuf {
        self.sys.join(device.to_string())
    }

    fn with_partitions(&self, device: Number) -> Vec<Number> {
        let inside = fs::read_dir(self.dir(device)).into_iter().flatten().flatten();
        let partitions = inside.map(|entry| entry.path()).filter(|path| path.join("partition").exists());
        let numbers =
            partitions.filter_map(|path| Number::parse(&fs::read_to_string(path.join("dev")).ok()?));
        std::iter::once(device).chain(numbers).collect()
    }

    fn holder(&self, devices: &[Number]) -> Option<String> {
        devices.iter().find_map(|&device| {
            let first = fs::read_dir(self.dir(device).join("holders")).ok()?.flatten().next()?;
            Some(holder_name(&first.path()))
        })
    }

    /// Where one of `devices` is mounted. Some file systems (btrfs) have a device number of
    /// their own, so what was mounted counts as well.
    fn mount(&self, devices: &[Number]) -> Option<PathBuf> {
        self.mounts().find(|mount| mount.is_of(devices)).map(|mount| mount.point)
    }

    /// The device that the file system of a path was mounted from, if that is one.
    pub(super) fn mounted_from(&self, path: &Path) -> Option<Number> {
        let found = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
        let is_told = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID);
        self.mounts().find(|mount| is_told && mount.id == found.stx_mnt_id)?.from
    }

    fn mounts(&self) -> impl Iterator<Item = Mount> {
        self.mountinfo.split(|&c| c == b'\n').filter_map(Mount::parse)
    }

    fn swap(&self, devices: &[Number]) -> Option<PathBuf> {
        self.swaps.split(|&c| c == b'\n').skip(1).find_map(|line| {
            let path = unescaped(line.split(|c| c.is_ascii_whitespace()).next()?);
            devices.contains(&Number::of(&path)?).then_some(path)
        })
    }
}

/// Whether a block device is used as swap.
pub fn is_swap(device: &Path) -> bool {
    Number::of(device).is_some_and(|number| Kernel::read().swap(&[number]).is_some())
}

/// Whether the file system on a block device is mounted, and written to.
pub fn is_written_by_mount(device: &Path) -> bool {
    let is_one = |number| Kernel::read().mounts().any(|mount| mount.is_writable && mount.is_of(&[number]));
    Number::of(device).is_some_and(is_one)
}

/// The name that people know a holder by: `vg-root (dm-3)`, `md0`.
fn holder_name(holder: &Path) -> String {
    let kernel_name = holder.file_name().unwrap_or_default().to_string_lossy();
    match fs::read_to_string(holder.join("dm/name")) {
        Ok(name) => format!("{} ({kernel_name})", name.trim()),
        Err(_) => kernel_name.into_owned(),
    }
}

/// A path as /proc writes it, with `\040` for a space.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| byte == b'\\').and_then(octal_byte);
        out.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

fn octal_byte(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Loop;
    use super::*;

    fn number(major: u32, minor: u32) -> Number {
        Number { major, minor }
    }

    /// A disk 8:0 with a partition 8:1, and a device 9:0 without a place in /sys.
    fn likeness(dir: &Path) -> Kernel {
        let disk = dir.join("8:0");
        fs::create_dir_all(disk.join("sda1/holders")).unwrap();
        fs::create_dir_all(disk.join("holders")).unwrap();
        fs::write(disk.join("sda1/partition"), "1\n").unwrap();
        fs::write(disk.join("sda1/dev"), "8:1\n").unwrap();
        std::os::unix::fs::symlink(disk.join("sda1"), dir.join("8:1")).unwrap();
        Kernel { sys: dir.to_path_buf(), mountinfo: Vec::new(), swaps: Vec::new() }
    }

    #[test]
    fn a_mounted_partition_counts_for_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut kernel = likeness(dir.path());
        assert_eq!(kernel.user_of(number(8, 0)), None);
        kernel.mountinfo = b"22 27 0:21 / /proc rw - proc proc rw\n\
            30 27 8:1 / /srv/a\\040b rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
            .to_vec();
        assert_eq!(kernel.user_of(number(8, 0)).unwrap(), "it is mounted at /srv/a b");
        assert_eq!(kernel.user_of(number(8, 1)).unwrap(), "it is mounted at /srv/a b");
        assert_eq!(kernel.user_of(number(9, 0)), None);
    }

    #[test]
    fn a_holder_of_a_partition_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = likeness(dir.path());
        let holder = dir.path().join("8:1/holders/dm-3");
        fs::create_dir_all(holder.join("dm")).unwrap();
        assert_eq!(kernel.user_of(number(8, 0)).unwrap(), "it is a part of dm-3");
        fs::write(holder.join("dm/name"), "vg-root\n").unwrap();
        assert_eq!(kernel.user_of(number(8, 1)).unwrap(), "it is a part of vg-root (dm-3)");
    }

    #[test]
    fn swap_and_mounts_are_known_by_their_device() {
        let Some(device) = Loop::new(&[0; 65536], 512) else { return };
        let dir = tempfile::tempdir().unwrap();
        let mut kernel = likeness(dir.path());
        let (path, number) = (device.path.display(), Number::of(&device.path).unwrap());
        kernel.swaps = format!("Filename Type Size\n/swapfile file 1\n{path} partition 2\n").into();
        assert_eq!(kernel.user_of(number).unwrap(), format!("{path} is used as swap"));
        assert_eq!(kernel.user_of(self::number(8, 0)), None);
        // As btrfs does it: a number that no block device has.
        kernel.mountinfo = format!("30 27 0:99 / /srv rw - btrfs {path} rw\n").into();
        assert_eq!(kernel.user_of(number).unwrap(), "it is mounted at /srv");
        assert_eq!(kernel.user_of(self::number(8, 0)), None);
    }

    #[test]
    fn mapped_devices_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = likeness(dir.path());
        assert!(!kernel.is_mapped(number(8, 0)));
        fs::create_dir_all(dir.path().join("252:0/dm")).unwrap();
        assert!(kernel.is_mapped(number(252, 0)));
    }

    #[test]
    fn escapes_of_proc() {
        assert_eq!(unescaped(b"/a\\040b\\134c\\"), Path::new("/a b\\c\\"));
        assert_eq!(unescaped(b"\\9\\777"), Path::new("\\9\\777"));
    }
}
