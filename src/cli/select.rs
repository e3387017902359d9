//! Which snapshot, and which path in it, a command means.

use clap::Args;

use super::clock;
use super::global::Global;
use crate::error::Result;
use crate::history::resolve::{Resolved, Selection, roots_apart};
use crate::repo::catalog::Catalog;
use crate::repo::nodes::child_path;
use crate::repo::snapshots::Listed;
use crate::text::escape;
use crate::time::When;

/// Filters that many commands take.
#[derive(Debug, Args)]
pub struct Filters {
    /// Only snapshots of this series
    #[arg(long, value_name = "L")]
    pub label: Option<String>,
    /// Only snapshots of this host
    #[arg(long, value_name = "H")]
    pub host: Option<String>,
    /// Only snapshots with this tag
    #[arg(long, value_name = "T")]
    pub tag: Option<String>,
}

impl Filters {
    /// What `history` understands.
    pub fn selection(&self) -> Selection {
        Selection {
            host: self.host.clone(),
            label: self.label.clone(),
            tag: self.tag.clone(),
            ..Selection::default()
        }
    }

    /// The snapshots that fit, in their order.
    pub fn select<'s>(&'s self, listed: &'s [Listed]) -> impl DoubleEndedIterator<Item = &'s Listed> {
        listed.iter().filter(|Listed { snapshot, .. }| {
            self.label.as_ref().is_none_or(|label| *label == snapshot.label)
                && self.host.as_ref().is_none_or(|host| *host == snapshot.host)
                && self.tag.as_ref().is_none_or(|tag| snapshot.tags.contains(tag))
        })
    }
}

/// Which snapshot, for commands that mean one.
#[derive(Debug, Args)]
pub struct SnapshotChoice {
    /// The snapshot, by its id or a unique prefix of it; or latest, the newest that the filters
    /// leave and that has PATH's source
    #[arg(long, value_name = "ID")]
    pub snapshot: Option<String>,
    /// The newest snapshot that is not after this time and has PATH: now, 2026-11-20,
    /// 2026-11-20T03:00:00, 3D for three days ago, 2B for two backups ago
    #[arg(long, value_name = "TIME", value_parser = clock::when, conflicts_with = "snapshot")]
    pub at: Option<When>,
    #[command(flatten)]
    pub filters: Filters,
}

impl SnapshotChoice {
    /// What `history` understands.
    pub fn selection(&self) -> Selection {
        let mut selection = self.filters.selection();
        selection.snapshot = self.snapshot.clone();
        selection.at = self.at.clone();
        selection
    }
}

/// Tells which sources lie below the path and do not come with it; their paths below it.
pub fn tell_apart(catalog: &Catalog, resolved: &Resolved, global: &Global) -> Result<Vec<Vec<u8>>> {
    let apart = roots_apart(catalog, resolved)?;
    for root in &apart {
        let root = escape(&child_path(&resolved.path, root));
        global.notice(&format!("{root} is a source of its own in this snapshot: restore it for itself"));
    }
    Ok(apart)
}
