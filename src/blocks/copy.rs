//! Copying a file, a device or a stream to a file or a device, sparsely.
//!
//! Holes of the source are not read. Zeros become holes in files, and on devices zeros that are
//! guaranteed. The rules of overlays and positions are those of sparsecopy.

use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{Advice, fadvise, ioctl_ficlone};

use super::feed::{Piece, feed};
use super::input::{AskLayout, Input, Origin, no_layout};
use super::output::{Output, Passed, Writer, checked_end};
use super::plan::Plan;
use super::verify;
use crate::error::{IoContext, Result};
use crate::id::Hasher;
use crate::observe::{Event, Observer, Stop};
use crate::source::extents::Span;
use crate::target::{Content, Counts, Empty};

/// The unit of zeros where none is given.
pub const BLOCK_DEFAULT: u64 = 512;

/// Whether a copy may share its blocks with its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reflink {
    /// Where the file system can, and all of a file becomes all of a file.
    #[default]
    Auto,
    /// It must.
    Always,
    /// All is copied.
    Never,
}

/// How to copy. Sizes are in bytes.
#[derive(Debug, Clone)]
pub struct CopyOptions {
    /// Keep what the target holds where the source is not written.
    pub overlay: bool,
    /// In an overlay, leave the target as it is where the source is zero.
    pub nocheck: bool,
    /// Stop if the target's first block is not zero.
    pub check: bool,
    /// The most that is copied.
    pub max: Option<u64>,
    /// Fail if the source has more than that.
    pub error_remainder: bool,
    /// The unit of zeros.
    pub block: u64,
    /// Where in the target the source's first byte goes.
    pub seek: u64,
    /// The length that a target file has in the end.
    pub final_len: Option<u64>,
    /// Write only what differs.
    pub in_place: bool,
    /// Write over what is there.
    pub overwrite: bool,
    /// Read all again and compare.
    pub verify: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Whether blocks may be shared.
    pub reflink: Reflink,
    /// Make it durable each time so many bytes were written.
    pub sync_every: Option<u64>,
    /// Make a file durable at the end; a device always is.
    pub sync: bool,
    /// Who knows what of a device is allocated.
    pub ask_layout: AskLayout,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            overlay: false,
            nocheck: false,
            check: false,
            max: None,
            error_remainder: false,
            block: BLOCK_DEFAULT,
            seek: 0,
            final_len: None,
            in_place: false,
            overwrite: false,
            verify: false,
            dry_run: false,
            reflink: Reflink::Auto,
            sync_every: None,
            sync: false,
            ask_layout: no_layout,
        }
    }
}

/// What a copy came to.
#[derive(Debug, Default)]
pub struct Copied {
    /// Bytes of the source that were copied, holes included.
    pub bytes: u64,
    /// Of those, not read because nothing was allocated.
    pub bytes_hole: u64,
    /// What was found on the way; not counted where blocks are shared.
    pub passed: Passed,
    /// What was done to the target.
    pub counts: Counts,
    /// The target's length.
    pub target_len: u64,
    /// Bytes of a device in front of and behind the copy, as they were.
    pub untouched: Option<u64>,
    /// Bytes read again and compared.
    pub verified: u64,
    /// Whether the copy shares its blocks with the source.
    pub reflinked: bool,
    /// The source, if it was written to while it was read.
    pub changed: Option<PathBuf>,
    /// How long it took.
    pub seconds: f64,
}

/// Copies `origin` to `target`.
pub fn run(
    origin: &Origin,
    target: &Path,
    options: &CopyOptions,
    observer: &dyn Observer,
    stop: &Stop,
) -> Result<Copied> {
    let started = Instant::now();
    let input = Input::open(origin)?.ask_layout(options.ask_layout, observer, stop)?;
    let plan = Plan::new(&input, target, options)?;
    observer.event(Event::Phase { name: "copying", bytes: plan.take });
    let copy = Copy { input: &input, plan: &plan, options, observer, stop };
    let mut copied = if options.dry_run { copy.foresee()? } else { copy.run()? };
    copied.changed = input.has_changed()?.then(|| input.path().to_path_buf());
    copied.seconds = started.elapsed().as_secs_f64();
    Ok(copied)
}

struct Copy<'a> {
    input: &'a Input,
    plan: &'a Plan,
    options: &'a CopyOptions,
    observer: &'a dyn Observer,
    stop: &'a Stop,
}

impl Copy<'_> {
    /// What can be said without reading.
    fn foresee(&self) -> Result<Copied> {
        if self.plan.is_device {
            drop(self.plan.open(self.options.seek)?);
        }
        let bytes = self.plan.take.unwrap_or(0);
        let mut copied = Copied { bytes, ..Copied::default() };
        copied.target_len = self.plan.len_after(checked_end(self.options.seek, bytes)?);
        if self.input.known_len().is_some() {
            for span in self.input.spans(0..bytes, self.options.block) {
                if let Span::Hole(range) = span {
                    copied.bytes_hole += range.end - range.start;
                }
            }
        }
        Ok(copied)
    }

    fn run(&self) -> Result<Copied> {
        let output = self.plan.open(self.options.seek)?;
        let mut hasher = (self.options.verify && self.input.known_len().is_none()).then(Hasher::plain);
        let mut copied = match self.reflink(&output)? {
            true => Copied { bytes: self.plan.take.unwrap_or(0), reflinked: true, ..Copied::default() },
            false => self.copy(&output, hasher.as_mut())?,
        };
        let end = checked_end(self.options.seek, copied.bytes)?;
        self.end_target(&output, end, &mut copied)?;
        self.clear_around(&output, end, copied.target_len)?;
        if self.options.sync {
            output.sync()?;
        }
        if self.options.verify {
            self.verify(&output, hasher.as_ref(), &mut copied)?;
        }
        copied.counts = output.finish()?;
        Ok(copied)
    }

    /// Gives a file its length, and measures a device.
    fn end_target(&self, output: &Output, end: u64, copied: &mut Copied) -> Result<()> {
        match output {
            Output::File(file) => {
                copied.target_len = self.plan.len_after(end);
                file.set_len(copied.target_len)
            }
            Output::Device(device) => {
                copied.target_len = device.device_len();
                copied.untouched = Some(device.device_len() - copied.bytes);
                Ok(())
            }
        }
    }

    /// In a file that is compared and not overlaid, nothing else than the copy may be left.
    fn clear_around(&self, output: &Output, end: u64, len: u64) -> Result<()> {
        let Output::File(file) = output else { return Ok(()) };
        if self.plan.keeps || !self.plan.compares {
            return Ok(());
        }
        file.zero_at(0, self.options.seek.min(len), Empty::Hole)?;
        file.zero_at(end.min(len), len.saturating_sub(end), Empty::Hole)
    }

    fn copy(&self, output: &Output, mut hasher: Option<&mut Hasher>) -> Result<Copied> {
        let options = self.options;
        let write_end = match output {
            Output::File(_) => self.plan.final_len.unwrap_or(super::LEN_MAX),
            Output::Device(_) => super::LEN_MAX,
        };
        let mut writer = Writer::new(output, options.block as usize, self.plan.zeros, write_end);
        let mut copied = Copied::default();
        let mut unsynced = 0;
        feed(self.input, self.plan.take, options.block as usize, self.stop, |piece| {
            let len = match piece {
                Piece::Hole(range) => {
                    let len = range.end - range.start;
                    writer.zeros(checked_end(options.seek, range.start)?, len)?;
                    copied.bytes_hole += len;
                    len
                }
                Piece::Data(offset, bytes) => {
                    checked_end(options.seek, offset + bytes.len() as u64)?;
                    if let Some(hasher) = &mut hasher {
                        hasher.update(bytes);
                    }
                    writer.data(options.seek + offset, bytes)?;
                    unsynced += bytes.len() as u64;
                    bytes.len() as u64
                }
            };
            if options.sync_every.is_some_and(|every| every > 0 && unsynced >= every) {
                unsynced = 0;
                output.sync()?;
            }
            copied.bytes += len;
            self.observer.event(Event::Advance { bytes: len, files: 0 });
            Ok(())
        })?;
        copied.passed = writer.finish()?;
        self.refuse_remainder(&copied)?;
        Ok(copied)
    }

    /// A stream tells only now whether it has more.
    fn refuse_remainder(&self, copied: &Copied) -> Result<()> {
        let is_stream = self.input.known_len().is_none();
        let is_full = self.options.max == Some(copied.bytes);
        if self.options.error_remainder && is_stream && is_full && self.input.read_on(&mut [0])? > 0 {
            let why = std::io::Error::other("it has more than --max allows; what was allowed is copied");
            return Err(why).at("copy all of", self.input.path());
        }
        Ok(())
    }

    /// Lets a file share the blocks of the source; false if that is not what was asked for, or
    /// not possible.
    fn reflink(&self, output: &Output) -> Result<bool> {
        let Output::File(file) = output else { return Ok(false) };
        if !self.plan.shares {
            return Ok(false);
        }
        match ioctl_ficlone(file, self.input.file()) {
            Ok(()) => Ok(true),
            Err(e) if self.options.reflink == Reflink::Always => Err(e).at("share blocks with", file.path()),
            Err(_) => Ok(false),
        }
    }

    fn verify(&self, output: &Output, hasher: Option<&Hasher>, copied: &mut Copied) -> Result<()> {
        self.observer.event(Event::Phase { name: "verifying", bytes: None });
        output.sync()?;
        // So that it comes from the disk; where that is not possible, it comes from memory.
        let _ = fadvise(output, 0, None, Advice::DontNeed);
        let (len, seek) = (self.verified_len(copied), self.options.seek);
        match hasher {
            Some(hasher) => verify::compare_hash(hasher, output, len, seek, self.stop)?,
            None => verify::compare(self.input, output, len, seek, self.stop)?,
        }
        copied.verified = len;
        Ok(())
    }

    /// What of the copied bytes the target kept.
    fn verified_len(&self, copied: &Copied) -> u64 {
        match self.plan.is_device {
            true => copied.bytes,
            false => copied.bytes.min(copied.target_len.saturating_sub(self.options.seek)),
        }
    }
}
