//! `varv history`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use serde::Serialize;

use super::entry::{size, timestamp};
use super::error::Exit;
use super::global::Global;
use super::select::Filters;
use super::signals::STOP;
use super::{Outcome, output};
use crate::error::Error;
use crate::format::tree::Entry;
use crate::history::diff::Aspects;
use crate::history::resolve::series_of;
use crate::history::versions::{Happened, Version, versions};
use crate::repo::Intent;
use crate::repo::snapshots::Listed;
use crate::text::{escape, format_size};

/// List every version of a path through all snapshots.
#[derive(Debug, Args)]
pub struct History {
    /// The path in the snapshots, a stream's name or a volume
    #[arg(value_name = "PATH")]
    path: OsString,
    #[command(flatten)]
    filters: Filters,
}

/// What `history --json` says before the versions.
#[derive(Serialize)]
struct Head {
    path: String,
}

/// A version in JSON.
#[derive(Serialize)]
struct Row {
    snapshot: String,
    time: String,
    last_snapshot: String,
    last_time: String,
    snapshots: u64,
    change: &'static str,
    what: Vec<&'static str>,
    kind: Option<&'static str>,
    bytes: Option<u64>,
    bytes_new: Option<u64>,
    mtime: Option<String>,
}

impl History {
    /// Lists them, oldest first.
    pub fn run(self, global: &Global) -> Outcome {
        let repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let catalog = repo.catalog(&observer, &STOP)?;
        let (selection, found) = (self.filters.selection(), repo.snapshots()?);
        let series = series_of(&catalog, &selection, &found, Some(self.path.as_bytes()))?;
        observer.finish();
        let mut problems = selection.damaged(&found);
        let mut rows =
            global.json.then(|| output::Array::of_object(&Head { path: escape(&series.path) }, "versions"));
        let mut each = |version: Version| {
            match &mut rows {
                Some(rows) => rows.item(&Row::new(&version)),
                None => text(&version),
            }
            Ok(())
        };
        let mut damaged = |listed: &Listed, error: Error| {
            problems.push(format!("snapshot {} is passed over: {error}", listed.id.short()));
        };
        versions(&catalog, &series, &STOP, &mut each, &mut damaged)?;
        if let Some(rows) = rows {
            rows.end("]}");
        }
        catalog.close(&observer)?;
        problems.iter().for_each(|problem| output::notice(problem));
        Ok(if problems.is_empty() { Exit::Done } else { Exit::Damage })
    }
}

impl Row {
    fn new(version: &Version) -> Self {
        let Version { first, last, snapshots, happened, entry, bytes_new } = version;
        let entry = entry.as_ref();
        let time = |listed: &Listed| output::rfc3339(listed.snapshot.time, listed.snapshot.offset);
        Self {
            snapshot: first.id.to_string(),
            time: time(first),
            last_snapshot: last.id.to_string(),
            last_time: time(last),
            snapshots: *snapshots,
            change: word(happened),
            what: aspects(happened).map(|aspects| aspects.words()).unwrap_or_default(),
            kind: entry.map(Entry::kind),
            bytes: entry.map(size),
            bytes_new: entry.and(*bytes_new),
            mtime: entry
                .and_then(|entry| timestamp(entry.modified))
                .map(|time| output::rfc3339(time, first.snapshot.offset)),
        }
    }
}

fn word(happened: &Happened) -> &'static str {
    match happened {
        Happened::Created => "created",
        Happened::Changed(_) => "changed",
        Happened::Deleted => "deleted",
    }
}

fn aspects(happened: &Happened) -> Option<Aspects> {
    match happened {
        Happened::Changed(aspects) => Some(*aspects),
        _ => None,
    }
}

fn text(version: &Version) {
    let Version { first, snapshots, happened, entry, bytes_new, .. } = version;
    let why = match aspects(happened) {
        Some(aspects) => format!("  ({})", aspects.words().join(", ")),
        None => String::new(),
    };
    let what = match entry {
        Some(entry) => {
            let anew = bytes_new.map_or_else(|| "damaged".into(), format_size);
            format!("{:>10}  {anew:>10} new  {}", format_size(size(entry)), entry.kind())
        }
        None => String::new(),
    };
    let line = format!(
        "{}  {}  {snapshots:>4} x  {:<7}  {what}{why}",
        output::time(first.snapshot.time, first.snapshot.offset),
        first.id.short(),
        word(happened),
    );
    output::line(line.trim_end());
}
