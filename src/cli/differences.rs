//! What differs between two trees, as text and as JSON: one row a path.

use serde::Serialize;

use super::entry::size;
use super::error::Exit;
use super::global::Global;
use super::output;
use crate::format::tree::Entry;
use crate::history::diff::{Aspects, Change};
use crate::history::ranges::{ByteRange, Ranges};
use crate::repo::snapshots::Listed;
use crate::text::{escape, format_size};

/// A snapshot that is compared.
#[derive(Serialize)]
pub struct SideRow {
    snapshot: String,
    time: String,
}

impl SideRow {
    /// Of a snapshot.
    pub fn new(listed: &Listed) -> Self {
        let time = output::rfc3339(listed.snapshot.time, listed.snapshot.offset);
        Self { snapshot: listed.id.to_string(), time }
    }
}

/// A path that differs, in JSON.
#[derive(Serialize)]
struct Row<'a> {
    path: String,
    change: &'static str,
    what: Vec<&'static str>,
    kind_before: Option<&'static str>,
    kind: Option<&'static str>,
    bytes_before: Option<u64>,
    bytes: Option<u64>,
    bytes_differing: Option<u64>,
    ranges_count: Option<u64>,
    ranges: Option<&'a [ByteRange]>,
}

/// How much differs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    new: u64,
    changed: u64,
    deleted: u64,
    bytes_new: u64,
    bytes_deleted: u64,
}

impl Summary {
    /// The exit code for it.
    pub fn exit(self) -> Exit {
        match self == Self::default() {
            true => Exit::Done,
            false => Exit::Different,
        }
    }

    fn count(&mut self, change: &Change) {
        // A directory's files come by themselves.
        let len = |entry: &Entry| entry.size();
        match change {
            Change::New(entry) => {
                self.new += 1;
                self.bytes_new = self.bytes_new.saturating_add(len(entry));
            }
            Change::Deleted(entry) => {
                self.deleted += 1;
                self.bytes_deleted = self.bytes_deleted.saturating_add(len(entry));
            }
            Change::Changed { .. } => self.changed += 1,
        }
    }
}

#[derive(Serialize)]
struct Sums<'a, T> {
    #[serde(flatten)]
    summary: Summary,
    #[serde(flatten)]
    more: &'a T,
}

#[derive(Serialize)]
struct Nothing {}

/// Prints rows as they come, so that a long list needs no memory.
pub struct Differences {
    rows: Option<output::Array>,
    summary: Summary,
    verbose: bool,
    quiet: bool,
}

impl Differences {
    /// `head` is an object in JSON that is known before the rows; its fields come first.
    pub fn begin(global: &Global, head: &impl Serialize) -> Self {
        let rows = global.json.then(|| output::Array::of_object(head, "changes"));
        Self { rows, summary: Summary::default(), verbose: global.verbose > 0, quiet: global.quiet }
    }

    /// Prints one.
    pub fn row(&mut self, path: &[u8], change: &Change) {
        self.summary.count(change);
        match &mut self.rows {
            Some(rows) => rows.item(&Row::new(path, change)),
            None => text(path, change, self.verbose),
        }
    }

    /// Prints the sums.
    pub fn end(self) -> Summary {
        self.end_with(&Nothing {})
    }

    /// Prints the sums; in JSON with the fields of `more`.
    pub fn end_with(self, more: &impl Serialize) -> Summary {
        let Summary { new, changed, deleted, .. } = self.summary;
        match self.rows {
            Some(rows) => {
                let summary = Sums { summary: self.summary, more };
                let summary = serde_json::to_string(&summary).unwrap_or_default();
                rows.end(&format!("],\"summary\":{summary}}}"));
            }
            None if self.quiet => {}
            None => output::line(&format!("{new} new, {changed} changed, {deleted} deleted")),
        }
        self.summary
    }
}

impl<'a> Row<'a> {
    fn new(path: &[u8], change: &'a Change) -> Self {
        let (word, before, after) = sides(change);
        let (aspects, ranges) = differing(change);
        Self {
            path: escape(path),
            change: word,
            what: aspects.map(Aspects::words).unwrap_or_default(),
            kind_before: before.map(Entry::kind),
            kind: after.map(Entry::kind),
            bytes_before: before.map(size),
            bytes: after.map(size),
            bytes_differing: ranges.map(|ranges| ranges.bytes),
            ranges_count: ranges.map(|ranges| ranges.count),
            ranges: ranges.map(|ranges| ranges.list.as_slice()),
        }
    }
}

fn sides(change: &Change) -> (&'static str, Option<&Entry>, Option<&Entry>) {
    match change {
        Change::New(entry) => ("new", None, Some(entry)),
        Change::Deleted(entry) => ("deleted", Some(entry), None),
        Change::Changed { before, after, .. } => ("changed", Some(before), Some(after)),
    }
}

fn differing(change: &Change) -> (Option<&Aspects>, Option<&Ranges>) {
    match change {
        Change::Changed { aspects, ranges, .. } => (Some(aspects), ranges.as_ref()),
        _ => (None, None),
    }
}

fn text(path: &[u8], change: &Change, verbose: bool) {
    let (word, before, after) = sides(change);
    let bytes = after.or(before).map_or(0, size);
    let (aspects, ranges) = differing(change);
    let mut why = aspects.map(|aspects| aspects.words().join(", ")).unwrap_or_default();
    if let Some(ranges) = ranges.filter(|ranges| ranges.count > 0) {
        let plural = if ranges.count == 1 { "range" } else { "ranges" };
        why = format!("{why}; {} in {} {plural}", format_size(ranges.bytes), ranges.count);
    }
    let why = if why.is_empty() { why } else { format!("  ({why})") };
    output::line(&format!("{word:<8} {:>10}  {}{why}", format_size(bytes), escape(path)));
    if let Some(ranges) = ranges.filter(|_| verbose) {
        for ByteRange { offset, len } in &ranges.list {
            output::line(&format!("           {len} bytes at {offset}"));
        }
        let more = ranges.count - ranges.list.len() as u64;
        if more > 0 {
            output::line(&format!("           and {more} more ranges"));
        }
    }
}
