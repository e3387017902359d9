//! A report as JSON: for scripts, and for `--apply`.

use serde::Serialize;

use super::out::Out;
use crate::dupes::report::{FileRow, GroupRow};
use crate::dupes::{File, Group, Options, Report, Root, Sink, Totals};
use crate::error::Result;
use crate::text::escape;

/// What stands before the groups.
#[derive(Serialize)]
struct Head<'a> {
    roots: Vec<RootRow>,
    policy: Policy,
    totals: TotalsRow,
    left_out: Vec<LeftOut<'a>>,
}

#[derive(Serialize)]
struct RootRow {
    path: String,
    reference: bool,
}

#[derive(Serialize)]
struct Policy {
    min_size: u64,
    max_size: Option<u64>,
    empty: bool,
    hidden: bool,
    one_file_system: bool,
    isolate: bool,
    hard_links: &'static str,
}

/// What was counted.
#[derive(Serialize)]
pub struct TotalsRow {
    files: u64,
    dirs: u64,
    bytes: u64,
    empty: u64,
    hard_links: u64,
    size_collisions: u64,
    longest_set: u64,
    bytes_read: u64,
    groups: u64,
    files_redundant: u64,
    bytes_wasted: u64,
    unique: Option<u64>,
    errors: u64,
    seconds: f64,
}

#[derive(Serialize)]
struct LeftOut<'a> {
    path: String,
    what: &'a str,
}

impl TotalsRow {
    /// Unique files are null if they were not asked for.
    pub fn new(totals: &Totals, unique: bool) -> Self {
        Self {
            files: totals.files,
            dirs: totals.dirs,
            bytes: totals.bytes,
            empty: totals.empty,
            hard_links: totals.hard_links,
            size_collisions: totals.collisions,
            longest_set: totals.longest_set,
            bytes_read: totals.bytes_read,
            groups: totals.groups,
            files_redundant: totals.redundant,
            bytes_wasted: totals.wasted,
            unique: unique.then_some(totals.unique),
            errors: totals.problems,
            seconds: totals.seconds,
        }
    }
}

/// Writes all.
pub fn write(report: &Report, options: &Options, out: &mut Out) -> Result<()> {
    let root = |root: &Root| RootRow {
        path: escape(root.path.as_os_str().as_encoded_bytes()),
        reference: root.is_reference,
    };
    let policy = Policy {
        min_size: options.min_size,
        max_size: Some(options.max_size).filter(|max| *max < u64::MAX),
        empty: options.empty,
        hidden: options.hidden,
        one_file_system: options.one_file_system,
        isolate: options.isolate,
        hard_links: "one file",
    };
    let left_out = report
        .left_out
        .iter()
        .map(|(path, what)| LeftOut { path: escape(path.as_os_str().as_encoded_bytes()), what });
    out.open_object(&Head {
        roots: report.roots.iter().map(root).collect(),
        policy,
        totals: TotalsRow::new(&report.totals, options.unique),
        left_out: left_out.collect(),
    });
    out.bytes(b",\"groups\":[");
    report.found.tell(&mut Groups { roots: &report.roots, wants_unique: false, comma: false, out })?;
    out.bytes(b"]");
    if options.unique {
        out.bytes(b",\"unique\":[");
        report.found.tell(&mut Groups { roots: &report.roots, wants_unique: true, comma: false, out })?;
        out.bytes(b"]");
    }
    out.line("}");
    Ok(())
}

/// Writes groups, or files without an equal, one a line.
struct Groups<'a> {
    roots: &'a [Root],
    wants_unique: bool,
    comma: bool,
    out: &'a mut Out,
}

impl Groups<'_> {
    fn separate(&mut self) {
        self.out.bytes(if std::mem::replace(&mut self.comma, true) { b",\n" } else { b"\n" });
    }
}

impl Sink for Groups<'_> {
    fn group(&mut self, group: &Group) -> Result<()> {
        if !self.wants_unique {
            self.separate();
            self.comma = false;
            self.out.open_object(&GroupRow::new(group));
            self.out.bytes(b",\"files\":[");
        }
        Ok(())
    }

    fn file(&mut self, file: &File) -> Result<()> {
        if !self.wants_unique {
            self.separate();
            self.out.json(&FileRow::new(file, self.roots));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if !self.wants_unique {
            self.out.bytes(b"]}");
            self.comma = true;
        }
        Ok(())
    }

    fn unique(&mut self, file: &File) -> Result<()> {
        if self.wants_unique {
            self.separate();
            self.out.json(&FileRow::new(file, self.roots));
        }
        Ok(())
    }
}
