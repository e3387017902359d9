//! `varv stats`.

use clap::Args;
use serde::Serialize;

use super::error::Exit;
use super::global::Global;
use super::select::Filters;
use super::signals::STOP;
use super::{Outcome, output};
use crate::history::resolve::Selection;
use crate::history::stats::{self, Alone, Level, Totals};
use crate::repo::Intent;
use crate::repo::snapshots::Listed;
use crate::text::format_size;

/// Show what the repository holds, what it takes, and what each snapshot holds alone.
#[derive(Debug, Args)]
pub struct Stats {
    /// Only this snapshot in the list, by its id or a unique prefix of it; or latest
    #[arg(value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    #[command(flatten)]
    filters: Filters,
}

/// What `stats --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    totals: &'a Totals,
    each: Vec<Row<'a>>,
}

/// A snapshot in it.
#[derive(Serialize)]
struct Row<'a> {
    id: String,
    time: String,
    host: &'a str,
    label: &'a str,
    bytes_source: u64,
    bytes_new: u64,
    bytes_stored: u64,
    bytes_alone: u64,
    bytes_alone_stored: u64,
}

impl Stats {
    /// Counts.
    pub fn run(self, global: &Global) -> Outcome {
        let repo = global.open(Intent::Read)?;
        let observer = global.observer();
        let found = repo.snapshots()?;
        let Filters { label, host, tag } = self.filters;
        let chosen = Selection { snapshot: self.snapshot, host, label, tag, at: None }.choose(&found)?;
        let catalog = repo.catalog(&observer, &STOP)?;
        let (totals, alone) = stats::run(&repo, &catalog, &found.listed, &chosen, &observer, &STOP)?;
        observer.finish();
        catalog.close(&observer)?;
        let rows: Vec<Row> =
            chosen.iter().zip(&alone).map(|(listed, alone)| Row::new(listed, alone)).collect();
        match global.json {
            true => output::json(&Report { totals: &totals, each: rows }),
            false => text(&totals, &rows),
        }
        for (_, error) in &found.damaged {
            output::notice(&error.to_string());
        }
        Ok(if found.damaged.is_empty() { Exit::Done } else { Exit::Damage })
    }
}

impl<'a> Row<'a> {
    fn new(Listed { id, snapshot }: &'a Listed, alone: &Alone) -> Self {
        Self {
            id: id.to_string(),
            time: output::rfc3339(snapshot.time, snapshot.offset),
            host: &snapshot.host,
            label: &snapshot.label,
            bytes_source: snapshot.stats.bytes_source,
            bytes_new: snapshot.stats.bytes_new,
            bytes_stored: snapshot.stats.bytes_stored,
            bytes_alone: alone.bytes,
            bytes_alone_stored: alone.bytes_stored,
        }
    }
}

fn text(totals: &Totals, rows: &[Row]) {
    summary(totals);
    if !totals.levels.is_empty() {
        output::line("");
        output::line(&columns(["kind", "codec", "level", "frames", "raw", "stored", "tiers"]));
        totals.levels.iter().for_each(|level| output::line(&level_line(level)));
    }
    if !rows.is_empty() {
        output::line("");
        output::line(&columns(["snapshot", "", "source", "new", "stored", "alone", "alone stored, where"]));
        rows.iter().for_each(|row| output::line(&row_line(row)));
    }
}

fn summary(totals: &Totals) {
    let size = format_size;
    output::line(&format!("snapshots  {}", totals.snapshots));
    output::line(&format!("source     {} in all of them", size(totals.bytes_source)));
    output::line(&format!("distinct   {} of it", size(totals.bytes_deduplicated)));
    output::line(&format!(
        "stored     {} in {} packs with {} chunks: {} data, {} metadata",
        size(totals.bytes_data + totals.bytes_metadata),
        totals.packs,
        totals.chunks,
        size(totals.bytes_data),
        size(totals.bytes_metadata)
    ));
    output::line(&format!(
        "repository {}, {} of it index: {:.1} times less than the source",
        size(totals.bytes_repository),
        size(totals.bytes_index),
        totals.ratio
    ));
    output::line(&format!("unused     {} that no snapshot needs", size(totals.bytes_unused)));
    output::line(&output::saved(&totals.saved));
}

fn columns(cells: [&str; 7]) -> String {
    let [a, b, c, d, e, f, g] = cells;
    format!("{a:<8}  {b:<10}  {c:>10}  {d:>10}  {e:>10}  {f:>10}  {g}").trim_end().to_owned()
}

fn level_line(level: &Level) -> String {
    let codec = if level.delta { format!("{} delta", level.codec) } else { level.codec.to_owned() };
    columns([
        level.kind,
        &codec,
        &level.level.to_string(),
        &level.frames.to_string(),
        &format_size(level.bytes_raw),
        &format_size(level.bytes_stored),
        &level.tiers.join(" "),
    ])
}

fn row_line(row: &Row) -> String {
    columns([
        &row.id[..8],
        &row.time[..10],
        &format_size(row.bytes_source),
        &format_size(row.bytes_new),
        &format_size(row.bytes_stored),
        &format_size(row.bytes_alone),
        &format!("{:>10}  {} {}", format_size(row.bytes_alone_stored), row.host, row.label),
    ])
}
