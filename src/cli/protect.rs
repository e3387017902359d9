//! `varv protect` and `varv unprotect`.

use clap::Args;
use serde::Serialize;

use super::error::Exit;
use super::global::Global;
use super::{Outcome, output};
use crate::error::Result;
use crate::id::SnapshotId;
use crate::repo::{Intent, Repo};

/// Protect snapshots: no rule forgets them, and they use up no place.
#[derive(Debug, Args)]
pub struct Protect {
    /// Snapshots, by their ids or unique prefixes of them; or latest
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

/// Protect snapshots no longer.
#[derive(Debug, Args)]
pub struct Unprotect {
    /// Snapshots, by their ids or unique prefixes of them; or latest
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

/// What both print with `--json`.
#[derive(Serialize)]
struct Report {
    snapshots: Vec<String>,
    protected: bool,
}

impl Protect {
    /// Protects.
    pub fn run(&self, global: &Global) -> Outcome {
        let repo = global.open(Intent::Add)?;
        let ids = chosen(&repo, &self.ids)?;
        repo.protect(&ids)?;
        report(&ids, true, global);
        Ok(Exit::Done)
    }
}

impl Unprotect {
    /// Protects no longer.
    pub fn run(&self, global: &Global) -> Outcome {
        let repo = global.open(Intent::Add)?;
        let ids = chosen(&repo, &self.ids)?;
        repo.unprotect(&ids)?;
        report(&ids, false, global);
        Ok(Exit::Done)
    }
}

fn chosen(repo: &Repo, prefixes: &[String]) -> Result<Vec<SnapshotId>> {
    let found = repo.snapshots()?;
    prefixes.iter().map(|prefix| Ok(found.by_prefix(prefix)?.id)).collect()
}

fn report(ids: &[SnapshotId], protected: bool, global: &Global) {
    if global.json {
        return output::json(&Report {
            snapshots: ids.iter().map(SnapshotId::to_string).collect(),
            protected,
        });
    }
    let word = if protected { "protected" } else { "not protected any more" };
    for id in ids.iter().filter(|_| !global.quiet) {
        output::line(&format!("{}  {word}", id.short()));
    }
}
