//! A report as JSON: for scripts, and for `--apply`.

use serde::Serialize;

use super::Told;
use super::out::Out;
use crate::cli::output::rfc3339;
use crate::dupes::report::{FileRow, GroupRow, whole_path};
use crate::dupes::stored::{EqualDirs, Origin, Partly, PartlyFile, Range, Relations};
use crate::dupes::{File, Filters, Group, Name, Report, Root, Sink, Totals};
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

/// A directory, or a snapshot.
#[derive(Serialize)]
pub struct RootRow {
    path: String,
    reference: bool,
    #[serde(flatten)]
    origin: Option<OriginRow>,
}

/// Which snapshot a root is.
#[derive(Serialize)]
struct OriginRow {
    snapshot: String,
    host: String,
    label: String,
    time: String,
}

/// What counted.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Policy {
    /// The least length of a file.
    min_size: u64,
    /// The greatest.
    max_size: Option<u64>,
    /// Whether empty files count.
    empty: bool,
    /// Whether names with a dot first do.
    hidden: bool,
    /// Whether to stay on the roots' file systems.
    one_file_system: bool,
    /// Whether groups must have files of more than one root, or of more than one host or label.
    isolate: bool,
    /// What hard links are.
    hard_links: &'static str,
}

impl Policy {
    /// Of these filters.
    pub fn new(filters: &Filters, one_file_system: bool, isolate: bool) -> Self {
        Self {
            min_size: filters.min_size,
            max_size: Some(filters.max_size).filter(|max| *max < u64::MAX),
            empty: filters.empty,
            hidden: filters.hidden,
            one_file_system,
            isolate,
            hard_links: "one file",
        }
    }
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

/// What could not be read.
#[derive(Serialize)]
pub struct LeftOut<'a> {
    /// Its path, escaped.
    pub path: String,
    /// Why.
    pub what: &'a str,
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
pub fn write(report: &Report, told: &Told, out: &mut Out) -> Result<()> {
    let left_out = report
        .left_out
        .iter()
        .map(|(path, what)| LeftOut { path: escape(path.as_os_str().as_encoded_bytes()), what });
    out.open_object(&Head {
        roots: report.roots.iter().map(RootRow::new).collect(),
        policy: told.policy,
        totals: TotalsRow::new(&report.totals, told.unique),
        left_out: left_out.collect(),
    });
    out.bytes(b",\"groups\":[");
    report.found.tell(&mut Groups { roots: &report.roots, wants_unique: false, comma: false, out })?;
    out.bytes(b"]");
    if let Some(relations) = &report.relations {
        relations_json(relations, &report.roots, out);
    }
    if told.unique {
        out.bytes(b",\"unique\":[");
        report.found.tell(&mut Groups { roots: &report.roots, wants_unique: true, comma: false, out })?;
        out.bytes(b"]");
    }
    out.line("}");
    Ok(())
}

fn relations_json(relations: &Relations, roots: &[Root], out: &mut Out) {
    let Relations { dirs, partly, ranges } = relations;
    out.array("directories", dirs.iter().map(|group| DirsRow::new(group, roots)));
    out.array("partly", partly.iter().map(|group| PartlyRow::new(group, roots)));
    out.array("ranges", ranges.iter().map(|range| RangeRow::new(range, roots)));
}

/// What else is equal, the first of each kind.
#[derive(Serialize)]
pub struct RelationsRow {
    directories: Vec<DirsRow>,
    partly: Vec<PartlyRow>,
    ranges: Vec<RangeRow>,
}

impl RelationsRow {
    /// At most `max` of each kind.
    pub fn new(relations: &Relations, roots: &[Root], max: usize) -> Self {
        let Relations { dirs, partly, ranges } = relations;
        Self {
            directories: dirs.iter().take(max).map(|group| DirsRow::new(group, roots)).collect(),
            partly: partly.iter().take(max).map(|group| PartlyRow::new(group, roots)).collect(),
            ranges: ranges.iter().take(max).map(|range| RangeRow::new(range, roots)).collect(),
        }
    }
}

/// Equal directories.
#[derive(Serialize)]
struct DirsRow {
    bytes: u64,
    files: u64,
    bytes_wasted: u64,
    paths: Vec<PathRow>,
}

/// Partly equal files.
#[derive(Serialize)]
struct PartlyRow {
    bytes: u64,
    bytes_shared: u64,
    count: u64,
    members: Vec<MemberRow>,
}

#[derive(Serialize)]
struct MemberRow {
    bytes: u64,
    bytes_data: u64,
    bytes_shared: u64,
    places: u64,
    paths: Vec<PathRow>,
}

/// A shared range.
#[derive(Serialize)]
struct RangeRow {
    bytes: u64,
    ends: Vec<EndRow>,
}

#[derive(Serialize)]
struct EndRow {
    #[serde(flatten)]
    path: PathRow,
    offset: u64,
}

/// A path and the number of its root.
#[derive(Serialize)]
struct PathRow {
    path: String,
    root: u32,
}

impl PathRow {
    fn new(name: &Name, roots: &[Root]) -> Self {
        Self { path: whole_path(name, roots), root: name.root }
    }
}

impl RootRow {
    /// Of a root.
    pub fn new(root: &Root) -> Self {
        Self {
            path: escape(root.path.as_os_str().as_encoded_bytes()),
            reference: root.is_reference,
            origin: root.origin.as_ref().map(OriginRow::new),
        }
    }
}

impl OriginRow {
    fn new(origin: &Origin) -> Self {
        Self {
            snapshot: origin.id.to_string(),
            host: origin.host.clone(),
            label: origin.label.clone(),
            time: rfc3339(origin.time, origin.offset),
        }
    }
}

impl DirsRow {
    fn new(group: &EqualDirs, roots: &[Root]) -> Self {
        let paths = group.dirs.iter().map(|name| PathRow::new(name, roots)).collect();
        Self { bytes: group.bytes, files: group.files, bytes_wasted: group.bytes_wasted(), paths }
    }
}

impl PartlyRow {
    fn new(group: &Partly, roots: &[Root]) -> Self {
        let member = |file: &PartlyFile| MemberRow {
            bytes: file.len,
            bytes_data: file.data,
            bytes_shared: file.shared,
            places: file.places,
            paths: file.names.iter().map(|name| PathRow::new(name, roots)).collect(),
        };
        let Partly { bytes, bytes_shared, count, .. } = *group;
        Self { bytes, bytes_shared, count, members: group.files.iter().map(member).collect() }
    }
}

impl RangeRow {
    fn new(range: &Range, roots: &[Root]) -> Self {
        let end = |(name, offset): &(Name, u64)| EndRow { path: PathRow::new(name, roots), offset: *offset };
        Self { bytes: range.len, ends: range.ends.iter().map(end).collect() }
    }
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
