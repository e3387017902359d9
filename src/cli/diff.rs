//! `varv diff`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use serde::Serialize;

use super::differences::{Differences, SideRow};
use super::global::Global;
use super::select::Filters;
use super::signals::STOP;
use super::{Outcome, clock};
use crate::history::changes::{Point, pair_of};
use crate::repo::Intent;

/// List what differs between two snapshots.
///
/// A and B are ids of snapshots, unique prefixes of them, times, or latest. Of files and volumes, the
/// ranges whose chunks differ are counted, and listed with -v. Ends with exit code 5 if
/// something differs.
#[derive(Debug, Args)]
pub struct Diff {
    /// The earlier snapshot: its id, latest, or a time such as 2026-11-20, 3D or 2B
    #[arg(value_name = "A", value_parser = point)]
    before: Point,
    /// The later snapshot
    #[arg(value_name = "B", value_parser = point)]
    after: Point,
    /// Only this path and what is below it
    #[arg(value_name = "PATH")]
    path: Option<OsString>,
    #[command(flatten)]
    filters: Filters,
}

/// What `diff --json` says of what is compared.
#[derive(Serialize)]
struct Head {
    before: SideRow,
    after: SideRow,
}

/// Whether it is an id is known when there is a repository.
fn point(text: &str) -> Result<Point, String> {
    Ok(Point { text: text.into(), when: clock::when(text) })
}

impl Diff {
    /// Lists it.
    pub fn run(self, global: &Global) -> Outcome {
        let repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let catalog = repo.catalog(&observer, &STOP)?;
        let (selection, found) = (self.filters.selection(), repo.snapshots()?);
        let path = self.path.as_ref().map(|path| path.as_bytes());
        let pair = pair_of(&catalog, &selection, &found, [&self.before, &self.after], path)?;
        observer.finish();
        let head = Head { before: SideRow::new(pair.before), after: SideRow::new(pair.after) };
        let mut differences = Differences::begin(global, &head);
        pair.diff(&catalog, &STOP, &mut |path, change| {
            differences.row(path, &change);
            Ok(())
        })?;
        catalog.close(&observer)?;
        Ok(differences.end().exit())
    }
}
