//! `varv snapshots`.

use std::collections::HashSet;

use clap::Args;
use serde::Serialize;

use super::error::Exit;
use super::global::Global;
use super::select::Filters;
use super::{Outcome, output};
use crate::format::snapshot::Stats;
use crate::id::SnapshotId;
use crate::repo::Intent;
use crate::repo::snapshots::Listed;
use crate::text::format_size;

/// List snapshots.
#[derive(Debug, Args)]
pub struct Snapshots {
    #[command(flatten)]
    filters: Filters,
}

#[derive(Serialize)]
struct Row<'a> {
    id: String,
    time: String,
    host: &'a str,
    label: &'a str,
    paths: Vec<&'a str>,
    tags: &'a [String],
    tier: &'a str,
    protected: bool,
    stats: &'a Stats,
}

impl Snapshots {
    /// Lists them, oldest first.
    pub fn run(&self, global: &Global) -> Outcome {
        let repo = global.open(Intent::Read)?;
        let found = repo.snapshots()?;
        let protected = repo.protected()?;
        let rows: Vec<&Listed> = self.filters.select(&found.listed).collect();
        match global.json {
            true => output::json(&rows.iter().map(|listed| Row::new(listed, &protected)).collect::<Vec<_>>()),
            false => table(&rows, &protected, global.verbose > 0),
        }
        for (_, error) in &found.damaged {
            output::notice(&error.to_string());
        }
        Ok(if found.damaged.is_empty() { Exit::Done } else { Exit::Damage })
    }
}

impl<'a> Row<'a> {
    fn new(listed: &'a Listed, protected: &HashSet<SnapshotId>) -> Self {
        let snapshot = &listed.snapshot;
        Self {
            id: listed.id.to_string(),
            time: output::rfc3339(snapshot.time, snapshot.offset),
            host: &snapshot.host,
            label: &snapshot.label,
            paths: snapshot.roots.iter().map(|root| root.path.as_str()).collect(),
            tags: &snapshot.tags,
            tier: snapshot.tier.name(),
            protected: protected.contains(&listed.id),
            stats: &snapshot.stats,
        }
    }
}

fn table(rows: &[&Listed], protected: &HashSet<SnapshotId>, verbose: bool) {
    for Listed { id, snapshot } in rows {
        let paths: Vec<&str> = snapshot.roots.iter().map(|root| root.path.as_str()).collect();
        let tags =
            if snapshot.tags.is_empty() { String::new() } else { format!(" [{}]", snapshot.tags.join(" ")) };
        let kept = if protected.contains(id) { " (protected)" } else { "" };
        output::line(&format!(
            "{}  {}  {}  {}  {:>10}  {}{tags}{kept}",
            id.short(),
            output::time(snapshot.time, snapshot.offset),
            snapshot.host,
            snapshot.label,
            format_size(snapshot.stats.bytes_source),
            paths.join(" "),
        ));
        if verbose {
            details(&snapshot.stats);
        }
    }
}

fn details(stats: &Stats) {
    let size = format_size;
    let line = |name: &str, text: String| output::line(&format!("          {name:<10} {text}"));
    line(
        "files",
        format!(
            "{} new ({}), {} changed ({}, were {}), {} deleted ({}), {} unchanged; {} directories",
            stats.files_new,
            size(stats.bytes_files_new),
            stats.files_changed,
            size(stats.bytes_files_changed),
            size(stats.bytes_files_changed_before),
            stats.files_deleted,
            size(stats.bytes_files_deleted),
            stats.files_unchanged,
            stats.dirs
        ),
    );
    line(
        "read",
        format!(
            "{} of {}, {} skipped as holes, {} were zeros",
            size(stats.bytes_read),
            size(stats.bytes_source),
            size(stats.bytes_hole),
            size(stats.bytes_zero)
        ),
    );
    line(
        "stored",
        format!(
            "{}, {} of it metadata, for {} new bytes in {} chunks",
            size(stats.bytes_stored),
            size(stats.bytes_metadata),
            size(stats.bytes_new),
            stats.chunks_new
        ),
    );
    line("time", format!("{:.1} s; {} errors", stats.seconds, stats.errors));
}
