//! `varv sparse`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::copy::{OverwriteArg, blocks};
use super::error::Exit;
use super::global::Global;
use super::lvm::layout_of;
use super::signals::STOP;
use super::{Outcome, output};
use crate::blocks::input::Input;
use crate::blocks::make::{self, Made, MakeOptions, Order};
use crate::blocks::measure::{Extent, Kind, Measured, Sizes, measure};
use crate::error::Result;
use crate::text::escape;

/// See how sparse files and devices are.
#[derive(Debug, Args)]
pub struct Sparse {
    #[command(subcommand)]
    command: SparseCommand,
}

#[derive(Debug, Subcommand)]
enum SparseCommand {
    Report(Report),
    Make(Make),
}

impl Sparse {
    /// Does what the subcommand says.
    pub fn run(self, global: &Global) -> Outcome {
        match self.command {
            SparseCommand::Report(report) => report.run(global),
            SparseCommand::Make(make) => make.run(global),
        }
    }
}

/// Measure what files and devices hold, and what they take.
///
/// The optimum is what the blocks that are not zero need; a thin volume takes what its pool has
/// mapped for it, and has holes where that is nothing. Holes are not read, all else is.
#[derive(Debug, Args)]
struct Report {
    /// Files, block devices
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The unit in which zeros are looked for: a number of blocks of 512 bytes, or with a unit; the
    /// file system's own if it is not given
    #[arg(short, long, value_name = "SIZE", value_parser = blocks)]
    blocksize: Option<u64>,
    /// List the extents, as qemu-img map does
    #[arg(long)]
    map: bool,
}

impl Report {
    fn run(self, global: &Global) -> Outcome {
        let mut exit = Exit::Done;
        let mut separator = "[";
        for path in &self.files {
            if global.json {
                output::write(separator.as_bytes());
                separator = ",\n";
            }
            let measured = match global.json {
                true => self.json(path, global)?,
                false => self.text(path, global)?,
            };
            if measured.changed {
                output::notice(&format!("{} was written to while it was read", path.display()));
                exit = Exit::Incomplete;
            }
        }
        if global.json {
            output::line("]");
        }
        Ok(exit)
    }

    fn measure(&self, path: &Path, global: &Global, found: &mut dyn FnMut(&Extent)) -> Result<Measured> {
        let observer = global.observer();
        let input = Input::open_sized(path)?.ask_layout(layout_of, &observer, &STOP)?;
        let measured = measure(&input, self.blocksize, &observer, &STOP, found);
        observer.finish();
        measured
    }

    /// The map as it comes, so that a long one needs no memory.
    fn json(&self, path: &Path, global: &Global) -> Result<Measured> {
        let measured = match self.map {
            true => {
                let mut map = output::Array::begin("{\"map\":[");
                let measured = self.measure(path, global, &mut |extent| map.item(&ExtentRow::new(extent)))?;
                map.end("],");
                measured
            }
            false => {
                let measured = self.measure(path, global, &mut |_| ())?;
                output::write(b"{\"map\":null,");
                measured
            }
        };
        output::fields(&ReportRow::new(path, &measured));
        Ok(measured)
    }

    fn text(&self, path: &Path, global: &Global) -> Result<Measured> {
        if self.map {
            output::line(&columns(["Offset", "Length", "Mapped to", "File"]));
        }
        let name = escape(path.as_os_str().as_encoded_bytes());
        let measured = self.measure(path, global, &mut |extent| {
            if self.map && extent.kind == Kind::Data {
                let (at, len) = (extent.range.start, extent.range.end - extent.range.start);
                output::line(&columns([
                    &format!("{at:#x}"),
                    &format!("{len:#x}"),
                    &format!("{at:#x}"),
                    &name,
                ]));
            }
        })?;
        output::line(&format!("{name}:"));
        sizes(&measured.sizes);
        output::line("");
        shares(&measured.sizes);
        Ok(measured)
    }
}

/// A row of the map, as qemu-img has them.
fn columns([offset, len, mapped, file]: [&str; 4]) -> String {
    format!("{offset:<16}{len:<16}{mapped:<16}{file}")
}

/// Write a sparse file with a pattern, and say what the file system made of it.
///
/// A block of random bytes is written at the start of FILE and at every so many bytes. A SIZE is a
/// number of blocks of 512 bytes, or has a unit: B, K, M, G, T, P, E, all of them powers of two.
#[derive(Debug, Args)]
struct Make {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How much is written at once; 512 bytes if not given
    #[arg(short, long, value_name = "SIZE", value_parser = blocks)]
    blocksize: Option<u64>,
    /// The file's length; 1 GiB if not given
    #[arg(short, long, visible_alias = "logicalsize", value_name = "SIZE", value_parser = blocks)]
    size: Option<u64>,
    /// Write a block every so many bytes; 1 MiB if not given
    #[arg(short, long, value_name = "SIZE", value_parser = blocks)]
    writeevery: Option<u64>,
    /// Write from back to front
    #[arg(short, long, conflicts_with = "random")]
    descending: bool,
    /// Write in no order; -r is --repository everywhere
    #[arg(long)]
    random: bool,
    /// Set the length before the first write, not after the last
    #[arg(short, long)]
    initialtruncate: bool,
    /// What becomes of a file that is there already
    #[arg(long, value_enum, value_name = "WHEN")]
    overwrite: Option<OverwriteArg>,
}

impl Make {
    fn run(self, global: &Global) -> Outcome {
        let options = MakeOptions {
            block: self.blocksize,
            len: self.size,
            every: self.writeevery,
            order: match (self.descending, self.random) {
                (true, _) => Order::Descending,
                (_, true) => Order::Random,
                _ => Order::Ascending,
            },
            len_first: self.initialtruncate,
            overwrite: self.overwrite.is_some(),
        };
        let observer = global.observer();
        let made = make::make(&self.file, &options, &observer, &STOP)?;
        observer.finish();
        match global.json {
            true => output::json(&MakeRow::new(&self.file, &made, &options)),
            false => report(&made, &options),
        }
        Ok(Exit::Done)
    }
}

fn report(made: &Made, options: &MakeOptions) {
    output::line("Results:");
    sizes(&made.sizes);
    output::line(&format!(
        "\nUsed {} writes of {} bytes every {} bytes in {} order",
        made.writes,
        made.sizes.block,
        made.every,
        options.order.name()
    ));
    shares(&made.sizes);
}

/// The lines that sparsetest printed.
fn sizes(sizes: &Sizes) {
    let row = |name: &str, bytes: u64| {
        output::line(&format!(
            "{name:>23}: {bytes:>15} bytes; {:>15} M; {:>15} blocks of {} bytes",
            bytes >> 20,
            bytes / sizes.block,
            sizes.block
        ));
    };
    row("Intended logical size", sizes.logical);
    row("Optimum physical size", sizes.optimum);
    match sizes.physical {
        Some(physical) => row("Actual physical size", physical),
        None => output::line("   Actual physical size: not known"),
    }
}

fn shares(sizes: &Sizes) {
    let percent = |share: Option<f64>| share.map_or("not known".into(), |share| format!("{share:.6} %"));
    if let Some(physical) = sizes.physical {
        output::line(&format!("Created {} 512 byte blocks on disk", physical / 512));
    }
    output::line(&format!(
        "Density as % of actual physical size over logical size: {}",
        percent(sizes.density())
    ));
    output::line(&format!(
        "Efficiency as % of optimum physical size over actual: {}",
        percent(sizes.efficiency())
    ));
}

/// What all objects of `sparse --json` have.
#[derive(Serialize)]
struct SizesRow {
    path: String,
    bytes_block: u64,
    bytes_logical: u64,
    bytes_optimum: u64,
    bytes_physical: Option<u64>,
    blocks_on_disk: Option<u64>,
    density: Option<f64>,
    efficiency: Option<f64>,
}

impl SizesRow {
    fn new(path: &Path, sizes: &Sizes) -> Self {
        Self {
            path: escape(path.as_os_str().as_encoded_bytes()),
            bytes_block: sizes.block,
            bytes_logical: sizes.logical,
            bytes_optimum: sizes.optimum,
            bytes_physical: sizes.physical,
            blocks_on_disk: sizes.physical.map(|physical| physical / 512),
            density: sizes.density(),
            efficiency: sizes.efficiency(),
        }
    }
}

/// What `sparse report --json` prints of a file, behind its map.
#[derive(Serialize)]
struct ReportRow {
    #[serde(flatten)]
    sizes: SizesRow,
    bytes_data: u64,
    bytes_zero: u64,
    bytes_hole: u64,
    extents: u64,
    changed: bool,
}

impl ReportRow {
    fn new(path: &Path, measured: &Measured) -> Self {
        Self {
            sizes: SizesRow::new(path, &measured.sizes),
            bytes_data: measured.data,
            bytes_zero: measured.zero,
            bytes_hole: measured.hole,
            extents: measured.extents,
            changed: measured.changed,
        }
    }
}

/// What `sparse make --json` prints.
#[derive(Serialize)]
struct MakeRow {
    #[serde(flatten)]
    sizes: SizesRow,
    writes: u64,
    bytes_every: u64,
    order: &'static str,
    initial_truncate: bool,
}

impl MakeRow {
    fn new(path: &Path, made: &Made, options: &MakeOptions) -> Self {
        Self {
            sizes: SizesRow::new(path, &made.sizes),
            writes: made.writes,
            bytes_every: made.every,
            order: options.order.name(),
            initial_truncate: options.len_first,
        }
    }
}

/// An extent as `qemu-img map --output=json` prints those of a raw image.
#[derive(Serialize)]
struct ExtentRow {
    start: u64,
    length: u64,
    depth: u32,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    offset: u64,
}

impl ExtentRow {
    fn new(extent: &Extent) -> Self {
        Self {
            start: extent.range.start,
            length: extent.range.end - extent.range.start,
            depth: 0,
            present: true,
            zero: extent.kind != Kind::Data,
            data: extent.kind != Kind::Hole,
            compressed: false,
            offset: extent.range.start,
        }
    }
}
