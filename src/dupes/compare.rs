//! Files of one length whose ends are equal: read in step, and only until they differ.
//!
//! Few files are open at once and compared byte by byte, a class of equal ones against its first.
//! Many are read one after the other, a range of each, and told apart by the range's digest; what
//! is left of them goes on as smaller sets. Holes are not read.

use std::collections::BTreeMap;
use std::fs::File;

use super::Problems;
use super::heads::END_LEN;
use super::open::Opener;
use super::paths::DirId;
use super::record::{Digest, Inode};
use crate::chunker::is_zero;
use crate::error::Result;
use crate::id::{Hasher, checksum};
use crate::observe::Stop;
use crate::source::extents::{data_from, read_at};

/// Files that one thread has open at once.
pub const STEP_FILES_MAX: usize = 16;
/// What is read of each at once: first, and at most.
const STEP_MIN: u64 = 64 << 10;
const STEP_MAX: u64 = 1 << 20;
/// The ranges of which digests are made grow by this factor.
const RANGE_GROWTH: u64 = 8;
/// What is read at once for a digest; zeros count by such pieces.
const PIECE: u64 = 64 << 10;

/// A file and its names.
#[derive(Debug, Clone)]
pub struct Member {
    /// The file.
    pub inode: Inode,
    /// Its names that were found.
    pub names: Vec<(DirId, Vec<u8>)>,
}

/// A set of files whose bytes before `at` are equal, and those behind `end`.
struct Set {
    members: Vec<Member>,
    at: u64,
    /// How long the next range is.
    range: u64,
}

/// Compares sets of files; one value a thread.
pub struct Comparer<'a> {
    opener: &'a Opener<'a>,
    problems: &'a Problems<'a>,
    stop: &'a Stop,
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
    pub fn new(opener: &'a Opener<'a>, problems: &'a Problems<'a>, stop: &'a Stop) -> Self {
        let buffer = || vec![0; STEP_MAX as usize];
        Self { opener, problems, stop, path: Vec::new(), first: buffer(), other: buffer() }
    }

    /// Splits files of one length and equal ends into classes of equal ones.
    pub fn classes(&mut self, members: Vec<Member>) -> Result<Vec<Vec<Member>>> {
        let mut classes = Vec::new();
        let mut sets = vec![Set { members, at: END_LEN, range: STEP_MIN }];
        while let Some(set) = sets.pop() {
            self.stop.check()?;
            let end = set.members.first().map_or(0, |member| member.inode.len.saturating_sub(END_LEN));
            match set.members.len() {
                0 => {}
                1 => classes.push(set.members),
                _ if set.at >= end => classes.push(set.members),
                2..=STEP_FILES_MAX => self.step(set, end, &mut classes)?,
                _ => self.split(set, end, &mut sets)?,
            }
        }
        Ok(classes)
    }

    fn step(&mut self, set: Set, end: u64, done: &mut Vec<Vec<Member>>) -> Result<()> {
        let opened = set.members.into_iter().filter_map(|member| self.open(member)).collect();
        let mut pending: Vec<(Vec<Stepper>, u64, u64)> = vec![(opened, set.at, STEP_MIN)];
        while let Some((mut class, at, step)) = pending.pop() {
            self.stop.check()?;
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
        Ok(())
    }

    fn open(&mut self, member: Member) -> Option<Stepper> {
        let (dir, name) = member.names.first()?;
        match self.opener.open(*dir, name, &mut self.path) {
            Ok(file) => Some(Stepper { member, file, data_from: 0 }),
            Err(error) => {
                self.problems.error(&error);
                None
            }
        }
    }

    /// The members that are still what they were.
    fn settle(&self, class: Vec<Stepper>) -> Vec<Member> {
        let settled = class.into_iter().filter_map(|Stepper { member, file, .. }| {
            let (dir, name) = member.names.first()?;
            match self.opener.check(&file, *dir, name, &member.inode) {
                Ok(()) => Some(member),
                Err(error) => {
                    self.problems.error(&error);
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
            if let Err(error) = stepper.read(bytes, at, self.opener) {
                self.problems.error(&error);
            } else if equal.is_empty() || self.first.get(..len) == self.other.get(..len) {
                equal.push(stepper);
            } else {
                let digest = checksum(&[self.other.get(..len).unwrap_or_default()]);
                others.entry(digest).or_default().push(stepper);
            }
        }
        std::iter::once(equal).chain(others.into_values()).collect()
    }

    /// Tells many files apart by the digests of one range of each.
    fn split(&mut self, set: Set, end: u64, sets: &mut Vec<Set>) -> Result<()> {
        let to = end.min(set.at.saturating_add(set.range));
        let mut classes: BTreeMap<Digest, Vec<Member>> = BTreeMap::new();
        for member in set.members {
            self.stop.check()?;
            let Some(mut stepper) = self.open(member) else { continue };
            match self.digest(&mut stepper, set.at, to) {
                Ok(digest) => {
                    if let Some(member) = self.settle(vec![stepper]).pop() {
                        classes.entry(digest).or_default().push(member);
                    }
                }
                Err(error) => self.problems.error(&error),
            }
        }
        let range = set.range.saturating_mul(RANGE_GROWTH);
        sets.extend(classes.into_values().map(|members| Set { members, at: to, range }));
        Ok(())
    }

    /// Of the pieces from `at` to `to` that hold more than zeros, and where they are: the same
    /// whether zeros are holes or not.
    fn digest(&mut self, stepper: &mut Stepper, mut at: u64, to: u64) -> Result<Digest> {
        let mut hasher = Hasher::plain();
        while at < to {
            self.stop.check()?;
            let data = stepper.data_from(at, to);
            at += (data - at) / PIECE * PIECE;
            let len = STEP_MAX.min(to - at) as usize;
            let Some(bytes) = self.first.get_mut(..len).filter(|bytes| !bytes.is_empty()) else { break };
            stepper.read(bytes, at, self.opener)?;
            for (number, piece) in bytes.chunks(PIECE as usize).enumerate() {
                if !is_zero(piece) {
                    hasher.update(&(at + number as u64 * PIECE).to_be_bytes()).update(piece);
                }
            }
            at += len as u64;
        }
        Ok(hasher.finish())
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
