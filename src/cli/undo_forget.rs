//! `varv undo-forget`.

use clap::Args;
use serde::Serialize;

use super::error::Exit;
use super::forget::{Row, line};
use super::global::Global;
use super::{Outcome, output};
use crate::id::SnapshotId;
use crate::repo::Intent;
use crate::repo::snapshots::Listed;

/// Bring forgotten snapshots back, as long as varv prune has not run.
#[derive(Debug, Args)]
pub struct UndoForget {
    /// Snapshots, by their ids or unique prefixes of them, or latest; all if none is named
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Only say what would come back
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// What `undo-forget --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    brought_back: Vec<Row<'a>>,
}

impl UndoForget {
    /// Brings them back.
    pub fn run(self, global: &Global) -> Outcome {
        let repo = global.open(if self.dry_run { Intent::Read } else { Intent::Add })?;
        let found = repo.forgotten()?;
        let chosen: Vec<&Listed> = match &self.ids[..] {
            [] => found.listed.iter().collect(),
            ids => ids.iter().map(|prefix| found.by_prefix(prefix)).collect::<Result<_, _>>()?,
        };
        if !self.dry_run {
            let ids: Vec<SnapshotId> = chosen.iter().map(|listed| listed.id).collect();
            repo.bring_back(&ids)?;
        }
        match global.json {
            true => output::json(&Report {
                dry_run: self.dry_run,
                brought_back: chosen.iter().map(|listed| Row::new(listed)).collect(),
            }),
            false => text(&chosen, self.dry_run, global.quiet),
        }
        for (_, error) in &found.damaged {
            output::notice(&error.to_string());
        }
        Ok(if found.damaged.is_empty() { Exit::Done } else { Exit::Damage })
    }
}

fn text(chosen: &[&Listed], dry_run: bool, quiet: bool) {
    if quiet && !dry_run {
        return;
    }
    for listed in chosen {
        output::line(&line(listed));
    }
    output::line(&match (chosen.len(), dry_run) {
        (0, _) => "no snapshot is forgotten".to_string(),
        (count, true) => format!("{count} would be brought back"),
        (count, false) => format!("{count} brought back"),
    });
}
