//! Which snapshot, and which path in it, a command means.

use clap::Args;

use crate::history::resolve::Selection;
use crate::repo::snapshots::Listed;

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
    /// The snapshot, by its id or a unique prefix of it
    #[arg(long, value_name = "ID")]
    pub snapshot: Option<String>,
    #[command(flatten)]
    pub filters: Filters,
}

impl SnapshotChoice {
    /// What `history` understands.
    pub fn selection(&self) -> Selection {
        Selection {
            snapshot: self.snapshot.clone(),
            host: self.filters.host.clone(),
            label: self.filters.label.clone(),
            tag: self.filters.tag.clone(),
        }
    }
}
