//! `varv ls`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;

use super::entry::{EntryRow, long};
use super::error::Exit;
use super::global::Global;
use super::select::SnapshotChoice;
use super::signals::STOP;
use super::{Outcome, output};
use crate::error::Result;
use crate::history::list::list;
use crate::history::resolve::{Resolved, resolve};
use crate::repo::Intent;
use crate::repo::catalog::Catalog;
use crate::text::escape;

/// List what is in a snapshot.
///
/// Without PATH the roots, of a directory its entries, of anything else itself; always with
/// their whole paths.
#[derive(Debug, Args)]
pub struct List {
    /// The path in the snapshot, a stream's name or a volume
    #[arg(value_name = "PATH")]
    path: Option<OsString>,
    #[command(flatten)]
    choice: SnapshotChoice,
    /// Show mode, owner, size, time of modification and where symlinks point
    #[arg(short, long)]
    long: bool,
    /// Go on into directories
    #[arg(short = 'R', long)]
    recursive: bool,
}

impl List {
    /// Lists.
    pub fn run(self, global: &Global) -> Outcome {
        let repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let catalog = repo.catalog(&observer, &STOP)?;
        let path = self.path.as_ref().map(|path| path.as_bytes());
        let resolved = resolve(&repo, &catalog, &self.choice.selection(), path)?;
        observer.finish();
        for notice in &resolved.notices {
            output::notice(notice);
        }
        match global.json {
            true => self.json(&catalog, &resolved)?,
            false => self.text(&catalog, &resolved)?,
        }
        catalog.close(&observer)?;
        Ok(Exit::Done)
    }

    fn text(&self, catalog: &Catalog, resolved: &Resolved) -> Result<()> {
        let offset = resolved.listed.snapshot.offset;
        list(catalog, resolved, self.recursive, &STOP, &mut |path, entry| {
            output::line(&if self.long { long(path, entry, offset) } else { escape(path) });
            Ok(())
        })
    }

    /// As it comes, so that a long list needs no memory; one that ends early is no JSON.
    fn json(&self, catalog: &Catalog, resolved: &Resolved) -> Result<()> {
        let offset = resolved.listed.snapshot.offset;
        let mut entries =
            output::Array::begin(&format!("{{\"snapshot\":\"{}\",\"entries\":[", resolved.listed.id));
        list(catalog, resolved, self.recursive, &STOP, &mut |path, entry| {
            entries.item(&EntryRow::new(path, entry, offset));
            Ok(())
        })?;
        entries.end("]}");
        Ok(())
    }
}
