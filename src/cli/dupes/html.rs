//! A report as one page for a browser: a map of where the waste is, and a table.
//!
//! The page is `report.html` with the data put in as JSON; scripts and styles are its own, so it
//! opens from anywhere, also without a network. It shows the groups that waste most; totals are
//! of all.

use serde::Serialize;

use super::Told;
use super::json::{RelationsRow, TotalsRow};
use super::out::Out;
use crate::dupes::report::{FileRow, GroupRow};
use crate::dupes::{File, Group, Report, Root, Sink};
use crate::error::Result;
use crate::text::escape;

const PAGE: &str = include_str!("report.html");
/// Where the data belongs.
const MARK: &str = "/*DATA*/";
/// Groups in a page, and files of each: a browser shows no more in a usable way.
const GROUPS_MAX: u64 = 5000;
const FILES_MAX: u64 = 200;
/// Equal directories, partly equal files and ranges: so many of each.
const RELATIONS_MAX: usize = 1000;

#[derive(Serialize)]
struct Head {
    roots: Vec<String>,
    policy: String,
    totals: TotalsRow,
    groups_max: u64,
}

/// Writes the page.
pub fn write(report: &Report, told: &Told, out: &mut Out) -> Result<()> {
    let (before, after) = PAGE.split_once(MARK).unwrap_or((PAGE, ""));
    out.bytes(before.as_bytes());
    let root = |root: &Root| match &root.origin {
        None => escape(root.path.as_os_str().as_encoded_bytes()),
        Some(origin) => format!("snapshot {} of {}/{}", origin.id.short(), origin.host, origin.label),
    };
    let head = Head {
        roots: report.roots.iter().map(root).collect(),
        policy: told.text.clone(),
        totals: TotalsRow::new(&report.totals, told.unique),
        groups_max: GROUPS_MAX,
    };
    out.bytes(script_safe(&head).strip_suffix("}").unwrap_or_default().as_bytes());
    out.bytes(b",\"groups\":[");
    report.found.tell(&mut Groups { roots: &report.roots, groups: 0, files: 0, out })?;
    out.bytes(b"]");
    if let Some(relations) = &report.relations {
        let row = script_safe(&RelationsRow::new(relations, &report.roots, RELATIONS_MAX));
        out.bytes(b",\n\"relations\":");
        out.bytes(row.as_bytes());
    }
    out.bytes(b"}");
    out.bytes(after.as_bytes());
    Ok(())
}

/// JSON in which nothing looks like the end of a script.
fn script_safe(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default().replace('<', "\\u003c")
}

struct Groups<'a> {
    roots: &'a [Root],
    groups: u64,
    /// Of the current group.
    files: u64,
    out: &'a mut Out,
}

impl Sink for Groups<'_> {
    fn group(&mut self, group: &Group) -> Result<()> {
        self.groups += 1;
        self.files = 0;
        if self.groups <= GROUPS_MAX {
            let separator: &[u8] = if self.groups > 1 { b",\n" } else { b"\n" };
            self.out.bytes(separator);
            self.out
                .bytes(script_safe(&GroupRow::new(group)).strip_suffix("}").unwrap_or_default().as_bytes());
            self.out.bytes(format!(",\"count\":{},\"files\":[", group.files).as_bytes());
        }
        Ok(())
    }

    fn file(&mut self, file: &File) -> Result<()> {
        self.files += 1;
        if self.groups <= GROUPS_MAX && self.files <= FILES_MAX {
            let FileRow { path, links, modified, copy, .. } = FileRow::new(file, self.roots);
            let separator: &[u8] = if self.files > 1 { b"," } else { b"" };
            self.out.bytes(separator);
            self.out.bytes(script_safe(&(path, links, modified, copy)).as_bytes());
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if self.groups <= GROUPS_MAX {
            self.out.bytes(b"]}");
        }
        Ok(())
    }

    fn unique(&mut self, _: &File) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_the_script() {
        let text = script_safe(&"</script><!--");
        assert!(!text.contains('<'));
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), "</script><!--");
    }

    #[test]
    fn the_page_has_one_place_for_data_and_no_references() {
        assert_eq!(PAGE.matches(MARK).count(), 1);
        for word in ["http:", "https:", " src=", "@import", "url("] {
            assert!(!PAGE.contains(word), "{word}");
        }
    }
}
