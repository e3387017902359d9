//! `varv find`.

use std::ffi::OsString;

use clap::Args;
use serde::Serialize;

use super::entry::EntryRow;
use super::error::Exit;
use super::global::Global;
use super::select::SnapshotChoice;
use super::signals::STOP;
use super::{Outcome, output};
use crate::error::{Error, Result};
use crate::history::find::{Pattern, find};
use crate::history::resolve::one_of_each_series;
use crate::repo::Intent;
use crate::repo::catalog::Catalog;
use crate::repo::snapshots::Listed;
use crate::text::escape;

/// Find paths in snapshots.
///
/// Looks into the newest snapshot of each host and label, into that of a time, or into the one
/// that is named.
#[derive(Debug, Args)]
pub struct Find {
    /// What to look for, with *, ? and [a-z] as in gitignore: a name or, with a slash, a path
    #[arg(value_name = "PATTERN")]
    pattern: OsString,
    #[command(flatten)]
    choice: SnapshotChoice,
    /// Look into all snapshots
    #[arg(long, conflicts_with_all = ["snapshot", "at"])]
    all: bool,
}

/// What `find --json` prints for each path.
#[derive(Serialize)]
struct Row {
    snapshot: String,
    time: String,
    #[serde(flatten)]
    entry: EntryRow,
}

impl Find {
    /// Finds.
    pub fn run(self, global: &Global) -> Outcome {
        let pattern = self.pattern.to_str().ok_or_else(|| {
            Error::Refused("a pattern must be UTF-8: write ? for each byte that is not".into())
        })?;
        let pattern = Pattern::new(pattern)?;
        let repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let catalog = repo.catalog(&observer, &STOP)?;
        observer.finish();
        let found = repo.snapshots()?;
        let selection = self.choice.selection();
        let chosen = selection.choose(&found)?;
        let searched = if self.all { chosen } else { one_of_each_series(&chosen, selection.at.as_ref())? };
        match global.json {
            true => json(&catalog, &searched, &pattern)?,
            false => text(&catalog, &searched, &pattern)?,
        }
        catalog.close(&observer)?;
        if self.choice.snapshot.is_some() {
            return Ok(Exit::Done);
        }
        for (_, error) in &found.damaged {
            output::notice(&error.to_string());
        }
        Ok(if found.damaged.is_empty() { Exit::Done } else { Exit::Damage })
    }
}

fn text(catalog: &Catalog, searched: &[&Listed], pattern: &Pattern) -> Result<()> {
    find(catalog, searched, pattern, &STOP, &mut |Listed { id, snapshot }, path, _| {
        let time = output::time(snapshot.time, snapshot.offset);
        output::line(&format!("{}  {time}  {}", id.short(), escape(path)));
        Ok(())
    })
}

fn json(catalog: &Catalog, searched: &[&Listed], pattern: &Pattern) -> Result<()> {
    let mut rows = output::Array::begin("[");
    find(catalog, searched, pattern, &STOP, &mut |Listed { id, snapshot }, path, entry| {
        rows.item(&Row {
            snapshot: id.to_string(),
            time: output::rfc3339(snapshot.time, snapshot.offset),
            entry: EntryRow::new(path, entry, snapshot.offset),
        });
        Ok(())
    })?;
    rows.end("]");
    Ok(())
}
