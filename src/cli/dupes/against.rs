//! Which files the repository has: from arguments to a report.

use std::path::PathBuf;

use serde::Serialize;

use super::csv::quoted;
use super::json::{LeftOut, RootRow};
use super::out::Out;
use super::text::shown;
use super::{Dupes, Format};
use crate::cli::error::Exit;
use crate::cli::global::Global;
use crate::cli::signals::STOP;
use crate::cli::{Outcome, output};
use crate::dupes::against::{self, Against, Totals, Verdict};
use crate::dupes::report::whole_path;
use crate::dupes::stored::Place;
use crate::error::{Error, Result};
use crate::repo::Intent;
use crate::source::walk::raise_file_limit;
use crate::text::{escape, format_size};

/// A name as JSON.
#[derive(Serialize)]
struct FileRow {
    path: String,
    root: u32,
    bytes: u64,
    stored: Option<StoredRow>,
}

/// Where its content is.
#[derive(Serialize)]
struct StoredRow {
    path: String,
    place: u32,
}

#[derive(Serialize)]
struct Head<'a> {
    roots: Vec<RootRow>,
    places: Vec<RootRow>,
    totals: TotalsRow,
    left_out: Vec<LeftOut<'a>>,
}

#[derive(Serialize)]
struct TotalsRow {
    files: u64,
    bytes: u64,
    empty: u64,
    safe: u64,
    bytes_safe: u64,
    nowhere: u64,
    bytes_nowhere: u64,
    bytes_read: u64,
    errors: u64,
    seconds: f64,
}

/// Looks, and reports.
pub fn run(arguments: Dupes, global: &Global) -> Outcome {
    raise_file_limit();
    let format = arguments.format(global);
    if matches!(format, Format::Fdupes | Format::Html) {
        return Err(Error::Refused("--against-repository writes text, json or csv".into()));
    }
    let Dupes { dirs, filters, snapshots, .. } = arguments;
    let options = filters.options(dirs);
    let repo = global.open(Intent::Read)?;
    let observer = global.observer();
    let found = repo.snapshots()?;
    let chosen = snapshots.choose(&found, true)?;
    let catalog = repo.catalog(&observer, &STOP)?;
    let places: Vec<Place> = chosen.iter().map(|listed| Place { listed, entry: None }).collect();
    let report = against::run(&repo, &catalog, &places, &options, &observer, &STOP)?;
    observer.finish();
    catalog.close(&observer)?;
    let mut out = Out::default();
    match format {
        Format::Json => json(&report, &mut out)?,
        Format::Csv => csv(&report, &mut out)?,
        _ => text(&report, global.quiet, &mut out)?,
    }
    out.flush();
    for (_, error) in &found.damaged {
        output::notice(&error.to_string());
    }
    Ok(match (found.damaged.is_empty(), report.totals.problems) {
        (false, _) => Exit::Damage,
        (true, 0) => Exit::Done,
        (true, _) => Exit::Incomplete,
    })
}

fn text(report: &Against, quiet: bool, out: &mut Out) -> Result<()> {
    report.tell(&mut |verdict| {
        let path = escape(&shown(&report.roots, &verdict.name));
        out.line(&match &verdict.stored {
            None => format!("nowhere  {path}"),
            Some(stored) => format!("safe     {path} = {}", escape(&shown(&report.snapshots, stored))),
        });
        Ok(())
    })?;
    if !quiet {
        totals(&report.totals, report.snapshots.len(), out);
    }
    Ok(())
}

fn totals(totals: &Totals, snapshots: usize, out: &mut Out) {
    let size = format_size;
    out.line("");
    out.line(&format!("nowhere    {} files with {}", totals.nowhere, size(totals.bytes_nowhere)));
    out.line(&format!("safe       {} files with {}, by content", totals.safe, size(totals.bytes_safe)));
    out.line(&format!("looked at  {} names and {snapshots} snapshots", totals.files));
    out.line(&format!("read       {} in {:.2} s", size(totals.bytes_read), totals.seconds));
    if totals.empty > 0 {
        out.line(&format!("empty      {} files that were passed over", totals.empty));
    }
    if totals.problems > 0 {
        out.line(&format!(
            "left out   {} paths that could not be read or changed meanwhile",
            totals.problems
        ));
    }
}

fn json(report: &Against, out: &mut Out) -> Result<()> {
    let Totals { files, bytes, empty, safe, bytes_safe, nowhere, bytes_nowhere, bytes_read, .. } =
        report.totals;
    let errors = report.totals.problems;
    let seconds = report.totals.seconds;
    let rows = |roots: &[crate::dupes::Root]| roots.iter().map(RootRow::new).collect();
    let left_out =
        |(path, what): &'_ (PathBuf, String)| (escape(path.as_os_str().as_encoded_bytes()), what.clone());
    let left: Vec<(String, String)> = report.left_out.iter().map(left_out).collect();
    out.open_object(&Head {
        roots: rows(&report.roots),
        places: rows(&report.snapshots),
        totals: TotalsRow {
            files,
            bytes,
            empty,
            safe,
            bytes_safe,
            nowhere,
            bytes_nowhere,
            bytes_read,
            errors,
            seconds,
        },
        left_out: left.iter().map(|(path, what)| LeftOut { path: path.clone(), what }).collect(),
    });
    out.bytes(b",\"checked\":[");
    let mut separator: &[u8] = b"\n";
    report.tell(&mut |verdict| {
        out.bytes(std::mem::replace(&mut separator, b",\n"));
        out.json(&FileRow {
            path: whole_path(&verdict.name, &report.roots),
            root: verdict.name.root,
            bytes: verdict.len,
            stored: verdict
                .stored
                .as_ref()
                .map(|stored| StoredRow { path: whole_path(stored, &report.snapshots), place: stored.root }),
        });
        Ok(())
    })?;
    out.line("]}");
    Ok(())
}

fn csv(report: &Against, out: &mut Out) -> Result<()> {
    out.line("state,bytes,path,stored_path,snapshot");
    report.tell(&mut |Verdict { name, len, stored }| {
        let path = quoted(&whole_path(name, &report.roots));
        out.line(&match stored {
            None => format!("nowhere,{len},{path},,"),
            Some(stored) => {
                let root = report.snapshots.get(stored.root as usize);
                let id = root.and_then(|root| root.origin.as_ref()).map(|origin| origin.id.to_string());
                let there = quoted(&whole_path(stored, &report.snapshots));
                format!("safe,{len},{path},{there},{}", id.unwrap_or_default())
            }
        });
        Ok(())
    })
}
