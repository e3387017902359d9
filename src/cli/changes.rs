//! `varv changes`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use serde::Serialize;

use super::differences::{Differences, SideRow};
use super::global::Global;
use super::select::Filters;
use super::signals::STOP;
use super::{Outcome, clock, output};
use crate::history::changes::{Pair, pairs};
use crate::history::resolve::{series_of, too_early};
use crate::repo::Intent;
use crate::text::escape;
use crate::time::When;

/// List what changed between two times: new, changed and deleted paths.
///
/// Compares the newest snapshot that is not after --since with the newest one, or with that of
/// --at. Ends with exit code 5 if something changed.
#[derive(Debug, Args)]
pub struct Changes {
    /// From when on: 2026-11-20, 2026-11-20T03:00:00, 3D for three days ago, 2B for two backups ago
    #[arg(long, value_name = "TIME", value_parser = clock::when)]
    since: When,
    /// Until when, if not until the newest snapshot
    #[arg(long, value_name = "TIME", value_parser = clock::when)]
    at: Option<When>,
    /// Only this path and what is below it
    #[arg(value_name = "PATH")]
    path: Option<OsString>,
    #[command(flatten)]
    filters: Filters,
}

/// What `changes --json` says of what is compared.
#[derive(Serialize)]
struct Head {
    compared: Vec<Compared>,
}

#[derive(Serialize)]
struct Compared {
    path: String,
    before: SideRow,
    after: SideRow,
}

impl Changes {
    /// Lists them.
    pub fn run(self, global: &Global) -> Outcome {
        let repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let catalog = repo.catalog(&observer, &STOP)?;
        let (selection, found) = (self.filters.selection(), repo.snapshots()?);
        let path = self.path.as_ref().map(|path| path.as_bytes());
        let series = series_of(&catalog, &selection, &found, path)?;
        let pairs = pairs(&series, &self.since, self.at.as_ref())?;
        observer.finish();
        selection.damaged(&found).iter().for_each(|notice| output::notice(notice));
        for Pair { path, before, .. } in &pairs {
            if let Some(notice) = too_early(&self.since, &series.snapshots, before) {
                global.notice(&format!("{}: {notice}", escape(path)));
            }
        }
        let mut differences = Differences::begin(global, &Head::new(&pairs));
        for pair in &pairs {
            pair.diff(&catalog, &STOP, &mut |path, change| {
                differences.row(path, &change);
                Ok(())
            })?;
        }
        catalog.close(&observer)?;
        Ok(differences.end().exit())
    }
}

impl Head {
    fn new(pairs: &[Pair]) -> Self {
        let compared = pairs.iter().map(|pair| Compared {
            path: escape(&pair.path),
            before: SideRow::new(pair.before),
            after: SideRow::new(pair.after),
        });
        Self { compared: compared.collect() }
    }
}
