//! Acting on a report: from arguments to a summary, or to a script of what would be done.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::json::LeftOut;
use super::out::Out;
use crate::cli::error::Exit;
use crate::cli::global::Global;
use crate::cli::signals::STOP;
use crate::cli::{Outcome, output};
use crate::dupes::Temporary;
use crate::dupes::apply::{self, Action, Applied, Keep, Options, Step};
use crate::error::{Error, Result};
use crate::text::{escape, format_size};

/// What is done with a report.
#[derive(Debug, Args)]
#[command(next_help_heading = "Acting on a report")]
pub struct Apply {
    /// Act on REPORT, which --format json wrote; each file is compared again before it is touched
    #[arg(
        long,
        value_name = "REPORT",
        conflicts_with_all = ["dirs", "from_repository", "against_repository", "reference", "isolate", "unique"]
    )]
    apply: Option<PathBuf>,
    /// Make the other files names of the one that is kept
    #[arg(long, requires = "apply", conflicts_with_all = ["reflink", "remove"])]
    hardlink: bool,
    /// Let the other files share the bytes of the one that is kept
    #[arg(long, requires = "apply", conflicts_with = "remove")]
    reflink: bool,
    /// Remove the other files
    #[arg(long, requires = "apply")]
    remove: bool,
    /// Which file of a group is kept; those below a --reference always are
    #[arg(long, value_name = "RULE", requires = "apply")]
    keep: Option<Rule>,
    /// Do nothing, and print a shell script of what would be done
    #[arg(long, requires = "apply")]
    dry_run: bool,
}

/// Which file of a group is kept.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Rule {
    /// That which was modified first
    Oldest,
    /// That which was modified last
    Newest,
    /// That of the DIR that was named first
    FirstRoot,
    /// That with the shortest path
    ShortestPath,
}

/// What `dupes --apply --json` prints.
#[derive(Serialize)]
struct Summary<'a> {
    action: &'static str,
    dry_run: bool,
    groups: u64,
    files: u64,
    names: u64,
    bytes: u64,
    bytes_read: u64,
    left_out: Vec<LeftOut<'a>>,
    errors: u64,
    seconds: f64,
}

impl Apply {
    /// Whether a report is to be acted on.
    pub fn is_given(&self) -> bool {
        self.apply.is_some()
    }

    fn options(&self) -> Result<Options> {
        let refused = |why: &str| Err(Error::Refused(why.into()));
        let action = match (self.hardlink, self.reflink, self.remove) {
            (true, ..) => Action::Hardlink,
            (_, true, _) => Action::Reflink,
            (.., true) => Action::Remove,
            _ => return refused("--apply needs one of --hardlink, --reflink and --remove"),
        };
        let keep = match self.keep {
            Some(Rule::Oldest) => Keep::Oldest,
            Some(Rule::Newest) => Keep::Newest,
            Some(Rule::FirstRoot) => Keep::FirstRoot,
            Some(Rule::ShortestPath) => Keep::ShortestPath,
            None => return refused("--apply needs --keep oldest, newest, first-root or shortest-path"),
        };
        let report = self.apply.clone().unwrap_or_default();
        let temporary = Temporary::new(std::env::temp_dir());
        Ok(Options { report, action, keep, dry_run: self.dry_run, temporary })
    }

    /// Acts, or tells what it would do.
    pub fn run(&self, global: &Global) -> Outcome {
        let options = self.options()?;
        let observer = global.observer();
        let mut out = Out::default();
        let tells = options.dry_run && !global.json;
        if tells {
            out.line("#!/bin/sh");
            out.line("# What varv dupes --apply would do now. Each line compares once more.");
        }
        let applied = apply::run(&options, &observer, &STOP, &mut |step| {
            if tells {
                script(step, &mut out);
            }
        })?;
        observer.finish();
        out.flush();
        match global.json {
            true => output::json(&summary(&options, &applied)),
            false if global.quiet || options.dry_run => {}
            false => text(&options, &applied),
        }
        Ok(if applied.totals.problems == 0 { Exit::Done } else { Exit::Incomplete })
    }
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::Hardlink => "hardlink",
        Action::Reflink => "reflink",
        Action::Remove => "remove",
    }
}

fn summary<'a>(options: &Options, Applied { totals, left_out }: &'a Applied) -> Summary<'a> {
    let left_out = left_out
        .iter()
        .map(|(path, what)| LeftOut { path: escape(path.as_os_str().as_encoded_bytes()), what })
        .collect();
    Summary {
        action: verb(options.action),
        dry_run: options.dry_run,
        groups: totals.groups,
        files: totals.files,
        names: totals.names,
        bytes: totals.bytes,
        bytes_read: totals.bytes_read,
        left_out,
        errors: totals.problems,
        seconds: totals.seconds,
    }
}

fn text(options: &Options, Applied { totals, .. }: &Applied) {
    let (done, gained) = match options.action {
        Action::Hardlink => ("linked", "freed"),
        Action::Reflink => ("shared", "freed"),
        Action::Remove => ("removed", "freed"),
    };
    let (files, names, bytes) = (totals.files, totals.names, format_size(totals.bytes));
    output::line(&format!("{done:<10} {files} files with {names} names; {bytes} {gained}"));
    if totals.problems > 0 {
        output::line(&format!("left out   {} files, which stay as they are", totals.problems));
    }
    let read = format_size(totals.bytes_read);
    output::line(&format!("compared   {read} of {} groups in {:.2} s", totals.groups, totals.seconds));
}

/// A step as a line of a shell script; a path may have line breaks in it.
fn script(step: &Step, out: &mut Out) {
    let (kept, name) = (quoted(step.kept), quoted(step.name));
    let first = quoted(step.first.unwrap_or(step.kept));
    let aside = [&name[..], b".varv-dupes"].concat();
    let words: Vec<&[u8]> = match (step.action, step.first) {
        (Action::Remove, _) => vec![b"rm --", &name],
        (Action::Hardlink, _) => vec![b"ln -f --", &kept, &name],
        (Action::Reflink, Some(_)) => vec![b"ln -f --", &first, &name],
        (Action::Reflink, None) => vec![
            b"cp --reflink=always --",
            &kept,
            &aside,
            b"&& cp --attributes-only --preserve=all --",
            &name,
            &aside,
            b"&& mv -f --",
            &aside,
            &name,
        ],
    };
    out.bytes(&[b"cmp -s -- ", &kept[..], b" ", &name, b" && ", &words.join(&b' '), b"\n"].concat());
}

/// In single quotes, in which only those themselves mean something.
fn quoted(path: &Path) -> Vec<u8> {
    let mut out = vec![b'\''];
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'\'' => out.extend_from_slice(b"'\\''"),
            byte => out.push(*byte),
        }
    }
    out.push(b'\'');
    out
}
