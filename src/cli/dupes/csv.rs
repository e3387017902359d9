//! A line a name, with quotes where they are needed (RFC 4180).

use super::out::Out;
use crate::dupes::report::FileRow;
use crate::dupes::{File, Group, Report, Root, Sink};
use crate::error::Result;

/// Writes all. Groups are numbered from 1 on; files without an equal have the number 0. Of a
/// file with several names, the further ones follow it as links.
pub fn write(report: &Report, out: &mut Out) -> Result<()> {
    out.line("group,bytes,bytes_wasted,path,link,reference,device,inode,modified,copy");
    report.found.tell(&mut Lines { roots: &report.roots, number: 0, group: Group::default(), out })
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
                "{number},{bytes},{wasted},{path},{link},{reference},{device},{inode},{modified},{copy}"
            ));
        }
    }
}

/// Line breaks are escaped already.
pub fn quoted(text: &str) -> String {
    if text.contains([',', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}
