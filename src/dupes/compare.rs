//! A few files of one length whose ends are equal: read in step, and only until they differ.
//!
//! They are compared byte by byte, a class of equal ones against its first. Holes are not read.

use std::collections::BTreeMap;
use std::fs::File;

use super::heads::END_LEN;
use super::look::Reading;
use super::open::Opener;
use super::paths::DirId;
use super::record::{Digest, FileRecord, Inode};
use crate::error::Result;
use crate::id::checksum;
use crate::source::extents::{data_from, read_at};

/// Files that one thread has open at once.
pub const STEP_FILES_MAX: usize = 14;
/// What is read of each at once: first, and at most.
const STEP_MIN: u64 = 64 << 10;
const STEP_MAX: u64 = 1 << 20;

/// A file and its names.
#[derive(Debug, Clone)]
pub struct Member {
    /// The file.
    pub inode: Inode,
    /// Its names that were found.
    pub names: Vec<(DirId, Vec<u8>)>,
}

impl Member {
    /// Adds a name to the file if it is one of its names; else it stands for a new file, and the
    /// one before is returned.
    pub fn join(file: &mut Option<Self>, name: &FileRecord) -> Option<Self> {
        let FileRecord { inode, dir, name } = *name;
        let name = (dir, name.to_vec());
        match file {
            Some(file) if (file.inode.device, file.inode.inode) == (inode.device, inode.inode) => {
                file.names.push(name);
                None
            }
            file => file.replace(Self { inode, names: vec![name] }),
        }
    }
}

/// Compares sets of files; one value a thread.
pub struct Comparer<'a> {
    reading: Reading<'a>,
    path: Vec<u8>,
    first: Vec<u8>,
    other: Vec<u8>,
}

/// An open file of a set.
struct Stepper {
    member: Member,
    file: File,
    /// No data lies between where we are and here.
    data_from: u64,
}

impl<'a> Comparer<'a> {
    /// For one thread.
    pub fn new(reading: Reading<'a>) -> Self {
        let buffer = || vec![0; STEP_MAX as usize];
        Self { reading, path: Vec::new(), first: buffer(), other: buffer() }
    }

    /// Splits files of one length whose bytes before `at` and ends are equal into classes of
    /// equal ones. So many files are open at once.
    pub fn classes(&mut self, members: Vec<Member>, at: u64) -> Result<Vec<Vec<Member>>> {
        let end = members.first().map_or(0, |member| member.inode.len.saturating_sub(END_LEN));
        let opened = members.into_iter().filter_map(|member| self.open(member)).collect();
        let mut pending: Vec<(Vec<Stepper>, u64, u64)> = vec![(opened, at, STEP_MIN)];
        let mut done = Vec::new();
        while let Some((mut class, at, step)) = pending.pop() {
            self.reading.stop.check()?;
            let at = skip_holes(&mut class, at, end);
            if class.len() < 2 || at >= end {
                done.push(self.settle(class));
                continue;
            }
            let len = step.min(end - at);
            let next = (step * 2).min(STEP_MAX);
            pending.extend(self.round(class, at, len).into_iter().map(|class| (class, at + len, next)));
        }
        done.retain(|class| !class.is_empty());
        Ok(done)
    }

    fn open(&mut self, member: Member) -> Option<Stepper> {
        let (dir, name) = member.names.first()?;
        match self.reading.opener.open(*dir, name, &mut self.path) {
            Ok(file) => Some(Stepper { member, file, data_from: 0 }),
            Err(error) => {
                self.reading.problems.error(&error);
                None
            }
        }
    }

    /// The members that are still what they were.
    fn settle(&self, class: Vec<Stepper>) -> Vec<Member> {
        let settled = class.into_iter().filter_map(|Stepper { member, file, .. }| {
            let (dir, name) = member.names.first()?;
            match self.reading.opener.check(&file, *dir, name, &member.inode) {
                Ok(()) => Some(member),
                Err(error) => {
                    self.reading.problems.error(&error);
                    None
                }
            }
        });
        settled.collect()
    }

    /// Compares one range of all files of a class; the classes that are left.
    fn round(&mut self, class: Vec<Stepper>, at: u64, len: u64) -> Vec<Vec<Stepper>> {
        let mut equal: Vec<Stepper> = Vec::with_capacity(class.len());
        let mut others: BTreeMap<Digest, Vec<Stepper>> = BTreeMap::new();
        let len = len as usize;
        for mut stepper in class {
            let buffer = if equal.is_empty() { &mut self.first } else { &mut self.other };
            let Some(bytes) = buffer.get_mut(..len) else { continue };
            if let Err(error) = stepper.read(bytes, at, self.reading.opener) {
                self.reading.problems.error(&error);
            } else if equal.is_empty() || self.first.get(..len) == self.other.get(..len) {
                equal.push(stepper);
            } else {
                let digest = checksum(&[self.other.get(..len).unwrap_or_default()]);
                others.entry(digest).or_default().push(stepper);
            }
        }
        std::iter::once(equal).chain(others.into_values()).collect()
    }
}

impl Stepper {
    /// Where data begins at or behind `at`, at most `end`.
    fn data_from(&mut self, at: u64, end: u64) -> u64 {
        if self.member.inode.is_sparse && self.data_from <= at {
            self.data_from = data_from(&self.file, at, u64::MAX);
        }
        self.data_from.clamp(at, end)
    }

    fn read(&mut self, bytes: &mut [u8], at: u64, opener: &Opener) -> Result<()> {
        let end = at + bytes.len() as u64;
        if self.data_from(at, end) == end {
            bytes.fill(0);
            return Ok(());
        }
        let fail = |e| match self.member.names.first() {
            Some((dir, name)) => opener.failed(*dir, name, "read", e),
            None => crate::error::Error::Internal("a file without a name"),
        };
        let read = read_at(&self.file, bytes, at).map_err(fail)?;
        opener.counts.add(read as u64);
        if read < bytes.len() {
            return Err(fail(std::io::Error::other("it became shorter while it was read")));
        }
        Ok(())
    }
}

/// Where the first of the files has data again; they are equal up to there.
fn skip_holes(class: &mut [Stepper], at: u64, end: u64) -> u64 {
    class.iter_mut().map(|stepper| stepper.data_from(at, end)).min().unwrap_or(end)
}
