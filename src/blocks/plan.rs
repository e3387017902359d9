//! What a copy will do: decided, and refused, before anything is written.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::copy::{BLOCK_DEFAULT, CopyOptions, Reflink};
use super::input::Input;
use super::output::{Output, Zeros, checked_end, open_file, target_kind};
use crate::chunker::is_zero;
use crate::error::{Error, IoContext, Result};
use crate::source::extents::read_at;
use crate::target::{DeviceTarget, TargetKind, describe, overlap};

/// The longest block: each thread holds some.
pub const BLOCK_MAX: u64 = 16 << 20;

/// A copy, decided.
pub struct Plan {
    /// The target, symlinks followed.
    pub target: PathBuf,
    /// Whether it is a block device.
    pub is_device: bool,
    /// Whether a file is there that keeps what it holds.
    pub keeps: bool,
    /// Whether something is there that is compared before it is written.
    pub compares: bool,
    /// Whether a file is there that is emptied.
    pub empties: bool,
    /// How many bytes are read; `None` if only a stream's end will tell.
    pub take: Option<u64>,
    /// The target's length in the end; `None` for a device, and where a stream's end will tell.
    pub final_len: Option<u64>,
    /// Length of the file that is there.
    pub old_len: u64,
    /// What becomes of zeros.
    pub zeros: Zeros,
    /// Whether the target may share its blocks with the source.
    pub shares: bool,
}

impl Plan {
    /// Decides, and refuses what makes no sense.
    pub fn new(input: &Input, target: &Path, options: &CopyOptions) -> Result<Self> {
        refuse_options(options)?;
        let kind = target_kind(target)?;
        let target = fs::canonicalize(target).unwrap_or_else(|_| target.to_path_buf());
        let is_device = kind == TargetKind::BlockDevice;
        let exists = kind != TargetKind::Missing;
        if exists {
            refuse_target(input, &target, kind)?;
        }
        let old_len = match kind {
            TargetKind::File => fs::metadata(&target).at("look at", &target)?.len(),
            _ => 0,
        };
        refuse_unasked(&target, is_device, old_len, options)?;
        if options.check && exists {
            refuse_nonzero(&target, options.block)?;
        }
        let keeps = options.overlay && exists;
        let mut plan = Self {
            target,
            is_device,
            keeps,
            compares: options.in_place && exists,
            empties: exists && !is_device && !keeps && !options.in_place,
            take: None,
            final_len: None,
            old_len,
            zeros: match keeps {
                false => Zeros::Make,
                true if options.nocheck => Zeros::Leave,
                true => Zeros::Check,
            },
            shares: false,
        };
        plan.measure(input, options)?;
        plan.shares = plan.may_share(input, options)?;
        Ok(plan)
    }

    fn measure(&mut self, input: &Input, options: &CopyOptions) -> Result<()> {
        let is_endless = input.known_len().is_none();
        let wanted = match (input.known_len(), options.max) {
            (Some(len), max) => Some(max.map_or(len, |max| max.min(len))),
            (None, max) => max,
        };
        if let (Some(len), Some(max), true) = (input.known_len(), options.max, options.error_remainder)
            && len > max
        {
            return Err(Error::Refused(format!(
                "{} has {len} bytes, more than the {max} that --max allows",
                input.path().display()
            )));
        }
        self.take = wanted;
        let end = checked_end(options.seek, wanted.unwrap_or(0))?;
        if self.is_device {
            return Ok(());
        }
        let kept = if self.keeps { self.old_len } else { 0 };
        self.final_len = match options.final_len {
            Some(len) => Some(len),
            None if is_endless => None,
            None => Some(end.max(kept)),
        };
        // What would be cut off again need not be read, but for the block in which the end lies: whether
        // that is zero is for all of it to say.
        if let (Some(len), Some(final_len)) = (input.known_len(), options.final_len) {
            let blocks = final_len.saturating_sub(options.seek).div_ceil(options.block);
            self.take = Some(wanted.unwrap_or(len).min(blocks.saturating_mul(options.block)));
        }
        Ok(())
    }

    /// Only all of a file as all of a file that holds nothing yet.
    fn may_share(&self, input: &Input, options: &CopyOptions) -> Result<bool> {
        let can = input.is_file()
            && !(self.is_device || self.keeps || self.compares)
            && options.seek == 0
            && self.take == input.known_len()
            && self.final_len == self.take;
        match options.reflink {
            Reflink::Never => Ok(false),
            // Who gives a unit of zeros wants holes; a shared file has them where its source has.
            Reflink::Auto => Ok(can && options.block == BLOCK_DEFAULT),
            Reflink::Always if can => Ok(true),
            Reflink::Always => Err(Error::Refused(
                "--reflink always makes all of a file all of another one; it does not go with other parts or \
                 targets"
                    .into(),
            )),
        }
    }

    /// The length of a file in the end, once it is known that `end` bytes of it were written.
    pub fn len_after(&self, end: u64) -> u64 {
        self.final_len.unwrap_or(if self.keeps { end.max(self.old_len) } else { end })
    }

    /// Opens the target. A file that is to be emptied is.
    pub fn open(&self, seek: u64) -> Result<Output> {
        if self.is_device {
            return self.open_device(seek).map(Output::Device);
        }
        let exists = self.keeps || self.empties || self.compares;
        let file = open_file(&self.target, exists, self.final_len)?;
        Ok(Output::File(match () {
            () if self.empties => file.emptied()?,
            () if self.compares => file,
            () => file.unseen(),
        }))
    }

    fn open_device(&self, seek: u64) -> Result<DeviceTarget> {
        if let Some(take) = self.take {
            // Refused before anything is written.
            drop(DeviceTarget::open(&self.target, checked_end(seek, take)?)?);
        }
        let device = DeviceTarget::open_whole(&self.target)?;
        Ok(if self.compares { device.in_place() } else { device })
    }
}

fn refuse_options(options: &CopyOptions) -> Result<()> {
    let refuse = |why: &str| Err(Error::Refused(why.into()));
    if options.nocheck && !options.overlay {
        return refuse("--nocheck (-n) belongs to --overlay; to see what would be done, use --dry-run");
    }
    if options.nocheck && options.verify {
        return refuse(
            "--verify and --nocheck do not go together: what --nocheck leaves may differ from the source",
        );
    }
    check_block(options.block)?;
    let sizes = [Some(options.seek), options.max, options.final_len];
    sizes.into_iter().flatten().try_for_each(|size| checked_end(size, 0).map(drop))
}

/// Refuses blocks that are empty or too long.
pub fn check_block(block: u64) -> Result<()> {
    match (1..=BLOCK_MAX).contains(&block) {
        true => Ok(()),
        false => Err(Error::Refused(format!(
            "a block of {block} bytes is not possible: choose 1 B to {} MiB",
            BLOCK_MAX >> 20
        ))),
    }
}

fn refuse_target(input: &Input, target: &Path, kind: TargetKind) -> Result<()> {
    if kind == TargetKind::Directory {
        let name = input.path().file_name().unwrap_or_default();
        return Err(Error::Refused(format!(
            "{} is a directory: did you mean {}?",
            target.display(),
            target.join(name).display()
        )));
    }
    let meta = fs::metadata(target).at("look at", target)?;
    if kind == TargetKind::File && !meta.is_file() {
        return Err(Error::Refused(format!("{} is neither a file nor a block device", target.display())));
    }
    refuse_overlap(input, target)
}

/// Refuses a source and a target that hold the same bytes in part.
pub fn refuse_overlap(input: &Input, target: &Path) -> Result<()> {
    let source = input.file().metadata().at("look at", input.path())?;
    match overlap(&source, &fs::metadata(target).at("look at", target)?) {
        None => Ok(()),
        Some(why) => {
            Err(Error::Refused(format!("{} and {} overlap: {why}", input.path().display(), target.display())))
        }
    }
}

fn refuse_unasked(target: &Path, is_device: bool, old_len: u64, options: &CopyOptions) -> Result<()> {
    if options.overlay || options.in_place || options.overwrite || !is_device && old_len == 0 {
        return Ok(());
    }
    let how = "use --overwrite always to write all of it, --in-place to write only what differs, or \
               --overlay to keep what lies outside of the source";
    Err(Error::Refused(match is_device {
        true => format!("{}\n{how}", describe(target)?),
        false => format!("{} exists and has {old_len} bytes: {how}", target.display()),
    }))
}

/// The first block must be zero.
fn refuse_nonzero(target: &Path, block: u64) -> Result<()> {
    let file = File::open(target).at("open", target)?;
    let mut first = vec![0; block as usize];
    let read = read_at(&file, &mut first, 0).at("read", target)?;
    match is_zero(&first[..read]) {
        true => Ok(()),
        false => Err(Error::Refused(format!(
            "the first block of {} is not zero: --check asks to stop here",
            target.display()
        ))),
    }
}
