//! A report as a plan: all but one of equal files become links to it, share its bytes, or go.
//!
//! The report is old when it is acted on, so nothing in it is believed: each file is opened, must
//! be the inode of that length and time, and is compared with the one that is kept, byte by byte,
//! before it is touched (`act`).

mod act;
mod plan;

use std::cmp::Reverse;
use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::Problems;
use super::record::Inode;
use super::report::FileRow;
use crate::error::{Error, IoContext, Result};
use crate::observe::{Event, Observer, Stop};
use crate::text::unescape;
use act::{Actor, Known};
use plan::Planned;

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
    // A report that ends early is found out before anything is done.
    let reader = |file: &File| file.try_clone().map(BufReader::new).at("read", &options.report);
    plan::for_each_group(reader(&file)?, &options.report, &mut |_| stop.check())?;
    file.rewind().at("read", &options.report)?;
    observer.event(Event::Phase { name: "comparing", bytes: None });
    let problems = Problems::new(observer);
    let mut applier =
        Applier { options, problems: &problems, actor: Actor::new(stop), totals: Totals::default(), each };
    plan::for_each_group(reader(&file)?, &options.report, &mut |group| {
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
        let Some(kept) = choose(&group.files, self.options.keep) else { return Ok(()) };
        let others: Vec<&FileRow> = group
            .files
            .iter()
            .enumerate()
            .filter(|(number, file)| *number != kept && !file.reference)
            .map(|(_, file)| file)
            .collect();
        let Some(kept) = group.files.get(kept).filter(|_| !others.is_empty()) else { return Ok(()) };
        let shares = |file: &FileRow| self.options.action == Action::Reflink && file.copy == kept.copy;
        let others: Vec<&FileRow> = others.into_iter().filter(|file| !shares(file)).collect();
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
        for other in others {
            match self.file(&open, other, group.bytes) {
                Err(error) if is_about_one_file(&error) => {
                    self.problems.say(&path_of_row(&other.path)?, &error.to_string());
                }
                result => result?,
            }
        }
        Ok(())
    }

    fn file(&mut self, kept: &Known, row: &FileRow, len: u64) -> Result<()> {
        let names = std::iter::once(&row.path).chain(&row.links).map(|name| path_of_row(name));
        let names = names.collect::<Result<Vec<PathBuf>>>()?;
        let Some(first) = names.first() else { return Ok(()) };
        let other = self.actor.open(first, row, len)?;
        if (other.stat.st_dev, other.stat.st_ino) == (kept.stat.st_dev, kept.stat.st_ino) {
            // Done before, or by somebody else.
            return Ok(());
        }
        self.actor.compare(kept, &other)?;
        let has_more_names = Inode::new(&other.stat).links as usize > names.len();
        self.actor.allow(self.options.action, kept, &other, has_more_names)?;
        let mut done: Vec<&Path> = Vec::new();
        for name in &names {
            let step = Step { kept: &kept.path, name, first: done.first().copied() };
            if !self.options.dry_run {
                match self.actor.act(self.options.action, kept, &other, &step) {
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
        self.totals.files += 1;
        if !has_more_names && done.len() == names.len() {
            self.totals.bytes += other.stat.st_blocks as u64 * 512;
        }
        Ok(())
    }
}

/// The number of the file that is kept.
fn choose(files: &[FileRow], keep: Keep) -> Option<usize> {
    let any_reference = files.iter().any(|file| file.reference);
    let candidates = files.iter().enumerate().filter(|(_, file)| file.reference == any_reference);
    // A file whose time no calendar has is kept last of all.
    let chosen = match keep {
        Keep::Oldest => {
            candidates.min_by_key(|(_, file)| (file.modified.is_none(), file.modified, &file.path))
        }
        Keep::Newest => {
            candidates.min_by_key(|(_, file)| (file.modified.is_none(), Reverse(file.modified), &file.path))
        }
        Keep::FirstRoot => candidates.min_by_key(|(_, file)| (file.root, &file.path)),
        Keep::ShortestPath => {
            let len = |file: &FileRow| unescape(&file.path).map_or(usize::MAX, |path| path.len());
            candidates.min_by_key(|(_, file)| (len(file), &file.path))
        }
    };
    chosen.map(|(number, _)| number)
}

fn path_of_row(text: &str) -> Result<PathBuf> {
    let path = unescape(text).map(|bytes| crate::source::path_of(&bytes).to_path_buf());
    path.filter(|path| path.is_absolute())
        .ok_or_else(|| Error::Refused(format!("the report has a path that is none: {text}")))
}
