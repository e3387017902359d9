//! A report as a plan: all but one of equal files become links to it, share its bytes, or go.
//!
//! The report is old when it is acted on, so nothing in it is believed: each file is opened, must
//! be the inode of that length and time, and is compared with the one that is kept, byte by byte,
//! before it is touched (`act`).

mod act;
pub mod leftover;
mod plan;
mod rows;

use std::fs::File;
use std::io::{BufReader, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Problems;
use super::record::Inode;
use super::report::FileRow;
use super::sorter::Temporary;
use crate::error::{Error, IoContext, Result};
use crate::observe::{Event, Observer, Stop};
use crate::text::unescape;
use act::{Actor, Known};
use leftover::is_leftover;
use plan::Plan;
use rows::Planned;

/// What is done to a file that is equal to the one that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Its names become names of the one that is kept.
    Hardlink,
    /// It shares the bytes of the one that is kept, and keeps its own metadata.
    Reflink,
    /// Its names are removed.
    Remove,
}

/// Which file of a group is kept. Files below directories of references always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// That which was modified first.
    Oldest,
    /// That which was modified last.
    Newest,
    /// That of the root that was named first.
    FirstRoot,
    /// That with the shortest path.
    ShortestPath,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Options {
    /// The report, as JSON.
    pub report: PathBuf,
    /// What to do.
    pub action: Action,
    /// What to keep.
    pub keep: Keep,
    /// Only check, and tell.
    pub dry_run: bool,
    /// Where what does not fit in memory goes.
    pub temporary: Temporary,
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Groups in the report.
    pub groups: u64,
    /// Files that it was done to, or would be.
    pub files: u64,
    /// Their names.
    pub names: u64,
    /// What those files took, or share now; not of files with names elsewhere.
    pub bytes: u64,
    /// What was read to compare.
    pub bytes_read: u64,
    /// Files that were left as they are because of what was found.
    pub problems: u64,
    /// How long it took.
    pub seconds: f64,
}

/// One step: what is done to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    /// What: a name that a killed run left is removed, whatever is done to others.
    pub action: Action,
    /// A path of the file that is kept.
    pub kept: &'a Path,
    /// The name.
    pub name: &'a Path,
    /// An earlier name of the same file, if there is one: they stay one file.
    pub first: Option<&'a Path>,
}

/// What came of it.
#[derive(Debug)]
pub struct Applied {
    /// What was counted.
    pub totals: Totals,
    /// What was left as it is, and why; at most 1000.
    pub left_out: Vec<(PathBuf, String)>,
}

/// Does what the report says; `each` is told of each step that was done, or would be.
pub fn run(
    options: &Options,
    observer: &dyn Observer,
    stop: &Stop,
    each: &mut dyn FnMut(&Step),
) -> Result<Applied> {
    let begin = Instant::now();
    let mut file = File::open(&options.report).at("open", &options.report)?;
    let Options { report, keep, temporary, .. } = options;
    let plan = Plan { report, keep: *keep, temporary };
    // A report that ends early is found out before anything is done.
    let reader = |file: &File| file.try_clone().map(BufReader::new).at("read", report);
    plan.for_each_group(reader(&file)?, &mut |_| stop.check())?;
    file.rewind().at("read", report)?;
    observer.event(Event::Phase { name: "comparing", bytes: None });
    let problems = Problems::new(observer);
    let mut applier =
        Applier { options, problems: &problems, actor: Actor::new(stop), totals: Totals::default(), each };
    plan.for_each_group(reader(&file)?, &mut |group| {
        stop.check()?;
        applier.group(group)
    })?;
    let mut totals = applier.totals;
    totals.bytes_read = applier.actor.bytes_read;
    let (count, left_out) = problems.finish();
    totals.problems = count;
    totals.seconds = begin.elapsed().as_secs_f64();
    Ok(Applied { totals, left_out })
}

struct Applier<'a> {
    options: &'a Options,
    problems: &'a Problems<'a>,
    actor: Actor<'a>,
    totals: Totals,
    each: &'a mut dyn FnMut(&Step),
}

/// Whether going on with the next file makes sense.
fn is_about_one_file(error: &Error) -> bool {
    matches!(error, Error::Io { .. } | Error::Refused(_))
}

impl Applier<'_> {
    fn group(&mut self, group: Planned) -> Result<()> {
        self.totals.groups += 1;
        let Some(kept) = &group.kept else { return Ok(()) };
        let path = path_of_row(&kept.path)?;
        let open = match self.actor.open(&path, kept, group.bytes) {
            Ok(open) => open,
            Err(error) if is_about_one_file(&error) => {
                self.problems.say(&path, &format!("its group is left as it is: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if !self.options.dry_run {
            // What is kept may be all that is left after a power failure.
            open.file.sync_data().at("sync", &path)?;
        }
        self.file(&open, kept, kept, group.bytes)?;
        group.for_each_other(|other| self.file(&open, kept, &other, group.bytes))
    }

    /// Does it to a file, or says why not.
    fn file(&mut self, open: &Known, kept: &FileRow, row: &FileRow, len: u64) -> Result<()> {
        if row.reference {
            return Ok(());
        }
        let names = std::iter::once(&row.path).chain(&row.links).map(|name| path_of_row(name));
        let names = names.collect::<Result<Vec<PathBuf>>>()?;
        let shares = self.options.action == Action::Reflink && row.copy == kept.copy;
        match self.names(open, row, len, &names, shares || row == kept) {
            Err(error) if is_about_one_file(&error) => {
                self.problems.say(&path_of_row(&row.path)?, &error.to_string());
                Ok(())
            }
            result => result,
        }
    }

    /// Does it to all names of a file; if that `is_done`, to those that a killed run left.
    fn names(
        &mut self,
        kept: &Known,
        row: &FileRow,
        len: u64,
        names: &[PathBuf],
        is_done: bool,
    ) -> Result<()> {
        let left = |name: &&PathBuf| is_leftover(name.as_os_str().as_bytes()) && **name != kept.path;
        let Some(first) = names.first().filter(|_| !is_done || names.iter().any(|name| left(&name))) else {
            return Ok(());
        };
        let other = self.actor.open(first, row, len)?;
        // Done before, or by somebody else.
        let is_kept = (other.stat.st_dev, other.stat.st_ino) == (kept.stat.st_dev, kept.stat.st_ino);
        let names: Vec<&PathBuf> = names.iter().filter(|name| !(is_done || is_kept) || left(name)).collect();
        if !is_kept {
            self.actor.compare(kept, &other)?;
        }
        let action = |name: &PathBuf| if left(&name) { Action::Remove } else { self.options.action };
        let has_more_names = Inode::new(&other.stat).links as usize > 1 + row.links.len();
        if let Some(first) = names.first() {
            self.actor.allow(action(first), kept, &other, has_more_names)?;
        }
        let mut done: Vec<&Path> = Vec::new();
        for name in &names {
            let step = Step { action: action(name), kept: &kept.path, name, first: done.first().copied() };
            if !self.options.dry_run {
                match self.actor.act(kept, &other, &step) {
                    Err(error) if is_about_one_file(&error) && !done.is_empty() => {
                        self.problems.say(name, &error.to_string());
                        continue;
                    }
                    result => result?,
                }
            }
            (self.each)(&step);
            self.totals.names += 1;
            done.push(name);
        }
        if names.len() == 1 + row.links.len() {
            self.totals.files += 1;
            if !has_more_names && done.len() == names.len() {
                self.totals.bytes += other.stat.st_blocks as u64 * 512;
            }
        }
        Ok(())
    }
}

fn path_of_row(text: &str) -> Result<PathBuf> {
    let path = unescape(text).map(|bytes| crate::source::path_of(&bytes).to_path_buf());
    path.filter(|path| path.is_absolute())
        .ok_or_else(|| Error::Refused(format!("the report has a path that is none: {text}")))
}
