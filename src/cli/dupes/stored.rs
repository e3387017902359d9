//! What a repository knows: from arguments to a report.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;

use super::live::write;
use super::out::Out;
use super::{Dupes, Told, json, text};
use crate::cli::error::Exit;
use crate::cli::global::Global;
use crate::cli::select::SnapshotChoice;
use crate::cli::signals::STOP;
use crate::cli::{Outcome, output};
use crate::dupes::Temporary;
use crate::dupes::stored::{self, Options, Place};
use crate::error::{Error, Result};
use crate::history::resolve::{find_path, one_of_each_series, whole_paths};
use crate::repo::Intent;
use crate::repo::catalog::Catalog;
use crate::repo::snapshots::{Listed, Snapshots as Found};
use crate::text::escape;

/// Which snapshots are looked into: of each host and label the newest, if nothing else is said.
#[derive(Debug, Args)]
#[command(next_help_heading = "From the repository")]
pub struct Snapshots {
    #[command(flatten)]
    choice: SnapshotChoice,
    /// All snapshots, and so versions of files
    #[arg(long, conflicts_with_all = ["snapshot", "at"])]
    all: bool,
    /// Files are partly equal from so many percent of the shorter one on
    #[arg(long, value_name = "PCT", value_parser = clap::value_parser!(u64).range(1..=100))]
    share: Option<u64>,
    /// Do not look for partly equal files
    #[arg(long, conflicts_with = "share")]
    no_partly: bool,
}

/// Of the shorter file's bytes.
const SHARE_MIN: u64 = 50;

impl Snapshots {
    /// An option that was given and means nothing without a repository.
    pub fn given(&self) -> Option<&'static str> {
        let filters = &self.choice.filters;
        let given = [
            (self.choice.snapshot.is_some(), "--snapshot"),
            (filters.label.is_some(), "--label"),
            (filters.host.is_some(), "--host"),
            (filters.tag.is_some(), "--tag"),
            (self.choice.at.is_some(), "--at"),
            (self.all, "--all"),
            (self.share.is_some(), "--share"),
            (self.no_partly, "--no-partly"),
        ];
        given.into_iter().find(|(given, _)| *given).map(|(_, name)| name)
    }

    /// The snapshots in the order of their series and time; `all` of them if nothing is said.
    pub fn choose<'s>(&self, found: &'s Found, all: bool) -> Result<Vec<&'s Listed>> {
        let selection = self.choice.selection();
        let mut chosen = selection.choose(found)?;
        if !(self.all || all && selection.at.is_none() || selection.snapshot.is_some()) {
            chosen = one_of_each_series(&chosen, selection.at.as_ref())?;
        }
        let series = |listed: &Listed| (listed.snapshot.host.clone(), listed.snapshot.label.clone());
        chosen.sort_by_key(|listed| series(listed));
        Ok(chosen)
    }
}

/// Where the paths are in the snapshots; without a path, all of them.
fn places<'s>(catalog: &Catalog, chosen: &[&'s Listed], dirs: &[PathBuf]) -> Result<Vec<Place<'s>>> {
    if dirs.is_empty() {
        return Ok(chosen.iter().map(|listed| Place { listed, entry: None }).collect());
    }
    let mut paths = Vec::new();
    for dir in dirs {
        paths.push(found_path(catalog, chosen, dir.as_os_str().as_bytes())?);
    }
    // What lies below another path is looked at with it.
    let is_below = |path: &[u8], above: &[u8]| {
        path.strip_prefix(above)
            .is_some_and(|rest| !rest.is_empty() && (rest.starts_with(b"/") || above == b"/"))
    };
    let all = paths.clone();
    paths.retain(|path| !all.iter().any(|above| is_below(path, above)));
    paths.sort();
    paths.dedup();
    let mut places = Vec::new();
    for listed in chosen {
        for path in &paths {
            if let Some(entry) = find_path(catalog, &listed.snapshot, path)? {
                places.push(Place { listed, entry: Some((path.clone(), entry)) });
            }
        }
    }
    Ok(places)
}

/// What a path of the command line is called in some snapshot.
fn found_path(catalog: &Catalog, chosen: &[&Listed], path: &[u8]) -> Result<Vec<u8>> {
    for name in whole_paths(path)? {
        for listed in chosen {
            if find_path(catalog, &listed.snapshot, &name)?.is_some() {
                return Ok(name);
            }
        }
    }
    let (path, count) = (escape(path), chosen.len());
    Err(Error::NotFound(format!("{path} is in none of the {count} snapshots that were looked at")))
}

/// Finds, and reports.
pub fn run(arguments: Dupes, global: &Global) -> Outcome {
    let format = arguments.format(global);
    let Dupes { dirs, filters, isolate, unique, snapshots, .. } = arguments;
    let share = snapshots.share.unwrap_or(SHARE_MIN);
    let options = Options {
        temporary: Temporary::new(std::env::temp_dir()),
        filters: filters.filters(),
        isolate,
        unique,
        share_min: (!snapshots.no_partly).then_some(share),
    };
    let repo = global.open(Intent::Read)?;
    let observer = global.observer();
    let found = repo.snapshots()?;
    let chosen = snapshots.choose(&found, false)?;
    if chosen.is_empty() {
        return Err(Error::NotFound("no snapshot fits: see varv snapshots".into()));
    }
    let catalog = repo.catalog(&observer, &STOP)?;
    let places = places(&catalog, &chosen, &dirs)?;
    let report = stored::run(&catalog, &places, &options, &observer, &STOP)?;
    observer.finish();
    catalog.close(&observer)?;
    let mut out = Out::default();
    write(&report, &told(&options), format, global.quiet, &mut out)?;
    out.flush();
    if snapshots.choice.snapshot.is_some() {
        return Ok(Exit::Done);
    }
    for (_, error) in &found.damaged {
        output::notice(&error.to_string());
    }
    Ok(if found.damaged.is_empty() { Exit::Done } else { Exit::Damage })
}

fn told(options: &Options) -> Told {
    let policy = json::Policy::new(&options.filters, false, options.isolate);
    Told { text: text::stored_policy(options), policy, unique: options.unique }
}
