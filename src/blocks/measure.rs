//! How sparse a file or a device is: what its content needs, and what it takes.
//!
//! Holes are not read; what is allocated is, since only its bytes tell whether it had to be.

use std::ffi::OsString;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{fsync, major, minor};

use super::feed::{Piece, feed};
use super::input::Input;
use super::plan::check_block;
use crate::chunker::stretches_by;
use crate::error::{IoContext, Result};
use crate::observe::{Event, Observer, Stop};
use crate::target::run_tool;

/// What the kernel counts a file's blocks and a device's sectors in.
const SECTOR: u64 = 512;
/// The unit of zeros on a device: no file system on it has smaller blocks worth saving.
const DEVICE_BLOCK: u64 = 4096;

/// What is known of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Blocks that are not all zero.
    Data,
    /// Allocated, and all zero.
    Zero,
    /// Nothing is allocated.
    Hole,
}

/// A range of one kind, as long as it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Where it is, in bytes.
    pub range: Range<u64>,
    /// What it is.
    pub kind: Kind,
}

/// Sizes in bytes, as sparsetest names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// The unit of zeros.
    pub block: u64,
    /// The length.
    pub logical: u64,
    /// Of the blocks that must be there.
    pub optimum: u64,
    /// What is taken of the disk; `None` where nobody tells.
    pub physical: Option<u64>,
}

impl Sizes {
    /// Physical by logical size, in percent.
    pub fn density(&self) -> Option<f64> {
        self.physical.map(|physical| percent(physical, self.logical))
    }

    /// Optimum by physical size, in percent; `None` where nothing is taken.
    pub fn efficiency(&self) -> Option<f64> {
        self.physical.filter(|physical| *physical > 0).map(|physical| percent(self.optimum, physical))
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole.max(1) as f64
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measured {
    /// The sizes.
    pub sizes: Sizes,
    /// Bytes in blocks that are not all zero.
    pub data: u64,
    /// Bytes that are allocated and zero.
    pub zero: u64,
    /// Bytes of holes.
    pub hole: u64,
    /// How many extents there are.
    pub extents: u64,
    /// Whether it was written to meanwhile.
    pub changed: bool,
}

/// Measures what was opened by [`Input::open_sized`], in blocks of `block` bytes, or of the length
/// that the file system allocates. `found` is told of each extent, from front to back.
pub fn measure(
    input: &Input,
    block: Option<u64>,
    observer: &dyn Observer,
    stop: &Stop,
    found: &mut dyn FnMut(&Extent),
) -> Result<Measured> {
    let meta = input.file().metadata().at("look at", input.path())?;
    let block = block.unwrap_or(if input.is_file() { meta.blksize() } else { DEVICE_BLOCK });
    check_block(block)?;
    let logical = input.known_len().unwrap_or(0);
    observer.event(Event::Phase { name: "measuring", bytes: Some(logical) });
    let mut tally = Tally { block, found, open: None, measured: Measured::default(), needed: 0 };
    feed(input, None, block as usize, stop, |piece| {
        let bytes = match &piece {
            Piece::Hole(range) => range.end - range.start,
            Piece::Data(_, bytes) => bytes.len() as u64,
        };
        match piece {
            Piece::Hole(range) => tally.add(range, Kind::Hole),
            Piece::Data(offset, bytes) => tally.data(offset, bytes),
        }
        observer.event(Event::Advance { bytes, files: 0 });
        Ok(())
    })?;
    tally.end();
    let sizes = Sizes { block, logical, optimum: tally.needed * block, physical: physical(input)? };
    Ok(Measured { sizes, changed: input.has_changed()?, ..tally.measured })
}

/// Bytes that it takes of the disk, as far as anybody tells.
fn physical(input: &Input) -> Result<Option<u64>> {
    // What is not written yet may have no blocks yet.
    fsync(input.file()).at("write out", input.path())?;
    let meta = input.file().metadata().at("look at", input.path())?;
    Ok(match input.is_file() {
        true => Some(meta.blocks() * SECTOR),
        false => on_device(meta.rdev(), input.known_len()),
    })
}

/// A thin volume takes what its pool has mapped for it, any other device its length.
fn on_device(device: u64, len: Option<u64>) -> Option<u64> {
    let (major, minor) = (major(device), minor(device));
    if !Path::new(&format!("/sys/dev/block/{major}:{minor}/dm")).is_dir() {
        return len;
    }
    let number = |number: u32| OsString::from(number.to_string());
    let words = ["status".into(), "-j".into(), number(major), "-m".into(), number(minor)];
    let output = run_tool("dmsetup", &words.each_ref().map(OsString::as_os_str))?;
    match mapped(&String::from_utf8_lossy(&output.stdout)) {
        Status::Thin(bytes) => Some(bytes),
        Status::Other => len,
        Status::Unknown => None,
    }
}

/// What `dmsetup status` says of a device.
#[derive(Debug, PartialEq, Eq)]
enum Status {
    /// A thin volume, of which so many bytes are mapped.
    Thin(u64),
    /// Something else, all of which is there.
    Other,
    /// It says nothing that is understood.
    Unknown,
}

/// Reads a line such as `0 262144 thin 138240 262143`: start, length, target, sectors mapped, the
/// highest of them (the kernel's Documentation/admin-guide/device-mapper/thin-provisioning.rst).
fn mapped(status: &str) -> Status {
    let mut words = status.split_whitespace().skip(2);
    match (words.next(), words.next()) {
        (Some("thin"), Some(sectors)) => sectors
            .parse::<u64>()
            .ok()
            .and_then(|sectors| sectors.checked_mul(SECTOR))
            .map_or(Status::Unknown, Status::Thin),
        (Some(_), _) => Status::Other,
        (None, _) => Status::Unknown,
    }
}

/// Puts pieces together.
struct Tally<'f> {
    block: u64,
    found: &'f mut dyn FnMut(&Extent),
    /// The extent that may go on.
    open: Option<Extent>,
    measured: Measured,
    /// Blocks that are not all zero.
    needed: u64,
}

impl Tally<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        for stretch in stretches_by(self.block as usize, bytes) {
            let range = at..offset + stretch.end as u64;
            at = range.end;
            match stretch.zero {
                true => self.add(range, Kind::Zero),
                false => {
                    self.needed += (range.end - range.start).div_ceil(self.block);
                    self.add(range, Kind::Data);
                }
            }
        }
    }

    fn add(&mut self, range: Range<u64>, kind: Kind) {
        let Measured { data, zero, hole, .. } = &mut self.measured;
        let bytes = match kind {
            Kind::Data => data,
            Kind::Zero => zero,
            Kind::Hole => hole,
        };
        *bytes += range.end - range.start;
        match &mut self.open {
            Some(open) if open.kind == kind => open.range.end = range.end,
            _ => {
                self.end();
                self.open = Some(Extent { range, kind });
            }
        }
    }

    fn end(&mut self) {
        if let Some(extent) = self.open.take() {
            self.measured.extents += 1;
            (self.found)(&extent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Silent;
    use crate::source::changes::Changes;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    fn measured(file: &Path, block: Option<u64>) -> (Measured, Vec<(u64, u64, Kind)>) {
        let mut extents = Vec::new();
        let input = Input::open_sized(file).unwrap();
        let measured = measure(&input, block, &Silent, &Stop::default(), &mut |extent| {
            extents.push((extent.range.start, extent.range.end, extent.kind));
        });
        (measured.unwrap(), extents)
    }

    #[test]
    fn data_zeros_and_holes_are_told_apart() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("f");
        let file = File::create(&path).unwrap();
        file.set_len(10 << 20).unwrap();
        file.write_all_at(&[7; 4096], 1 << 20).unwrap();
        file.write_all_at(&[0; 1 << 20], 4 << 20).unwrap();
        file.write_all_at(b"x", (10 << 20) - 1).unwrap();
        let (all, extents) = measured(&path, Some(4096));
        let mib = 1 << 20;
        assert_eq!(
            extents,
            [
                (0, mib, Kind::Hole),
                (mib, mib + 4096, Kind::Data),
                (mib + 4096, 4 * mib, Kind::Hole),
                (4 * mib, 5 * mib, Kind::Zero),
                (5 * mib, 10 * mib - 4096, Kind::Hole),
                (10 * mib - 4096, 10 * mib, Kind::Data),
            ]
        );
        assert_eq!((all.data, all.zero, all.hole), (8192, mib, 9 * mib - 8192));
        assert_eq!((all.extents, all.sizes.logical, all.sizes.optimum), (6, 10 * mib, 8192));
        assert_eq!(measured(&path, Some(512)).0.sizes.optimum, 4096 + 512);
        assert!(all.sizes.physical.unwrap() >= mib + 8192);
    }

    /// What is not allocated is a hole, whatever a device would show there, and what is allocated
    /// and zero is not.
    #[test]
    fn holes_are_what_a_layout_says() {
        const MIB: u64 = 1 << 20;
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, [vec![7; 2 << 20], vec![0; 2 << 20]].concat()).unwrap();
        let mut layout = Changes::none(4 * MIB);
        layout.add_hole(0..4 * MIB);
        layout.add(MIB..3 * MIB);
        let measured = |layout: Changes, block| {
            let (mut kinds, input) = (Vec::new(), Input::open_sized(&path).unwrap().with_layout(layout));
            measure(&input, Some(block), &Silent, &Stop::default(), &mut |extent| {
                kinds.push((extent.range.clone(), extent.kind));
            })
            .unwrap();
            kinds
        };
        let expected = [
            (0..MIB, Kind::Hole),
            (MIB..2 * MIB, Kind::Data),
            (2 * MIB..3 * MIB, Kind::Zero),
            (3 * MIB..4 * MIB, Kind::Hole),
        ];
        assert_eq!(measured(layout.clone(), 4096), expected);
        assert_eq!(measured(layout, MIB), expected);
        let of_another_length = measured(Changes::none(MIB), 4096);
        assert_eq!(of_another_length[0], (0..2 * MIB, Kind::Data));
    }

    #[test]
    fn shares_in_percent() {
        let sizes = Sizes { block: 512, logical: 1000, optimum: 100, physical: Some(200) };
        assert_eq!((sizes.density(), sizes.efficiency()), (Some(20.0), Some(50.0)));
        let nothing = Sizes { physical: Some(0), ..sizes };
        assert_eq!((nothing.density(), nothing.efficiency()), (Some(0.0), None));
        assert_eq!(Sizes { physical: None, ..sizes }.density(), None);
    }

    #[test]
    fn what_dmsetup_says() {
        assert_eq!(mapped("0 262144 thin 138240 262143\n"), Status::Thin(138240 * 512));
        assert_eq!(mapped("0 262144 thin 0 -\n"), Status::Thin(0));
        assert_eq!(mapped("0 262144 thin Fail\n"), Status::Unknown);
        assert_eq!(mapped("0 262144 linear\n0 8 linear"), Status::Other);
        assert_eq!(mapped(""), Status::Unknown);
    }
}
