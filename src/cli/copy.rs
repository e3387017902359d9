//! `varv copy`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::error::Exit;
use super::global::Global;
use super::lvm::layout_of;
use super::progress::Progress;
use super::signals::STOP;
use super::{Outcome, output};
use crate::blocks::copy::{self, BLOCK_DEFAULT, Copied, CopyOptions, Reflink};
use crate::blocks::input::Origin;
use crate::error::Error;
use crate::text::{format_size, parse_size};

/// What becomes of a file or device that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OverwriteArg {
    /// It is written over
    Always,
}

/// Whether the copy may share its blocks with the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReflinkArg {
    /// Where the file system can
    Auto,
    /// It must
    Always,
    /// All is copied
    Never,
}

/// Copy a file, a device or standard input to a file or a device, sparsely.
///
/// Holes of SRC are not read. Zeros become holes in files, and zeros that are guaranteed on
/// devices, whose size never changes. A SIZE is a number of blocks of 512 bytes, or has a unit:
/// B, K, M, G, T, P, E, all of them powers of two.
#[derive(Debug, Args)]
pub struct Copy {
    /// A file, a device, or - for standard input
    #[arg(value_name = "SRC")]
    source: OsString,
    /// A file or a device
    #[arg(value_name = "DST")]
    target: PathBuf,
    /// Keep what DST holds, and write SRC over it; where SRC is zero, DST is read and made zero
    /// where it is not
    #[arg(short, long)]
    overlay: bool,
    /// With --overlay, leave DST as it is where SRC is zero
    #[arg(short, long)]
    nocheck: bool,
    /// Stop if the first block of DST is not zero
    #[arg(short, long)]
    check: bool,
    /// Copy at most so much
    #[arg(short, long, visible_alias = "maxwrite", value_name = "SIZE", value_parser = blocks)]
    max: Option<u64>,
    /// Fail if SRC has more than --max
    #[arg(short, long, requires = "max")]
    errorremainder: bool,
    /// The unit in which zeros are looked for
    #[arg(short, long, value_name = "SIZE", value_parser = blocks, default_value = "512B")]
    blocksize: u64,
    /// Write the first byte of SRC to this position in DST
    #[arg(short, long, value_name = "POS", value_parser = blocks, default_value = "0")]
    seek: u64,
    /// Give DST this size in the end; no effect on devices
    #[arg(short, long, value_name = "SIZE", value_parser = blocks)]
    finalsize: Option<u64>,
    /// Draw progress on standard error, with --quiet and --json too
    #[arg(short, long)]
    progress: bool,
    /// Make DST durable each time so much was written
    #[arg(short = 'y', long, value_name = "SIZE", value_parser = blocks)]
    syncevery: Option<u64>,
    /// Make DST durable at the end; a device always is
    #[arg(long)]
    fsync: bool,
    /// What becomes of a file or device that is there already
    #[arg(long, value_enum, value_name = "WHEN")]
    overwrite: Option<OverwriteArg>,
    /// Write only what differs
    #[arg(long)]
    in_place: bool,
    /// Read all again and compare
    #[arg(long)]
    verify: bool,
    /// Whether the copy may share its blocks with SRC
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    reflink: ReflinkArg,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

impl Copy {
    /// Copies.
    pub fn run(self, global: &Global) -> Outcome {
        if self.target.as_os_str() == "-" {
            return Err(Error::Refused(
                "- is standard input, and no target: a copy is not printed; write ./- for a file of that name".into(),
            ));
        }
        let origin = match self.source.as_encoded_bytes() {
            b"-" => Origin::Stdin,
            _ => Origin::Path(PathBuf::from(&self.source)),
        };
        let is_hidden = global.no_progress || !self.progress && (global.quiet || global.json);
        let observer = Progress::new(is_hidden, global.quiet);
        let copied = copy::run(&origin, &self.target, &self.options(), &observer, &STOP)?;
        observer.finish();
        report(&copied, self.dry_run, global);
        Ok(if copied.changed.is_some() { Exit::Incomplete } else { Exit::Done })
    }

    fn options(&self) -> CopyOptions {
        CopyOptions {
            overlay: self.overlay,
            nocheck: self.nocheck,
            check: self.check,
            max: self.max,
            error_remainder: self.errorremainder,
            block: self.blocksize,
            seek: self.seek,
            final_len: self.finalsize,
            in_place: self.in_place,
            overwrite: self.overwrite.is_some(),
            verify: self.verify,
            dry_run: self.dry_run,
            reflink: match self.reflink {
                ReflinkArg::Auto => Reflink::Auto,
                ReflinkArg::Always => Reflink::Always,
                ReflinkArg::Never => Reflink::Never,
            },
            sync_every: self.syncevery,
            sync: self.fsync,
            ask_layout: layout_of,
        }
    }
}

/// A SIZE of which a bare number counts blocks of 512 bytes, as in sparsecopy.
pub fn blocks(text: &str) -> Result<u64, String> {
    parse_size(text, BLOCK_DEFAULT)
}

/// What `copy --json` prints.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    bytes: u64,
    bytes_hole: u64,
    bytes_data: Option<u64>,
    bytes_zero: Option<u64>,
    bytes_zero_differing: Option<u64>,
    bytes_written: u64,
    bytes_equal: u64,
    bytes_zeroed: u64,
    bytes_target: u64,
    bytes_untouched: Option<u64>,
    bytes_verified: u64,
    reflinked: bool,
    source_changed: bool,
    seconds: f64,
}

fn report(copied: &Copied, dry_run: bool, global: &Global) {
    if let Some(path) = &copied.changed {
        output::notice(&format!(
            "{} was written to while it was read: the copy may be of no single moment",
            path.display()
        ));
    }
    let passed = (!copied.reflinked && !dry_run).then_some(copied.passed);
    if global.json {
        return output::json(&Report {
            dry_run,
            bytes: copied.bytes,
            bytes_hole: copied.bytes_hole,
            bytes_data: passed.map(|passed| passed.data),
            bytes_zero: passed.map(|passed| passed.zero),
            bytes_zero_differing: passed.map(|passed| passed.zero_differing),
            bytes_written: copied.counts.written,
            bytes_equal: copied.counts.equal,
            bytes_zeroed: copied.counts.zeroed,
            bytes_target: copied.target_len,
            bytes_untouched: copied.untouched,
            bytes_verified: copied.verified,
            reflinked: copied.reflinked,
            source_changed: copied.changed.is_some(),
            seconds: copied.seconds,
        });
    }
    if !global.quiet {
        summary(copied, dry_run);
    }
}

fn summary(copied: &Copied, dry_run: bool) {
    let size = format_size;
    if dry_run {
        return output::line(&format!(
            "would copy {}, of which {} are holes",
            size(copied.bytes),
            size(copied.bytes_hole)
        ));
    }
    let passed = copied.passed;
    output::line(&match copied.reflinked {
        true => format!("copied     {}, by sharing the blocks of the source", size(copied.bytes)),
        false => format!(
            "copied     {}: {} data, {} zeros, {} of them holes that were not read",
            size(copied.bytes),
            size(passed.data),
            size(passed.zero),
            size(copied.bytes_hole)
        ),
    });
    if copied.counts.equal + passed.zero_differing > 0 {
        output::line(&format!(
            "target     {} written, {} equal already, {} were not zero and are now",
            size(copied.counts.written),
            size(copied.counts.equal),
            size(passed.zero_differing)
        ));
    }
    if let Some(untouched) = copied.untouched.filter(|bytes| *bytes > 0) {
        output::line(&format!("untouched  {} of the device", size(untouched)));
    }
    if copied.verified > 0 {
        output::line(&format!("verified   {}", size(copied.verified)));
    }
    let rate = copied.bytes as f64 / copied.seconds.max(0.001);
    output::line(&format!("time       {:.1} s, {}/s", copied.seconds, size(rate as u64)));
}
