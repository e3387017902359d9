//! What files and devices lie on, and whether two paths hold the same bytes in part: a disk and its
//! partition, a mapped device and what it lies on, a loop device and its file. Copying one onto the
//! other would eat its own tail.
//!
//! Read from /sys and /proc. Files that share blocks (reflinks) are strangers: each is written alone.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::in_use::{Kernel, Number};

/// What /sys counts a device's length in.
const SECTOR: u64 = 512;
/// No stack of devices is higher than this.
const LAYERS_MAX: usize = 256;

/// What holds bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    File { device: u64, inode: u64 },
    Device(Number),
}

impl Holder {
    fn of(meta: &fs::Metadata) -> Self {
        match meta.file_type().is_block_device() {
            true => Holder::Device(Number::from_raw(meta.rdev())),
            false => Holder::File { device: meta.dev(), inode: meta.ino() },
        }
    }

    /// What it lies on, directly.
    fn below(self, sys: &Path) -> Vec<Self> {
        match self {
            Holder::File { device, .. } => vec![Holder::Device(Number::from_raw(device))],
            Holder::Device(number) => below_device(&sys.join(number.to_string())),
        }
    }
}

fn below_device(dir: &Path) -> Vec<Holder> {
    let slaves = fs::read_dir(dir.join("slaves")).into_iter().flatten().flatten();
    let mut below: Vec<Holder> = slaves.filter_map(|entry| device_in(&entry.path())).collect();
    if dir.join("partition").exists() {
        // The link leads to …/DISK/PARTITION.
        below.extend(fs::canonicalize(dir).ok().and_then(|real| device_in(real.parent()?)));
    }
    if let Some(backing) = read(dir, "loop/backing_file") {
        below.extend(holders_of(Path::new(&backing)));
    }
    below
}

/// What is at a path, and what its file system was mounted from: btrfs has numbers of its own for
/// its files, and may have several devices.
fn holders_of(path: &Path) -> Vec<Holder> {
    let mut holders: Vec<Holder> = fs::metadata(path).iter().map(Holder::of).collect();
    if let Some(from) = Kernel::read().mounted_from(path) {
        holders.extend(members(from).map(Holder::Device));
    }
    holders
}

/// The devices of the file system that a device is of, this one first.
fn members(device: Number) -> impl Iterator<Item = Number> {
    let systems = fs::read_dir("/sys/fs/btrfs").into_iter().flatten().flatten();
    let devices = |system: fs::DirEntry| {
        let inside = fs::read_dir(system.path().join("devices")).into_iter().flatten().flatten();
        inside.filter_map(|entry| number_in(&entry.path())).collect::<Vec<_>>()
    };
    let of_it = systems.map(devices).find(|devices| devices.contains(&device));
    std::iter::once(device).chain(of_it.unwrap_or_default())
}

/// The block devices that a path lies on, directly or not; none if it is not there.
pub fn devices_below(path: &Path) -> Vec<(u32, u32)> {
    let below = stack(holders_of(path), Path::new("/sys/dev/block"));
    let number = |holder| match holder {
        Holder::Device(Number { major, minor }) => Some((major, minor)),
        Holder::File { .. } => None,
    };
    below.into_iter().filter_map(number).collect()
}

fn device_in(dir: &Path) -> Option<Holder> {
    number_in(dir).map(Holder::Device)
}

fn number_in(dir: &Path) -> Option<Number> {
    Number::parse(&fs::read_to_string(dir.join("dev")).ok()?)
}

/// All that these lie on, themselves first.
fn stack(mut found: Vec<Holder>, sys: &Path) -> Vec<Holder> {
    let mut at = 0;
    while let Some(&next) = found.get(at)
        && at < LAYERS_MAX
    {
        for below in next.below(sys) {
            if !found.contains(&below) {
                found.push(below);
            }
        }
        at += 1;
    }
    found
}

/// The file that a loop device shows, and which part of it.
fn shown(holder: Holder, sys: &Path) -> Option<(Holder, Range<u64>)> {
    let Holder::Device(number) = holder else { return None };
    let dir = sys.join(number.to_string());
    let file = fs::metadata(read(&dir, "loop/backing_file")?).ok()?;
    let start = read(&dir, "loop/offset")?.parse::<u64>().ok()?;
    let sectors = read(&dir, "size")?.parse::<u64>().ok()?;
    Some((Holder::of(&file), start..start.saturating_add(sectors.saturating_mul(SECTOR))))
}

fn read(dir: &Path, name: &str) -> Option<String> {
    fs::read_to_string(dir.join(name)).ok().map(|text| text.trim_end_matches('\n').to_string())
}

/// Whether both show some of the same bytes of one file.
fn show_the_same(a: Holder, b: Holder, sys: &Path) -> bool {
    match (shown(a, sys), shown(b, sys)) {
        (Some((a, of_a)), Some((b, of_b))) => a == b && of_a.start < of_b.end && of_b.start < of_a.end,
        _ => false,
    }
}

/// Why the things that were looked at must not be copied onto each other, as the end of a sentence;
/// `None` if they have nothing in common. What is neither a file nor a block device holds nothing.
pub fn overlap(a: &fs::Metadata, b: &fs::Metadata) -> Option<&'static str> {
    let holds = |meta: &fs::Metadata| meta.is_file() || meta.file_type().is_block_device();
    if !holds(a) || !holds(b) {
        return None;
    }
    let (a, b) = (Holder::of(a), Holder::of(b));
    let sys = Path::new("/sys/dev/block");
    if a == b {
        Some("they are the same")
    } else if stack(vec![a], sys).contains(&b) {
        Some("the first lies on the second")
    } else if stack(vec![b], sys).contains(&a) {
        Some("the second lies on the first")
    } else if show_the_same(a, b, sys) {
        Some("both are of the same file")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Loop, run};
    use super::*;

    fn between(a: &Path, b: &Path) -> Option<&'static str> {
        overlap(&fs::metadata(a).unwrap(), &fs::metadata(b).unwrap())
    }

    #[test]
    fn names_of_one_file_and_strangers() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, link] = ["a", "b", "link"].map(|name| dir.path().join(name));
        fs::write(&a, b"x").unwrap();
        fs::write(&b, b"x").unwrap();
        fs::hard_link(&a, &link).unwrap();
        assert_eq!(between(&a, &b), None);
        assert_eq!(between(&a, &link), Some("they are the same"));
        assert_eq!(between(Path::new("/dev/zero"), Path::new("/dev/zero")), None);
    }

    #[test]
    fn a_loop_device_lies_on_its_file() {
        let Some(device) = Loop::new(&[0; 65536], 512) else { return };
        let image = device.image_path();
        assert_eq!(between(&device.path, image), Some("the first lies on the second"));
        assert_eq!(between(image, &device.path), Some("the second lies on the first"));
        assert_eq!(between(&device.path, &device.path), Some("they are the same"));
    }

    #[test]
    fn two_loop_devices_on_one_file() {
        let Some(device) = Loop::new(&[0; 65536], 512) else { return };
        let Some(twin) = device.twin(0, 65536) else { return };
        assert_eq!(between(&device.path, &twin.path), Some("both are of the same file"));
        // Parts of an image.
        let [Some(first), Some(second)] = [0, 32768].map(|start| device.twin(start, 32768)) else { return };
        assert_eq!(between(&first.path, &second.path), None);
        assert!(between(&second.path, &twin.path).is_some());
    }

    #[test]
    fn a_partition_and_its_disk() {
        let mut image = vec![0; 4 << 20];
        // One primary partition of type 0x83 over the sectors from 2048 on.
        image[446 + 4] = 0x83;
        image[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
        image[446 + 12..446 + 16].copy_from_slice(&4096u32.to_le_bytes());
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        let Some(device) = Loop::new(&image, 512) else { return };
        let partition = device.partition(1);
        if !partition.exists() && !run("partprobe", &[device.path.to_str().unwrap()]) {
            return;
        }
        if partition.exists() {
            assert!(between(&device.path, &partition).is_some());
            assert!(between(&partition, &device.path).is_some());
        }
    }
}
