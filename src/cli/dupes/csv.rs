//! A line a name, with quotes where they are needed (RFC 4180).
//!
//! Groups of equal files come first, then equal directories, partly equal files and shared
//! ranges; their numbers go on.

use super::out::Out;
use crate::dupes::report::{FileRow, whole_path};
use crate::dupes::stored::Relations;
use crate::dupes::{File, Group, Name, Report, Root, Sink};
use crate::error::Result;

/// Writes all. Groups are numbered from 1 on; files without an equal have the number 0. Of a
/// file with several names, the further ones follow it as links.
pub fn write(report: &Report, out: &mut Out) -> Result<()> {
    out.line(
        "group,bytes,bytes_wasted,path,link,reference,device,inode,modified,copy,kind,bytes_shared,offset",
    );
    let mut lines = Lines { roots: &report.roots, number: 0, group: Group::default(), out };
    report.found.tell(&mut lines)?;
    if let Some(relations) = &report.relations {
        lines.relations(relations);
    }
    Ok(())
}

struct Lines<'a> {
    roots: &'a [Root],
    number: u64,
    group: Group,
    out: &'a mut Out,
}

impl Sink for Lines<'_> {
    fn group(&mut self, group: &Group) -> Result<()> {
        self.number += 1;
        self.group = *group;
        Ok(())
    }

    fn file(&mut self, file: &File) -> Result<()> {
        self.lines(self.number, file);
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        Ok(())
    }

    fn unique(&mut self, file: &File) -> Result<()> {
        self.group = Group::default();
        self.lines(0, file);
        Ok(())
    }
}

impl Lines<'_> {
    fn relations(&mut self, Relations { dirs, partly, ranges }: &Relations) {
        for group in dirs {
            self.number += 1;
            for (copy, name) in group.dirs.iter().enumerate() {
                let place = (name, false, copy);
                self.relation((group.bytes, Some(group.bytes_wasted())), place, "directory", None, None);
            }
        }
        for group in partly {
            self.number += 1;
            for (copy, file) in group.files.iter().enumerate() {
                for (number, name) in file.names.iter().enumerate() {
                    let place = (name, number > 0, copy);
                    self.relation((file.len, None), place, "partly", Some(file.shared), None);
                }
            }
        }
        for range in ranges {
            self.number += 1;
            for (copy, (name, offset)) in range.ends.iter().enumerate() {
                self.relation(
                    (range.len, None),
                    (name, false, copy),
                    "range",
                    Some(range.len),
                    Some(*offset),
                );
            }
        }
    }

    fn relation(
        &mut self,
        (bytes, wasted): (u64, Option<u64>),
        (name, link, copy): (&Name, bool, usize),
        kind: &str,
        shared: Option<u64>,
        offset: Option<u64>,
    ) {
        let path = quoted(&whole_path(name, self.roots));
        let [wasted, shared, offset] = [wasted, shared, offset]
            .map(|number| number.map(|number| number.to_string()).unwrap_or_default());
        let number = self.number;
        self.out.line(&format!(
            "{number},{bytes},{wasted},{path},{link},false,,,,{copy},{kind},{shared},{offset}"
        ));
    }

    fn lines(&mut self, number: u64, file: &File) {
        let row = FileRow::new(file, self.roots);
        let modified = row.modified.map(|time| time.to_string()).unwrap_or_default();
        let names = std::iter::once((&row.path, false)).chain(row.links.iter().map(|link| (link, true)));
        for (path, link) in names {
            let FileRow { reference, copy, .. } = row;
            let number_of = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
            let (device, inode) = (number_of(row.device), number_of(row.inode));
            let (bytes, wasted, path) = (file.inode.len, self.group.wasted, quoted(path));
            self.out.line(&format!(
                "{number},{bytes},{wasted},{path},{link},{reference},{device},{inode},{modified},{copy},file,,"
            ));
        }
    }
}

/// Line breaks are escaped already.
pub fn quoted(text: &str) -> String {
    if text.contains([',', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}
