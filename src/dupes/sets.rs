//! Sets of files of one length and one digest, told apart until those of each are equal.
//!
//! Few files are compared in step. Of more the next range is read, each time a longer one, and
//! what is still equal is sorted again: so a set may be of any size.

use crossbeam_channel::{Receiver, Sender, bounded};

use super::compare::{Comparer, Member, STEP_FILES_MAX};
use super::heads::{END_LEN, WHOLE_MAX};
use super::look::{Batch, Part, Reading};
use super::record::{Digest, FileRecord};
use super::sorter::{Records, Sorted, Sorter, Temporary};
use crate::error::{Error, Result};

/// Threads that compare: with what one of them opens and those that read ranges, 64 files are
/// open at once.
const COMPARERS: usize = 4;
/// Sets that wait for a thread, and classes that wait to be told.
const QUEUE: usize = 64;
/// Files of a class that are told at once.
const TOLD_MAX: usize = 64;
/// The first range that is read of many files.
const RANGE_MIN: u64 = 64 << 10;
/// The others grow by this factor.
const RANGE_GROWTH: u64 = 8;

/// Files that are equal.
pub enum Told {
    /// All of a class.
    Class(Vec<Member>),
    /// Some of a large one; more will follow before those of any other large one.
    Some(Vec<Member>),
    /// The last of it.
    Last(Vec<Member>),
}

/// A set that is to be compared, and where its files may begin to differ.
type Work = (Vec<Member>, u64);

/// Calls `tell` with all classes of equal files; with those of one file if `unique`.
pub fn tell_apart(
    heads: Sorted,
    reading: Reading,
    temporary: &Temporary,
    unique: bool,
    mut tell: impl FnMut(Told) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (sets, work) = bounded::<Work>(QUEUE);
        let (classes, results) = bounded::<Result<Told>>(QUEUE);
        for _ in 0..COMPARERS {
            let (work, classes) = (work.clone(), classes.clone());
            scope.spawn(move || compare_sets(&work, &classes, &mut Comparer::new(reading)));
        }
        drop(work);
        scope.spawn(move || {
            let rounds = Rounds { reading, temporary, unique, sets, classes: classes.clone() };
            if let Err(error) = rounds.run(heads) {
                let _ = classes.send(Err(error));
            }
        });
        results.iter().try_for_each(|told| tell(told?))
    })
}

/// Whoever receives is gone once it has failed.
fn compare_sets(work: &Receiver<Work>, out: &Sender<Result<Told>>, comparer: &mut Comparer) {
    for (set, at) in work {
        let sent = match comparer.classes(set, at) {
            Ok(classes) => classes.into_iter().try_for_each(|class| out.send(Ok(Told::Class(class)))),
            Err(error) => out.send(Err(error)),
        };
        if sent.is_err() {
            return;
        }
    }
}

struct Rounds<'a> {
    reading: Reading<'a>,
    temporary: &'a Temporary,
    unique: bool,
    sets: Sender<Work>,
    classes: Sender<Result<Told>>,
}

/// Files of one length and digest; of a large set those that were not passed on.
struct Set {
    key: (u64, Digest),
    members: Vec<Member>,
    /// Whether all bytes were read.
    is_whole: bool,
    is_large: bool,
}

impl Rounds<'_> {
    fn run(&self, mut sorted: Sorted) -> Result<()> {
        let (mut at, mut len) = (END_LEN, RANGE_MIN);
        while let Some(next) = self.round(&sorted, at, at.saturating_add(len))? {
            sorted = next;
            at = at.saturating_add(len);
            len = len.saturating_mul(RANGE_GROWTH);
        }
        Ok(())
    }

    /// Passes on sets of files of which all before `at` was read, or few; of the others reads what
    /// is before `to`.
    fn round(&self, sorted: &Sorted, at: u64, to: u64) -> Result<Option<Sorted>> {
        let mut batch = Batch::new(self.reading, Part::Range(at, to), Sorter::new(self.temporary));
        let mut members = Members { records: sorted.records()?, next: None, digest: Digest::default() };
        let mut set: Option<Set> = None;
        let mut is_last = true;
        while let Some((member, digest)) = members.next()? {
            self.reading.stop.check()?;
            let key = (member.inode.len, digest);
            if set.as_ref().is_some_and(|set| set.key != key)
                && let Some(set) = set.take()
            {
                self.end(set, at)?;
            }
            let set = set.get_or_insert_with(|| Set {
                key,
                members: Vec::new(),
                is_whole: key.0 <= WHOLE_MAX || at >= key.0 - END_LEN,
                is_large: false,
            });
            set.members.push(member);
            let max = if set.is_whole { TOLD_MAX } else { STEP_FILES_MAX };
            if set.is_large && !set.is_whole || set.members.len() > max {
                set.is_large = true;
                is_last &= set.is_whole;
                self.pass_on(set, &mut batch)?;
            }
        }
        set.map_or(Ok(()), |set| self.end(set, at))?;
        if is_last { Ok(None) } else { batch.finish().map(Some) }
    }

    /// Passes on what there is of a large set.
    fn pass_on(&self, set: &mut Set, batch: &mut Batch) -> Result<()> {
        if set.is_whole {
            return send(&self.classes, Ok(Told::Some(std::mem::take(&mut set.members))));
        }
        for Member { inode, names } in set.members.drain(..) {
            for (dir, name) in &names {
                batch.add(&FileRecord { inode, dir: *dir, name }, &set.key.1)?;
            }
        }
        Ok(())
    }

    /// Passes on the rest of a set.
    fn end(&self, Set { members, is_whole, is_large, .. }: Set, at: u64) -> Result<()> {
        match (is_whole, is_large) {
            (true, true) => send(&self.classes, Ok(Told::Last(members))),
            (false, true) => Ok(()),
            _ if members.len() == 1 && !self.unique => Ok(()),
            _ if members.len() == 1 || is_whole => send(&self.classes, Ok(Told::Class(members))),
            _ => send(&self.sets, (members, at)),
        }
    }
}

fn send<T>(to: &Sender<T>, what: T) -> Result<()> {
    to.send(what).map_err(|_| Error::Internal("nobody takes files any more"))
}

/// Goes through records of read files, file by file.
struct Members<'s> {
    records: Records<'s>,
    /// The next file.
    next: Option<Member>,
    /// What was read of it.
    digest: Digest,
}

impl Members<'_> {
    fn next(&mut self) -> Result<Option<(Member, Digest)>> {
        while let Some(record) = self.records.next()? {
            let (name, digest) = FileRecord::of_read(record)?;
            let before = Member::join(&mut self.next, &name);
            let of_before = std::mem::replace(&mut self.digest, digest);
            if let Some(before) = before {
                return Ok(Some((before, of_before)));
            }
        }
        Ok(self.next.take().map(|last| (last, self.digest)))
    }
}
