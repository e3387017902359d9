//! `varv verify`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use serde::Serialize;

use super::check::damage;
use super::differences::SideRow;
use super::error::Exit;
use super::global::Global;
use super::select::SnapshotChoice;
use super::signals::STOP;
use super::{Outcome, output};
use crate::history::resolve::resolve;
use crate::repo::Intent;
use crate::text::format_size;
use crate::upkeep::check::verify::{Verified, verify};

/// Read and check every byte that a snapshot, or a path in it, needs.
///
/// What is damaged is named with the files that it hurts; the exit code is 4 then. Other snapshots
/// are not looked at: see varv check for all.
#[derive(Debug, Args)]
pub struct Verify {
    /// Only this path and what is below it
    #[arg(value_name = "PATH")]
    path: Option<OsString>,
    #[command(flatten)]
    choice: SnapshotChoice,
}

/// What `verify --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    snapshot: SideRow,
    #[serde(flatten)]
    verified: &'a Verified,
}

impl Verify {
    /// Verifies.
    pub fn run(self, global: &Global) -> Outcome {
        let repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let catalog = repo.catalog(&observer, &STOP)?;
        let path = self.path.as_ref().map(|path| path.as_bytes());
        let resolved = resolve(&repo, &catalog, &self.choice.selection(), path)?;
        for notice in &resolved.notices {
            global.notice(notice);
        }
        let what = (&resolved.listed, resolved.path.as_slice(), resolved.entry.as_ref());
        let verified = verify(&repo, &catalog, what, &observer, &STOP)?;
        observer.finish();
        catalog.close(&observer)?;
        let snapshot = SideRow::new(&resolved.listed);
        match global.json {
            true => output::json(&Report { snapshot, verified: &verified }),
            false => text(&verified, global.quiet),
        }
        Ok(if verified.damaged.is_empty() { Exit::Done } else { Exit::Damage })
    }
}

fn text(verified: &Verified, quiet: bool) {
    verified.damaged.iter().for_each(damage);
    if quiet {
        return;
    }
    for note in &verified.notes {
        output::line(&format!("note       {note}"));
    }
    output::line(&format!(
        "verified   {} files of {}; {} of {} packs were read",
        verified.files,
        format_size(verified.bytes),
        format_size(verified.bytes_read),
        verified.packs_read
    ));
    output::line(&match verified.damaged.len() {
        0 => "damage     none".into(),
        1 => "damage     1 object".into(),
        objects => format!("damage     {objects} objects"),
    });
}
