//! What is written to: a file or a block device, with zeros found on the way.

use std::fs;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use crate::chunker::{is_zero, stretches_by};
use crate::error::{Error, IoContext, Result};
use crate::source::extents::{Spans, data_from};
use crate::target::{
    Content, Counts, DeviceTarget, Empty, Existing, FileOptions, FileTarget, TargetDir, TargetKind,
    check_target_path,
};

/// Zeros that are shorter are written with the data around them: no file system has smaller
/// blocks worth saving, and each range costs a call.
const SHORT_ZEROS: usize = 4096;

/// How much is read at once to see whether it is zero.
const LOOK_LEN: u64 = 256 << 10;

/// What becomes of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeros {
    /// They are made zero, whatever is there.
    Make,
    /// It is looked at what is there; what is not zero is made so.
    Check,
    /// They are left as they are.
    Leave,
}

/// A file or device, open for writing.
pub enum Output {
    /// A regular file.
    File(FileTarget),
    /// A block device.
    Device(DeviceTarget),
}

impl Output {
    /// Its content.
    pub fn content(&self) -> &dyn Content {
        match self {
            Output::File(file) => file,
            Output::Device(device) => device,
        }
    }

    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        match self {
            Output::File(file) => file.path(),
            Output::Device(device) => device.path(),
        }
    }

    /// Makes what was written so far durable.
    pub fn sync(&self) -> Result<()> {
        match self {
            Output::File(file) => file.sync(),
            Output::Device(device) => device.sync(),
        }
    }

    /// Ends the writing. A device is made durable, since its last close would wait for that anyway.
    pub fn finish(self) -> Result<Counts> {
        match self {
            Output::File(file) => file.finish(),
            Output::Device(device) => device.finish(),
        }
    }

    /// What is data in a range that begins at a multiple of `block`, as far as is known without
    /// reading.
    pub fn spans(&self, range: Range<u64>, block: u64) -> Spans<'_> {
        Spans::within(self.as_fd(), range, block, matches!(self, Output::File(_)))
    }

    /// The parts of a range that do not read as zeros, neighbours together, so that whole blocks of a
    /// thin volume's pool are in one; long holes are not read. Stops when `found` fails.
    pub fn nonzero(&self, range: Range<u64>, mut found: impl FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        let mut buffer = Vec::new();
        let mut part = range.start..range.start;
        let mut at = range.start;
        while at < range.end {
            // Where the data ends is not asked: to tell, a file system may go through all of it.
            at = if matches!(self, Output::File(_)) { data_from(self, at, range.end) } else { at };
            let end = range.end.min(at + LOOK_LEN);
            buffer.resize((end - at) as usize, 0);
            self.content().read_at(at, &mut buffer)?;
            if !is_zero(&buffer) {
                if part.end != at {
                    let done = std::mem::replace(&mut part, at..at);
                    if !done.is_empty() {
                        found(done)?;
                    }
                }
                part.end = end;
            }
            at = end;
        }
        if part.is_empty() { Ok(()) } else { found(part) }
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Output::File(file) => file.as_fd(),
            Output::Device(device) => device.as_fd(),
        }
    }
}

/// What a path that is to be written to is now. Unlike a restore, the tools make no directories: where
/// one is missing, a disk is not mounted, or a name is wrong.
pub fn target_kind(path: &Path) -> Result<TargetKind> {
    let kind = check_target_path(path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let (TargetKind::Missing, Some(parent)) = (kind, parent) {
        fs::metadata(parent).at("look at", parent)?;
    }
    Ok(kind)
}

/// Opens a regular file for writing: one that exists where it is, with what it holds. It gets its
/// length at once, if that is known.
pub fn open_file(path: &Path, exists: bool, len: Option<u64>) -> Result<FileTarget> {
    let (dir, name) = TargetDir::open_parent(path)?;
    let options = FileOptions {
        size: len.unwrap_or(super::LEN_MAX),
        open_ended: len.is_none(),
        shared: true,
        existing: if exists { Existing::InPlace } else { Existing::Refuse },
        ..FileOptions::default()
    };
    let file = FileTarget::create(&Arc::new(dir), &name, &options)?;
    match exists && !file.is_in_place() {
        false => Ok(file),
        true => Err(Error::Refused(format!(
            "{} cannot be written to: it is read-only, or a program that runs",
            path.display()
        ))),
    }
}

/// What went through a [`Writer`], in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passed {
    /// In blocks that were not all zero.
    pub data: u64,
    /// In all-zero blocks, and holes.
    pub zero: u64,
    /// Zeros that the target did not have there, where it was looked at.
    pub zero_differing: u64,
}

/// Puts data in its place, from front to back, and finds the zeros in it.
pub struct Writer<'o> {
    output: &'o Output,
    /// The unit of zeros.
    block: usize,
    zeros: Zeros,
    /// From here on, nothing is written.
    end: u64,
    /// Zeros that were seen and not yet made: neighbours are made together.
    pending: Range<u64>,
    passed: Passed,
}

impl<'o> Writer<'o> {
    /// Zeros count in blocks of `block` bytes; what lies behind `end` is not written.
    pub fn new(output: &'o Output, block: usize, zeros: Zeros, end: u64) -> Self {
        Self { output, block, zeros, end, pending: 0..0, passed: Passed::default() }
    }

    /// Writes data, or what may be zeros. `bytes` begin at a multiple of the block, counted from
    /// where the first ones began.
    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (mut from, mut at) = (0, 0);
        for stretch in stretches_by(self.block, bytes) {
            let len = stretch.end - at;
            if !stretch.zero {
                self.passed.data += len as u64;
            } else if len >= SHORT_ZEROS || self.zeros == Zeros::Leave {
                self.write(offset + from as u64, &bytes[from..at])?;
                self.zeros(offset + at as u64, len as u64)?;
                from = stretch.end;
            } else {
                self.passed.zero += len as u64;
            }
            at = stretch.end;
        }
        self.write(offset + from as u64, &bytes[from..])
    }

    /// Makes zeros.
    pub fn zeros(&mut self, offset: u64, len: u64) -> Result<()> {
        self.passed.zero += len;
        if self.pending.end != offset {
            self.make_zeros()?;
            self.pending = offset..offset;
        }
        self.pending.end = offset.saturating_add(len);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() || offset >= self.end {
            return Ok(());
        }
        self.make_zeros()?;
        let len = (self.end - offset).min(bytes.len() as u64) as usize;
        self.check_room(offset, len as u64)?;
        self.output.content().write_at(offset, &bytes[..len])
    }

    fn make_zeros(&mut self) -> Result<()> {
        let range = std::mem::take(&mut self.pending);
        let range = range.start..range.end.min(self.end);
        if range.is_empty() || self.zeros == Zeros::Leave {
            return Ok(());
        }
        self.check_room(range.start, range.end - range.start)?;
        let content = self.output.content();
        if self.zeros == Zeros::Make {
            return content.zero_at(range.start, range.end - range.start, Empty::Hole);
        }
        // What lies behind the end of a file is a hole as soon as its length says so.
        let differing = &mut self.passed.zero_differing;
        self.output.nonzero(range, |part| {
            *differing += part.end - part.start;
            content.zero_at(part.start, part.end - part.start, Empty::Hole)
        })
    }

    fn check_room(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.output.content().size() => Ok(()),
            _ => {
                Err(std::io::Error::from(std::io::ErrorKind::StorageFull)).at("write to", self.output.path())
            }
        }
    }

    /// Makes the zeros at the end; what went through.
    pub fn finish(mut self) -> Result<Passed> {
        self.make_zeros()?;
        Ok(self.passed)
    }
}

/// A range's end, refused if it is longer than anything can be.
pub fn checked_end(offset: u64, len: u64) -> Result<u64> {
    offset.checked_add(len).filter(|end| *end <= super::LEN_MAX).ok_or_else(|| {
        Error::Refused(format!("{len} bytes at {offset} end behind 8 EiB, which nothing can hold"))
    })
}
